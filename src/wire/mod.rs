//! What the supervisor and the trainer say to each other: exit codes, the names of
//! environment variables, and the typed event stream.
//!
//! The trainer writes one JSON [`Event`] per line to its standard output and its log, for
//! humans, to standard error. Both binaries use these types, so they cannot drift apart.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod env;
mod event;
mod exit;
pub mod gputest;
pub mod pairs;
mod supervision;
pub mod sync;
mod verdict;

pub use event::{EvalMetrics, Event, Interval, Record, StepMetrics, TaskLoss};
pub use exit::{ExitStatus, TrainerExit};
pub use supervision::{Source, SupervisorEvent, SupervisorRecord};
pub use verdict::{ANNOTATION as VERDICT_ANNOTATION, DoctorVerdict, VerdictCounts};
