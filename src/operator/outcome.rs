//! How the current attempt has ended, if it has. Pure.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::{
    conditions::IMAGE_UNAVAILABLE,
    gang::GangPhase,
    observed::{AttemptFact, JobEnd, Observed, PodFact, PodPhase},
};
use crate::{api::job::LastFailure, wire::TrainerExit};

/// Where an attempt is.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It goes on.
    Going,
    /// The training is done and its pods end.
    Completing,
    /// All is done.
    Succeeded,
    /// It ended without success.
    Ended(Box<End>),
}

/// An end without success.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    pub kind: Kind,
    /// Reason of a condition.
    pub reason: &'static str,
    /// One sentence.
    pub message: String,
    /// Node that later attempts avoid.
    pub exclude: Option<String>,
    pub failure: Option<LastFailure>,
}

/// What an end means for the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Another attempt cannot help.
    Permanent,
    /// Another attempt, which counts towards `failure.maxRestarts`.
    Counted,
    /// Another attempt: nobody did anything wrong.
    Uncounted,
    /// The pods did not all start in time: another attempt later, on any node.
    NotStarted,
}

/// Reasons of a container that does not start which no patience will cure.
const IMAGE: [&str; 5] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
];

/// Judges the attempt that the status names.
pub fn outcome(observed: &Observed) -> Outcome {
    let attempt = observed.status().attempt;
    let job = observed.attempt(attempt);
    if job.is_some_and(|job| job.end == Some(JobEnd::Complete)) {
        return Outcome::Succeeded;
    }
    if gang_phase(observed) == Some(GangPhase::Succeeded) {
        // Whoever took the Job away took nothing: it must not be made again for what is done.
        let gone = job.is_none_or(|job| job.deleting);
        return if gone { Outcome::Succeeded } else { Outcome::Completing };
    }
    let end = told_by_gang(observed)
        .or_else(|| disrupted(observed, job))
        .or_else(|| job.and_then(|job| failed(observed, job)))
        .or_else(|| vanished(observed, job))
        .or_else(|| job.and_then(|job| not_started(observed, job)));
    match end {
        Some(end) => Outcome::Ended(Box::new(within_budget(observed, end))),
        None => Outcome::Going,
    }
}

/// Restarts that counted so far, those within the attempt included.
pub fn counted(observed: &Observed) -> u32 {
    let told = observed.gang.as_ref().map_or(0, |gang| gang.restarts);
    observed.status().restarts.counted.max(told)
}

fn within_budget(observed: &Observed, end: End) -> End {
    let max = observed.job.spec.failure.max_restarts;
    if end.kind != Kind::Counted || counted(observed) < max {
        return end;
    }
    let message = format!("{}; all {max} restarts of failure.maxRestarts are used up", end.message);
    End { kind: Kind::Permanent, reason: "BackoffExceeded", message, ..end }
}

fn gang_phase(observed: &Observed) -> Option<GangPhase> {
    observed.gang.as_ref().map(|gang| gang.phase)
}

fn told_by_gang(observed: &Observed) -> Option<End> {
    let gang = observed.gang.as_ref()?;
    match gang.phase {
        GangPhase::Failed => Some(given_up(observed, gang.last_failure.clone())),
        GangPhase::Lost => {
            let silent = |pod: &&PodFact| gang.silent_pods.contains(&pod.index);
            let attempt = observed.status().attempt;
            let pod = observed.pods_of(attempt).find(silent);
            let disrupted = pod.filter(|pod| pod.disruption.is_some() || pod.deadline.is_some());
            disrupted.map(disruption).or_else(|| {
                let indices: Vec<String> =
                    gang.silent_pods.iter().map(ToString::to_string).collect();
                let node = pod.and_then(|pod| pod.node.clone());
                let place = node.as_deref().map_or(String::new(), |node| format!(" on {node}"));
                Some(End {
                    kind: Kind::Counted,
                    reason: "PodSilent",
                    message: format!("pod {}{place} is no longer heard", indices.join(", ")),
                    exclude: node,
                    failure: gang.last_failure.clone(),
                })
            })
        }
        // The user has changed their mind after the ranks had saved and stopped.
        GangPhase::Stopped => Some(End {
            kind: Kind::Uncounted,
            reason: "Preempted",
            message: "its ranks had saved and stopped before it was resumed".to_owned(),
            exclude: None,
            failure: None,
        }),
        GangPhase::Waiting
        | GangPhase::Preflight
        | GangPhase::Rendezvous
        | GangPhase::Running
        | GangPhase::Stalled
        | GangPhase::Restarting
        | GangPhase::Stopping
        | GangPhase::Succeeded => None,
    }
}

/// The broker gave up. Hardware is another matter on another node.
fn given_up(observed: &Observed, failure: Option<LastFailure>) -> End {
    let Some(failure) = failure else {
        return End {
            kind: Kind::Permanent,
            reason: "NonRetryable",
            message: "the ranks failed and did not say why".to_owned(),
            exclude: None,
            failure: None,
        };
    };
    let message = failure.sentence();
    let used_up =
        0 < counted(observed) && observed.job.spec.failure.max_restarts <= counted(observed);
    let (kind, reason) = match failure.class.as_str() {
        "hardware" | "preflight" | "network" => (Kind::Counted, "PreflightFailed"),
        _ if used_up => (Kind::Permanent, "BackoffExceeded"),
        _ => (Kind::Permanent, "NonRetryable"),
    };
    // Of two nodes that do not reach each other, none is known to be the bad one.
    let known = kind == Kind::Counted && failure.class != "network";
    let exclude = known.then(|| failure.node.clone());
    End { kind, reason, message, exclude, failure: Some(failure) }
}

/// Pods that somebody takes away. A queue that suspends its Job does so on purpose, and in its
/// mode the Job replaces a lost pod itself.
fn disrupted(observed: &Observed, job: Option<&AttemptFact>) -> Option<End> {
    if observed.job.spec.cluster.queue.is_some() || job.is_some_and(|job| job.deleting) {
        return None;
    }
    let taken = |pod: &&PodFact| {
        let ended = pod.phase == PodPhase::Succeeded || pod.exit_code == Some(0);
        !ended && (pod.disruption.is_some() || pod.deadline.is_some())
    };
    let mut pods: Vec<&PodFact> =
        observed.pods_of(observed.status().attempt).filter(taken).collect();
    // The Job deletes the rest of a gang after the first loss: the first loss has a reason.
    pods.sort_by_key(|pod| (pod.disruption.is_none(), !pod.on_lost_node(), pod.index));
    // If the Job itself failed, its own deletions say nothing. It may have failed a moment after it
    // was read: then a pod has ended by itself.
    let ended = |pod: &PodFact| {
        let failed = pod.phase == PodPhase::Failed || pod.exit_code.is_some_and(|code| code != 0);
        failed && pod.disruption.is_none() && pod.deadline.is_none()
    };
    let failed = job.is_some_and(|job| job.end.is_some())
        || observed.pods_of(observed.status().attempt).any(ended);
    pods.first().filter(|pod| pod.disruption.is_some() || !failed).map(|pod| disruption(pod))
}

fn disruption(pod: &PodFact) -> End {
    let node = pod.node.clone();
    let place = node.as_deref().map_or(String::new(), |node| format!(" on {node}"));
    let (kind, reason, what) = match pod.disruption.as_deref() {
        Some("DeletionByTaintManager") => (Kind::Counted, "NodeLost", "its node does not answer"),
        Some("PreemptionByScheduler") => {
            (Kind::Uncounted, "Preempted", "a pod of higher priority took its place")
        }
        Some("EvictionByEvictionAPI") => {
            (Kind::Uncounted, "Evicted", "it was evicted, for example by a drain")
        }
        Some("TerminationByKubelet") => {
            (Kind::Uncounted, "Evicted", "its node was short of resources or shut down")
        }
        Some("DeletionByPodGC") => (Kind::Counted, "NodeLost", "its node is gone"),
        Some(_) => (Kind::Uncounted, "Evicted", "it was disrupted"),
        None => (Kind::Counted, "PodDeleted", "somebody deleted it"),
    };
    End {
        kind,
        reason,
        message: format!("pod {}{place} is lost: {what}", pod.index),
        exclude: node.filter(|_node| reason == "NodeLost"),
        failure: None,
    }
}

/// The Job has failed: the supervisors' exit codes tell why.
fn failed(observed: &Observed, job: &AttemptFact) -> Option<End> {
    let Some(JobEnd::Failed { reason, message }) = &job.end else { return None };
    let pods = || observed.pods_of(job.attempt);
    let exits = || pods().filter_map(|pod| Some((pod, TrainerExit::from_code(pod.exit_code?)?)));
    let permanent = exits().find(|(_pod, exit)| exit.is_permanent());
    let hardware =
        exits().find(|(_pod, exit)| matches!(exit, TrainerExit::Preflight | TrainerExit::GpuFault));
    let told = observed.gang.as_ref().and_then(|gang| gang.last_failure.clone());
    let failure = told.or_else(|| {
        let blamed = permanent.or(hardware).and_then(|(pod, _exit)| pod.last_failure());
        blamed.or_else(|| pods().find_map(PodFact::last_failure))
    });
    let saved = exits().any(|(_pod, exit)| exit == TrainerExit::Preempted);
    let (kind, named) = match (permanent, hardware) {
        (Some(_), _) => (Kind::Permanent, "NonRetryable"),
        (None, Some((_pod, TrainerExit::Preflight))) => (Kind::Counted, "PreflightFailed"),
        (None, Some(_)) => (Kind::Counted, "GpuFault"),
        (None, None) if saved => (Kind::Uncounted, "Preempted"),
        (None, None) => (Kind::Counted, "PodFailed"),
    };
    let code = pods().find_map(|pod| Some((pod.index, pod.exit_code.filter(|code| *code != 0)?)));
    let message = match (&failure, code) {
        (Some(failure), _) => failure.sentence(),
        (None, Some((index, code))) => format!("pod {index} ended with exit code {code}"),
        (None, None) => format!("{reason}: {message}"),
    };
    let blamed = hardware.filter(|_pod| kind == Kind::Counted);
    let exclude = blamed.and_then(|(pod, _exit)| pod.node.clone());
    Some(End { kind, reason: named, message, exclude, failure })
}

/// Its pods had nodes, and now the Job is gone: somebody deleted it.
fn vanished(observed: &Observed, job: Option<&AttemptFact>) -> Option<End> {
    let had_pods = !observed.status().placement.nodes.is_empty();
    (job.is_none_or(|job| job.deleting) && had_pods).then(|| End {
        kind: Kind::Counted,
        reason: "JobDeleted",
        message: format!("somebody deleted the Job of attempt {}", observed.status().attempt),
        exclude: None,
        failure: None,
    })
}

fn not_started(observed: &Observed, job: &AttemptFact) -> Option<End> {
    let waiting = || observed.pods_of(job.attempt).filter_map(|pod| pod.waiting.as_ref());
    let end = |kind, reason, message: String| {
        Some(End { kind, reason, message, exclude: None, failure: None })
    };
    if let Some((reason, message)) = waiting().find(|(reason, _)| reason == "InvalidImageName") {
        return end(Kind::Permanent, IMAGE_UNAVAILABLE, format!("{reason}: {message}"));
    }
    let started = job.started.filter(|_time| !job.suspended)?;
    let limit = i64::from(observed.job.spec.cluster.start_timeout_seconds);
    if all_run(observed) || observed.now.as_second() - started.as_second() < limit {
        return None;
    }
    let image = waiting().find(|(reason, _message)| IMAGE.contains(&reason.as_str()));
    if let Some((reason, message)) = image {
        return end(Kind::Permanent, IMAGE_UNAVAILABLE, format!("{reason}: {message}"));
    }
    let why = waiting().next().map_or(String::new(), |(_, message)| format!(": {message}"));
    end(Kind::NotStarted, "StartTimeout", format!("not all pods were running after {limit} s{why}"))
}

/// Whether every pod of the attempt has begun to run.
pub fn all_run(observed: &Observed) -> bool {
    observed.pods_wanted() <= running(observed)
}

/// Pods of the attempt that run, or have run.
pub fn running(observed: &Observed) -> u32 {
    let mut indices: Vec<u32> = observed
        .pods_of(observed.status().attempt)
        .filter(|pod| match pod.phase {
            PodPhase::Running | PodPhase::Succeeded | PodPhase::Failed => true,
            PodPhase::Pending | PodPhase::Unknown => false,
        })
        .map(|pod| pod.index)
        .collect();
    indices.sort_unstable();
    indices.dedup();
    u32::try_from(indices.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::testing;

    #[test]
    fn only_a_machine_that_failed_its_test_is_avoided() {
        let observed = testing::observed();
        let failure = |class: &str| LastFailure {
            class: class.to_owned(),
            rank: 2,
            node: "n2".to_owned(),
            exit_code: None,
            what: "failed".to_owned(),
            hint: None,
            tail: String::new(),
            epoch: 0,
            step: 0,
        };
        for (class, kind, reason, avoided) in [
            ("preflight", Kind::Counted, "PreflightFailed", Some("n2")),
            ("hardware", Kind::Counted, "PreflightFailed", Some("n2")),
            ("network", Kind::Counted, "PreflightFailed", None),
            ("input", Kind::Permanent, "NonRetryable", None),
            ("storage", Kind::Permanent, "NonRetryable", None),
        ] {
            let end = given_up(&observed, Some(failure(class)));
            let found = (end.kind, end.reason, end.exclude.as_deref());
            assert_eq!(found, (kind, reason, avoided), "{class}");
        }
    }
}
