//! Errors of commands: a status for the shell, a chain of causes and hints for a person.

use std::{fmt, io};

use crate::wire::ExitStatus;

/// Why a command failed.
#[derive(Debug)]
pub struct CliError {
    pub status: ExitStatus,
    error: anyhow::Error,
    hints: Vec<String>,
}

impl CliError {
    /// An error in our own words.
    pub fn new(status: ExitStatus, message: impl Into<String>) -> Self {
        CliError { status, error: anyhow::Error::msg(message.into()), hints: Vec::new() }
    }

    /// An error with the one that caused it.
    pub fn of(status: ExitStatus, error: impl Into<anyhow::Error>) -> Self {
        CliError { status, error: error.into(), hints: Vec::new() }
    }

    /// Adds what the user can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Whether this is an error of that type.
    pub fn is<E: fmt::Display + fmt::Debug + Send + Sync + 'static>(&self) -> bool {
        self.error.is::<E>()
    }

    /// The error in one line, without hints.
    pub fn line(&self) -> String {
        format!("{:#}", self.error)
    }

    /// What the system said about a file, if that is the cause.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        self.error.chain().find_map(|cause| Some(cause.downcast_ref::<io::Error>()?.kind()))
    }

    /// Whether whoever reads our output went away.
    pub fn is_broken_pipe(&self) -> bool {
        let mut causes = self.error.chain();
        causes.any(|cause| {
            cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
        })
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "error: {:#}", self.error)?;
        for hint in &self.hints {
            writeln!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        CliError::of(ExitStatus::Internal, error)
    }
}
