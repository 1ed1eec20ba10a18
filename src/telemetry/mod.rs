//! Metrics files, curves and pictures of a run.

pub mod contact_sheet;
pub mod stats;
