//! The shape of the repository is a test, so that a forbidden import fails `cargo test`.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Each module and the modules it may import. Anything else is an error; nobody imports `train`.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("facts", &["wire"]),
    ("job", &[]),
    ("wire", &[]),
    ("locate", &[]),
    ("tls", &[]),
    ("data", &["job"]),
    ("doctor", &["facts", "job", "locate", "wire"]),
    ("report", &["doctor", "facts", "job"]),
    ("probe", &["facts", "locate", "wire"]),
    ("repair", &["doctor", "probe"]),
    ("telemetry", &["wire"]),
    ("launch", &["data", "doctor", "facts", "job", "telemetry", "wire"]),
    ("api", &["job", "wire"]),
    ("logs", &["tls", "wire"]),
    ("operator", &["api", "job", "launch", "locate", "logs", "tls", "wire"]),
    (
        "agent",
        &["api", "doctor", "facts", "job", "launch", "logs", "probe", "report", "tls", "wire"],
    ),
    ("train", &["data", "job", "telemetry", "wire"]),
    (
        "cli",
        &[
            "agent",
            "api",
            "data",
            "doctor",
            "facts",
            "job",
            "launch",
            "logs",
            "operator",
            "probe",
            "repair",
            "report",
            "telemetry",
            "tls",
            "wire",
        ],
    ),
];

/// Modules that do no I/O, whole; each denies in its root what clippy.toml lists.
const PURE_MODULES: &[&str] = &["api", "facts", "job", "locate", "wire", "doctor", "report"];

/// Files and folders of other modules that do no I/O either.
const PURE_FILES: &[&str] = &[
    "src/agent/node/judge.rs",
    "src/agent/node/metrics.rs",
    "src/cli/doctor/parity/judge.rs",
    "src/cli/cluster/events.rs",
    "src/cli/cluster/explain.rs",
    "src/cli/cluster/explain/containers.rs",
    "src/cli/cluster/place.rs",
    "src/cli/cluster/plan.rs",
    "src/cli/cluster/quantity.rs",
    "src/cli/cluster/record.rs",
    "src/cli/cluster/redact.rs",
    "src/cli/cluster/rooms.rs",
    "src/cli/cluster/seen.rs",
    "src/cli/cluster/status.rs",
    "src/cli/cluster/table.rs",
    "src/cli/cluster/tar.rs",
    "src/cli/cluster/top.rs",
    "src/cli/cluster/trouble.rs",
    "src/data/boxes.rs",
    "src/data/chatml",
    "src/launch/ladder.rs",
    "src/launch/pulse.rs",
    "src/repair/journal.rs",
    "src/logs/merge.rs",
    "src/logs/segment.rs",
    "src/operator/gang",
    "src/operator/gang.rs",
    "src/operator/build",
    "src/operator/build.rs",
    "src/operator/conditions.rs",
    "src/operator/decide.rs",
    "src/operator/news.rs",
    "src/operator/observed.rs",
    "src/operator/outcome.rs",
    "src/operator/plan",
    "src/operator/plan.rs",
    "src/operator/progress.rs",
    "src/operator/status.rs",
    "src/telemetry/stats.rs",
    "src/tls/certificate.rs",
    "src/train/order.rs",
];

/// What a pure file may not name, by path prefix. `clippy.toml` adds what only a type checker
/// sees: the clock, and methods such as `Path::exists`.
const IO: &[(&str, &[&str])] = &[
    ("std::", &["env", "fs", "net", "os", "thread"]),
    ("std::io::", &["stdin", "stdout", "stderr"]),
    ("std::process::", &["Command", "Stdio", "exit", "id", "abort"]),
    ("tokio::", &["fs", "net", "process", "spawn", "task", "time"]),
    ("kube::", &["Api", "Client"]),
    ("image::", &["open"]),
];

/// Crates whose purpose is the outside world: a pure file names none of them.
const IO_CRATES: &[&str] = &[
    "anstream",
    "axum",
    "indicatif",
    "libloading",
    "nix",
    "nvml_wrapper",
    "reqwest",
    "signal_hook",
    "tempfile",
    "tokio_rustls",
];

/// Files that may hold `unsafe`, each with the reason. The lint `unsafe_code` is denied elsewhere.
const UNSAFE: &[(&str, &str)] = &[
    ("src/probe", "libcuda is opened at run time"),
    ("src/train/collective/nccl.rs", "device pointers are given to NCCL"),
    ("src/train/gputest/driver.rs", "libcuda is opened at run time"),
    ("src/train/memory.rs", "mallopt and madvise have no safe interface"),
    ("src/train/weights.rs", "weights are mapped into memory"),
    ("tests/killer", "functions of the C library, with a death before them"),
    ("tests/robustness/seccomp.rs", "a filter is set between fork and exec"),
    ("tests/simgpu", "a C library whose callers are C programs"),
];

/// A source file is at most this long, unless it is listed with its reason.
const LONGEST: usize = 400;
const LONG: &[(&str, &str)] = &[
    ("src/job/spec.rs", "the job format, most of it documentation"),
    ("src/operator/gang/tests.rs", "one story of a gang after another"),
    ("src/train/adapter.rs", "the adapter format with its errors and their tests"),
    ("src/train/checkpoint/tests.rs", "one scenario of a crash after another"),
    ("src/train/collective/tcp.rs", "the protocol of a group with its tests"),
    ("src/train/collective/tcp/group.rs", "one group in all its operations"),
    ("src/train/collective/tests.rs", "one scenario of failing peers after another"),
    ("src/train/model/mod.rs", "the model's forward and backward in one place"),
    ("src/train/reduce.rs", "the tree, its proof by tests beside it"),
    ("src/train/run.rs", "the loop of a rank from top to bottom"),
    ("src/train/selftest/golden.rs", "one comparison per tolerance layer"),
    ("tests/architecture.rs", "the tables are the shape of the repository"),
    ("tests/logs.rs", "the log contract from every side, with one collector"),
    ("tests/pods/bench.rs", "cluster, job, broker, collector and supervisor of these tests"),
    ("tests/simgpu/src/scenario.rs", "the scenario format, most of it documentation"),
];

#[test]
fn modules_import_only_what_they_may() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_IMPORT.iter().copied().collect();
    let mut errors = Vec::new();
    for (path, text) in sources(&["src"]) {
        let Some(from) = module_of(&path) else { continue };
        let Some(may) = allowed.get(from) else {
            errors.push(format!("{}: module `{from}` is not in MAY_IMPORT", path.display()));
            continue;
        };
        let mut targets = targets(&text, "crate::");
        if is_module_root(&path) {
            // Here `super` is the crate; `super::*` in a test module stays inside.
            targets.extend(crate_modules(&text, &allowed));
        }
        for to in targets {
            if to != from && !may.contains(&to) {
                errors.push(format!("{}: `{from}` may not import `{to}`", path.display()));
            }
        }
        if text.contains("super::super") {
            errors.push(format!("{}: write `crate::` for `super::super`", path.display()));
        }
    }
    assert!(errors.is_empty(), "{}", errors.join("\n"));
}

#[test]
fn pure_files_name_no_io() {
    let folders: Vec<PathBuf> =
        PURE_MODULES.iter().map(|name| Path::new("src").join(name)).collect();
    let pure = |path: &Path| {
        folders.iter().any(|folder| path.starts_with(folder))
            || PURE_FILES.iter().any(|pure| path.starts_with(pure))
    };
    let mut errors = Vec::new();
    for (path, text) in sources(&["src"]).into_iter().filter(|(path, _text)| pure(path)) {
        // A test may read its fixture.
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for (root, names) in IO {
            for name in targets(text, root).into_iter().filter(|name| names.contains(name)) {
                errors.push(format!("{}: pure file names `{root}{name}`", path.display()));
            }
        }
        for name in IO_CRATES.iter().filter(|name| names_crate(text, name)) {
            errors.push(format!("{}: pure file names the crate `{name}`", path.display()));
        }
    }
    assert!(errors.is_empty(), "{}", errors.join("\n"));
}

#[test]
fn pure_modules_deny_what_clippy_lists() {
    let deny = "#![deny(clippy::disallowed_methods, clippy::disallowed_types)]";
    for name in PURE_MODULES {
        let root = Path::new("src").join(name).join("mod.rs");
        let text = fs::read_to_string(&root).unwrap();
        assert!(text.contains(deny), "{}: `{deny}` is missing", root.display());
    }
    for path in PURE_FILES {
        assert!(Path::new(path).exists(), "PURE_FILES names `{path}`, which does not exist");
    }
}

#[test]
fn every_module_is_in_the_code_map() {
    let map = fs::read_to_string("src/lib.rs").unwrap();
    for (name, _may) in MAY_IMPORT {
        assert!(
            map.contains(&format!("`{name}`")),
            "src/lib.rs: module `{name}` is not in the map"
        );
        assert!(map.contains(&format!("pub mod {name};")), "src/lib.rs declares no `{name}`");
    }
}

#[test]
fn unsafe_code_stands_only_where_it_must() {
    let mut errors = Vec::new();
    for (path, text) in sources(&["src", "tests", "examples", "benches"]) {
        let listed = UNSAFE.iter().any(|(place, _why)| path.starts_with(place));
        let uses = ["unsafe {", "unsafe fn ", "unsafe impl ", "unsafe extern "];
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let found = code.filter(|line| uses.iter().any(|word| line.contains(word))).count();
        if 0 < found && !listed && !path.ends_with("architecture.rs") {
            errors.push(path.display().to_string());
        }
    }
    assert!(errors.is_empty(), "unsafe code outside of the list:\n{}", errors.join("\n"));
}

#[test]
fn files_are_short() {
    let mut errors = Vec::new();
    for (path, text) in sources(&["src", "tests", "examples", "benches"]) {
        let lines = text.lines().count();
        let excused = LONG.iter().any(|(long, _why)| path == Path::new(long));
        if LONGEST < lines && !excused {
            errors.push(format!("{}: {lines} lines", path.display()));
        }
    }
    for (path, _why) in LONG {
        assert!(Path::new(path).exists(), "LONG names `{path}`, which does not exist");
    }
    assert!(errors.is_empty(), "split these, or list them with a reason:\n{}", errors.join("\n"));
}

#[test]
fn no_test_is_switched_off_and_nothing_is_left_to_do() {
    // Written in two parts, so that this file does not find itself.
    let words = [
        concat!("#[ig", "nore"),
        concat!("#[should", "_panic"),
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("unimplemented", "!("),
    ];
    assert_absent(&words);
}

#[test]
fn no_text_names_a_machine_of_its_authors() {
    let words = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("BEGIN ", "PRIVATE KEY"),
        concat!("BEGIN ", "RSA PRIVATE KEY"),
    ];
    assert_absent(&words);
}

#[test]
fn dependencies_come_from_the_default_registry() {
    let lock = fs::read_to_string("Cargo.lock").unwrap();
    for line in lock.lines().filter(|line| line.starts_with("source = ")) {
        let expected = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";
        assert_eq!(line, expected, "Cargo.lock");
    }
}

#[track_caller]
fn assert_absent(words: &[&str]) {
    let mut errors = Vec::new();
    for path in all_files() {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (i, line) in text.lines().enumerate() {
            for word in words.iter().filter(|word| line.contains(**word)) {
                errors.push(format!("{}:{}: `{word}`", path.display(), i + 1));
            }
        }
    }
    assert!(errors.is_empty(), "{}", errors.join("\n"));
}

/// `src/doctor/rules/x.rs` and `src/doctor.rs` are both module `doctor`; the binaries are none.
fn module_of(path: &Path) -> Option<&str> {
    let first = path.components().nth(1)?.as_os_str().to_str()?;
    let name = first.strip_suffix(".rs").unwrap_or(first);
    (!matches!(name, "lib" | "main" | "bin")).then_some(name)
}

fn is_module_root(path: &Path) -> bool {
    path.components().count() == 2 || (path.components().count() == 3 && path.ends_with("mod.rs"))
}

fn crate_modules<'t>(text: &'t str, known: &BTreeMap<&str, &[&str]>) -> Vec<&'t str> {
    targets(text, "super::").into_iter().filter(|name| known.contains_key(name)).collect()
}

/// Whether `name::` or `use name;` occurs as a whole word.
fn names_crate(text: &str, name: &str) -> bool {
    text.match_indices(name).any(|(at, _name)| {
        let before = text[..at].chars().next_back();
        let whole = !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | ':' | '.'));
        whole && text[at + name.len()..].starts_with("::")
    })
}

/// Names that follow `root`, in both `use crate::{a, b::c}` and paths.
fn targets<'t>(text: &'t str, root: &str) -> Vec<&'t str> {
    let mut targets = Vec::new();
    for rest in text.split(root).skip(1) {
        match rest.strip_prefix('{') {
            Some(group) => targets.extend(members(group).into_iter().map(first_ident)),
            None => targets.push(first_ident(rest)),
        }
    }
    targets.retain(|target| !target.is_empty());
    targets
}

/// The parts of `a, b::{c, d}} …` up to the brace that closes the group.
fn members(group: &str) -> Vec<&str> {
    let (mut depth, mut begin) = (0, 0);
    let mut members = Vec::new();
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                members.push(&group[begin..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                members.push(&group[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    members
}

fn first_ident(text: &str) -> &str {
    let text = text.trim_start();
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// The Rust files below these folders, in a fixed order.
fn sources(folders: &[&str]) -> Vec<(PathBuf, String)> {
    let mut paths = Vec::new();
    folders.iter().for_each(|folder| collect(Path::new(folder), &mut paths));
    paths.retain(|path| path.extension().is_some_and(|ext| ext == "rs"));
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// All files of the project; what is built, fetched or produced by a run is none of them.
fn all_files() -> Vec<PathBuf> {
    let mut paths = Vec::new();
    collect(Path::new("."), &mut paths);
    paths
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    let skipped = ["target", "demo", ".git", "__pycache__", "node_modules"];
    let entries = fs::read_dir(folder).unwrap();
    let mut entries: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if skipped.contains(&&*name) {
            continue;
        }
        if path.is_dir() && !path.is_symlink() {
            collect(&path, paths);
        } else if path.is_file() {
            paths.push(path.strip_prefix(".").unwrap_or(&path).to_owned());
        }
    }
}
