//! `qvl top`: who uses the GPUs. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
};

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};

use super::{
    health,
    plan::NodeRoom,
    seen::Seen,
    table::{self, cell, row},
};
use crate::{
    api::{job::State, labels, node::NodeReport},
    cli::view::rate,
};

/// Nodes with their GPUs, then jobs that run.
pub(crate) fn print(
    rooms: &[NodeRoom],
    pods: &[Pod],
    reports: &[NodeReport],
    jobs: &[Seen],
    now: Timestamp,
    out: &mut impl Write,
) -> io::Result<()> {
    let mut rows = vec![row(["NODE", "GPUS", "FREE", "PRODUCT", "DRIVER", "PROBLEMS", "JOBS"])];
    let users = users(pods);
    rows.extend(rooms.iter().map(|room| {
        let report =
            reports.iter().find(|report| report.metadata.name.as_ref() == Some(&room.name));
        let summary = report.map(|report| &report.spec.summary);
        let old = report.is_some_and(|report| health::stale(report, now).is_some());
        let problems = summary.map_or("no report", |summary| summary.problems.as_str());
        let problems = if old { "old report" } else { problems };
        let problems = match &room.unusable {
            Some(why) if problems == "none" => why.clone(),
            Some(why) => format!("{why}, {problems}"),
            None => problems.to_owned(),
        };
        let product =
            summary.map(|summary| summary.product.clone()).filter(|name| !name.is_empty());
        let names = users.get(room.name.as_str());
        let names: Vec<&str> = names.into_iter().flatten().map(String::as_str).collect();
        vec![
            room.name.clone(),
            room.whole.gpus.to_string(),
            room.free.gpus.to_string(),
            cell(&product.or_else(|| room.product.clone()).unwrap_or_default()),
            cell(summary.map_or("", |summary| &summary.driver)),
            problems,
            cell(&names.join(", ")),
        ]
    }));
    table::print(&rows, out)?;
    let live = jobs.iter().filter(|job| !job.is_over() && job.state() != State::Suspended);
    let mut rows =
        vec![row(["NAMESPACE", "JOB", "STATE", "RANKS", "STEP", "SPEED", "LOSS", "LEFT"])];
    rows.extend(live.map(|job| {
        let (summary, progress) = (&job.status.summary, &job.status.progress);
        vec![
            job.namespace.clone(),
            job.name.clone(),
            job.word().to_owned(),
            if summary.ranks.is_empty() {
                format!("-/{}", job.ranks())
            } else {
                summary.ranks.clone()
            },
            format!("{}/{}", progress.step, progress.total_steps),
            progress.step_seconds.map_or("-".to_owned(), rate),
            cell(&summary.loss),
            cell(&summary.eta),
        ]
    }));
    if rows.len() == 1 {
        return writeln!(out, "\nno job of qvl runs");
    }
    writeln!(out)?;
    table::print(&rows, out)
}

/// Jobs of qvl on each node; pods of others count as one.
fn users(pods: &[Pod]) -> BTreeMap<&str, BTreeSet<String>> {
    let mut users: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for pod in pods {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        let labels = pod.metadata.labels.as_ref();
        let job = labels.and_then(|labels| labels.get(labels::JOB));
        if let (Some(node), Some(job)) = (node, job) {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            users.entry(node).or_default().insert(format!("{namespace}/{job}"));
        }
    }
    users
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::cluster::{plan::Room, seen::tests::seen};

    #[test]
    fn nodes_and_jobs_are_two_tables() {
        let room = |name: &str, free, unusable: Option<&str>| NodeRoom {
            name: name.to_owned(),
            product: Some("NVIDIA-H100".to_owned()),
            unusable: unusable.map(str::to_owned),
            whole: Room { gpus: 2, ..Room::default() },
            free: Room { gpus: free, ..Room::default() },
        };
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "team",
            "labels": {"qvl.dev/job": "digits"}}, "spec": {"nodeName": "n1", "containers": []}}))
            .unwrap();
        let report: NodeReport = serde_json::from_value(json!({"apiVersion": "qvl.dev/v1alpha1",
            "kind": "NodeReport", "metadata": {"name": "n1"}, "spec": {"facts": "", "observedAt": "2026-05-01T11:50:00Z",
            "summary": {"gpus": 2, "product": "NVIDIA H100", "driver": "550.54", "cuda": "12.4",
                "problems": "none"}}}))
        .unwrap();
        let job = seen(
            json!({}),
            json!({"summary": {"state": "Running", "ranks": "2/2", "loss": "0.8",
            "eta": "5m"}, "progress": {"step": 3, "totalSteps": 9, "stepSeconds": 0.5}}),
        );
        let mut out = Vec::new();
        let mut old = report.clone();
        old.metadata.name = Some("n3".to_owned());
        "2026-05-01T09:00:00Z".clone_into(&mut old.spec.observed_at);
        let rooms = [room("n1", 0, None), room("n2", 2, Some("cordoned")), room("n3", 2, None)];
        let now = "2026-05-01T12:00:00Z".parse().unwrap();
        print(&rooms, &[pod], &[report, old], &[job], now, &mut out).unwrap();
        insta::assert_snapshot!(String::from_utf8(out).unwrap(), @r"
        NODE  GPUS  FREE  PRODUCT      DRIVER  PROBLEMS             JOBS
        n1    2     0     NVIDIA H100  550.54  none                 team/digits
        n2    2     2     NVIDIA-H100  -       cordoned, no report  -
        n3    2     2     NVIDIA H100  550.54  old report           -

        NAMESPACE  JOB     STATE    RANKS  STEP  SPEED     LOSS  LEFT
        team       digits  running  2/2    3/9   2.0 it/s  0.8   5m
        ");
    }
}
