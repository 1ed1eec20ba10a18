//! What the status of a job says. Pure: from what is observed and decided.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::{
    conditions::{
        CHILDREN_APPLIED, COMPLETE, COMPLETING, Conditions, FAILED, PODS_SCHEDULED,
        PREFLIGHT_PASSED, PROGRESSING, QUOTA_RESERVED, RENDEZVOUS_COMPLETE, RESTARTING, STOPPING,
        SUSPENDED, VALIDATED, find, is_true, shorten,
    },
    decide::Decision,
    gang::{GangPhase, GangView},
    observed::{Observed, PodPhase},
    outcome::{self, End, Kind},
    progress,
};
use crate::{
    api::job::{ExcludedNode, JobStatus, LastFailure, Progress, State, Summary},
    wire::{DoctorVerdict, VERDICT_ANNOTATION},
};

/// Longest `summary.reason`: a column of a terminal.
const LONGEST_REASON: usize = 160;

/// The status after a decision.
pub fn status(observed: &Observed, decision: &Decision) -> JobStatus {
    let mut status = observed.status().clone();
    let generation = observed.job.metadata.generation;
    if *decision == Decision::Over {
        return over(observed, status);
    }
    status.observed_generation = generation;
    take_verdict(observed, &mut status);
    take_gang(observed, &mut status);
    let mut conditions =
        Conditions { list: status.conditions.clone(), now: observed.now, generation };
    general(observed, decision, &mut conditions);
    match decision {
        Decision::Over => {}
        Decision::Finish(end) => finish(end.as_deref(), &mut status, &mut conditions),
        Decision::Suspended => {
            conditions.set(SUSPENDED, true, "UserRequested", "no pod runs; spec.suspend is true");
            conditions.set(RESTARTING, false, "Suspended", "");
            conditions.set(PROGRESSING, false, "Suspended", "");
        }
        Decision::Stop { .. } => {
            conditions.set(SUSPENDED, false, STOPPING, "the ranks save a checkpoint and stop");
            attempt(observed, &mut conditions);
        }
        Decision::GiveUp(end) => give_up(observed, end, &mut status, &mut conditions),
        Decision::Release | Decision::Wait { .. } => {}
        Decision::Begin { attempt } => begin(*attempt, &mut status, &mut conditions),
        Decision::Run => {
            if find(&conditions.list, SUSPENDED).is_some() {
                conditions.set(SUSPENDED, false, "Resumed", "");
            }
            attempt(observed, &mut conditions);
        }
    }
    status.conditions = conditions.list;
    summarize(observed, decision, &mut status);
    status
}

/// Whether two differ in numbers and words alone: where and how many pods run, and how far they are. Of a
/// thousand pods that start, each would be a write.
pub fn differs_in_numbers(old: &JobStatus, new: &JobStatus) -> bool {
    let rest = |status: &JobStatus| {
        let mut rest = status.clone();
        let placed = !rest.placement.nodes.is_empty();
        rest.placement.nodes = vec![String::new(); usize::from(placed)];
        rest.progress = Progress::default();
        rest.summary = Summary { state: rest.summary.state, ..Summary::default() };
        rest.conditions.iter_mut().for_each(|condition| condition.message.clear());
        rest
    };
    rest(old) == rest(new)
}

/// A terminal job says nothing new, but for the generation that was seen.
fn over(observed: &Observed, mut status: JobStatus) -> JobStatus {
    let terminal = is_true(&status.conditions, COMPLETE) || is_true(&status.conditions, FAILED);
    if terminal {
        status.observed_generation = observed.job.metadata.generation;
    }
    status
}

fn general(observed: &Observed, decision: &Decision, conditions: &mut Conditions) {
    if observed.problems.is_empty() {
        conditions.set(VALIDATED, true, "Valid", "");
    } else {
        conditions.set(VALIDATED, false, "Invalid", &observed.problems.join("; "));
    }
    if let Some(fault) = &observed.fault {
        let reason = if fault.refused { "Refused" } else { "ApplyFailed" };
        conditions.set(CHILDREN_APPLIED, false, reason, &fault.message);
        return;
    }
    let begins = matches!(decision, Decision::Begin { .. });
    if observed.attempt(observed.status().attempt).is_some() && !begins {
        conditions.set(CHILDREN_APPLIED, true, "Applied", "");
    } else if begins || find(&conditions.list, CHILDREN_APPLIED).is_none() {
        conditions.set(CHILDREN_APPLIED, false, "Pending", "");
    }
}

/// The verdict that the job was launched with. The first one stays: an annotation that is edited
/// later says nothing about this launch.
fn take_verdict(observed: &Observed, status: &mut JobStatus) {
    let annotations = observed.job.metadata.annotations.as_ref();
    let left = annotations.and_then(|all| all.get(VERDICT_ANNOTATION));
    if status.doctor.is_none() && status.attempt == 0 {
        status.doctor = left.and_then(|text| DoctorVerdict::read(text));
    }
}

/// Numbers and names that the broker knows.
fn take_gang(observed: &Observed, status: &mut JobStatus) {
    let attempt = observed.status().attempt;
    let mut nodes: Vec<String> = vec![String::new(); observed.pods_wanted() as usize];
    for pod in observed.pods_of(attempt) {
        if let (Some(slot), Some(node)) = (nodes.get_mut(pod.index as usize), &pod.node) {
            slot.clone_from(node);
        }
    }
    if nodes.iter().any(|node| !node.is_empty()) {
        status.placement.nodes = nodes;
    }
    let Some(gang) = &observed.gang else { return };
    let news = gang.restarts.saturating_sub(status.restarts.counted);
    status.restarts.counted += news;
    status.restarts.total += news;
    status.epoch = status.epoch.max(gang.epoch);
    if gang.last_failure.is_some() {
        status.last_failure.clone_from(&gang.last_failure);
    }
    if 0 < gang.progress.total_steps {
        let old = &status.progress;
        status.progress = Progress {
            checkpoint_step: gang.progress.checkpoint_step.max(old.checkpoint_step),
            loss: gang.progress.loss.or(old.loss),
            step_seconds: gang.progress.step_seconds.or(old.step_seconds),
            ..gang.progress.clone()
        };
    }
}

fn finish(end: Option<&End>, status: &mut JobStatus, conditions: &mut Conditions) {
    conditions.set(RESTARTING, false, "Over", "");
    match end {
        None => {
            conditions.set(PROGRESSING, false, "Done", "");
            conditions.set(COMPLETE, true, "Succeeded", "all steps are done");
            // Steps of the last interval may never have been told.
            if 0 < status.progress.total_steps {
                status.progress.step = status.progress.total_steps;
            }
        }
        Some(end) => {
            conditions.set(PROGRESSING, false, "Failed", "");
            conditions.set(FAILED, true, end.reason, &end.message);
            if end.failure.is_some() {
                status.last_failure.clone_from(&end.failure);
            }
        }
    }
}

fn give_up(observed: &Observed, end: &End, status: &mut JobStatus, conditions: &mut Conditions) {
    conditions.set(RESTARTING, true, end.reason, &end.message);
    conditions.set(PROGRESSING, false, "Restarting", "");
    status.restarts.total += 1;
    match end.kind {
        Kind::Counted => status.restarts.counted += 1,
        Kind::Uncounted | Kind::Permanent => {}
        // Too few nodes are left, perhaps because of those that are avoided.
        Kind::NotStarted => status.placement.excluded.clear(),
    }
    if let Some(name) = &end.exclude {
        let excluded = &mut status.placement.excluded;
        if excluded.iter().all(|node| node.name != *name) {
            excluded.push(ExcludedNode { name: name.clone(), reason: end.reason.to_owned() });
        }
    }
    if end.failure.is_some() {
        status.last_failure.clone_from(&end.failure);
    }
    // A failure told by the broker is counted there only as far as it restarted in place.
    if let Some(gang) = &observed.gang {
        status.epoch = status.epoch.max(gang.epoch);
    }
}

fn begin(attempt: u32, status: &mut JobStatus, conditions: &mut Conditions) {
    let resumed = is_true(&conditions.list, SUSPENDED);
    status.attempt = attempt;
    status.placement.nodes.clear();
    if resumed {
        conditions.set(SUSPENDED, false, "Resumed", "");
    }
    conditions.set(RESTARTING, false, "Begun", "");
    conditions.set(PODS_SCHEDULED, false, "Creating", "");
    conditions.set(RENDEZVOUS_COMPLETE, false, "WaitingForPods", "");
    conditions.set(PROGRESSING, false, "Startup", "");
    conditions.clear(PREFLIGHT_PASSED);
}

/// Conditions of an attempt that runs.
fn attempt(observed: &Observed, conditions: &mut Conditions) {
    let job = observed.attempt(observed.status().attempt);
    // A Job that a queue owns is made suspended.
    let held = job.is_none_or(|job| job.suspended);
    match &observed.job.spec.cluster.queue {
        None => conditions.set(QUOTA_RESERVED, true, "NoQueue", ""),
        Some(queue) if held => {
            let began = !observed.status().placement.nodes.is_empty();
            let reason = if began { "Preempted" } else { "Queued" };
            conditions.set(QUOTA_RESERVED, false, reason, &format!("waits in queue {queue}"));
        }
        Some(queue) => conditions.set(QUOTA_RESERVED, true, "Admitted", &format!("by {queue}")),
    }
    let (running, wanted) = (outcome::running(observed), observed.pods_wanted());
    if wanted <= running {
        conditions.set(PODS_SCHEDULED, true, "AllRunning", &format!("{wanted} of {wanted} pods"));
    } else {
        let (reason, message) = problem_of_pods(observed)
            .unwrap_or_else(|| ("Starting".to_owned(), format!("{running} of {wanted} pods run")));
        conditions.set(PODS_SCHEDULED, false, &reason, &message);
    }
    if let Some(gang) = &observed.gang {
        of_gang(gang, conditions);
    }
}

fn of_gang(gang: &GangView, conditions: &mut Conditions) {
    let failure = gang.last_failure.as_ref();
    match gang.phase {
        GangPhase::Waiting | GangPhase::Lost => {
            let silent: Vec<String> = gang.silent_pods.iter().map(ToString::to_string).collect();
            let message = match (gang.phase, silent.is_empty()) {
                (GangPhase::Lost, _) => format!("pod {} is no longer heard", silent.join(", ")),
                _ => "some pod has not spoken yet".to_owned(),
            };
            conditions.set(RENDEZVOUS_COMPLETE, false, "WaitingForRank", &message);
        }
        GangPhase::Preflight => {
            conditions.set(PREFLIGHT_PASSED, false, "Testing", "the pods test their machines");
            conditions.set(RENDEZVOUS_COMPLETE, false, "WaitingForRank", "");
        }
        GangPhase::Rendezvous => {
            conditions.set(PREFLIGHT_PASSED, true, "Passed", &gang.notes.join("; "));
            conditions.set(RENDEZVOUS_COMPLETE, false, "WaitingForRank", "the ranks meet");
            conditions.set(PROGRESSING, false, "Startup", "");
        }
        GangPhase::Running => {
            conditions.set(PREFLIGHT_PASSED, true, "Passed", &gang.notes.join("; "));
            conditions.set(RENDEZVOUS_COMPLETE, true, "AllRanks", "");
            conditions.set(PROGRESSING, true, "Stepping", "");
        }
        GangPhase::Stalled => {
            conditions.set(PROGRESSING, false, "Stalled", "no step ends in the usual time");
        }
        GangPhase::Restarting => {
            let message = failure.map_or(String::new(), LastFailure::sentence);
            conditions.set(PROGRESSING, false, "RestartingInPlace", &message);
        }
        GangPhase::Stopping | GangPhase::Stopped => {
            conditions.set(PROGRESSING, false, "Stopping", "");
        }
        GangPhase::Succeeded => {
            conditions.set(PROGRESSING, false, COMPLETING, "all steps are done, the pods end");
        }
        GangPhase::Failed => {
            let tests = ["hardware", "preflight", "network", "storage"];
            let refused = failure.is_some_and(|failure| tests.contains(&failure.class.as_str()));
            let message = failure.map_or("", |failure| failure.what.as_str());
            if refused {
                conditions.set(PREFLIGHT_PASSED, false, "Refused", message);
            }
            conditions.set(PROGRESSING, false, "Failed", message);
        }
    }
}

/// The first reason for which a pod does not start.
fn problem_of_pods(observed: &Observed) -> Option<(String, String)> {
    let mut pods = observed.pods_of(observed.status().attempt);
    let (reason, message) = pods.find_map(|pod| pod.waiting.clone())?;
    let reason = if reason.is_empty() { "Waiting".to_owned() } else { reason };
    Some((reason, message))
}

fn summarize(observed: &Observed, decision: &Decision, status: &mut JobStatus) {
    let total = observed.job.spec.world.gpus;
    let state = state(observed, decision);
    let pods = observed.pods_of(observed.status().attempt);
    let alive = pods.filter(|pod| pod.phase == PodPhase::Running).count();
    let alive = u32::try_from(alive).unwrap_or(0) * observed.ranks_per_pod();
    let running = match (state, &observed.gang) {
        (State::Complete | State::Failed | State::Suspended | State::Pending, _) => 0,
        (_, Some(gang)) => gang.running_ranks.max(if state == State::Running { alive } else { 0 }),
        (State::Running | State::Stalled, None) => alive,
        _ => 0,
    };
    let numbers = &status.progress;
    let eta = (state == State::Running).then(|| progress::eta(numbers)).flatten();
    status.summary = Summary {
        state,
        ranks: format!("{}/{total}", running.min(total)),
        progress: progress::percent(numbers),
        eta: eta.unwrap_or_default(),
        loss: numbers.loss.map(|loss| format!("{loss:.3}")).unwrap_or_default(),
        reason: shorten(&reason(observed, decision, state, status), LONGEST_REASON),
    };
}

/// Where the job is. Total: every decision and phase has its state.
pub fn state(observed: &Observed, decision: &Decision) -> State {
    match decision {
        Decision::Over => observed.status().summary.state,
        Decision::Finish(None) => State::Complete,
        Decision::Finish(Some(_)) => State::Failed,
        Decision::Suspended => State::Suspended,
        Decision::Stop { .. } => State::Suspending,
        Decision::Release if observed.status().attempt == 0 => State::Pending,
        Decision::Release if observed.job.spec.suspend => State::Suspending,
        Decision::GiveUp(_) | Decision::Release | Decision::Wait { .. } => State::Restarting,
        Decision::Begin { .. } => State::Scheduling,
        Decision::Run => of_attempt(observed),
    }
}

fn of_attempt(observed: &Observed) -> State {
    if observed.attempt(observed.status().attempt).is_some_and(|job| job.suspended) {
        return State::Queued;
    }
    if !outcome::all_run(observed) {
        return State::Scheduling;
    }
    let Some(gang) = &observed.gang else {
        // The operator has just started, or the pods have: what was true stays true meanwhile.
        let before = observed.status().summary.state;
        return match before {
            State::Preflight | State::Rendezvous | State::Running | State::Stalled => before,
            State::Pending
            | State::Queued
            | State::Scheduling
            | State::Restarting
            | State::Suspending
            | State::Suspended
            | State::Complete
            | State::Failed => State::Preflight,
        };
    };
    match gang.phase {
        GangPhase::Waiting | GangPhase::Preflight => State::Preflight,
        GangPhase::Rendezvous => State::Rendezvous,
        GangPhase::Running | GangPhase::Succeeded => State::Running,
        GangPhase::Stalled => State::Stalled,
        GangPhase::Restarting
        | GangPhase::Stopping
        | GangPhase::Stopped
        | GangPhase::Failed
        | GangPhase::Lost => State::Restarting,
    }
}

fn reason(observed: &Observed, decision: &Decision, state: State, status: &JobStatus) -> String {
    let message = |kind: &str| {
        let condition = find(&status.conditions, kind);
        condition.map_or(String::new(), |c| match c.message.as_str() {
            "" => c.reason.clone(),
            message => format!("{}: {message}", c.reason),
        })
    };
    if let (Some(fault), false) = (&observed.fault, *decision == Decision::Over) {
        return fault.message.clone();
    }
    match state {
        State::Pending | State::Running | State::Complete | State::Rendezvous => String::new(),
        State::Queued => message(QUOTA_RESERVED),
        State::Scheduling => message(PODS_SCHEDULED),
        State::Preflight => String::new(),
        State::Stalled => message(PROGRESSING),
        State::Restarting if is_true(&status.conditions, RESTARTING) => message(RESTARTING),
        State::Restarting => message(PROGRESSING),
        State::Suspending | State::Suspended => message(SUSPENDED),
        State::Failed => message(FAILED),
    }
}
