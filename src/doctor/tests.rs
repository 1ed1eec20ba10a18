//! Tests of the runner and of all rules: a healthy fleet, one thing broken.

mod causes;
mod mutations;
mod mutations_active;
mod mutations_gpu;
mod mutations_host;
mod mutations_network;
mod mutations_official;
mod repairs;
mod traps;
mod xids;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{testing::*, *};
use crate::facts::{Fact, NodeFacts, NodeName, Snapshot};
use mutations::mutations;

/// Ids of rules with a result that is neither passed nor skipped.
fn flipped(report: &Report) -> BTreeSet<&'static str> {
    let bad = |result: &&CheckResult| {
        matches!(result.verdict, Verdict::Warn | Verdict::Unknown | Verdict::Fail)
    };
    report.results.iter().filter(bad).map(|result| result.rule.id).collect()
}

#[test]
fn a_healthy_fleet_is_clean() {
    let report = diagnose(&fleet(3), &demand());
    assert_eq!(flipped(&report), BTreeSet::new(), "{report:#?}");
    assert_eq!(report.overall(true, &BTreeSet::new()), Overall::Ready);
}

#[test]
fn each_rule_flips_on_its_own_mutation_and_no_other_does() {
    let mut wrong = Vec::new();
    for (id, mutate) in mutations() {
        let (mut snapshot, mut demand) = (fleet(3), demand());
        mutate(&mut snapshot, &mut demand);
        let mut flipped = flipped(&diagnose(&snapshot, &demand));
        if demand.stack == Stack::Official && id != "batch-lr-drift" {
            // The official scripts on several GPUs are that drift.
            flipped.remove("batch-lr-drift");
        }
        if id == "mps-inconsistent" {
            // One node that uses MPS is warned of by itself, too.
            flipped.remove("mps-running");
        }
        if flipped != BTreeSet::from([id]) {
            wrong.push(format!("the mutation of {id} flips {flipped:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_rule_has_a_mutation() {
    let mutated: BTreeSet<&str> = mutations().iter().map(|(id, _mutate)| *id).collect();
    let rules: BTreeSet<&str> = RULES.iter().map(|rule| rule.id).collect();
    assert_eq!(mutated, rules);
}

#[test]
fn ids_are_unique_and_in_kebab_case() {
    let ids: BTreeSet<&str> = RULES.iter().map(|rule| rule.id).collect();
    assert_eq!(ids.len(), RULES.len());
    for id in ids {
        assert!(
            id.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'),
            "{id}"
        );
    }
}

/// Users write ids into policies, so a change of this list must be on purpose.
#[test]
fn the_set_of_ids_is_fixed() {
    let mut ids: Vec<&str> = RULES.iter().map(|rule| rule.id).collect();
    ids.sort_unstable();
    insta::assert_snapshot!(ids.join("\n"));
}

#[test]
fn every_rule_explains_itself() {
    for rule in RULES {
        assert!(!rule.summary.is_empty() && rule.summary.len() < 80, "{}", rule.id);
        assert!(40 < rule.docs.len() && !rule.docs.contains("  "), "{}", rule.id);
        assert!(!rule.source.is_empty(), "{}", rule.id);
    }
}

/// Every problem has four parts, whatever the mutation.
#[test]
fn every_problem_has_four_parts() {
    for (id, mutate) in mutations() {
        let (mut snapshot, mut demand) = (fleet(3), demand());
        mutate(&mut snapshot, &mut demand);
        let report = diagnose(&snapshot, &demand);
        for problem in report.results.iter().flat_map(|result| &result.problems) {
            let parts = [&problem.what, &problem.impact, &problem.fix, &problem.see];
            assert!(parts.iter().all(|part| 5 < part.len()), "{id}: {problem:?}");
            assert!(!problem.what.ends_with('.'), "{id}: {}", problem.what);
        }
    }
}

/// Pointers of all facts in a node, in the JSON form.
fn fact_pointers(value: &serde_json::Value, at: &str, found: &mut Vec<String>) {
    use serde_json::Value;
    let children: Vec<(String, &Value)> = match value {
        Value::Object(map) => {
            if map.contains_key("known") {
                found.push(at.to_owned());
            }
            map.iter().map(|(key, child)| (key.clone(), child)).collect()
        }
        Value::Array(list) => {
            list.iter().enumerate().map(|(index, child)| (index.to_string(), child)).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    };
    for (key, child) in children {
        fact_pointers(child, &format!("{at}/{key}"), found);
    }
}

fn node_without(node: &NodeFacts, pointers: &[String]) -> NodeFacts {
    without_facts(serde_json::to_value(node).unwrap(), pointers)
}

fn without_facts(mut json: serde_json::Value, pointers: &[String]) -> NodeFacts {
    for pointer in pointers {
        if let Some(fact) = json.pointer_mut(pointer) {
            *fact = serde_json::json!({"unread": {"why": "blind", "from": "test"}});
        }
    }
    crate::facts::read(&json.to_string()).unwrap()
}

/// One missing fact makes checks unknown. It breaks none, but for the one whose topic it is.
#[test]
fn a_fact_that_is_unread_breaks_nothing() {
    let snapshot = fleet(3);
    let name = NodeName("n2".to_owned());
    let mut pointers = Vec::new();
    fact_pointers(&serde_json::to_value(&snapshot.nodes[&name]).unwrap(), "", &mut pointers);
    assert!(60 < pointers.len(), "{} facts", pointers.len());
    let mut silent = BTreeSet::new();
    for pointer in pointers {
        let mut blind = snapshot.clone();
        let node = node_without(&snapshot.nodes[&name], std::slice::from_ref(&pointer));
        blind.nodes.insert(name.clone(), node);
        let report = diagnose(&blind, &demand());
        for result in &report.results {
            let fine = result.problems.is_empty() || result.rule.id == "trainer-missing";
            assert!(fine, "{pointer}: {result:?}");
        }
        if flipped(&report).is_empty() {
            silent.insert(pointer);
        }
    }
    // Facts that no rule judges by itself: context in evidence, or read for one case only.
    insta::assert_debug_snapshot!(silent);
}

/// Each rule says that it does not know when a fact that it needs is gone, in the same situation
/// in which it says that something is wrong.
#[test]
fn every_rule_is_unknown_when_its_facts_are_unread() {
    // These judge the job: there is no fact to be unread. The file of the trainer that cannot be
    // read is what its rule is about.
    let without = ["batch-lr-drift", "data-unusable", "pod-shm-small", "trainer-missing"];
    let mut sure = Vec::new();
    for (id, mutate) in mutations() {
        let (mut snapshot, mut demand) = (fleet(3), demand());
        mutate(&mut snapshot, &mut demand);
        let (name, node) = snapshot.nodes.iter().next().unwrap();
        let (name, node) = (name.clone(), node.clone());
        let mut pointers = Vec::new();
        let json = serde_json::to_value(&node).unwrap();
        fact_pointers(&json, "", &mut pointers);
        let demand = demand.resolved(&snapshot);
        let becomes_unknown = pointers.into_iter().any(|pointer| {
            let mut blind = snapshot.clone();
            blind.nodes.insert(name.clone(), without_facts(json.clone(), &[pointer]));
            let results = run(rule(id).unwrap(), &blind, &demand);
            results.iter().any(|result| !result.unknown.is_empty())
        });
        if becomes_unknown == without.contains(&id) {
            sure.push(id);
        }
    }
    assert!(sure.is_empty(), "never unknown, or against the list: {sure:?}");
}

/// A node that is wholly blind: nothing about it passes, but for what needs no fact of it.
#[test]
fn a_blind_node_passes_no_check() {
    let snapshot = fleet(1);
    let name = NodeName("n1".to_owned());
    let mut pointers = Vec::new();
    fact_pointers(&serde_json::to_value(&snapshot.nodes[&name]).unwrap(), "", &mut pointers);
    let node = node_without(&snapshot.nodes[&name], &pointers);
    let blind = Snapshot { nodes: BTreeMap::from([(name, node)]), ..snapshot };
    let report = diagnose(&blind, &Demand { ranks: Some(2), ..demand() });
    let passed: Vec<&str> = report
        .results
        .iter()
        .filter(|result| result.verdict == Verdict::Pass)
        .map(|result| result.rule.id)
        .collect();
    assert_eq!(passed, ["node-missing", "batch-lr-drift", "data-unusable"]);
    assert_eq!(report.overall(false, &BTreeSet::new()), Overall::Unknown);
}

#[test]
fn an_unknown_can_be_accepted_by_name_only() {
    let mut snapshot = fleet(3);
    let node = snapshot.nodes.values_mut().next().unwrap();
    node.memory.available_bytes = Fact::unread("blind", "/proc/meminfo");
    let report = diagnose(&snapshot, &demand());
    assert_eq!(report.overall(false, &BTreeSet::new()), Overall::Unknown);
    let other = BTreeSet::from(["shm-small".to_owned()]);
    assert_eq!(report.overall(false, &other), Overall::Unknown);
    let named = BTreeSet::from(["host-memory-short".to_owned()]);
    assert_eq!(report.overall(false, &named), Overall::Ready);
}

#[test]
fn drift_names_the_outlier_or_says_that_there_is_a_tie() {
    let what = |nodes, odd: &[&str]| {
        let mut snapshot = fleet(nodes);
        for name in odd {
            let node = snapshot.nodes.get_mut(&NodeName((*name).to_owned())).unwrap();
            change(&mut node.nvml.driver_version, |version| "575.57.08".clone_into(version));
        }
        let report = diagnose(&snapshot, &demand());
        let skew = report.results.iter().find(|result| result.rule.id == "driver-skew").unwrap();
        skew.problems[0].what.clone()
    };
    insta::assert_snapshot!(what(4, &["n3"]), @"driver version differs: 580.65.06 on 3 of 4 nodes, but 575.57.08 on n3");
    insta::assert_snapshot!(what(2, &["n2"]), @"driver version differs, a tie without a majority: 575.57.08 on n2; 580.65.06 on n1");
    insta::assert_snapshot!(what(4, &["n1", "n2"]), @"driver version differs, a tie without a majority: 575.57.08 on n1, n2; 580.65.06 on n3, n4");
}

#[test]
fn one_blind_node_does_not_hide_drift_among_the_others() {
    let mut snapshot = fleet(4);
    let mut nodes = snapshot.nodes.values_mut();
    nodes.next().unwrap().nvml.driver_version = Fact::unread("blind", "test");
    change(&mut nodes.next().unwrap().nvml.driver_version, |v| "575.57.08".clone_into(v));
    let report = diagnose(&snapshot, &demand());
    let of_rule = report.results.iter().filter(|result| result.rule.id == "driver-skew");
    let verdicts: Vec<Verdict> = of_rule.map(|result| result.verdict).collect();
    assert_eq!(verdicts, [Verdict::Warn, Verdict::Unknown]);
}

#[test]
fn an_unreadable_kernel_log_is_unknown_but_does_not_stop_a_launch() {
    let mut snapshot = fleet(3);
    for node in snapshot.nodes.values_mut() {
        node.kernel.log = Fact::unread("needs CAP_SYSLOG", "/dev/kmsg");
    }
    let report = diagnose(&snapshot, &demand());
    assert_eq!(flipped(&report), BTreeSet::from(["kernel-faults", "xid-seen"]));
    assert_eq!(report.overall(false, &BTreeSet::new()), Overall::Ready);
    assert_eq!(report.overall(true, &BTreeSet::new()), Overall::Unknown);
}

#[test]
fn facts_survive_their_file() {
    let facts = fleet(1).nodes.into_values().next().unwrap();
    let text = serde_json::to_string(&facts).unwrap();
    assert_eq!(serde_json::from_str::<NodeFacts>(&text).unwrap(), facts);
}

proptest! {
    /// What a rule for nodes says about a node does not depend on the other nodes.
    #[test]
    fn node_rules_look_at_one_node(
        mut broken in proptest::collection::vec(0..mutations().len(), 1..4)
    ) {
        // A trainer that is gone leaves nothing for others to change.
        broken.sort_by_key(|index| mutations()[*index].0 == "trainer-without-cuda");
        let (mut snapshot, mut demand) = (fleet(3), demand());
        for index in broken {
            mutations()[index].1(&mut snapshot, &mut demand);
        }
        snapshot.expected.clear();
        demand.ranks = None;
        let of_nodes = |report: &Report, name: &NodeName| -> Vec<String> {
            let is_node = |r: &&CheckResult| r.subject == Subject::Node(name.clone());
            let node_rule = |r: &&CheckResult| matches!(r.rule.check, Check::Node(_));
            let results = report.results.iter().filter(is_node).filter(node_rule);
            // Rules that compare nodes, or need more than one, do not run for one node.
            let results = results.filter(|r| {
                matches!(r.rule.applies, Applies::Always | Applies::Gpus | Applies::GpuGroup)
            });
            results.map(|r| format!("{} {:?} {:?}", r.rule.id, r.verdict, r.problems)).collect()
        };
        let whole = diagnose(&snapshot, &demand);
        for (name, node) in &snapshot.nodes {
            let alone = Snapshot {
                nodes: BTreeMap::from([(name.clone(), node.clone())]),
                expected: BTreeSet::new(),
            };
            let alone = diagnose(&alone, &demand);
            // These ask for more when there are more nodes.
            let of_all = ["fd-limit", "somaxconn-low", "nccl-timeout-low", "save-never-fires"];
            let fd = |line: &String| !of_all.iter().any(|id| line.starts_with(id));
            prop_assert_eq!(
                of_nodes(&whole, name).into_iter().filter(fd).collect::<Vec<_>>(),
                of_nodes(&alone, name).into_iter().filter(fd).collect::<Vec<_>>()
            );
        }
    }

    /// The order in which facts come in does not matter.
    #[test]
    fn the_order_of_nodes_does_not_matter(
        order in Just((1..=4_u32).collect::<Vec<_>>()).prop_shuffle(),
        broken in 0..mutations().len(),
    ) {
        let (mut snapshot, mut demand) = (fleet(4), demand());
        mutations()[broken].1(&mut snapshot, &mut demand);
        let mut shuffled = Snapshot { expected: snapshot.expected.clone(), ..Snapshot::default() };
        for number in order {
            let name = NodeName(format!("n{number}"));
            let node = snapshot.nodes[&name].clone();
            shuffled.nodes.insert(name, node);
        }
        let text = |snapshot| format!("{:?}", diagnose(snapshot, &demand));
        prop_assert_eq!(text(&snapshot), text(&shuffled));
    }
}
