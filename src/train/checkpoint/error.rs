//! Why a checkpoint could not be written or read.

use std::io::{self, ErrorKind};
use std::path::PathBuf;

use crate::wire::TrainerExit;

const NO_SPACE: &str = "free space or lower `checkpoint.keep`; earlier checkpoints are intact";

/// Why a checkpoint could not be written or read. Whatever happens, the checkpoints that were
/// complete before stay as they are.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A newer attempt of the job writes to the folder.
    #[error("attempt {own} may not write to {}: attempt {newer} has taken over", folder.display())]
    Fenced { folder: PathBuf, own: u32, newer: u32 },
    /// Another process holds the lock for too long.
    #[error("the lock {} was not free within {seconds} s", path.display())]
    Locked { path: PathBuf, seconds: u64 },
    /// The disk, a quota or a file-size limit is full.
    #[error("no space to write {}: {needed} bytes needed, {free} bytes free", path.display())]
    NoSpace { path: PathBuf, needed: u64, free: u64 },
    /// A file operation failed while saving.
    #[error("failed to write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    /// A tensor could not be moved from or to its device; only f32 can be saved.
    #[error("failed to save or load tensor `{name}`")]
    Tensor { name: String, source: candle_core::Error },
    /// Two tensors have the same name.
    #[error("two tensors are named `{name}`")]
    Duplicate { name: String },
    /// The text of a file could not be made.
    #[error("failed to describe {}", path.display())]
    Describe { path: PathBuf, source: serde_json::Error },
    /// A file of a checkpoint, or the folder itself, is not there.
    #[error("{} is missing", path.display())]
    Missing { path: PathBuf },
    /// A file is there but cannot be read.
    #[error("failed to read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// A file is not what was written.
    #[error("{} is damaged: {what}", path.display())]
    Damaged { path: PathBuf, what: String },
    /// Written by another version of qvl.
    #[error("{} has format {found}, expected {expected}", path.display())]
    Format { path: PathBuf, found: u32, expected: u32 },
    /// The checkpoint belongs to something else.
    #[error("{} was saved for another {what}: {found}, expected {expected}", path.display())]
    Other { path: PathBuf, what: &'static str, found: String, expected: String },
    /// There are checkpoints, but all are damaged.
    #[error("no checkpoint in {} can be loaded: {}", folder.display(), reasons.join("; "))]
    NoneUsable { folder: PathBuf, reasons: Vec<String> },
}

impl CheckpointError {
    /// Whether an older checkpoint may be used instead.
    pub(super) fn is_damage(&self) -> bool {
        matches!(
            self,
            CheckpointError::Missing { .. }
                | CheckpointError::Read { .. }
                | CheckpointError::Damaged { .. }
        )
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            CheckpointError::Fenced { .. } => {
                "this process is left over from an earlier attempt; let it end"
            }
            CheckpointError::Locked { .. } => {
                "another process of this job is frozen while saving; end it"
            }
            CheckpointError::NoSpace { .. } => NO_SPACE,
            CheckpointError::Write { source, .. } if source.kind() == ErrorKind::StorageFull => {
                NO_SPACE
            }
            CheckpointError::Write { .. } => {
                "check that the output folder exists and may be written; earlier checkpoints are intact"
            }
            CheckpointError::Missing { .. }
            | CheckpointError::Read { .. }
            | CheckpointError::Damaged { .. } => {
                "choose another checkpoint, or none to go on from the newest that is intact"
            }
            CheckpointError::Format { .. } => "use the version of qvl that saved it",
            CheckpointError::Other { .. } => {
                "use the job file and the base model of the first start, or another output folder"
            }
            CheckpointError::NoneUsable { .. } => {
                "move the folder away to start from the beginning"
            }
            CheckpointError::Tensor { .. }
            | CheckpointError::Duplicate { .. }
            | CheckpointError::Describe { .. } => return None,
        })
    }

    /// The exit code of a trainer that ends with this error.
    pub fn exit(&self) -> TrainerExit {
        match self {
            CheckpointError::Other { .. } | CheckpointError::Format { .. } => TrainerExit::Config,
            CheckpointError::Tensor { .. }
            | CheckpointError::Duplicate { .. }
            | CheckpointError::Describe { .. } => TrainerExit::Internal,
            CheckpointError::Fenced { .. }
            | CheckpointError::Locked { .. }
            | CheckpointError::NoSpace { .. }
            | CheckpointError::Write { .. }
            | CheckpointError::Missing { .. }
            | CheckpointError::Read { .. }
            | CheckpointError::Damaged { .. }
            | CheckpointError::NoneUsable { .. } => TrainerExit::CheckpointIo,
        }
    }
}
