//! A fine-tune job: its specification, defaults, checks that need no machine, and the plan of
//! steps and memory. Pure: what doctor, launcher, operator and trainer all read.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod edit;
mod lines;
pub mod memory;
mod parse;
pub mod plan;
pub mod pod_paths;
pub mod quantity;
pub mod schedule;
mod shape;
mod spec;
mod validate;

pub use parse::{JobError, Problem, parse};
pub use spec::{
    Batch, Checkpoint, Cluster, Compute, Data, Dtype, EXCLUDED_NODES, EvalSet, Evaluation, Failure,
    FineTuneJob, Full, JobKind, JobSpec, JobVersion, Lora, LoraTarget, Mask, Metadata, Method,
    ModelSource, Normalisation, OnOverlong, Optimizer, Part, RankEnv, RankResources, Schedule,
    ScheduleKind, Stage, Task, TrainSet, Volume, World,
};
pub use validate::problems;
