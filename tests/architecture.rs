//! The module graph is a test, so that a forbidden import fails `cargo test`.

use std::{collections::BTreeMap, fs, path::Path};

/// Each module and the modules it may import. Anything else is an error.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("facts", &[]),
    ("job", &[]),
    ("wire", &[]),
    ("data", &["job"]),
    ("doctor", &["facts", "job"]),
    ("report", &["doctor", "facts", "job"]),
    ("probe", &["facts"]),
    ("telemetry", &["wire"]),
    ("launch", &["data", "doctor", "facts", "job", "telemetry", "wire"]),
    ("train", &["data", "job", "telemetry", "wire"]),
    ("cli", &["data", "doctor", "facts", "job", "launch", "probe", "report", "telemetry", "wire"]),
];

/// Files and folders that do no IO. `clippy.toml` adds what only a type checker sees: the clock.
const PURE: &[&str] = &[
    "src/facts",
    "src/job",
    "src/wire",
    "src/doctor",
    "src/report",
    "src/data/boxes.rs",
    "src/data/chatml.rs",
];

/// Files longer than [`LONGEST`] lines, each with its reason.
const LONG: &[(&str, &str)] = &[
    ("src/job/spec.rs", "the job format, most of it documentation"),
    ("src/train/collective/tests.rs", "one scenario of failing peers after another"),
];
const LONGEST: usize = 500;

/// What a pure file may not name, by path prefix.
const IO: &[(&str, &[&str])] = &[
    ("std::", &["env", "fs", "net", "os", "thread"]),
    ("tokio::", &["fs", "net", "process", "spawn", "task", "time"]),
    ("kube::", &["Api", "Client"]),
];

#[test]
fn modules_import_only_what_they_may() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_IMPORT.iter().copied().collect();
    let mut errors = Vec::new();
    visit(Path::new("src"), &mut |path, text| {
        let Some(from) = module_of(path) else { return };
        let Some(may) = allowed.get(from) else {
            errors.push(format!("{}: module `{from}` is not in MAY_IMPORT", path.display()));
            return;
        };
        let mut targets = targets(text, "crate::");
        if is_module_root(path) {
            // Here `super` is the crate; `super::*` in a test module stays inside.
            targets.extend(crate_modules(text, &allowed));
        }
        for to in targets {
            if to != from && !may.contains(&to) {
                errors.push(format!("{}: `{from}` may not import `{to}`", path.display()));
            }
        }
        if text.contains("super::super") {
            errors.push(format!("{}: write `crate::` for `super::super`", path.display()));
        }
    });
    assert!(errors.is_empty(), "{}", errors.join("\n"));
}

#[test]
fn pure_files_name_no_io() {
    let mut errors = Vec::new();
    let mut seen = 0;
    visit(Path::new("src"), &mut |path, text| {
        if !PURE.iter().any(|pure| path.starts_with(pure)) {
            return;
        }
        seen += 1;
        for (root, names) in IO {
            for name in targets(text, root) {
                if names.contains(&name) {
                    errors.push(format!("{}: pure file names `{root}{name}`", path.display()));
                }
            }
        }
    });
    assert!(errors.is_empty(), "{}", errors.join("\n"));
    assert!(PURE.len() <= seen, "PURE names a path that does not exist");
}

#[test]
fn files_are_short() {
    let mut errors = Vec::new();
    visit(Path::new("src"), &mut |path, text| {
        let lines = text.lines().count();
        let excused = LONG.iter().any(|(long, _why)| path == Path::new(long));
        if LONGEST < lines && !excused {
            errors.push(format!("{}: {lines} lines", path.display()));
        }
    });
    assert!(errors.is_empty(), "split these, or list them with a reason:\n{}", errors.join("\n"));
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

/// Names that follow `root`, in both `use crate::{a, b::c}` and paths.
fn targets<'t>(text: &'t str, root: &str) -> Vec<&'t str> {
    let mut targets = Vec::new();
    for rest in text.split(root).skip(1) {
        match rest.strip_prefix('{') {
            Some(group) => {
                let mut depth = 0;
                let end = group
                    .find(|c| {
                        depth += i32::from(c == '{') - i32::from(c == '}');
                        depth < 0
                    })
                    .unwrap_or(group.len());
                let mut depth = 0;
                targets.extend(
                    group[..end]
                        .split(|c| {
                            depth += i32::from(c == '{') - i32::from(c == '}');
                            c == ',' && depth == 0
                        })
                        .map(first_ident),
                );
            }
            None => targets.push(first_ident(rest)),
        }
    }
    targets.retain(|target| !target.is_empty());
    targets
}

fn first_ident(text: &str) -> &str {
    let text = text.trim_start();
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

fn visit(dir: &Path, f: &mut impl FnMut(&Path, &str)) {
    let mut paths: Vec<_> = fs::read_dir(dir)
        .expect("src/ is readable")
        .map(|entry| entry.expect("src/ is readable").path())
        .collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            visit(&path, f);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            f(&path, &fs::read_to_string(&path).expect("source is UTF-8"));
        }
    }
}
