//! GPUs of a simulated driver: `qvl-train gputest`, and what the doctor makes of it.

use std::process::Command;

use serde_json::Value;
use simgpu::Host;

use crate::Report;

const OF_GPUS: [&str; 5] =
    ["memory-not-allocatable", "gpu-memory-wrong", "p2p-copy-wrong", "copy-bandwidth", "sdc-vote"];

fn report(host: &Host, gpus: &str) -> Report {
    let mut command = host.command(env!("CARGO_BIN_EXE_qvl"));
    Report::of(&mut command, &["--gpus", gpus, "--trainer", env!("CARGO_BIN_EXE_qvl-train")])
}

#[test]
fn copies_between_healthy_gpus_arrive() {
    let report = report(&Host::named("healthy-4xa100"), "4");
    report.expect(&[
        ("memory-not-allocatable", "pass"),
        ("gpu-memory-wrong", "pass"),
        ("p2p-copy-wrong", "pass"),
        // This build has no kernels for GPUs, and nothing computes on a simulated one.
        ("sdc-vote", "unknown"),
    ]);
    let evidence = report.check("p2p-copy-wrong")["evidence"].as_array().unwrap();
    assert_eq!(evidence.len(), 12, "every ordered pair of four");
    assert!(evidence[0]["value"].as_str().unwrap().contains("64.0 MiB right, directly"));
}

#[test]
fn a_copy_between_two_gpus_that_changes_a_bit_names_the_pair() {
    let report = report(&Host::named("peer-copy-corrupts"), "4");
    report.expect(&[("gpu-memory-wrong", "pass"), ("p2p-copy-wrong", "fail")]);
    let what = report.what("p2p-copy-wrong");
    assert!(
        what.starts_with("GPU 2 to 1: 1 of 67108864 bytes came back different, from byte 4099"),
        "{what}"
    );
    assert_eq!(report.code, Some(1));
}

#[test]
fn a_gpu_whose_memory_changes_a_bit_is_named() {
    let report = report(&Host::named("device-copy-corrupts"), "2");
    report.expect(&[("gpu-memory-wrong", "fail"), ("p2p-copy-wrong", "skipped")]);
    let what = report.what("gpu-memory-wrong");
    assert!(what.starts_with("GPU 1 (0000:"), "{what}");
    assert!(what.contains("1 of 67108864 bytes came back different, from byte 77 on"), "{what}");
}

#[test]
fn memory_that_a_rank_needs_and_does_not_get_is_said() {
    let args = ["gputest", "--copy-bytes", "65536", "--bytes", "90000000000"];
    let answer = gputest(&Host::named("healthy-4xa100"), &args);
    for device in answer["tested"]["devices"].as_array().unwrap() {
        let failed = &device["allocated"]["failed"];
        assert_eq!((&failed["call"], &failed["code"]), (&"cuMemAlloc_v2".into(), &2.into()));
        // The copies need less, and are made all the same.
        assert_eq!(device["copied"], "right");
    }
}

/// The answer of `qvl-train`.
fn gputest(host: &Host, args: &[&str]) -> Value {
    let output = host.command(env!("CARGO_BIN_EXE_qvl-train")).args(args).output().unwrap();
    answer(&String::from_utf8(output.stdout).unwrap())
}

fn answer(text: &str) -> Value {
    let line = text.lines().last().unwrap();
    serde_json::from_str(line.strip_prefix("answer ").unwrap()).unwrap()
}

#[test]
fn without_a_driver_nothing_is_known() {
    let empty = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_qvl-train"));
    let output = command.arg("gputest").env("LD_LIBRARY_PATH", empty.path()).output().unwrap();
    let found = answer(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(found["unavailable"]["call"], "dlopen libcuda.so.1");
    let found = gputest(&Host::named("cuda-802"), &["gputest"]);
    let why = found["unavailable"]["why"].as_str().unwrap();
    assert_eq!(why, "error 802 (system not yet initialized)");
    let report = report(&Host::named("cuda-802"), "2");
    for id in OF_GPUS {
        assert_eq!(report.verdicts[id], "unknown", "{:#}", report.check(id));
    }
}

#[test]
fn a_copy_that_never_ends_is_killed_and_blocks() {
    let host = Host::new(
        r#"{"driver": "550.163.01", "cuda_driver": 12040,
            "gpus": [{"profile": "a100-sxm4-80g", "count": 2}],
            "cuda": {"delays_ms": {"cuMemcpyPeer": 600000}}}"#,
    );
    let report = report(&host, "2");
    report.expect(&[("gpu-memory-wrong", "fail"), ("p2p-copy-wrong", "unknown")]);
    let what = report.what("gpu-memory-wrong");
    assert_eq!(what, "cuMemcpyPeer of GPU 0 to 1 did not come back within 20 s");
}

#[test]
fn nobody_who_works_is_disturbed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let host = Host::named("busy");
    let mut command = host.command(env!("CARGO_BIN_EXE_qvl"));
    let report = Report::of(&mut command, &["--gpus", "2", "--active-path", path]);
    for id in ["storage-broken", "cpu-miscomputes", "gpu-memory-wrong"] {
        assert_eq!(report.verdicts[id], "unknown");
        let why = report.check(id)["unknown"].to_string();
        assert!(why.contains("BUSY: GPU 0 is in use by process 4242"), "{why}");
    }
}
