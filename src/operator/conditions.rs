//! Types and reasons of conditions, and how one is set. Pure.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The job can run as it is written.
pub const VALIDATED: &str = "Validated";
/// The API server took all objects of the attempt.
pub const CHILDREN_APPLIED: &str = "ChildrenApplied";
/// The queue let it start, or it needs none.
pub const QUOTA_RESERVED: &str = "QuotaReserved";
/// All pods run on nodes.
pub const PODS_SCHEDULED: &str = "PodsScheduled";
/// All pods passed their own test.
pub const PREFLIGHT_PASSED: &str = "PreflightPassed";
/// All ranks have met.
pub const RENDEZVOUS_COMPLETE: &str = "RendezvousComplete";
/// Steps end in time.
pub const PROGRESSING: &str = "Progressing";
/// `spec.suspend` is honoured and the pods are gone.
pub const SUSPENDED: &str = "Suspended";
/// Between two attempts; the reason is that of the end of the last.
pub const RESTARTING: &str = "Restarting";
/// Terminal: all steps are done.
pub const COMPLETE: &str = "Complete";
/// Terminal: given up.
pub const FAILED: &str = "Failed";

/// Reason of `Progressing` while the pods of a finished training end.
pub const COMPLETING: &str = "Completing";
/// Reason of `Suspended` while the ranks save.
pub const STOPPING: &str = "Stopping";
/// Reason of [`FAILED`]: no patience makes the image of the pods appear.
pub const IMAGE_UNAVAILABLE: &str = "ImageUnavailable";

/// Longest message; a status is read by people and watched by programs.
const LONGEST: usize = 1024;

/// Whether a condition is true.
pub fn is_true(conditions: &[Condition], kind: &str) -> bool {
    find(conditions, kind).is_some_and(|condition| condition.status == "True")
}

/// The condition of a type.
pub fn find<'c>(conditions: &'c [Condition], kind: &str) -> Option<&'c Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// Conditions under construction.
#[derive(Debug)]
pub struct Conditions {
    pub list: Vec<Condition>,
    pub now: Timestamp,
    pub generation: Option<i64>,
}

impl Conditions {
    /// Sets a condition; its time changes only with its truth.
    pub fn set(&mut self, kind: &str, truth: bool, reason: &str, message: &str) {
        let status = if truth { "True" } else { "False" };
        let old = self.list.iter().position(|condition| condition.type_ == kind);
        let since = old.map(|at| &self.list[at]).filter(|condition| condition.status == status);
        let condition = Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: shorten(message, LONGEST),
            // Seconds, as the API server keeps them.
            last_transition_time: since.map_or_else(
                || Time(Timestamp::from_second(self.now.as_second()).unwrap_or(self.now)),
                |condition| condition.last_transition_time.clone(),
            ),
            observed_generation: self.generation,
        };
        match old {
            Some(at) => self.list[at] = condition,
            None => self.list.push(condition),
        }
    }

    /// Takes a condition away, because nothing is known about it any more.
    pub fn clear(&mut self, kind: &str) {
        self.list.retain(|condition| condition.type_ != kind);
    }
}

/// At most so many bytes, cut between characters.
pub fn shorten(text: &str, longest: usize) -> String {
    if text.len() <= longest {
        return text.to_owned();
    }
    let mut end = longest.saturating_sub(4);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{} ...", &text[..end])
}
