//! GPUs of the job: product, memory, modes, links.

use super::{BASE, Key, Label, NONE, joined, of_gpus, optional_of_gpu, rough_bytes, text, yes};
use crate::{
    doctor::Stop,
    facts::{ComputeMode, GpuFacts},
};

pub(super) static COUNT: Key = Key {
    name: "GPUs",
    rules: &["gpu-count-mismatch", "launcher-count-mismatch"],
    reason: "every node has at least the GPUs that its ranks need",
    source: "this project: ranks take the first GPUs that are visible",
    read: |node, _demand| Ok(node.nvml.gpus.get()?.len().to_string()),
    ..BASE
};

pub(super) static CUDA_COUNT: Key = Key {
    name: "GPUs that CUDA counts",
    rules: &["cuda-count-mismatch", "cuda-unavailable"],
    reason: "CUDA shows at least the GPUs that the ranks need",
    source: "cuDeviceGetCount",
    read: |node, _demand| text(&node.cuda.device_count),
    ..BASE
};

pub(super) static OFFERED: Key = Key {
    name: "GPUs that the scheduler may give",
    rules: &["gpu-count-mismatch"],
    reason: "the scheduler may still place the job's pods, on the nodes with enough of them",
    source: "Kubernetes, allocatable of nodes",
    read: |node, _demand| {
        let offered = node.offered_gpus.ok_or_else(|| Stop::skip("not in a cluster"))?;
        Ok(offered.to_string())
    },
    ..BASE
};

pub(super) static MODEL: Key = Key {
    name: "GPU model",
    rules: &["memory-too-small", "arch-not-covered", "dtype-unsupported"],
    otherwise: Label::Slow,
    reason: "ranks wait for each other at every step, so the slowest product sets the pace",
    source: "AMD-AGI/Primus preflight, drift table",
    read: |node, demand| of_gpus(node, demand, |gpu| Ok(gpu.name.get()?.clone())),
    ..BASE
};

pub(super) static MEMORY: Key = Key {
    name: "GPU memory",
    rules: &["memory-too-small"],
    reason: "the smallest GPU decides about the plan, and the ranks fit into it as far as is known",
    source: "AMD-AGI/Primus (1 %); the estimate of `qvl plan`",
    read: |node, demand| {
        of_gpus(node, demand, |gpu| Ok(rough_bytes(*gpu.memory_total_bytes.get()?)))
    },
    ..BASE
};

pub(super) static CAPABILITY: Key = Key {
    name: "compute capability",
    rules: &["arch-not-covered", "dtype-unsupported", "script-dtype-unsupported"],
    otherwise: Label::Slow,
    reason: "generations of GPUs differ in speed and round differently; the slowest sets the pace",
    source: "CUDA programming guide, compute capabilities",
    read: |node, demand| {
        of_gpus(node, demand, |gpu| {
            let capability = *gpu.compute_capability.get()?;
            Ok(format!("{}.{}", capability / 10, capability % 10))
        })
    },
    ..BASE
};

pub(super) static VBIOS: Key = Key {
    name: "video BIOS",
    reason: "it breaks nothing by itself; look at it first when one GPU is slower or fails alone",
    source: "facebookresearch/gcm; imbue-ai/cluster-health",
    read: |node, demand| of_gpus(node, demand, |gpu| optional_of_gpu(&gpu.vbios, String::clone)),
    ..BASE
};

pub(super) static GSP: Key = Key {
    name: "GSP firmware",
    reason: "it comes with the driver; a version of its own means a driver that was not loaded \
             again after an upgrade",
    source: "nvmlDeviceGetGspFirmwareVersion",
    read: |node, demand| {
        of_gpus(node, demand, |gpu| optional_of_gpu(&gpu.gsp_firmware, String::clone))
    },
    ..BASE
};

pub(super) static ECC: Key = Key {
    name: "error correction",
    rules: &["memory-too-small"],
    reason: "usable memory may differ by a sixteenth, and the ranks fit; without it a memory error \
             goes unseen on these GPUs",
    source: "NVML user guide; leptonai/gpud ecc",
    read: |node, demand| {
        of_gpus(node, demand, |gpu| optional_of_gpu(&gpu.ecc, |mode| on(mode.current)))
    },
    ..BASE
};

pub(super) static MIG: Key = Key {
    name: "MIG",
    rules: &["mig-enabled", "memory-too-small"],
    otherwise: Label::Slow,
    reason: "a part of a GPU computes slower than a whole one, and all ranks wait for it",
    source: "NVIDIA MIG user guide",
    read: |node, demand| {
        of_gpus(node, demand, |gpu| optional_of_gpu(&gpu.mig, |mode| on(mode.current)))
    },
    ..BASE
};

pub(super) static COMPUTE_MODE: Key = Key {
    name: "compute mode",
    rules: &["compute-mode-exclusive"],
    reason: "each GPU takes one rank, which every mode but `prohibited` allows",
    source: "nvmlDeviceGetComputeMode",
    read: |node, demand| {
        of_gpus(node, demand, |gpu| {
            Ok(match gpu.compute_mode.get()? {
                ComputeMode::Default => "default",
                ComputeMode::ExclusiveThread => "exclusive-thread",
                ComputeMode::Prohibited => "prohibited",
                ComputeMode::ExclusiveProcess => "exclusive-process",
            }
            .to_owned())
        })
    },
    ..BASE
};

pub(super) static PERSISTENCE: Key = Key {
    name: "persistence",
    reason: "the first CUDA call of a rank takes seconds longer there, once",
    source: "NVIDIA driver persistence",
    read: |node, demand| of_gpus(node, demand, |gpu| Ok(on(*gpu.persistence.get()?))),
    ..BASE
};

pub(super) static POWER_LIMIT: Key = Key {
    name: "power limit",
    rules: &["hw-throttle"],
    otherwise: Label::Slow,
    reason: "a lower limit makes a GPU slower, and all ranks wait for it at every step",
    source: "NVIDIA Health Validation gpu_power_limit",
    read: |node, demand| {
        of_gpus(node, demand, |gpu| {
            optional_of_gpu(&gpu.power_limit_mw, |limit| format!("{} W", limit / 1000))
        })
    },
    ..BASE
};

pub(super) static CLOCKS_HELD: Key = Key {
    name: "clocks held down",
    otherwise: Label::Slow,
    reason: "somebody set the clocks of these GPUs, and all ranks wait for them",
    source: "NVML nvmlClocksEventReasonApplicationsClocksSetting (0x2)",
    read: |node, demand| {
        of_gpus(node, demand, |gpu| {
            let samples = gpu.clock_event_reasons.get()?;
            Ok(yes(!samples.is_empty() && samples.iter().all(|bits| bits & 0x2 != 0)))
        })
    },
    ..BASE
};

pub(super) static PCIE_WIDTH: Key = Key {
    name: "PCIe lanes",
    rules: &["pcie-width"],
    otherwise: Label::Slow,
    reason: "copies to and from the GPU take longer over fewer lanes",
    source: "leptonai/gpud; Azure azurehpc-health-checks",
    read: |node, demand| {
        of_gpus(node, demand, |gpu| {
            optional_of_gpu(&gpu.pcie_width, |link| format!("{} of {}", link.current, link.max))
        })
    },
    ..BASE
};

pub(super) static PCIE_GENERATION: Key = Key {
    name: "PCIe generation",
    rules: &["pcie-width"],
    otherwise: Label::Slow,
    reason: "the highest generation that device and slot can do halves or doubles the speed of \
             copies over PCIe",
    source: "nvmlDeviceGetMaxPcieLinkGeneration",
    read: |node, demand| {
        of_gpus(node, demand, |gpu| {
            optional_of_gpu(&gpu.pcie_generation, |link| link.max.to_string())
        })
    },
    ..BASE
};

pub(super) static NVLINKS: Key = Key {
    name: "NVLinks that are up",
    rules: &["nvlink-inactive"],
    otherwise: Label::Slow,
    reason: "ranks of these nodes exchange gradients over PCIe or over fewer links",
    source: "nvmlDeviceGetNvLinkState; DCGM nvlink plugin",
    read: |node, demand| of_gpus(node, demand, links),
    ..BASE
};

pub(super) static PEERS: Key = Key {
    name: "peer access",
    rules: &["p2p-broken"],
    otherwise: Label::Slow,
    reason: "without peer access NCCL copies through the host's memory",
    source: "nvmlDeviceGetP2PStatus; NCCL user guide, NCCL_P2P_DISABLE",
    read: |node, demand| {
        of_gpus(node, demand, |gpu| {
            let peers = gpu.peers.get()?;
            let works = peers.iter().filter(|peer| peer.p2p_read == 0).count();
            Ok(format!("{works} of {} peers", peers.len()))
        })
    },
    ..BASE
};

pub(super) static FABRIC: Key = Key {
    name: "NVSwitch fabric",
    rules: &["fabric-not-ready", "cuda-unavailable"],
    otherwise: Label::Slow,
    reason: "GPUs that are not registered exchange over PCIe",
    source: "nvmlDeviceGetGpuFabricInfoV",
    read: |node, demand| {
        of_gpus(node, demand, |gpu| {
            optional_of_gpu(&gpu.fabric, |fabric| match fabric.state {
                1 => "not started".to_owned(),
                2 => "in progress".to_owned(),
                3 => "registered".to_owned(),
                other => format!("state {other}"),
            })
        })
    },
    ..BASE
};

pub(super) static BAR1: Key = Key {
    name: "PCIe memory window (BAR1)",
    otherwise: Label::Slow,
    reason: "with a small window RDMA cards and peers reach a part of the GPU's memory at a time",
    source: "NVIDIA GPUDirect RDMA documentation, BAR sizes",
    read: |node, demand| {
        of_gpus(node, demand, |gpu| {
            optional_of_gpu(&gpu.bar1_bytes, |bytes| crate::doctor::human_bytes(*bytes))
        })
    },
    ..BASE
};

pub(super) static VIRTUALIZATION: Key = Key {
    name: "virtual GPU",
    otherwise: Label::Slow,
    reason: "a virtual GPU is a share of a real one, and most have no peer access",
    source: "NVIDIA vGPU user guide",
    read: |node, demand| {
        of_gpus(node, demand, |gpu| {
            optional_of_gpu(&gpu.virtualization, |mode| match mode {
                0 => "no".to_owned(),
                1 => "passed through".to_owned(),
                2 => "virtual".to_owned(),
                other => format!("mode {other}"),
            })
        })
    },
    ..BASE
};

pub(super) static DISPLAY: Key = Key {
    name: "screen on a GPU",
    rules: &["memory-too-small"],
    reason: "a desktop takes some memory of the GPU and ends long kernels; the ranks fit beside it \
             as far as is known",
    source: "nvmlDeviceGetDisplayActive",
    read: |node, demand| {
        of_gpus(node, demand, |gpu| optional_of_gpu(&gpu.display_active, |active| yes(*active)))
    },
    ..BASE
};

pub(super) static NVSWITCHES: Key = Key {
    name: "NVSwitches",
    rules: &["fabric-not-ready"],
    otherwise: Label::Slow,
    reason: "boards of another kind: all ranks wait for the one with the slower exchange",
    source: "sysfs, PCI class 0680 of NVIDIA",
    read: |node, _demand| text(&node.driver.nvswitches),
    ..BASE
};

pub(super) static IMEX: Key = Key {
    name: "IMEX channels",
    rules: &["imex-not-ready"],
    otherwise: Label::Slow,
    reason: "without a channel NCCL does not use NVLink between nodes",
    source: "NVIDIA IMEX guide",
    read: |node, _demand| text(&node.driver.imex_channels),
    ..BASE
};

pub(super) static IOMMU: Key = Key {
    name: "IOMMU of the GPUs",
    otherwise: Label::Slow,
    reason: "a translating IOMMU sends peer traffic over the processor",
    source: "NCCL user guide, troubleshooting (PCI access control, IOMMU)",
    read: |node, _demand| {
        let states = node.driver.pci_states.get()?;
        Ok(joined(states.iter().map(|state| state.iommu.as_deref().unwrap_or(NONE))))
    },
    ..BASE
};

fn on(flag: bool) -> String {
    if flag { "on" } else { "off" }.to_owned()
}

fn links(gpu: &GpuFacts) -> Result<String, crate::facts::Unread> {
    let links = gpu.nvlinks.get()?;
    let up = links.iter().filter(|link| link.active).count();
    Ok(format!("{up} of {}", links.len()))
}
