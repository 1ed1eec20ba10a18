//! Each cause of "works on one GPU, fails on many" is caught: by every check that the table names,
//! on a fleet that has it, and on none that does not.

use super::{mutations::mutations, *};

#[test]
fn the_table_has_all_causes_and_names_checks_that_exist() {
    let causes = causes();
    let numbers: Vec<u32> = causes.iter().map(|cause| cause.number).collect();
    assert_eq!(numbers, (1..=42).collect::<Vec<u32>>());
    for cause in &causes {
        assert!(!cause.rules.is_empty() && !cause.seen.is_empty(), "{cause:?}");
        for id in &cause.rules {
            assert!(rule(id).is_some(), "cause {}: there is no check `{id}`", cause.number);
        }
    }
}

#[test]
fn every_cause_is_caught_by_all_of_its_checks() {
    let mut missed = Vec::new();
    for cause in causes() {
        for id in cause.rules {
            let mutations = mutations();
            let (_id, mutate) = mutations.iter().find(|(of, _mutate)| *of == id).unwrap();
            let (mut snapshot, mut demand) = (fleet(3), demand());
            let fires = |snapshot: &Snapshot, demand: &Demand| {
                let report = diagnose(snapshot, demand);
                let of_rule = report.results.iter().filter(|result| result.rule.id == id);
                of_rule.map(|result| result.problems.len()).sum::<usize>()
            };
            let healthy = fires(&snapshot, &demand);
            mutate(&mut snapshot, &mut demand);
            if healthy != 0 || fires(&snapshot, &demand) == 0 {
                missed.push(format!("cause {}: {id}", cause.number));
            }
        }
    }
    assert!(missed.is_empty(), "{missed:?}");
}
