//! The solver against brute force, and whole fleets: what is proposed makes the job launchable.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{
    solve::{Answer, Choice, Conflict, Cost, Fault, Instance, LISTED, Node, most, solve},
    *,
};
use crate::{
    doctor::{Demand, Overall, testing::*},
    facts::Fact,
};

/// Whether a choice leaves enough nodes and no fault, and what it costs.
fn price(instance: &Instance, choice: &Choice) -> Option<u64> {
    let stays = |node: &usize| !choice.excluded.contains(node);
    let repaired = |fault: usize, node: usize| {
        choice.repaired.get(&fault).is_some_and(|nodes| nodes.contains(&node))
    };
    let nodes: Vec<usize> = (0..instance.nodes.len()).filter(stays).collect();
    let own = |node: &usize| instance.nodes[*node].faults.iter().all(|f| repaired(*f, *node));
    let at_peace = |conflict: &Conflict| {
        let sides = conflict.groups.iter().filter(|group| {
            group.iter().any(|node| stays(node) && !repaired(conflict.fault, *node))
        });
        sides.count() < 2
    };
    let count = nodes.iter().filter(|node| instance.nodes[**node].counts).count();
    if !nodes.iter().all(own) || !instance.conflicts.iter().all(at_peace) || count < instance.need {
        return None;
    }
    let mut cost = u64::from(instance.exclude) * choice.excluded.len() as u64;
    for (fault, nodes) in choice.repaired.iter().filter(|(_fault, nodes)| !nodes.is_empty()) {
        let repair = instance.faults[*fault].repair?;
        cost += u64::from(repair.once) + u64::from(repair.each) * nodes.len() as u64;
    }
    Some(cost)
}

/// Every choice: each node is excluded, or kept with any of its faults repaired.
fn brute_force(instance: &Instance) -> (Option<u64>, BTreeSet<Choice>) {
    let mut choices = vec![Choice::default()];
    for (i, node) in instance.nodes.iter().enumerate() {
        let of_conflicts =
            instance.conflicts.iter().filter(|c| c.groups.iter().flatten().any(|n| *n == i));
        let faults: BTreeSet<usize> =
            node.faults.iter().copied().chain(of_conflicts.map(|c| c.fault)).collect();
        let faults: Vec<usize> = faults.into_iter().collect();
        let mut next = Vec::new();
        for choice in &choices {
            let mut without = choice.clone();
            without.excluded.insert(i);
            next.push(without);
            for bits in 0..1_usize << faults.len() {
                let mut with = choice.clone();
                for (b, fault) in faults.iter().enumerate().filter(|(b, _f)| bits >> b & 1 == 1) {
                    let _ = b;
                    with.repaired.entry(*fault).or_default().insert(i);
                }
                next.push(with);
            }
        }
        choices = next;
    }
    let priced = choices.into_iter().filter_map(|c| Some((price(instance, &c)?, c)));
    let mut best: (Option<u64>, BTreeSet<Choice>) = (None, BTreeSet::new());
    for (cost, choice) in priced {
        match best.0 {
            Some(lowest) if lowest < cost => {}
            Some(lowest) if lowest == cost => {
                best.1.insert(choice);
            }
            Some(_) | None => best = (Some(cost), BTreeSet::from([choice])),
        }
    }
    best
}

prop_compose! {
    /// Up to five nodes, three faults and two conflicts of two or three sides.
    fn instances()(
        nodes in prop::collection::vec((prop::bool::weighted(0.8), prop::collection::btree_set(0..2_usize, 0..2)), 1..6),
        repairs in prop::collection::vec(prop::option::weighted(0.7, (0..3_u32, 0..6_u32)), 4),
        sides in prop::collection::vec(prop::collection::vec(0..4_usize, 5), 0..3),
        need in 0..5_usize,
        exclude in 1..5_u32,
    ) -> Instance {
        let count = nodes.len();
        let conflicts = sides.into_iter().enumerate().map(|(c, side)| {
            // The last number means that the node is in no side.
            let of = |g| (0..count).filter(|i| side[*i] == g).collect::<Vec<_>>();
            let groups = (0..3).map(of).filter(|group| !group.is_empty()).collect();
            Conflict { fault: 2 + c, groups }
        });
        let conflicts = conflicts.filter(|c| 1 < c.groups.len()).collect();
        let nodes = nodes.into_iter().map(|(counts, faults)| Node { counts, faults }).collect();
        let cost = |(once, each)| Cost { once, each };
        let faults = repairs.into_iter().map(|r| Fault { repair: r.map(cost) }).collect();
        Instance { need, exclude, nodes, faults, conflicts }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// As cheap as the cheapest of all, listed choices are among the cheapest, and the list is
    /// whole unless it says that there is more.
    #[test]
    fn the_answer_is_the_cheapest_of_all(instance in instances()) {
        let (cost, best) = brute_force(&instance);
        let answer = solve(&instance);
        prop_assert_eq!(answer.as_ref().map(|answer| answer.cost), cost);
        let Some(Answer { cost, bound, choices, more }) = answer else { return Ok(()) };
        prop_assert_eq!(bound, cost);
        prop_assert!(!choices.is_empty());
        for choice in &choices {
            prop_assert_eq!(price(&instance, choice), Some(cost), "{:?}", choice);
        }
        // A repair that costs nothing may be made or left: brute force counts both.
        let free = instance.faults.iter().any(|f| f.repair.is_some_and(|r| r.each == 0));
        if !free {
            prop_assert_eq!(LISTED < best.len(), more, "{:#?}", best);
            prop_assert_eq!(choices.len(), best.len().min(LISTED));
            prop_assert!(choices.iter().all(|choice| best.contains(choice)));
        }
    }

    #[test]
    fn no_more_nodes_can_be_left_than_is_said(instance in instances()) {
        let can = |need: usize| solve(&Instance { need, ..instance.clone() }).is_some();
        let most = most(&instance);
        prop_assert!(can(most) && !can(most + 1));
    }

    /// Beyond the exact search: what is found is valid, and not below the bound.
    #[test]
    fn a_large_question_has_a_valid_answer_and_a_bound(
        odd in prop::collection::vec((0..40_usize, 0..22_usize), 1..60),
        need in 0..20_usize,
    ) {
        let mut nodes = vec![Node { counts: true, ..Node::default() }; 40];
        odd.iter().for_each(|(node, fault)| { nodes[*node].faults.insert(*fault); });
        let fault = |i: u32| Fault { repair: (!i.is_multiple_of(3)).then_some(Cost { once: 1 + i % 2, each: i % 4 }) };
        let instance = Instance {
            need, exclude: 4, nodes, faults: (0..25).map(fault).collect(),
            conflicts: vec![Conflict { fault: 22, groups: vec![(0..10).collect(), (10..25).collect()] }],
        };
        if let Some(answer) = solve(&instance) {
            prop_assert!(answer.bound <= answer.cost);
            for choice in &answer.choices {
                prop_assert_eq!(price(&instance, choice), Some(answer.cost));
            }
        }
    }
}

fn asked(snapshot: &Snapshot, ranks: u32) -> Option<Remedy> {
    let demand = Demand { ranks: Some(ranks), ..demand() };
    let (report, allowed) = (diagnose(snapshot, &demand), BTreeSet::new());
    let ask = Ask { per_node: None, allowed: &allowed, seen: Seen::ALL };
    remedy(snapshot, &demand, &report, ask)
}

fn change(remedy: Option<Remedy>) -> Change {
    match remedy {
        Some(Remedy::Change(change)) => change,
        other => panic!("expected a change, got {other:?}"),
    }
}

fn on<'s>(snapshot: &'s mut Snapshot, name: &str) -> &'s mut crate::facts::NodeFacts {
    snapshot.nodes.get_mut(&NodeName(name.to_owned())).unwrap()
}

fn old_driver(snapshot: &mut Snapshot, name: &str) {
    on(snapshot, name).nvml.driver_version = Fact::known("535.104.05".to_owned(), "test");
    on(snapshot, name).driver.kernel_module = Fact::known(
        Some(crate::facts::KernelModule { version: "535.104.05".to_owned(), open: true }),
        "test",
    );
}

/// Without the nodes that a choice leaves out.
fn applied(snapshot: &Snapshot, choice: &super::Choice) -> Snapshot {
    let mut left = snapshot.clone();
    for action in &choice.actions {
        let Action::Exclude(out) = action else { panic!("only exclusions here: {action:?}") };
        out.iter().for_each(|out| {
            left.nodes.remove(&out.node);
            left.expected.remove(&out.node);
        });
    }
    left
}

#[test]
fn nothing_is_said_when_nothing_stops_the_job() {
    assert_eq!(asked(&fleet(3), 6), None);
}

#[test]
fn one_node_with_an_old_driver_is_left_out_if_the_rest_is_enough() {
    let mut snapshot = fleet(3);
    old_driver(&mut snapshot, "n3");
    let change = change(asked(&snapshot, 4));
    assert_eq!(
        (change.shape, change.cost, change.options.len()),
        (Shape { nodes: 2, per_node: 2 }, 4, 1)
    );
    let choice = &change.options[0];
    assert_eq!((choice.nodes_left, choice.gpus_left), (2, Some(4)));
    let Action::Exclude(out) = &choice.actions[0] else { panic!("{choice:?}") };
    assert_eq!(out[0].node.0, "n3");
    assert!(out[0].rules.contains(&"ptx-too-new"), "{out:?}");
}

#[test]
fn a_node_that_is_needed_is_repaired() {
    let mut snapshot = fleet(3);
    old_driver(&mut snapshot, "n3");
    let change = change(asked(&snapshot, 6));
    let [Action::Repair { rule: "ptx-too-new", nodes, unknown: false, .. }] =
        change.options[0].actions.as_slice()
    else {
        panic!("{change:?}")
    };
    assert_eq!(nodes, &[NodeName("n3".to_owned())]);
}

/// 1:1: either may go, and both ways are told.
#[test]
fn a_tie_is_told_as_one() {
    let mut snapshot = fleet(2);
    crate::doctor::testing::change(&mut on(&mut snapshot, "n1").trainer.nccl, |all| {
        all[0] = nccl("/usr/lib/libnccl.so.2.21.5", "2.21.5", 1);
    });
    let change = change(asked(&snapshot, 2));
    let out: Vec<&str> = change
        .options
        .iter()
        .map(|choice| match choice.actions.as_slice() {
            [Action::Exclude(out)] => out[0].node.0.as_str(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!((out, change.more, change.cost), (vec!["n1", "n2"], false, 4));
    for choice in &change.options {
        let left = applied(&snapshot, choice);
        assert_eq!(asked(&left, 2), None);
    }
}

#[test]
fn one_setting_is_repaired_on_several_nodes() {
    let mut snapshot = fleet(4);
    for name in ["n1", "n2", "n3"] {
        on(&mut snapshot, name).limits.memlock_bytes = Fact::known(Some(8 << 20), "test");
    }
    let change = change(asked(&snapshot, 4));
    let [Action::Repair { rule: "memlock-low", nodes, .. }] = change.options[0].actions.as_slice()
    else {
        panic!("{change:?}")
    };
    assert_eq!((nodes.len(), change.cost), (3, 4));
}

#[test]
fn too_few_gpus_are_told_with_the_most_that_would_do() {
    let mut snapshot = fleet(3);
    crate::doctor::testing::change(&mut on(&mut snapshot, "n2").nvml.gpus, |gpus| {
        gpus.iter_mut().for_each(|gpu| gpu.memory_total_bytes = Fact::known(16 << 30, "test"));
    });
    match asked(&snapshot, 6) {
        Some(Remedy::TooFew { ranks: 6, largest: Some(change), hindrances, proven: true }) => {
            assert_eq!(change.shape, Shape { nodes: 2, per_node: 2 });
            assert_eq!((hindrances[0].rule, hindrances[0].nodes.len()), ("memory-too-small", 1));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_node_that_did_not_report_is_left_out_or_found_out() {
    let mut snapshot = fleet(2);
    snapshot.expected = BTreeSet::from([NodeName("n9".to_owned())]);
    let change = change(asked(&snapshot, 2));
    let rules: Vec<(&str, bool)> = change.options[0]
        .actions
        .iter()
        .map(|action| match action {
            Action::Repair { rule, unknown, .. } => (*rule, *unknown),
            Action::Exclude(out) => (out[0].rules[0], false),
        })
        .collect();
    assert_eq!(rules, [("node-missing", true)]);
}

#[test]
fn what_is_wrong_with_the_job_itself_remains() {
    let mut demand = Demand { ranks: Some(2), ..demand() };
    demand.data = Some(crate::doctor::DataVerdict { blocking: 3, warnings: 0, worst: None });
    let (snapshot, allowed) = (fleet(2), BTreeSet::new());
    let report = diagnose(&snapshot, &demand);
    assert_eq!(report.overall(false, &allowed), Overall::Blocked);
    let ask = Ask { per_node: None, allowed: &allowed, seen: Seen::ALL };
    let change = change(remedy(&snapshot, &demand, &report, ask));
    assert_eq!((change.cost, change.remaining), (0, vec!["data-unusable"]));
}

/// Troubles of a node, each of which a check blocks.
const TROUBLES: [fn(&mut Snapshot, &str); 5] = [
    old_driver,
    |snapshot, name| {
        on(snapshot, name).nvml.driver_version = Fact::unread("blind", "test");
    },
    |snapshot, name| {
        change_gpu(on(snapshot, name), 0, |gpu| {
            gpu.memory_total_bytes = Fact::known(8 << 30, "test");
        });
    },
    |snapshot, name| {
        crate::doctor::testing::change(&mut on(snapshot, name).trainer.sha256, |hash| {
            *hash = "ef".repeat(32);
        });
    },
    |snapshot, name| {
        on(snapshot, name).identity.hostname = Fact::known("twin".to_owned(), "test");
        on(snapshot, name).identity.boot_id = Fact::known("twin".to_owned(), "test");
    },
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is broken: leaving out what a proposal leaves out makes the job launchable, where
    /// the proposal is nothing but exclusions and says that nothing else remains.
    #[test]
    fn what_is_proposed_helps(
        broken in prop::collection::vec((1..6_usize, 0..TROUBLES.len()), 1..5),
        ranks in 1..9_u32,
    ) {
        let mut snapshot = fleet(5);
        for (node, trouble) in broken {
            TROUBLES[trouble](&mut snapshot, &format!("n{node}"));
        }
        let Some(Remedy::Change(change)) = asked(&snapshot, ranks) else { return Ok(()) };
        for choice in change.options.iter().filter(|_choice| change.remaining.is_empty()) {
            if choice.actions.iter().any(|action| matches!(action, Action::Repair { .. })) {
                continue;
            }
            let left = applied(&snapshot, choice);
            let each = Some(change.shape.per_node);
            let demand = Demand { ranks: Some(ranks), ranks_each: each, ..demand() };
            let report = diagnose(&left, &demand);
            prop_assert_eq!(report.overall(false, &BTreeSet::new()), Overall::Ready, "{:?}", choice);
            prop_assert!(change.shape.nodes as usize <= choice.nodes_left);
        }
    }
}

#[test]
fn a_map_of_costs_has_no_hole() {
    let known: BTreeMap<&str, Cost> = crate::doctor::RULES
        .iter()
        .filter_map(|rule| Some((rule.id, cost::of(rule.id)?)))
        .collect();
    assert!(known.values().all(|cost| 0 < cost.each));
}
