//! The network between the pods: who tests the way to whom, and what the findings mean.

use std::collections::{BTreeMap, BTreeSet};

use super::round::{Gang, Pod};
use crate::{
    api::job::LastFailure,
    launch::text,
    wire::{
        pairs::{Peer, Way},
        sync::PodPhase,
    },
};

/// Ways that each pod tests. Their distances double, so that few tests join all pods.
const WAYS: u32 = 3;
/// A link that agreed on 100 Mbit/s gives less: a gradient sum then takes longer than most steps.
const SLOW_MBIT: f64 = 100.0;
/// A way this much slower than the others is worth a look. A proposal.
const SLOWER: f64 = 4.0;
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
        let culprit = culprit(&failed);
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

/// The one pod that all ways which do not work have in common, if others could tell.
fn culprit(failed: &[(Edge, &Way)]) -> Option<u32> {
    let ends = |(a, b): Edge| BTreeSet::from([a, b]);
    let common = failed
        .iter()
        .map(|(edge, _way)| ends(*edge))
        .reduce(|left, right| left.intersection(&right).copied().collect())?;
    // Of a single pair, both are in common.
    let [index] = *common.into_iter().collect::<Vec<_>>() else { return None };
    Some(index)
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
    let mut speeds: Vec<f64> = ways
        .values()
        .filter_map(|way| match way {
            Way::Open { sent_mbit, received_mbit, .. } => Some(sent_mbit.min(*received_mbit)),
            Way::Closed { .. } | Way::Mute { .. } | Way::Narrow { .. } => None,
        })
        .collect();
    speeds.sort_by(f64::total_cmp);
    // With few ways there is no usual one.
    let usual = speeds.get(speeds.len() / 2).copied().filter(|_usual| 3 <= speeds.len());
    let mut warnings = Vec::new();
    for ((from, to), way) in ways {
        let Way::Open { round_trip_us, sent_mbit, received_mbit, clock_ahead_ms, clock_error_ms } =
            *way
        else {
            continue;
        };
        let pair = format!("{} and {}", place(*from), place(*to));
        let speed = sent_mbit.min(*received_mbit);
        if speed < SLOW_MBIT || usual.is_some_and(|usual| speed * SLOWER < usual) {
            let usual =
                usual.map_or(String::new(), |usual| format!(", {usual:.0} between the others"));
            warnings.push(format!(
                "slow network: {speed:.0} Mbit/s between {pair}{usual}; every step waits for it"
            ));
        }
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

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test begins at some moment")]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::{
        operator::gang::{self, GangPhase, GangSpec, Gangs},
        wire::{
            TrainerExit,
            pairs::{Door, PairReport},
            sync::{SyncReply, SyncRequest},
        },
    };

    const OPEN: Way = Way::Open {
        round_trip_us: 200,
        sent_mbit: 9000.0,
        received_mbit: 9000.0,
        clock_ahead_ms: 1.0,
        clock_error_ms: 0.1,
    };

    fn closed() -> Way {
        Way::Closed { what: "timed out".to_owned() }
    }

    /// All targets of all pods, open but for what is given.
    fn network(pods: u32, others: &[(Edge, Way)]) -> Network {
        let pod = |index: u32| {
            let pairs = targets(index, pods).into_iter().map(|peer| {
                let other = others.iter().find(|(edge, _way)| *edge == (index, peer));
                PairReport { peer, way: other.map_or(OPEN, |(_edge, way)| way.clone()) }
            });
            let request = SyncRequest {
                pairs: pairs.collect(),
                ..gang::tests::said(index, PodPhase::Joining)
            };
            let heard = Instant::now();
            (index, Pod { request, heard, ran: None, accounts: Vec::new(), spoke: true })
        };
        judge(&(0..pods).map(pod).collect(), 2)
    }

    #[test]
    fn few_ways_join_all_pods_and_two_pods_test_both_directions() {
        assert_eq!(targets(0, 1), Vec::<u32>::new());
        assert_eq!([targets(0, 2), targets(1, 2)], [[1], [0]]);
        assert_eq!(targets(3, 4), [0, 1]);
        for pods in 2..200 {
            let mut reached = BTreeSet::from([0]);
            let mut news = vec![0];
            while let Some(index) = news.pop() {
                let new = targets(index, pods);
                assert!(new.len() <= WAYS as usize && !new.contains(&index));
                news.extend(new.into_iter().filter(|target| reached.insert(*target)));
            }
            assert_eq!(reached.len(), pods as usize);
        }
    }

    #[test]
    fn a_network_that_works_is_not_mentioned() {
        for pods in 1..10 {
            assert_eq!(network(pods, &[]), Network::default());
        }
    }

    #[test]
    fn a_broken_pair_is_named_and_no_node_is_blamed() {
        for others in [vec![((0, 1), closed())], vec![((0, 1), closed()), ((1, 0), closed())]] {
            let failure = network(2, &others).failure.unwrap();
            assert_eq!(failure.class, "network");
            let what = failure.what;
            assert!(what.starts_with("pod 0 (node-0) cannot connect to pod 1 (node-1)"), "{what}");
            assert!(what.contains("either node may be to blame"), "{what}");
            assert!(failure.hint.unwrap().contains("NetworkPolicy"));
        }
        let failure = network(5, &[((2, 3), closed())]).failure.unwrap();
        assert_eq!(failure.class, "network", "one way of many is no proof against a node");
    }

    #[test]
    fn the_node_that_all_broken_ways_share_is_blamed() {
        let narrow = Way::Narrow { what: "no answer".to_owned() };
        let others = [((1, 2), narrow.clone()), ((0, 2), narrow.clone()), ((2, 3), narrow)];
        let failure = network(5, &others).failure.unwrap();
        let blamed = (failure.class.as_str(), failure.node.as_str(), failure.rank);
        assert_eq!(blamed, ("preflight", "node-2", 4));
        assert!(failure.what.contains("and 2 ways more"), "{}", failure.what);
        assert!(failure.what.contains("hang in the first gradient sum"), "{}", failure.what);
        assert!(failure.hint.unwrap().contains("MTU"));
        // Two pairs that have nothing in common are no single node's fault.
        let failure = network(5, &[((0, 1), closed()), ((2, 3), closed())]).failure.unwrap();
        assert_eq!(failure.class, "network");
    }

    #[test]
    fn slow_far_and_wrong_clocks_are_notes() {
        let odd = |round_trip_us, sent_mbit, clock_ahead_ms| Way::Open {
            round_trip_us,
            sent_mbit,
            received_mbit: 9000.0,
            clock_ahead_ms,
            clock_error_ms: 0.1,
        };
        for (way, expected) in [
            (odd(200, 95.0, 0.0), "slow network: 95 Mbit/s between pod 0 (node-0) and pod 1"),
            (odd(200, 2000.0, 0.0), "slow network: 2000 Mbit/s"),
            (odd(80_000, 9000.0, 0.0), "far apart: 80.0 ms"),
            (odd(200, 9000.0, -2500.0), "clocks differ by 2.5 s"),
        ] {
            let found = network(4, &[((0, 1), way)]);
            assert_eq!((found.failure, found.notes.len()), (None, 1));
            assert!(found.notes[0].starts_with(expected), "{}", found.notes[0]);
        }
        let far = network(4, &[((0, 1), odd(80_000, 9000.0, 81.0))]);
        assert_eq!(far.notes.len(), 1, "a clock is not wrong by half of a round trip");
    }

    fn gangs(pods: u32) -> Gangs {
        let mut gangs = gang::tests::tokens();
        let spec = GangSpec {
            attempt: 1,
            pods,
            ranks_per_pod: 2,
            max_restarts: 3,
            restarts: 0,
            epoch_floor: 0,
            replaces: false,
        };
        gangs.register(gang::tests::key(), spec);
        gangs
    }

    fn with_door(index: u32, phase: PodPhase) -> SyncRequest {
        let door = Door { port: 9, secret: format!("secret-{index}") };
        SyncRequest { door: Some(door), ..gang::tests::said(index, phase) }
    }

    #[test]
    fn pods_meet_when_all_are_there_and_start_when_all_ways_are_open() {
        let (mut gangs, now) = (gangs(2), Instant::now());
        let mut ask = |request: &SyncRequest| gangs.sync(now, &gang::tests::key(), request);
        let first = with_door(0, PodPhase::Preflight);
        assert_eq!(ask(&first), Ok(SyncReply::Continue), "pod 1 is not there");
        let testing = gang::tests::said(1, PodPhase::Preflight);
        ask(&testing).unwrap();
        assert_eq!(ask(&first), Ok(SyncReply::Continue), "pod 1 tests its machine");
        let met = ask(&with_door(1, PodPhase::Preflight)).unwrap();
        let SyncReply::Meet { peers } = met else { panic!("{met:?}") };
        let [peer] = peers.as_slice() else { panic!("{peers:?}") };
        assert_eq!((peer.index, peer.address.as_str()), (0, "10.0.0.0"));
        assert_eq!(peer.door.secret, "secret-0");
        let found = |index: u32, way: &Way| {
            let pairs = vec![PairReport { peer: 1 - index, way: way.clone() }];
            SyncRequest { pairs, ..with_door(index, PodPhase::Joining) }
        };
        assert_eq!(ask(&found(1, &OPEN)), Ok(SyncReply::Continue));
        assert!(matches!(ask(&first), Ok(SyncReply::Meet { .. })), "pod 1 has its door open yet");
        assert!(matches!(ask(&found(0, &OPEN)), Ok(SyncReply::Start { epoch: 1, .. })));
    }

    #[test]
    fn a_closed_way_ends_the_attempt_before_any_rank_starts() {
        let (mut gangs, now) = (gangs(2), Instant::now());
        let mut ask = |request: &SyncRequest| gangs.sync(now, &gang::tests::key(), request);
        let found = |index: u32, way: Way| {
            let pairs = vec![PairReport { peer: 1 - index, way }];
            SyncRequest { pairs, ..with_door(index, PodPhase::Joining) }
        };
        ask(&found(0, OPEN)).unwrap();
        let code = TrainerExit::Transient.code();
        let exit = SyncReply::Exit { success: false, code };
        assert_eq!(ask(&found(1, closed())), Ok(exit));
        let view = gangs.view(&gang::tests::key(), now).unwrap();
        assert_eq!((view.phase, view.epoch), (GangPhase::Failed, 0));
        assert_eq!(view.last_failure.unwrap().class, "network");
    }

    #[test]
    fn a_pod_without_a_door_is_not_waited_for() {
        let (mut gangs, now) = (gangs(2), Instant::now());
        let mut ask = |request: &SyncRequest| gangs.sync(now, &gang::tests::key(), request);
        ask(&gang::tests::said(1, PodPhase::Joining)).unwrap();
        let met = ask(&with_door(0, PodPhase::Preflight));
        assert_eq!(met, Ok(SyncReply::Meet { peers: Vec::new() }));
    }
}
