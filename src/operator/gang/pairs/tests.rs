//! Who tests the way to whom, and what is said about the findings.

use std::{collections::BTreeSet, time::Instant};

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
        let request =
            SyncRequest { pairs: pairs.collect(), ..gang::tests::said(index, PodPhase::Joining) };
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

#[test]
fn a_pod_that_is_slow_on_all_its_ways_is_named_once() {
    let slow = Way::Open {
        round_trip_us: 200,
        sent_mbit: 930.0,
        received_mbit: 9000.0,
        clock_ahead_ms: 0.0,
        clock_error_ms: 0.1,
    };
    let edges = [(1, 2), (0, 2), (2, 3), (2, 4), (2, 1)];
    let found = network(5, &edges.map(|edge| (edge, slow.clone())));
    assert_eq!(found.failure, None);
    assert_eq!(
        found.notes,
        ["slow network: 930 Mbit/s at best to and from pod 2 (node-2), up to 9000 elsewhere; \
          every step waits for it"]
    );
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
