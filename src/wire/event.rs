//! The event stream of a trainer, version 1: one JSON object per line.

use std::{collections::BTreeMap, fmt};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One line of the stream: who says it, when, and what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Record {
    /// Version of this format; readers skip lines with a version they do not know.
    pub v: u32,
    /// Milliseconds since the Unix epoch, by the clock of the sender.
    pub time_ms: u64,
    /// Global rank of the sender.
    pub rank: u32,
    /// Attempt epoch of the sender.
    pub attempt: u32,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

impl Record {
    /// The version written by this build.
    pub const VERSION: u32 = 1;
}

/// What a rank reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The process is up; nothing is loaded yet.
    Started { pid: u32, world: u32, version: String },
    /// A phase begins: `load-model`, `load-data`, `rendezvous`, `train`, `evaluate`, `save`.
    Phase { name: String },
    /// The model is in memory.
    ModelLoaded { parameters: u64, trainable: u64, dtype: String, seconds: f64 },
    /// Training starts or goes on at `step` of `total_steps`.
    Ready { step: u64, total_steps: u64, resumed_from: Option<String> },
    /// One optimizer step is done.
    Step(StepMetrics),
    /// An evaluation set was measured.
    Evaluated { step: u64, set: String, metrics: EvalMetrics },
    /// A checkpoint is complete on disk.
    CheckpointSaved { step: u64, path: String, bytes: u64, seconds: f64, best: bool },
    /// An adapter or a full model was written.
    Exported { path: String, kind: String },
    /// Something the user should read, but the run goes on.
    Warning { message: String },
    /// The last line of a failing rank.
    Failed { exit: super::TrainerExit, message: String, hint: Option<String>, peer: Option<u32> },
    /// The last line of a rank that ended well.
    Finished {
        step: u64,
        seconds: f64,
        /// Largest resident set of the process so far (`VmHWM`), for comparison with the plan.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        peak_resident_bytes: Option<u64>,
    },
}

/// The numbers of one optimizer step. The loss is that of the *global* batch, so every rank
/// reports the same value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StepMetrics {
    /// Steps done, so the first step is 1.
    pub step: u64,
    pub total_steps: u64,
    pub epoch: f64,
    pub stage: String,
    /// Weighted mean cross-entropy per labelled token, in nats.
    pub loss: f64,
    /// Unweighted mean cross-entropy of each task's tokens.
    pub tasks: BTreeMap<String, TaskLoss>,
    pub learning_rate: f64,
    /// Global L2 norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Samples and non-padding tokens of the global batch.
    pub samples: u64,
    pub tokens: u64,
    pub seconds: f64,
    /// Of `seconds`, the part spent in the collective.
    pub reduce_seconds: f64,
}

/// Loss of one task in one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskLoss {
    /// Mean cross-entropy over all labelled tokens of the task, in nats.
    pub loss: f64,
    /// The same over content tokens only: without the template and the structure of boxes.
    pub content_loss: f64,
    /// Labelled tokens.
    pub tokens: u64,
}

/// Result of one evaluation set. A metric that the set's task does not have is `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EvalMetrics {
    pub samples: u64,
    /// Mean cross-entropy per labelled token, in nats.
    pub loss: Option<f64>,
    /// Share of answers from which a box could be parsed.
    pub parse_rate: Option<Interval>,
    /// Mean intersection over union; an answer without a box counts as 0.
    pub mean_iou: Option<Interval>,
    /// Share of answers with an IoU of at least 0.5.
    pub acc_at_50: Option<Interval>,
    /// Share of answers equal to the reference text.
    pub exact_match: Option<Interval>,
}

/// A mean with its 95 % confidence interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Interval {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

impl fmt::Display for Interval {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:.3} ({:.3}-{:.3})", self.value, self.low, self.high)
    }
}
