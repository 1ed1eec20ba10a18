//! One broken thing for each rule.

use super::{change, change_gpu, set};
use crate::{
    doctor::{
        Demand, Stack,
        testing::{GIB, nccl},
    },
    facts::{
        ComputeMode, DeviceNode, EccMode, Fabric, Fact, FaultKind, GpuFacts, GpuHandle, Interface,
        KernelFault, MigMode, NodeFacts, NodeName, NvmlState, PciGpu, PcieLink, PortState,
        RetiredPages, Snapshot, XidEvent,
    },
};

pub(super) type Mutation = fn(&mut Snapshot, &mut Demand);

pub(super) fn first(snapshot: &mut Snapshot) -> &mut NodeFacts {
    snapshot.nodes.values_mut().next().expect("a node")
}

pub(super) fn all(snapshot: &mut Snapshot, f: impl Fn(&mut NodeFacts)) {
    snapshot.nodes.values_mut().for_each(f);
}

/// Changes GPU 0 of the first node.
pub(super) fn gpu(snapshot: &mut Snapshot, f: impl FnOnce(&mut GpuFacts)) {
    change_gpu(first(snapshot), 0, f);
}

fn pci(snapshot: &mut Snapshot, f: impl FnOnce(&mut Vec<PciGpu>)) {
    change(&mut first(snapshot).driver.pci_gpus, f);
}

/// The driver of all nodes, library and module.
pub(super) fn driver(snapshot: &mut Snapshot, version: &str) {
    all(snapshot, |node| {
        change(&mut node.nvml.driver_version, |known| version.clone_into(known));
        change(&mut node.driver.kernel_module, |module| {
            version.clone_into(&mut module.as_mut().expect("loaded").version);
        });
    });
}

fn needs(node: &mut NodeFacts, library: &str) {
    change(&mut node.trainer.needed, |needed| {
        let cublas = needed.iter_mut().find(|library| library.name.starts_with("libcublas"));
        library.clone_into(&mut cublas.expect("cuBLAS").name);
    });
}

/// Changes all GPUs of all nodes.
pub(super) fn gpus(snapshot: &mut Snapshot, f: impl Fn(&mut GpuFacts)) {
    all(snapshot, |node| change(&mut node.nvml.gpus, |gpus| gpus.iter_mut().for_each(&f)));
}

/// One broken thing for each rule, of all files.
pub(super) fn mutations() -> Vec<(&'static str, Mutation)> {
    [FIRST, super::mutations_host::HOST, super::mutations_gpu::GPU]
        .into_iter()
        .chain([super::mutations_network::NETWORK, super::mutations_official::OFFICIAL])
        .chain([super::mutations_active::ACTIVE])
        .flatten()
        .copied()
        .collect()
}

const FIRST: &[(&str, Mutation)] = &[
    ("node-missing", |s, _d| {
        s.expected.insert(NodeName("n9".to_owned()));
    }),
    ("nvml-unavailable", |s, _d| {
        let message = "a driver/library version mismatch".to_owned();
        first(s).nvml.state = Fact::known(NvmlState::Failed { code: 18, message }, "nvmlInit_v2");
    }),
    ("driver-hang", |s, _d| {
        change(&mut first(s).nvml.slowest_call, |call| call.1 = 6000);
    }),
    ("driver-module-mismatch", |s, _d| {
        change(&mut first(s).driver.kernel_module, |module| {
            "575.57.08".clone_into(&mut module.as_mut().expect("loaded").version);
        });
    }),
    ("driver-skew", |s, _d| {
        let node = first(s);
        change(&mut node.nvml.driver_version, |known| "580.82.07".clone_into(known));
        change(&mut node.driver.kernel_module, |module| {
            "580.82.07".clone_into(&mut module.as_mut().expect("loaded").version);
        });
    }),
    ("kernel-module-missing", |s, _d| {
        change(&mut first(s).driver.modules, |modules| {
            modules.remove("nvidia_uvm");
        });
    }),
    ("device-node-missing", |s, _d| {
        change(&mut first(s).driver.device_nodes, |nodes| {
            nodes.remove("/dev/nvidia-uvm");
        });
    }),
    ("cgroup-device-denied", |s, _d| {
        change(&mut first(s).driver.device_nodes, |nodes| {
            let denied = DeviceNode::Denied { errno: "Operation not permitted".to_owned() };
            nodes.insert("/dev/nvidia0".to_owned(), denied);
        });
    }),
    ("gpu-count-mismatch", |s, _d| {
        pci(s, |gpus| {
            let mut third = gpus[0].clone();
            "0000:5e:00.0".clone_into(&mut third.address);
            gpus.push(third);
        });
    }),
    ("gpu-lost", |s, _d| gpu(s, |gpu| gpu.handle = GpuHandle::Lost)),
    ("recovery-action-pending", |s, _d| {
        gpu(s, |gpu| change(&mut gpu.recovery_action, |action| *action = Some(1)));
    }),
    ("gpu-busy", |s, _d| {
        gpu(s, |gpu| change(&mut gpu.memory_used_bytes, |used| *used = 3 * GIB));
    }),
    ("compute-mode-exclusive", |s, _d| {
        gpu(s, |gpu| change(&mut gpu.compute_mode, |mode| *mode = ComputeMode::Prohibited));
    }),
    ("mig-enabled", |s, _d| {
        let on = Some(MigMode { current: true, pending: true });
        gpu(s, |gpu| change(&mut gpu.mig, |mig| *mig = on));
    }),
    ("persistence-off", |s, _d| gpu(s, |gpu| change(&mut gpu.persistence, |on| *on = false))),
    ("ecc-mode", |s, _d| {
        let off = Some(EccMode { current: false, pending: false });
        gpus(s, |gpu| change(&mut gpu.ecc, |ecc| *ecc = off));
    }),
    ("ecc-uncorrected", |s, _d| {
        gpu(s, |gpu| change(&mut gpu.ecc_uncorrected_volatile, |errors| *errors = Some(3)));
    }),
    ("row-remap-pending", |s, _d| {
        gpu(s, |gpu| {
            change(&mut gpu.remapped_rows, |rows| rows.as_mut().expect("Ampere").pending = true);
        });
    }),
    ("row-remap-failed", |s, _d| {
        gpu(s, |gpu| {
            change(&mut gpu.remapped_rows, |rows| rows.as_mut().expect("Ampere").failed = true);
        });
    }),
    ("retired-pages", |s, _d| {
        let pages = Some(RetiredPages { single_bit: 60, double_bit: 3, pending: false });
        gpu(s, |gpu| change(&mut gpu.retired_pages, |known| *known = pages));
    }),
    ("memory-too-small", |_s, d| d.rank_memory_bytes = Some(100 * GIB)),
    ("memory-skew", |s, _d| {
        gpu(s, |gpu| change(&mut gpu.memory_total_bytes, |bytes| *bytes = 40 * GIB));
    }),
    ("hw-throttle", |s, _d| {
        gpu(s, |gpu| change(&mut gpu.clock_event_reasons, |bits| *bits = vec![0x48, 0x4c]));
    }),
    ("temperature-margin", |s, _d| {
        gpus(s, |gpu| change(&mut gpu.temperature_c, |degrees| *degrees = 86));
    }),
    ("power-cap", |s, _d| {
        gpus(s, |gpu| change(&mut gpu.power_limit_mw, |limit| *limit = Some(250_000)));
    }),
    ("pcie-width", |s, _d| {
        pci(s, |gpus| gpus[0].width = Some(PcieLink { current: 4, max: 16 }));
    }),
    ("nvlink-inactive", |s, _d| {
        gpu(s, |gpu| change(&mut gpu.nvlinks, |links| links[5].active = false));
    }),
    ("fabric-not-ready", |s, _d| {
        let fabric = Some(Fabric { state: 2, status: 0, health_mask: 0 });
        gpu(s, |gpu| change(&mut gpu.fabric, |known| *known = fabric));
    }),
    ("cuda-too-new", |s, _d| {
        driver(s, "575.57.08");
        all(s, |node| needs(node, "libcublas.so.13"));
    }),
    ("ptx-too-new", |s, _d| {
        all(s, |node| {
            change(&mut node.trainer.ptx, |ptx| {
                ptx.iter_mut().for_each(|module| module.version = 94);
            });
        });
    }),
    ("arch-not-covered", |s, _d| {
        all(s, |node| {
            change(&mut node.trainer.ptx, |ptx| {
                ptx.iter_mut().for_each(|module| "sm_90".clone_into(&mut module.target));
            });
        });
    }),
    ("trainer-missing", |s, _d| {
        first(s).trainer.path = Fact::unread("no such file", "ELF file of the trainer");
    }),
    ("trainer-without-cuda", |s, _d| {
        all(s, |node| {
            change(&mut node.trainer.needed, Vec::clear);
            change(&mut node.trainer.ptx, Vec::clear);
        });
    }),
    ("library-missing", |s, _d| {
        change(&mut first(s).trainer.needed, |needed| {
            needed.iter_mut().skip(1).take(1).for_each(|library| library.path = None);
        });
    }),
    ("binary-skew", |s, _d| {
        change(&mut first(s).trainer.sha256, |hash| "ef".repeat(32).clone_into(hash));
    }),
    ("forward-compat-shadow", |s, _d| {
        change(&mut first(s).cuda.library_path, |path| {
            "/usr/local/cuda/compat/libcuda.so.580.65.06".clone_into(path);
        });
    }),
    ("stub-libcuda", |s, _d| {
        change(&mut first(s).cuda.library_path, |path| {
            "/usr/local/cuda/lib64/stubs/libcuda.so".clone_into(path);
        });
    }),
    ("dtype-unsupported", |s, _d| {
        gpu(s, |gpu| change(&mut gpu.compute_capability, |capability| *capability = 75));
    }),
    ("nccl-duplicate", |s, _d| {
        let other = nccl("/opt/venv/lib/libnccl.so.2", "2.21.5", 180_000_000);
        change(&mut first(s).trainer.nccl, |found| found.push(other));
    }),
    ("nccl-skew", |s, _d| {
        let older = Some("2.26.2".to_owned());
        change(&mut first(s).trainer.nccl, |found| {
            found.iter_mut().take(1).for_each(|library| library.version.clone_from(&older));
        });
    }),
    ("shm-small", |s, d| {
        d.ranks = Some(6);
        change(&mut first(s).shm.mount, |mount| mount.total_bytes = 64 << 20);
    }),
    ("memlock-low", |s, _d| {
        change(&mut first(s).limits.memlock_bytes, |limit| *limit = Some(8 << 20));
    }),
    ("fd-limit", |s, _d| {
        change(&mut first(s).limits.open_files, |limit| *limit = Some(1024));
    }),
    ("cgroup-limits", |s, _d| {
        change(&mut first(s).memory.cgroup, |limits| limits.memory_max_bytes = Some(4 * GIB));
        // What may go into shared memory stays below the limit.
        change(&mut first(s).shm.mount, |mount| mount.total_bytes = 2 * GIB);
    }),
    ("host-memory-short", |s, _d| {
        change(&mut first(s).memory.available_bytes, |bytes| *bytes = 4 * GIB);
    }),
    ("kernel-old", |s, _d| {
        all(s, |node| change(&mut node.kernel.release, |release| "5.4.0".clone_into(release)));
    }),
    ("os-skew", |s, _d| {
        change(&mut first(s).kernel.os, |os| "Debian GNU/Linux 12".clone_into(os));
    }),
    ("kernel-faults", |s, _d| {
        let text = "Out of memory: Killed process 77 (python)".to_owned();
        let fault = KernelFault { kind: FaultKind::OutOfMemory, time_us: 1, text };
        change(&mut first(s).kernel.log, |log| log.faults.push(fault));
    }),
    ("time-daemon", |s, _d| change(&mut first(s).kernel.time_daemons, Vec::clear)),
    ("xid-seen", |s, _d| {
        change(&mut first(s).kernel.log, |log| log.xids.push(xid(79, 10, None)));
    }),
    ("host-identity-clash", |s, _d| {
        let twin = first(s).identity.clone();
        let second = &mut s.nodes.values_mut().nth(1).expect("two nodes").identity;
        (second.hostname, second.boot_id) = (twin.hostname, twin.boot_id);
    }),
    ("storage-unwritable", |s, _d| {
        change(&mut first(s).storage, |folders| folders[0].writable = false);
    }),
    ("disk-short", |s, _d| {
        change(&mut first(s).storage, |folders| folders[0].mount.free_bytes = GIB);
    }),
    ("port-in-use", |s, _d| {
        set(first(s), "MASTER_PORT", "29500");
        let message = "Address already in use".to_owned();
        let taken = PortState::Taken { port: 29_500, message };
        change(&mut first(s).network.master_port, |port| *port = taken);
    }),
    ("bootstrap-interface", |s, _d| all(s, |node| set(node, "NCCL_SOCKET_IFNAME", "ib"))),
    ("virtual-interface-first", |s, _d| {
        change(&mut first(s).network.interfaces, |interfaces| {
            let bridge =
                Interface { name: "cni0".to_owned(), is_virtual: true, ..interfaces[1].clone() };
            interfaces.insert(1, bridge);
        });
    }),
    ("ib-disabled-leftover", |s, _d| all(s, |node| set(node, "NCCL_IB_DISABLE", "1"))),
    ("world-size-mismatch", |s, _d| {
        let names = [("WORLD_SIZE", "8"), ("RANK", "0"), ("MASTER_PORT", "29500")];
        names.into_iter().for_each(|(name, value)| set(first(s), name, value));
        set(first(s), "MASTER_ADDR", "10.0.0.1");
    }),
    ("rank-gpu-clash", |s, d| {
        d.ranks = Some(6);
        set(first(s), "CUDA_VISIBLE_DEVICES", "0,0");
    }),
    ("visible-devices-stale", |s, _d| {
        set(first(s), "CUDA_VISIBLE_DEVICES", "0,7");
        change(&mut first(s).cuda.device_count, |count| *count = 1);
    }),
    ("bad-cuda-env", |s, _d| all(s, |node| set(node, "CUDA_LAUNCH_BLOCKING", "1"))),
    ("env-skew", |s, _d| set(first(s), "NCCL_DEBUG", "INFO")),
    ("pod-shm-small", |_s, d| {
        (d.ranks_each, d.pod_shm_bytes) = (Some(2), Some(GIB));
    }),
    ("batch-lr-drift", |_s, d| d.stack = Stack::Official),
    ("data-unusable", |_s, d| d.data.as_mut().expect("a verdict").blocking = 1),
];

/// An XID on GPU 0.
pub(super) fn xid(code: u32, time_us: u64, pid: Option<u32>) -> XidEvent {
    XidEvent {
        xid: code,
        pci_address: "0000:3b:00.0".to_owned(),
        pid,
        time_us,
        text: "as the driver says".to_owned(),
    }
}
