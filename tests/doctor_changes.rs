//! `qvl doctor what-if` and `diff`, and verdicts that a launch asks for.

#![expect(clippy::unwrap_used, reason = "a test fails where it is wrong")]

use std::{fs, path::Path, process::Output};

use assert_cmd::Command;
use serde_json::Value;

const HEALTHY: &str = "tests/facts/healthy-8xh100.json";
const BROKEN: &str = "tests/facts/broken-8xh100.json";
const CPU: &str = "tests/facts/cpu-only.json";

fn doctor(args: &[&str]) -> Output {
    Command::cargo_bin("qvl").unwrap().arg("doctor").args(args).output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn error(output: &Output) -> String {
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn what_if_says_which_verdicts_change() {
    let facts = ["what-if", "--facts", HEALTHY, "--gpus", "8"];
    let sets = [
        "--set",
        "gpu-1.shm.mount.total_bytes=67108864",
        "--set",
        "gpu-1.nvml.driver_version=418.39",
    ];
    let output = doctor(&[&facts[..], &sets].concat());
    insta::assert_snapshot!("what-if", text(&output));
    assert_eq!(output.status.code(), Some(1));
    // One node needs no name, and what is not known is not ready.
    let output = doctor(&[&facts[..], &["--set", "shm.mount=unread", "--format", "json"]].concat());
    let answer: Value = serde_json::from_str(&text(&output)).unwrap();
    assert_eq!(answer["verdictBefore"], "ready");
    assert_eq!(answer["verdictAfter"], "unknown");
    assert_eq!(answer["checks"][0]["after"], "unknown");
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn what_if_repairs_a_machine_in_thought() {
    let output = doctor(&[
        "what-if",
        "--facts",
        CPU,
        "--gpus",
        "2",
        "--stack",
        "official",
        "--set",
        "memory.available_bytes=200000000000",
        "--set",
        "memory.total_bytes=200000000000",
    ]);
    let text = text(&output);
    assert!(text.contains("host-memory-short on cpu-1: fail -> pass"), "{text}");
}

#[test]
fn a_change_that_cannot_be_made_names_the_nearest() {
    for (set, says) in [
        ("gpu-1.memory.available=1", "did you mean `available_bytes`?"),
        ("gpu-2.memory.available_bytes=1", "did you mean `gpu-1`?"),
        ("gpu-1.memory.available_bytes=much", "`much` is no value for"),
        ("gpu-1.memory", "expected NODE.FIELD=VALUE"),
        ("gpu-1.nvml.gpus.8.name=x", "`nvml.gpus` has no field `8`"),
    ] {
        let output = doctor(&["what-if", "--facts", HEALTHY, "--set", set]);
        let error = error(&output);
        assert!(error.contains(says) && error.contains("hint: "), "{set}: {error}");
        assert_eq!(output.status.code(), Some(2));
    }
}

#[test]
fn diff_compares_facts_and_reports() {
    let output = doctor(&["diff", HEALTHY, BROKEN, "--gpus", "8"]);
    insta::assert_snapshot!("diff-facts", text(&output));
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&doctor(&["diff", HEALTHY, HEALTHY])).contains("nothing differs"));

    let folder = tempfile::tempdir().unwrap();
    let saved = |name: &str, facts: &str| {
        let path = folder.path().join(name);
        let report = doctor(&["--facts", facts, "--gpus", "8", "--format", "json"]);
        fs::write(&path, text(&report)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (healthy, broken) = (saved("a.json", HEALTHY), saved("b.json", BROKEN));
    let output = doctor(&["diff", &healthy, &broken, "--format", "json"]);
    let diff: Value = serde_json::from_str(&text(&output)).unwrap();
    assert_eq!(diff["facts"][0]["path"], "verdict");
    let checks = diff["checks"].as_array().unwrap();
    assert!(checks.iter().any(|check| check["id"] == "xid-seen"), "{checks:?}");

    let mixed = doctor(&["diff", HEALTHY, &broken]);
    assert!(error(&mixed).contains("one holds facts and the other a report"));
    assert_eq!(mixed.status.code(), Some(2));
}

#[test]
fn the_seal_depends_on_what_was_judged_and_on_nothing_else() {
    let seal = |args: &[&str]| -> Value {
        let report = doctor(&[&["--reproducible", "--format", "json"], args].concat());
        serde_json::from_str::<Value>(&text(&report)).unwrap()["seal"].clone()
    };
    let healthy = seal(&["--facts", HEALTHY, "--gpus", "8"]);
    assert_eq!(healthy, seal(&["--facts", HEALTHY, "--gpus", "8"]));
    assert!(healthy.get("unixSeconds").is_none() && healthy.get("job").is_none());
    let other = seal(&["--facts", BROKEN, "--gpus", "8"]);
    assert_ne!(healthy["facts"], other["facts"]);
    assert_eq!(healthy["rules"], other["rules"]);
    assert_ne!(healthy["digest"], seal(&["--facts", HEALTHY, "--gpus", "4"])["digest"]);
}

/// A sealed report is canonical JSON without its digest; a second program can say the same.
#[test]
fn python_computes_the_same_digest() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    fs::write(&path, text(&doctor(&["--facts", BROKEN, "--gpus", "8", "--format", "json"])))
        .unwrap();
    let script = "import hashlib,json,sys\n\
        report=json.load(open(sys.argv[1]))\n\
        said=report['seal'].pop('digest')\n\
        text=json.dumps(report,sort_keys=True,separators=(',',':'),ensure_ascii=False)\n\
        assert said=='sha256:'+hashlib.sha256(text.encode()).hexdigest()\n";
    let run = |path: &Path| {
        std::process::Command::new("python3").args(["-c", script]).arg(path).status().unwrap()
    };
    assert!(run(&path).success());
    let edited = fs::read_to_string(&path).unwrap().replace("\"blocked\"", "\"ready\"");
    fs::write(&path, edited).unwrap();
    assert!(!run(&path).success());
}
