//! Metrics files, curves and pictures of a run.

pub mod contact_sheet;
pub mod curve;
pub mod metrics;
pub mod report;
pub mod stats;
pub mod tensorboard;
