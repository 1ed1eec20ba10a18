//! `qvl doctor` on saved facts, on this machine and on folders that look like other machines.

#![expect(clippy::unwrap_used, reason = "a test fails where it is wrong")]

mod schema;

use std::{fs, path::Path, process::Output};

use assert_cmd::Command;
use serde_json::Value;

const HEALTHY: &str = "tests/facts/healthy-8xh100.json";
const BROKEN: &str = "tests/facts/broken-8xh100.json";
const CPU: &str = "tests/facts/cpu-only.json";

fn qvl(args: &[&str]) -> Output {
    let mut command = Command::cargo_bin("qvl").unwrap();
    // What this shell has set for ranks is no part of the test.
    for name in ["RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "QVL_TRAIN_BIN"]
    {
        command.env_remove(name);
    }
    command.args(args).output().unwrap()
}

fn doctor(args: &[&str]) -> Output {
    qvl(&[&["doctor", "--reproducible"], args].concat())
}

fn text(output: &Output) -> String {
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&text(output)).unwrap()
}

#[test]
fn a_healthy_node_is_ready() {
    let output = doctor(&["--facts", HEALTHY, "--gpus", "8"]);
    insta::assert_snapshot!("healthy", text(&output));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_broken_node_is_blocked_with_all_reasons() {
    let output = doctor(&["--facts", BROKEN, "--gpus", "8"]);
    insta::assert_snapshot!("broken", text(&output));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_fleet_is_compared_in_any_order() {
    let output = doctor(&["--facts", HEALTHY, BROKEN, CPU, "--gpus", "24"]);
    insta::assert_snapshot!("fleet", text(&output));
    assert_eq!(output.status.code(), Some(1));
    let turned = doctor(&["--facts", CPU, BROKEN, HEALTHY, "--gpus", "24"]);
    assert_eq!(text(&output), text(&turned));
}

#[test]
fn a_machine_without_gpus_is_judged_for_a_job_on_cpus() {
    let output = doctor(&["--facts", CPU, "--gpus", "2"]);
    insta::assert_snapshot!("cpu", text(&output));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn the_official_stack_needs_more_memory_than_a_small_machine_has() {
    let output = doctor(&["--facts", CPU, "--gpus", "2", "--stack", "official"]);
    assert_eq!(output.status.code(), Some(1));
    let text = text(&output);
    assert!(text.contains("host-memory-short") && text.contains("2 ranks x 38.6 GB"), "{text}");
    assert!(text.contains("32 samples a step on 2 ranks, 8 on one"), "{text}");
}

#[test]
fn nodes_that_did_not_report_are_unknown_until_allowed() {
    let facts = ["--facts", HEALTHY, "--gpus", "8"];
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
    assert_eq!(live.status.code(), replayed.status.code());
    let report = json(&live);
    assert_eq!(report["v"], 1);
    assert!(60 <= report["checks"].as_array().unwrap().len());
}

#[test]
fn the_json_report_is_what_its_schema_says() {
    let schema = json(&qvl(&["schema", "report"]));
    for facts in [HEALTHY, BROKEN, CPU] {
        let report = json(&doctor(&["--format", "json", "--facts", facts, "--gpus", "8"]));
        let errors = schema::errors(&schema, &report, "report");
        assert!(errors.is_empty(), "{facts}: {}", errors.join("\n"));
    }
    let errors = schema::errors(&schema, &serde_json::json!({"v": "1"}), "report");
    assert!(errors.iter().any(|error| error.contains("report.v")), "{errors:?}");
    assert!(errors.iter().any(|error| error.contains("`checks` is missing")), "{errors:?}");
}

/// A folder with the files of a small container.
fn container(root: &Path) {
    let files = [
        ("proc/sys/kernel/osrelease", "5.4.0-generic\n"),
        ("proc/sys/kernel/hostname", "small\n"),
        ("proc/sys/kernel/random/boot_id", "b1\n"),
        ("proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n"),
        ("proc/modules", "ext4 1 0 - Live 0x0\n"),
        ("proc/self/environ", "WORLD_SIZE=8\0RANK=9\0HOME=/root\0"),
        ("proc/self/cgroup", "0::/job\n"),
        ("proc/self/status", "Cpus_allowed_list:\t0-1\nCapEff:\t0000000000000000\n"),
        (
            "proc/self/limits",
            "Max open files            256                  4096                 files\n",
        ),
        ("sys/fs/cgroup/cgroup.controllers", "cpu memory pids\n"),
        ("sys/fs/cgroup/job/memory.max", "1073741824\n"),
        ("sys/fs/cgroup/job/cpu.max", "50000 100000\n"),
        ("sys/fs/cgroup/job/pids.max", "64\n"),
        ("etc/os-release", "PRETTY_NAME=\"Small Linux 1\"\n"),
        ("dev/shm/.keep", ""),
    ];
    for (path, content) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

#[test]
fn a_folder_is_read_in_place_of_the_machine() {
    let folder = tempfile::tempdir().unwrap();
    container(folder.path());
    let root = folder.path().to_str().unwrap();
    let output = doctor(&["--sysroot", root, "--gpus", "2", "--format", "json"]);
    let report = json(&output);
    let verdict = |id: &str| {
        let checks = report["checks"].as_array().unwrap();
        checks.iter().find(|check| check["id"] == id).unwrap()["verdict"].clone()
    };
    for (id, expected) in [
        ("kernel-old", "warn"),
        ("cgroup-limits", "warn"),
        ("fd-limit", "warn"),
        ("world-size-mismatch", "fail"),
        ("kernel-faults", "unknown"),
        ("gpu-lost", "skipped"),
    ] {
        assert_eq!(verdict(id), expected, "{id}");
    }
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn the_list_in_the_documents_is_current() {
    let document = fs::read_to_string("docs/checks.md").unwrap();
    let list = text(&qvl(&["doctor", "list"]));
    assert!(document.contains(&list), "copy the output of `qvl doctor list` to docs/checks.md");
}

#[test]
fn wrong_names_get_the_nearest_one() {
    let output = qvl(&["doctor", "explain", "shm-smal"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("did you mean `shm-small`?"));
    assert!(text(&qvl(&["doctor", "explain", "shm-small"])).contains("SIGBUS"));
}

#[test]
fn facts_that_cannot_be_read_are_one_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("facts.json");
    let newer = serde_json::json!({"format": 9, "origin": "", "node": "a", "facts": {}});
    for (content, expected) in [
        ("not json".to_owned(), "expected"),
        (newer.to_string(), "format 9, this program reads 1"),
        (newer.to_string().replace('9', "1"), "facts: missing field"),
    ] {
        fs::write(&file, content).unwrap();
        let output = doctor(&["--facts", file.to_str().unwrap()]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(expected) && error.contains("hint: "), "{error}");
        assert!(output.stdout.is_empty());
    }
}
