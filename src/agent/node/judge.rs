//! What a report says about the facts of a node. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    api::node::NodeSummary,
    doctor::{self, Counts, Demand, Report, Verdict},
    facts::{CgroupFacts, Fact, FactsFile, NodeFacts, NodeName, NvmlState, Snapshot, SystemFacts},
};

/// A report is at most this large: the whole fleet is read at once.
pub(crate) const LARGEST: usize = 256 * 1024;
/// Environment variables and their values are a report's only texts of any length.
const LONGEST_VALUE: usize = 256;

/// The verdict on a node alone, without a job.
pub(crate) struct Judged {
    pub(crate) summary: NodeSummary,
    pub(crate) counts: Counts,
    /// Checks that do not pass.
    pub(crate) findings: Vec<(&'static str, Verdict)>,
}

/// Judges a node as far as its agent can see it.
pub(crate) fn judge(node: &NodeName, facts: &NodeFacts) -> Judged {
    let nodes = BTreeMap::from([(node.clone(), facts.clone())]);
    let snapshot = Snapshot { nodes, expected: BTreeSet::new() };
    let mut report = doctor::diagnose(&snapshot, &Demand::default());
    report.leave_to_pods(false);
    let findings = findings(&report);
    Judged { summary: summary(facts, &report), counts: report.counts(), findings }
}

fn findings(report: &Report) -> Vec<(&'static str, Verdict)> {
    let bad = report.results.iter().filter(|result| Verdict::Pass < result.verdict);
    bad.map(|result| (result.rule.id, result.verdict)).collect()
}

fn summary(facts: &NodeFacts, report: &Report) -> NodeSummary {
    let of = |verdict| ids(report, |result| result.verdict == verdict);
    let (fails, warns) = (of(Verdict::Fail), of(Verdict::Warn));
    let unknown = ids(report, doctor::CheckResult::is_needed_unknown);
    let verdict = match (fails.is_empty(), unknown.is_empty(), warns.is_empty()) {
        (false, _, _) => "bad",
        (true, false, _) => "unknown",
        (true, true, false) => "warning",
        (true, true, true) => "ok",
    };
    let problems = if fails.is_empty() && !unknown.is_empty() {
        format!("unknown: {unknown}")
    } else {
        or_none(fails)
    };
    let gpus = facts.nvml.gpus.value().map_or(&[][..], Vec::as_slice);
    let products: BTreeSet<&str> =
        gpus.iter().filter_map(|gpu| Some(gpu.name.value()?.as_str())).collect();
    let smallest = gpus.iter().filter_map(|gpu| gpu.memory_total_bytes.value()).min();
    NodeSummary {
        verdict: verdict.to_owned(),
        gpus: u32::try_from(gpus.len()).unwrap_or(u32::MAX),
        product: products.into_iter().collect::<Vec<_>>().join(" + "),
        memory: smallest.map_or(String::new(), |bytes| doctor::human_bytes(*bytes)),
        driver: driver(facts),
        cuda: facts
            .nvml
            .cuda_version
            .value()
            .map_or(String::new(), |version| format!("{}.{}", version / 1000, version % 1000 / 10)),
        xids: xids(facts),
        problems,
        warnings: or_none(warns),
        agent: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

fn ids(report: &Report, wanted: impl Fn(&doctor::CheckResult) -> bool) -> String {
    let ids: BTreeSet<&str> =
        report.results.iter().filter(|result| wanted(result)).map(|r| r.rule.id).collect();
    ids.into_iter().collect::<Vec<_>>().join(",")
}

fn or_none(ids: String) -> String {
    if ids.is_empty() { "none".to_owned() } else { ids }
}

/// The version, or in a word why there is none.
fn driver(facts: &NodeFacts) -> String {
    if let Some(version) = facts.nvml.driver_version.value() {
        return version.clone();
    }
    let word = match facts.nvml.state.get() {
        Ok(NvmlState::Ready) | Err(_) => "unknown",
        Ok(NvmlState::LibraryMissing { .. }) => "none",
        Ok(NvmlState::LibraryBroken { .. } | NvmlState::Failed { .. }) => "fails",
        Ok(NvmlState::Hung { .. }) => "hangs",
        Ok(NvmlState::Crashed { .. }) => "crashes",
    };
    word.to_owned()
}

fn xids(facts: &NodeFacts) -> String {
    let Some(log) = facts.kernel.log.value() else { return "unknown".to_owned() };
    let codes: BTreeSet<u32> = log.xids.iter().map(|event| event.xid).collect();
    let codes: Vec<String> = codes.iter().map(ToString::to_string).collect();
    if codes.is_empty() { "-".to_owned() } else { codes.join(",") }
}

/// The facts of the node, made from those of the agent's container: what is the container's own
/// must not look as if it were the node's.
pub(crate) fn of_node(node: &NodeName, mut facts: NodeFacts) -> NodeFacts {
    facts.identity.hostname = Fact::known(node.0.clone(), "name of the node");
    // A node has no limits; those of the agent are small on purpose.
    facts.memory.cgroup = Fact::known(CgroupFacts::default(), "not the node's");
    if let Fact::Known { value: variables, .. } = &mut facts.env.variables {
        for value in variables.values_mut().filter(|value| LONGEST_VALUE < value.len()) {
            *value = value.chars().take(LONGEST_VALUE / 4).collect::<String>() + "...";
        }
    }
    facts
}

/// The same facts without what changes all the time: two that are equal need no new report.
pub(crate) fn lasting(facts: &NodeFacts) -> NodeFacts {
    let mut facts = facts.clone();
    facts.memory.available_bytes = any(&facts.memory.available_bytes);
    facts.shm.mount = facts.shm.mount.map(|mut mount| {
        mount.free_bytes = 0;
        mount
    });
    facts.shm.files = any(&facts.shm.files);
    // Counters of the kernel: what matters in them is a finding.
    facts.system = SystemFacts::default();
    facts.driver.pci_states = facts.driver.pci_states.map(|mut states| {
        states.iter_mut().for_each(|state| state.errors = None);
        states
    });
    facts.network.interfaces = facts.network.interfaces.map(|mut interfaces| {
        interfaces.iter_mut().for_each(|interface| interface.counters = None);
        interfaces
    });
    facts.network.rdma_ports = facts.network.rdma_ports.map(|mut ports| {
        ports.iter_mut().for_each(|port| port.errors.clear());
        ports
    });
    facts.nvml.slowest_call = any(&facts.nvml.slowest_call);
    facts.nvml.gpus = facts.nvml.gpus.map(|mut gpus| {
        for gpu in &mut gpus {
            gpu.memory_used_bytes = any(&gpu.memory_used_bytes);
            gpu.processes = any(&gpu.processes);
            gpu.utilization_percent = any(&gpu.utilization_percent);
            gpu.clock_event_reasons = any(&gpu.clock_event_reasons);
            gpu.temperature_c = any(&gpu.temperature_c);
            gpu.pcie_generation = any(&gpu.pcie_generation);
            gpu.pcie_replays = any(&gpu.pcie_replays);
            gpu.ecc_corrected_volatile = any(&gpu.ecc_corrected_volatile);
            gpu.nvlink_errors = any(&gpu.nvlink_errors);
        }
        gpus
    });
    facts
}

/// Any value: whether it is known is what stays.
fn any<T: Default>(fact: &Fact<T>) -> Fact<T> {
    match fact {
        Fact::Known { from, .. } => Fact::known(T::default(), from.clone()),
        Fact::Unread { why, from } => Fact::unread(&**why, from.clone()),
    }
}

/// The facts as a report carries them, or how large they would be.
pub(crate) fn facts_text(node: &NodeName, facts: NodeFacts) -> Result<String, usize> {
    let origin = format!("agent {}", env!("CARGO_PKG_VERSION"));
    let file = FactsFile { format: FactsFile::VERSION, origin, node: node.clone(), facts };
    let text = serde_json::to_string(&file).expect("plain data");
    if text.len() <= LARGEST { Ok(text) } else { Err(text.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{KernelLog, XidEvent};

    fn healthy() -> NodeFacts {
        let text = std::fs::read_to_string("tests/facts/healthy-8xh100.json").unwrap();
        serde_json::from_str::<FactsFile>(&text).unwrap().facts
    }

    fn name() -> NodeName {
        NodeName("n1".to_owned())
    }

    fn xid(code: u32) -> XidEvent {
        let pci_address = "0000:19:00.0".to_owned();
        XidEvent { xid: code, pci_address, pid: None, time_us: u64::MAX, text: String::new() }
    }

    #[test]
    fn a_healthy_node_is_ok() {
        let judged = judge(&name(), &of_node(&name(), healthy()));
        let summary = judged.summary;
        assert_eq!((summary.verdict.as_str(), summary.gpus), ("ok", 8));
        assert_eq!((summary.problems.as_str(), summary.xids.as_str()), ("none", "-"));
        assert_eq!(summary.product, "NVIDIA H100 80GB HBM3");
        assert_eq!(summary.agent, env!("CARGO_PKG_VERSION"));
        let bad = judged.findings.iter().filter(|(_id, verdict)| *verdict == Verdict::Fail);
        assert_eq!(bad.count(), 0);
    }

    #[test]
    fn a_fault_is_bad_and_not_knowing_is_not_ok() {
        let mut facts = healthy();
        facts.kernel.log = Fact::known(
            KernelLog { xids: vec![xid(79), xid(13)], ..KernelLog::default() },
            "/dev/kmsg",
        );
        let summary = judge(&name(), &facts).summary;
        assert_eq!((summary.verdict.as_str(), summary.problems.as_str()), ("bad", "xid-seen"));
        assert_eq!(summary.xids, "13,79");
        // Rights are missing: launches go on without it, so it does not make the node unknown.
        facts.kernel.log = Fact::unread("Operation not permitted", "/dev/kmsg");
        let summary = judge(&name(), &facts).summary;
        assert_eq!((summary.verdict.as_str(), summary.xids.as_str()), ("ok", "unknown"));
        facts.driver.modules = Fact::unread("gone", "/proc/modules");
        let summary = judge(&name(), &facts).summary;
        assert_eq!(summary.verdict, "unknown");
        assert_eq!(summary.problems, "unknown: kernel-module-missing");
    }

    #[test]
    fn a_driver_that_hangs_is_said_in_a_word() {
        let mut facts = healthy();
        let hung = NvmlState::Hung { call: "nvmlInit_v2".to_owned(), after_ms: 5000 };
        let state = Fact::known(hung, "nvmlInit_v2");
        facts.nvml = crate::facts::NvmlFacts::without_gpus(state, "hung");
        let summary = judge(&name(), &facts).summary;
        assert_eq!((summary.driver.as_str(), summary.gpus), ("hangs", 0));
        assert_eq!(summary.verdict, "bad");
        assert!(summary.problems.contains("driver-hang"), "{}", summary.problems);
    }

    #[test]
    fn what_moves_all_the_time_is_no_change() {
        let before = healthy();
        let mut after = before.clone();
        after.memory.available_bytes = Fact::known(1, "/proc/meminfo");
        let Fact::Known { value: gpus, .. } = &mut after.nvml.gpus else { panic!("known") };
        gpus[0].temperature_c = Fact::known(99, "nvmlDeviceGetTemperature");
        assert_ne!(before, after);
        assert_eq!(lasting(&before), lasting(&after));
        let Fact::Known { value: gpus, .. } = &mut after.nvml.gpus else { panic!("known") };
        gpus.pop();
        assert_ne!(lasting(&before), lasting(&after));
    }

    #[test]
    fn the_limits_and_the_name_of_the_agent_s_pod_are_not_the_node_s() {
        let mut facts = healthy();
        let long = "x".repeat(100_000);
        let Fact::Known { value: variables, .. } = &mut facts.env.variables else {
            panic!("known")
        };
        variables.insert("NCCL_LONG".to_owned(), long);
        let facts = of_node(&name(), facts);
        assert_eq!(facts.identity.hostname.value().unwrap(), "n1");
        assert_eq!(facts.memory.cgroup.value().unwrap().memory_max_bytes, None);
        let text = facts_text(&name(), facts).unwrap();
        assert!(text.len() < 64 * 1024, "{}", text.len());
    }

    #[test]
    fn facts_that_are_too_large_are_refused() {
        let mut facts = healthy();
        let Fact::Known { value: modules, .. } = &mut facts.driver.modules else { panic!("known") };
        modules.extend((0..40_000).map(|number| format!("module{number}")));
        assert!(facts_text(&name(), facts).unwrap_err() > LARGEST);
    }
}
