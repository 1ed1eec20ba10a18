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

/// A folder with a small model, samples and a job on CPUs.
fn job_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::copy("tests/goldens/a.png", path("a.png")).unwrap();
    fs::create_dir(path("base")).unwrap();
    for entry in fs::read_dir("examples/digits/base").unwrap() {
        let file = entry.unwrap().path();
        fs::copy(&file, path("base").join(file.file_name().unwrap())).unwrap();
    }
    let sample = |i: usize| {
        serde_json::json!({"id": format!("s{i}"), "conversations": [
            {"from": "user", "value": format!("Picture 1: <img>a.png</img>\nFind <ref>{i}</ref>")},
            {"from": "assistant", "value": "<ref>6</ref><box>(1,2),(301,202)</box>"}]})
    };
    let samples: Vec<Value> = (0..8).map(sample).collect();
    fs::write(path("d.json"), serde_json::json!(samples).to_string()).unwrap();
    let job = "apiVersion: qvl.dev/v1alpha1
kind: FineTuneJob
metadata: {name: sealed}
spec:
  model: {path: base}
  data: {maxLength: 256, train: [{name: d, path: d.json, task: grounding}]}
  batch: {global: 4, unit: 2}
  stages: [{name: one, steps: 6}]
  world: {compute: cpu, threads: 1}
  output: out
";
    fs::write(path("job.yaml"), job).unwrap();
    folder
}

#[test]
fn a_launch_with_a_verdict_refuses_what_it_was_not_made_for() {
    let folder = job_folder();
    let qvl = |args: &[&str]| {
        let mut command = Command::cargo_bin("qvl").unwrap();
        command.args(args).current_dir(folder.path());
        command.env("XDG_STATE_HOME", folder.path().join("state")).env_remove("QVL_TRAIN_BIN");
        command.output().unwrap()
    };
    let report = text(&qvl(&["doctor", "--job", "job.yaml", "--format", "json"]));
    fs::write(folder.path().join("verdict.json"), &report).unwrap();
    let verdict: Value = serde_json::from_str(&report).unwrap();
    // A program that is no trainer: whatever is started ends at once.
    let launch = |args: &[&str]| {
        let common = ["launch", "job.yaml", "--local", "--overwrite", "--trainer", "/bin/false"];
        let output = qvl(&[&common, args].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), said)
    };
    let holds = "verdict `verdict.json` holds for this launch";
    let given = ["--verdict", "verdict.json"];
    let (_code, said) = launch(&given);
    if verdict["verdict"] == "ready" {
        assert!(said.contains(holds), "{said}");
    } else {
        assert!(said.contains("not `ready`"), "{said}");
    }
    let refused = |args: &[&str], words: &str| {
        let (code, said) = launch(&[&given, args].concat());
        assert_eq!(code, 1, "{said}");
        assert!(said.contains(words) && said.contains("hint: "), "{said}");
        assert!(!said.contains(holds), "{said}");
    };
    refused(&["--gpus", "2"], "it is about another job");
    refused(&["--verdict-max-age", "0s"], "s old, the limit is 0 s");
    let edited = report.replace("\"nodes\": [", "\"nodes\": [ \"another\",");
    fs::write(folder.path().join("verdict.json"), edited).unwrap();
    refused(&[], "it was changed after it was written");
    fs::write(folder.path().join("verdict.json"), "{}").unwrap();
    let (code, said) = launch(&given);
    assert!(code == 2 && said.contains("it is no report"), "{said}");
    let (code, said) = launch(&["--verdict", "missing.json"]);
    assert!(code == 2 && said.contains("failed to read verdict `missing.json`"), "{said}");
}
