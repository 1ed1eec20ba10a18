//! Documents that repeat what the program knows are made from it, and this test keeps them current:
//!
//!     UPDATE_DOCS=1 cargo test --release --test docs
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{fmt::Write as _, fs, path::Path};

use assert_cmd::Command;
use qvl::wire::TrainerExit;

#[test]
fn the_job_format_is_described_as_the_program_describes_it() {
    let text = format!(
        "# The job file\n\nA job is one YAML file. `qvl explain job spec.optimizer` shows a part of this page, `qvl schema job`\n\
         the JSON Schema for editors. A field that is not listed here is an error.\n\n```text\n{}\n```\n",
        said(&["explain", "job"])
    );
    assert_current("docs/job.md", &text);
}

#[test]
fn the_checks_are_listed_as_the_program_lists_them() {
    let text = format!(
        "# Checks of the doctor\n\nIds are stable and never reused. `qvl doctor explain ID` says what a check is, why it matters, and where\n\
         its threshold comes from.\n\n```text\n{}\n```\n",
        said(&["doctor", "list"])
    );
    assert_current("docs/checks.md", &text);
}

#[test]
fn the_exit_codes_are_those_of_the_source() {
    let source = fs::read_to_string("src/wire/exit.rs").unwrap();
    let mut text = "# Exit codes\n\n## qvl\n\n| code | meaning |\n|---|---|\n".to_owned();
    for (name, meaning) in variants(&source, "ExitStatus") {
        let arm = format!("ExitStatus::{name} => ");
        let code = source.split(&arm).nth(1).unwrap().split(',').next().unwrap();
        writeln!(text, "| {code} | {meaning} |").unwrap();
    }
    text += "\n## qvl-train\n\nThe supervisor decides by them whether to restart. \"Permanent\": a restart cannot help, the input \
             has to change.\n\n| code | meaning | permanent |\n|---|---|---|\n";
    for (_name, meaning) in variants(&source, "TrainerExit") {
        let (code, meaning) = meaning.split_once(": ").unwrap();
        let exit = TrainerExit::from_code(code.parse().unwrap()).unwrap();
        let permanent = if exit.is_permanent() { "yes" } else { "" };
        writeln!(text, "| {code} | {meaning} | {permanent} |").unwrap();
    }
    text += "\nA rank that a signal ended has no code; `qvl status` names the signal.\n";
    assert_current("docs/exit-codes.md", &text);
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut pages =
        vec![Path::new("README.md").to_owned(), Path::new("CONTRIBUTING.md").to_owned()];
    for folder in ["docs", "docs/decisions", "examples/digits"] {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        pages.extend(entries.filter(|path| path.extension().is_some_and(|ext| ext == "md")));
    }
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            let link = link.split('#').next().unwrap();
            let there =
                link.is_empty() || link.contains("://") || page.with_file_name(link).exists();
            assert!(there, "{}: `{link}` does not exist", page.display());
        }
    }
}

/// What `qvl` prints, without blanks at line ends.
fn said(args: &[&str]) -> String {
    let output = Command::cargo_bin("qvl").unwrap().args(args).assert().success();
    let text = String::from_utf8(output.get_output().stdout.clone()).unwrap();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n").trim_end().to_owned()
}

/// Variants of an enum with their documentation in one line.
fn variants(source: &str, name: &str) -> Vec<(String, String)> {
    let body = source.split(&format!("pub enum {name} {{")).nth(1).unwrap();
    let body = body.split("\n}").next().unwrap();
    let (mut variants, mut docs) = (Vec::new(), Vec::new());
    for line in body.lines().map(str::trim) {
        match line.strip_prefix("/// ") {
            Some(doc) => docs.push(doc),
            None if line.is_empty() => {}
            None => {
                let meaning = docs.join(" ").trim_end_matches('.').to_owned();
                variants.push((line.trim_end_matches(',').to_owned(), meaning));
                docs.clear();
            }
        }
    }
    variants
}

#[track_caller]
fn assert_current(path: &str, text: &str) {
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(path, text).unwrap();
    }
    let found = fs::read_to_string(path).unwrap_or_default();
    assert!(found == text, "{path} is old; run: UPDATE_DOCS=1 cargo test --release --test docs");
}
