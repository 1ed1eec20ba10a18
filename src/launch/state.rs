//! `state.json` in the output folder: what a run is doing, for other terminals.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::wire::TrainerExit;

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
    pub phase: String,
}

/// Why an attempt ended early.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    pub attempt: u32,
    /// Rank that failed first and is no victim of another.
    pub culprit: u32,
    pub exit: Option<TrainerExit>,
    /// One sentence: what happened to the culprit.
    pub what: String,
    pub hint: Option<String>,
    /// Step that was reached, and the checkpoint's step from which the next attempt began.
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
    pub incidents: Vec<Incident>,
}

impl RunState {
    /// Writes the file; a reader sees the old or the new one, never a part.
    pub fn write(&self) -> io::Result<()> {
        let text = serde_json::to_string_pretty(self).expect("plain data") + "\n";
        let mut file = tempfile::NamedTempFile::new_in(&self.output)?;
        io::Write::write_all(&mut file, text.as_bytes())?;
        file.persist(self.output.join(FILE)).map_err(|error| error.error)?;
        Ok(())
    }

    /// Reads the file of an output folder.
    pub fn read(output: &Path) -> io::Result<Self> {
        let text = fs::read(output.join(FILE))?;
        serde_json::from_slice(&text).map_err(|error| io::Error::other(error.to_string()))
    }

    /// Whether the supervisor of a running run is still there.
    pub fn is_alive(&self) -> bool {
        self.status == Status::Running
            && process_start(self.supervisor) == Some(self.supervisor_start)
    }
}

/// Start time of a process in clock ticks since boot: field 22 of `/proc/PID/stat`.
pub fn process_start(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command in parentheses and may hold spaces.
    let after = text.rsplit_once(')')?.1;
    let state = after.split_whitespace().next()?;
    if state == "Z" {
        return None;
    }
    after.split_whitespace().nth(19)?.parse().ok()
}
