//! What a report shows, as plain data.

use serde::{Deserialize, Serialize};

use crate::{
    telemetry::answers::Gain,
    wire::{EvalMetrics, Record},
};

/// Everything in a report. A part that is not known is empty, and the report says so.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ReportInput {
    /// Name of the job.
    pub name: String,
    /// `succeeded`, `failed`, ...
    pub status: String,
    pub tone: Tone,
    /// Numbers of the run.
    pub run: Vec<Row>,
    /// The machine on which it ran.
    pub machine: Vec<Row>,
    /// What the doctor said before the start.
    pub doctor: Option<DoctorVerdict>,
    /// What the plan said before the start.
    pub plan: Vec<Row>,
    pub memory: Vec<Memory>,
    /// Steps and evaluations, without those of lost steps.
    pub records: Vec<Record>,
    pub sets: Vec<SetReport>,
    /// What happened from the first attempt to the end, one sentence each.
    pub story: Vec<String>,
    pub proof: Option<Proof>,
    pub pictures: Vec<Picture>,
    /// Path and what it holds.
    pub files: Vec<Row>,
    /// What a reader must not conclude.
    pub limits: Vec<String>,
    /// The job file.
    pub job: String,
}

/// How good a piece of news is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tone {
    Good,
    #[default]
    Warn,
    Bad,
}

/// A name and a value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub name: String,
    pub value: String,
}

impl Row {
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        Row { name: name.into(), value: value.into() }
    }
}

/// The doctor's verdict with everything that did not pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DoctorVerdict {
    /// `ready`, `blocked` or `unknown`.
    pub verdict: String,
    pub tone: Tone,
    /// `31 passed, 1 warning, 14 do not apply`.
    pub counts: String,
    pub checks: Vec<Check>,
}

/// A check that did not pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    pub id: String,
    pub tone: Tone,
    pub what: String,
    pub fix: String,
}

/// A component of a rank's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    pub name: String,
    pub bytes: u64,
    pub from: String,
}

/// An evaluation set: measured one or more times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetReport {
    pub name: String,
    pub measured: Vec<Measured>,
    /// The change from the first to the last measurement, sample by sample.
    pub gains: Vec<Gain>,
}

/// One measurement of a set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// `before`, `step 500`, or the name of another model.
    pub label: String,
    pub metrics: EvalMetrics,
}

/// Runs of the same job on different numbers of ranks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Proof {
    pub runs: Vec<ProofRun>,
    /// Whether all losses and all result files are equal to the bit.
    pub equal: bool,
    /// First step at which losses differ.
    pub differs_at: Option<u64>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofRun {
    pub name: String,
    pub ranks: u32,
    pub steps: u64,
    /// Loss of the last step, as written by the trainer.
    pub last_loss: String,
    /// SHA-256 of the trained weights.
    pub sha256: String,
}

/// A picture with its title and what to see in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Picture {
    pub title: String,
    pub caption: String,
    /// PNG bytes.
    pub png: Vec<u8>,
}
