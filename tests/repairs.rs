//! `qvl doctor --fix` and `undo` on real kernels and files, in a namespace of their own: every kind of
//! repair is planned, made, seen to help, and taken back; the process is killed before each of its
//! steps, and in the middle of its writes, and what is left is rolled back or made anew.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "repairs/cases.rs"]
mod cases;
#[path = "repairs/world.rs"]
mod world;

mod schema;

use std::collections::BTreeSet;

use cases::{
    CASES, CORE, Case, JOB_FILE, LIMIT, MODULE, PERSISTENCE, SHARED_MEMORY, SYSCTL, write_job,
};
use qvl::doctor::fix::Kind;
use serde_json::Value;
use world::World;

impl Case {
    fn world(&self) -> World {
        let mut world = World::new();
        write_job(world.folder.path());
        world.must(self.prepare);
        world
    }

    fn plan(&self) -> String {
        format!("\"$QVL\" doctor --fix --only {} {}", self.rule, self.args)
    }

    fn apply(&self) -> String {
        format!("{} --apply", self.plan())
    }

    fn verdicts(&self, world: &mut World) -> Vec<String> {
        world.verdicts(self.rule, self.args)
    }

    fn complains(&self, world: &mut World) -> bool {
        self.verdicts(world).iter().any(|verdict| matches!(verdict.as_str(), "warn" | "fail"))
    }

    #[track_caller]
    fn assert_silent(&self, world: &mut World) {
        let verdicts = self.verdicts(world);
        let good = verdicts.iter().all(|verdict| matches!(verdict.as_str(), "pass" | "skipped"));
        assert!(good && !verdicts.is_empty(), "{}: {verdicts:?}", self.rule);
    }

    fn facts(&self, world: &mut World) -> Vec<Value> {
        let facts = world.facts();
        let value = |pointer: &&str| {
            facts.pointer(pointer).unwrap_or_else(|| panic!("no fact {pointer}")).clone()
        };
        self.facts.iter().map(value).collect()
    }
}

/// States of the repairs in the journal, the oldest first.
fn states(world: &mut World) -> Vec<String> {
    let list: Value =
        serde_json::from_str(&world.must("\"$QVL\" doctor undo --list --format json")).unwrap();
    let repairs = list["repairs"].as_array().unwrap();
    repairs.iter().map(|one| one["state"].as_str().unwrap().to_owned()).collect()
}

fn round_trip(case: &Case) {
    let mut world = case.world();
    assert!(case.complains(&mut world), "{}: {:?}", case.rule, case.verdicts(&mut world));
    let (facts, state) = (case.facts(&mut world), world.must(case.state));

    // A plan shows everything and does nothing.
    let plan = world.run(&case.plan());
    for text in case.shows {
        assert!(plan.out.contains(text), "no `{text}` in\n{}{}", plan.out, plan.err);
    }
    assert!(plan.out.contains("1 repair can be made here"), "{}", plan.out);
    assert!(plan.out.contains("nothing was changed"), "{}", plan.out);
    assert_eq!(world.must(case.state), state);
    assert_eq!(states(&mut world), [""; 0]);
    let shown = world.run(&format!("{} --format json", case.plan()));
    let shown: Value = serde_json::from_str(&shown.out).unwrap();
    assert_eq!(shown["applied"], false);
    let schema: Value = serde_json::from_str(&world.must("\"$QVL\" schema fix")).unwrap();
    assert_eq!(schema::errors(&schema, &shown, "plan"), [""; 0]);
    let kinds: BTreeSet<&str> = shown["repairs"][0]["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| change["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, case.kinds.iter().map(|kind| kind.name()).collect());

    // Made, and it helps.
    let made = world.run(&format!("{} --format json", case.apply()));
    let made: Value = serde_json::from_str(&made.out).unwrap_or_else(|_| panic!("{}", made.err));
    assert_eq!(made["repairs"][0]["result"]["state"], "done", "{made:#}");
    assert_eq!(schema::errors(&schema, &made, "plan"), [""; 0]);
    assert_ne!(world.must(case.state), state);
    case.assert_silent(&mut world);
    assert_eq!(states(&mut world), ["kept"]);
    // Once more, there is nothing to do.
    let again = world.run(&case.apply());
    assert!(again.out.contains("0 repairs can be made here"), "{}", again.out);

    // Taken back: everything is as before, and once more changes nothing.
    let undone = world.must("\"$QVL\" doctor undo");
    assert!(undone.contains("undone   1 "), "{undone}");
    assert_eq!(world.must(case.state), state);
    assert_eq!(case.facts(&mut world), facts);
    assert!(case.complains(&mut world));
    assert!(world.must("\"$QVL\" doctor undo").contains("nothing to undo"));
    assert!(world.must("\"$QVL\" doctor undo 1").contains("nothing to undo"));

    // What somebody else changed meanwhile stays, unless it is forced.
    let Some(meddle) = case.meddle else { return };
    world.run(&case.apply());
    world.must(meddle);
    let theirs = world.must(case.state);
    let refused = world.run("\"$QVL\" doctor undo");
    assert_eq!(refused.code, 1, "{}", refused.out);
    assert!(
        refused.out.contains("neither as before the repair nor as after it"),
        "{}",
        refused.out
    );
    assert!(refused.out.contains("qvl doctor undo 2 --force"), "{}", refused.out);
    assert_eq!(world.must(case.state), theirs);
    world.must("\"$QVL\" doctor undo 2 --force");
    assert_eq!(world.must(case.state), state);
    assert_eq!(states(&mut world), ["undone", "undone"]);
}

/// Fewer steps would mean that the library that kills does not see them.
const FEWEST: u32 = 10;

fn survives_death_at_every_step(case: &Case) {
    let mut world = case.world();
    let state = world.must(case.state);
    let fresh = "rm -rf \"$T/.local\"";
    let mut at = 1;
    // Of a repair: what is left is rolled back, by an undo or before the next repair.
    while world.killed(&case.apply(), "--apply", at) {
        if at % 2 == 0 {
            let undo = world.run("\"$QVL\" doctor undo");
            assert_eq!(undo.code, 0, "step {at}: {}{}", undo.out, undo.err);
        } else {
            // Death after the last entry of the journal comes too late: the repair is made.
            let is_made = states(&mut world).last().is_some_and(|state| state == "kept");
            let words = if is_made { "0 repairs can be made here" } else { "the check passes now" };
            let next = world.run(&case.apply());
            assert!(next.out.contains(words), "step {at}: {}{}", next.out, next.err);
            case.assert_silent(&mut world);
            world.must("\"$QVL\" doctor undo");
        }
        assert_eq!(world.must(case.state), state, "step {at}");
        let left = states(&mut world);
        assert!(
            left.iter().all(|state| matches!(state.as_str(), "undone" | "rolled-back")),
            "{left:?}"
        );
        world.must(fresh);
        at += 1;
    }
    assert!(FEWEST < at, "{at} steps");
    // Of an undo: the next one ends it.
    case.assert_silent(&mut world);
    let mut at = 1;
    while world.killed("\"$QVL\" doctor undo", "undo", at) {
        let undo = world.run("\"$QVL\" doctor undo");
        assert_eq!(undo.code, 0, "step {at}: {}{}", undo.out, undo.err);
        assert_eq!(world.must(case.state), state, "step {at} of undo");
        world.must(fresh);
        world.run(&case.apply());
        case.assert_silent(&mut world);
        at += 1;
    }
    assert!(FEWEST / 2 < at, "{at} steps of undo");
    assert_eq!(world.must(case.state), state);
}

#[test]
fn every_kind_of_repair_is_proven_here() {
    let proven: BTreeSet<Kind> = CASES.iter().flat_map(|case| case.kinds).copied().collect();
    assert_eq!(proven, BTreeSet::from(Kind::ALL));
}

#[test]
fn persistence_mode_there_and_back() {
    round_trip(&PERSISTENCE);
}

#[test]
fn persistence_mode_survives_death() {
    survives_death_at_every_step(&PERSISTENCE);
}

#[test]
fn shared_memory_there_and_back() {
    round_trip(&SHARED_MEMORY);
}

#[test]
fn shared_memory_survives_death() {
    survives_death_at_every_step(&SHARED_MEMORY);
}

#[test]
fn limits_there_and_back() {
    round_trip(&LIMIT);
}

#[test]
fn limits_that_are_lowered_there_and_back() {
    round_trip(&CORE);
}

#[test]
fn limits_survive_death() {
    survives_death_at_every_step(&LIMIT);
}

#[test]
fn modules_there_and_back() {
    round_trip(&MODULE);
}

#[test]
fn modules_survive_death() {
    survives_death_at_every_step(&MODULE);
}

#[test]
fn settings_there_and_back() {
    round_trip(&SYSCTL);
}

#[test]
fn settings_survive_death() {
    survives_death_at_every_step(&SYSCTL);
}

#[test]
fn job_files_there_and_back() {
    round_trip(&JOB_FILE);
}

#[test]
fn job_files_survive_death() {
    survives_death_at_every_step(&JOB_FILE);
}

/// A repair after which its check still complains is taken back, and the report says so.
#[test]
fn what_does_not_help_is_rolled_back() {
    let mut world = SYSCTL.world();
    // A setting that takes a value and does not keep it: the read-back finds it.
    world.must("mount -t tmpfs none /proc/sys/vm && echo 2 > /proc/sys/vm/overcommit_memory && mount -o remount,ro /proc/sys/vm");
    let made = world.run(&SYSCTL.apply());
    assert_eq!(made.code, 1, "{}", made.out);
    assert!(
        made.out.contains("rolled back: failed to change vm.overcommit_memory"),
        "{}",
        made.out
    );
    assert_eq!(states(&mut world), ["rolled-back"]);
    // A module that loads and is not what the check wants.
    let mut world = MODULE.world();
    world.must("printf '#!/bin/sh\\nexit 0\\n' > \"$T/bin/modprobe\"");
    let made = world.run(&MODULE.apply());
    assert_eq!(made.code, 1, "{}", made.out);
    let told = made.out.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(told.contains("kernel module nvidia_uvm is not there instead of loaded"), "{told}");
    assert_eq!(states(&mut world), ["rolled-back"]);
}

/// Without rights there is a plan with commands, and nothing is tried.
#[test]
fn users_get_the_commands() {
    let mut world = SYSCTL.world();
    world.must("cp \"$QVL\" \"$T/bin/qvl\" && QVL=\"$T/bin/qvl\"");
    world.must("chmod 755 \"$T\" && mkdir -m 777 \"$T/user\"");
    let as_user =
        |line: String| format!("HOME=\"$T/user\" setpriv --reuid 1000 --clear-groups {line}");
    let made = world.run(&as_user(SYSCTL.apply()));
    assert!(made.out.contains("it needs root"), "{}{}", made.out, made.err);
    assert!(made.out.contains("sysctl -w vm.overcommit_memory=\"0\""), "{}", made.out);
    assert_eq!(world.must(SYSCTL.state).trim(), "2");
    assert_eq!(world.must("cat \"$T/user/.local/state/qvl/repairs\"/*"), "");
}
