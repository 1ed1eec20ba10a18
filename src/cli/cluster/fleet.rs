//! The doctor over the nodes of a cluster: reports of the agents in, verdict out.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;

use super::{
    Cluster, Target, block_on, connect, health,
    observe::{self, World},
    plan::Placement,
    roster::{self, Roster},
    trouble::Denied,
};
use crate::{
    cli::{
        CliError,
        doctor::{self as command, Judged, Permission},
        plan::Plan,
    },
    doctor::{self, Demand, Report, Sizes},
    facts::NodeName,
    job::FineTuneJob,
    probe,
    wire::{DoctorVerdict, ExitStatus},
};

/// Pause of a reader that waits for reports.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Connects and reads the whole fleet, for `qvl doctor --cluster`. The file of the trainer is that
/// of this machine: the nodes do not have it.
pub(crate) fn read(
    target: &Target,
    job: Option<&FineTuneJob>,
    trainer: Option<&Path>,
    wait: Duration,
) -> Result<Roster, CliError> {
    let mut roster = block_on(async {
        let cluster = connect(target).await?;
        let until = Instant::now() + wait;
        loop {
            let roster = whole(&cluster, job).await?;
            let is_whole =
                !roster.reports.is_empty() && roster.fleet.snapshot.missing().next().is_none();
            if is_whole || until <= Instant::now() {
                return Ok(roster);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    })?;
    if roster.reports.is_empty() {
        return Err(nobody());
    }
    let Some(path) = trainer else { return Ok(roster) };
    let facts = probe::program(path);
    if let Err(unread) = facts.needed.get() {
        return Err(CliError::new(ExitStatus::Usage, format!("no trainer: {}", unread.why))
            .hint("--trainer and QVL_TRAIN_BIN name the `qvl-train` of the job's image"));
    }
    for node in roster.fleet.snapshot.nodes.values_mut() {
        node.trainer = facts.clone();
    }
    Ok(Roster { trainer: true, ..roster })
}

/// Every GPU node is expected to have reported.
async fn whole(cluster: &Cluster, job: Option<&FineTuneJob>) -> Result<Roster, CliError> {
    let (nodes, reports) = futures::join!(observe::nodes(cluster), observe::reports(cluster));
    let (nodes, blind) = match nodes {
        Ok(nodes) => (nodes, None),
        Err(error) if error.is::<Denied>() => (Vec::new(), Some(error.line())),
        Err(error) => return Err(error),
    };
    let reports = reports?;
    let (expected, left_out) = health::expected(&nodes, &reports, job);
    let fleet = health::fleet(&reports, &nodes, expected, Timestamp::now());
    Ok(Roster { nodes, reports, fleet, left_out, blind, trainer: false })
}

fn nobody() -> CliError {
    CliError::new(ExitStatus::Unknown, "no node of the cluster has reported")
        .hint("do the agents run? `kubectl -n qvl-system get daemonset qvl-agent`")
}

/// The same demand with the ranks that a node would take.
pub(crate) fn shaped(demand: Demand, roster: &Roster, job: Option<&FineTuneJob>) -> Demand {
    let shape = job.and_then(|job| roster::shape(&roster.nodes, job));
    let demand = match job {
        Some(job) => demand.in_pods(job),
        None => demand,
    };
    Demand { ranks_each: shape.map(|shape| shape.per_node), ..demand }
}

/// What comes before the doctor's text: the nodes, and what their state means for the job.
pub(crate) fn preface(
    roster: &Roster,
    report: &Report,
    job: Option<&FineTuneJob>,
    allowed: &BTreeSet<String>,
    out: &mut impl Write,
) -> std::io::Result<()> {
    roster::print(roster, report, job, allowed, Timestamp::now(), out)
}

/// What a user asked of the doctor with a launch.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// The job as it was read, before a place was found for it.
    pub read: &'a FineTuneJob,
    pub permission: Option<&'a Permission>,
    pub allow_unknown: &'a [String],
}

/// What the doctor says of a launch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The job may be submitted, with this.
    Open(Box<DoctorVerdict>),
    Closed(ExitStatus),
}

/// Judges the nodes that a job is expected to run on.
pub(crate) fn gate(
    world: &World,
    job: &FineTuneJob,
    placement: &Placement,
    planned: Option<&(Plan, Sizes)>,
    asked: &Asked<'_>,
    out: &mut impl Write,
) -> Result<Verdict, CliError> {
    if let Some(why) = &world.reports_blind {
        writeln!(out, "doctor  reports of the nodes cannot be read: {why}")?;
    }
    let names = placement.nodes.iter().map(|(name, _ranks)| NodeName(name.clone())).collect();
    let nodes = world.nodes.as_deref().unwrap_or_default();
    let fleet = health::fleet(&world.reports, nodes, names, Timestamp::now());
    fleet.notes().try_for_each(|note| writeln!(out, "doctor  {note}"))?;
    let each = Some(placement.shape.per_node);
    let demand = Demand { ranks_each: each, ..Demand::of(job, sizes(planned)).in_pods(job) };
    let mut report = doctor::diagnose(&fleet.snapshot, &demand);
    report.leave_to_pods(false);
    let stop = command::stop_launch(&report, asked.allow_unknown, out)?;
    if stop == Some(ExitStatus::Unknown) && fleet.snapshot.nodes.is_empty() {
        let hint = "do the agents run? `kubectl -n qvl-system get daemonset qvl-agent`; \
                    --allow-unknown node-missing starts without them";
        writeln!(out, "hint: {hint}")?;
    }
    if let Some(status) = stop {
        return Ok(Verdict::Closed(status));
    }
    let Asked { read, permission, allow_unknown } = *asked;
    let snapshot = &fleet.snapshot;
    let judged = Judged { report: &report, snapshot, job: read, allow_unknown, permission };
    Ok(Verdict::Open(Box::new(judged.seal()?.0)))
}

fn sizes(planned: Option<&(Plan, Sizes)>) -> Sizes {
    planned.map_or_else(Sizes::default, |(_plan, sizes)| sizes.clone())
}

/// Why nodes must not take the ranks of a job, as far as their reports tell.
pub(crate) fn unfit<'a>(
    world: &'a World,
    planned: Option<&(Plan, Sizes)>,
    allow_unknown: &'a [String],
) -> impl Fn(&FineTuneJob, Option<u32>) -> BTreeMap<String, String> + use<'a> {
    let (now, sizes) = (Timestamp::now(), sizes(planned));
    move |job, ranks_each| {
        let nodes = world.nodes.as_deref().unwrap_or_default();
        let demand = Demand { ranks_each, ..Demand::of(job, sizes.clone()) };
        health::unfit(&world.reports, nodes, job, &demand, allow_unknown, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::cluster::{
        health::tests::{job, node},
        plan::Shape,
    };

    #[test]
    fn a_missing_node_stops_a_launch() {
        let world =
            World { nodes: Some(vec![node("n1", serde_json::json!({}), 2)]), ..World::default() };
        let shape = Shape { nodes: 1, per_node: 2 };
        let placement =
            Placement { shape, nodes: vec![("n1".to_owned(), 2)], products: Vec::new() };
        let mut out = Vec::new();
        let job = job(2);
        let mut gate = |allow_unknown: &[String]| {
            let asked = Asked { read: &job, permission: None, allow_unknown };
            gate(&world, &job, &placement, None, &asked, &mut out).unwrap()
        };
        assert_eq!(gate(&[]), Verdict::Closed(ExitStatus::Unknown));
        let Verdict::Open(verdict) = gate(&["node-missing".to_owned()]) else { panic!("closed") };
        assert_eq!(verdict.allowed_unknown, ["node-missing"]);
        assert_eq!(verdict.job, doctor::job_digest(&job, doctor::Stack::Own));
        assert_eq!((verdict.counts.fail, verdict.nodes_total), (0, 0));
        let told = String::from_utf8(out).unwrap();
        assert!(told.contains("node n1 is expected, but sent no facts"), "{told}");
    }
}
