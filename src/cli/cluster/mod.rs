//! Commands that talk to a cluster. Files without requests are pure: they turn objects into
//! plans, sentences and tables.

mod act;
mod bundle;
mod client;
pub(crate) mod commands;
mod events;
mod explain;
pub(crate) mod fleet;
mod follow;
mod health;
pub(crate) mod launch;
mod objects;
mod observe;
mod place;
pub(crate) mod plan;
mod quantity;
pub(crate) mod record;
mod redact;
mod rooms;
mod roster;
mod seen;
mod show;
mod status;
mod submit;
mod table;
mod tar;
mod top;
mod trouble;

pub(crate) use act::Stop;
pub(crate) use client::{Cluster, Target, block_on, connect};
pub(crate) use commands::At;
pub(crate) use trouble::{Call, JOBS, no_job};
