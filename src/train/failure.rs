//! One error type for the end of a trainer process: what failed, which exit code says so, and
//! what the user can do.

use crate::wire::{Event, TrainerExit};

/// Why the trainer stops early.
#[derive(Debug)]
pub struct Failure {
    /// Exit code of the process.
    pub exit: TrainerExit,
    /// What failed, with its chain of causes.
    pub error: anyhow::Error,
    /// What the user can do about it.
    pub hint: Option<String>,
    /// The rank to blame, if it is another one.
    pub peer: Option<u32>,
}

impl Failure {
    /// A failure of our own words.
    pub fn new(exit: TrainerExit, message: impl Into<String>) -> Self {
        Failure { exit, error: anyhow::Error::msg(message.into()), hint: None, peer: None }
    }

    /// A failure with the error that caused it.
    pub fn of(exit: TrainerExit, error: impl Into<anyhow::Error>) -> Self {
        Failure { exit, error: error.into(), hint: None, peer: None }
    }

    /// Adds what the user can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The last event of the stream.
    pub fn event(&self) -> Event {
        Event::Failed {
            exit: self.exit,
            message: format!("{:#}", self.error),
            hint: self.hint.clone(),
            peer: self.peer,
        }
    }
}

impl From<candle_core::Error> for Failure {
    fn from(error: candle_core::Error) -> Self {
        let text = error.to_string();
        let lower = text.to_lowercase();
        if lower.contains("out of memory") || lower.contains("out_of_memory") {
            return Failure::of(TrainerExit::DeviceOutOfMemory, error).hint(
                "use a smaller batch.unit or data.maxLength; `qvl plan` shows the memory per rank",
            );
        }
        if lower.contains("cuda") || lower.contains("cublas") {
            return Failure::of(TrainerExit::GpuFault, error).hint("run `qvl doctor` on this node");
        }
        Failure::of(TrainerExit::Internal, error)
    }
}

impl From<super::model::ModelError> for Failure {
    fn from(error: super::model::ModelError) -> Self {
        if let super::model::ModelError::Compute(source) = error {
            return source.into();
        }
        let (exit, hint) = (error.exit(), error.hint());
        Failure { hint: hint.map(str::to_owned), ..Failure::of(exit, error) }
    }
}

impl From<super::adapter::AdapterError> for Failure {
    fn from(error: super::adapter::AdapterError) -> Self {
        let (exit, hint) = (error.exit(), error.hint());
        Failure::of(exit, error).hint(hint)
    }
}

impl From<super::canary::VerifyError> for Failure {
    fn from(error: super::canary::VerifyError) -> Self {
        match error {
            super::canary::VerifyError::Adapter(error) => error.into(),
            super::canary::VerifyError::Model(error) => error.into(),
        }
    }
}

impl From<super::reduce::ReduceError> for Failure {
    fn from(error: super::reduce::ReduceError) -> Self {
        if let super::reduce::ReduceError::Add { source, .. } = error {
            return source.into();
        }
        Failure::of(TrainerExit::Internal, error)
    }
}

impl From<super::collective::CollectiveError> for Failure {
    fn from(error: super::collective::CollectiveError) -> Self {
        let (exit, hint) = (error.exit(), error.hint());
        let peer = error.lost_peer().and_then(|rank| u32::try_from(rank).ok());
        Failure { hint, peer, ..Failure::of(exit, error) }
    }
}

impl From<super::checkpoint::CheckpointError> for Failure {
    fn from(error: super::checkpoint::CheckpointError) -> Self {
        let (exit, hint) = (error.exit(), error.hint());
        Failure { hint: hint.map(str::to_owned), ..Failure::of(exit, error) }
    }
}
