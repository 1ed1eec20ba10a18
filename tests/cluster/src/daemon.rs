//! Processes of the cluster: started with a log and a pid file, ended by that file.

use std::{
    fs::{self, OpenOptions},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};

use crate::{
    error::{At, Error},
    places::Places,
};

/// Starts `command` in the namespaces of the calling thread. It outlives this process, and the
/// terminal's Ctrl-C does not reach it.
pub(crate) fn start(places: &Places, name: &str, command: &mut Command) -> Result<(), Error> {
    let log = places.logs().join(format!("{name}.log"));
    let open = OpenOptions::new().create(true).append(true).open(&log).at("write", &log)?;
    let copy = open.try_clone().at("write", &log)?;
    command.stdin(Stdio::null()).stdout(copy).stderr(open).process_group(0).current_dir("/");
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().map_err(|source| Error::Start { program, source })?;
    let pid = i32::try_from(child.id()).expect("a process id fits");
    let file = places.pids().join(name);
    let line = format!("{pid} {}", begin(pid).unwrap_or_default());
    fs::write(&file, line).at("write", file)?;
    // Without somebody who waits, a dead daemon of a long test would stay as a zombie.
    thread::spawn(move || child.wait());
    Ok(())
}

/// Process id of a daemon that runs.
pub(crate) fn running(places: &Places, name: &str) -> Option<i32> {
    running_file(&places.pids().join(name))
}

/// Refuses, with its last words, when a daemon has ended.
pub(crate) fn check(places: &Places, name: &'static str) -> Result<(), Error> {
    if running(places, name).is_some() {
        return Ok(());
    }
    let log = log(places, name);
    let text = fs::read_to_string(&log).unwrap_or_default();
    let last = text.lines().last().unwrap_or("it says nothing").to_owned();
    Err(Error::Ended { name, last, log })
}

/// Process ids of all daemons that run.
pub(crate) fn all(places: &Places) -> Vec<i32> {
    let Ok(files) = fs::read_dir(places.pids()) else { return Vec::new() };
    files.flatten().filter_map(|file| running_file(&file.path())).collect()
}

/// Ends one daemon and waits until it is gone.
pub(crate) fn stop(places: &Places, name: &str) -> Result<(), Error> {
    const LIMIT: Duration = Duration::from_secs(10);
    let begin = Instant::now();
    while let Some(pid) = running(places, name) {
        kill(pid);
        if LIMIT < begin.elapsed() {
            let what = format!("`{name}` has not ended");
            return Err(Error::Timeout { what, limit: LIMIT, log: log(places, name) });
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Log of a daemon.
pub(crate) fn log(places: &Places, name: &str) -> PathBuf {
    places.logs().join(format!("{name}.log"))
}

/// Ends a process at once; that it has ended already is fine.
pub(crate) fn kill(pid: i32) {
    let _already_ended = signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
}

/// Whether a process exists and holds anything.
pub(crate) fn alive(pid: i32) -> bool {
    begin(pid).is_some()
}

fn running_file(file: &Path) -> Option<i32> {
    let text = fs::read_to_string(file).ok()?;
    let (pid, started) = text.split_once(' ')?;
    let pid = pid.parse().ok()?;
    // The number may belong to somebody else by now.
    (begin(pid)? == started).then_some(pid)
}

/// When a process began, in ticks since boot; none if it has ended.
fn begin(pid: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_name, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    let begin = fields.nth(18)?;
    // The first thread of a program that was killed is a zombie while others still hold its
    // sockets.
    let ended = state == "X" || (state == "Z" && threads(pid) <= 1);
    (!ended).then(|| begin.to_owned())
}

fn threads(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_runs_and_a_reused_number_is_not_it() {
        let folder = tempfile::tempdir().unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        let file = folder.path().join("x");
        fs::write(&file, format!("{pid} {}", begin(pid).unwrap())).unwrap();
        assert_eq!(running_file(&file), Some(pid));
        fs::write(&file, format!("{pid} 1")).unwrap();
        assert_eq!(running_file(&file), None);
    }
}
