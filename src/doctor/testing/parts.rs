//! Parts of a healthy node: its kernel, and the official stack on it.

use std::collections::BTreeMap;

use super::{GIB, known};
use crate::{
    facts::{
        ActiveFacts, CgroupEvents, ClockState, CodeMark, ComputeTest, CoreTest, Cpu,
        DeepSpeedConfig, Ended, Governor, LaunchScript, Launcher, MemoryDetail, MemoryErrors,
        MemoryTest, NetworkTest, NumaBandwidth, OfficialFacts, PairTest, Place, Pressure,
        ProcessTable, StorageResult, StorageTest, SystemFacts,
    },
    wire::{
        gputest::{Copied, DeviceTest, GpuTests, Outcome, PeerTest, Tested},
        pairs::Way,
    },
};

/// What active tests find on a healthy node.
pub(super) fn active() -> ActiveFacts {
    let storage = StorageTest {
        place: Some(Place::Output),
        path: "/data/out".to_owned(),
        ended: Ended::Done(StorageResult {
            error: None,
            bytes: 256 << 20,
            write_seconds: 0.25,
            read_seconds: 0.1,
            wrong_bytes: 0,
            fsync_median_us: 900,
            fsync_longest_us: 4000,
            rename_us: 1500,
            free_bytes: 800 * GIB,
        }),
    };
    let memory = |node| NumaBandwidth {
        node,
        threads: 32,
        bytes: 3 * GIB,
        bytes_per_second: 180e9 + f64::from(node),
    };
    let core = |cpu| CoreTest { cpu, runs: 300, wrong: Vec::new(), flops: 6e9 };
    let pair = |from, to| PairTest {
        from,
        to,
        way: Way::Open {
            round_trip_us: 60,
            sent_mbit: 23_000.0,
            received_mbit: 22_000.0,
            clock_ahead_ms: 0.4,
            clock_error_ms: 0.03,
        },
    };
    let network = NetworkTest {
        hosts: ["n1", "n2:7400", "n3:7400"].map(str::to_owned).into(),
        rounds: 3,
        pairs: vec![pair(0, 1), pair(0, 2), pair(1, 2)],
        untested: Vec::new(),
    };
    ActiveFacts {
        storage: known(vec![storage]),
        memory: known(Ended::Done(MemoryTest { nodes: (0..2).map(memory).collect() })),
        compute: known(Ended::Done(ComputeTest {
            expected: 7,
            cores: (0..64).map(core).collect(),
        })),
        gpus: known(Ended::Done(GpuTests::Tested(gpu_tests()))),
        network: Some(known(Ended::Done(network))),
    }
}

fn gpu_tests() -> Tested {
    let device = |ordinal: u32| DeviceTest {
        ordinal,
        name: "NVIDIA A100-SXM4-80GB".to_owned(),
        pci_address: Some(super::pci_gpu(ordinal).address),
        allocated: Outcome::Done,
        copied: Copied::Right,
        to_device: Some(25.9e9),
        to_host: Some(26.1e9),
        kernels: Some(vec![0x5eed; 3]),
    };
    let peer = |from, to| PeerTest { from, to, can_access: Some(true), copied: Copied::Right };
    Tested {
        devices: (0..2).map(device).collect(),
        peers: vec![peer(0, 1), peer(1, 0)],
        asked_bytes: 30 * GIB,
        copy_bytes: 64 << 20,
    }
}

pub(super) fn system() -> SystemFacts {
    let sysctl = [
        ("fs.file-nr", "5000 0 9000000"),
        ("kernel.core_pattern", "|/lib/systemd/systemd-coredump"),
        ("kernel.numa_balancing", "0"),
        ("kernel.pid_max", "4194304"),
        ("kernel.tainted", "12288"),
        ("kernel.threads-max", "2000000"),
        ("net.core.somaxconn", "4096"),
        ("net.ipv4.conf.all.rp_filter", "2"),
        ("net.ipv4.ip_local_port_range", "32768\t60999"),
        ("net.netfilter.nf_conntrack_count", "500"),
        ("net.netfilter.nf_conntrack_max", "262144"),
        ("vm.max_map_count", "65530"),
        ("vm.overcommit_memory", "0"),
    ];
    SystemFacts {
        clock: known(ClockState {
            synchronised: true,
            max_error_us: 20_000,
            estimated_error_us: 900,
        }),
        clocksource: known("tsc".to_owned()),
        virtual_machine: known(false),
        cpu: known(Cpu {
            architecture: "x86_64".to_owned(),
            features: ["avx2", "f16c", "fma"].map(str::to_owned).into(),
        }),
        governor: known(Some(Governor {
            driver: "acpi-cpufreq".to_owned(),
            names: ["performance".to_owned()].into(),
        })),
        numa_nodes: known(2),
        allowed_cpus: known(vec![(0, 63)]),
        cpu_throttles: known(Some(3)),
        steal_percent: known(0.0),
        memory_errors: known(Some(MemoryErrors { corrected: 2, uncorrected: 0 })),
        memory: known(MemoryDetail {
            swap_total: 8 * GIB,
            swap_free: 8 * GIB,
            ..MemoryDetail::default()
        }),
        pressure: known(Some(Pressure { cpu_some: 1.5, memory_full: 0.0, io_full: 0.5 })),
        processes: known(ProcessTable {
            total: 900,
            zombies: 1,
            blocked: 0,
            daemons: ["chronyd".to_owned(), "systemd-logind".to_owned()].into(),
        }),
        cgroup_events: known(CgroupEvents::default()),
        sysctl: known(sysctl.map(|(name, value)| (name.to_owned(), value.to_owned())).into()),
        remove_ipc: known(Some(true)),
        glibc: known(Some("2.39".to_owned())),
        uid: known(0),
    }
}

pub(super) fn official() -> OfficialFacts {
    let pairs = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    OfficialFacts {
        distributions: known(Some(pairs(&[
            ("torch", "2.3.0+cu121"),
            ("deepspeed", "0.11.1"),
            ("pydantic", "1.10.13"),
            ("numpy", "1.26.4"),
            ("transformers", "4.32.0"),
            ("peft", "0.5.0"),
            ("nvidia-nccl-cu12", "2.20.5"),
        ]))),
        python: known(Some("3.10".to_owned())),
        nvcc: known(Some("12.1".to_owned())),
        script: known(Some(LaunchScript {
            path: "finetune/finetune_lora_ds.sh".to_owned(),
            launcher: Launcher::Torchrun,
            launcher_options: pairs(&[("nproc_per_node", "auto"), ("nnodes", "3")]),
            options: pairs(&[
                ("model_name_or_path", "Qwen/Qwen-VL-Chat"),
                ("bf16", "True"),
                ("use_lora", "True"),
                ("gradient_checkpointing", "True"),
                ("num_train_epochs", "5"),
                ("per_device_train_batch_size", "2"),
                ("gradient_accumulation_steps", "8"),
                ("save_strategy", "steps"),
                ("save_steps", "100"),
                ("ddp_timeout", "1800"),
            ]),
            deepspeed: Some(DeepSpeedConfig { zero_stage: 2, ..DeepSpeedConfig::default() }),
            program: [CodeMark::ShardedSampler, CodeMark::Saves, CodeMark::AsksForRank].into(),
            samples: Some(50_000),
        })),
    }
}
