//! The network between the pods: who tests the way to whom, and what the findings mean.

use std::collections::BTreeMap;

use super::round::{Gang, Pod};
use crate::{
    api::job::LastFailure,
    launch::text,
    locate::{self, Blame, Pair, pair},
    wire::{
        pairs::{Peer, Way},
        sync::PodPhase,
    },
};

/// Ways that each pod tests. Their distances double, so that few tests join all pods.
const WAYS: u32 = 3;
/// A link that agreed on 100 Mbit/s gives less: a gradient sum then takes longer than most steps.
const SLOW_MBIT: f64 = 100.0;
/// Pods of one rack or one zone are nearer than this. A proposal.
const FAR_US: u64 = 5000;
/// Clocks that differ by more mix up the order of log lines.
const CLOCK_MS: f64 = 500.0;
/// Longest sentence that is kept, in bytes.
const WORDS: usize = 1024;
/// Notes that are kept, and their length in bytes.
const NOTES: usize = 4;
const NOTE: usize = 240;

/// What all findings together say.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Network {
    /// Ranks cannot work together like this.
    pub failure: Option<LastFailure>,
    /// They can, but somebody should know.
    pub notes: Vec<String>,
}

/// Indices of the pods that a pod tests the way to.
fn targets(index: u32, pods: u32) -> Vec<u32> {
    (0..WAYS)
        .map(|i| 1 << i)
        .filter(|distance| *distance < pods)
        .map(|distance| (index + distance) % pods)
        .collect()
}

impl Gang {
    /// Whom a pod tests; `None` as long as some pod is not there.
    pub(super) fn peers(&self, index: u32) -> Option<Vec<Peer>> {
        let tests = |pod: &Pod| pod.request.phase == PodPhase::Preflight;
        let there = |pod: &Pod| !tests(pod) || pod.request.door.is_some();
        if self.pods.len() < self.spec.pods as usize || !self.pods.values().all(there) {
            return None;
        }
        let peer = |index: u32| {
            let request = &self.pods.get(&index)?.request;
            let (node, address) = (request.node.clone(), request.address.clone());
            Some(Peer { index, node, address, door: request.door.clone()? })
        };
        Some(targets(index, self.spec.pods).into_iter().filter_map(peer).collect())
    }

    /// What the pods found before the first epoch.
    pub(super) fn network(&self) -> Network {
        judge(&self.pods, self.spec.ranks_per_pod)
    }
}

/// A way that was tested, by indices.
type Edge = (u32, u32);

fn judge(pods: &BTreeMap<u32, Pod>, ranks_per_pod: u32) -> Network {
    let mut ways: BTreeMap<Edge, &Way> = BTreeMap::new();
    for (index, pod) in pods {
        let known = pod.request.pairs.iter().filter(|report| pods.contains_key(&report.peer));
        ways.extend(known.map(|report| ((*index, report.peer), &report.way)));
    }
    let place = |index: u32| {
        let node = pods.get(&index).map_or("", |pod| &pod.request.node);
        format!("pod {index} ({node})")
    };
    let failed: Vec<(Edge, &Way)> = ways
        .iter()
        .filter(|(_edge, way)| !matches!(way, Way::Open { .. }))
        .map(|(edge, way)| (*edge, *way))
        .collect();
    let failure = failed.first().map(|(edge, way)| {
        let culprit = culprit(&ways);
        let index = culprit.unwrap_or(edge.1);
        let more = match failed.len() {
            1 => String::new(),
            count => format!(", and {} ways more do not work", count - 1),
        };
        let blamed = match culprit {
            Some(index) => {
                format!("all of them lead to or from {}: its network is to blame", place(index))
            }
            None => "either node may be to blame, or what lies between them".to_owned(),
        };
        let (what, hint) = words(way, &place(edge.0), &place(edge.1));
        LastFailure {
            class: if culprit.is_some() { "preflight" } else { "network" }.to_owned(),
            rank: index * ranks_per_pod,
            node: pods.get(&index).map_or_else(String::new, |pod| pod.request.node.clone()),
            exit_code: None,
            what: text::head(&format!("{what}{more}; {blamed}"), WORDS).to_owned(),
            hint: Some(hint.to_owned()),
            tail: String::new(),
            epoch: 0,
            step: 0,
        }
    });
    let mut notes: Vec<String> = pods
        .values()
        .flat_map(|pod| &pod.request.notes)
        .map(|note| text::head(note, NOTE).to_owned())
        .collect();
    notes.extend(warnings(&ways, place));
    notes.sort();
    notes.dedup();
    notes.truncate(NOTES);
    Network { failure, notes }
}

/// The pod to whom the ways that do not work point, if they point to one.
fn culprit(ways: &BTreeMap<Edge, &Way>) -> Option<u32> {
    let mut tested: BTreeMap<Pair, bool> = BTreeMap::new();
    for ((a, b), way) in ways {
        // Broken one way is broken.
        *tested.entry(pair(*a, *b)).or_default() |= !matches!(way, Way::Open { .. });
    }
    match locate::blame(&tested).nodes.as_slice() {
        [index] => Some(*index),
        _several => None,
    }
}

/// What is wrong with a way with its consequence, and what helps.
fn words(way: &Way, from: &str, to: &str) -> (String, &'static str) {
    match way {
        Way::Closed { what } => (
            format!(
                "{from} cannot connect to {to}, so the ranks would wait for each other until \
                 failure.startupSeconds: {what}"
            ),
            "pods of the job must reach each other on every TCP port: look for a NetworkPolicy in \
             the namespace, a firewall between the nodes, and the network plugin's pods on both",
        ),
        Way::Mute { what } => (
            format!("{from} connects to {to} and gets no answer, so the ranks would hang: {what}"),
            "something between the pods accepts connections and drops them: a proxy, a service \
             mesh, or a node that is overloaded; leave these pods out of the mesh",
        ),
        Way::Narrow { what } => (
            format!(
                "small messages from {from} to {to} arrive and large ones do not, so the ranks \
                 would meet and hang in the first gradient sum: {what}"
            ),
            "the MTU of the pods' interface is larger than the path can carry: compare `ip link` \
             on both nodes with the network plugin's MTU (an overlay takes 50 bytes or more)",
        ),
        Way::Open { .. } => (format!("{from} reaches {to}"), ""),
    }
}

/// What slows a training down or confuses its logs.
fn warnings(ways: &BTreeMap<Edge, &Way>, place: impl Fn(u32) -> String) -> Vec<String> {
    let mut warnings = slow(ways, &place);
    for ((from, to), way) in ways {
        let Way::Open { round_trip_us, clock_ahead_ms, clock_error_ms, .. } = *way else {
            continue;
        };
        let pair = format!("{} and {}", place(*from), place(*to));
        if FAR_US < *round_trip_us {
            let millis = *round_trip_us as f64 / 1000.0;
            warnings.push(format!(
                "far apart: {millis:.1} ms between {pair}; nodes of one zone are nearer"
            ));
        }
        if CLOCK_MS < clock_ahead_ms.abs() - clock_error_ms {
            warnings.push(format!(
                "clocks differ by {:.1} s between {pair}: lines of `qvl logs` are out of order; is \
                 a time daemon running?",
                clock_ahead_ms.abs() / 1000.0
            ));
        }
    }
    warnings
}

/// Pods and pairs that are slower than their peers, and pairs that are slow by any measure.
fn slow(ways: &BTreeMap<Edge, &Way>, place: &impl Fn(u32) -> String) -> Vec<String> {
    let mut speeds: BTreeMap<Pair, f64> = BTreeMap::new();
    for ((a, b), way) in ways {
        if let Way::Open { sent_mbit, received_mbit, .. } = way {
            let slower = sent_mbit.min(*received_mbit);
            let known = speeds.entry(pair(*a, *b)).or_insert(slower);
            *known = known.min(slower);
        }
    }
    let Blame { nodes, mut links, tie: _ } = locate::slow(&speeds);
    let of = |node: u32| speeds.iter().filter(move |((a, b), _speed)| *a == node || *b == node);
    let fastest = speeds.values().copied().fold(0.0, f64::max);
    let elsewhere =
        if 3 <= speeds.len() { format!(", up to {fastest:.0} elsewhere") } else { String::new() };
    let mut warnings = Vec::new();
    for node in &nodes {
        let best = of(*node).map(|(_pair, speed)| *speed).fold(0.0, f64::max);
        warnings.push(format!(
            "slow network: {best:.0} Mbit/s at best to and from {}{elsewhere}; every step waits for it",
            place(*node)
        ));
    }
    let absolute = speeds.iter().filter(|(_pair, speed)| **speed < SLOW_MBIT);
    let named = |(a, b): &Pair| nodes.contains(a) || nodes.contains(b);
    links.extend(absolute.map(|(pair, _speed)| *pair).filter(|pair| !named(pair)));
    links.sort_unstable();
    links.dedup();
    for link in links {
        let (a, b) = (place(link.0), place(link.1));
        warnings.push(format!(
            "slow network: {:.0} Mbit/s between {a} and {b}{elsewhere}; every step waits for it",
            speeds[&link]
        ));
    }
    warnings
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test begins at some moment")]
mod tests;
