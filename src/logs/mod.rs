//! Logs that outlive their pods: segments in the pod, a collector in the cluster.
//!
//! `docs/logs.md` says what is promised and what the files look like.

pub mod auth;
pub mod body;
pub mod collector;
pub mod merge;
pub mod segment;
pub mod spool;
pub mod strangers;
