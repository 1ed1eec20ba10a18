//! What is told about a job in a cluster: the lines of `qvl launch --output json`, and the same
//! in words. Pure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::seen::{Seen, has_started, word};
use crate::{
    api::job::{LastFailure, State},
    cli::view::{clock, count, rate},
};

/// One line about a job in a cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ClusterRecord {
    /// Version of this format, as in the lines of the ranks.
    pub v: u32,
    /// Milliseconds since the Unix epoch.
    pub time_ms: u64,
    pub source: Source,
    pub namespace: String,
    pub job: String,
    pub attempt: u32,
    /// What happened.
    #[serde(flatten)]
    pub event: Told,
}

/// Who speaks, if it is neither a rank nor the supervisor of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Source {
    Cluster,
}

/// What happened to the job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum Told {
    /// The cluster has taken the job.
    Submitted { ranks: u32, nodes: u32, ranks_per_node: u32 },
    /// A part of the start is done: `pods-scheduled`, `preflight-passed`, ...
    Stage { stage: String, message: String },
    /// A part of the start waits, and for what.
    Waiting { stage: String, reason: String, message: String },
    /// The job is in another state.
    State { state: State, ranks: String, reason: String },
    /// Steps were made.
    Progress {
        step: u64,
        total_steps: u64,
        loss: Option<f64>,
        step_seconds: Option<f64>,
        eta: String,
    },
    /// A checkpoint is complete.
    Checkpoint { step: u64 },
    /// A rank has failed, and this one is to blame.
    Failure(LastFailure),
    /// The connection to the cluster is lost; the job does not notice.
    Disconnected { why: String },
    /// The last line.
    Ended { status: String, why: String },
}

/// Conditions of the start, in order, with the names of their stages.
const STAGES: [(&str, &str, &str); 5] = [
    ("Validated", "validated", "accepted by the operator"),
    ("QuotaReserved", "quota-reserved", "quota reserved"),
    ("PodsScheduled", "pods-scheduled", "pods run"),
    ("PreflightPassed", "preflight-passed", "preflight passed on all nodes"),
    ("RendezvousComplete", "rendezvous-complete", "all ranks met"),
];

/// What is new in `now`.
pub(crate) fn news(before: Option<&Seen>, now: &Seen) -> Vec<Told> {
    let mut told = Vec::new();
    let fails = now.status.last_failure.as_ref();
    if let Some(failure) =
        fails.filter(|_| before.map(|b| &b.status.last_failure) != Some(&now.status.last_failure))
    {
        told.push(Told::Failure(failure.clone()));
    }
    told.extend(STAGES.iter().filter_map(|stage| stage_news(*stage, before, now)));
    let summary = &now.status.summary;
    let same = before.is_some_and(|before| {
        before.state() == summary.state && before.status.summary.reason == summary.reason
    });
    let pending = before.is_none() && summary.state == State::Pending;
    if !same && !pending {
        told.push(Told::State {
            state: summary.state,
            ranks: summary.ranks.clone(),
            reason: summary.reason.clone(),
        });
    }
    let progress = &now.status.progress;
    let old = before.map(|before| &before.status.progress);
    if progress.step != 0 && old.map(|old| old.step) != Some(progress.step) {
        told.push(Told::Progress {
            step: progress.step,
            total_steps: progress.total_steps,
            loss: progress.loss,
            step_seconds: progress.step_seconds,
            eta: summary.eta.clone(),
        });
    }
    let saved = progress
        .checkpoint_step
        .filter(|_| old.and_then(|old| old.checkpoint_step) != progress.checkpoint_step);
    told.extend(saved.map(|step| Told::Checkpoint { step }));
    told
}

fn stage_news(
    (kind, stage, done): (&str, &str, &str),
    before: Option<&Seen>,
    now: &Seen,
) -> Option<Told> {
    let condition = now.condition(kind)?;
    let old = before.and_then(|before| before.condition(kind));
    let stage = stage.to_owned();
    match condition.status.as_str() {
        // There is no queue to tell of.
        "True" if condition.reason == "NoQueue" => None,
        "True" if old.is_none_or(|old| old.status != "True") => {
            let nodes = &now.status.placement.nodes;
            let message = if kind == "PodsScheduled" && !nodes.is_empty() {
                format!("{done} on {}", nodes.join(", "))
            } else {
                done.to_owned()
            };
            Some(Told::Stage { stage, message })
        }
        // What is false because its time has not come says nothing to a person.
        "False" if !condition.message.is_empty() && !has_started(now.state()) => {
            let known = old.is_some_and(|old| {
                old.status == "False"
                    && old.reason == condition.reason
                    && old.message == condition.message
            });
            (!known).then(|| Told::Waiting {
                stage,
                reason: condition.reason.clone(),
                message: condition.message.clone(),
            })
        }
        _ => None,
    }
}

impl Told {
    /// The lines for a person; none if another line says it already.
    pub(crate) fn text(&self, job: &str) -> Vec<String> {
        match self {
            Told::Submitted { ranks, nodes, ranks_per_node } => vec![format!(
                "{job}: submitted: {} in {} with {ranks_per_node} each",
                count(*ranks, "rank"),
                count(*nodes, "pod")
            )],
            Told::Stage { message, .. } => vec![format!("{job}: {message}")],
            Told::Waiting { reason, message, .. } => {
                vec![format!("{job}: waits: {message} ({reason})")]
            }
            // The last line says it too.
            Told::State { state: State::Complete | State::Failed, .. } => Vec::new(),
            // The stages of the start say it better.
            Told::State {
                state: State::Scheduling | State::Preflight | State::Rendezvous, ..
            } => Vec::new(),
            Told::State { .. } => vec![self.headline(job)],
            Told::Progress { .. } => vec![format!("step {}", self.numbers())],
            Told::Checkpoint { step } => vec![format!("step {step}: checkpoint saved")],
            Told::Failure(failure) => failure_lines(failure),
            Told::Disconnected { why } => {
                vec![format!("connection to the cluster lost, trying again: {why}")]
            }
            Told::Ended { status, why } => {
                let why = if why.is_empty() { String::new() } else { format!(": {why}") };
                vec![format!("{job} {status}{why}")]
            }
        }
    }

    /// The state in a few words, for the head of a bar; empty for anything else.
    pub(crate) fn headline(&self, job: &str) -> String {
        let Told::State { state, ranks, reason } = self else { return String::new() };
        state_line(job, *state, ranks, reason)
    }

    /// Step, loss, speed and time left; empty for anything but progress.
    pub(crate) fn numbers(&self) -> String {
        let Told::Progress { step, total_steps, loss, step_seconds, eta } = self else {
            return String::new();
        };
        let mut parts = vec![format!("{step}/{total_steps}")];
        parts.extend(loss.map(|loss| format!("loss {loss:.3}")));
        parts.extend(step_seconds.map(rate));
        let left = step_seconds.map(|seconds| seconds * total_steps.saturating_sub(*step) as f64);
        match (eta.is_empty(), left) {
            (false, _) => parts.push(format!("{eta} left")),
            (true, Some(left)) => parts.push(format!("{} left", clock(left))),
            (true, None) => {}
        }
        parts.join(", ")
    }
}

fn state_line(job: &str, state: State, ranks: &str, reason: &str) -> String {
    let counts = matches!(state, State::Running | State::Rendezvous | State::Scheduling);
    let shown = counts && !ranks.is_empty();
    let ranks = if shown { format!(", ranks {ranks}") } else { String::new() };
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    format!("{job}: {}{ranks}{reason}", word(state))
}

/// The culprit, what to do, and its last words.
pub(crate) fn failure_lines(failure: &LastFailure) -> Vec<String> {
    let LastFailure { hint, tail, step, .. } = failure;
    let mut lines = vec![format!("culprit: {}, after step {step}", failure.sentence())];
    let last: Vec<&str> = tail.lines().filter(|line| !line.trim().is_empty()).collect();
    lines.extend(last.iter().rev().take(3).rev().map(|line| format!("  | {line}")));
    lines.extend(hint.iter().map(|hint| format!("hint: {hint}")));
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cli::cluster::seen::tests::seen;

    fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Value {
        json!({"type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": "2026-05-01T12:00:00Z"})
    }

    /// The life of a job as a list of statuses, told line by line.
    fn told(statuses: &[Value]) -> String {
        let mut before = None;
        let mut text = String::new();
        for status in statuses {
            let now = seen(json!({"world": {"gpus": 4}}), status.clone());
            for told in news(before.as_ref(), &now) {
                told.text("digits").iter().for_each(|line| text.extend([line, "\n"]));
            }
            before = Some(now);
        }
        text
    }

    #[test]
    fn a_life_reads_line_by_line() {
        let unschedulable =
            condition("PodsScheduled", "False", "Unschedulable", "2 pods wait for nvidia.com/gpu");
        let scheduled = condition("PodsScheduled", "True", "Scheduled", "");
        let passed = condition("PreflightPassed", "True", "Passed", "");
        let running = json!({"state": "Running", "ranks": "4/4"});
        let failure = json!({"class": "Infra", "rank": 2, "node": "n2", "what": "rank 2 was killed (signal 9)",
            "hint": "look at the kernel log", "tail": "a\n\nb\n", "epoch": 1, "step": 7});
        let statuses = [
            Value::Null,
            json!({"summary": {"state": "Scheduling", "ranks": "0/4"}, "conditions": [unschedulable]}),
            json!({"summary": {"state": "Preflight"}, "conditions": [scheduled],
                "placement": {"nodes": ["n1", "n2"]}}),
            json!({"summary": running, "conditions": [scheduled, passed]}),
            json!({"summary": running, "conditions": [scheduled, passed],
                "progress": {"step": 7, "totalSteps": 20, "loss": 1.25, "stepSeconds": 0.5}}),
            json!({"summary": {"state": "Restarting", "reason": "rank 2 failed"},
                "conditions": [scheduled, passed], "lastFailure": failure,
                "progress": {"step": 7, "totalSteps": 20, "checkpointStep": 5}}),
            json!({"summary": running, "conditions": [scheduled, passed], "lastFailure": failure,
                "progress": {"step": 7, "totalSteps": 20, "checkpointStep": 5}}),
            json!({"summary": {"state": "Complete"}, "conditions": [scheduled, passed],
                "lastFailure": failure,
                "progress": {"step": 20, "totalSteps": 20, "checkpointStep": 20}}),
        ];
        insta::assert_snapshot!(told(&statuses), @r"
        digits: waits: 2 pods wait for nvidia.com/gpu (Unschedulable)
        digits: pods run on n1, n2
        digits: preflight passed on all nodes
        digits: running, ranks 4/4
        step 7/20, loss 1.250, 2.0 it/s, 7s left
        culprit: rank 2 on n2 was killed (signal 9), after step 7
          | a
          | b
        hint: look at the kernel log
        digits: restarting: rank 2 failed
        step 5: checkpoint saved
        digits: running, ranks 4/4
        step 20/20
        step 20: checkpoint saved
        ");
    }

    #[test]
    fn the_same_status_twice_tells_nothing() {
        let status = json!({"summary": {"state": "Running"}, "progress": {"step": 3},
            "conditions": [condition("PodsScheduled", "True", "Scheduled", "")]});
        let now = seen(json!({}), status);
        assert_eq!(news(Some(&now), &now), []);
    }

    #[test]
    fn a_line_for_programs_is_flat() {
        let record = ClusterRecord {
            v: 1,
            time_ms: 5,
            source: Source::Cluster,
            namespace: "team".to_owned(),
            job: "digits".to_owned(),
            attempt: 1,
            event: Told::Checkpoint { step: 5 },
        };
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(
            text,
            r#"{"v":1,"time_ms":5,"source":"cluster","namespace":"team","job":"digits","attempt":1,"event":"checkpoint","step":5}"#
        );
    }
}
