//! The smallest change after which a job can be launched: which nodes to leave out, what to repair.
//!
//! What keeps nodes out is what the checks say for the shape that is tried: so many ranks on each
//! node. [`solve`] finds the cheapest way; [`cost`] holds what each kind of repair costs.

mod build;
mod cost;
mod solve;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use super::{Demand, Report, Seen, diagnose, drift};
use crate::{
    facts::{NodeName, Snapshot},
    job::Compute,
};

/// What is asked beside facts and demand.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Ranks of one node, if the job fixes them (`spec.cluster.gpusPerNode`).
    pub per_node: Option<u32>,
    /// Checks that may be unknown.
    pub allowed: &'a BTreeSet<String>,
    /// What the facts show.
    pub seen: Seen,
}

/// So many nodes with so many ranks each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    /// Nodes that the job takes.
    pub nodes: u32,
    /// Ranks on each of them.
    pub per_node: u32,
}

impl Shape {
    /// Ranks of the whole job.
    pub const fn ranks(self) -> u32 {
        self.nodes * self.per_node
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.nodes, self.per_node)
    }
}

/// What makes the job launchable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// A change of the nodes.
    Change(Change),
    /// No change of the nodes: they are too few, or none fits.
    TooFew {
        /// The ranks that are asked for.
        ranks: u32,
        /// The largest number of ranks that would do, and what it takes; `None` if no node fits.
        largest: Option<Change>,
        /// What keeps most nodes out for good, the most frequent first.
        hindrances: Vec<Hindrance>,
        /// Whether everything was tried; else only that no way was found.
        proven: bool,
    },
}

/// A change, or several that cost the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The job afterwards.
    pub shape: Shape,
    /// Cost in quarters of leaving a node out.
    pub cost: u64,
    /// No change costs less than this. Equal to `cost` where all were tried.
    pub bound: u64,
    /// Equally cheap changes; the first few.
    pub options: Vec<Choice>,
    /// Whether there are more that cost the same.
    pub more: bool,
    /// Checks that stay as they are: they judge the job, or cannot be laid to single nodes.
    pub remaining: Vec<&'static str>,
}

/// One change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// What is to be done; empty if another shape is all.
    pub actions: Vec<Action>,
    /// Nodes that are left.
    pub nodes_left: usize,
    /// GPUs of theirs that ranks may use; `None` on CPUs.
    pub gpus_left: Option<usize>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Leave nodes out (`spec.cluster.excludeNodes`).
    Exclude(Vec<Excluded>),
    /// Repair what a check finds.
    Repair {
        /// The check.
        rule: &'static str,
        /// The nodes.
        nodes: Vec<NodeName>,
        /// What is wrong on the first of them.
        what: String,
        /// What to do.
        fix: String,
        /// Whether the check is not known: after it is, it may still block.
        unknown: bool,
    },
}

/// A node that is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excluded {
    /// The node.
    pub node: NodeName,
    /// Checks that keep it out, and what the first of them says.
    pub rules: Vec<&'static str>,
    /// What the first says.
    pub why: String,
}

/// A check that keeps nodes out for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hindrance {
    /// The check.
    pub rule: &'static str,
    /// The nodes.
    pub nodes: Vec<NodeName>,
    /// What is wrong on the first of them.
    pub what: String,
    /// What to do about the job or the nodes, in general.
    pub fix: String,
}

/// Shapes that are tried in full; a fleet that is larger than this is searched shape by shape only
/// until one can be launched.
const THOROUGH: usize = 64;

/// The smallest change; `None` if nothing stops the job, or the number of ranks is not known.
/// `report` is what was found with `demand`.
pub fn remedy(
    snapshot: &Snapshot,
    demand: &Demand,
    report: &Report,
    ask: Ask<'_>,
) -> Option<Remedy> {
    if report.overall(false, ask.allowed) == super::Overall::Ready {
        return None;
    }
    let ranks = demand.ranks.filter(|ranks| 0 < *ranks)?;
    let fleet = Fleet { snapshot, demand, ask };
    let own = demand.resolved(snapshot).ranks_per_node();
    let mut best: Option<Change> = None;
    for per_node in fleet.shares(ranks, own) {
        let shape = Shape { nodes: ranks / per_node, per_node };
        let known = (own == Some(per_node)).then_some(report);
        let change = fleet.judged(per_node, known, |question| question.change(shape));
        let cheaper = |change: &Change| best.as_ref().is_none_or(|best| change.cost < best.cost);
        if let Some(change) = change.filter(cheaper) {
            let done = change.cost == 0 || THOROUGH < snapshot.nodes.len();
            best = Some(change);
            if done {
                break;
            }
        }
    }
    Some(best.map_or_else(|| fleet.too_few(ranks), Remedy::Change))
}

impl Report {
    /// Adds what only a look at several nodes shows: what differs, and what to change.
    pub fn compare(&mut self, snapshot: &Snapshot, demand: &Demand, ask: Ask<'_>) {
        if snapshot.nodes.len() + snapshot.missing().count() < 2 {
            return;
        }
        if 1 < snapshot.nodes.len() {
            self.drift = Some(drift(snapshot, demand, self, ask.seen));
        }
        self.remedy = remedy(snapshot, demand, self, ask);
    }
}

struct Fleet<'a> {
    snapshot: &'a Snapshot,
    demand: &'a Demand,
    ask: Ask<'a>,
}

impl Fleet<'_> {
    fn on_cpus(&self) -> bool {
        self.demand.resolved(self.snapshot).compute == Compute::Cpu
    }

    /// Ranks of one node that divide `ranks` and that some node can take: that of the report first,
    /// then fewest nodes first.
    fn shares(&self, ranks: u32, own: Option<u32>) -> Vec<u32> {
        let all = self.snapshot.nodes.len() + self.snapshot.missing().count();
        let fits = |each: &u32| {
            ranks.is_multiple_of(*each) && usize::try_from(ranks / each).is_ok_and(|n| n <= all)
        };
        let mut shares: Vec<u32> = match self.ask.per_node {
            Some(each) => vec![each],
            None => (1..=self.largest_share().min(ranks)).rev().collect(),
        };
        shares.retain(|each| 0 < *each && fits(each));
        shares.sort_by_key(|each| Some(*each) != own);
        shares
    }

    /// The most ranks that one node can take.
    fn largest_share(&self) -> u32 {
        if self.on_cpus() {
            return u32::MAX;
        }
        let gpus = self.snapshot.nodes.values().map(build::gpus).max().unwrap_or(0);
        u32::try_from(gpus).unwrap_or(u32::MAX)
    }

    /// Asks about one share, judged anew unless a report for it is there.
    fn judged<T>(
        &self,
        per_node: u32,
        known: Option<&Report>,
        ask: impl FnOnce(&build::Question<'_>) -> T,
    ) -> T {
        let build = |report: &Report| {
            let on_cpus = self.on_cpus();
            ask(&build::Question::new(self.snapshot, report, self.ask.allowed, per_node, on_cpus))
        };
        if let Some(report) = known {
            return build(report);
        }
        let demand = Demand { ranks_each: Some(per_node), ..self.demand.clone() };
        let mut report = diagnose(self.snapshot, &demand);
        if !self.ask.seen.rank {
            report.leave_to_pods(self.ask.seen.trainer);
        }
        build(&report)
    }

    /// The largest number of ranks that would do, the fewest nodes first among equals.
    fn too_few(&self, ranks: u32) -> Remedy {
        let most = match self.ask.per_node {
            Some(each) => each..=each,
            None => 1..=self.largest_share().min(ranks),
        };
        let (mut largest, mut proven): (Option<Change>, bool) = (None, true);
        let mut hindrances = Vec::new();
        for per_node in thinned(most) {
            let known = largest.as_ref().map_or(0, |change| change.shape.ranks());
            let enough = |nodes: u32| known < nodes.saturating_mul(per_node);
            let all = u32::try_from(self.snapshot.nodes.len()).unwrap_or(u32::MAX);
            if !enough(all.min(ranks / per_node)) && !hindrances.is_empty() {
                continue;
            }
            self.judged(per_node, None, |question| {
                proven &= question.is_most_exact();
                if hindrances.is_empty() {
                    hindrances = question.hindrances();
                }
                let nodes = question.most().min(ranks / per_node);
                if 0 < nodes && enough(nodes) {
                    largest = question.change(Shape { nodes, per_node }).or(largest.take());
                }
            });
        }
        Remedy::TooFew { ranks, largest, hindrances, proven }
    }
}

/// The largest shares first; of many only every half of the one before, so that a job of a thousand
/// ranks on CPUs is not judged a thousand times.
fn thinned(shares: std::ops::RangeInclusive<u32>) -> Vec<u32> {
    const MANY: usize = 16;
    let (least, most) = (*shares.start(), *shares.end());
    let all: Vec<u32> = match usize::try_from(most.saturating_sub(least)) {
        Ok(count) if count < MANY => shares.rev().collect(),
        Ok(_) | Err(_) => std::iter::successors(Some(most), |each| Some(each / 2))
            .take_while(|each| least <= *each && 0 < *each)
            .collect(),
    };
    all.into_iter().filter(|each| 0 < *each).collect()
}
