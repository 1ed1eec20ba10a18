//! Every rule flips on its own mutation of a healthy fleet.
#![expect(clippy::semicolon_if_nothing_returned, reason = "a mutation is one expression")]

use std::collections::BTreeSet;

use super::*;
use crate::facts::{
    ComputeMode, DeviceNode, Fact, FactsFile, FaultKind, GpuFacts, GpuHandle, KernelFault,
    NvmlState, Place, PortState, RetiredPages, Storage, XidEvent,
};

const HEALTHY: &str = include_str!("../../tests/facts/healthy-8xh100.json");

fn healthy() -> NodeFacts {
    serde_json::from_str::<FactsFile>(HEALTHY).unwrap().facts
}

/// Three equal nodes of eight GPUs.
fn fleet() -> Snapshot {
    let node = |number: u32| {
        let mut facts = healthy();
        set(&mut facts.identity.hostname, format!("gpu-{number}"));
        set(&mut facts.identity.boot_id, format!("boot-{number}"));
        (NodeName(format!("gpu-{number}")), facts)
    };
    Snapshot { nodes: (1..=3).map(node).collect(), expected: BTreeSet::new() }
}

fn job() -> Demand {
    Demand {
        job: Some("qwen".to_owned()),
        compute: Compute::Cuda,
        ranks: Some(24),
        rank_memory_bytes: Some(30 << 30),
        model_file_bytes: Some(20 << 30),
        checkpoints: Some(CheckpointNeed { bytes: 1 << 30, kept: 4 }),
        data: Some(DataVerdict { blocking: 0, warnings: 0, worst: None }),
        batch: Some(BatchNeed { global: 128, unit: 1, learning_rate: 1e-5 }),
        ..Demand::default()
    }
}

fn set<T>(fact: &mut Fact<T>, value: T) {
    *fact = Fact::known(value, fact.from());
}

fn edit<T: Clone>(fact: &mut Fact<T>, change: impl FnOnce(&mut T)) {
    let mut value = fact.value().unwrap().clone();
    change(&mut value);
    set(fact, value);
}

fn gpu(node: &mut NodeFacts, change: impl FnOnce(&mut GpuFacts)) {
    edit(&mut node.nvml.gpus, |gpus| change(&mut gpus[3]));
}

fn env(node: &mut NodeFacts, name: &str, value: &str) {
    edit(&mut node.env.variables, |all| {
        all.insert(name.to_owned(), value.to_owned());
    });
}

fn folder(change: impl FnOnce(&mut Storage)) -> impl FnOnce(&mut NodeFacts) {
    |node| {
        edit(&mut node.storage, |all| {
            all[0].place = Place::Output;
            change(&mut all[0]);
        });
    }
}

/// The worst verdict of a rule.
fn verdict_of(id: &str, snapshot: &Snapshot, demand: &Demand) -> Verdict {
    let report = diagnose(snapshot, demand);
    report.results.iter().filter(|r| r.rule.id == id).map(|r| r.verdict).max().unwrap()
}

#[test]
fn a_healthy_fleet_is_clean() {
    let report = diagnose(&fleet(), &job());
    let bad: Vec<String> = report
        .results
        .iter()
        .filter(|r| !matches!(r.verdict, Verdict::Pass | Verdict::Skipped))
        .map(|r| format!("{} {:?} {:?} {:?}", r.rule.id, r.verdict, r.problems, r.unknown))
        .collect();
    assert!(bad.is_empty(), "{}", bad.join("\n"));
    assert_eq!(report.overall(true, &BTreeSet::new()), Overall::Ready);
}

type Mutation = (&'static str, Verdict, fn(&mut NodeFacts));

/// A change of one node, and the verdict that it must cause.
const MUTATIONS: &[Mutation] = &[
    ("nvml-unavailable", Verdict::Fail, |n| {
        set(&mut n.nvml.state, NvmlState::LibraryMissing { message: "no such file".to_owned() });
    }),
    ("driver-hang", Verdict::Fail, |n| set(&mut n.nvml.slowest_call, ("init".to_owned(), 6000))),
    ("driver-module-mismatch", Verdict::Fail, |n| {
        edit(&mut n.driver.kernel_module, |m| m.as_mut().unwrap().version = "535.1.2".to_owned());
    }),
    ("driver-skew", Verdict::Warn, |n| set(&mut n.nvml.driver_version, "590.1.1".to_owned())),
    ("kernel-module-missing", Verdict::Fail, |n| {
        edit(&mut n.driver.modules, |m| {
            m.remove("nvidia_uvm");
        });
    }),
    ("device-node-missing", Verdict::Fail, |n| {
        edit(&mut n.driver.device_nodes, |d| {
            d.remove("/dev/nvidia-uvm");
        });
    }),
    ("cgroup-device-denied", Verdict::Fail, |n| {
        edit(&mut n.driver.device_nodes, |d| {
            d.insert("/dev/nvidia3".to_owned(), DeviceNode::Denied { errno: "EPERM".to_owned() });
        });
    }),
    ("gpu-count-mismatch", Verdict::Fail, |n| {
        edit(&mut n.nvml.gpus, |g| {
            g.pop();
        })
    }),
    ("gpu-lost", Verdict::Fail, |n| gpu(n, |g| g.handle = GpuHandle::Lost)),
    ("recovery-action-pending", Verdict::Fail, |n| {
        gpu(n, |g| set(&mut g.recovery_action, Some(1)))
    }),
    ("gpu-busy", Verdict::Fail, |n| gpu(n, |g| set(&mut g.memory_used_bytes, 60 << 30))),
    ("compute-mode-exclusive", Verdict::Fail, |n| {
        gpu(n, |g| set(&mut g.compute_mode, ComputeMode::Prohibited))
    }),
    ("mig-enabled", Verdict::Fail, |n| {
        gpu(n, |g| edit(&mut g.mig, |m| m.as_mut().unwrap().current = true))
    }),
    ("persistence-off", Verdict::Warn, |n| gpu(n, |g| set(&mut g.persistence, false))),
    ("ecc-mode", Verdict::Warn, |n| {
        gpu(n, |g| edit(&mut g.ecc, |e| e.as_mut().unwrap().current = false))
    }),
    ("ecc-uncorrected", Verdict::Fail, |n| {
        gpu(n, |g| set(&mut g.ecc_uncorrected_volatile, Some(1)))
    }),
    ("row-remap-pending", Verdict::Fail, |n| {
        gpu(n, |g| edit(&mut g.remapped_rows, |r| r.as_mut().unwrap().pending = true))
    }),
    ("row-remap-failed", Verdict::Fail, |n| {
        gpu(n, |g| edit(&mut g.remapped_rows, |r| r.as_mut().unwrap().failed = true))
    }),
    ("retired-pages", Verdict::Fail, |n| {
        gpu(n, |g| {
            set(
                &mut g.retired_pages,
                Some(RetiredPages { single_bit: 0, double_bit: 64, pending: false }),
            )
        });
    }),
    ("memory-too-small", Verdict::Fail, |n| gpu(n, |g| set(&mut g.memory_total_bytes, 24 << 30))),
    ("memory-skew", Verdict::Warn, |n| gpu(n, |g| set(&mut g.memory_total_bytes, 70 << 30))),
    // Two bits at once, beside the harmless idle bit in one sample: a mask, not a number.
    ("hw-throttle", Verdict::Fail, |n| {
        gpu(n, |g| set(&mut g.clock_event_reasons, vec![0x49, 0x48]))
    }),
    ("temperature-margin", Verdict::Warn, |n| gpu(n, |g| set(&mut g.temperature_c, 84))),
    ("power-cap", Verdict::Warn, |n| gpu(n, |g| set(&mut g.power_limit_mw, Some(400_000)))),
    ("pcie-width", Verdict::Fail, |n| {
        edit(&mut n.driver.pci_gpus, |p| p[0].width.as_mut().unwrap().current = 4)
    }),
    ("nvlink-inactive", Verdict::Fail, |n| {
        gpu(n, |g| edit(&mut g.nvlinks, |l| l[7].active = false))
    }),
    ("fabric-not-ready", Verdict::Fail, |n| {
        gpu(n, |g| edit(&mut g.fabric, |f| f.as_mut().unwrap().status = 999))
    }),
    ("xid-seen", Verdict::Fail, |n| {
        edit(&mut n.kernel.log, |log| {
            log.xids.push(XidEvent {
                xid: 79,
                pci_address: "0000:4b:00.0".to_owned(),
                pid: None,
                time_us: 5,
                text: "fallen off".to_owned(),
            })
        });
    }),
    ("cuda-too-new", Verdict::Fail, |n| set(&mut n.nvml.driver_version, "515.1.1".to_owned())),
    ("ptx-too-new", Verdict::Fail, |n| set(&mut n.nvml.driver_version, "560.1.1".to_owned())),
    ("arch-not-covered", Verdict::Fail, |n| {
        edit(&mut n.trainer.ptx, |p| p[0].target = "sm_100".to_owned())
    }),
    ("trainer-missing", Verdict::Warn, |n| n.trainer.path = Fact::unread("no such file", "test")),
    ("trainer-without-cuda", Verdict::Fail, |n| {
        set(&mut n.trainer.needed, Vec::new());
        set(&mut n.trainer.ptx, Vec::new());
    }),
    ("library-missing", Verdict::Fail, |n| edit(&mut n.trainer.needed, |l| l[0].path = None)),
    ("binary-skew", Verdict::Fail, |n| set(&mut n.trainer.sha256, "d".repeat(64))),
    ("forward-compat-shadow", Verdict::Warn, |n| {
        set(&mut n.driver.libcuda_path, Some("/usr/local/cuda/compat/libcuda.so.1".to_owned()))
    }),
    ("stub-libcuda", Verdict::Fail, |n| {
        set(&mut n.driver.libcuda_path, Some("/usr/local/cuda/lib64/stubs/libcuda.so".to_owned()))
    }),
    ("dtype-unsupported", Verdict::Fail, |n| gpu(n, |g| set(&mut g.compute_capability, 75))),
    ("nccl-duplicate", Verdict::Warn, |n| {
        edit(&mut n.trainer.nccl, |l| {
            let other = crate::facts::Library {
                bytes: 7,
                path: "/opt/libnccl.so.2".to_owned(),
                ..l[0].clone()
            };
            l.push(other);
        })
    }),
    ("nccl-skew", Verdict::Fail, |n| {
        edit(&mut n.trainer.nccl, |l| l[0].version = Some("2.20.5".to_owned()))
    }),
    ("shm-small", Verdict::Fail, |n| edit(&mut n.shm.mount, |m| m.total_bytes = 64 << 20)),
    ("memlock-low", Verdict::Fail, |n| {
        set(&mut n.limits.memlock_bytes, Some(8 << 20));
        set(&mut n.limits.cap_ipc_lock, false);
    }),
    ("fd-limit", Verdict::Warn, |n| set(&mut n.limits.open_files, Some(1024))),
    ("cgroup-limits", Verdict::Fail, |n| {
        edit(&mut n.memory.cgroup, |c| c.memory_max_bytes = Some(1 << 30))
    }),
    ("host-memory-short", Verdict::Fail, |n| set(&mut n.memory.available_bytes, 1 << 30)),
    ("kernel-old", Verdict::Warn, |n| set(&mut n.kernel.release, "4.18.0-553.el8".to_owned())),
    ("os-skew", Verdict::Warn, |n| set(&mut n.kernel.os, "Other".to_owned())),
    ("kernel-faults", Verdict::Warn, |n| {
        edit(&mut n.kernel.log, |log| {
            log.faults.push(KernelFault {
                kind: FaultKind::OutOfMemory,
                time_us: 1,
                text: "Out of memory: Killed process 7".to_owned(),
            })
        })
    }),
    ("time-daemon", Verdict::Warn, |n| set(&mut n.kernel.time_daemons, Vec::new())),
    ("host-identity-clash", Verdict::Fail, |n| {
        set(&mut n.identity.hostname, "gpu-1".to_owned());
        set(&mut n.identity.boot_id, "boot-1".to_owned());
    }),
    ("storage-unwritable", Verdict::Fail, |n| folder(|f| f.writable = false)(n)),
    ("disk-short", Verdict::Fail, |n| folder(|f| f.mount.free_bytes = 1 << 30)(n)),
    ("port-in-use", Verdict::Fail, |n| {
        env(n, "MASTER_PORT", "29500");
        set(
            &mut n.network.master_port,
            PortState::Taken { port: 29500, message: "in use".to_owned() },
        );
    }),
    ("bootstrap-interface", Verdict::Fail, |n| env(n, "NCCL_SOCKET_IFNAME", "ib0")),
    ("virtual-interface-first", Verdict::Warn, |n| {
        edit(&mut n.network.interfaces, |i| i[1].is_virtual = true)
    }),
    ("ib-disabled-leftover", Verdict::Warn, |n| env(n, "NCCL_IB_DISABLE", "1")),
    ("world-size-mismatch", Verdict::Fail, |n| env(n, "WORLD_SIZE", "4")),
    ("rank-gpu-clash", Verdict::Fail, |n| env(n, "CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,6")),
    ("visible-devices-stale", Verdict::Fail, |n| env(n, "CUDA_VISIBLE_DEVICES", "0,9")),
    ("bad-cuda-env", Verdict::Warn, |n| env(n, "CUDA_LAUNCH_BLOCKING", "1")),
    ("env-skew", Verdict::Warn, |n| env(n, "NCCL_PROTO", "Simple")),
];

/// Rules whose subject is not one node; each has a test of its own below.
const ELSEWHERE: [&str; 3] = ["node-missing", "batch-lr-drift", "data-unusable"];

#[test]
fn each_rule_flips_on_its_own_mutation() {
    let mut wrong = Vec::new();
    for (id, expected, mutate) in MUTATIONS {
        let mut snapshot = fleet();
        mutate(snapshot.nodes.get_mut(&NodeName("gpu-2".to_owned())).unwrap());
        let got = verdict_of(id, &snapshot, &job());
        if got != *expected {
            wrong.push(format!("{id}: {got:?}, expected {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_rule_is_in_the_table_of_mutations_and_ids_are_well_formed() {
    let ids: Vec<&str> = RULES.iter().map(|rule| rule.id).collect();
    let unique: BTreeSet<&str> = ids.iter().copied().collect();
    assert_eq!(unique.len(), ids.len(), "an id occurs twice");
    let tested: BTreeSet<&str> = MUTATIONS.iter().map(|(id, _, _)| *id).chain(ELSEWHERE).collect();
    assert_eq!(unique, tested);
    let kebab =
        |id: &&str| id.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    assert!(ids.iter().all(kebab));
}

#[test]
fn a_blind_driver_is_unknown_and_never_passes() {
    let mut snapshot = fleet();
    for node in snapshot.nodes.values_mut() {
        node.nvml.gpus = Fact::unread("no permission", "nvmlDeviceGetCount_v2");
    }
    let report = diagnose(&snapshot, &job());
    let of = |id: &str| report.results.iter().find(|r| r.rule.id == id).unwrap().verdict;
    for id in
        ["gpu-count-mismatch", "gpu-lost", "ecc-uncorrected", "memory-too-small", "hw-throttle"]
    {
        assert_eq!(of(id), Verdict::Unknown, "{id}");
    }
    assert_eq!(report.overall(false, &BTreeSet::new()), Overall::Unknown);
}

#[test]
fn an_unreadable_kernel_log_is_unknown_but_does_not_stop_a_launch() {
    let mut snapshot = fleet();
    for node in snapshot.nodes.values_mut() {
        node.kernel.log = Fact::unread("needs CAP_SYSLOG", "/dev/kmsg");
    }
    assert_eq!(verdict_of("xid-seen", &snapshot, &job()), Verdict::Unknown);
    assert_eq!(diagnose(&snapshot, &job()).overall(false, &BTreeSet::new()), Overall::Ready);
    assert_eq!(diagnose(&snapshot, &job()).overall(true, &BTreeSet::new()), Overall::Unknown);
}

#[test]
fn an_expected_node_that_is_missing_is_unknown() {
    let mut snapshot = fleet();
    snapshot.expected = BTreeSet::from([NodeName("gpu-4".to_owned())]);
    assert_eq!(verdict_of("node-missing", &snapshot, &job()), Verdict::Unknown);
    let allowed = BTreeSet::from(["node-missing".to_owned()]);
    let report = diagnose(&snapshot, &job());
    assert_eq!(report.overall(false, &BTreeSet::new()), Overall::Unknown);
    assert_eq!(report.overall(false, &allowed), Overall::Ready);
}

#[test]
fn equal_counts_are_a_tie_and_others_name_the_outlier() {
    let mut snapshot = fleet();
    let change = |snapshot: &mut Snapshot, name: &str| {
        let node = snapshot.nodes.get_mut(&NodeName(name.to_owned())).unwrap();
        set(&mut node.kernel.release, "6.1.0".to_owned());
    };
    change(&mut snapshot, "gpu-2");
    let what = |snapshot: &Snapshot| {
        let report = diagnose(snapshot, &job());
        let result = report.results.into_iter().find(|r| r.rule.id == "os-skew").unwrap();
        result.problems[0].what.clone()
    };
    assert!(what(&snapshot).contains("on 2 of 3 nodes"), "{}", what(&snapshot));
    snapshot.nodes.remove(&NodeName("gpu-3".to_owned()));
    assert!(what(&snapshot).contains("a tie"), "{}", what(&snapshot));
}

#[test]
fn a_job_on_cpus_skips_gpu_checks_with_the_reason() {
    let demand = Demand { compute: Compute::Cpu, ..job() };
    let report = diagnose(&fleet(), &demand);
    let result = report.results.iter().find(|r| r.rule.id == "gpu-lost").unwrap();
    assert_eq!(result.skipped.as_deref(), Some("the job computes on CPUs"));
}

#[test]
fn the_official_stack_changes_its_batch_and_needs_a_copy_for_each_rank() {
    let demand = Demand { stack: Stack::Official, ..job() };
    assert_eq!(verdict_of("batch-lr-drift", &fleet(), &demand), Verdict::Warn);
    assert_eq!(verdict_of("batch-lr-drift", &fleet(), &job()), Verdict::Pass);
    let mut snapshot = fleet();
    for node in snapshot.nodes.values_mut() {
        set(&mut node.memory.available_bytes, 256_000_000_000);
    }
    // Eight ranks a node times 38.6 GB; one mapped copy of the weights for our own stack.
    assert_eq!(verdict_of("host-memory-short", &snapshot, &demand), Verdict::Fail);
    assert_eq!(verdict_of("host-memory-short", &snapshot, &job()), Verdict::Pass);
}

#[test]
fn data_that_the_lint_refuses_blocks() {
    let verdict = DataVerdict { blocking: 1, warnings: 0, worst: None };
    let demand = Demand { data: Some(verdict), ..job() };
    assert_eq!(verdict_of("data-unusable", &fleet(), &demand), Verdict::Fail);
}

#[test]
fn facts_survive_their_file() {
    let facts = healthy();
    let text = serde_json::to_string(&facts).unwrap();
    assert_eq!(serde_json::from_str::<NodeFacts>(&text).unwrap(), facts);
}
