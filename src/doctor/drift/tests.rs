//! A healthy fleet drifts in nothing, each key sees its own change, and labels follow the job.

use std::collections::BTreeSet;

use super::*;
use crate::{
    doctor::{RULES, diagnose, testing::*},
    facts::{Fact, KernelModule},
};

fn of(snapshot: &Snapshot, demand: &Demand) -> Drift {
    drift(snapshot, demand, &diagnose(snapshot, demand), Seen::ALL)
}

fn on<'s>(snapshot: &'s mut Snapshot, name: &str) -> &'s mut NodeFacts {
    snapshot.nodes.get_mut(&NodeName(name.to_owned())).unwrap()
}

fn driver(snapshot: &mut Snapshot, name: &str, version: &str) {
    let module = KernelModule { version: version.to_owned(), open: true };
    on(snapshot, name).nvml.driver_version = Fact::known(version.to_owned(), "test");
    on(snapshot, name).driver.kernel_module = Fact::known(Some(module), "test");
}

fn found<'d>(drift: &'d Drift, key: &str) -> &'d Difference {
    let keys: Vec<&str> = drift.differing.iter().map(|difference| difference.key).collect();
    drift.differing.iter().find(|d| d.key == key).unwrap_or_else(|| panic!("{key}: {keys:?}"))
}

#[test]
fn a_healthy_fleet_drifts_in_nothing() {
    let drift = of(&fleet(3), &demand());
    assert_eq!(drift.differing, []);
    assert_eq!(
        (drift.nodes, drift.unread.clone()),
        (3, BTreeMap::from([("PCIe generation", names(3))]))
    );
    assert!(70 <= drift.compared, "{}", drift.compared);
}

fn names(nodes: u32) -> Vec<NodeName> {
    (1..=nodes).map(|number| NodeName(format!("n{number}"))).collect()
}

#[test]
fn keys_are_unique_and_name_checks_that_exist() {
    let names: BTreeSet<&str> = KEYS.iter().map(|key| key.name).collect();
    assert_eq!(names.len(), KEYS.len());
    assert!(40 <= names.len());
    for key in KEYS {
        assert!(!key.reason.is_empty() && !key.source.is_empty(), "{}", key.name);
        assert!(!key.reason.ends_with('.') && !key.reason.contains("  "), "{}", key.name);
        for id in key.rules {
            assert!(RULES.iter().any(|rule| rule.id == *id), "{}: {id}", key.name);
        }
    }
}

/// One driver is odd: harmless if it runs the trainer, fatal if it does not, and the check with its
/// source says so.
#[test]
fn the_label_follows_the_job() {
    let mut snapshot = fleet(4);
    driver(&mut snapshot, "n3", "575.57.08");
    let drift = of(&snapshot, &demand());
    let mild = found(&drift, "driver version");
    assert_eq!((mild.label, mild.rule), (Label::Benign, None));
    let majority = mild.majority().unwrap();
    assert_eq!((majority.value.as_str(), majority.nodes.len()), ("580.65.06", 3));
    assert_eq!(mild.outliers()[0].nodes, [NodeName("n3".to_owned())]);

    driver(&mut snapshot, "n3", "535.104.05");
    let drift = of(&snapshot, &demand());
    let fatal = found(&drift, "driver version");
    assert_eq!((fatal.label, fatal.rule), (Label::Fatal, Some("ptx-too-new")));
    assert!(fatal.reason.starts_with("n3: the trainer has PTX 8.5"), "{}", fatal.reason);
    assert!(fatal.source.contains("PTX ISA"), "{}", fatal.source);

    // The same machines, and a job on CPUs: drivers are not compared.
    let cpus = Demand { compute: crate::job::Compute::Cpu, ..demand() };
    let drift = of(&snapshot, &cpus);
    assert!(!drift.differing.iter().any(|difference| difference.key == "driver version"));
}

#[test]
fn equal_counts_are_a_tie() {
    for odd in [&["n2"][..], &["n1", "n2"]] {
        let nodes = u32::try_from(odd.len()).unwrap() * 2;
        let mut snapshot = fleet(nodes);
        odd.iter().for_each(|name| driver(&mut snapshot, name, "575.57.08"));
        let drift = of(&snapshot, &demand());
        let difference = found(&drift, "driver version");
        assert!(difference.majority().is_none());
        assert_eq!(difference.outliers().len(), 2);
    }
}

/// What nobody could read is no agreement: the label is unknown where a check would have to tell.
#[test]
fn not_knowing_is_not_harmless() {
    let mut snapshot = fleet(3);
    driver(&mut snapshot, "n3", "575.57.08");
    on(&mut snapshot, "n3").trainer.ptx = Fact::unread("blind", "test");
    let drift = of(&snapshot, &demand());
    let difference = found(&drift, "driver version");
    assert_eq!((difference.label, difference.rule), (Label::Unknown, Some("ptx-too-new")));
    assert_eq!(drift.unread["driver floor of the trainer"], [NodeName("n3".to_owned())]);
}

/// A check that fails on some nodes of a value only has another reason than the value.
#[test]
fn a_value_is_not_blamed_for_what_only_some_of_its_nodes_have() {
    let mut snapshot = fleet(5);
    for name in ["n4", "n5"] {
        on(&mut snapshot, name).kernel.release = Fact::known("6.8.0-50-generic".to_owned(), "test");
        driver(&mut snapshot, name, "575.57.08");
    }
    on(&mut snapshot, "n5").limits.memlock_bytes = Fact::known(Some(8 << 20), "test");
    let drift = of(&snapshot, &demand());
    assert_eq!(found(&drift, "memory that may be locked").label, Label::Fatal);
    assert_eq!(found(&drift, "kernel").label, Label::Benign);
    let order: Vec<Label> = drift.differing.iter().map(|difference| difference.label).collect();
    assert!(order.is_sorted_by(|a, b| b <= a), "{order:?}");
}

/// Each key sees when the fact that it reads is another one on one node.
#[test]
fn every_key_reads_something() {
    let snapshot = fleet(2);
    let node = snapshot.nodes.values().next().unwrap();
    let demand = demand().resolved(&snapshot);
    let skipped: Vec<&str> =
        KEYS.iter().filter(|key| (key.read)(node, &demand).is_err()).map(|key| key.name).collect();
    // The healthy node is in no cluster, has no RoCE, and does not tell its PCIe generation.
    assert_eq!(
        skipped,
        ["GPUs that the scheduler may give", "PCIe generation", "kinds of RoCE addresses"]
    );
}

#[test]
fn agents_do_not_compare_what_only_pods_see() {
    let mut snapshot = fleet(3);
    on(&mut snapshot, "n2").trainer.sha256 = Fact::known("00".repeat(32), "test");
    set(on(&mut snapshot, "n2"), "NCCL_DEBUG", "INFO");
    let keys = |seen| -> Vec<&str> {
        let report = diagnose(&snapshot, &demand());
        let drift = drift(&snapshot, &demand(), &report, seen);
        drift.differing.iter().map(|difference| difference.key).collect()
    };
    assert_eq!(keys(Seen::ALL), ["trainer", "NCCL, CUDA and OpenMP variables"]);
    assert_eq!(keys(Seen { rank: false, trainer: true }), ["trainer"]);
    assert_eq!(keys(Seen { rank: false, trainer: false }), Vec::<&str>::new());
}
