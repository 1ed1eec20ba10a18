//! Storage, memory and processors of this machine.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::Report;

fn qvl() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qvl"));
    for name in ["RANK", "WORLD_SIZE", "QVL_TRAIN_BIN", "QVL_DOCTOR_TOKEN"] {
        command.env_remove(name);
    }
    command
}

fn entries(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.to_string_lossy().into_owned()).collect()
}

#[test]
fn this_machine_is_measured_and_left_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let report = Report::of(&mut qvl(), &["--active-path", path]);
    report.expect(&[("storage-broken", "pass"), ("cpu-miscomputes", "pass")]);
    let evidence = |id: &str| report.check(id)["evidence"][0]["value"].to_string();
    assert!(
        evidence("storage-broken").contains("16.0 MiB written at"),
        "{}",
        evidence("storage-broken")
    );
    assert!(evidence("cpu-miscomputes").contains("GFLOP/s"));
    assert!(evidence("memory-bandwidth-uneven").contains("B/s with"));
    // Nobody named a job or a host.
    report.expect(&[("checkpoint-slow", "skipped"), ("network-slow", "skipped")]);
    assert_eq!(entries(folder.path()), Vec::<String>::new());
}

#[test]
fn without_the_switch_nothing_is_written_and_the_reason_is_told() {
    let output = qvl().args(["doctor", "--format", "json"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("active tests not asked for (--active)"), "{text}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let refused = qvl().args(["doctor", "--active-path", path]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let refused = qvl().args(["doctor", "--active", "--peers", "a:1"]).output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(
        said.contains("--peers needs the token") && said.contains("qvl doctor serve"),
        "{said}"
    );
    for peer in ["a", "a:0", ":7", "a:b"] {
        let refused = qvl().args(["doctor", "--active", "--peers", peer]).output().unwrap();
        assert_eq!(refused.status.code(), Some(2), "{peer}");
    }
}

/// The child that tests a folder, while it does.
fn storage_child(parent: &Child) -> Option<i32> {
    let children = format!("/proc/{0}/task/{0}/children", parent.id());
    let text = fs::read_to_string(children).ok()?;
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).find(|pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains("probe-active\0storage")
    })
}

fn wait<T>(mut found: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "never");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_doctor_that_is_killed_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut doctor = qvl()
        .args(["doctor", "--active", "--active-path", folder.path().to_str().unwrap()])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let child = wait(|| storage_child(&doctor));
    doctor.kill().unwrap();
    doctor.wait().unwrap();
    // The kernel ends the child with its parent; one that nobody reaps has no command line any more.
    let line = format!("/proc/{child}/cmdline");
    wait(|| fs::read(&line).unwrap_or_default().is_empty().then_some(()));
    let left: u64 = entries(folder.path())
        .iter()
        .map(|name| fs::metadata(folder.path().join(name)).unwrap().len())
        .sum();
    assert!(left <= 4096, "{left} bytes are left: {:?}", entries(folder.path()));
}

/// A disk that does not answer looks like a process that stands still.
#[test]
fn a_test_that_hangs_is_killed_and_fails() {
    let folder = tempfile::tempdir().unwrap();
    let doctor = qvl()
        .args(["doctor", "--active", "--active-path", folder.path().to_str().unwrap()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let child = wait(|| storage_child(&doctor));
    let stop = nix::sys::signal::Signal::SIGSTOP;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), stop).unwrap();
    let output = doctor.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("storage-broken") && text.contains("no answer for 30 s"), "{text}");
    assert_eq!(entries(folder.path()), Vec::<String>::new());
}
