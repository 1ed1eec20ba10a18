//! The kind `FineTuneJob`: the job file's own spec, and what the operator says about it.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Resource, api::ObjectMeta, core::NamespaceResourceScope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{GROUP, VERSION};
use crate::{
    job::{self, JobKind, JobSpec, JobVersion},
    wire::DoctorVerdict,
};

/// A fine-tuning job in a cluster. Its spec is that of the job file, the same type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FineTuneJob {
    /// `qvl.dev/v1alpha1`.
    pub api_version: String,
    /// `FineTuneJob`.
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: JobSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<JobStatus>,
}

impl FineTuneJob {
    /// Name of the kind.
    pub const KIND: &'static str = "FineTuneJob";
    /// Its plural, as in `kubectl get finetunejobs`.
    pub const PLURAL: &'static str = "finetunejobs";

    /// An object for the API server of a job file.
    pub fn of(job: job::FineTuneJob) -> Self {
        let metadata = ObjectMeta { name: Some(job.metadata.name), ..ObjectMeta::default() };
        FineTuneJob {
            api_version: format!("{GROUP}/{VERSION}"),
            kind: Self::KIND.to_owned(),
            metadata,
            spec: job.spec,
            status: None,
        }
    }

    /// Name; empty only for an object that never was at an API server.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// Namespace; empty only for an object that never was at an API server.
    pub fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// The job file that this object holds.
    pub fn file(&self) -> job::FineTuneJob {
        job::FineTuneJob {
            api_version: JobVersion::V1Alpha1,
            kind: JobKind::FineTuneJob,
            metadata: job::Metadata { name: self.name().to_owned() },
            spec: self.spec.clone(),
        }
    }
}

impl Resource for FineTuneJob {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        Self::KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        VERSION.into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        Self::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Where a job is. Computed by one pure function, never from "the last condition".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum State {
    /// Nothing was done yet.
    #[default]
    Pending,
    /// Waits for quota.
    Queued,
    /// Pods wait for nodes, or for their image.
    Scheduling,
    /// The pods' own test before the start.
    Preflight,
    /// The ranks look for each other.
    Rendezvous,
    /// Steps are made.
    Running,
    /// No step for too long.
    Stalled,
    /// Between two attempts.
    Restarting,
    /// Saves a checkpoint and stops.
    Suspending,
    /// Stopped by `spec.suspend`; the GPUs are free.
    Suspended,
    /// Terminal: done.
    Complete,
    /// Terminal: given up.
    Failed,
}

/// What the operator says about a job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct JobStatus {
    /// Generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Validated, ChildrenApplied, QuotaReserved, PodsScheduled, PreflightPassed,
    /// RendezvousComplete, Progressing, Suspended, Restarting, Complete, Failed.
    pub conditions: Vec<Condition>,
    /// Attempts that have begun: each is one Job with pods of its own.
    pub attempt: u32,
    /// Times that the ranks have started, within attempts too. Checkpoints carry it.
    pub epoch: u32,
    pub restarts: Restarts,
    pub placement: Placement,
    pub summary: Summary,
    pub progress: Progress,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<LastFailure>,
    /// What the doctor said before this launch; absent if it was not asked. Set once, from the
    /// annotation `qvl.dev/doctor`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub doctor: Option<DoctorVerdict>,
}

/// Restarts so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Restarts {
    /// All of them.
    pub total: u32,
    /// Those that count towards `failure.maxRestarts`: not preemptions.
    pub counted: u32,
}

/// Where the pods run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Placement {
    /// Nodes of the current attempt by index of the pod.
    pub nodes: Vec<String>,
    /// Nodes that this job no longer uses.
    pub excluded: Vec<ExcludedNode>,
}

/// A node that failed this job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExcludedNode {
    pub name: String,
    pub reason: String,
}

/// What `kubectl get ftj` shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Summary {
    pub state: State,
    /// Ranks that run of all, for example `4/4`.
    pub ranks: String,
    /// For example `43% 860/2000`.
    pub progress: String,
    /// For example `1h12m`.
    pub eta: String,
    /// Loss of the last step, three digits.
    pub loss: String,
    /// Why it is in this state, in a few words.
    pub reason: String,
}

/// How far the training is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Progress {
    pub step: u64,
    pub total_steps: u64,
    /// Seconds of the median step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Step of the newest checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_step: Option<u64>,
}

impl LastFailure {
    /// What happened, with the node where it did.
    pub fn sentence(&self) -> String {
        let subject = format!("rank {} ", self.rank);
        match self.what.strip_prefix(&subject) {
            Some(rest) if !self.node.is_empty() => {
                format!("rank {} on {} {rest}", self.rank, self.node)
            }
            Some(_) | None => self.what.clone(),
        }
    }
}

/// The last failure, with the rank that is to blame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastFailure {
    /// Class of the failure, which decides about restarts.
    pub class: String,
    pub rank: u32,
    pub node: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// One sentence, which names whom it is about: a rank, a pod or a node.
    pub what: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Last words of the rank, at most 2 KiB.
    #[serde(default)]
    pub tail: String,
    pub epoch: u32,
    /// Last step that was done.
    pub step: u64,
}
