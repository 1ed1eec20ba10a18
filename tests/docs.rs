//! Documents that repeat what the program knows are made from it, and this test keeps them current:
//!
//!     UPDATE_DOCS=1 cargo test --release --test docs
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use assert_cmd::Command;
use clap::{Parser as _, error::ErrorKind};
use qvl::{
    cli::Cli,
    doctor::{
        KEYS, Label, Scope,
        fix::{Kind, REPAIRS},
        xid::{self, Stance, XidAction},
    },
    wire::TrainerExit,
};
use serde_json::Value;

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

/// Folder of the pages of single checks.
const RULES: &str = "docs/rules";

/// All checks as the program lists them.
fn checks() -> Vec<Value> {
    let list: Value = serde_json::from_str(&said(&["doctor", "list", "--format", "json"])).unwrap();
    list["checks"].as_array().unwrap().clone()
}

fn field<'c>(check: &'c Value, name: &str) -> &'c str {
    check[name].as_str().unwrap()
}

/// Links to the causes that a check catches.
fn causes_of(check: &Value, page: &str) -> String {
    let causes = check["causes"].as_array().unwrap().iter();
    causes.map(|cause| format!("[{cause}]({page}#cause-{cause})")).collect::<Vec<_>>().join(", ")
}

#[test]
fn every_check_is_in_the_index() {
    let checks = checks();
    assert!(130 <= checks.len(), "{} checks", checks.len());
    let mut text = format!(
        "# The {0} checks of the doctor\n\nMade from the rules; each has a page of its own. `qvl doctor explain ID` shows one of them, \
         `qvl doctor list --format json` all.\nA check that may block and is unknown stops a launch, unless its page says otherwise. Causes \
         are those of [causes.md](causes.md).\n\n\
         Mutation score: {0} of {0}. Each check has one thing that is broken in a healthy fleet (`src/doctor/tests`), on which it fires, and no\n\
         other check does, but for two pairs: one node that uses MPS is warned of by itself too (mps-running beside mps-inconsistent), and the\n\
         official scripts on several GPUs are a drift of the batch (batch-lr-drift). With its facts unread each is unknown; batch-lr-drift,\n\
         data-unusable and pod-shm-small judge the job, which has no facts, and trainer-missing is about the file that cannot be read.\n\n\
         | check | area | at most | what | causes |\n|---|---|---|---|---|\n",
        checks.len()
    );
    for check in &checks {
        let (id, area) = (field(check, "id"), field(check, "area"));
        let (severity, what) = (field(check, "severity"), field(check, "what").replace('|', "\\|"));
        let causes = causes_of(check, "causes.md");
        // Links to sections of this page are older than the pages.
        writeln!(
            text,
            "| <a id=\"{id}\"></a>[{id}](rules/{id}.md) | {area} | {severity} | {what} | {causes} |"
        )
        .unwrap();
    }
    assert_current("docs/rules.md", &text);
}

#[test]
fn every_check_has_a_page_and_no_page_is_left_of_a_check_that_is_gone() {
    let checks = checks();
    fs::create_dir_all(RULES).unwrap();
    for check in &checks {
        let path = format!("{RULES}/{}.md", field(check, "id"));
        assert_current(&path, &page_of(check));
    }
    let mut wanted: Vec<String> =
        checks.iter().map(|check| format!("{}.md", field(check, "id"))).collect();
    let entries = fs::read_dir(RULES).unwrap().map(|entry| entry.unwrap().file_name());
    let mut found: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
    wanted.sort();
    found.sort();
    assert_eq!(found, wanted, "remove the pages of {RULES} that have no check");
}

fn page_of(check: &Value) -> String {
    let of = |name: &str| field(check, name);
    let unknown = if check["needed"] == true {
        "When it is unknown, a launch stops."
    } else {
        "When it is unknown, that is reported, and a launch goes on."
    };
    let mut text = format!(
        "# {}\n\n{}: {} at most. {unknown}\n",
        of("id"),
        capital(of("area")),
        of("severity")
    );
    let parts = [
        ("What", "what"),
        ("Why it breaks", "why"),
        ("How it is read", "reads"),
        ("Source", "source"),
        ("Fix", "fix"),
    ];
    for (heading, name) in parts {
        write!(text, "\n## {heading}\n\n{}.\n", capital(of(name).trim_end_matches('.'))).unwrap();
    }
    let causes = causes_of(check, "../causes.md");
    if !causes.is_empty() {
        write!(text, "\n## Causes that it catches\n\n{causes}.\n").unwrap();
    }
    text + "\n[All checks](../rules.md)\n"
}

/// A sentence begins with a capital letter, unless it begins with a name such as `/proc/meminfo`,
/// `nvmlInit_v2` or an address.
fn capital(text: &str) -> String {
    let first = text.split([' ', ',', ':']).next().unwrap_or_default();
    let is_word =
        first.chars().all(|c| c.is_ascii_lowercase() || c == '-' || c == ';' || c == '\'');
    let mut letters = text.chars();
    match letters.next() {
        Some(letter) if is_word && !text.contains("://") => {
            letter.to_uppercase().chain(letters).collect()
        }
        Some(_) | None => text.to_owned(),
    }
}

#[test]
fn the_causes_are_those_of_the_table() {
    let mut text = "# Works on one GPU, fails on many: 42 causes\n\nMade from `src/doctor/data/causes.tsv`. Each check is proven by a fixture of its own name in `src/doctor/tests/mutations*.rs`:\n\
        on a healthy fleet with that one thing broken it fires, on the healthy fleet it is silent, and with its facts unread it is\nunknown.\n\n\
        | # | cause | how it shows | checks, and fixtures of these names | seen |\n|---|---|---|---|---|\n".to_owned();
    for cause in qvl::doctor::causes() {
        let checks: Vec<String> =
            cause.rules.iter().map(|id| format!("[{id}](rules/{id}.md)")).collect();
        writeln!(
            text,
            "| <a id=\"cause-{0}\"></a>{0} | {1} | {2} | {3} | {4} |",
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
fn the_repairs_are_those_of_the_source() {
    let mut text = format!(
        "# Repairs\n\nMade from the source: what `qvl doctor --fix` can repair, {} checks. [doctor.md](doctor.md) says how.\n\n\
         ## Kinds\n\n| kind | is made by | lasts, without an undo |\n|---|---|---|\n",
        REPAIRS.len()
    );
    for kind in Kind::ALL {
        writeln!(text, "| {} | {} | {} |", kind.name(), kind.how(), kind.lasts()).unwrap();
    }
    text += "\n## Checks\n\n| check | repair | kind |\n|---|---|---|\n";
    for repair in REPAIRS {
        let kinds: Vec<&str> = repair.kinds.iter().map(|kind| kind.name()).collect();
        let (rule, what) = (repair.rule, repair.what);
        writeln!(text, "| [{rule}](rules.md#{rule}) | {what} | {} |", kinds.join(", ")).unwrap();
    }
    assert_current("docs/repairs.md", &text);
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
            key.rules.iter().map(|id| format!("[{id}](rules/{id}.md)")).collect();
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
fn commands_of_the_documents_are_understood() {
    let (mut count, mut wrong) = (0, Vec::new());
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for command in commands(&text) {
            count += 1;
            let words = command.split_whitespace().filter(|word| *word != "...");
            let Err(error) = Cli::try_parse_from(words) else { continue };
            // A page may name a command without all that it needs, and values by their names.
            let unfinished = matches!(
                error.kind(),
                ErrorKind::MissingRequiredArgument
                    | ErrorKind::MissingSubcommand
                    | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                    | ErrorKind::DisplayHelp
                    | ErrorKind::DisplayVersion
            );
            if !unfinished {
                let first = error.to_string().lines().next().unwrap_or_default().to_owned();
                wrong.push(format!("{}: `{command}`: {first}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(60 < count, "{count} commands were found");
}

/// Calls of qvl in a page: in a line of code, or between backticks in a text.
fn commands(text: &str) -> Vec<&str> {
    let lines = text.lines().filter(|line| line.starts_with("    ")).map(str::trim);
    let spans = text.split('`').skip(1).step_by(2).filter(|span| !span.contains('\n'));
    let calls = lines.chain(spans).filter(|call| call.starts_with("qvl "));
    // What follows a call is the shell's, or a remark.
    let ends = ["  #", " #", " |", "\\|", "|", ";", " &&", " \\", " >"];
    let end = |call: &str| ends.iter().filter_map(|end| call.find(end)).min();
    calls.map(|call| call[..end(call).unwrap_or(call.len())].trim()).collect()
}

fn pages() -> Vec<PathBuf> {
    let mut pages =
        vec![Path::new("README.md").to_owned(), Path::new("CONTRIBUTING.md").to_owned()];
    for folder in ["docs", "docs/decisions", RULES, "examples/digits"] {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        pages.extend(entries.filter(|path| path.extension().is_some_and(|ext| ext == "md")));
    }
    pages
}

#[test]
fn links_between_documents_lead_somewhere() {
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.contains("://") {
                continue;
            }
            let (file, section) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { page.with_file_name(file) };
            assert!(target.exists(), "{}: `{link}` does not exist", page.display());
            let there = section.is_empty() || sections(&target).iter().any(|name| name == section);
            assert!(there, "{}: `{link}` has no such section", page.display());
        }
    }
}

/// Names that a link to a page may end in: its headings as GitHub writes them, and marked places.
fn sections(page: &Path) -> Vec<String> {
    let text = fs::read_to_string(page).unwrap();
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let slug = |line: &str| {
        let words = line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        words.chars().filter(|c| c.is_alphanumeric() || *c == '-' || *c == '_').collect()
    };
    let marks =
        text.split("<a id=\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned());
    headings.map(slug).chain(marks).collect()
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
