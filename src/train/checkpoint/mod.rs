//! Checkpoints: everything that a run needs to go on as if it had never stopped.
//!
//! ```text
//! OUTPUT/checkpoints/
//!   step-00000120/        one complete checkpoint
//!     weights.safetensors     trained parameters, f32
//!     optimizer.safetensors   moments: NAME.exp_avg and NAME.exp_avg_sq, f32
//!     state.json              State
//!     manifest.json           sizes and SHA-256 of the other files, and what they belong to
//!   latest, best          text files with the name of a folder, for people and other tools
//!   attempt               the highest attempt that may write here
//!   lock                  held for the moment of a change
//!   .saving-*, .removed-* what a killed process left; removed by the next one that writes
//! ```
//!
//! A folder gets its name by one atomic rename after all its files are on disk, so a checkpoint
//! is complete or not there. The newest is that of the highest attempt, then of the highest
//! step. A process of an older attempt than the one in `attempt` cannot write any more.

mod disk;
mod error;
mod load;
mod manifest;
mod store;
mod tensors;

#[cfg(test)]
mod tests;

pub use error::CheckpointError;
pub use load::{Found, Loaded, load, load_latest};
pub use manifest::{FileEntry, Identity, Manifest, State};
pub use store::{Saved, Store};
