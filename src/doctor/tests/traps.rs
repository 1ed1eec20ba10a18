//! Mistakes that other tools have made.

use super::{mutations::xid, *};
use crate::facts::{Fabric, KernelLog, NvLink, PcieLink};

/// Verdict of one rule on a fleet whose first node `mutate` changed.
#[track_caller]
fn verdict(id: &str, mutate: impl FnOnce(&mut NodeFacts)) -> Verdict {
    let mut snapshot = fleet(3);
    mutate(snapshot.nodes.values_mut().next().unwrap());
    let report = diagnose(&snapshot, &demand());
    report.results.iter().filter(|r| r.rule.id == id).map(|r| r.verdict).max().unwrap()
}

#[test]
fn a_gpu_that_vanished_is_still_given_away_by_the_scheduler() {
    // Nodes of this fleet have two GPUs, and the job takes both.
    let with = |offered| verdict("gpu-count-mismatch", |node| node.offered_gpus = offered);
    assert_eq!(with(None), Verdict::Pass, "no cluster");
    assert_eq!(with(Some(2)), Verdict::Pass);
    assert_eq!(with(Some(3)), Verdict::Fail, "one vanished");
    assert_eq!(with(Some(0)), Verdict::Fail, "the device plugin does not run");
}

#[test]
fn clock_reasons_are_bits_and_not_a_number() {
    let with = |bits: &[u64]| {
        verdict("hw-throttle", |node| {
            change_gpu(node, 0, |gpu| change(&mut gpu.clock_event_reasons, |b| *b = bits.to_vec()));
        })
    };
    assert_eq!(with(&[0x4 | 0x8, 0x1 | 0x8]), Verdict::Fail);
    assert_eq!(with(&[0x8, 0x1]), Verdict::Pass, "a bit that one sample has is a moment");
    assert_eq!(with(&[0x20, 0x24]), Verdict::Warn);
    assert_eq!(with(&[0x1 | 0x4, 0x1 | 0x4]), Verdict::Pass, "idle and power cap are normal");
}

#[test]
fn pcie_cards_are_not_judged_by_nvlink() {
    let dark = (0..12).map(|link| NvLink { link, active: false }).collect::<Vec<_>>();
    let seen = verdict("nvlink-inactive", |node| {
        for index in 0..2 {
            change_gpu(node, index, |gpu| {
                change(&mut gpu.name, |name| "NVIDIA A100 80GB PCIe".clone_into(name));
                change(&mut gpu.nvlinks, |links| links.clone_from(&dark));
            });
        }
    });
    // The other nodes of the fleet pass; this one is skipped.
    assert_eq!(seen, Verdict::Pass);
}

#[test]
fn a_link_is_as_wide_as_its_narrower_end() {
    let with = |upstream, current| {
        verdict("pcie-width", |node| {
            change(&mut node.driver.pci_gpus, |gpus| {
                gpus[0].width = Some(PcieLink { current, max: 16 });
                gpus[0].upstream_width = Some(PcieLink { current, max: upstream });
            });
        })
    };
    assert_eq!(with(8, 8), Verdict::Pass, "the slot has no more lanes");
    assert_eq!(with(16, 8), Verdict::Warn);
    assert_eq!(with(16, 4), Verdict::Fail);
}

#[test]
fn a_fabric_that_completed_with_an_error_is_not_ready() {
    let with = |state, status, health_mask| {
        verdict("fabric-not-ready", |node| {
            change_gpu(node, 0, |gpu| {
                change(&mut gpu.fabric, |f| *f = Some(Fabric { state, status, health_mask }));
            });
        })
    };
    assert_eq!(with(3, 0, 0), Verdict::Pass);
    assert_eq!(with(3, 23, 0), Verdict::Fail, "completed, but with an error");
    assert_eq!(with(3, 0, 0b10_10_10_10), Verdict::Pass, "2 is `false` in each field");
    assert_eq!(with(3, 0, 0b01_00_00), Verdict::Fail, "an unhealthy route");
    assert_eq!(with(3, 0, 1 << 8), Verdict::Pass, "no incorrect configuration");
    assert_eq!(with(3, 0, 2 << 8), Verdict::Fail, "an incorrect configuration");
}

#[test]
fn an_old_xid_is_not_replayed_and_a_new_one_is_not_forgotten() {
    let with = |xids: &[crate::facts::XidEvent], module_loaded_us| {
        verdict("xid-seen", |node| {
            let log = KernelLog { xids: xids.to_vec(), module_loaded_us, ..KernelLog::default() };
            change(&mut node.kernel.log, |known| *known = log);
        })
    };
    assert_eq!(with(&[xid(79, 10, None)], Some(20)), Verdict::Pass, "before the module was loaded");
    assert_eq!(with(&[xid(79, 30, None)], Some(20)), Verdict::Fail);
    let mut cleared = xid(154, 40, None);
    cleared.text = "GPU recovery action changed from 0x1 (Reset) to 0x0 (None)".to_owned();
    assert_eq!(with(&[xid(79, 30, None), cleared], None), Verdict::Pass);
    // Repeating it does not make it better.
    assert_eq!(with(&[xid(48, 1, None), xid(48, 2, None)], None), Verdict::Fail);
    let of_three = [xid(13, 1, Some(1)), xid(13, 2, Some(2)), xid(13, 3, Some(3))];
    assert_eq!(with(&of_three[..2], None), Verdict::Pass, "an error of programs");
    assert_eq!(with(&of_three, None), Verdict::Warn, "three programs: it is the GPU");
    assert_eq!(with(&[xid(63, 1, None)], None), Verdict::Pass, "no remap is pending");
    assert_eq!(with(&[xid(45, 1, None)], None), Verdict::Warn, "alone");
    assert_eq!(with(&[xid(999, 1, None)], None), Verdict::Warn, "a code that no table has");
}

/// A reset asked for is not "None", even if the message has that word for the state before.
#[test]
fn a_recovery_action_that_begins_at_none_blocks() {
    let seen = verdict("xid-seen", |node| {
        let mut event = xid(154, 40, None);
        event.text =
            "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)".into();
        change(&mut node.kernel.log, |log| log.xids.push(event));
        // A driver that does not tell itself: the log alone speaks.
        change_gpu(node, 0, |gpu| gpu.recovery_action = Fact::known(None, "field 230"));
    });
    assert_eq!(seen, Verdict::Fail);
}

#[test]
fn a_driver_that_is_newer_than_the_toolkit_is_fine() {
    let newer = verdict("cuda-too-new", |node| {
        change(&mut node.nvml.driver_version, |version| "615.10.01".clone_into(version));
    });
    assert_eq!(newer, Verdict::Pass);
}

#[test]
fn a_container_may_see_fewer_gpus_than_the_bus() {
    let seen = verdict("gpu-count-mismatch", |node| {
        change(&mut node.container.kind, |kind| *kind = Some("kubernetes".to_owned()));
        change(&mut node.driver.pci_gpus, |gpus| gpus.extend(gpus.clone()));
    });
    assert_eq!(seen, Verdict::Pass);
}

#[test]
fn a_missing_driver_library_is_not_a_healthy_machine_without_gpus() {
    use crate::facts::NvmlState;
    let seen = verdict("nvml-unavailable", |node| {
        let message = "cannot open shared object file".to_owned();
        node.nvml.state = Fact::known(NvmlState::LibraryMissing { message }, "dlopen");
    });
    assert_eq!(seen, Verdict::Fail);
}

#[test]
fn a_gpu_that_the_job_does_not_use_only_warns() {
    let broken = |index| {
        verdict("ecc-uncorrected", |node| {
            change_gpu(node, index, |gpu| {
                change(&mut gpu.ecc_uncorrected_volatile, |errors| *errors = Some(1));
            });
        })
    };
    assert_eq!(broken(0), Verdict::Fail);
    assert_eq!(broken(1), Verdict::Warn);
}

#[test]
fn a_job_on_cpus_asks_nothing_of_gpus() {
    let mut snapshot = fleet(1);
    let node = snapshot.nodes.values_mut().next().unwrap();
    change_gpu(node, 0, |gpu| gpu.handle = crate::facts::GpuHandle::Lost);
    let demand = Demand { compute: Compute::Cpu, ranks: Some(2), ..demand() };
    assert_eq!(flipped(&diagnose(&snapshot, &demand)), BTreeSet::new());
}

#[test]
fn a_job_that_may_choose_does_not_fall_back_to_cpus_beside_a_broken_driver() {
    use crate::facts::NvmlState;
    let mut snapshot = fleet(1);
    let node = snapshot.nodes.values_mut().next().unwrap();
    let message = "cannot open shared object file".to_owned();
    node.nvml.state = Fact::known(NvmlState::LibraryMissing { message }, "dlopen");
    let demand = Demand { compute: Compute::Auto, ranks: Some(2), ..demand() };
    let report = diagnose(&snapshot, &demand);
    assert_eq!(report.compute, Compute::Cuda);
    assert_eq!(report.overall(false, &BTreeSet::new()), Overall::Blocked);
}

#[test]
fn a_machine_without_gpus_is_told_from_one_with_a_broken_driver() {
    use crate::facts::NvmlState;
    let message = || "as the loader says".to_owned();
    let compute = |state, stack| {
        let mut snapshot = fleet(1);
        let node = snapshot.nodes.values_mut().next().unwrap();
        change(&mut node.driver.pci_gpus, Vec::clear);
        change(&mut node.driver.device_nodes, BTreeMap::clear);
        node.nvml.state = Fact::known(state, "dlopen");
        let demand = Demand { compute: Compute::Auto, stack, ..demand() };
        diagnose(&snapshot, &demand).compute
    };
    let missing = || NvmlState::LibraryMissing { message: message() };
    assert_eq!(compute(missing(), Stack::Own), Compute::Cpu);
    assert_eq!(compute(NvmlState::LibraryBroken { message: message() }, Stack::Own), Compute::Cuda);
    // finetune.py never computes on CPUs.
    assert_eq!(compute(missing(), Stack::Official), Compute::Cuda);
}

#[test]
fn the_official_stack_is_judged_by_its_own_needs() {
    let mut snapshot = fleet(1);
    let node = snapshot.nodes.values_mut().next().unwrap();
    change(&mut node.memory.available_bytes, |bytes| *bytes = 64 * GIB);
    let demand = |stack| Demand { stack, ranks: Some(2), ..demand() };
    let own = diagnose(&snapshot, &demand(Stack::Own));
    assert_eq!(flipped(&own), BTreeSet::new());
    let official = diagnose(&snapshot, &demand(Stack::Official));
    assert_eq!(flipped(&official), BTreeSet::from(["batch-lr-drift", "host-memory-short"]));
}
