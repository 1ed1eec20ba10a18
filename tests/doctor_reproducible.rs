//! `qvl doctor --reproducible`: the same facts give the same bytes, in every form, whatever the
//! order of the files and however many processors read them.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

const FORMS: [&str; 6] = ["text", "json", "sarif", "junit", "markdown", "html"];
/// Enough for several threads to read them.
const NODES: usize = 20;

/// A fleet of three kinds of nodes that differ in more than their names.
fn fleet(folder: &Path) -> Vec<PathBuf> {
    let kinds = ["healthy-8xh100", "broken-8xh100", "cpu-only"].map(|kind| {
        let text = fs::read_to_string(format!("tests/facts/{kind}.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()
    });
    let write = |number: usize| {
        let mut node = kinds[if number.is_multiple_of(9) { number / 9 % 3 } else { 0 }].clone();
        node["node"] = format!("n{number}").into();
        let path = folder.join(format!("{number}.json"));
        fs::write(&path, node.to_string()).unwrap();
        path
    };
    (0..NODES).map(write).collect()
}

/// The report, read on the processors of `taskset -c`.
fn report(form: &str, files: &[PathBuf], processors: &str) -> Vec<u8> {
    let mut command = Command::new("taskset");
    command.args(["-c", processors, env!("CARGO_BIN_EXE_qvl"), "doctor", "--reproducible"]);
    command.args(["--verbose", "--gpus", "160", "--expect-nodes", "n0,n1,absent"]);
    command.args(["--format", form, "--facts"]).args(files);
    let output = command.output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{form}: {err}");
    assert!(10_000 < output.stdout.len(), "{form}: {err}");
    output.stdout
}

#[test]
fn order_and_processors_do_not_change_a_byte() {
    let folder = tempfile::tempdir().unwrap();
    let files = fleet(folder.path());
    let mut reversed = files.clone();
    reversed.reverse();
    // 7 and 20 have no common divisor, so each file comes once.
    let shuffled: Vec<PathBuf> = (0..NODES).map(|i| files[i * 7 % NODES].clone()).collect();
    let last = std::thread::available_parallelism().unwrap().get() - 1;
    let all = format!("0-{last}");
    for form in FORMS {
        let first = report(form, &files, &all);
        for (order, processors) in
            [(&files, "0"), (&reversed, all.as_str()), (&shuffled, all.as_str()), (&shuffled, "0")]
        {
            let again = report(form, order, processors);
            assert!(
                again == first,
                "{form} differs in another order, or on processors {processors}"
            );
        }
    }
    // The comparison can fail: other facts give other bytes.
    assert!(report("json", &files[1..], &all) != report("json", &files, &all));
}

/// Without the option a report says when it was made, and how long it took.
#[test]
fn the_times_are_what_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let files = fleet(folder.path());
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qvl"));
        command.args(["doctor", "--format", "json"]).args(more).arg("--facts").args(&files);
        serde_json::from_slice::<Value>(&command.output().unwrap().stdout).unwrap()
    };
    let (timed, mut plain) = (run(&[]), run(&["--reproducible"]));
    assert!(timed["elapsedMs"].is_u64() && timed["seal"]["unixSeconds"].is_i64());
    plain["elapsedMs"] = timed["elapsedMs"].clone();
    plain["seal"] = timed["seal"].clone();
    assert_eq!(plain, timed);
}
