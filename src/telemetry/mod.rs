//! Metrics files, curves and pictures of a run.

pub mod stats;
