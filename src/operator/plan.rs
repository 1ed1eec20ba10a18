//! The next steps for a job. Pure and level-based: what is left to do, not a script.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::{
    conditions::{self, COMPLETE, FAILED},
    decide::{Decision, decide},
    gang::GangSpec,
    news::{News, news},
    observed::{self, AttemptFact, Observed, PodPhase},
    outcome, status,
};
use crate::api::job::JobStatus;

/// Seconds after the end until pods that still run are taken away.
const LINGER_SECONDS: i64 = 90;
/// Ended attempts that are kept beside the current one, so that their pods can be looked at.
const KEPT_ATTEMPTS: u32 = 2;

/// One step: at most one call of the API server.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub action: Action,
    pub why: String,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Tells of what happened as an Event.
    Tell(News),
    WriteStatus(Box<JobStatus>),
    ApplyAccount,
    ApplyService,
    /// Makes the group of pods that the scheduler treats as one.
    ApplyGroup,
    /// Applies the resolved job file of an attempt.
    ApplySpec {
        attempt: u32,
    },
    CreateJob {
        attempt: u32,
    },
    DeleteJob {
        name: String,
        uid: String,
    },
    /// Takes a pod of a node that does not answer out of the way, so that its Job replaces it.
    ForceDeletePod {
        name: String,
        uid: String,
    },
    /// Makes the gang known to the broker.
    RegisterGang(GangSpec),
    /// Asks the ranks to save and stop.
    AskStop,
    /// The broker may forget the gang.
    ForgetGang,
}

impl Action {
    /// Whether it rests on the absence of something or takes something away.
    fn needs_fresh_view(&self) -> bool {
        match self {
            Action::CreateJob { .. } | Action::DeleteJob { .. } | Action::ForceDeletePod { .. } => {
                true
            }
            Action::Tell(_)
            | Action::WriteStatus(_)
            | Action::ApplyAccount
            | Action::ApplyService
            | Action::ApplyGroup
            | Action::ApplySpec { .. }
            | Action::RegisterGang(_)
            | Action::AskStop
            | Action::ForgetGang => false,
        }
    }
}

/// Whether steps rest on more than a cache can tell: a change of mind, or the absence of an object.
pub fn needs_fresh_view(observed: &Observed, steps: &[Step]) -> bool {
    let changes_mind = match decide(observed) {
        Decision::Begin { .. }
        | Decision::GiveUp(_)
        | Decision::Finish(_)
        | Decision::Suspended => !steps.is_empty(),
        Decision::Over
        | Decision::Stop { .. }
        | Decision::Release
        | Decision::Wait { .. }
        | Decision::Run => false,
    };
    changes_mind || steps.iter().any(|step| step.action.needs_fresh_view())
}

/// The next steps, in order. What is written is told before anything else is. A change of mind is written to the status, and acted on only in the
/// next plan, when the API server has taken it.
pub fn plan(observed: &Observed) -> Vec<Step> {
    let decision = decide(observed);
    let status = status::status(observed, &decision);
    let news = news(observed).into_iter();
    let mut steps: Vec<Step> =
        news.map(|news| step(Action::Tell(news), "users want to know")).collect();
    let differs = status != *observed.status();
    if differs && (observed.numbers_due || !status::differs_in_numbers(observed.status(), &status))
    {
        steps.push(step(Action::WriteStatus(Box::new(status)), describe(&decision)));
    }
    match decision {
        Decision::Over => clean_up(observed, &mut steps),
        Decision::Run => run(observed, &mut steps),
        Decision::Release => {
            let running = |fact: &&AttemptFact| fact.end.is_none() && !fact.deleting;
            let running = observed.attempts.iter().filter(running);
            steps.extend(running.map(|fact| delete(fact, "the attempt is over")));
        }
        Decision::Stop { at_once } => stop(observed, at_once, &mut steps),
        Decision::Finish(_)
        | Decision::Suspended
        | Decision::GiveUp(_)
        | Decision::Wait { .. }
        | Decision::Begin { .. } => {}
    }
    steps
}

fn step(action: Action, why: impl Into<String>) -> Step {
    Step { action, why: why.into() }
}

fn delete(fact: &AttemptFact, why: &str) -> Step {
    step(Action::DeleteJob { name: fact.name.clone(), uid: fact.uid.clone() }, why)
}

fn describe(decision: &Decision) -> String {
    match decision {
        Decision::Over => "the spec has a new generation".to_owned(),
        Decision::Finish(None) => "all steps are done".to_owned(),
        Decision::Finish(Some(end)) | Decision::GiveUp(end) => {
            format!("{}: {}", end.reason, end.message)
        }
        Decision::Suspended => "nothing of it runs".to_owned(),
        Decision::Stop { .. } => "spec.suspend is true".to_owned(),
        Decision::Release => "pods of the last attempt still run".to_owned(),
        Decision::Wait { until } => format!("the next attempt begins at {until}"),
        Decision::Begin { attempt } => format!("attempt {attempt} begins"),
        Decision::Run => "it looks different than before".to_owned(),
    }
}

fn run(observed: &Observed, steps: &mut Vec<Step>) {
    let attempt = observed.status().attempt;
    register(observed, steps);
    let namesake = |fact: &&AttemptFact| fact.attempt == attempt && !fact.deleting;
    if observed.attempt(attempt).is_some() {
        // It is there.
    } else if let Some(fact) = observed.attempts.iter().find(namesake) {
        steps.push(delete(fact, "it belongs to an earlier job of the same name"));
    } else {
        let why = format!("attempt {attempt} has no Job");
        steps.push(step(Action::ApplyAccount, &*why));
        steps.push(step(Action::ApplyService, &*why));
        steps.push(step(Action::ApplySpec { attempt }, &*why));
        if observed.pod_groups && observed::is_gang(&observed.job) {
            steps.push(step(Action::ApplyGroup, &*why));
        }
        steps.push(step(Action::CreateJob { attempt }, &*why));
    }
    for fact in &observed.attempts {
        let old = fact.attempt + KEPT_ATTEMPTS < attempt;
        if old && fact.end.is_some() && !fact.deleting {
            steps.push(delete(fact, "newer attempts are kept"));
        }
    }
    if observed.job.spec.cluster.queue.is_some() {
        let stuck = |pod: &&observed::PodFact| {
            let runs = matches!(pod.phase, PodPhase::Running | PodPhase::Pending);
            runs && pod.on_lost_node() && observed.is_fenced(pod)
        };
        steps.extend(observed.pods_of(attempt).filter(stuck).map(|pod| {
            let (name, uid) = (pod.name.clone(), pod.uid.clone());
            step(Action::ForceDeletePod { name, uid }, "its node does not answer")
        }));
    }
}

/// The broker may have been started after the pods.
fn register(observed: &Observed, steps: &mut Vec<Step>) {
    if observed.gang.is_none() {
        let spec = GangSpec {
            attempt: observed.status().attempt,
            pods: observed.pods_wanted(),
            ranks_per_pod: observed.ranks_per_pod(),
            max_restarts: observed.job.spec.failure.max_restarts,
            restarts: observed.status().restarts.counted,
            epoch_floor: observed.status().epoch,
            replaces: observed.job.spec.cluster.queue.is_some(),
        };
        steps.push(step(Action::RegisterGang(spec), "the broker has to expect its pods"));
    }
}

fn stop(observed: &Observed, at_once: bool, steps: &mut Vec<Step>) {
    if !at_once {
        register(observed, steps);
        steps.push(step(Action::AskStop, "spec.suspend is true"));
        return;
    }
    let running = observed.attempts.iter().filter(|fact| !fact.deleting && fact.end.is_none());
    steps.extend(running.map(|fact| delete(fact, "spec.suspend is true")));
}

/// Nothing is ever made for a job that is over. Its Jobs go after their time, and at once if
/// they would go on for ever.
fn clean_up(observed: &Observed, steps: &mut Vec<Step>) {
    if observed.job.metadata.deletion_timestamp.is_some() {
        if observed.gang.is_some() {
            steps.push(step(Action::ForgetGang, "the job is deleted"));
        }
        return;
    }
    let conditions = &observed.status().conditions;
    let ended = [COMPLETE, FAILED].iter().find_map(|kind| conditions::find(conditions, kind));
    let Some(ended) = ended.filter(|condition| condition.status == "True") else { return };
    let age = observed.now.as_second() - ended.last_transition_time.0.as_second();
    let ttl = i64::from(observed.job.spec.cluster.ttl_seconds);
    // With a queue, the Job replaces failed pods without end.
    let replaced = observed.job.spec.cluster.queue.is_some() && ended.type_ == FAILED;
    let all_run = outcome::all_run(observed);
    for fact in observed.attempts.iter().filter(|fact| !fact.deleting) {
        let lingers = fact.end.is_none() && (LINGER_SECONDS <= age || replaced || !all_run);
        if lingers {
            steps.push(delete(fact, "the job is over and its pods have not ended"));
        } else if ttl <= age {
            steps.push(delete(fact, "cluster.ttlSeconds are over"));
        }
    }
    let quiet = observed.pods.iter().all(|pod| observed.is_over(pod));
    if observed.gang.is_some() && quiet {
        steps.push(step(Action::ForgetGang, "no pod of it is left"));
    }
}

/// After how many seconds to look again, although nothing may have happened.
pub fn look_again_after(observed: &Observed) -> Option<u64> {
    match decide(observed) {
        Decision::Over => {
            let left = !observed.attempts.is_empty() || observed.gang.is_some();
            left.then_some(15)
        }
        Decision::Suspended => None,
        Decision::Wait { until } => {
            let seconds = until.as_second() - observed.now.as_second() + 1;
            Some(u64::try_from(seconds).unwrap_or(1).max(1))
        }
        Decision::Finish(_) | Decision::Begin { .. } | Decision::GiveUp(_) => Some(1),
        Decision::Stop { .. } | Decision::Release => Some(2),
        Decision::Run => Some(5),
    }
}

#[cfg(test)]
mod tests;
