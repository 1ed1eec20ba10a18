//! `qvl data lint` as a user runs it: exit codes, text and JSON.
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]

use std::{fs, path::Path};

use assert_cmd::Command;
use serde_json::{Value, json};

/// Writes one sample with that answer; its picture is `a.png` of the goldens.
fn write(folder: &Path, name: &str, answer: &str) {
    fs::copy("tests/goldens/a.png", folder.join("a.png")).unwrap();
    let question = format!("Picture 1: <img>a.png</img>\nFind <ref>{name}</ref>");
    let sample = json!([{"id": "x", "conversations": [
        {"from": "user", "value": question}, {"from": "assistant", "value": answer}]}]);
    fs::write(folder.join(name), sample.to_string()).unwrap();
}

/// Exit code, standard output and standard error of `qvl data lint` in a folder.
fn lint(folder: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qvl"));
    let output = command.args(["data", "lint"]).args(args).current_dir(folder).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_good_set_ends_with_0_and_a_bad_one_with_1() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "good.json", "<ref>it</ref><box>(1,2),(3,4)</box>");
    write(folder.path(), "bad.json", "<ref>it</ref><box>(1,2),(1280,4)</box>");
    let (code, out, _err) = lint(folder.path(), &["good.json"]);
    assert_eq!(code, 0);
    assert_eq!(out, "train good.json: 1 samples, 1 pictures, 1 boxes\nno problems found\n");
    let (code, out, _err) = lint(folder.path(), &["good.json", "bad.json"]);
    assert_eq!(code, 1);
    assert_eq!(
        out,
        "train good.json: 1 samples, 1 pictures, 1 boxes\n\
         train bad.json: 1 samples, 1 pictures, 1 boxes\n\
         BLOCK box-range: 1 found\n      \
         bad.json `x`: <box>(1,2),(1280,4)</box>\n      \
         hint: coordinates are thousandths of the picture, 0 to 999, not pixels\n"
    );
}

/// A warning alone does not block.
#[test]
fn json_names_rule_and_sample() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "train.json", "it");
    write(folder.path(), "eval.json", "it");
    let args = ["train.json", "--eval", "eval.json", "--format", "json", "--decode"];
    let (code, out, _err) = lint(folder.path(), &args);
    assert_eq!(code, 0);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["v"], 1);
    assert_eq!(report["files"][1]["purpose"], "eval");
    assert_eq!(report["counts"], json!({"picture-leak": 1}));
    assert_eq!(report["findings"][0]["rule"], "picture-leak");
    assert_eq!(report["findings"][0]["severity"], "warn");
    assert_eq!(report["findings"][0]["file"], "eval.json");
}

#[test]
fn wrong_use_ends_with_2() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "train.json", "it");
    assert_eq!(lint(folder.path(), &[]).0, 2);
    let (code, out, err) = lint(folder.path(), &["train.json", "--model", "."]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.starts_with("error: failed to read vocabulary `./qwen.tiktoken`"), "{err}");
    assert!(err.contains("\nhint: "), "{err}");
}
