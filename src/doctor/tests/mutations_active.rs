//! One broken thing for each rule about active tests.

use super::{
    change,
    mutations::{Mutation, first},
};
use crate::{
    facts::{ActiveFacts, Ended, Fact, NetworkTest, Snapshot, StorageResult},
    wire::{
        gputest::{Copied, GpuTests, Outcome, Tested},
        pairs::Way,
    },
};

fn active(snapshot: &mut Snapshot) -> &mut ActiveFacts {
    first(snapshot).active.as_mut().expect("the fleet made active tests")
}

/// Changes what a test found.
fn done<T>(fact: &mut Fact<Ended<T>>, f: impl FnOnce(&mut T)) {
    change(fact, |ended| {
        if let Ended::Done(found) = ended {
            f(found);
        }
    });
}

fn storage(snapshot: &mut Snapshot, f: impl FnOnce(&mut StorageResult)) {
    change(&mut active(snapshot).storage, |folders| {
        if let Ended::Done(found) = &mut folders[0].ended {
            f(found);
        }
    });
}

/// Changes the ways of the second host with both others.
fn ways(snapshot: &mut Snapshot, f: impl Fn(&mut Way)) {
    let network = active(snapshot).network.as_mut().expect("hosts were named");
    done(network, |test: &mut NetworkTest| {
        let of_host = |pair: &&mut crate::facts::PairTest| pair.from == 1 || pair.to == 1;
        test.pairs.iter_mut().filter(of_host).for_each(|pair| f(&mut pair.way));
    });
}

fn gpus(snapshot: &mut Snapshot, f: impl FnOnce(&mut Tested)) {
    done(&mut active(snapshot).gpus, |tests| {
        if let GpuTests::Tested(tested) = tests {
            f(tested);
        }
    });
}

pub(super) const ACTIVE: &[(&str, Mutation)] = &[
    ("storage-broken", |s, _d| storage(s, |found| found.wrong_bytes = 4096)),
    ("checkpoint-slow", |s, _d| storage(s, |found| found.write_seconds = 60.0)),
    ("fsync-slow", |s, _d| storage(s, |found| found.fsync_median_us = 900_000)),
    ("memory-bandwidth-uneven", |s, _d| {
        done(&mut active(s).memory, |test| test.nodes[1].bytes_per_second /= 1.6);
    }),
    ("cpu-miscomputes", |s, _d| {
        done(&mut active(s).compute, |test| test.cores[17].wrong = vec![8, 9]);
    }),
    ("straggler", |s, _d| {
        done(&mut active(s).compute, |test| {
            test.cores.iter_mut().for_each(|core| core.flops /= 2.0);
        });
    }),
    ("peer-unreachable", |s, _d| {
        ways(s, |way| *way = Way::Closed { what: "10.0.0.2:7400: timed out".to_owned() });
    }),
    ("mtu-black-hole", |s, _d| {
        ways(s, |way| *way = Way::Narrow { what: "no answer within 5 s".to_owned() });
    }),
    ("network-slow", |s, _d| {
        ways(s, |way| {
            if let Way::Open { sent_mbit, .. } = way {
                *sent_mbit = 940.0;
            }
        });
    }),
    ("clock-offset", |s, _d| {
        ways(s, |way| {
            if let Way::Open { clock_ahead_ms, .. } = way {
                *clock_ahead_ms = -45_000.0;
            }
        });
    }),
    ("memory-not-allocatable", |s, _d| {
        gpus(s, |tested| {
            tested.devices[0].allocated = Outcome::Failed {
                call: "cuMemAlloc_v2".to_owned(),
                code: 2,
                message: "out of memory".to_owned(),
            };
        });
    }),
    ("gpu-memory-wrong", |s, _d| {
        gpus(s, |tested| tested.devices[0].copied = Copied::Wrong { bytes: 1, first: 99 });
    }),
    ("p2p-copy-wrong", |s, _d| {
        gpus(s, |tested| tested.peers[0].copied = Copied::Wrong { bytes: 65_536, first: 0 });
    }),
    ("copy-bandwidth", |s, _d| gpus(s, |tested| tested.devices[0].to_device = Some(9e9))),
    ("sdc-vote", |s, _d| gpus(s, |tested| tested.devices[0].kernels = Some(vec![1, 1, 2]))),
];
