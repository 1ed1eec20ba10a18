//! The two text files of a checkpoint.

use serde::{Deserialize, Serialize};

/// Where a run is: all that is needed, beside weights and moments, to go on as if it had never
/// stopped. It holds no rank and no number of ranks, so a run may go on with another number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Optimizer steps done, over all stages.
    pub step: u64,
    /// Index of the current stage.
    pub stage: usize,
    /// Steps done in the current stage; the schedule continues from here.
    pub stage_step: u64,
    /// Steps since the moments were last reset; `AdamW`'s bias correction continues from here.
    pub optimizer_step: u64,
    /// Passes over the data completed in the current stage.
    pub epoch: u64,
    /// Samples used of the current pass: the data cursor.
    pub cursor: u64,
    /// Seed of data order, initialisation and dropout; their counters follow from the step.
    pub seed: u64,
    /// Samples used since the first step.
    pub samples: u64,
    /// Tokens used since the first step, without padding.
    pub tokens: u64,
}

/// What a checkpoint belongs to. The hashes must not cover the number of ranks or anything else
/// that may change at a resume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Hash of the parts of the job that decide the result.
    pub job: String,
    /// Hash of the base model.
    pub base: String,
}

/// A file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Name within the folder.
    pub name: String,
    /// Size.
    pub bytes: u64,
    /// Lower-case hexadecimal digest of the content.
    pub sha256: String,
}

/// `manifest.json`: written last, and read first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the layout.
    pub format: u32,
    /// Optimizer steps done.
    pub step: u64,
    /// Attempt that saved it.
    pub attempt: u32,
    /// Measure by which the best checkpoint is chosen; higher is better.
    pub score: Option<f64>,
    /// What the checkpoint belongs to.
    #[serde(flatten)]
    pub identity: Identity,
    /// The other files.
    pub files: Vec<FileEntry>,
}

impl Manifest {
    /// The version that this build writes and reads.
    pub const FORMAT: u32 = 1;
}
