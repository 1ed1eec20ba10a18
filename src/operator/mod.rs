//! The operator: observes a job and its pods, plans the next steps, applies them.

pub mod broker;
pub mod gang;
