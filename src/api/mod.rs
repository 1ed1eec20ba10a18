//! The custom resources of the API group `qvl.dev`, and the names that objects of a job carry.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod crd;
pub mod job;
pub mod labels;
pub mod node;

/// API group of all kinds.
pub const GROUP: &str = "qvl.dev";
/// The only version so far.
pub const VERSION: &str = "v1alpha1";
