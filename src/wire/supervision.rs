//! What the supervisor adds to the event stream of `qvl launch --output json`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TrainerExit;

/// One line of the supervisor. A line of a rank is a [`Record`](super::Record): it has `rank`
/// and no `source`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SupervisorRecord {
    /// Version of this format, as in the lines of the ranks.
    pub v: u32,
    /// Milliseconds since the Unix epoch.
    pub time_ms: u64,
    pub attempt: u32,
    pub source: Source,
    /// What happened.
    #[serde(flatten)]
    pub event: SupervisorEvent,
}

/// Who speaks, if it is not a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    Supervisor,
}

/// What the supervisor reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum SupervisorEvent {
    /// The ranks of an attempt are started.
    AttemptStarted { world: u32 },
    /// No step has ended for long; `suspect` has been silent for longest, or was stopped.
    Slow { suspect: u32, seconds: f64, median_seconds: f64 },
    /// The attempt has failed, and because of whom.
    Culprit {
        culprit: u32,
        exit: Option<TrainerExit>,
        what: String,
        hint: Option<String>,
        /// Last step that was done.
        step: u64,
        restarted: bool,
    },
    /// All ranks start again after a pause, from the newest checkpoint.
    Restarting { after_seconds: u64, checkpoint_step: Option<u64> },
    /// The run was asked to stop; `kill` if it may not save.
    Stopping { kill: bool },
    /// Logs, metrics or the state of the run could not be written; the training goes on.
    Trouble { what: String },
    /// The last line: `state` is what `state.json` holds.
    Ended { status: String, why: Option<String>, state: serde_json::Value },
}
