//! The doctor over the nodes of a cluster: reports of the agents in, verdict out.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
};

use k8s_openapi::{api::core::v1::Node, jiff::Timestamp};
use kube::{Api, api::ListParams};

use super::{
    Call, Cluster, Target, block_on, connect, observe,
    plan::Placement,
    rooms,
    trouble::{Denied, REPORTS},
};
use crate::{
    api::node::NodeReport,
    cli::{CliError, doctor as command, plan::Plan},
    doctor::{self, Demand, Report, Sizes},
    facts::{FactsFile, NodeName, Snapshot},
    job::FineTuneJob,
    wire::ExitStatus,
};

/// Agents write every five minutes; a report that has missed three times says nothing any more.
const STALE_SECONDS: i64 = 15 * 60;

/// Checks about what only the pod of a rank sees: its trainer, limits, folders and environment.
/// The pod makes them itself before the start, so a node's report must not decide them.
const OF_THE_POD: [&str; 95] = [
    "gpu-busy",
    "cuda-too-new",
    "ptx-too-new",
    "arch-not-covered",
    "trainer-missing",
    "trainer-without-cuda",
    "library-missing",
    "binary-skew",
    "forward-compat-shadow",
    "stub-libcuda",
    "nccl-duplicate",
    "nccl-skew",
    "shm-small",
    "memlock-low",
    "fd-limit",
    "cgroup-limits",
    "cgroup-device-denied",
    "storage-unwritable",
    "disk-short",
    "port-in-use",
    "bootstrap-interface",
    "virtual-interface-first",
    "rank-gpu-clash",
    "visible-devices-stale",
    "bad-cuda-env",
    "env-skew",
    "cgroup-cpu-throttled",
    "cgroup-oom-killed",
    "container-runtime",
    "core-dumps-on",
    "cuda-count-mismatch",
    "cuda-device-order",
    "cuda-driver-mismatch",
    "cuda-eager-loading",
    "cuda-major-mixed",
    "cuda-unavailable",
    "address-space-limit",
    "data-skew",
    "dns-unresolved",
    "file-size-limit",
    "fabric-manager",
    "glibc-too-old",
    "gloo-interface",
    "gpu-duplicate",
    "gpu-far-from-cpus",
    "gid-mismatch",
    "hostname-loopback",
    "imex-not-ready",
    "inodes-short",
    "interface-errors",
    "interface-slow",
    "interpreter-missing",
    "jit-cache-off",
    "link-flap",
    "local-rank-mismatch",
    "machine-id-clash",
    "master-addr",
    "master-not-local",
    "mnnvl-denied",
    "model-remote",
    "model-skew",
    "mps-inconsistent",
    "mps-running",
    "mtu-mismatch",
    "nccl-algorithm-forced",
    "nccl-debug-verbose",
    "nccl-errors-ignored",
    "nccl-hostid-clash",
    "nccl-net-forced",
    "nccl-p2p-disabled",
    "nccl-shm-disabled",
    "nccl-too-old",
    "net-plugin-missing",
    "omp-threads",
    "output-not-shared",
    "output-volatile",
    "port-ephemeral",
    "process-limit",
    "processors-short",
    "rank-env-partial",
    "rdma-selector-empty",
    "remove-ipc",
    "rp-filter-strict",
    "shm-counts-as-memory",
    "shm-full",
    "shm-stale",
    "somaxconn-low",
    "step-count-unequal",
    "subnet-disjoint",
    "address-clash",
    "tcp-unreachable",
    "trainer-not-executable",
    "trainer-wrong-machine",
    "weights-are-pointers",
    "weights-missing",
];

/// Facts of the nodes, and what a reader must know about them.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub snapshot: Snapshot,
    /// Reports that were not used, and why.
    pub notes: Vec<String>,
}

/// All reports that are there.
pub(crate) async fn reports(cluster: &Cluster) -> Result<Vec<NodeReport>, CliError> {
    let api: Api<NodeReport> = Api::all(cluster.client.clone());
    let call = Call::many("list", REPORTS, None);
    observe::all(cluster, &api, call, ListParams::default()).await
}

/// Facts of the `expected` nodes, or of all that reported if none is expected.
pub(crate) fn fleet(reports: &[NodeReport], expected: BTreeSet<NodeName>, now: Timestamp) -> Fleet {
    let mut nodes = BTreeMap::new();
    let mut notes = Vec::new();
    for report in reports {
        let name = NodeName(report.metadata.name.clone().unwrap_or_default());
        if !expected.is_empty() && !expected.contains(&name) {
            continue;
        }
        match facts(report, now) {
            Ok(file) => {
                nodes.insert(name, file.facts);
            }
            Err(why) => notes.push(format!("report of {name} is not used: {why}")),
        }
    }
    Fleet { snapshot: Snapshot { nodes, expected }, notes }
}

fn facts(report: &NodeReport, now: Timestamp) -> Result<FactsFile, String> {
    let observed = &report.spec.observed_at;
    let time: Timestamp = observed.parse().map_err(|_error| format!("`{observed}` is no time"))?;
    let old = now.as_second() - time.as_second();
    if STALE_SECONDS < old {
        return Err(format!("it is {} minutes old, and agents report every five", old / 60));
    }
    let file: FactsFile = serde_json::from_str(&report.spec.facts)
        .map_err(|error| format!("its facts cannot be read: {error}"))?;
    if file.format != FactsFile::VERSION {
        let (found, known) = (file.format, FactsFile::VERSION);
        return Err(format!("its facts have format {found}, this program reads {known}"));
    }
    Ok(file)
}

/// Removes what the pods judge themselves. Says how many checks that are.
pub(crate) fn leave_to_pods(report: &mut Report) -> usize {
    report.results.retain(|result| !OF_THE_POD.contains(&result.rule.id));
    OF_THE_POD.len()
}

/// Nodes that pods with GPUs can be scheduled to.
fn gpu_nodes(nodes: &[Node]) -> BTreeSet<NodeName> {
    let none = BTreeMap::new();
    nodes
        .iter()
        .filter(|node| rooms::any_has(std::slice::from_ref(node), rooms::GPU))
        .filter(|node| rooms::unusable(node, Some(rooms::GPU), &none).is_none())
        .filter_map(|node| node.metadata.name.clone().map(NodeName))
        .collect()
}

/// Connects and reads the whole fleet.
pub(crate) fn read(target: &Target) -> Result<Fleet, CliError> {
    block_on(async { whole(&connect(target).await?).await })
}

/// The whole fleet, for `qvl doctor --cluster`. Every GPU node is expected to have reported.
async fn whole(cluster: &Cluster) -> Result<Fleet, CliError> {
    let (nodes, reports) = futures::join!(observe::nodes(cluster), reports(cluster));
    let mut notes = Vec::new();
    let expected = match nodes {
        Ok(nodes) => gpu_nodes(&nodes),
        Err(error) if error.is::<Denied>() => {
            notes.push(format!("which nodes should report is not known: {}", error.line()));
            BTreeSet::new()
        }
        Err(error) => return Err(error),
    };
    let reports = reports?;
    if reports.is_empty() {
        return Err(nobody());
    }
    let mut fleet = fleet(&reports, expected, Timestamp::now());
    // Nodes without GPUs that report are part of the fleet too, but nobody waits for them.
    notes.append(&mut fleet.notes);
    Ok(Fleet { notes, ..fleet })
}

fn nobody() -> CliError {
    CliError::new(ExitStatus::Unknown, "no node of the cluster has reported")
        .hint("do the agents run? `kubectl -n qvl-system get daemonset qvl-agent`")
}

/// Judges the nodes that a job is expected to run on; a status stops the launch.
pub(crate) async fn gate(
    cluster: &Cluster,
    job: &FineTuneJob,
    placement: &Placement,
    planned: Option<&(Plan, Sizes)>,
    allow_unknown: &[String],
    out: &mut impl Write,
) -> Result<Option<ExitStatus>, CliError> {
    let reports = match reports(cluster).await {
        Err(error) if error.is::<Denied>() => {
            writeln!(out, "doctor  reports of the nodes cannot be read: {}", error.line())?;
            Vec::new()
        }
        reports => reports?,
    };
    let names = placement.nodes.iter().map(|(name, _ranks)| NodeName(name.clone())).collect();
    let fleet = fleet(&reports, names, Timestamp::now());
    fleet.notes.iter().try_for_each(|note| writeln!(out, "doctor  {note}"))?;
    let sizes = planned.map_or_else(Sizes::default, |(_plan, sizes)| sizes.clone());
    let mut report = doctor::diagnose(&fleet.snapshot, &Demand::of(job, sizes));
    leave_to_pods(&mut report);
    let stop = command::stop_launch(&report, allow_unknown, out)?;
    if stop == Some(ExitStatus::Unknown) && fleet.snapshot.nodes.is_empty() {
        let hint = "do the agents run? `kubectl -n qvl-system get daemonset qvl-agent`; \
                    --allow-unknown node-missing starts without them";
        writeln!(out, "hint: {hint}")?;
    }
    Ok(stop)
}

/// One line about the reports, for the doctor's text.
pub(crate) fn preface(fleet: &Fleet, out: &mut impl Write) -> std::io::Result<()> {
    let reported = fleet.snapshot.nodes.len();
    let missing = fleet.snapshot.missing().count();
    let noun = crate::cli::view::count(u32::try_from(reported).unwrap_or(u32::MAX), "node");
    writeln!(out, "{noun} reported, {missing} missing; what only pods see is checked in them")?;
    fleet.notes.iter().try_for_each(|note| writeln!(out, "{note}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node_report(name: &str, observed: &str, facts: &str) -> NodeReport {
        serde_json::from_value(json!({"apiVersion": "qvl.dev/v1alpha1", "kind": "NodeReport",
            "metadata": {"name": name},
            "spec": {"observedAt": observed, "summary": {}, "facts": facts}}))
        .unwrap()
    }

    fn healthy() -> String {
        std::fs::read_to_string("tests/facts/healthy-8xh100.json").unwrap()
    }

    fn names(names: &[&str]) -> BTreeSet<NodeName> {
        names.iter().map(|name| NodeName((*name).to_owned())).collect()
    }

    #[test]
    fn every_check_of_the_pod_exists() {
        for id in OF_THE_POD {
            assert!(doctor::rule(id).is_some(), "{id}");
        }
    }

    #[test]
    fn a_stale_or_unreadable_report_leaves_its_node_missing() {
        let now: Timestamp = "2026-05-01T12:00:00Z".parse().unwrap();
        let reports = [
            node_report("n1", "2026-05-01T11:58:00Z", &healthy()),
            node_report("n2", "2026-05-01T11:00:00Z", &healthy()),
            node_report("n3", "2026-05-01T11:59:00Z", "{}"),
            node_report("n4", "yesterday", &healthy()),
            node_report("other", "2026-05-01T11:59:00Z", &healthy()),
        ];
        let fleet = fleet(&reports, names(&["n1", "n2", "n3", "n4", "n5"]), now);
        let missing: Vec<&str> = fleet.snapshot.missing().map(|name| name.0.as_str()).collect();
        assert_eq!(missing, ["n2", "n3", "n4", "n5"]);
        assert_eq!(fleet.notes.len(), 3);
        assert_eq!(
            fleet.notes[0],
            "report of n2 is not used: it is 60 minutes old, and agents report every five"
        );
    }

    #[test]
    fn a_missing_node_stops_a_launch() {
        let now: Timestamp = "2026-05-01T12:00:00Z".parse().unwrap();
        let fleet = fleet(&[], names(&["n1"]), now);
        let demand = Demand { ranks: Some(2), ..Demand::default() };
        let mut report = doctor::diagnose(&fleet.snapshot, &demand);
        leave_to_pods(&mut report);
        let mut out = Vec::new();
        let stop = command::stop_launch(&report, &[], &mut out).unwrap();
        assert_eq!(stop, Some(ExitStatus::Unknown));
        let allowed = ["node-missing".to_owned()];
        assert_eq!(command::stop_launch(&report, &allowed, &mut out).unwrap(), None);
    }
}
