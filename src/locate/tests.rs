//! One slow node is named as a node, one slow link as a link, noise names nobody, ties are ties.

use proptest::prelude::*;

use super::*;

/// Speeds of all pairs, each node and link with a factor of its own, and noise.
fn network(
    count: Node,
    node: impl Fn(Node) -> f64,
    link: impl Fn(Pair) -> f64,
    noise: &[f64],
) -> BTreeMap<Pair, f64> {
    let pairs = (0..count).flat_map(|a| (a + 1..count).map(move |b| (a, b)));
    pairs
        .enumerate()
        .map(|(i, (a, b))| {
            let speed = 9400.0 * node(a).min(node(b)) * link((a, b));
            ((a, b), speed * (1.0 + noise[i % noise.len()]))
        })
        .collect()
}

fn noise() -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(-0.25..0.25_f64, 29)
}

proptest! {
    #[test]
    fn a_healthy_network_names_nobody(count in 2..24_u32, noise in noise()) {
        let found = slow(&network(count, |_| 1.0, |_| 1.0, &noise));
        prop_assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn one_slow_node_is_named_as_a_node(
        count in 3..24_u32, at in 0..24_u32, factor in 9.0..200.0_f64, noise in noise(),
    ) {
        let at = at % count;
        let node = |n| if n == at { 1.0 / factor } else { 1.0 };
        let found = slow(&network(count, node, |_| 1.0, &noise));
        prop_assert_eq!(found, Blame { nodes: vec![at], ..Blame::default() });
    }

    #[test]
    fn one_slow_link_is_named_as_a_link(
        count in 3..24_u32, ends in (0..24_u32, 0..24_u32), factor in 9.0..200.0_f64,
        noise in noise(),
    ) {
        let (a, b) = (ends.0 % count, ends.1 % count);
        prop_assume!(a != b);
        let link = |p| if p == pair(a, b) { 1.0 / factor } else { 1.0 };
        let found = slow(&network(count, |_| 1.0, link, &noise));
        prop_assert_eq!(found, Blame { links: vec![pair(a, b)], ..Blame::default() });
    }

    /// Pods of a job test only some ways: those at distances 1, 2 and 4.
    #[test]
    fn few_ways_are_enough_to_name_a_slow_node(
        count in 6..40_u32, at in 0..40_u32, noise in noise(),
    ) {
        let at = at % count;
        let node = |n| if n == at { 0.05 } else { 1.0 };
        let mut speeds = network(count, node, |_| 1.0, &noise);
        let near = |a: Node, b: Node| [1, 2, 4].contains(&((b + count - a) % count));
        speeds.retain(|(a, b), _speed| near(*a, *b) || near(*b, *a));
        prop_assert_eq!(slow(&speeds), Blame { nodes: vec![at], ..Blame::default() });
    }

    #[test]
    fn half_against_half_is_a_tie(half in 2..8_u32, noise in noise()) {
        let node = |n| if n < half { 0.05 } else { 1.0 };
        let found = slow(&network(2 * half, node, |_| 1.0, &noise));
        prop_assert!(found.nodes.is_empty() && found.links.is_empty(), "{found:?}");
        prop_assert_eq!(found.tie, (0..half).collect::<Vec<_>>());
    }

    /// Names are no part of the evidence.
    #[test]
    fn the_numbers_of_the_nodes_do_not_matter(
        order in Just((0..7_u32).collect::<Vec<_>>()).prop_shuffle(),
        factors in prop::collection::vec(prop::sample::select(vec![1.0, 1.0, 1.0, 0.05]), 7),
        noise in noise(),
    ) {
        let speeds = network(7, |n| factors[n as usize], |_| 1.0, &noise);
        let turned = |n: Node| order[n as usize];
        let moved = speeds.iter().map(|((a, b), s)| (pair(turned(*a), turned(*b)), *s)).collect();
        let (plain, moved) = (slow(&speeds), slow(&moved));
        let set = |nodes: &[Node], f: &dyn Fn(Node) -> Node| -> BTreeSet<Node> {
            nodes.iter().map(|n| f(*n)).collect()
        };
        prop_assert_eq!(set(&plain.nodes, &turned), set(&moved.nodes, &|n| n));
        prop_assert_eq!(set(&plain.tie, &turned), set(&moved.tie, &|n| n));
    }

    #[test]
    fn all_meet_once_and_nobody_twice_in_a_round(count in 0..33_usize) {
        let plan = rounds(count);
        let expected = if count < 2 { 0 } else { count - 1 + count % 2 };
        prop_assert_eq!(plan.len(), expected);
        let mut met = BTreeSet::new();
        for round in &plan {
            let players: Vec<usize> = round.iter().flat_map(|(a, b)| [*a, *b]).collect();
            let distinct: BTreeSet<usize> = players.iter().copied().collect();
            prop_assert_eq!(players.len(), distinct.len());
            prop_assert!(round.iter().all(|(a, b)| a < b && *b < count && met.insert((*a, *b))));
        }
        prop_assert_eq!(met.len(), count * count.saturating_sub(1) / 2);
    }

    #[test]
    fn a_node_whose_ways_are_all_broken_is_named(count in 3..20_u32, at in 0..20_u32) {
        let at = at % count;
        let pairs = (0..count).flat_map(|a| (a + 1..count).map(move |b| (a, b)));
        let tested = pairs.map(|(a, b)| ((a, b), a == at || b == at)).collect();
        prop_assert_eq!(blame(&tested), Blame { nodes: vec![at], ..Blame::default() });
    }
}

#[track_caller]
fn check(count: Node, bad: &[Pair], expected: &Blame) {
    let pairs = (0..count).flat_map(|a| (a + 1..count).map(move |b| (a, b)));
    let tested = pairs.map(|pair| (pair, bad.contains(&pair))).collect();
    assert_eq!(&blame(&tested), expected);
}

#[test]
fn broken_ways_are_explained_with_few_names() {
    let nodes = |nodes: &[Node]| Blame { nodes: nodes.to_vec(), ..Blame::default() };
    let links = |links: &[Pair]| Blame { links: links.to_vec(), ..Blame::default() };
    check(4, &[], &Blame::default());
    check(2, &[(0, 1)], &links(&[(0, 1)]));
    check(3, &[(0, 1)], &links(&[(0, 1)]));
    check(4, &[(0, 1), (2, 3)], &links(&[(0, 1), (2, 3)]));
    check(4, &[(0, 1), (0, 2)], &nodes(&[0]));
    check(
        6,
        &[(0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (1, 2)],
        &Blame { nodes: vec![0], links: vec![(1, 2)], tie: Vec::new() },
    );
    // Two dead nodes of five.
    let dead = [(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4)];
    check(5, &dead, &nodes(&[0, 1]));
    // Nobody reaches anybody: no side is the healthy one.
    check(3, &[(0, 1), (0, 2), (1, 2)], &Blame { tie: vec![0, 1, 2], ..Blame::default() });
    // A network that is cut into two halves.
    let cut = [(0, 2), (0, 3), (1, 2), (1, 3)];
    check(4, &cut, &Blame { tie: vec![0, 1, 2, 3], ..Blame::default() });
}

#[test]
fn a_node_that_was_tested_on_one_way_is_not_named() {
    // 3 is reached from 0 only: its port and the way look alike.
    let speeds = BTreeMap::from([((0, 1), 100.0), ((0, 2), 100.0), ((1, 2), 100.0), ((0, 3), 1.0)]);
    assert!(slow(&speeds).nodes.is_empty());
}

#[test]
fn nodes_that_compute_slowly_are_stragglers() {
    let of = |speeds: &[f64]| stragglers(&speeds.iter().copied().enumerate().collect(), 1.5);
    assert_eq!(of(&[10.0, 9.0, 5.0]), BTreeSet::from([2]));
    assert_eq!(of(&[10.0, 9.0, 7.0]), BTreeSet::new());
    assert_eq!(of(&[10.0, 1.0]), BTreeSet::new());
}
