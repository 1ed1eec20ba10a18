//! `qvl ps` and `qvl status` for jobs of a cluster. Pure: the objects were read before.

use std::io::{self, Write};

use k8s_openapi::jiff::Timestamp;

use super::{
    record::failure_lines,
    seen::Seen,
    table::{self, age, cell, row},
};
use crate::{api::job::State, wire::DoctorVerdict};

/// The table of `qvl ps`, sorted by namespace and name.
pub(crate) fn list(jobs: &[Seen], now: Timestamp, out: &mut impl Write) -> io::Result<()> {
    let mut jobs: Vec<&Seen> = jobs.iter().collect();
    jobs.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let mut rows = vec![row([
        "NAMESPACE",
        "NAME",
        "STATE",
        "RANKS",
        "PROGRESS",
        "ETA",
        "LOSS",
        "RESTARTS",
        "AGE",
        "WHY",
    ])];
    rows.extend(jobs.iter().map(|job| {
        let summary = &job.status.summary;
        let ranks = format!("-/{}", job.ranks());
        let ranks = if summary.ranks.is_empty() { ranks } else { summary.ranks.clone() };
        vec![
            job.namespace.clone(),
            job.name.clone(),
            job.word().to_owned(),
            ranks,
            cell(&summary.progress),
            cell(if job.is_over() { "" } else { &summary.eta }),
            cell(&summary.loss),
            job.status.restarts.total.to_string(),
            age(job.created, now),
            short(&job.reason()),
        ]
    }));
    table::print(&rows, out)
}

/// A reason that fits beside the other columns; `qvl explain` has all of it.
fn short(reason: &str) -> String {
    const LONGEST: usize = 60;
    let line = reason.lines().next().unwrap_or_default();
    if line.chars().count() <= LONGEST {
        return line.to_owned();
    }
    line.chars().take(LONGEST - 1).chain(['…']).collect()
}

/// One job in full.
pub(crate) fn describe(job: &Seen, now: Timestamp, out: &mut impl Write) -> io::Result<()> {
    let Seen { name, namespace, status, .. } = job;
    writeln!(out, "{name}: {} (namespace {namespace})", job.word())?;
    let mut row = |title: &str, value: String| {
        if value.is_empty() { Ok(()) } else { writeln!(out, "  {title:<11} {value}") }
    };
    row("why", job.reason())?;
    let progress = &status.progress;
    if progress.total_steps != 0 {
        row("step", format!("{} of {}", progress.step, progress.total_steps))?;
    }
    row("loss", progress.loss.map_or(String::new(), |loss| format!("{loss:.4}")))?;
    row("left", if job.is_over() { String::new() } else { status.summary.eta.clone() })?;
    row(
        "checkpoint",
        progress.checkpoint_step.map_or(String::new(), |step| format!("step {step}")),
    )?;
    // None runs any more when the job is over, which says nothing.
    let ranks = Some(&status.summary.ranks).filter(|ranks| !ranks.is_empty() && !job.is_over());
    row("ranks", ranks.map_or_else(|| job.ranks().to_string(), String::clone))?;
    row("nodes", status.placement.nodes.join(", "))?;
    for excluded in &status.placement.excluded {
        row("not used", format!("{}: {}", excluded.name, excluded.reason))?;
    }
    let doctor = status.doctor.as_ref();
    row("doctor", doctor.map_or(String::new(), |verdict| passed(verdict, now)))?;
    row("queue", job.queue().unwrap_or_default().to_owned())?;
    if status.attempt != 0 {
        row("attempt", format!("{}, epoch {}", status.attempt, status.epoch))?;
    }
    let restarts = status.restarts;
    if restarts.total != 0 {
        row("restarts", format!("{}, of which {} count", restarts.total, restarts.counted))?;
    }
    row("age", age(job.created, now))?;
    for condition in &status.conditions {
        let since = age(Some(condition.last_transition_time.0), now);
        let message = match condition.message.as_str() {
            "" => String::new(),
            message => format!(": {message}"),
        };
        let (kind, value, reason) = (&condition.type_, &condition.status, &condition.reason);
        row("condition", format!("{kind}={value} for {since} ({reason}){message}"))?;
    }
    footer(job, out)
}

/// What the doctor said before the launch.
pub(super) fn passed(verdict: &DoctorVerdict, now: Timestamp) -> String {
    verdict.sentence(&age(Timestamp::from_second(verdict.unix_seconds).ok(), now))
}

/// The last failure, and what to do.
fn footer(job: &Seen, out: &mut impl Write) -> io::Result<()> {
    if let Some(failure) = &job.status.last_failure {
        writeln!(out)?;
        failure_lines(failure).iter().try_for_each(|line| writeln!(out, "{line}"))?;
    }
    if !job.is_fresh() {
        writeln!(out, "\nthe operator has not seen the newest change yet")?;
    }
    hint(job).map_or(Ok(()), |hint| writeln!(out, "\nhint: {hint}"))
}

/// What to do next.
fn hint(job: &Seen) -> Option<String> {
    let name = &job.name;
    match job.state() {
        State::Suspended => Some(format!("`qvl resume {name}` goes on from the newest checkpoint")),
        State::Failed => {
            Some(format!("`qvl explain {name}` tells why, `qvl retry {name}` tries again"))
        }
        State::Pending | State::Queued | State::Scheduling | State::Stalled => {
            Some(format!("`qvl explain {name}` tells what it waits for"))
        }
        State::Preflight
        | State::Rendezvous
        | State::Running
        | State::Restarting
        | State::Suspending
        | State::Complete => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cli::cluster::seen::tests::seen;

    fn now() -> Timestamp {
        "2026-05-01T12:03:05Z".parse().unwrap()
    }

    fn text(print: impl Fn(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        print(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_list_is_a_table() {
        let running = json!({"summary": {"state": "Running", "ranks": "4/4", "progress": "43% 860/2000",
            "eta": "1h12m", "loss": "0.812"}, "restarts": {"total": 1}});
        let mut other = seen(json!({"world": {"gpus": 8}}), Value::Null);
        other.name = "a-second-job".to_owned();
        let jobs = [seen(json!({}), running), other];
        insta::assert_snapshot!(text(|out| list(&jobs, now(), out)), @r"
        NAMESPACE  NAME          STATE    RANKS  PROGRESS      ETA    LOSS   RESTARTS  AGE   WHY
        team       a-second-job  pending  -/8    -             -      -      0         3m5s
        team       digits        running  4/4    43% 860/2000  1h12m  0.812  1         3m5s
        ");
    }

    #[test]
    fn a_failed_job_tells_the_culprit_and_what_to_do() {
        let status = json!({"observedGeneration": 2, "attempt": 2, "epoch": 5,
            "summary": {"state": "Failed", "ranks": "0/4", "reason": "rank 2 found bad data"},
            "restarts": {"total": 4, "counted": 3},
            "progress": {"step": 120, "totalSteps": 1200, "loss": 1.5, "checkpointStep": 100},
            "placement": {"nodes": ["n1", "n2"], "excluded": [{"name": "n3", "reason": "GPU fault"}]},
            "doctor": {"digest": "sha256:0123456789abcdef", "rules": "", "facts": "", "job": "",
                "unixSeconds": 1_777_636_800, "nodes": ["n1", "n2", "n3"], "nodesTotal": 3,
                "counts": {"pass": 120, "warn": 2, "fail": 0, "unknown": 0, "skipped": 30}},
            "conditions": [{"type": "Failed", "status": "True", "reason": "NonRetryable",
                "message": "exit code 65", "lastTransitionTime": "2026-05-01T12:03:00Z"}],
            "lastFailure": {"class": "App", "rank": 2, "node": "n2", "exitCode": 65,
                "what": "rank 2 ended with code 65 (data)", "hint": "`qvl data lint` shows the sample",
                "tail": "error: sample 7 has no picture\n", "epoch": 5, "step": 120}});
        let job = seen(json!({"world": {"gpus": 4}}), status);
        insta::assert_snapshot!(text(|out| describe(&job, now(), out)), @r"
        digits: failed (namespace team)
          why         exit code 65 (NonRetryable)
          step        120 of 1200
          loss        1.5000
          checkpoint  step 100
          ranks       4
          nodes       n1, n2
          not used    n3: GPU fault
          doctor      passed 3m5s ago on n1, n2, n3: 120 pass, 2 warn; sha256:0123456789ab
          attempt     2, epoch 5
          restarts    4, of which 3 count
          age         3m5s
          condition   Failed=True for 5s (NonRetryable): exit code 65

        culprit: rank 2 on n2 ended with code 65 (data), after step 120
          | error: sample 7 has no picture
        hint: `qvl data lint` shows the sample

        hint: `qvl explain digits` tells why, `qvl retry digits` tries again
        ");
    }
}
