//! What the agents' reports say about nodes, and whether it can be relied on. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{api::core::v1::Node, jiff::Timestamp};

use super::rooms;
use crate::{
    api::node::NodeReport,
    doctor::{self, CheckResult, Demand, Report, Subject, Verdict},
    facts::{FactsFile, NodeName, Snapshot},
    job::{Compute, FineTuneJob},
};

/// Agents write every five minutes; a report that has missed three times says nothing any more.
const STALE_SECONDS: i64 = 15 * 60;

/// Facts of the nodes, and what a reader must know about them.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    pub snapshot: Snapshot,
    /// Reports that were not used, and why.
    pub unused: BTreeMap<NodeName, String>,
}

impl Fleet {
    /// One line for each report that was not used.
    pub(crate) fn notes(&self) -> impl Iterator<Item = String> {
        self.unused.iter().map(|(name, why)| format!("report of {name} is not used: {why}"))
    }
}

/// Facts of the `expected` nodes, or of all that reported if none is expected.
pub(crate) fn fleet(
    reports: &[NodeReport],
    nodes: &[Node],
    expected: BTreeSet<NodeName>,
    now: Timestamp,
) -> Fleet {
    let mut fleet = Fleet::default();
    for report in reports {
        let name = NodeName(report.metadata.name.clone().unwrap_or_default());
        if !expected.is_empty() && !expected.contains(&name) {
            continue;
        }
        match facts(report, now) {
            Ok(file) => {
                let mut facts = file.facts;
                let node = nodes.iter().find(|node| node.metadata.name.as_ref() == Some(&name.0));
                facts.offered_gpus = node.map(|node| rooms::allocatable(node, rooms::GPU));
                fleet.snapshot.nodes.insert(name, facts);
            }
            Err(why) => {
                fleet.unused.insert(name, why);
            }
        }
    }
    fleet.snapshot.expected = expected;
    fleet
}

/// Why a report says nothing about its node any more.
pub(crate) fn stale(report: &NodeReport, now: Timestamp) -> Option<String> {
    let observed = &report.spec.observed_at;
    let Ok(time) = observed.parse::<Timestamp>() else {
        return Some(format!("`{observed}` is no time"));
    };
    let old = now.as_second() - time.as_second();
    (STALE_SECONDS < old)
        .then(|| format!("it is {} minutes old, and agents report every five", old / 60))
}

fn facts(report: &NodeReport, now: Timestamp) -> Result<FactsFile, String> {
    if let Some(why) = stale(report, now) {
        return Err(why);
    }
    let file: FactsFile = serde_json::from_str(&report.spec.facts)
        .map_err(|error| format!("its facts cannot be read: {error}"))?;
    if file.format != FactsFile::VERSION {
        let (found, known) = (file.format, FactsFile::VERSION);
        return Err(format!("its facts have format {found}, this program reads {known}"));
    }
    Ok(file)
}

/// Nodes whose agents must have reported, and nodes that cannot take the job anyway, with the
/// reason. Of a node without GPUs a job on GPUs needs no report.
pub(crate) fn expected(
    nodes: &[Node],
    reports: &[NodeReport],
    job: Option<&FineTuneJob>,
) -> (BTreeSet<NodeName>, BTreeMap<NodeName, String>) {
    let none = BTreeMap::new();
    let cluster = job.map(|job| &job.spec.cluster);
    let selector = cluster.map_or(&none, |cluster| &cluster.node_selector);
    let excluded = cluster.map_or(&[][..], |cluster| &cluster.exclude_nodes);
    let on_cpus = job.is_some_and(|job| job.spec.world.compute == Compute::Cpu);
    let (mut expected, mut left_out) = (BTreeSet::new(), BTreeMap::new());
    for node in nodes {
        let name = NodeName(node.metadata.name.clone().unwrap_or_default());
        if !on_cpus && !has_gpus(node, reports) {
            continue;
        }
        match rooms::unusable(node, Some(rooms::GPU), selector, excluded) {
            Some(why) => {
                left_out.insert(name, why);
            }
            None => {
                expected.insert(name);
            }
        }
    }
    (expected, left_out)
}

/// Whether a node has, had or should have GPUs: a device plugin that stopped must not make it
/// disappear.
fn has_gpus(node: &Node, reports: &[NodeReport]) -> bool {
    let label = node.metadata.labels.as_ref().and_then(|labels| labels.get(rooms::PRESENT));
    let name = node.metadata.name.as_ref();
    let reported = || {
        let of_node = |report: &&NodeReport| report.metadata.name.as_ref() == name;
        reports.iter().find(of_node).is_some_and(|report| 0 < report.spec.summary.gpus)
    };
    0 < rooms::capacity(node, rooms::GPU) || label.is_some_and(|is| is == "true") || reported()
}

/// What the doctor says about one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    pub verdict: Verdict,
    /// Ids of the checks of that verdict.
    pub ids: Vec<&'static str>,
    /// The first of them in a sentence; empty if all pass.
    pub why: String,
}

/// The worst that the report says about each node that was judged, or that should have reported.
/// Checks in `allowed` may be unknown.
pub(crate) fn by_node(
    report: &Report,
    fleet: &Fleet,
    allowed: &BTreeSet<String>,
) -> BTreeMap<NodeName, Health> {
    let judged = report.nodes.iter().map(|name| (name.clone(), health(report, name, allowed)));
    let missing = report.missing.iter().map(|name| {
        let why = fleet.unused.get(name).map_or("its agent sent no report".to_owned(), |why| {
            format!("its report is not used: {why}")
        });
        (name.clone(), Health { verdict: Verdict::Unknown, ids: vec!["node-missing"], why })
    });
    judged.chain(missing).collect()
}

fn health(report: &Report, name: &NodeName, allowed: &BTreeSet<String>) -> Health {
    let subject = Subject::Node(name.clone());
    // What may be unknown at a launch does not make a node unknown.
    let counts = |result: &&CheckResult| {
        let stops = result.is_needed_unknown() && !allowed.contains(result.rule.id);
        result.subject == subject && (result.verdict != Verdict::Unknown || stops)
    };
    let of_node: Vec<&CheckResult> = report.results.iter().filter(counts).collect();
    let verdict = of_node.iter().map(|result| result.verdict).max().unwrap_or(Verdict::Unknown);
    let verdict = verdict.max(Verdict::Pass);
    if verdict == Verdict::Pass {
        return Health { verdict, ids: Vec::new(), why: String::new() };
    }
    let worst: Vec<&&CheckResult> =
        of_node.iter().filter(|result| result.verdict == verdict).collect();
    Health {
        verdict,
        ids: worst.iter().map(|result| result.rule.id).collect(),
        why: worst.first().map_or(String::new(), |result| sentence(result)),
    }
}

fn sentence(result: &CheckResult) -> String {
    match (result.problems.first(), result.unknown.first()) {
        (Some(problem), _) => problem.what.clone(),
        (None, Some(unread)) => format!("{}: {}", unread.from, unread.why),
        (None, None) => result.rule.summary.to_owned(),
    }
}

/// Nodes that must not take ranks with this demand, and why: a check of theirs fails, or is not
/// known. Empty if no node at all has reported: then there is nothing to choose by.
pub(crate) fn unfit(
    reports: &[NodeReport],
    nodes: &[Node],
    job: &FineTuneJob,
    demand: &Demand,
    allow_unknown: &[String],
    now: Timestamp,
) -> BTreeMap<String, String> {
    let (expected, _left_out) = expected(nodes, reports, Some(job));
    let fleet = fleet(reports, nodes, expected, now);
    if fleet.snapshot.nodes.is_empty() {
        return BTreeMap::new();
    }
    let mut report = doctor::diagnose(&fleet.snapshot, demand);
    report.leave_to_pods(false);
    let allowed = allow_unknown.iter().cloned().collect();
    by_node(&report, &fleet, &allowed)
        .into_iter()
        .filter(|(_name, health)| match health.verdict {
            Verdict::Fail => true,
            Verdict::Unknown => !health.ids.iter().all(|id| allowed.contains(*id)),
            Verdict::Skipped | Verdict::Pass | Verdict::Warn => false,
        })
        .map(|(name, health)| (name.0, reason(&health)))
        .collect()
}

/// A node's trouble in one line.
pub(crate) fn reason(health: &Health) -> String {
    let id = health.ids.first().copied().unwrap_or_default();
    let more = match health.ids.len() {
        0 | 1 => String::new(),
        several => format!(" (and {} more)", several - 1),
    };
    let unknown = if health.verdict == Verdict::Unknown { "not known: " } else { "" };
    format!("{unknown}{id}{more}: {}", short(&health.why))
}

/// As much of a text as fits into a line of a table.
fn short(text: &str) -> String {
    const LONGEST: usize = 100;
    if text.chars().count() <= LONGEST {
        return text.to_owned();
    }
    text.chars().take(LONGEST - 3).collect::<String>() + "..."
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::facts::{Fact, KernelLog, NodeFacts, XidEvent};

    pub(crate) const NOW: &str = "2026-05-01T12:00:00Z";

    pub(crate) fn now() -> Timestamp {
        NOW.parse().unwrap()
    }

    pub(crate) fn report(name: &str, observed: &str, facts: &str) -> NodeReport {
        serde_json::from_value(json!({"apiVersion": "qvl.dev/v1alpha1", "kind": "NodeReport",
            "metadata": {"name": name},
            "spec": {"observedAt": observed, "summary": {"gpus": 8}, "facts": facts}}))
        .unwrap()
    }

    pub(crate) fn healthy() -> String {
        std::fs::read_to_string("tests/facts/healthy-8xh100.json").unwrap()
    }

    /// The report of a node of which `change` is different.
    pub(crate) fn changed(name: &str, change: impl FnOnce(&mut NodeFacts)) -> NodeReport {
        let mut file: FactsFile = serde_json::from_str(&healthy()).unwrap();
        file.facts.identity.hostname = Fact::known(name.to_owned(), "name of the node");
        file.facts.identity.boot_id = Fact::known(format!("boot of {name}"), "boot_id");
        change(&mut file.facts);
        report(name, "2026-05-01T11:59:00Z", &serde_json::to_string(&file).unwrap())
    }

    pub(crate) fn fell_off(facts: &mut NodeFacts) {
        let address = "0000:19:00.0".to_owned();
        let text = "GPU has fallen off the bus.".to_owned();
        let xid = XidEvent { xid: 79, pci_address: address, pid: None, time_us: u64::MAX, text };
        let log = KernelLog { xids: vec![xid], ..KernelLog::default() };
        facts.kernel.log = Fact::known(log, "/dev/kmsg");
    }

    #[expect(clippy::needless_pass_by_value, reason = "calls read better")]
    pub(crate) fn node(name: &str, spec: Value, gpus: u32) -> Node {
        let gpus = gpus.to_string();
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": spec,
            "status": {
                "allocatable": {"cpu": "64", "memory": "512Gi", "pods": "110", "nvidia.com/gpu": gpus},
                "capacity": {"nvidia.com/gpu": gpus},
                "conditions": [{"type": "Ready", "status": "True"}]}}))
        .unwrap()
    }

    pub(crate) fn job(ranks: u32) -> FineTuneJob {
        let text = format!(
            "apiVersion: qvl.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {{name: digits}}\nspec:\n  \
             model: {{path: base}}\n  data: {{train: [{{name: a, path: a.json, task: text}}]}}\n  \
             batch: {{global: 64, unit: 1}}\n  stages: [{{name: one, steps: 2}}]\n  \
             world: {{gpus: {ranks}, compute: cuda}}\n  output: out\n"
        );
        crate::job::parse(&text, "job.yaml").unwrap()
    }

    fn names(names: &[&str]) -> BTreeSet<NodeName> {
        names.iter().map(|name| NodeName((*name).to_owned())).collect()
    }

    #[test]
    fn a_stale_or_unreadable_report_leaves_its_node_missing() {
        let reports = [
            report("n1", "2026-05-01T11:58:00Z", &healthy()),
            report("n2", "2026-05-01T11:00:00Z", &healthy()),
            report("n3", "2026-05-01T11:59:00Z", "{}"),
            report("n4", "yesterday", &healthy()),
            report("other", "2026-05-01T11:59:00Z", &healthy()),
        ];
        let fleet = fleet(&reports, &[], names(&["n1", "n2", "n3", "n4", "n5"]), now());
        let missing: Vec<&str> = fleet.snapshot.missing().map(|name| name.0.as_str()).collect();
        assert_eq!(missing, ["n2", "n3", "n4", "n5"]);
        let notes: Vec<String> = fleet.notes().collect();
        assert_eq!(notes.len(), 3);
        assert_eq!(
            notes[0],
            "report of n2 is not used: it is 60 minutes old, and agents report every five"
        );
    }

    #[test]
    fn a_node_whose_device_plugin_stopped_is_still_expected() {
        let mut silent = node("n1", json!({}), 0);
        silent.metadata.labels =
            Some(BTreeMap::from([("nvidia.com/gpu.present".to_owned(), "true".to_owned())]));
        let nodes = [
            silent,
            node("n2", json!({}), 0),
            node("n3", json!({}), 0),
            node("n4", json!({"unschedulable": true}), 8),
        ];
        let (expected, left_out) = expected(&nodes, &[report("n2", NOW, "")], Some(&job(2)));
        assert_eq!(expected, names(&["n1", "n2"]));
        assert_eq!(left_out, BTreeMap::from([(NodeName("n4".to_owned()), "cordoned".to_owned())]));
    }

    #[test]
    fn nodes_with_faults_and_nodes_that_are_silent_are_unfit() {
        let nodes = ["n1", "n2", "n3"].map(|name| node(name, json!({}), 8));
        let reports = [changed("n1", |_facts| {}), changed("n2", fell_off)];
        let job = job(16);
        let demand = Demand { ranks_each: Some(8), ..Demand::of(&job, doctor::Sizes::default()) };
        let ask = |reports: &[NodeReport], allowed: &[String]| {
            unfit(reports, &nodes, &job, &demand, allowed, now())
        };
        let found = ask(&reports, &[]);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["n2", "n3"]);
        let lost = "xid-seen: GPU 0000:19:00.0, which NVML does not list: Xid 79";
        assert!(found["n2"].starts_with(lost), "{found:?}");
        assert_eq!(found["n3"], "not known: node-missing: its agent sent no report");
        let allowed = ["node-missing".to_owned()];
        assert_eq!(ask(&reports, &allowed).into_keys().collect::<Vec<_>>(), ["n2"]);
        assert_eq!(ask(&[], &[]), BTreeMap::new(), "without agents nothing can be chosen by");
    }

    #[test]
    fn a_scheduler_that_offers_more_gpus_than_there_are_is_found() {
        let fleet = fleet(
            &[changed("n1", |_facts| {})],
            &[node("n1", json!({}), 9)],
            names(&["n1"]),
            now(),
        );
        let report = doctor::diagnose(&fleet.snapshot, &Demand::default());
        let health = &by_node(&report, &fleet, &BTreeSet::new())[&NodeName("n1".to_owned())];
        assert!(health.ids.contains(&"gpu-count-mismatch"), "{health:?}");
    }
}
