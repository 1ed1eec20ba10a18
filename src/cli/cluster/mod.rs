//! Commands that talk to a cluster.

#![expect(dead_code, reason = "the commands that use it follow")]

mod client;
mod trouble;

#[expect(unused_imports, reason = "the commands that use it follow")]
pub(crate) use client::{Cluster, Target, block_on, connect};
pub(crate) use trouble::Call;
