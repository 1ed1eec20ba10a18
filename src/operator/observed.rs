//! What the operator knows of a job at one moment. Pure: made of objects that were read before.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    batch::v1::{Job, JobStatus as BatchStatus},
    core::v1::{ContainerState, Pod},
};

use super::{gang::GangView, news::FailureId};
use crate::api::{
    job::{FineTuneJob, JobStatus, LastFailure},
    labels,
};

/// Patience with a pod that the cluster has given up with its node.
const LOST_SECONDS: i64 = 10;

/// Everything a plan depends on.
#[derive(Clone, Debug)]
pub struct Observed {
    pub now: Timestamp,
    pub job: FineTuneJob,
    /// What is wrong with the job itself.
    pub problems: Vec<String>,
    /// Child Jobs by attempt.
    pub attempts: Vec<AttemptFact>,
    /// Pods by attempt and index.
    pub pods: Vec<PodFact>,
    /// What the broker knows; `None` until it has heard of the pods.
    pub gang: Option<GangView>,
    /// The last call for this job that the API server refused.
    pub fault: Option<Fault>,
    /// The API server serves pod groups.
    pub pod_groups: bool,
    /// Whether numbers that change with every step may be written again.
    pub numbers_due: bool,
    /// Keys of the news that were told.
    pub told: BTreeSet<String>,
    /// Whether this operator has looked at the job before.
    pub looked: bool,
    /// The failure that the status told of at the first look.
    pub first_failure: Option<FailureId>,
}

/// A refused call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What failed, with the server's words.
    pub message: String,
    /// Whether trying again with the same objects cannot help, for example a forbidden field.
    pub refused: bool,
}

/// The Job of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptFact {
    pub attempt: u32,
    pub name: String,
    pub uid: String,
    /// UID of the object that owns it: a job of the same name may have lived before.
    pub owner: String,
    pub created: Option<Timestamp>,
    /// Since when pods may run; `None` while a queue holds it.
    pub started: Option<Timestamp>,
    /// A queue holds it.
    pub suspended: bool,
    pub deleting: bool,
    pub end: Option<JobEnd>,
}

/// How a child Job has ended, or is about to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobEnd {
    Complete,
    Failed { reason: String, message: String },
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFact {
    pub name: String,
    pub uid: String,
    pub attempt: u32,
    pub index: u32,
    pub node: Option<String>,
    pub phase: PodPhase,
    /// Why it does not start: reason and message of the scheduler or the kubelet.
    pub waiting: Option<(String, String)>,
    /// Exit code of the supervisor.
    pub exit_code: Option<i32>,
    /// What the supervisor wrote as its last words.
    pub last_words: Option<String>,
    /// Reason of a disruption: preemption, eviction, a lost node.
    pub disruption: Option<String>,
    /// If it is being deleted: since when.
    pub deleted: Option<Timestamp>,
    /// If it is being deleted: when its time to end is over.
    pub deadline: Option<Timestamp>,
}

/// Phase of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodPhase {
    Pending,
    Running,
    Succeeded,
    Failed,
    Unknown,
}

impl Observed {
    /// The status that was last written.
    pub fn status(&self) -> &JobStatus {
        static NONE: std::sync::LazyLock<JobStatus> = std::sync::LazyLock::new(JobStatus::default);
        self.job.status.as_ref().unwrap_or(&NONE)
    }

    /// The Job of an attempt that belongs to this very object.
    pub fn attempt(&self, attempt: u32) -> Option<&AttemptFact> {
        let owner = self.job.metadata.uid.as_deref().unwrap_or_default();
        self.attempts.iter().find(|fact| fact.attempt == attempt && fact.owner == owner)
    }

    /// Pods of an attempt, replaced ones included.
    pub fn pods_of(&self, attempt: u32) -> impl Iterator<Item = &PodFact> {
        self.pods.iter().filter(move |pod| pod.attempt == attempt)
    }

    /// Whether a pod has ended, or surely will not do anything any more.
    pub fn is_over(&self, pod: &PodFact) -> bool {
        match pod.phase {
            PodPhase::Succeeded | PodPhase::Failed => true,
            PodPhase::Pending | PodPhase::Running | PodPhase::Unknown => self.is_fenced(pod),
        }
    }

    /// A pod on a node that nobody hears of stays "running" for ever. A checkpoint of a later epoch refuses
    /// what it may still write. Nobody there has read that it has to end, so its deadline tells nothing, unless
    /// the broker hears it: then its kubelet is dead and its ranks are not, which may save.
    pub fn is_fenced(&self, pod: &PodFact) -> bool {
        let over = |since: Option<Timestamp>, patience| {
            since.is_some_and(|since| patience < self.now.as_second() - since.as_second())
        };
        match (pod.on_lost_node(), self.is_silent(pod)) {
            (true, true) => over(pod.deleted, LOST_SECONDS),
            (true, false) => over(pod.deadline, LOST_SECONDS),
            (false, _) => over(pod.deadline, 120),
        }
    }

    /// Whether the broker knows that it does not hear a pod.
    fn is_silent(&self, pod: &PodFact) -> bool {
        let silent = |gang: &GangView| gang.silent_pods.contains(&pod.index);
        pod.attempt == self.status().attempt && self.gang.as_ref().is_some_and(silent)
    }

    /// Ranks of one pod.
    pub fn ranks_per_pod(&self) -> u32 {
        ranks_per_pod(&self.job)
    }

    /// Pods of one attempt.
    pub fn pods_wanted(&self) -> u32 {
        pods(&self.job)
    }
}

/// Ranks of one pod of a job.
pub fn ranks_per_pod(job: &FineTuneJob) -> u32 {
    let gpus = job.spec.world.gpus.max(1);
    job.spec.cluster.gpus_per_node.filter(|count| 0 < *count).unwrap_or(gpus).min(gpus)
}

/// Whether several pods have to be placed together, and no queue sees to that.
pub fn is_gang(job: &FineTuneJob) -> bool {
    1 < pods(job) && job.spec.cluster.queue.is_none()
}

/// Pods of one attempt of a job.
pub fn pods(job: &FineTuneJob) -> u32 {
    job.spec.world.gpus.max(1).div_ceil(ranks_per_pod(job))
}

impl AttemptFact {
    /// What a child Job tells; `None` if it carries no attempt.
    pub fn of(job: &Job) -> Option<Self> {
        let meta = &job.metadata;
        let status = job.status.clone().unwrap_or_default();
        let spec = job.spec.as_ref();
        let started = status.start_time.as_ref().map(|time| time.0);
        Some(AttemptFact {
            attempt: meta.labels.as_ref()?.get(labels::ATTEMPT)?.parse().ok()?,
            name: meta.name.clone()?,
            uid: meta.uid.clone().unwrap_or_default(),
            owner: meta.owner_references.iter().flatten().map(|owner| owner.uid.clone()).next()?,
            created: meta.creation_timestamp.as_ref().map(|time| time.0),
            started,
            suspended: spec.and_then(|spec| spec.suspend) == Some(true),
            deleting: meta.deletion_timestamp.is_some(),
            end: job_end(&status),
        })
    }
}

/// `FailureTarget` and `SuccessCriteriaMet` come before the pods have ended; what matters here is
/// that a failure is decided, and that a success is complete.
fn job_end(status: &BatchStatus) -> Option<JobEnd> {
    let met = |kind: &str| {
        status.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == "True")
    };
    if met("Complete").is_some() {
        return Some(JobEnd::Complete);
    }
    let failed = met("Failed").or_else(|| met("FailureTarget"))?;
    Some(JobEnd::Failed {
        reason: failed.reason.clone().unwrap_or_default(),
        message: failed.message.clone().unwrap_or_default(),
    })
}

impl PodFact {
    /// What a pod tells; `None` if it carries no attempt and index.
    pub fn of(pod: &Pod) -> Option<Self> {
        let meta = &pod.metadata;
        let status = pod.status.clone().unwrap_or_default();
        let labels = meta.labels.as_ref()?;
        let trainer = status
            .container_statuses
            .iter()
            .flatten()
            .find(|container| container.name == labels::CONTAINER);
        let ended = trainer.and_then(|container| container.state.as_ref()?.terminated.clone());
        let met = |kind: &str, wanted: &str| {
            let conditions = status.conditions.iter().flatten();
            conditions.clone().find(|c| c.type_ == kind && c.status == wanted).cloned()
        };
        let unschedulable = met("PodScheduled", "False")
            .map(|c| (c.reason.unwrap_or_default(), c.message.unwrap_or_default()));
        let deadline = meta.deletion_timestamp.as_ref().map(|time| time.0);
        let grace = SignedDuration::from_secs(meta.deletion_grace_period_seconds.unwrap_or(0));
        Some(PodFact {
            name: meta.name.clone()?,
            uid: meta.uid.clone().unwrap_or_default(),
            attempt: labels.get(labels::ATTEMPT)?.parse().ok()?,
            index: labels.get(labels::INDEX)?.parse().ok()?,
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            phase: phase(status.phase.as_deref()),
            waiting: unschedulable
                .or_else(|| trainer.and_then(|container| waiting(container.state.as_ref()?))),
            exit_code: ended.as_ref().map(|ended| ended.exit_code),
            last_words: ended.and_then(|ended| ended.message),
            disruption: met("DisruptionTarget", "True").map(|c| c.reason.unwrap_or_default()),
            // The deletion's time is that of the deadline.
            deleted: deadline.map(|deadline| deadline - grace),
            deadline,
        })
    }

    /// Whether its node is to blame for its end.
    pub fn on_lost_node(&self) -> bool {
        self.disruption.as_deref() == Some("DeletionByTaintManager")
    }

    /// The failure that its last words tell, if they are of the known form.
    pub fn last_failure(&self) -> Option<LastFailure> {
        serde_json::from_str(self.last_words.as_deref()?).ok()
    }
}

/// `ContainerCreating` and `PodInitializing` are no problem, just early.
fn waiting(state: &ContainerState) -> Option<(String, String)> {
    let waiting = state.waiting.as_ref()?;
    let reason = waiting.reason.clone().unwrap_or_default();
    let early = ["", "ContainerCreating", "PodInitializing"].contains(&reason.as_str());
    (!early).then(|| (reason, waiting.message.clone().unwrap_or_default()))
}

fn phase(text: Option<&str>) -> PodPhase {
    match text {
        Some("Running") => PodPhase::Running,
        Some("Succeeded") => PodPhase::Succeeded,
        Some("Failed") => PodPhase::Failed,
        Some("Unknown") => PodPhase::Unknown,
        Some(_) | None => PodPhase::Pending,
    }
}
