//! Metrics files, curves, pictures and the report of a run.

pub mod answers;
pub mod contact_sheet;
pub mod curve;
pub mod metrics;
pub mod report;
pub mod stats;
pub mod tensorboard;
pub mod whole;
