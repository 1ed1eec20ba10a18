//! One broken thing for each rule about GPUs, their links and their driver.

use super::{
    change, change_gpu,
    mutations::{Mutation, all, driver, first, gpu, gpus},
    set,
};
use crate::{
    doctor::testing::nccl,
    facts::{
        Acs, AerCounts, CudaState, EccMode, Fact, Needed, NvLink, NvLinkErrors, PciState, Peer,
        Snapshot,
    },
};

/// Changes the state on the bus of GPU 0 of the first node.
fn on_bus(snapshot: &mut Snapshot, f: impl FnOnce(&mut PciState)) {
    change(&mut first(snapshot).driver.pci_states, |states| f(&mut states[0]));
}

/// Gives all GPUs of all nodes another name.
fn rename(snapshot: &mut Snapshot, name: &str) {
    gpus(snapshot, |gpu| change(&mut gpu.name, |known| name.clone_into(known)));
}

/// Makes all GPUs those of a rack: 18 links each.
fn rack(snapshot: &mut Snapshot) {
    rename(snapshot, "NVIDIA GB200");
    gpus(snapshot, |gpu| {
        change(&mut gpu.nvlinks, |links| {
            *links = (0..18).map(|link| NvLink { link, active: true }).collect();
        });
    });
}

/// The kind of the kernel module, and the id of GPU 0.
fn module(snapshot: &mut Snapshot, open: bool, id: &str) {
    change(&mut first(snapshot).driver.kernel_module, |module| {
        module.as_mut().expect("loaded").open = open;
    });
    change(&mut first(snapshot).driver.pci_gpus, |gpus| id.clone_into(&mut gpus[0].id));
}

pub(super) const GPU: &[(&str, Mutation)] = &[
    ("gpu-driver-not-bound", |s, _d| {
        on_bus(s, |state| state.driver = Some("vfio-pci".to_owned()));
    }),
    ("pcie-aer", |s, _d| {
        on_bus(s, |state| {
            state.errors = Some(AerCounts { fatal: 1, ..AerCounts::default() });
        });
    }),
    ("acs-on-p2p-path", |s, _d| {
        on_bus(s, |state| state.bridges[0].acs = Acs::Control(0x1d));
    }),
    ("iommu-translating", |s, _d| on_bus(s, |state| state.iommu = Some("DMA-FQ".to_owned()))),
    ("pcie-slot-slow", |s, _d| on_bus(s, |state| state.max_speed = Some((16_000, 8_000)))),
    ("pcie-replays", |s, _d| {
        gpu(s, |gpu| change(&mut gpu.pcie_replays, |count| *count = Some(50_000)));
    }),
    ("bar1-small", |s, _d| {
        gpu(s, |gpu| change(&mut gpu.bar1_bytes, |bytes| *bytes = Some(256 << 20)));
    }),
    ("numa-unknown", |s, _d| {
        change(&mut first(s).driver.pci_gpus, |gpus| gpus[0].numa_node = Some(-1));
    }),
    ("gpu-far-from-cpus", |s, _d| {
        change(&mut first(s).system.allowed_cpus, |cpus| *cpus = vec![(32, 63)]);
    }),
    ("rdma-far-from-gpu", |s, _d| {
        change(&mut first(s).network.rdma_ports, |ports| {
            ports.iter_mut().take(1).for_each(|port| port.numa_node = Some(1));
        });
    }),
    ("p2p-broken", |s, d| {
        d.ranks = Some(6);
        gpu(s, |gpu| change(&mut gpu.peers, |peers| peers[0].p2p_read = 3));
    }),
    ("topology-odd", |s, d| {
        // Four cards: 0 and 1 on one socket, 2 and 3 on the other; the job takes 0 and 2.
        rename(s, "NVIDIA A100 80GB PCIe");
        gpus(s, |gpu| change(&mut gpu.nvlinks, Vec::clear));
        d.ranks = Some(6);
        let node = first(s);
        change(&mut node.nvml.gpus, |gpus| {
            for index in 2..4 {
                let mut more = gpus[0].clone();
                more.index = index;
                more.uuid = Fact::known(format!("GPU-1{index}000000-0000"), "test");
                more.pci_address = Fact::known(format!("0000:{:02x}:00.0", 0x80 + index), "test");
                gpus.push(more);
            }
            for gpu in gpus.iter_mut() {
                let own = gpu.index;
                change(&mut gpu.peers, |peers| {
                    let others = (0..4).filter(|other| *other != own);
                    *peers = others
                        .map(|index| Peer {
                            index,
                            p2p_read: 0,
                            path: if index / 2 == own / 2 { 30 } else { 50 },
                        })
                        .collect();
                });
            }
        });
        change(&mut node.driver.pci_gpus, |gpus| {
            for index in 2..4 {
                let mut more = gpus[0].clone();
                more.address = format!("0000:{:02x}:00.0", 0x80 + index);
                gpus.push(more);
            }
        });
        change(&mut node.driver.device_nodes, |nodes| {
            let opens = nodes["/dev/nvidia0"].clone();
            nodes.insert("/dev/nvidia2".to_owned(), opens.clone());
            nodes.insert("/dev/nvidia3".to_owned(), opens);
        });
        change(&mut node.cuda.device_count, |count| *count = 2);
        set(node, "CUDA_VISIBLE_DEVICES", "0,2");
    }),
    ("nvlink-count", |s, _d| {
        gpu(s, |gpu| change(&mut gpu.nvlinks, |links| links.truncate(11)));
    }),
    ("nvlink-unequal", |s, d| {
        d.ranks = Some(6);
        rename(s, "NVIDIA A100 80GB PCIe");
        change_gpu(first(s), 1, |gpu| change(&mut gpu.nvlinks, Vec::clear));
    }),
    ("nvlink-errors", |s, _d| {
        let errors = NvLinkErrors { recoveries: 2, ..NvLinkErrors::default() };
        gpu(s, |gpu| change(&mut gpu.nvlink_errors, |known| *known = Some(errors)));
    }),
    ("fabric-manager", |s, _d| change(&mut first(s).driver.nvswitches, |count| *count = 4)),
    ("imex-not-ready", |s, _d| rack(s)),
    ("mnnvl-denied", |s, d| {
        rack(s);
        all(s, |node| change(&mut node.driver.imex_channels, |channels| *channels = 1));
        // 48 GPUs in three nodes: 16 in each.
        d.ranks = Some(48);
        all(s, |node| {
            change(&mut node.nvml.gpus, |gpus| {
                for index in 2..16_u32 {
                    let mut more = gpus[0].clone();
                    more.index = index;
                    let uuid = gpus[0].uuid.value().map_or("", String::as_str);
                    more.uuid = Fact::known(format!("{uuid}-{index}"), "test");
                    gpus.push(more);
                }
            });
            change(&mut node.driver.pci_gpus, |gpus| {
                for index in 2..16 {
                    let mut more = gpus[0].clone();
                    more.address = format!("0000:{:02x}:00.0", 0x60 + index);
                    gpus.push(more);
                }
            });
            change(&mut node.driver.device_nodes, |nodes| {
                let opens = nodes["/dev/nvidia0"].clone();
                for index in 2..16 {
                    nodes.insert(format!("/dev/nvidia{index}"), opens.clone());
                }
            });
            change(&mut node.cuda.device_count, |count| *count = 16);
        });
    }),
    ("gpu-model-skew", |s, _d| {
        for index in 0..2 {
            change_gpu(first(s), index, |gpu| {
                change(&mut gpu.name, |name| "NVIDIA A100-SXM-64GB".clone_into(name));
            });
        }
    }),
    ("vbios-skew", |s, _d| {
        gpu(s, |gpu| change(&mut gpu.vbios, |v| *v = Some("92.00.19.00.01".to_owned())));
    }),
    ("gsp-firmware-skew", |s, _d| {
        gpu(s, |gpu| change(&mut gpu.gsp_firmware, |v| *v = Some("575.57.08".to_owned())));
    }),
    ("ecc-skew", |s, _d| {
        // Workstation cards are not asked to have it on.
        rename(s, "NVIDIA RTX A6000");
        let off = Some(EccMode { current: false, pending: false });
        gpu(s, |gpu| change(&mut gpu.ecc, |ecc| *ecc = off));
    }),
    ("power-cap-skew", |s, _d| {
        gpu(s, |gpu| change(&mut gpu.power_limit_mw, |limit| *limit = Some(370_000)));
    }),
    ("temperature-skew", |s, _d| {
        gpu(s, |gpu| change(&mut gpu.temperature_c, |degrees| *degrees = 70));
    }),
    ("gpu-duplicate", |s, _d| {
        gpu(s, |gpu| change(&mut gpu.uuid, |uuid| "GPU-20000000-0000".clone_into(uuid)));
    }),
    ("application-clocks-set", |s, _d| {
        gpu(s, |gpu| change(&mut gpu.clock_event_reasons, |bits| *bits = vec![0x2, 0x3]));
    }),
    ("gpu-drives-display", |s, _d| {
        gpu(s, |gpu| change(&mut gpu.display_active, |active| *active = Some(true)));
    }),
    ("gpu-virtualised", |s, _d| {
        gpu(s, |gpu| change(&mut gpu.virtualization, |mode| *mode = Some(2)));
    }),
    ("mps-running", |s, _d| {
        all(s, |node| {
            change(&mut node.system.processes, |processes| {
                processes.daemons.insert("nvidia-cuda-mps".to_owned());
            });
        });
    }),
    ("mps-inconsistent", |s, _d| {
        change(&mut first(s).system.processes, |processes| {
            processes.daemons.insert("nvidia-cuda-mps".to_owned());
        });
    }),
    ("ecc-corrected-high", |s, _d| {
        gpu(s, |gpu| change(&mut gpu.ecc_corrected_volatile, |count| *count = Some(60_000_000)));
    }),
    ("row-remap-count", |s, _d| {
        gpu(s, |gpu| {
            change(&mut gpu.remapped_rows, |rows| {
                rows.as_mut().expect("Ampere").uncorrectable = 600;
            });
        });
    }),
    ("sram-ecc-threshold", |s, _d| {
        gpu(s, |gpu| change(&mut gpu.sram_threshold_exceeded, |passed| *passed = Some(true)));
    }),
    ("driver-denied", |s, _d| driver(s, "560.35.03")),
    ("driver-end-of-life", |s, _d| {
        driver(s, "525.147.05");
        all(s, |node| {
            change(&mut node.trainer.ptx, |ptx| ptx.iter_mut().for_each(|p| p.version = 78));
        });
    }),
    ("closed-kernel-module", |s, _d| module(s, false, "10de:2901")),
    ("open-kernel-module-unsupported", |s, _d| module(s, true, "10de:1db5")),
    ("cuda-unavailable", |s, _d| {
        let message = "unknown error".to_owned();
        first(s).cuda.state = Fact::known(CudaState::Failed { code: 999, message }, "cuInit");
    }),
    ("cuda-count-mismatch", |s, d| {
        d.ranks = Some(6);
        change(&mut first(s).cuda.device_count, |count| *count = 1);
    }),
    ("cuda-driver-mismatch", |s, _d| {
        change(&mut first(s).cuda.driver_version, |version| *version = 12_040);
    }),
    ("cuda-major-mixed", |s, _d| {
        let other =
            Needed { name: "libnvrtc.so.13".to_owned(), path: Some("/usr/lib/x".to_owned()) };
        change(&mut first(s).trainer.needed, |needed| needed.push(other));
    }),
    ("nccl-too-old", |s, _d| {
        let old = nccl("/usr/lib/libnccl.so.2.20.5", "2.20.5", 200_000_000);
        all(s, |node| change(&mut node.trainer.nccl, |found| *found = vec![old.clone()]));
    }),
    ("jit-cache-off", |s, _d| all(s, |node| set(node, "CUDA_CACHE_DISABLE", "1"))),
];
