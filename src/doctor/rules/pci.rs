//! GPUs on the PCI bus: `gpu-driver-not-bound`, `pcie-aer`, `acs-on-p2p-path`,
//! `iommu-translating`, `pcie-slot-slow`, `pcie-replays`, `bar1-small`.

use std::collections::BTreeMap;

use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Rule, Severity, Stop, Value,
        gpus::{GpuVerdict, Texts, each_gpu},
        table,
    },
    facts::{Acs, NodeFacts, PciState},
};

pub(super) static GPU_DRIVER_NOT_BOUND: Rule = Rule {
    id: "gpu-driver-not-bound",
    summary: "the NVIDIA driver has every GPU",
    area: Area::Driver,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "https://docs.kernel.org/driver-api/vfio.html",
    docs: "A GPU that was given to virtual machines belongs to vfio-pci, one that nouveau took \
           first belongs to nouveau. NVML does not show such a GPU at all, so the count alone \
           does not say why it is missing.",
    reads: "the link `driver` of the GPU in /sys/bus/pci/devices",
    fix: "take the GPU out of the list of vfio-pci or blacklist nouveau, then reboot",
    check: Check::Node(not_bound),
};

pub(super) static PCIE_AER: Rule = Rule {
    id: "pcie-aer",
    summary: "the PCIe link of the GPU reported no errors",
    area: Area::Links,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "https://docs.kernel.org/PCI/pcieaer-howto.html; the 1000 corrected are our own limit",
    docs: "A fatal error took the link down at least once since boot, and the GPU with it. Errors \
           that were not fatal lost a transfer. Corrected errors by the thousand are a bad slot, \
           riser or card, and cost bandwidth.",
    reads: "aer_dev_fatal, aer_dev_nonfatal, aer_dev_correctable in /sys/bus/pci/devices",
    fix: "reseat the card and riser, or leave the GPU out",
    check: Check::Node(aer),
};

pub(super) static ACS_ON_P2P_PATH: Rule = Rule {
    id: "acs-on-p2p-path",
    summary: "bridges send traffic between GPUs the short way",
    area: Area::Links,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "NCCL user guide, PCI Access Control Services; NVIDIA/nccl#257, #606",
    docs: "With access control a bridge sends what one GPU writes to another up to the root of \
           the bus. Peer copies then take half the bandwidth, or hang, or arrive wrong. Inside of \
           a virtual machine the setting is the host's affair. Only root sees it.",
    reads: "PCI configuration space of the bridges above the GPUs (extended capability 0x000D)",
    fix: "setpci -s <bridge> ECAP_ACS+0x6.w=0000 on all bridges, or NCCL_P2P_DISABLE=1",
    check: Check::Node(acs),
};

pub(super) static IOMMU_TRANSLATING: Rule = Rule {
    id: "iommu-translating",
    summary: "the IOMMU lets GPUs reach each other directly",
    area: Area::Links,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "NCCL user guide, PCI Access Control Services; vllm-project/vllm#33041",
    docs: "An IOMMU that translates addresses sees every peer copy, and on many boards the copy \
           hangs or arrives wrong. In pass-through mode it stays out of the way. Inside of a \
           virtual machine the setting is the host's affair.",
    reads: "iommu_group/type of the GPUs in /sys/bus/pci/devices, /proc/cpuinfo",
    fix: "boot with iommu=pt, or NCCL_P2P_DISABLE=1",
    check: Check::Node(iommu),
};

pub(super) static PCIE_SLOT_SLOW: Rule = Rule {
    id: "pcie-slot-slow",
    summary: "the slot is as fast as the GPU",
    area: Area::Links,
    severity: Severity::Warn,
    applies: Applies::Gpus,
    source: "sysfs max_link_speed; DCGM (generation 3 at least)",
    docs: "A GPU of a newer PCIe generation than its slot, or a slot that the firmware holds back, \
           copies at half speed for ever. What both ends can do at most is compared, so an idle \
           link that sleeps raises no alarm.",
    reads: "max_link_speed of the GPU and of the port above it in /sys/bus/pci/devices",
    fix: "set the slot to its full generation in the firmware, or move the card",
    check: Check::Node(slot),
};

pub(super) static PCIE_REPLAYS: Rule = Rule {
    id: "pcie-replays",
    summary: "the PCIe link seldom sends twice",
    area: Area::Links,
    severity: Severity::Warn,
    applies: Applies::Gpus,
    source: "nvmlDeviceGetPcieReplayCounter; the limit of 10000 is our own",
    docs: "Every packet that arrives damaged is sent again. A handful since the driver was loaded \
           is normal; ten thousand is a bad cable, riser or slot.",
    reads: "nvmlDeviceGetPcieReplayCounter",
    fix: "reseat the card and riser, or leave the GPU out",
    check: Check::Node(replays),
};

pub(super) static BAR1_SMALL: Rule = Rule {
    id: "bar1-small",
    summary: "the network card can reach all memory of the GPU",
    area: Area::Links,
    severity: Severity::Warn,
    applies: Applies::GpuNodes,
    source: "https://docs.nvidia.com/cuda/gpudirect-rdma/ (BAR space)",
    docs: "A network card reaches the GPU's memory through a window of the bus. When it is \
           smaller than the memory, GPUDirect registers only a part, and NCCL copies through the \
           host.",
    reads: "nvmlDeviceGetBAR1MemoryInfo",
    fix: "turn on resizable BAR and `above 4G decoding` in the firmware",
    check: Check::Node(bar1),
};

const NO_GPU: &str = "the PCI bus shows no NVIDIA GPU";

fn states(node: &NodeFacts) -> Result<&[PciState], Stop> {
    let states = node.driver.pci_states.get()?;
    if states.is_empty() {
        return Err(Stop::skip(NO_GPU));
    }
    Ok(states)
}

fn not_bound(node: &NodeFacts, demand: &Demand) -> Outcome {
    let states = states(node)?;
    let name = |state: &PciState| state.driver.as_deref().unwrap_or("none").to_owned();
    let drivers: Vec<String> = states.iter().map(name).collect();
    let wrong = states.iter().find(|state| state.driver.as_deref() != Some("nvidia"));
    let problem = wrong.map(|state| {
        GPU_DRIVER_NOT_BOUND.problem(
            format!("GPU {} belongs to the driver {}", state.address, name(state)),
            format!("{} cannot use this GPU", demand.name()),
            format!("lspci -k -s {}", state.address),
        )
    });
    // A job that leaves GPUs over can do without one that others were given.
    let bound = states.iter().filter(|state| state.driver.as_deref() == Some("nvidia")).count();
    let enough = demand.ranks_per_node().is_some_and(|ranks| ranks as usize <= bound);
    let problem = problem.map(|problem| if enough { problem.at(Severity::Warn) } else { problem });
    Judgement::of(&node.driver.pci_states, drivers, "nvidia", problem)
}

fn aer(node: &NodeFacts, demand: &Demand) -> Outcome {
    const MANY: u64 = 1000;
    let states = states(node)?;
    let mut judgement = Judgement::default();
    for state in states {
        let Some(errors) = state.errors else { continue };
        let text = format!(
            "{} fatal, {} not fatal, {} corrected",
            errors.fatal, errors.nonfatal, errors.corrected
        );
        let required = format!("0, 0, under {MANY}");
        let evidence = Evidence::of(&node.driver.pci_states, text.as_str(), required);
        judgement.evidence.push(evidence.about(state.address.as_str()));
        let severity = match (errors.fatal, errors.nonfatal, errors.corrected) {
            (0, 0, corrected) if corrected < MANY => continue,
            (0, _, _) => Severity::Warn,
            (_, _, _) => Severity::Block,
        };
        let problem = PCIE_AER.problem(
            format!("PCIe errors of GPU {} since boot: {text}", state.address),
            format!("the GPU may fall off the bus under {}", demand.name()),
            format!("grep . /sys/bus/pci/devices/{}/aer_dev_*", state.address),
        );
        judgement.problems.push(problem.at(severity));
    }
    if judgement.evidence.is_empty() {
        return Err(Stop::skip("the kernel does not count PCIe errors"));
    }
    Ok(judgement)
}

/// Bits of the control register: request redirect, completion redirect, upstream forwarding.
const ACS_BITS: u16 = 0b1_1100;

fn acs(node: &NodeFacts, demand: &Demand) -> Outcome {
    if *node.system.virtual_machine.get()? {
        return Err(Stop::skip("this is a virtual machine: the host decides"));
    }
    let states = states(node)?;
    if states.len() < 2 {
        return Err(Stop::skip("there is one GPU, so nothing to reach"));
    }
    let fact = &node.driver.pci_states;
    let bridges: BTreeMap<&str, Acs> = states
        .iter()
        .flat_map(|state| &state.bridges)
        .map(|bridge| (bridge.address.as_str(), bridge.acs))
        .collect();
    if bridges.values().any(|acs| *acs == Acs::Hidden) {
        let why = "the kernel shows the extended configuration of bridges to root only";
        return Err(
            crate::facts::Unread { why: why.to_owned(), from: fact.from().to_owned() }.into()
        );
    }
    let on: Vec<&str> = bridges
        .iter()
        .filter(|(_address, acs)| matches!(acs, Acs::Control(bits) if bits & ACS_BITS != 0))
        .map(|(address, _acs)| *address)
        .collect();
    let problem = on.first().map(|first| {
        ACS_ON_P2P_PATH.problem(
            format!(
                "access control redirects peer traffic on {} bridges, such as {first}",
                on.len()
            ),
            format!("peer copies of {} are slow, hang or arrive wrong", demand.name()),
            "lspci -vvv | grep -E '^[0-9a-f]|ACSCtl'",
        )
    });
    Judgement::of(fact, on.len(), "0 bridges that redirect", problem)
}

fn iommu(node: &NodeFacts, demand: &Demand) -> Outcome {
    if *node.system.virtual_machine.get()? {
        return Err(Stop::skip("this is a virtual machine: the host decides"));
    }
    let states = states(node)?;
    let kind = |state: &PciState| state.iommu.clone().unwrap_or_else(|| "no IOMMU".to_owned());
    let kinds: Vec<String> = states.iter().map(kind).collect();
    let translating =
        states.iter().find(|s| s.iommu.as_deref().is_some_and(|t| t.starts_with("DMA")));
    let problem = translating.map(|state| {
        IOMMU_TRANSLATING.problem(
            format!("the IOMMU translates for GPU {} (type {})", state.address, kind(state)),
            format!("peer copies of {} may hang or arrive wrong", demand.name()),
            "cat /sys/kernel/iommu_groups/*/type; cat /proc/cmdline",
        )
    });
    Judgement::of(&node.driver.pci_states, kinds, "identity, or no IOMMU", problem)
}

fn slot(node: &NodeFacts, demand: &Demand) -> Outcome {
    let states = states(node)?;
    let told: Vec<_> = states.iter().filter_map(|s| Some((s, s.max_speed?))).collect();
    if told.is_empty() {
        return Err(Stop::skip("the bus does not tell its speeds"));
    }
    let slow = told.iter().find(|(_state, (device, port))| port < device);
    let problem = slow.map(|(state, (device, port))| {
        PCIE_SLOT_SLOW.problem(
            format!(
                "GPU {} can do {} GT/s, its slot {} GT/s",
                state.address,
                device / 1000,
                port / 1000
            ),
            format!("copies of {} to and from this GPU take longer", demand.name()),
            format!("lspci -vv -s {} | grep LnkCap", state.address),
        )
    });
    let speeds: Vec<String> =
        told.iter().map(|(_state, (device, port))| format!("{device} / {port} MT/s")).collect();
    Judgement::of(&node.driver.pci_states, speeds, "the slot as fast as the GPU", problem)
}

fn replays(node: &NodeFacts, demand: &Demand) -> Outcome {
    const MANY: u32 = 10_000;
    let texts = Texts {
        impact: "copies to and from this GPU are slow, and it may fall off the bus",
        fix: PCIE_REPLAYS.fix,
        see: "nvidia-smi -q | grep -A2 Replay",
    };
    each_gpu(node, demand, texts, |gpu| {
        let fact = &gpu.pcie_replays;
        let Some(count) = *fact.get()? else {
            return Ok(GpuVerdict::Exempt("the GPUs do not count it"));
        };
        let evidence = Evidence::of(fact, count, format!("under {MANY}"));
        if count < MANY {
            return Ok(GpuVerdict::Fine(evidence));
        }
        let what = format!("{count} PCIe packets were sent again (under {MANY} wanted)");
        Ok(GpuVerdict::Bad(Severity::Warn, what, evidence))
    })
}

fn bar1(node: &NodeFacts, demand: &Demand) -> Outcome {
    if node.network.rdma_ports.get()?.is_empty() {
        return Err(Stop::skip("there is no RDMA hardware"));
    }
    let texts = Texts {
        impact: "the network card reaches a part of the GPU's memory, so NCCL copies through the host",
        fix: BAR1_SMALL.fix,
        see: "nvidia-smi -q | grep -A3 'BAR1 Memory'",
    };
    each_gpu(node, demand, texts, |gpu| {
        let fact = &gpu.bar1_bytes;
        let Some(window) = *fact.get()? else {
            return Ok(GpuVerdict::Exempt("the driver does not tell the window"));
        };
        let total = *gpu.memory_total_bytes.get()?;
        // The window is a power of two, the memory a little less than one.
        let evidence = Evidence::of(fact, Value::Bytes(window), table::bytes(total));
        if total / 20 * 19 <= window {
            return Ok(GpuVerdict::Fine(evidence));
        }
        let what =
            format!("a window of {} for {} of memory", table::bytes(window), table::bytes(total));
        Ok(GpuVerdict::Bad(Severity::Warn, what, evidence))
    })
}
