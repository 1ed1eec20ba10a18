//! The nodes of a fleet in a table, and what their state means for a job. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
};

use k8s_openapi::{api::core::v1::Node, jiff::Timestamp};

use super::{
    health::{self, Fleet, Health},
    plan::{self, Ask, Fit, Need, Placement, Shape},
    rooms,
    table::{self, age, cell, row},
};
use crate::{
    api::node::NodeReport,
    doctor::{Report, Verdict},
    facts::NodeName,
    job::{Compute, FineTuneJob},
};

/// Everything that was read about a fleet.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    pub nodes: Vec<Node>,
    pub reports: Vec<NodeReport>,
    pub fleet: Fleet,
    /// Nodes that cannot take the job anyway, and why.
    pub left_out: BTreeMap<NodeName, String>,
    /// Why the nodes may not be seen.
    pub blind: Option<String>,
    /// Whether the facts hold the file of the trainer.
    pub trainer: bool,
}

/// The shape that a job would have if the whole cluster were free and healthy; the largest that
/// fits, if it does not.
pub(crate) fn shape(nodes: &[Node], job: &FineTuneJob) -> Option<Shape> {
    match fit(nodes, job, &BTreeSet::new())? {
        Fit::Now(Placement { shape, .. })
        | Fit::Later { placement: Placement { shape, .. }, .. } => Some(shape),
        Fit::Never { largest } => largest,
    }
}

/// Where a job on GPUs fits on empty nodes, `without` some of them.
fn fit(nodes: &[Node], job: &FineTuneJob, without: &BTreeSet<&str>) -> Option<Fit> {
    if job.spec.world.compute == Compute::Cpu {
        return None;
    }
    let cluster = &job.spec.cluster;
    let gpu = cluster.gpu_resource.as_deref().filter(|name| !name.is_empty());
    let gpu = gpu.unwrap_or(rooms::GPU);
    let mut rooms =
        rooms::of(nodes, &[], Some(gpu), &cluster.node_selector, &cluster.exclude_nodes);
    rooms.retain(|room| !without.contains(room.name.as_str()));
    let need = Need { gpus: 1, ..Need::default() };
    let per_node = cluster.gpus_per_node;
    Some(plan::place(&rooms, &Ask { ranks: job.spec.world.gpus, shape: None, per_node, need }))
}

/// The table, and a sentence about the job.
pub(crate) fn print(
    roster: &Roster,
    report: &Report,
    job: Option<&FineTuneJob>,
    allowed: &BTreeSet<String>,
    now: Timestamp,
    out: &mut impl Write,
) -> io::Result<()> {
    let healths = health::by_node(report, &roster.fleet, allowed);
    table::print(&rows(roster, &healths, now), out)?;
    if let Some(line) = job.and_then(|job| consequence(&roster.nodes, job, &healths)) {
        writeln!(out, "\n{line}")?;
    }
    let blind = roster.blind.iter();
    blind
        .map(|why| format!("which nodes should report is not known: {why}"))
        .chain(roster.fleet.notes())
        .try_for_each(|note| writeln!(out, "\n{note}"))?;
    let (judged, else_) = if roster.trainer {
        ("judged with the trainer's file of this machine; ", "else ")
    } else {
        ("", "")
    };
    writeln!(out, "\n{judged}what {else_}only pods see is checked in them before they start\n")
}

fn rows(roster: &Roster, healths: &BTreeMap<NodeName, Health>, now: Timestamp) -> Vec<Vec<String>> {
    let head = ["NODE", "VERDICT", "GPUS", "PRODUCT", "MEMORY", "DRIVER", "REPORTED", "WHY"];
    let mut rows = vec![row(head)];
    let names: BTreeSet<&NodeName> = healths.keys().chain(roster.left_out.keys()).collect();
    for name in names {
        let of_node = |report: &&NodeReport| report.metadata.name.as_ref() == Some(&name.0);
        let found = roster.reports.iter().find(of_node);
        let reported = found.map_or("never".to_owned(), |report| {
            format!("{} ago", age(report.spec.observed_at.parse().ok(), now))
        });
        // What an old report says is no longer so.
        let summary = found.filter(|_report| roster.fleet.snapshot.nodes.contains_key(name));
        let summary = summary.map(|report| report.spec.summary.clone()).unwrap_or_default();
        let (verdict, why) = match (roster.left_out.get(name), healths.get(name)) {
            (Some(why), _) => ("left out", why.clone()),
            (None, Some(health)) => (word(health.verdict), why(health)),
            (None, None) => ("-", String::new()),
        };
        let known = roster.fleet.snapshot.nodes.get(name);
        let gpus = known.map_or(String::new(), |facts| {
            let seen =
                facts.nvml.gpus.value().map_or("?".to_owned(), |gpus| gpus.len().to_string());
            match facts.offered_gpus.map(|offered| offered.to_string()) {
                Some(offered) if offered != seen => format!("{seen} of {offered}"),
                Some(_) | None => seen,
            }
        });
        rows.push(vec![
            name.0.clone(),
            verdict.to_owned(),
            cell(&gpus),
            cell(&summary.product),
            cell(&summary.memory),
            cell(&summary.driver),
            reported,
            cell(&why),
        ]);
    }
    rows
}

const fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Skipped | Verdict::Pass => "ok",
        Verdict::Warn => "WARN",
        Verdict::Unknown => "UNKNOWN",
        Verdict::Fail => "FAIL",
    }
}

/// The checks; the text of each is below the table.
fn why(health: &Health) -> String {
    health.ids.join(" ")
}

/// What the state of the nodes means for a job on GPUs.
fn consequence(
    nodes: &[Node],
    job: &FineTuneJob,
    healths: &BTreeMap<NodeName, Health>,
) -> Option<String> {
    let bad: BTreeSet<&str> = healths
        .iter()
        .filter(|(_name, health)| Verdict::Warn < health.verdict)
        .map(|(name, _health)| name.0.as_str())
        .collect();
    let (name, ranks) = (&job.metadata.name, job.spec.world.gpus);
    let without = match bad.len() {
        0 => String::new(),
        _ => format!(" without {}", list(&bad)),
    };
    let text = match fit(nodes, job, &bad)? {
        Fit::Now(placement) | Fit::Later { placement, .. } => {
            let Placement { shape, nodes, .. } = placement;
            let on: BTreeSet<&str> = nodes.iter().map(|(name, _ranks)| name.as_str()).collect();
            format!("{name}: {ranks} ranks fit{without}, for example as {shape} on {}", list(&on))
        }
        Fit::Never { largest } => {
            let most = largest.map_or("nothing of it fits".to_owned(), |shape| {
                format!("at most {} ranks fit, as {shape}", shape.ranks())
            });
            let ever = match fit(nodes, job, &BTreeSet::new())? {
                Fit::Now(_) | Fit::Later { .. } => without,
                Fit::Never { .. } => " into this cluster".to_owned(),
            };
            format!("{name}: {ranks} ranks do not fit{ever}; {most}")
        }
    };
    Some(text)
}

/// The first few names.
fn list(names: &BTreeSet<&str>) -> String {
    const FEW: usize = 8;
    let more = names.len().saturating_sub(FEW);
    let list = names.iter().take(FEW).copied().collect::<Vec<_>>().join(", ");
    if more == 0 { list } else { format!("{list} and {more} more") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        cli::cluster::health::tests::{changed, fell_off, job, node, now, report},
        doctor::{self, Demand},
        facts::Fact,
    };

    fn text(nodes: Vec<Node>, reports: Vec<NodeReport>, job: &FineTuneJob) -> String {
        let (expected, left_out) = health::expected(&nodes, &reports, Some(job));
        let fleet = health::fleet(&reports, &nodes, expected, now());
        let roster = Roster { nodes, reports, fleet, left_out, ..Roster::default() };
        let each = shape(&roster.nodes, job).map(|shape| shape.per_node);
        let demand = Demand { ranks_each: each, ..Demand::of(job, doctor::Sizes::default()) };
        let mut judged = doctor::diagnose(&roster.fleet.snapshot, &demand);
        judged.leave_to_pods(false);
        let mut out = Vec::new();
        print(&roster, &judged, Some(job), &BTreeSet::new(), now(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn summarised(mut report: NodeReport, driver: &str) -> NodeReport {
        let summary = &mut report.spec.summary;
        summary.product = "NVIDIA H100 80GB HBM3".to_owned();
        summary.memory = "79.6 GiB".to_owned();
        summary.driver = driver.to_owned();
        report
    }

    #[test]
    fn every_node_has_a_line_and_the_job_a_sentence() {
        let nodes = vec![
            node("n1", json!({}), 8),
            node("n2", json!({}), 8),
            node("n3", json!({}), 8),
            node("n4", json!({}), 8),
            node("n5", json!({"unschedulable": true}), 8),
            node("n6", json!({}), 8),
        ];
        let reports = vec![
            summarised(changed("n1", |_facts| {}), "570.124.06"),
            summarised(changed("n2", fell_off), "570.124.06"),
            summarised(report("n3", "2026-05-01T09:00:00Z", "{}"), "570.124.06"),
            summarised(changed("n5", |_facts| {}), "570.124.06"),
            summarised(
                changed("n6", |facts| {
                    facts.nvml.driver_version = Fact::known("535.104.05".to_owned(), "nvml");
                }),
                "535.104.05",
            ),
        ];
        let told = text(nodes.clone(), reports.clone(), &job(8));
        let line = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<String> = told.lines().map(line).collect();
        for expected in [
            "NODE VERDICT GPUS PRODUCT MEMORY DRIVER REPORTED WHY",
            "n1 WARN 8 NVIDIA H100 80GB HBM3 79.6 GiB 570.124.06 60s ago rdma-far-from-gpu",
            "n2 FAIL 8 NVIDIA H100 80GB HBM3 79.6 GiB 570.124.06 60s ago xid-seen",
            "n3 UNKNOWN - - - - 3h0m ago node-missing",
            "n4 UNKNOWN - - - - never node-missing",
            "n5 left out - - - - 60s ago cordoned",
            "digits: 8 ranks fit without n2, n3, n4, n6, for example as 1x8 on n1",
            "report of n3 is not used: it is 180 minutes old, and agents report every five",
        ] {
            assert!(lines.iter().any(|other| other == expected), "no `{expected}` in\n{told}");
        }
        let told = text(nodes, reports, &job(16));
        assert!(told.contains("digits: 16 ranks do not fit without n2, n3, n4"), "{told}");
    }

    #[test]
    fn a_job_that_is_too_large_for_a_healthy_cluster_is_told_so() {
        let nodes = vec![node("n1", json!({}), 8)];
        let reports = vec![summarised(changed("n1", |_facts| {}), "570.124.06")];
        let told = text(nodes, reports, &job(64));
        assert!(
            told.contains("digits: 64 ranks do not fit into this cluster; at most 8"),
            "{told}"
        );
    }
}
