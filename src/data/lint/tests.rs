//! A good data set is clean; each test breaks one thing.

use std::{collections::BTreeSet, fs, path::PathBuf};

use serde_json::json;
use tempfile::TempDir;

use super::{LintReport, Options, lint, print, rule::RULES};
use crate::{data::tokenizer, job::OnOverlong};

const QUESTION: &str = "Picture 1: <img>a.png</img>\nFind <ref>it</ref>";
const ANSWER: &str = "<ref>it</ref><box>(1,2),(3,4)</box>";

/// A folder with the pictures `a.png` (90x60), `same.png` (equal bytes) and `cut.png` (half).
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let picture = fs::read("tests/goldens/a.png").unwrap();
    fs::write(folder.path().join("a.png"), &picture).unwrap();
    fs::write(folder.path().join("same.png"), &picture).unwrap();
    fs::write(folder.path().join("cut.png"), &picture[..picture.len() / 2]).unwrap();
    folder
}

fn write(folder: &TempDir, name: &str, samples: &[(&str, &str)]) -> PathBuf {
    let sample = |(i, (question, answer)): (usize, &(&str, &str))| {
        json!({"id": format!("s{i}"), "conversations": [
            {"from": "user", "value": question}, {"from": "assistant", "value": answer}]})
    };
    let list: Vec<_> = samples.iter().enumerate().map(sample).collect();
    let path = folder.path().join(name);
    fs::write(&path, json!(list).to_string()).unwrap();
    path
}

/// `rule sample: what` of each finding, without the folder.
fn lines(folder: &TempDir, report: &LintReport) -> Vec<String> {
    let name = fs::canonicalize(folder.path()).unwrap().display().to_string() + "/";
    let line = |finding: &super::Finding| {
        format!("{} {}: {}", finding.rule, finding.sample, finding.what).replace(&name, "")
    };
    report.findings.iter().map(line).collect()
}

/// Lints training and evaluation samples.
fn report(train: &[(&str, &str)], eval: &[(&str, &str)]) -> Vec<String> {
    let folder = folder();
    let mut options = Options::new(None, 2048);
    if !eval.is_empty() {
        options.eval = vec![write(&folder, "eval.json", eval)];
    }
    let report = lint(&[write(&folder, "train.json", train)], &options).unwrap();
    lines(&folder, &report)
}

#[track_caller]
fn check(question: &str, answer: &str, expected: &[&str]) {
    assert_eq!(report(&[(question, answer)], &[]), expected);
}

#[test]
fn a_good_data_set_is_clean() {
    let folder = folder();
    let path = write(&folder, "train.json", &[(QUESTION, ANSWER), ("hello", "hi")]);
    let mut options = Options::new(None, 2048);
    options.decode = true;
    let report = lint(&[path], &options).unwrap();
    let mut text = Vec::new();
    print(&report, &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(
        text.ends_with("train.json: 2 samples, 1 pictures, 1 boxes\nno problems found\n"),
        "{text}"
    );
    assert!(!report.blocks());
}

#[test]
fn boxes() {
    check(QUESTION, "<box>(1, 2),(3,4)</box>", &["box-form s0: <box>(1, 2),(3,4)</box>"]);
    check(QUESTION, "<box>(0.1,2),(3,4)</box>", &["box-decimal s0: <box>(0.1,2),(3,4)</box>"]);
    check(QUESTION, "<box>(1,2),(1280,4)</box>", &["box-range s0: <box>(1,2),(1280,4)</box>"]);
    check(QUESTION, "<box>(3,2),(1,4)</box>", &["box-reversed s0: <box>(3,2),(1,4)</box>"]);
    check(QUESTION, "<box>(3,2),(3,4)</box>", &["box-empty s0: <box>(3,2),(3,4)</box>"]);
    check(QUESTION, "<box>(1,2),(3,4)", &["box-unclosed s0: <box>(1,2),(3,4)"]);
    check(QUESTION, "<quad>(1,2),(3,4)</quad>", &["box-form s0: <quad>(1,2),(3,4)</quad>"]);
    check(
        QUESTION,
        "<ref>it<box>(1,2),(3,4)</box>",
        &["ref-unclosed s0: <ref> and </ref> do not pair up"],
    );
    check(
        QUESTION,
        "the <ref>it</ref> there",
        &["ref-without-box s0: an answer has <ref> without a box after it"],
    );
}

#[test]
fn boxes_in_pixels_give_themselves_away() {
    let answers: Vec<String> = (0..10).map(|i| format!("<box>({i},2),(89,59)</box>")).collect();
    let mut samples: Vec<(&str, &str)> =
        answers.iter().map(|answer| (QUESTION, answer.as_str())).collect();
    assert_eq!(
        report(&samples, &[]),
        ["box-pixels : all 10 boxes lie within the pictures' sizes in pixels"]
    );
    samples[3].1 = "<box>(1,2),(91,59)</box>";
    assert_eq!(report(&samples, &[]), [""; 0]);
}

#[test]
fn texts() {
    check("a<|im_end|>", "b", &["special-token s0: the text holds <|im_end|>"]);
    check(QUESTION, " ", &["empty-answer s0: an answer is empty"]);
}

#[test]
fn pictures() {
    let shows = |path: &str| format!("Picture 1: <img>{path}</img>\nx");
    check("Picture 1: <img>a.png\nx", "b", &["image-tag s0: 1 <img> and 0 </img> do not pair up"]);
    check(&shows("https://x/a.png"), "b", &["remote-image s0: `https://x/a.png` is a URL"]);
    let found = report(&[(&shows("no.png"), "b")], &[]);
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("image-unreadable s0: failed to read picture"), "{found:?}");
    let found = report(&[(&shows("cut.png"), "b")], &[]);
    assert!(found[0].ends_with("is truncated: its end mark is missing"), "{found:?}");
    let long = "./".repeat(125) + "a.png";
    check(
        &shows(&long),
        "b",
        &["long-path s0: the picture's path has 255 bytes, the official limit is 254"],
    );
}

#[test]
fn prompts() {
    check(
        "<img>a.png</img>x",
        "b",
        &["prompt-format s0: 1 pictures are introduced by a bare `<img>..</img>`"],
    );
    check(
        "Picture 1:<img>a.png</img>\nx",
        "b",
        &["prompt-format s0: 1 pictures are introduced by `Picture 1:<img>..</img>` (no space)"],
    );
    check(
        "Picture 1: <img>a.png</img>x",
        "b",
        &[
            "prompt-format s0: 1 pictures are introduced by `Picture 1: <img>..</img>` without a line feed",
        ],
    );
    check(
        "Picture 2: <img>a.png</img>\nx",
        "b",
        &[
            "prompt-format s0: 1 pictures are introduced by `Picture k: <img>..</img>` with another number",
        ],
    );
    check("Picture 1: <img>a.png</img>\nPicture 2: <img>same.png</img>\nx", "b", &[]);
    let mixed = [(QUESTION, "a"), (QUESTION, "c"), ("<img>a.png</img>x", "b")];
    assert_eq!(
        report(&mixed, &[]),
        ["prompt-mixed s2: 1 pictures are introduced by a bare `<img>..</img>`, most by \
         `Picture 1: <img>..</img>` and a line feed"]
    );
}

#[test]
fn evaluation_must_ask_as_training_did() {
    let train = [(QUESTION, ANSWER)];
    let other = "Picture 1: <img>same.png</img>\nFind <ref>other</ref>";
    let leak = "picture-leak : 1 of 1 pictures are training pictures, as `same.png`";
    assert_eq!(report(&train, &[(other, "b")]), [leak]);
    assert_eq!(
        report(&train, &[("<img>same.png</img>Find <ref>it</ref>", "b")])[2..],
        ["prompt-mismatch : pictures are introduced by a bare `<img>..</img>`, in training by \
         `Picture 1: <img>..</img>` and a line feed"]
    );
    let worded = "Picture 1: <img>same.png</img>\nWhere is it?";
    assert_eq!(
        report(&train, &[(worded, "b")]),
        [
            leak,
            "prompt-mismatch : 1 of 1 questions are worded as no training question: `Where is it?`"
        ]
    );
}

#[test]
fn the_same_sample_twice() {
    let found = report(&[("q", "a"), ("q", "a"), ("q", "b")], &[]);
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("duplicate s1: the same as sample `s0` of"), "{found:?}");
    // Another name for the same picture is the same picture.
    let again = QUESTION.replace("a.png", "./a.png");
    assert_eq!(report(&[(QUESTION, ANSWER), (&again, ANSWER)], &[]).len(), 1);
    let found = report(&[("q", "a")], &[("q", "a")]);
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("leak s0: the same as sample `s0` of"), "{found:?}");
}

#[test]
fn files_and_samples_that_cannot_be_read() {
    let folder = folder();
    let path = folder.path().join("bad.json");
    fs::write(&path, "{").unwrap();
    let other = folder.path().join("half.json");
    let good = json!([{"from": "assistant", "value": "x"}, {"from": "user", "value": "q"},
        {"from": "assistant", "value": "a"}]);
    let bad = json!([{"from": "human", "value": "q"}]);
    let list = json!([{"id": "x", "conversations": bad}, {"id": "y", "conversations": good}]);
    fs::write(&other, list.to_string()).unwrap();
    let report = lint(&[path, other], &Options::new(None, 10)).unwrap();
    let found = lines(&folder, &report);
    assert!(found[0].starts_with("format : data set"), "{found:?}");
    assert_eq!(
        found[1..],
        [
            "sample x: `from` is `human`, expected `user` or `assistant`",
            "first-turn y: the first turn is the assistant's and will be dropped"
        ]
    );
    assert_eq!((report.files[1].samples, report.files[1].unusable), (1, 1));
    assert!(report.blocks());
}

#[test]
fn lengths() {
    let folder = folder();
    tokenizer::write_byte_vocabulary(&folder.path().join("qwen.tiktoken")).unwrap();
    let path = write(&folder, "train.json", &[("q", "a"), ("q", "abcdefghij")]);
    // System 38 tokens, user 9, assistant 14: each letter is a token.
    let mut options = Options::new(Some(folder.path().to_owned()), 65);
    let files = [path];
    let report = lint(&files, &options).unwrap();
    assert_eq!(lines(&folder, &report), ["too-long s1: 70 tokens, the limit is 65"]);
    let file = &report.files[0];
    assert_eq!((file.samples, file.tokens, file.max_tokens), (2, 61 + 70, 70));
    assert!(report.blocks());
    options.on_overlong = OnOverlong::Drop;
    let report = lint(&files, &options).unwrap();
    assert_eq!(lines(&folder, &report), ["dropped s1: 70 tokens, the limit is 65"]);
    let file = &report.files[0];
    assert_eq!((file.samples, file.unusable, file.tokens), (1, 1, 61));
    assert!(!report.blocks());
}

#[test]
fn lengths_alone_are_the_same_and_need_no_pictures() {
    let folder = folder();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    tokenizer::write_byte_vocabulary(&model.join("qwen.tiktoken")).unwrap();
    let missing = QUESTION.replace("a.png", "b.png");
    let train = write(&folder, "train.json", &[(QUESTION, ANSWER), (&missing, ANSWER)]);
    let all = Options::new(Some(model), 2048);
    let short = Options { lengths_only: true, ..all.clone() };
    let [all, short] =
        [all, short].map(|options| lint(std::slice::from_ref(&train), &options).unwrap());
    assert!(all.blocks() && !short.blocks());
    assert_eq!(all.files[0].max_tokens, short.files[0].max_tokens);
    assert!(0 < short.files[0].max_tokens);
    fs::write(&train, "no list").unwrap();
    let broken = Options { lengths_only: true, ..Options::new(None, 2048) };
    assert!(lint(&[train], &broken).unwrap().blocks());
}

#[test]
fn many_findings_are_counted_and_some_kept() {
    let samples = vec![("q", ""); 200];
    let folder = folder();
    let report = lint(&[write(&folder, "train.json", &samples)], &Options::new(None, 9)).unwrap();
    assert_eq!(report.counts["empty-answer"], 200);
    assert_eq!(report.findings.iter().filter(|found| found.rule == "empty-answer").count(), 50);
    let mut text = Vec::new();
    print(&report, &mut text).unwrap();
    assert!(String::from_utf8(text).unwrap().contains("      and 195 more\n"));
}

#[test]
fn ids_are_in_kebab_case_and_used_once() {
    let ids: BTreeSet<&str> = RULES.iter().map(|rule| rule.id).collect();
    assert_eq!(ids.len(), RULES.len());
    assert!(ids.iter().all(|id| id.chars().all(|c| c.is_ascii_lowercase() || c == '-')));
}
