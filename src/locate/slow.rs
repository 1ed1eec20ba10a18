//! Slow nodes and slow links among speeds of pairs.

use std::collections::{BTreeMap, BTreeSet};

use super::{Blame, Node, Pair, blame};

/// A node or link that is so many times slower than its peers is slow. A proposal: the rate of a
/// short test of TCP varies by less than half, and the next slower class of network cards is at
/// least 2.5 times slower.
pub const SLOWER: f64 = 2.5;
/// And it is so many standard deviations of the peers away, so that a noisy network names nobody.
const DEVIATIONS: f64 = 5.0;
/// What is so many times slower is slow, however noisy its peers are.
const EVIDENT: f64 = 5.0;
/// The median of absolute deviations of a normal distribution, also of its upper half alone, times
/// this is its standard deviation.
const MAD: f64 = 1.4826;

/// Names what is slow, given the speed of each pair in any unit. Needs three nodes.
///
/// The model is that of a switch: a pair is as fast as the slower of its nodes, `s(i,j) = min(c(i),
/// c(j))`, which in the algebra of (max, min) is a matrix of rank one. The best fit to it from below
/// is `c(i) = max over j of s(i,j)`: one fast pair acquits both of its nodes. A node is slow if its
/// `c` is far below the median of all `c`; a link is slow if it is far below the fit.
pub fn slow(speeds: &BTreeMap<Pair, f64>) -> Blame {
    let logs: BTreeMap<Pair, f64> = speeds
        .iter()
        .filter(|(_pair, speed)| speed.is_finite())
        .map(|(pair, speed)| (*pair, speed.max(f64::MIN_POSITIVE).ln()))
        .collect();
    let mut level: BTreeMap<Node, f64> = BTreeMap::new();
    for ((a, b), log) in &logs {
        for node in [a, b] {
            let best = level.entry(*node).or_insert(f64::NEG_INFINITY);
            *best = best.max(*log);
        }
    }
    if level.len() < 3 {
        return Blame::default();
    }
    let slow_nodes = far_below(&level);
    let tested_more_than_once =
        |node: &Node| 2 <= logs.keys().filter(|(a, b)| a == node || b == node).count();
    let nodes: BTreeSet<Node> = slow_nodes.into_iter().filter(tested_more_than_once).collect();
    if level.len() <= 2 * nodes.len() {
        return Blame { tie: nodes.into_iter().collect(), ..Blame::default() };
    }
    let fit = |(a, b): &Pair| level[a].min(level[b]);
    let residuals: BTreeMap<Pair, f64> =
        logs.iter().map(|(pair, log)| (*pair, log - fit(pair))).collect();
    let slow_links = far_below(&residuals);
    let bad = |pair: &Pair| slow_links.contains(pair);
    let between = |(a, b): &Pair| !nodes.contains(a) && !nodes.contains(b);
    // Several slow links of one node are that node's, or its cable's.
    let healthy = logs.keys().filter(|pair| between(pair)).map(|pair| (*pair, bad(pair)));
    let rest = blame(&healthy.collect());
    let of_slow_nodes = slow_links.iter().filter(|pair| !between(pair)).copied();
    let mut links: Vec<Pair> = rest.links.into_iter().chain(of_slow_nodes).collect();
    links.sort_unstable();
    let nodes = nodes.into_iter().chain(rest.nodes).collect();
    Blame { nodes, links, tie: rest.tie }
}

/// Keys whose value is far below the median: by the factor, and by the spread of the others.
fn far_below<K: Copy + Ord>(values: &BTreeMap<K, f64>) -> BTreeSet<K> {
    let usual = upper_median(values.values().copied());
    // Of the faster half alone: what is slow must not widen the spread that convicts it.
    let faster = values.values().filter(|value| usual <= **value);
    let spread = upper_median(faster.map(|value| value - usual));
    let cut = usual - (DEVIATIONS * MAD * spread).clamp(SLOWER.ln(), EVIDENT.ln());
    values.iter().filter(|(_key, value)| **value < cut).map(|(key, _value)| *key).collect()
}

/// The median; of an even number the larger of the two in the middle. 0 of none.
fn upper_median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// Values that are far below the median of all: `straggler`s. Needs three.
pub fn stragglers<K: Copy + Ord>(speeds: &BTreeMap<K, f64>, slower: f64) -> BTreeSet<K> {
    if speeds.len() < 3 {
        return BTreeSet::new();
    }
    let usual = upper_median(speeds.values().copied());
    let below = |speed: &f64| speed * slower < usual;
    speeds.iter().filter(|(_key, speed)| below(speed)).map(|(key, _speed)| *key).collect()
}
