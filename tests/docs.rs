//! Documents that repeat what the program knows are made from it, and this test keeps them current:
//!
//!     UPDATE_DOCS=1 cargo test --release --test docs
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{fmt::Write as _, fs, path::Path};

use assert_cmd::Command;
use qvl::{
    doctor::{
        KEYS, Label, Scope,
        xid::{self, Stance, XidAction},
    },
    wire::TrainerExit,
};

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
         its threshold comes from; [rules.md](rules.md) has all of it.\n\n```text\n{}\n```\n",
        said(&["doctor", "list"])
    );
    assert_current("docs/checks.md", &text);
}

#[test]
fn every_check_has_a_section() {
    let list: serde_json::Value =
        serde_json::from_str(&said(&["doctor", "list", "--format", "json"])).unwrap();
    let checks = list["checks"].as_array().unwrap();
    assert!(130 <= checks.len(), "{} checks", checks.len());
    let mut text = format!(
        "# What the {0} checks of the doctor mean\n\nMade from the rules; `qvl doctor explain ID` shows one of them, `qvl doctor list --format json` all. \
         A check that\nmay block and is unknown stops a launch, unless it says otherwise. Causes are those of [causes.md](causes.md).\n\n\
         Mutation score: {0} of {0}. Each check has one thing that is broken in a healthy fleet (`src/doctor/tests`), on which it fires, and no\n\
         other check does, but for two pairs: one node that uses MPS is warned of by itself too (mps-running beside mps-inconsistent), and the\n\
         official scripts on several GPUs are a drift of the batch (batch-lr-drift). With its facts unread each is unknown; batch-lr-drift and\n\
         data-unusable judge the job, which has no facts, and trainer-missing is about the file that cannot be read.\n",
        checks.len()
    );
    for check in checks {
        let field = |name: &str| check[name].as_str().unwrap();
        let causes: Vec<String> =
            check["causes"].as_array().unwrap().iter().map(ToString::to_string).collect();
        write!(
            text,
            "\n## {}\n\nWhat: {} ({}, {} at most).\n\n",
            field("id"),
            field("what"),
            field("area"),
            field("severity")
        )
        .unwrap();
        write!(
            text,
            "Why: {}\n\nRead from: {}.\n\nSource: {}.\n\nFix: {}.\n",
            field("why"),
            field("reads"),
            field("source"),
            field("fix")
        )
        .unwrap();
        if !causes.is_empty() {
            write!(text, "\nCauses: {}.\n", causes.join(", ")).unwrap();
        }
    }
    assert_current("docs/rules.md", &text);
}

#[test]
fn the_causes_are_those_of_the_table() {
    let mut text = "# Works on one GPU, fails on many: 42 causes\n\nMade from `src/doctor/data/causes.tsv`. Each check is proven by a fixture of its own name in `src/doctor/tests/mutations*.rs`:\n\
        on a healthy fleet with that one thing broken it fires, on the healthy fleet it is silent, and with its facts unread it is\nunknown.\n\n\
        | # | cause | how it shows | checks, and fixtures of these names | seen |\n|---|---|---|---|---|\n".to_owned();
    for cause in qvl::doctor::causes() {
        let checks: Vec<String> =
            cause.rules.iter().map(|id| format!("[{id}](rules.md#{id})")).collect();
        writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            cause.number,
            cause.what,
            cause.shows,
            checks.join(", "),
            cause.seen
        )
        .unwrap();
    }
    assert_current("docs/causes.md", &text);
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
fn the_keys_of_drift_are_those_of_the_source() {
    let mut text = format!(
        "# What is compared between nodes\n\nMade from the source. {} keys; [fleet.md](fleet.md) says how they are judged. \"otherwise\" is what a difference does when no\n\
         check fails because of it.\n\n\
         | key | seen by | otherwise | why | checks that make it fatal | source |\n|---|---|---|---|---|---|\n",
        KEYS.len()
    );
    for key in KEYS {
        let seen = match key.scope {
            Scope::Node => "agent, rank",
            Scope::Rank => "rank",
            Scope::Trainer => "who has the trainer",
        };
        let label = match key.otherwise {
            Label::Benign => "benign",
            Label::Slow => "slow",
            Label::Unknown => "unknown",
            Label::Fatal => "fatal",
        };
        let checks: Vec<String> =
            key.rules.iter().map(|id| format!("[{id}](rules.md#{id})")).collect();
        let (name, why, source) = (key.name, key.reason, key.source);
        writeln!(text, "| {name} | {seen} | {label} | {why} | {} | {source} |", checks.join(", "))
            .unwrap();
    }
    assert_current("docs/drift.md", &text);
}

/// The part of the page after its introduction is made from the table.
#[test]
fn the_errors_of_the_driver_are_those_of_the_table() {
    const BEGIN: &str = "## All codes\n";
    let page =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/xid.md")).unwrap();
    let introduction = page.split(BEGIN).next().unwrap();
    let mut text = format!(
        "{introduction}{BEGIN}\nMade from the table. In the last column: who says the same as `xid-seen`, in their own word, and who does\n\
         not.\n\n| code | name | meaning | NVIDIA: at once, then | most say | `xid-seen` | sources |\n|---|---|---|---|---|---|---|\n"
    );
    for line in xid::all() {
        let (verdict, stance) = match line.action {
            XidAction::Block => ("blocks", Stance::Stop),
            XidAction::BlockUnlessDecoded => ("blocks unless `Nonfatal`", Stance::Stop),
            XidAction::FollowAction => ("follows the action", Stance::Stop),
            XidAction::Warn => ("warns", Stance::Watch),
            XidAction::WarnUnused => ("warns: not in use", Stance::Watch),
            XidAction::WarnIfRemapPending => ("warns if a remap is pending", Stance::Watch),
            XidAction::InfoIfSympathetic => ("warns if alone", Stance::Watch),
            XidAction::InfoWarnIfThreeProcesses => ("warns at 3 processes a day", Stance::Watch),
            XidAction::Info => ("nothing", Stance::Ignore),
        };
        let (first, then) = (line.nvidia_action, line.nvidia_investigate);
        let name = line.mnemonic.replace('|', "/");
        let (code, meaning, others) = (line.xid, line.description, line.dissent(stance));
        let most = line.majority().map_or("-", Stance::name);
        writeln!(
            text,
            "| {code} | {name} | {meaning} | {first}, {then} | {most} | {verdict} | {others} |"
        )
        .unwrap();
    }
    assert_current("docs/xid.md", &text);
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
