//! Rules over facts. Pure: the same snapshot and demand always give the same report.
//!
//! A rule is a value in [`RULES`]: metadata and a function. The runner decides whether the rule
//! applies, and turns what it says into one [`CheckResult`] per subject. A fact that was not
//! read makes the check unknown, never passed.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod causes;
mod change;
mod compare;
mod demand;
mod drift;
mod fit;
pub mod fix;
mod floor;
mod gpus;
mod judgement;
mod pods;
mod report;
mod rule;
mod rules;
mod seal;
mod table;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod why;
pub mod xid;

pub use causes::{Cause, causes};
pub use change::{Action, Ask, Change, Choice, Excluded, Hindrance, Remedy, Shape, remedy};
pub use compare::{Turn, turns};
pub use demand::{BatchNeed, CheckpointNeed, DataVerdict, Demand, Sizes, Stack};
pub use drift::{Difference, Drift, Group, KEYS, Key, Label, Matters, Scope, Seen, drift};
pub use fit::{Largest, MemoryFit, ProductFit, memory_fit};
pub use floor::{Floor, Reason, floor};
pub use judgement::{Conflict, Evidence, Judgement, Outcome, Problem, Side, Stop, Value};
pub use report::{CheckResult, Counts, Few, Overall, Report, Subject, Verdict};
pub use rule::{Agreement, Applies, Area, Check, Rule, Severity};
pub use rules::{RULES, active::is_active, busy::occupied};
pub use seal::{Digester, Seal, digest, job_digest, rules_digest};
pub use table::bytes as human_bytes;

use std::collections::BTreeMap;

use crate::{
    facts::{NodeFacts, NodeName, Snapshot},
    job::Compute,
};

/// CUDA major version of a library whose name counts in step with the toolkit.
fn cuda_major(library: &str) -> Option<u32> {
    let prefixes = ["libcudart.so.", "libcublas.so.", "libcublasLt.so.", "libnvrtc.so."];
    let version = prefixes.iter().find_map(|prefix| library.strip_prefix(prefix))?;
    version.split('.').next()?.parse().ok()
}

/// The rule with this id.
pub fn rule(id: &str) -> Option<&'static Rule> {
    RULES.iter().copied().find(|rule| rule.id == id)
}

/// Runs every rule over every node.
pub fn diagnose(snapshot: &Snapshot, demand: &Demand) -> Report {
    let seen = demand.seen(snapshot);
    let (snapshot, demand) = (&*seen, demand.resolved(&seen));
    let mut results: Vec<CheckResult> =
        RULES.iter().flat_map(|rule| run(rule, snapshot, &demand)).collect();
    // No two are equal. A stable sort would take half as much memory once more.
    results.sort_unstable_by(|a, b| {
        (a.rule.area, a.rule.id, &a.subject).cmp(&(b.rule.area, b.rule.id, &b.subject))
    });
    Report {
        job: demand.job.clone(),
        compute: demand.compute,
        ranks: demand.ranks,
        driver: driver_line(snapshot),
        nodes: snapshot.nodes.keys().cloned().collect(),
        missing: snapshot.missing().cloned().collect(),
        results,
        memory: None,
        drift: None,
        remedy: None,
    }
}

fn run(rule: &'static Rule, snapshot: &Snapshot, demand: &Demand) -> Vec<CheckResult> {
    if let Some(why) = rule.applies.skip_reason(demand) {
        return vec![CheckResult::skipped(rule, Subject::All, why)];
    }
    match &rule.check {
        Check::Job(check) => vec![CheckResult::new(rule, Subject::Job, check(demand))],
        Check::Fleet(check) => {
            vec![CheckResult::new(rule, Subject::All, check(snapshot, demand))]
        }
        Check::Node(check) => {
            let mut results: Vec<CheckResult> = Vec::with_capacity(snapshot.nodes.len());
            for (name, node) in &snapshot.nodes {
                let subject = Subject::Node(name.clone());
                let mut result = CheckResult::new(rule, subject, check(node, demand));
                // Most nodes of a fleet are alike.
                if let Some(last) = results.last().filter(|last| last.evidence == result.evidence) {
                    result.evidence = last.evidence.clone();
                }
                results.push(result);
            }
            results
        }
        Check::Agree(agreement) => agree(rule, agreement, snapshot, demand),
    }
}

/// Asks each node alone, so that one blind node does not hide a difference among the others.
fn agree(
    rule: &'static Rule,
    agreement: &Agreement,
    snapshot: &Snapshot,
    demand: &Demand,
) -> Vec<CheckResult> {
    let mut results = Vec::new();
    let mut nodes_by_value: BTreeMap<String, Vec<&NodeName>> = BTreeMap::new();
    for (name, node) in &snapshot.nodes {
        match (agreement.read)(node, demand) {
            Ok(value) => nodes_by_value.entry(value).or_default().push(name),
            Err(stop) => {
                results.push(CheckResult::new(rule, Subject::Node(name.clone()), Err(stop)));
            }
        }
    }
    if !nodes_by_value.is_empty() {
        let judgement = compare(rule, agreement, &nodes_by_value);
        results.push(CheckResult::new(rule, Subject::All, Ok(judgement)));
    }
    results
}

fn compare(
    rule: &Rule,
    agreement: &Agreement,
    nodes_by_value: &BTreeMap<String, Vec<&NodeName>>,
) -> Judgement {
    let evidence: Vec<Evidence> = nodes_by_value
        .iter()
        .map(|(value, nodes)| Evidence {
            call: agreement.what.to_owned(),
            subject: Some(names(nodes)),
            value: Value::Text(value.clone()),
            required: "equal on all nodes".to_owned(),
        })
        .collect();
    let problems = match nodes_by_value.len() {
        0 | 1 => Vec::new(),
        _ => vec![Problem {
            severity: rule.severity,
            what: difference(agreement.what, nodes_by_value),
            impact: agreement.impact.to_owned(),
            fix: agreement.fix.to_owned(),
            see: agreement.see.to_owned(),
        }],
    };
    let conflicts = if problems.is_empty() {
        Vec::new()
    } else {
        let sides = nodes_by_value.iter();
        let owned = |nodes: &Vec<&NodeName>| nodes.iter().copied().cloned().collect();
        vec![Conflict::of_values(sides.map(|(value, nodes)| (value, owned(nodes))))]
    };
    Judgement { problems, evidence, conflicts, ..Judgement::default() }
}

/// Names the majority and the outliers; equal counts are a tie, not a majority.
fn difference(what: &str, nodes_by_value: &BTreeMap<String, Vec<&NodeName>>) -> String {
    let total: usize = nodes_by_value.values().map(Vec::len).sum();
    let largest = nodes_by_value.values().map(Vec::len).max().unwrap_or(0);
    let leaders = nodes_by_value.values().filter(|nodes| nodes.len() == largest).count();
    let group = |(value, nodes): (&String, &Vec<&NodeName>)| format!("{value} on {}", names(nodes));
    if leaders != 1 {
        let groups: Vec<String> = nodes_by_value.iter().map(group).collect();
        return format!("{what} differs, a tie without a majority: {}", groups.join("; "));
    }
    let majority = nodes_by_value.iter().find(|(_value, nodes)| nodes.len() == largest);
    let majority = majority.map_or("", |(value, _nodes)| value.as_str());
    let outliers: Vec<String> =
        nodes_by_value.iter().filter(|(value, _nodes)| *value != majority).map(group).collect();
    format!("{what} differs: {majority} on {largest} of {total} nodes, but {}", outliers.join("; "))
}

fn names(nodes: &[&NodeName]) -> String {
    nodes.iter().map(|name| name.0.as_str()).collect::<Vec<_>>().join(", ")
}

/// One line about the driver, which a reader wants to know before anything else.
fn driver_line(snapshot: &Snapshot) -> String {
    let mut lines: BTreeMap<String, Vec<&NodeName>> = BTreeMap::new();
    for (name, node) in &snapshot.nodes {
        lines.entry(driver_of(node)).or_default().push(name);
    }
    let lone = lines.len() == 1;
    let text: Vec<String> = lines
        .into_iter()
        .map(|(line, nodes)| if lone { line } else { format!("{}: {line}", names(&nodes)) })
        .collect();
    text.join("; ")
}

fn driver_of(node: &NodeFacts) -> String {
    use crate::facts::NvmlState;
    match node.nvml.state.get() {
        Ok(NvmlState::Ready) => {
            let version = node.nvml.driver_version.value().map_or("of unknown version", |v| v);
            let gpus = node.nvml.gpus.value().map_or(0, Vec::len);
            let first = node.nvml.gpus.value().and_then(|gpus| gpus.first()?.name.value());
            let name = first.map_or(String::new(), |name| format!(" ({name})"));
            format!("NVIDIA driver {version}, {gpus} GPUs{name}")
        }
        Ok(NvmlState::LibraryMissing { .. }) if !demand::has_nvidia_hardware(node) => {
            "no NVIDIA driver and no NVIDIA GPU on this machine".to_owned()
        }
        Ok(NvmlState::LibraryMissing { .. }) => {
            "an NVIDIA GPU, but no driver library (libnvidia-ml.so.1)".to_owned()
        }
        Ok(
            NvmlState::LibraryBroken { message }
            | NvmlState::Failed { message, .. }
            | NvmlState::Crashed { message },
        ) => {
            format!("the NVIDIA driver does not work: {message}")
        }
        Ok(NvmlState::Hung { call, .. }) => format!("the NVIDIA driver hangs in {call}"),
        Err(unread) => format!("the NVIDIA driver was not asked: {}", unread.why),
    }
}

/// Whether the job will compute on GPUs if it is free to choose.
pub fn chooses_gpus(snapshot: &Snapshot) -> Compute {
    demand::chosen(snapshot)
}
