//! The doctor's report in every form, held against the schemas of the forms and a real browser.
//! `make setup` brings schemas, validators and browser.

#![expect(clippy::unwrap_used, reason = "a test fails where it is wrong")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

const HEALTHY: &str = "tests/facts/healthy-8xh100.json";
const BROKEN: &str = "tests/facts/broken-8xh100.json";
const CPU: &str = "tests/facts/cpu-only.json";

/// What `qvl doctor` says about saved facts, with any verdict.
fn report(format: &str, args: &[&str]) -> String {
    let mut command = assert_cmd::Command::cargo_bin("qvl").unwrap();
    command.args(["doctor", "--reproducible", "--format", format]).args(args);
    let output = command.output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn cases() -> [Vec<&'static str>; 4] {
    [
        vec!["--facts", HEALTHY, "--gpus", "8"],
        vec!["--facts", BROKEN, "--gpus", "8", "--strict"],
        vec!["--facts", HEALTHY, BROKEN, CPU, "--gpus", "24", "--expect-nodes", "gpu-<9>&\"x\""],
        vec!["--facts", CPU, "--gpus", "2", "--stack", "official"],
    ]
}

fn schema(name: &str) -> PathBuf {
    let home = || PathBuf::from(env::var_os("HOME").unwrap()).join(".cache/qvl");
    let cache = env::var_os("QVL_CACHE").map_or_else(home, PathBuf::from);
    let path = cache.join("schemas").join(name);
    assert!(path.is_file(), "`{}` is missing\n  hint: run `make setup`", path.display());
    path
}

/// Runs a program that the set-up installs.
fn run(program: &str, args: &[&Path]) -> Output {
    Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("`{program}`: {error}\n  hint: run `make setup`"))
}

#[track_caller]
fn accepted(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn sarif_fits_the_official_schema() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("doctor.sarif");
    let check = || {
        let script = Path::new("tests/python/check_sarif.py");
        run("/usr/bin/python3", &[script, &schema("sarif-2.1.0.json"), &file])
    };
    let results: Vec<u32> = cases()
        .iter()
        .map(|args| {
            fs::write(&file, report("sarif", args)).unwrap();
            accepted(&check()).trim().parse().unwrap()
        })
        .collect();
    assert_eq!(results[0], 0, "a healthy node has no results");
    assert!(10 < results[1] && results[1] < results[2], "{results:?}");
    // The check itself can fail.
    let broken = report("sarif", &cases()[1]).replace("\"error\"", "\"terrible\"");
    fs::write(&file, broken).unwrap();
    assert!(!check().status.success());
}

#[test]
fn junit_fits_the_schema_of_jenkins() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("junit.xml");
    let check = || {
        let xsd = schema("junit-10.xsd");
        run("xmllint", &[Path::new("--noout"), Path::new("--schema"), &xsd, &file])
    };
    for args in cases() {
        let xml = report("junit", &args);
        fs::write(&file, &xml).unwrap();
        accepted(&check());
        let count = |what: &str| xml.matches(what).count();
        let total = |what: &str| -> usize {
            let head = xml.split("<testsuites").nth(1).unwrap();
            head.split(&format!(" {what}=\""))
                .nth(1)
                .unwrap()
                .split('"')
                .next()
                .unwrap()
                .parse()
                .unwrap()
        };
        assert_eq!(total("tests"), count("<testcase "));
        assert_eq!(total("failures"), count("<failure "));
        assert_eq!(total("errors"), count("<error "));
    }
    let strict = report("junit", &cases()[1]);
    assert!(strict.contains("<failure type=\"warn\""), "--strict makes warnings failures");
    fs::write(&file, strict.replace("<failure ", "<fault ").replace("</failure>", "</fault>"))
        .unwrap();
    assert!(!check().status.success());
}

#[test]
fn markdown_is_a_page_for_an_issue() {
    insta::assert_snapshot!("markdown-broken", report("markdown", &cases()[1]));
    let healthy = report("markdown", &cases()[0]);
    assert!(healthy.starts_with("# qvl doctor: ready, nothing blocks\n"), "{healthy}");
}

/// The page as Chromium sees it, after its script ran.
fn browse(page: &Path) -> String {
    let profile = page.with_file_name("profile");
    let output = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"])
        .args(["--virtual-time-budget=2000", "--host-resolver-rules=MAP * ~NOTFOUND"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap_or_else(|error| panic!("`chromium`: {error}\n  hint: run `make setup`"));
    accepted(&output)
}

#[test]
fn html_is_one_page_whose_matrix_shows_problems_first() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("doctor.html");
    let html = report("html", &cases()[2]);
    for outside in ["src=", "<link", "@import", "url(", "http-equiv"] {
        assert!(!html.contains(outside), "the page must not load anything: {outside}");
    }
    assert!(html.contains("gpu-&lt;9&gt;&amp;&quot;x&quot;"), "names are text, not markup");
    fs::write(&page, &html).unwrap();
    let seen = browse(&page);
    let rows: Vec<&str> =
        seen.split("<tr ").filter(|row| row.starts_with("data-verdicts")).collect();
    assert!(150 < rows.len(), "{} rows", rows.len());
    for row in rows {
        let tag = row.split('>').next().unwrap();
        let bad = ["fail", "unknown", "warn"].iter().any(|verdict| tag.contains(verdict));
        assert_eq!(tag.contains("hidden"), !bad, "{tag}");
    }
    // Every cell with a problem leads to its text.
    for link in html.split("href=\"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(html.contains(&format!("id=\"{link}\"")), "{link}");
    }
    // On a healthy node everything is shown.
    fs::write(&page, report("html", &cases()[0])).unwrap();
    assert!(!browse(&page).contains("hidden=\"\""));
}
