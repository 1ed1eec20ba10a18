//! A job as the cluster holds it, and what that means for a shell. Pure.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};
use kube::api::DynamicObject;
use serde_json::Value;

use crate::{
    api::job::{JobStatus, State},
    wire::ExitStatus,
};

/// A job that was read. Only the status must be of our version.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub created: Option<Timestamp>,
    /// It is being deleted.
    pub going: bool,
    generation: Option<i64>,
    pub spec: Value,
    pub status: JobStatus,
}

impl Seen {
    /// Reads an object; fails if its status is of another version of qvl.
    pub(crate) fn of(object: DynamicObject) -> Result<Self, serde_json::Error> {
        let DynamicObject { metadata, mut data, .. } = object;
        let status = match data.get_mut("status").map(Value::take) {
            None | Some(Value::Null) => JobStatus::default(),
            Some(status) => serde_json::from_value(status)?,
        };
        Ok(Seen {
            name: metadata.name.unwrap_or_default(),
            namespace: metadata.namespace.unwrap_or_default(),
            uid: metadata.uid.unwrap_or_default(),
            created: metadata.creation_timestamp.map(|time| time.0),
            going: metadata.deletion_timestamp.is_some(),
            generation: metadata.generation,
            spec: data.get_mut("spec").map(Value::take).unwrap_or_default(),
            status,
        })
    }

    pub(crate) fn state(&self) -> State {
        self.status.summary.state
    }

    /// Whether the job was told to suspend.
    pub(crate) fn suspends(&self) -> bool {
        self.spec.get("suspend").and_then(Value::as_bool) == Some(true)
    }

    pub(crate) fn ranks(&self) -> u64 {
        self.spec.pointer("/world/gpus").and_then(Value::as_u64).unwrap_or(1)
    }

    pub(crate) fn queue(&self) -> Option<&str> {
        self.spec.pointer("/cluster/queue").and_then(Value::as_str)
    }

    pub(crate) fn condition(&self, kind: &str) -> Option<&Condition> {
        self.status.conditions.iter().find(|condition| condition.type_ == kind)
    }

    /// Whether the status is about the spec that the object has now.
    pub(crate) fn is_fresh(&self) -> bool {
        match (self.status.observed_generation, self.generation) {
            (Some(observed), Some(generation)) => generation <= observed,
            (None, _) | (_, None) => true,
        }
    }

    /// Whether the job will never change again.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state(), State::Complete | State::Failed)
    }

    /// How it ended, or that it stands still because it was told to; `None` while it goes on.
    pub(crate) fn end(&self) -> Option<ExitStatus> {
        match self.state() {
            State::Complete => Some(ExitStatus::Success),
            State::Failed => {
                let reason = self.condition("Failed").map(|condition| condition.reason.as_str());
                let cancelled = reason == Some("Cancelled");
                Some(if cancelled { ExitStatus::JobCancelled } else { ExitStatus::JobFailed })
            }
            State::Suspended if self.suspends() && self.is_fresh() => {
                Some(ExitStatus::JobCancelled)
            }
            State::Suspended
            | State::Pending
            | State::Queued
            | State::Scheduling
            | State::Preflight
            | State::Rendezvous
            | State::Running
            | State::Stalled
            | State::Restarting
            | State::Suspending => None,
        }
    }

    /// The state in one lower-case word; a job whose deletion has begun says so.
    pub(crate) fn word(&self) -> &'static str {
        if self.going { "deleting" } else { word(self.state()) }
    }

    /// Why it is in this state, from the operator or from its conditions.
    pub(crate) fn reason(&self) -> String {
        // The summary is cut to the width of a column.
        let failed = self.condition("Failed").filter(|condition| condition.status == "True");
        let failed = failed.map(|failed| format!("{} ({})", failed.message, failed.reason));
        failed.unwrap_or_else(|| self.status.summary.reason.clone())
    }
}

/// A state in one lower-case word.
pub(crate) const fn word(state: State) -> &'static str {
    match state {
        State::Pending => "pending",
        State::Queued => "queued",
        State::Scheduling => "scheduling",
        State::Preflight => "preflight",
        State::Rendezvous => "rendezvous",
        State::Running => "running",
        State::Stalled => "stalled",
        State::Restarting => "restarting",
        State::Suspending => "suspending",
        State::Suspended => "suspended",
        State::Complete => "complete",
        State::Failed => "failed",
    }
}

/// Whether ranks have run at least once in this state's attempt.
pub(crate) const fn has_started(state: State) -> bool {
    matches!(
        state,
        State::Running
            | State::Stalled
            | State::Restarting
            | State::Suspending
            | State::Complete
            | State::Failed
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    /// A job object with this status.
    #[expect(clippy::needless_pass_by_value, reason = "calls read better")]
    pub(crate) fn seen(spec: Value, status: Value) -> Seen {
        let object = json!({"apiVersion": "qvl.dev/v1alpha1", "kind": "FineTuneJob",
            "metadata": {"name": "digits", "namespace": "team", "generation": 2,
                "creationTimestamp": "2026-05-01T12:00:00Z"},
            "spec": spec, "status": status});
        Seen::of(serde_json::from_value(object).unwrap()).unwrap()
    }

    #[test]
    fn states_map_to_exit_codes() {
        let end = |state: &str, spec: Value, more: Value| {
            let mut status = json!({"summary": {"state": state}, "observedGeneration": 2});
            status.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            seen(spec, status).end().map(ExitStatus::code)
        };
        let failed = |reason: &str| {
            json!({"conditions": [{"type": "Failed", "status": "True", "reason": reason,
                "message": "", "lastTransitionTime": "2026-05-01T12:00:00Z"}]})
        };
        assert_eq!(end("Complete", json!({}), json!({})), Some(0));
        assert_eq!(end("Failed", json!({}), failed("BackoffExceeded")), Some(100));
        assert_eq!(end("Failed", json!({}), failed("Cancelled")), Some(103));
        assert_eq!(end("Suspended", json!({"suspend": true}), json!({})), Some(103));
        let stale = json!({"observedGeneration": 1});
        assert_eq!(end("Suspended", json!({"suspend": true}), stale), None);
        assert_eq!(end("Suspended", json!({"suspend": false}), json!({})), None);
        assert_eq!(end("Running", json!({}), json!({})), None);
    }

    #[test]
    fn an_object_without_status_is_pending() {
        let seen = seen(json!({"world": {"gpus": 4}}), Value::Null);
        assert_eq!((seen.word(), seen.ranks(), seen.is_over()), ("pending", 4, false));
    }
}
