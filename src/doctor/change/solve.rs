//! The cheapest set of exclusions and repairs that leaves enough sound nodes. Pure arithmetic: what
//! nodes, faults and costs mean is the caller's business.
//!
//! Once it is decided which side of each conflict stays and which repairs are begun, every node
//! stands alone: it is kept for the sum of its repairs, or excluded. So the search goes over those
//! decisions, and nodes that have the same faults count as one kind. It is exact while there are at
//! most [`DECISIONS`] of them; beyond, the answer is found by improving one decision at a time, and
//! comes with a lower bound.

mod list;

use std::collections::{BTreeMap, BTreeSet};

/// Decisions that are tried one by one.
pub(super) const DECISIONS: u64 = 1 << 14;
/// Equally cheap answers that are listed.
pub(super) const LISTED: usize = 4;

/// What a repair costs: to begin it, and for each node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cost {
    pub once: u32,
    pub each: u32,
}

/// Something that keeps nodes out of the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// `None` = nothing repairs it.
    pub repair: Option<Cost>,
}

/// Nodes of which one group may stay as it is; the others must be repaired or excluded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Conflict {
    pub fault: usize,
    pub groups: Vec<Vec<usize>>,
}

/// A node of the fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    /// Whether it can take its share of the ranks.
    pub counts: bool,
    /// Indices of faults.
    pub faults: BTreeSet<usize>,
}

/// The whole question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Instance {
    /// Nodes that must be left.
    pub need: usize,
    /// Cost of leaving one node out.
    pub exclude: u32,
    pub nodes: Vec<Node>,
    pub faults: Vec<Fault>,
    pub conflicts: Vec<Conflict>,
}

/// One answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Choice {
    pub excluded: BTreeSet<usize>,
    /// Nodes on which each fault is repaired.
    pub repaired: BTreeMap<usize, BTreeSet<usize>>,
}

/// The cheapest answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub cost: u64,
    /// No answer is cheaper than this; equal to `cost` when the search was exact.
    pub bound: u64,
    /// At most [`LISTED`] answers of this cost, all different.
    pub choices: Vec<Choice>,
    /// Whether there are more of them than are listed.
    pub more: bool,
}

/// The cheapest answers; `None` if there is none, or if none was found beyond the exact search.
pub(super) fn solve(instance: &Instance) -> Option<Answer> {
    let search = Search::new(instance);
    let (best, exact) =
        if search.size() <= DECISIONS { (search.all(), true) } else { (search.improve(), false) };
    let cost = best.iter().map(|decision| search.cost(decision)).min().flatten()?;
    let mut found: BTreeSet<Choice> = BTreeSet::new();
    for decision in best.iter().filter(|decision| search.cost(decision) == Some(cost)) {
        search.list(decision, cost, &mut found);
    }
    let more = LISTED < found.len();
    let choices = found.into_iter().take(LISTED).collect();
    Some(Answer { cost, bound: if exact { cost } else { search.bound() }, choices, more })
}

/// Whether [`most`] is exact: all ways to settle the conflicts are tried, and repairs can only help.
pub(super) fn is_most_exact(instance: &Instance) -> bool {
    let sizes = Search::new(instance).winner_sizes();
    let ways = sizes.iter().try_fold(1_u64, |all, size| all.checked_mul(*size as u64));
    ways.is_some_and(|ways| ways <= DECISIONS)
}

/// The largest number of counting nodes that could be left, whatever it costs. Exact while there
/// are few conflicts, else at least what is returned can be left.
pub(super) fn most(instance: &Instance) -> usize {
    let search = Search::new(instance);
    let every: BTreeSet<usize> = (0..instance.faults.len()).collect();
    let left = |winners: Vec<usize>| {
        let decision = Decision { winners, begun: every.clone() };
        let keepable = |kind: &&Kind| kind.counts && search.keep(kind, &decision).is_some();
        search.kinds.iter().filter(keepable).map(|kind| kind.nodes.len()).sum()
    };
    let sizes = search.winner_sizes();
    let combinations = sizes.iter().try_fold(1_u64, |all, size| all.checked_mul(*size as u64));
    if combinations.is_some_and(|all| all <= DECISIONS) {
        return mixed(&sizes).map(left).max().unwrap_or(0);
    }
    left(search.largest_groups())
}

/// Whether a node counts, its faults, and its group in each conflict.
type Signature<'i> = (bool, &'i BTreeSet<usize>, Vec<Option<usize>>);

/// Nodes with the same faults, in the same groups.
struct Kind {
    nodes: Vec<usize>,
    counts: bool,
    faults: BTreeSet<usize>,
    /// For each conflict the node's group, if it is in one.
    groups: Vec<Option<usize>>,
}

/// Which group of each conflict stays, and which repairs are begun.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Decision {
    winners: Vec<usize>,
    begun: BTreeSet<usize>,
}

struct Search<'i> {
    instance: &'i Instance,
    kinds: Vec<Kind>,
    /// Faults whose beginning costs something: all others are always begun.
    optional: Vec<usize>,
    free: BTreeSet<usize>,
}

impl<'i> Search<'i> {
    fn new(instance: &'i Instance) -> Self {
        let mut membership = vec![vec![None; instance.conflicts.len()]; instance.nodes.len()];
        for (c, conflict) in instance.conflicts.iter().enumerate() {
            for (g, group) in conflict.groups.iter().enumerate() {
                group.iter().for_each(|&node| membership[node][c] = Some(g));
            }
        }
        let mut kinds: BTreeMap<Signature<'_>, Vec<usize>> = BTreeMap::new();
        for (i, (node, groups)) in instance.nodes.iter().zip(membership).enumerate() {
            kinds.entry((node.counts, &node.faults, groups)).or_default().push(i);
        }
        let kinds = kinds
            .into_iter()
            .map(|((counts, faults, groups), nodes)| Kind {
                nodes,
                counts,
                faults: faults.clone(),
                groups,
            })
            .collect();
        let once = |f: &usize| instance.faults[*f].repair.map(|cost| cost.once);
        let faults = 0..instance.faults.len();
        Search {
            instance,
            kinds,
            optional: faults.clone().filter(|f| once(f).is_some_and(|once| 0 < once)).collect(),
            free: faults.filter(|f| once(f) == Some(0)).collect(),
        }
    }

    fn winner_sizes(&self) -> Vec<usize> {
        self.instance.conflicts.iter().map(|conflict| conflict.groups.len().max(1)).collect()
    }

    fn largest_groups(&self) -> Vec<usize> {
        let largest = |conflict: &Conflict| {
            let sizes = conflict.groups.iter().map(Vec::len).enumerate();
            sizes.rev().max_by_key(|(_g, size)| *size).map_or(0, |(g, _size)| g)
        };
        self.instance.conflicts.iter().map(largest).collect()
    }

    fn size(&self) -> u64 {
        let winners = self.winner_sizes().iter().try_fold(1_u64, |n, g| n.checked_mul(*g as u64));
        let begun = u32::try_from(self.optional.len()).ok().and_then(|n| 1_u64.checked_shl(n));
        winners.zip(begun).and_then(|(w, b)| w.checked_mul(b)).unwrap_or(u64::MAX)
    }

    fn begun(&self, bits: usize) -> BTreeSet<usize> {
        let chosen = self.optional.iter().enumerate().filter(|(i, _f)| bits >> i & 1 == 1);
        chosen.map(|(_i, fault)| *fault).chain(self.free.iter().copied()).collect()
    }

    /// Every decision; only those of the lowest cost stay.
    fn all(&self) -> Vec<Decision> {
        let (mut best, mut lowest) = (Vec::new(), u64::MAX);
        for bits in 0..1_usize << self.optional.len() {
            let begun = self.begun(bits);
            for winners in mixed(&self.winner_sizes()) {
                let decision = Decision { winners, begun: begun.clone() };
                match self.cost(&decision) {
                    Some(cost) if cost < lowest => (best, lowest) = (vec![decision], cost),
                    Some(cost) if cost == lowest => best.push(decision),
                    Some(_) | None => {}
                }
            }
        }
        best
    }

    /// From the largest groups and all repairs, one decision changed at a time while that helps.
    fn improve(&self) -> Vec<Decision> {
        let every: BTreeSet<usize> = self.optional.iter().chain(&self.free).copied().collect();
        let mut best = Decision { winners: self.largest_groups(), begun: every };
        loop {
            let next = self.neighbours(&best).into_iter().min_by_key(|next| self.distance(next));
            match next.filter(|next| self.distance(next) < self.distance(&best)) {
                Some(next) => best = next,
                None => return vec![best],
            }
        }
    }

    /// Nodes that are still missing, then the cost.
    fn distance(&self, decision: &Decision) -> (usize, u64) {
        let kept = self.kinds.iter().filter(|kind| kind.counts);
        let kept = kept.filter(|kind| self.keep(kind, decision).is_some());
        let most: usize = kept.map(|kind| kind.nodes.len()).sum();
        let cost = self.cost(decision).unwrap_or(u64::MAX);
        (self.instance.need.saturating_sub(most), cost)
    }

    fn neighbours(&self, of: &Decision) -> Vec<Decision> {
        let mut next = Vec::new();
        for fault in &self.optional {
            let mut decision = of.clone();
            if !decision.begun.remove(fault) {
                decision.begun.insert(*fault);
            }
            next.push(decision);
        }
        for (c, size) in self.winner_sizes().into_iter().enumerate() {
            for winner in (0..size).filter(|winner| *winner != of.winners[c]) {
                let mut decision = of.clone();
                decision.winners[c] = winner;
                next.push(decision);
            }
        }
        next
    }

    /// Faults that must be repaired to keep a node of this kind.
    fn repairs(&self, kind: &Kind, decision: &Decision) -> BTreeSet<usize> {
        let lost = kind.groups.iter().zip(&decision.winners).enumerate();
        let lost = lost.filter(|(_c, (group, winner))| group.is_some_and(|g| g != **winner));
        let lost = lost.map(|(c, _)| self.instance.conflicts[c].fault);
        kind.faults.iter().copied().chain(lost).collect()
    }

    /// Cost of keeping a node of this kind; `None` if that is not possible.
    fn keep(&self, kind: &Kind, decision: &Decision) -> Option<u64> {
        let each = |fault: usize| {
            let cost = self.instance.faults[fault].repair?;
            decision.begun.contains(&fault).then_some(u64::from(cost.each))
        };
        self.repairs(kind, decision).into_iter().map(each).sum()
    }

    /// Cost of a decision: each kind for the cheaper of keeping and excluding, then as many more
    /// kept as are needed, the cheapest first. `None` if too few can be kept.
    fn cost(&self, decision: &Decision) -> Option<u64> {
        let exclude = u64::from(self.instance.exclude);
        let (mut cost, mut kept, mut spare) = (self.beginnings(decision), 0, Vec::new());
        for kind in &self.kinds {
            let size = kind.nodes.len();
            match self.keep(kind, decision) {
                Some(keep) if keep <= exclude => {
                    cost += keep * size as u64;
                    kept += if kind.counts { size } else { 0 };
                }
                Some(keep) => {
                    cost += exclude * size as u64;
                    spare.extend(kind.counts.then_some((keep - exclude, size)));
                }
                None => cost += exclude * size as u64,
            }
        }
        spare.sort_unstable();
        for (more, size) in spare {
            let taken = size.min(self.instance.need.saturating_sub(kept));
            cost += more * taken as u64;
            kept += taken;
        }
        (self.instance.need <= kept).then_some(cost)
    }

    fn beginnings(&self, decision: &Decision) -> u64 {
        let once = |fault: &usize| self.instance.faults[*fault].repair.map_or(0, |cost| cost.once);
        decision.begun.iter().map(|fault| u64::from(once(fault))).sum()
    }

    /// What no answer undercuts: the own faults of each node without beginnings, or the best that
    /// can become of one conflict, whichever is more.
    fn bound(&self) -> u64 {
        let exclude = u64::from(self.instance.exclude);
        let each = |fault: usize| {
            self.instance.faults[fault].repair.map_or(exclude, |cost| u64::from(cost.each))
        };
        let own = |kind: &Kind| kind.faults.iter().map(|f| each(*f)).sum::<u64>().min(exclude);
        let size = |kind: &Kind| kind.nodes.len() as u64;
        let alone: u64 = self.kinds.iter().map(|kind| own(kind) * size(kind)).sum();
        let conflicts = self.instance.conflicts.iter().enumerate().map(|(c, conflict)| {
            let stays = |winner: usize| -> u64 {
                let loses = |kind: &&Kind| kind.groups[c].is_some_and(|group| group != winner);
                let losers = self.kinds.iter().filter(loses);
                losers.map(|kind| each(conflict.fault).min(exclude) * size(kind)).sum()
            };
            (0..conflict.groups.len()).map(stays).min().unwrap_or(0)
        });
        conflicts.chain([alone]).max().unwrap_or(0)
    }
}

/// All numbers whose digits are below `sizes`, one after another.
fn mixed(sizes: &[usize]) -> impl Iterator<Item = Vec<usize>> + use<'_> {
    let mut next = Some(vec![0; sizes.len()]);
    std::iter::from_fn(move || {
        let current = next.take()?;
        let mut following = current.clone();
        for (digit, size) in following.iter_mut().zip(sizes) {
            *digit += 1;
            if *digit < *size {
                next = Some(following);
                break;
            }
            *digit = 0;
        }
        Some(current)
    })
}
