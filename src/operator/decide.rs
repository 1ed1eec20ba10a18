//! What is to happen with a job next. Pure. The status is the memory: every change of mind is
//! written there before anything is done about it.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::hash::{DefaultHasher, Hash, Hasher};

use jiff::{SignedDuration, Timestamp};

use super::{
    conditions::{
        self, COMPLETE, COMPLETING, FAILED, PROGRESSING, RESTARTING, STOPPING, SUSPENDED,
    },
    gang::GangPhase,
    observed::Observed,
    outcome::{End, Kind, Outcome, outcome},
};

/// Seconds that pods have for their last log lines once the outcome is known.
const LAST_WORDS_SECONDS: i64 = 90;
/// Seconds that a gang has for saving when it is asked to stop.
const STOP_SECONDS: i64 = 120;

/// The decision about a job.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// It is terminal or goes away: only what is left is cleaned up.
    Over,
    /// It becomes terminal now: complete, or failed.
    Finish(Option<Box<End>>),
    /// `spec.suspend` is honoured.
    Suspended,
    /// Asks the ranks to save, or, if there is nothing to save, takes the pods away.
    Stop { at_once: bool },
    /// The attempt is over and another will follow: this is written down.
    GiveUp(Box<End>),
    /// The pods of the attempt must end.
    Release,
    /// The next attempt begins then.
    Wait { until: Timestamp },
    /// This attempt begins: this is written down.
    Begin { attempt: u32 },
    /// The attempt shall run.
    Run,
}

/// Decides.
pub fn decide(observed: &Observed) -> Decision {
    let status = observed.status();
    let is = |kind| conditions::is_true(&status.conditions, kind);
    if observed.job.metadata.deletion_timestamp.is_some() || is(COMPLETE) || is(FAILED) {
        return Decision::Over;
    }
    if let Some(end) = unfit(observed) {
        return Decision::Finish(Some(end));
    }
    let newest = observed.attempts.iter().map(|fact| fact.attempt);
    let newest = newest.filter(|attempt| observed.attempt(*attempt).is_some()).max();
    if let Some(attempt) = newest.filter(|attempt| status.attempt < *attempt) {
        // The status was lost, for example in a backup; the attempt was not.
        return Decision::Begin { attempt };
    }
    let suspend = observed.job.spec.suspend;
    if status.attempt == 0 || is(SUSPENDED) {
        return match (suspend, is_alive(observed)) {
            (true, false) => Decision::Suspended,
            (_, true) => Decision::Release,
            (false, false) => Decision::Begin { attempt: status.attempt + 1 },
        };
    }
    if is(RESTARTING) {
        return between_attempts(observed, suspend);
    }
    within_attempt(observed, suspend)
}

fn between_attempts(observed: &Observed, suspend: bool) -> Decision {
    if is_alive(observed) {
        return Decision::Release;
    }
    if suspend {
        return Decision::Suspended;
    }
    let until = retry_at(observed);
    if observed.now < until {
        return Decision::Wait { until };
    }
    Decision::Begin { attempt: observed.status().attempt + 1 }
}

fn within_attempt(observed: &Observed, suspend: bool) -> Decision {
    let status = observed.status();
    let since = |kind: &str, reason: &str| {
        let condition = conditions::find(&status.conditions, kind)?;
        let matches = condition.reason == reason && condition.status == "False";
        matches.then(|| observed.now.as_second() - condition.last_transition_time.0.as_second())
    };
    let outcome = outcome(observed);
    match outcome {
        Outcome::Succeeded => return Decision::Finish(None),
        Outcome::Completing => {
            let waited = since(PROGRESSING, COMPLETING);
            let late = waited.is_some_and(|seconds| LAST_WORDS_SECONDS <= seconds);
            return if late { Decision::Finish(None) } else { Decision::Run };
        }
        Outcome::Ended(_) | Outcome::Going => {}
    }
    let stopping = since(SUSPENDED, STOPPING);
    // The user may change their mind too late: what was taken away for them is no failure.
    let gone = observed.attempt(status.attempt).is_none_or(|job| job.deleting);
    let too_late = stopping.is_some() && gone;
    if suspend || too_late {
        if !is_alive(observed) {
            return Decision::Suspended;
        }
        let late = STOP_SECONDS <= stopping.unwrap_or(0);
        return Decision::Stop { at_once: too_late || late || has_nothing_to_save(observed) };
    }
    match outcome {
        Outcome::Ended(end) => match end.kind {
            Kind::Permanent => Decision::Finish(Some(end)),
            Kind::Counted | Kind::Uncounted | Kind::NotStarted => Decision::GiveUp(end),
        },
        Outcome::Succeeded | Outcome::Completing | Outcome::Going => Decision::Run,
    }
}

/// A job that no cluster can run. The spec cannot change, so this is final.
fn unfit(observed: &Observed) -> Option<Box<End>> {
    let end = || End {
        kind: Kind::Permanent,
        reason: "Invalid",
        message: observed.problems.join("; "),
        exclude: None,
        failure: None,
    };
    (!observed.problems.is_empty()).then(|| Box::new(end()))
}

/// Whether anything of any attempt may still compute.
fn is_alive(observed: &Observed) -> bool {
    let job = |fact: &super::observed::AttemptFact| fact.end.is_none() && !fact.deleting;
    observed.attempts.iter().any(job) || observed.pods.iter().any(|pod| !observed.is_over(pod))
}

fn has_nothing_to_save(observed: &Observed) -> bool {
    let Some(gang) = &observed.gang else {
        // Perhaps the broker was just started: pods that run will say so within seconds.
        return observed.pods.iter().all(|pod| pod.node.is_none());
    };
    match gang.phase {
        GangPhase::Waiting
        | GangPhase::Preflight
        | GangPhase::Stopped
        | GangPhase::Failed
        | GangPhase::Lost => true,
        GangPhase::Rendezvous
        | GangPhase::Running
        | GangPhase::Stalled
        | GangPhase::Restarting
        | GangPhase::Succeeded => false,
        // Asked to stop before any of them spoke.
        GangPhase::Stopping => gang.is_unheard(),
    }
}

/// When the next attempt may begin: the pause depends on why the last one ended. Two gangs that
/// hold half of the nodes each would meet again and again, so this pause is a different one for
/// each job and attempt.
pub fn retry_at(observed: &Observed) -> Timestamp {
    let status = observed.status();
    let Some(condition) = conditions::find(&status.conditions, RESTARTING) else {
        return observed.now;
    };
    let seconds = match condition.reason.as_str() {
        "StartTimeout" => {
            let mut hasher = DefaultHasher::new();
            (observed.job.metadata.uid.as_deref(), status.attempt).hash(&mut hasher);
            15 + hasher.finish() % 45
        }
        _ => 1 << status.restarts.counted.min(5),
    };
    let pause = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(60));
    condition.last_transition_time.0.saturating_add(pause).unwrap_or(observed.now)
}
