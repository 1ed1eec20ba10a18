//! The pods of a job as one gang: when they start, and what happens when a rank ends. Pure.
//!
//! The state is soft. It is made of what the pods say every second, so an operator that was just
//! started knows all of it after one round; pods that run are adopted with their epoch.
//!
//! An epoch has one token, and epochs only grow. After a failure all trainers of the epoch are
//! gone before the next epoch begins: checkpoints are fenced by the epoch, and the ranks of two
//! epochs never meet.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod admit;
mod blame;
mod pairs;
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test begins at some moment")]
mod random;
mod reply;
mod round;
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test begins at some moment")]
mod tests;
mod view;

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use self::round::Gang;
use crate::{
    api::job::{LastFailure, Progress},
    wire::sync::{SyncReply, SyncRequest},
};

/// A pod that says nothing for so long is lost.
pub const SILENT: Duration = Duration::from_secs(15);

/// Namespace and name of a job.
pub type Key = (String, String);

/// What the operator knows of an attempt before any of its pods has spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GangSpec {
    /// Attempt, from 1; the pods of older ones are refused.
    pub attempt: u32,
    pub pods: u32,
    pub ranks_per_pod: u32,
    /// `failure.maxRestarts`.
    pub max_restarts: u32,
    /// Restarts that count towards it and were made before this registration.
    pub restarts: u32,
    /// Newest epoch that the job has had in earlier attempts, or as far as the status tells.
    pub epoch_floor: u32,
    /// The Job itself replaces pods that leave, as it does for a queue: they are not lost.
    pub replaces: bool,
}

/// Where a gang is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GangPhase {
    /// Some pod has not spoken yet.
    Waiting,
    /// Some pod still tests its machine.
    Preflight,
    /// Trainers start and look for each other.
    Rendezvous,
    /// All ranks have met.
    Running,
    /// They have, but a step takes far longer than usual.
    Stalled,
    /// Trainers of an epoch end, or wait for the next one.
    Restarting,
    /// Trainers save and stop on request.
    Stopping,
    /// They have stopped on request; terminal for the attempt.
    Stopped,
    /// All steps are done; terminal.
    Succeeded,
    /// A restart cannot help or all are used up; terminal.
    Failed,
    /// A pod is silent, or leaves its node, while another is heard: this attempt cannot go on.
    Lost,
}

/// A gang as the operator sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct GangView {
    pub phase: GangPhase,
    /// Newest epoch; `epoch_floor` before the first start.
    pub epoch: u32,
    /// Restarts that count, those before this registration included.
    pub restarts: u32,
    pub progress: Progress,
    /// Node of each pod by index; empty if the pod has not spoken.
    pub nodes: Vec<String>,
    pub last_failure: Option<LastFailure>,
    /// What was found before the start and stops nothing.
    pub notes: Vec<String>,
    /// Pods that are silent, or leave. If all are silent the phase does not change: the way to
    /// the operator may be broken, and the training goes on without it. Pod and node tell more.
    pub silent_pods: Vec<u32>,
    /// Ranks whose trainers run.
    pub running_ranks: u32,
}

impl GangView {
    /// Whether no pod has spoken to this broker yet.
    pub fn is_unheard(&self) -> bool {
        self.nodes.iter().all(String::is_empty)
    }
}

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("no job `{job}` in namespace `{namespace}` is running here")]
    UnknownJob { namespace: String, job: String },
    #[error("the request has version {got}, this operator understands version 1")]
    Version { got: u32 },
    #[error("index {index} is outside of a job of {pods} pods")]
    Index { index: u32, pods: u32 },
    #[error("`{field}` is not acceptable: {what}")]
    Field { field: &'static str, what: String },
    #[error("attempt {got} has not begun here, the newest is {current}")]
    Early { got: u32, current: u32 },
    #[error("attempt {got} is over, attempt {current} has begun")]
    Late { got: u32, current: u32 },
    #[error("pod {index} was replaced by another pod of the same index")]
    Replaced { index: u32 },
    #[error("request {got} of pod {index} came late or twice, request {newest} was answered")]
    Stale { index: u32, got: u64, newest: u64 },
}

impl Refusal {
    /// What helps.
    pub fn hint(&self) -> &'static str {
        match self {
            Refusal::UnknownJob { .. } | Refusal::Early { .. } => {
                "the operator may have started a moment ago: ask again"
            }
            Refusal::Version { .. } => {
                "use an image of the same version as the operator: cluster.image of the job, or image.tag of the chart"
            }
            Refusal::Index { .. } | Refusal::Field { .. } => {
                "only `qvl agent rank` in a pod of the job speaks to this address"
            }
            Refusal::Stale { .. } => "nothing has changed; the next request is a newer one",
            Refusal::Late { .. } | Refusal::Replaced { .. } => {
                "this pod must stop its trainers and end"
            }
        }
    }

    /// Whether the pod must end, because another does its work.
    pub fn is_final(&self) -> bool {
        matches!(self, Refusal::Late { .. } | Refusal::Replaced { .. })
    }
}

/// All gangs of an operator.
pub struct Gangs {
    gangs: BTreeMap<Key, Gang>,
    tokens: Box<dyn FnMut() -> String + Send>,
}

impl fmt::Debug for Gangs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Gangs hold tokens.
        f.debug_struct("Gangs").field("jobs", &self.gangs.keys()).finish_non_exhaustive()
    }
}

impl Gangs {
    /// No gangs yet. `tokens` gives a new secret at every call.
    pub fn new(tokens: impl FnMut() -> String + Send + 'static) -> Self {
        Gangs { gangs: BTreeMap::new(), tokens: Box::new(tokens) }
    }

    /// Makes a gang known. May be called again and again: the same attempt keeps its state, a
    /// newer one replaces an older one, and an older one changes nothing.
    pub fn register(&mut self, key: Key, spec: GangSpec) {
        match self.gangs.get_mut(&key) {
            Some(gang) if spec.attempt < gang.spec.attempt => {}
            Some(gang) if spec.attempt == gang.spec.attempt => {
                gang.spec.max_restarts = spec.max_restarts;
            }
            Some(gang) => {
                let epoch_floor = spec.epoch_floor.max(gang.epoch);
                *gang = Gang::new(GangSpec { epoch_floor, ..spec });
            }
            None => {
                self.gangs.insert(key, Gang::new(spec));
            }
        }
    }

    /// Takes what a pod says and tells it what to do. `now` must not go back.
    pub fn sync(
        &mut self,
        now: Instant,
        key: &Key,
        request: &SyncRequest,
    ) -> Result<SyncReply, Refusal> {
        let Some(gang) = self.gangs.get_mut(key) else {
            return Err(Refusal::UnknownJob { namespace: key.0.clone(), job: key.1.clone() });
        };
        gang.admit(request)?;
        gang.record(now, request)?;
        gang.advance(now, &mut self.tokens);
        Ok(gang.reply(now, request.index))
    }

    /// Asks a gang to save and stop. It ends with the phase `Stopped`, or `Succeeded` if it was
    /// about to be done.
    pub fn ask_stop(&mut self, key: &Key) {
        if let Some(gang) = self.gangs.get_mut(key) {
            gang.stopping = true;
        }
    }

    /// Number of pods of a gang.
    pub fn pods(&self, key: &Key) -> Option<u32> {
        self.gangs.get(key).map(|gang| gang.spec.pods)
    }

    /// Forgets a gang; its pods are refused from now on.
    pub fn forget(&mut self, key: &Key) {
        self.gangs.remove(key);
    }

    /// Where a gang is; `None` if it was never registered.
    pub fn view(&self, key: &Key, now: Instant) -> Option<GangView> {
        self.gangs.get(key).map(|gang| gang.view(now))
    }
}
