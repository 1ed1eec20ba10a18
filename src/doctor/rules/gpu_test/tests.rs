//! What is said about GPUs that lie, hang, or are not there.

use super::*;
use crate::{
    doctor::{
        Verdict, diagnose,
        testing::{change, demand, fleet},
    },
    facts::NodeFacts,
};

fn results(mutate: impl FnOnce(&mut Ended<GpuTests>)) -> BTreeMap<&'static str, (Verdict, String)> {
    let mut snapshot = fleet(1);
    let node: &mut NodeFacts = snapshot.nodes.values_mut().next().unwrap();
    change(&mut node.active.as_mut().unwrap().gpus, mutate);
    let report = diagnose(&snapshot, &demand());
    let of = |what: &[Problem]| what.first().map(|p| p.what.clone()).unwrap_or_default();
    report.results.iter().map(|r| (r.rule.id, (r.verdict, of(&r.problems)))).collect()
}

const ALL: [&str; 5] =
    ["memory-not-allocatable", "gpu-memory-wrong", "p2p-copy-wrong", "copy-bandwidth", "sdc-vote"];

#[test]
fn without_a_driver_every_test_is_unknown_and_never_passed() {
    let nothing = [
        Ended::Done(GpuTests::Unavailable {
            call: "dlopen libcuda.so.1".to_owned(),
            why: "cannot open shared object file".to_owned(),
        }),
        Ended::Done(GpuTests::Tested(Tested::default())),
        Ended::Crashed { message: "signal: 11".to_owned() },
    ];
    for ended in nothing {
        let found = results(|gpus| *gpus = ended.clone());
        for id in ALL {
            assert_eq!(found[id].0, Verdict::Unknown, "{id} {ended:?}");
        }
    }
}

#[test]
fn a_call_that_hangs_blocks_and_is_named() {
    let found = results(|gpus| {
        *gpus = Ended::Hung { step: "cuMemcpyPeer of GPU 0 to 1".to_owned(), after_ms: 20_000 };
    });
    let (verdict, what) = &found["gpu-memory-wrong"];
    assert_eq!(*verdict, Verdict::Fail);
    assert_eq!(what, "cuMemcpyPeer of GPU 0 to 1 did not come back within 20 s");
    assert_eq!(found["p2p-copy-wrong"].0, Verdict::Unknown);
}

#[test]
fn a_pair_is_not_blamed_for_a_gpu_that_is_wrong_by_itself() {
    let found = results(|gpus| {
        let wrong = Copied::Wrong { bytes: 1, first: 77 };
        let Ended::Done(GpuTests::Tested(tested)) = gpus else { panic!("{gpus:?}") };
        tested.devices[1].copied = wrong.clone();
        tested.peers.iter_mut().for_each(|peer| peer.copied = wrong.clone());
    });
    assert_eq!(found["gpu-memory-wrong"].0, Verdict::Fail);
    assert_eq!(found["p2p-copy-wrong"].0, Verdict::Skipped);
}

fn devices(gpus: &mut Ended<GpuTests>) -> &mut Vec<DeviceTest> {
    let Ended::Done(GpuTests::Tested(tested)) = gpus else { panic!("{gpus:?}") };
    &mut tested.devices
}

#[test]
fn the_majority_names_the_gpu_that_lies_and_a_tie_is_a_tie() {
    let with = |bits: &[u32]| {
        results(|gpus| {
            let devices = devices(gpus);
            let first = devices[0].clone();
            let numbered = bits.iter().zip(0..);
            *devices = numbered
                .map(|(bits, ordinal)| DeviceTest {
                    ordinal,
                    kernels: Some(vec![*bits; 3]),
                    ..first.clone()
                })
                .collect();
        })["sdc-vote"]
            .clone()
    };
    assert_eq!(with(&[7, 7, 7]).0, Verdict::Pass);
    let (verdict, what) = with(&[9, 7, 7]);
    assert_eq!(verdict, Verdict::Fail);
    assert!(what.starts_with("GPU 0 (0000:3b:00.0): differs from 2 others"), "{what}");
    let (verdict, what) = with(&[7, 9]);
    assert_eq!((verdict, what.ends_with("a tie without a majority")), (Verdict::Fail, true));
}

#[test]
fn the_limit_of_a_copy_follows_the_link() {
    let at = |rate: f64| results(|gpus| devices(gpus)[0].to_host = Some(rate))["copy-bandwidth"].0;
    // The fixture has x16 of generation 4: 31.5 GB/s, 25.2 are enough.
    assert_eq!(at(25.3e9), Verdict::Pass);
    assert_eq!(at(25.0e9), Verdict::Warn);
    assert_eq!(at(15.0e9), Verdict::Fail);
}
