//! What `/proc` tells about a process, and the kernel's count of out-of-memory kills.

use std::fs;

use serde::{Deserialize, Serialize};

/// A process as other terminals find it again: a reused process id has another start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: u32,
    /// Start time in clock ticks since boot; 0 if it could not be read.
    pub start: u64,
}

impl ProcessId {
    /// The identity of a process that runs now.
    pub fn of(pid: u32) -> Self {
        ProcessId { pid, start: start(pid).unwrap_or(0) }
    }

    /// Whether this very process still runs.
    pub fn is_alive(self) -> bool {
        self.pid != 0 && start(self.pid) == Some(self.start)
    }
}

/// Start time of a process in clock ticks since boot; `None` if it is gone or only waits to be
/// reaped.
pub fn start(pid: u32) -> Option<u64> {
    let fields = stat(pid)?;
    if fields.first().is_some_and(|state| state == "Z") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// Whether a process is stopped by a signal (SIGSTOP) or by a debugger.
pub fn is_stopped(pid: u32) -> bool {
    stat(pid).and_then(|fields| fields.into_iter().next()).is_some_and(|s| s == "T" || s == "t")
}

/// Fields of `/proc/PID/stat` from the third one, the state, on.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command in parentheses and may hold spaces and parentheses.
    let after = text.rsplit_once(')')?.1;
    Some(after.split_whitespace().map(str::to_owned).collect())
}

/// How many processes the kernel has killed for want of memory: on this machine since boot, and
/// within our own control group. `None` where neither can be read.
pub fn memory_kills() -> Option<u64> {
    let count = |path: &str, key: &str| {
        let text = fs::read_to_string(path).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().parse::<u64>().ok()
    };
    let machine = count("/proc/vmstat", "oom_kill ");
    let group = count("/sys/fs/cgroup/memory.events", "oom_kill ");
    match (machine, group) {
        (None, None) => None,
        (machine, group) => Some(machine.unwrap_or(0) + group.unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_again_and_a_reused_id_is_not() {
        let mine = ProcessId::of(std::process::id());
        assert!(mine.is_alive());
        assert!(!ProcessId { start: mine.start + 1, ..mine }.is_alive());
        assert!(!ProcessId { pid: 0, start: 0 }.is_alive());
        assert!(!is_stopped(mine.pid));
    }
}
