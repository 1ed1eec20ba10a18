//! A healthy fleet for tests: nodes with two A100 each, and a job that fits.

mod parts;

use std::collections::{BTreeMap, BTreeSet};

use super::{BatchNeed, CheckpointNeed, DataVerdict, Demand, Stack};
use crate::{
    facts::{
        Acs, AerCounts, Bridge, CgroupFacts, ComputeMode, ContainerFacts, CudaFacts, CudaState,
        DeviceNode, DriverFacts, EccMode, EnvFacts, Fact, GpuFacts, GpuHandle, IdentityFacts,
        Interface, InterfaceCounters, KernelFacts, KernelLog, KernelModule, Library, LimitFacts,
        MemoryFacts, MigMode, Mount, Needed, NetworkFacts, NodeFacts, NodeName, NvLink,
        NvLinkErrors, NvmlFacts, NvmlState, PciGpu, PciState, PcieLink, Peer, Place, PortState,
        PtxModule, RdmaPort, RemappedRows, ShmFacts, Snapshot, Storage, TrainerFacts, TrainerFile,
        Weights,
    },
    job::{Compute, Dtype, RankEnv},
};

pub(super) const GIB: u64 = 1 << 30;
const DRIVER: &str = "580.65.06";

fn known<T>(value: T) -> Fact<T> {
    Fact::known(value, "test")
}

/// `nodes` healthy nodes: `n1`, `n2`, ...
pub(super) fn fleet(nodes: u32) -> Snapshot {
    let node = |number| (NodeName(format!("n{number}")), node(number));
    Snapshot { nodes: (1..=nodes).map(node).collect(), expected: BTreeSet::new() }
}

/// A job with one rank on each of three nodes.
pub(super) fn demand() -> Demand {
    Demand {
        job: Some("digits".to_owned()),
        stack: Stack::Own,
        compute: Compute::Cuda,
        ranks: Some(3),
        nodes: 3,
        ranks_each: None,
        dtype: Dtype::Bf16,
        rank_memory_bytes: Some(30 * GIB),
        model_file_bytes: Some(19_313_870_336),
        checkpoints: Some(CheckpointNeed { bytes: GIB, kept: 5 }),
        master_port: None,
        data: Some(DataVerdict { blocking: 0, warnings: 0, worst: None }),
        batch: Some(BatchNeed { global: 16, unit: 1, learning_rate: 1e-4 }),
        env: RankEnv::default(),
        pod_shm_bytes: None,
    }
}

fn node(number: u32) -> NodeFacts {
    NodeFacts {
        driver: driver(),
        nvml: nvml(number),
        cuda: CudaFacts {
            state: known(CudaState::Ready),
            driver_version: known(13_000),
            device_count: known(2),
            library_path: known(format!("/usr/lib/libcuda.so.{DRIVER}")),
        },
        kernel: KernelFacts {
            release: known("6.8.0-45-generic".to_owned()),
            os: known("Ubuntu 24.04.1 LTS".to_owned()),
            log: known(KernelLog::default()),
            time_daemons: known(vec!["chronyd".to_owned()]),
        },
        memory: MemoryFacts {
            total_bytes: known(512 * GIB),
            available_bytes: known(500 * GIB),
            cpus: known(64),
            cgroup: known(CgroupFacts { version: 2, ..CgroupFacts::default() }),
        },
        limits: limits(),
        shm: ShmFacts {
            mount: known(Mount { total_bytes: 64 * GIB, free_bytes: 64 * GIB }),
            files: known(Vec::new()),
        },
        network: network(number),
        env: EnvFacts { variables: known(BTreeMap::new()) },
        storage: known(vec![
            storage(Place::Output, "/data/out"),
            storage(Place::Temporary, "/tmp"),
            storage(Place::Model, "/data/base"),
            storage(Place::Data, "/data/train.json"),
        ]),
        trainer: trainer(),
        container: ContainerFacts { kind: known(None) },
        identity: IdentityFacts {
            hostname: known(format!("n{number}")),
            boot_id: known(format!("boot-{number}")),
            machine_id: known(format!("machine-{number}")),
        },
        system: parts::system(),
        official: parts::official(),
        offered_gpus: None,
        active: Some(Box::new(parts::active())),
    }
}

fn driver() -> DriverFacts {
    let device_nodes = ["nvidiactl", "nvidia-uvm", "nvidia0", "nvidia1"];
    DriverFacts {
        kernel_module: known(Some(KernelModule { version: DRIVER.to_owned(), open: true })),
        modules: known(
            ["nvidia", "nvidia_uvm", "nvidia_peermem", "ext4"].map(str::to_owned).into(),
        ),
        pci_gpus: known((0..2).map(pci_gpu).collect()),
        device_nodes: known(
            device_nodes.map(|name| (format!("/dev/{name}"), DeviceNode::Opens)).into(),
        ),
        libcuda_path: known(Some(format!("/usr/lib/libcuda.so.{DRIVER}"))),
        pci_states: known((0..2).map(pci_state).collect()),
        nvswitches: known(0),
        imex_channels: known(0),
    }
}

fn limits() -> LimitFacts {
    LimitFacts {
        memlock_bytes: known(None),
        open_files: known(Some(1_048_576)),
        open_files_hard: known(Some(1_048_576)),
        processes: known(None),
        cap_ipc_lock: known(false),
        file_size_bytes: known(None),
        address_space_bytes: known(None),
        core_bytes: known(Some(0)),
    }
}

fn nvml(number: u32) -> NvmlFacts {
    NvmlFacts {
        state: known(NvmlState::Ready),
        driver_version: known(DRIVER.to_owned()),
        nvml_version: known(format!("13.{DRIVER}")),
        cuda_version: known(13_000),
        gpus: known((0..2).map(|index| gpu(number, index)).collect()),
        slowest_call: known(("nvmlInit_v2".to_owned(), 40)),
    }
}

fn pci_state(index: u32) -> PciState {
    PciState {
        address: pci_gpu(index).address,
        driver: Some("nvidia".to_owned()),
        errors: Some(AerCounts::default()),
        iommu: Some("identity".to_owned()),
        max_speed: Some((16_000, 16_000)),
        largest_window: Some(128 * GIB),
        local_cpus: vec![(0, 31)],
        bridges: vec![Bridge { address: format!("0000:3a:{index:02x}.0"), acs: Acs::Control(0) }],
    }
}

fn pci_gpu(index: u32) -> PciGpu {
    PciGpu {
        address: format!("0000:{:02x}:00.0", 0x3b + index),
        id: "10de:20b2".to_owned(),
        config_all_ones: false,
        width: Some(PcieLink { current: 16, max: 16 }),
        upstream_width: Some(PcieLink { current: 16, max: 16 }),
        numa_node: Some(0),
    }
}

fn gpu(node: u32, index: u32) -> GpuFacts {
    GpuFacts {
        name: known("NVIDIA A100-SXM4-80GB".to_owned()),
        uuid: known(format!("GPU-{node}{index}000000-0000")),
        pci_address: known(pci_gpu(index).address),
        minor_number: known(index),
        compute_capability: known(80),
        memory_total_bytes: known(80 * GIB),
        memory_reserved_bytes: known(Some(GIB / 2)),
        memory_used_bytes: known(4 << 20),
        processes: known(Vec::new()),
        utilization_percent: known(Some(0)),
        compute_mode: known(ComputeMode::Default),
        mig: known(Some(MigMode { current: false, pending: false })),
        persistence: known(true),
        ecc: known(Some(EccMode { current: true, pending: true })),
        ecc_uncorrected_volatile: known(Some(0)),
        remapped_rows: known(Some(RemappedRows {
            correctable: 1,
            uncorrectable: 0,
            pending: false,
            failed: false,
        })),
        retired_pages: known(None),
        // Idle: 0x1 is normal.
        clock_event_reasons: known(vec![1, 1]),
        temperature_c: known(31),
        slowdown_temperature_c: known(Some(89)),
        power_limit_mw: known(Some(400_000)),
        power_limit_default_mw: known(Some(400_000)),
        pcie_width: known(Some(PcieLink { current: 16, max: 16 })),
        nvlinks: known((0..12).map(|link| NvLink { link, active: true }).collect()),
        fabric: known(None),
        recovery_action: known(Some(0)),
        vbios: known(Some("92.00.45.00.05".to_owned())),
        ecc_corrected_volatile: known(Some(7)),
        pcie_replays: known(Some(2)),
        gsp_firmware: known(Some(DRIVER.to_owned())),
        peers: known(vec![Peer { index: 1 - index, p2p_read: 0, path: 40 }]),
        nvlink_errors: known(Some(NvLinkErrors::default())),
        sram_threshold_exceeded: known(Some(false)),
        virtualization: known(Some(0)),
        display_active: known(Some(false)),
        bar1_bytes: known(Some(128 * GIB)),
        ..GpuFacts::unread(index, GpuHandle::Ready, "not set by the test")
    }
}

fn network(number: u32) -> NetworkFacts {
    let interface = |name: &str, address: &str| Interface {
        name: name.to_owned(),
        addresses: vec![address.to_owned()],
        up: true,
        loopback: name == "lo",
        is_virtual: name == "lo",
        mtu_bytes: Some(9000),
        speed_mbps: Some(100_000),
        counters: Some(InterfaceCounters { packets: 1_000_000, errors: 0, carrier_changes: 2 }),
    };
    NetworkFacts {
        interfaces: known(vec![
            interface("lo", "127.0.0.1/8"),
            interface("ens1", &format!("10.0.0.{number}/24")),
        ]),
        default_route: known(Some("ens1".to_owned())),
        rdma_ports: known(vec![RdmaPort {
            device: "mlx5_0".to_owned(),
            port: 1,
            state: "ACTIVE".to_owned(),
            link_layer: "InfiniBand".to_owned(),
            rate_gbps: Some(200),
            physical: Some("LinkUp".to_owned()),
            firmware: Some("28.39.1002 MT_0000000838".to_owned()),
            driver: Some("mlx5_core".to_owned()),
            numa_node: Some(0),
            errors: BTreeMap::from([("symbol_error".to_owned(), 3)]),
            gids: Vec::new(),
        }]),
        master_port: known(PortState::Free { port: 29_500 }),
        master_address: known(None),
        own_name: known(vec![format!("10.0.0.{number}")]),
        reach: known(Vec::new()),
    }
}

fn storage(place: Place, path: &str) -> Storage {
    Storage {
        place,
        path: path.to_owned(),
        nearest: path.to_owned(),
        mount: Mount { total_bytes: 900 * GIB, free_bytes: 800 * GIB },
        free_inodes: Some(1_000_000),
        readable: true,
        writable: true,
        kind: Some(if place == Place::Output { "nfs" } else { "ext4" }.to_owned()),
        bytes: matches!(place, Place::Model | Place::Data).then_some(19_313_870_336),
        fingerprint: matches!(place, Place::Model | Place::Data).then(|| "a1b2".to_owned()),
        weights: (place == Place::Model).then(Weights::default),
    }
}

fn trainer() -> TrainerFacts {
    let needed = ["libcuda.so.1", "libcublas.so.12", "libcurand.so.10", "libnccl.so.2"];
    TrainerFacts {
        path: known("/opt/qvl/qvl-train".to_owned()),
        sha256: known("ab".repeat(32)),
        needed: known(
            needed
                .map(|name| Needed {
                    name: name.to_owned(),
                    path: Some(format!("/usr/lib/{name}")),
                })
                .into(),
        ),
        ptx: known(vec![PtxModule { version: 85, target: "sm_75".to_owned(), count: 20 }]),
        sass: known(Vec::new()),
        nccl: known(vec![nccl("/usr/lib/libnccl.so.2.27.5", "2.27.5", 200_000_000)]),
        library_path: known(vec!["/usr/lib".to_owned()]),
        fat_ptx: known(Vec::new()),
        file: known(TrainerFile {
            machine: "x86_64".to_owned(),
            executable: true,
            interpreter: Some("/lib64/ld-linux-x86-64.so.2".to_owned()),
            interpreter_exists: true,
            glibc: Some("2.34".to_owned()),
        }),
        net_plugins: known(Vec::new()),
    }
}

pub(super) fn nccl(path: &str, version: &str, bytes: u64) -> Library {
    Library {
        path: path.to_owned(),
        bytes,
        sha256: Some("cd".repeat(32)),
        version: Some(version.to_owned()),
    }
}

/// Changes a fact that is known.
pub(super) fn change<T>(fact: &mut Fact<T>, change: impl FnOnce(&mut T)) {
    match fact {
        Fact::Known { value, .. } => change(value),
        Fact::Unread { why, .. } => panic!("the healthy fleet does not know this fact: {why}"),
    }
}

/// Changes a GPU of a node.
pub(super) fn change_gpu(node: &mut NodeFacts, index: usize, f: impl FnOnce(&mut GpuFacts)) {
    change(&mut node.nvml.gpus, |gpus| f(&mut gpus[index]));
}

/// Sets an environment variable.
pub(super) fn set(node: &mut NodeFacts, name: &str, value: &str) {
    change(&mut node.env.variables, |variables| {
        variables.insert(name.to_owned(), value.to_owned());
    });
}

/// Sets a setting of the kernel.
pub(super) fn sysctl(node: &mut NodeFacts, name: &str, value: &str) {
    change(&mut node.system.sysctl, |settings| {
        settings.insert(name.to_owned(), value.to_owned());
    });
}
