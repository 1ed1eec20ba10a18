//! What differs between the nodes of a fleet, and what that does to this job.
//!
//! A key is a value that every node has, with the checks that judge it. Majority or tie comes from
//! the values alone; the label comes from what those checks say about this job on the nodes of each
//! value, so one and the same difference can be fatal for one job and harmless for another.

mod keys;
mod label;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use super::{CheckResult, Demand, Report, Stop};
use crate::facts::{NodeFacts, NodeName, Snapshot, Unread};

pub use keys::KEYS;

/// A value that is compared over nodes.
#[derive(Debug)]
pub struct Key {
    /// What it is: `driver version`. Unique, and a contract: programs read it in the JSON report.
    pub name: &'static str,
    /// Who can read it.
    pub scope: Scope,
    /// When a difference can matter at all.
    pub matters: Matters,
    /// Checks that judge this value. One that fails on all nodes of a value makes the difference
    /// fatal, with that check's reason and source.
    pub rules: &'static [&'static str],
    /// What a difference does when no check fails because of it.
    pub otherwise: Label,
    /// Why, in words that are true for every job that gets as far as this.
    pub reason: &'static str,
    /// Where that is known from.
    pub source: &'static str,
    /// The value of one node; skipped = the node has no such thing to compare.
    pub read: fn(&NodeFacts, &Demand) -> Result<String, Stop>,
}

/// Who can read a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Anybody on the node.
    Node,
    /// The pod or shell of a rank alone: its limits, environment, folders.
    Rank,
    /// Whoever has the trainer's file.
    Trainer,
}

/// When a difference can matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matters {
    /// To every job on several nodes.
    Always,
    /// To ranks on GPUs.
    Gpus,
    /// To ranks on CPUs.
    Cpus,
}

/// What a difference does to this job, the mildest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Label {
    /// Nothing.
    Benign,
    /// All ranks wait for the slower side.
    Slow,
    /// A check that would tell could not be evaluated.
    Unknown,
    /// Ranks fail, hang or train something else.
    Fatal,
}

/// All keys over all nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    /// Nodes that were compared.
    pub nodes: usize,
    /// Keys that at least two nodes told.
    pub compared: usize,
    /// Keys that differ, the worst first.
    pub differing: Vec<Difference>,
    /// Keys that some nodes could not tell, with these nodes.
    pub unread: BTreeMap<&'static str, Vec<NodeName>>,
}

/// A key whose value is not the same on all nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Name of the key.
    pub key: &'static str,
    /// The values, the most frequent first.
    pub groups: Vec<Group>,
    /// What it does to this job.
    pub label: Label,
    /// Why.
    pub reason: String,
    /// Where that is known from.
    pub source: &'static str,
    /// The check that says so; `None` if none fails because of it.
    pub rule: Option<&'static str>,
}

/// Nodes with one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The value.
    pub value: String,
    /// The nodes, sorted.
    pub nodes: Vec<NodeName>,
}

impl Difference {
    /// The value of most nodes; `None` if two values have as many: that is a tie, not a majority.
    pub fn majority(&self) -> Option<&Group> {
        let (first, second) = (self.groups.first()?, self.groups.get(1)?);
        (second.nodes.len() < first.nodes.len()).then_some(first)
    }

    /// Nodes with another value than the majority; all nodes in a tie.
    pub fn outliers(&self) -> &[Group] {
        if self.majority().is_some() { &self.groups[1..] } else { &self.groups }
    }
}

/// Compares all nodes. `rank` and `trainer` say whether the facts are those of the ranks' own pods
/// and of the trainer's file, as they are unless agents of a cluster took them.
pub fn drift(snapshot: &Snapshot, demand: &Demand, report: &Report, seen: Seen) -> Drift {
    let demand = demand.resolved(snapshot);
    let results = by_rule(report);
    let mut drift = Drift { nodes: snapshot.nodes.len(), ..Drift::default() };
    for key in KEYS.iter().filter(|key| seen.shows(key.scope) && key.matters.to(&demand)) {
        let mut values: BTreeMap<String, Vec<NodeName>> = BTreeMap::new();
        for (name, node) in &snapshot.nodes {
            match (key.read)(node, &demand) {
                Ok(value) => values.entry(value).or_default().push(name.clone()),
                Err(Stop::Skip(_)) => {}
                Err(Stop::Unknown(Unread { .. })) => {
                    drift.unread.entry(key.name).or_default().push(name.clone());
                }
            }
        }
        if values.values().map(Vec::len).sum::<usize>() < 2 {
            continue;
        }
        drift.compared += 1;
        if 1 < values.len() {
            drift.differing.push(difference(key, values, &results));
        }
    }
    drift.differing.sort_by_key(|difference| std::cmp::Reverse(difference.label));
    drift
}

/// What the facts show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What only the pod or shell of a rank sees.
    pub rank: bool,
    /// The trainer's file.
    pub trainer: bool,
}

impl Seen {
    /// Facts that were taken where the ranks will run.
    pub const ALL: Seen = Seen { rank: true, trainer: true };

    const fn shows(self, scope: Scope) -> bool {
        match scope {
            Scope::Node => true,
            Scope::Rank => self.rank,
            Scope::Trainer => self.rank || self.trainer,
        }
    }
}

impl Matters {
    fn to(self, demand: &Demand) -> bool {
        let on_cpus = demand.compute == crate::job::Compute::Cpu;
        match self {
            Matters::Always => true,
            Matters::Gpus => !on_cpus,
            Matters::Cpus => on_cpus,
        }
    }
}

/// Results by id: they stand together in a report.
fn by_rule(report: &Report) -> BTreeMap<&'static str, &[CheckResult]> {
    let runs = report.results.chunk_by(|a, b| a.rule.id == b.rule.id);
    runs.filter_map(|run| Some((run.first()?.rule.id, run))).collect()
}

fn difference(
    key: &Key,
    values: BTreeMap<String, Vec<NodeName>>,
    results: &BTreeMap<&'static str, &[CheckResult]>,
) -> Difference {
    let mut groups: Vec<Group> =
        values.into_iter().map(|(value, nodes)| Group { value, nodes }).collect();
    groups.sort_by(|a, b| (b.nodes.len(), &a.value).cmp(&(a.nodes.len(), &b.value)));
    label::of(key, groups, results)
}
