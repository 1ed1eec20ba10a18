//! `state.json` in the output folder: what a run is doing, for other terminals.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::process::ProcessId;
use crate::{
    telemetry::whole,
    wire::{DoctorVerdict, TrainerExit},
};

/// Name of the file in the output folder.
pub const FILE: &str = "state.json";

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// The supervisor works on it.
    Running,
    /// All steps are done and the result is written.
    Succeeded,
    /// It failed and was not restarted any more.
    Failed,
    /// It was stopped on request; a checkpoint holds its state.
    Stopped,
}

/// One rank of the current attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankState {
    pub rank: u32,
    pub pid: u32,
    /// Start time of the process, as [`ProcessId`] has it.
    #[serde(default)]
    pub start: u64,
    pub phase: String,
}

impl RankState {
    /// Whether its process still runs.
    pub fn is_alive(&self) -> bool {
        ProcessId { pid: self.pid, start: self.start }.is_alive()
    }
}

/// Why an attempt ended early.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    pub attempt: u32,
    /// Rank that failed first and is no victim of another.
    pub culprit: u32,
    pub exit: Option<TrainerExit>,
    /// What happened to the culprit, in words that follow "rank 1".
    pub what: String,
    pub hint: Option<String>,
    /// Last step that was done.
    pub step: u64,
    pub restarted: bool,
}

/// A run as other processes see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    pub name: String,
    pub output: PathBuf,
    pub status: Status,
    /// Process id of the supervisor, and its start time in clock ticks since boot, so that a
    /// reused process id is not taken for it.
    pub supervisor: u32,
    pub supervisor_start: u64,
    pub started_ms: u64,
    pub updated_ms: u64,
    pub attempt: u32,
    pub ranks: Vec<RankState>,
    pub step: u64,
    pub total_steps: u64,
    pub loss: Option<f64>,
    pub checkpoint: Option<String>,
    pub result: Option<String>,
    /// Why it failed for good.
    #[serde(default)]
    pub why: Option<String>,
    pub incidents: Vec<Incident>,
    /// What the doctor said before the launch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doctor: Option<DoctorVerdict>,
}

impl RunState {
    /// A run that has not begun.
    pub fn new(name: &str, output: &Path, now_ms: u64) -> Self {
        RunState {
            name: name.to_owned(),
            output: output.to_owned(),
            status: Status::Stopped,
            supervisor: 0,
            supervisor_start: 0,
            started_ms: now_ms,
            updated_ms: now_ms,
            attempt: 0,
            ranks: Vec::new(),
            step: 0,
            total_steps: 0,
            loss: None,
            checkpoint: None,
            result: None,
            why: None,
            incidents: Vec::new(),
            doctor: None,
        }
    }

    /// Writes the file; a reader sees the old or the new one, never a part.
    pub fn write(&self) -> io::Result<()> {
        let text = serde_json::to_string_pretty(self).expect("plain data") + "\n";
        whole::write(&self.output.join(FILE), text.as_bytes())
    }

    /// Reads the file of an output folder.
    pub fn read(output: &Path) -> io::Result<Self> {
        let text = fs::read(output.join(FILE))?;
        serde_json::from_slice(&text).map_err(|error| io::Error::other(error.to_string()))
    }

    /// Whether the supervisor of a running run is still there.
    pub fn is_alive(&self) -> bool {
        let supervisor = ProcessId { pid: self.supervisor, start: self.supervisor_start };
        self.status == Status::Running && supervisor.is_alive()
    }

    /// Ranks that still run although their supervisor is gone: it was killed, and they train on.
    pub fn orphans(&self) -> Vec<&RankState> {
        if self.is_alive() {
            return Vec::new();
        }
        self.ranks.iter().filter(|rank| rank.is_alive()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_read_back_and_a_dead_supervisor_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let mine = ProcessId::of(std::process::id());
        let rank = RankState { rank: 0, pid: mine.pid, start: mine.start, phase: "train".into() };
        let run = RunState {
            status: Status::Running,
            supervisor: mine.pid,
            supervisor_start: mine.start,
            ranks: vec![rank],
            ..RunState::new("a", folder.path(), 5)
        };
        run.write().unwrap();
        let read = RunState::read(folder.path()).unwrap();
        assert_eq!(read, run);
        assert!(read.is_alive());
        assert_eq!(read.orphans(), Vec::<&RankState>::new());
        let dead = RunState { supervisor_start: mine.start + 1, ..run };
        assert!(!dead.is_alive());
        assert_eq!(dead.orphans().len(), 1);
    }
}
