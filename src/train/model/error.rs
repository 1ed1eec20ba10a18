//! Why a model cannot be loaded or computed.

use std::{io, path::PathBuf};

use crate::wire::TrainerExit;

/// Why a model cannot be loaded or computed.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("failed to read `{}`", .path.display())]
    ReadFile { path: PathBuf, source: io::Error },
    #[error("failed to write `{}`", .path.display())]
    WriteFile { path: PathBuf, source: io::Error },
    #[error("`{}` is not a Qwen-VL configuration", .path.display())]
    Config { path: PathBuf, source: serde_json::Error },
    #[error("`{}` cannot be a model: {what}", .path.display())]
    BadConfig { path: PathBuf, what: String },
    #[error("`{}` holds no weights: expected *.safetensors or *.bin", .folder.display())]
    NoWeights { folder: PathBuf },
    #[error("`{}` is a Git LFS pointer, not the file itself", .path.display())]
    LfsPointer { path: PathBuf },
    #[error("failed to read the tensors of `{}`: it is truncated or damaged", .path.display())]
    Damaged { path: PathBuf, source: candle_core::Error },
    #[error("`{}` is not an index of weight files", .path.display())]
    Index { path: PathBuf, source: serde_json::Error },
    #[error("`{}` names `{shard}`, which is missing", .index.display())]
    MissingShard { index: PathBuf, shard: String },
    #[error("`{}` promises {expected} bytes of tensors, its files hold {found}", .index.display())]
    TotalSize { index: PathBuf, expected: u64, found: u64 },
    #[error("the weights in `{}` do not fit config.json:{list}", .folder.display())]
    Audit { folder: PathBuf, list: String },
    #[error("the picture of row {row} begins at {start} and does not fit into its sample")]
    ImageOutside { row: usize, start: usize },
    #[error("features of a picture were given while the vision tower is trained")]
    FeaturesWhileTraining,
    #[error("the tensor computation failed")]
    Compute(#[from] candle_core::Error),
}

impl ModelError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            ModelError::ReadFile { .. } | ModelError::NoWeights { .. } => Some(
                "spec.model.path must be the folder of a Qwen-VL release with config.json and weights",
            ),
            ModelError::Config { .. } | ModelError::BadConfig { .. } => {
                Some("use the config.json that came with the weights")
            }
            ModelError::LfsPointer { .. } => {
                Some("run `git lfs pull` in that folder, or download the file again")
            }
            ModelError::Index { .. }
            | ModelError::MissingShard { .. }
            | ModelError::TotalSize { .. } => Some(
                "download all files of the release again; some are missing or from another one",
            ),
            ModelError::Damaged { .. } => Some("download the file again and compare its size"),
            ModelError::Audit { .. } => {
                Some("config.json and weights must come from the same release")
            }
            ModelError::WriteFile { .. } => Some("check free space and permissions"),
            ModelError::ImageOutside { .. }
            | ModelError::FeaturesWhileTraining
            | ModelError::Compute(_) => None,
        }
    }

    /// The trainer's exit code for it.
    pub fn exit(&self) -> TrainerExit {
        match self {
            ModelError::ReadFile { .. }
            | ModelError::NoWeights { .. }
            | ModelError::MissingShard { .. } => TrainerExit::InputMissing,
            ModelError::Config { .. }
            | ModelError::BadConfig { .. }
            | ModelError::LfsPointer { .. }
            | ModelError::Damaged { .. }
            | ModelError::Index { .. }
            | ModelError::TotalSize { .. }
            | ModelError::Audit { .. } => TrainerExit::Data,
            ModelError::WriteFile { .. } => TrainerExit::CheckpointIo,
            ModelError::ImageOutside { .. }
            | ModelError::FeaturesWhileTraining
            | ModelError::Compute(_) => TrainerExit::Internal,
        }
    }
}
