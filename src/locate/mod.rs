//! Which node or link spoils a network, from measurements of pairs.
//!
//! Everything is relative to the other pairs: nothing here knows what a fast network is. Where the
//! measurements do not decide, nobody is named: half against half is a tie.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod rounds;
mod slow;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

pub use rounds::rounds;
pub use slow::{SLOWER, slow, stragglers};

/// Number of a node.
pub type Node = u32;
/// Two different nodes, the smaller number first.
pub type Pair = (Node, Node);

/// The pair of two nodes, in whatever order they are named.
pub fn pair(a: Node, b: Node) -> Pair {
    (a.min(b), a.max(b))
}

/// Whom the measurements point to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blame {
    /// Nodes whose ways are bad, whoever is on the other side.
    pub nodes: Vec<Node>,
    /// Ways that are bad between two nodes whose other ways are fine.
    pub links: Vec<Pair>,
    /// Nodes of which half or more are bad: that is no majority, so either side may be odd.
    pub tie: Vec<Node>,
}

impl Blame {
    /// Nothing is bad.
    pub fn is_empty(&self) -> bool {
        *self == Blame::default()
    }
}

/// Explains bad pairs with as few names as it can: a node of which at least two ways are bad, and
/// at least half of those that were tested, is named, the worst first, and what is left are links.
///
/// Of two nodes that were tested only with each other nothing can be said but the link.
pub fn blame(tested: &BTreeMap<Pair, bool>) -> Blame {
    let mut left: BTreeMap<Pair, bool> = tested.clone();
    let all: BTreeSet<Node> = tested.keys().flat_map(|(a, b)| [*a, *b]).collect();
    let tie = || Blame { tie: all.iter().copied().collect(), ..Blame::default() };
    if 1 < tested.len() && tested.values().all(|bad| *bad) {
        return tie();
    }
    let mut nodes = BTreeSet::new();
    while let Some(worst) = worst(&left) {
        nodes.insert(worst);
        left.retain(|(a, b), _bad| *a != worst && *b != worst);
    }
    let links: Vec<Pair> = left.into_iter().filter(|(_pair, bad)| *bad).map(|(p, _)| p).collect();
    if !nodes.is_empty() && all.len() <= 2 * nodes.len() {
        return tie();
    }
    Blame { nodes: nodes.into_iter().collect(), links, tie: Vec::new() }
}

/// The node with the largest share of bad ways, of equals the one with more of them; `None` if no
/// node stands out.
fn worst(pairs: &BTreeMap<Pair, bool>) -> Option<Node> {
    let mut counts: BTreeMap<Node, (u32, u32)> = BTreeMap::new();
    for ((a, b), bad) in pairs {
        for node in [a, b] {
            let (bads, all) = counts.entry(*node).or_default();
            *all += 1;
            *bads += u32::from(*bad);
        }
    }
    let candidates = counts.into_iter().filter(|(_node, (bad, all))| 2 <= *bad && *all <= 2 * bad);
    let rank = |(node, (bad, all)): &(Node, (u32, u32))| {
        // Shares of small counts, compared without rounding.
        (u64::from(*bad) * 1_000_000 / u64::from(*all), *bad, std::cmp::Reverse(*node))
    };
    candidates.max_by_key(rank).map(|(node, _counts)| node)
}
