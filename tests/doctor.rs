//! `qvl doctor` on saved facts and on this machine.

#![expect(clippy::unwrap_used, reason = "a test fails where it is wrong")]

use std::process::Output;

use assert_cmd::Command;

fn doctor(args: &[&str]) -> Output {
    Command::cargo_bin("qvl").unwrap().arg("doctor").args(args).output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn a_healthy_node_is_ready() {
    let output = doctor(&["--facts", "tests/facts/healthy-8xh100.json", "--gpus", "8"]);
    insta::assert_snapshot!("healthy", text(&output));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_broken_node_is_blocked_with_all_reasons() {
    let output = doctor(&["--facts", "tests/facts/broken-8xh100.json", "--gpus", "8"]);
    insta::assert_snapshot!("broken", text(&output));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_machine_without_gpus_is_judged_for_a_job_on_cpus() {
    let output = doctor(&["--facts", "tests/facts/cpu-only.json", "--gpus", "2"]);
    insta::assert_snapshot!("cpu", text(&output));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn nodes_that_did_not_report_are_unknown_until_allowed() {
    let facts = ["--facts", "tests/facts/healthy-8xh100.json", "--gpus", "8"];
    let expected = [&facts[..], &["--expect-nodes", "gpu-1,gpu-9"]].concat();
    assert_eq!(doctor(&expected).status.code(), Some(3));
    let allowed = [&expected[..], &["--allow-unknown", "node-missing"]].concat();
    assert_eq!(doctor(&allowed).status.code(), Some(0));
}

#[test]
fn this_machine_saves_facts_that_replay_to_the_same_verdicts() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("facts.json");
    let file = file.to_str().unwrap();
    let live = doctor(&["--format", "json", "--save-facts", file]);
    let replayed = doctor(&["--format", "json", "--facts", file]);
    assert_eq!(text(&live), text(&replayed));
    let report: serde_json::Value = serde_json::from_slice(&live.stdout).unwrap();
    assert_eq!(report["v"], 1);
    assert!(60 <= report["checks"].as_array().unwrap().len());
}

#[test]
fn wrong_names_get_the_nearest_one() {
    let output = doctor(&["explain", "shm-smal"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("did you mean `shm-small`?"));
    assert!(text(&doctor(&["explain", "shm-small"])).contains("SIGBUS"));
}
