//! `qvl doctor` on hosts with a simulated driver: a fault is found by the check that is for it, and
//! a driver that hangs does not hang the doctor.
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::Value;
use simgpu::Host;

/// Verdict and result of each check of `qvl doctor --gpus N`, for one node.
fn checks(scenario: &str, gpus: u32) -> BTreeMap<String, Value> {
    let host = Host::named(scenario);
    let mut command = host.command(env!("CARGO_BIN_EXE_qvl"));
    command.args(["doctor", "--format", "json", "--gpus", &gpus.to_string()]);
    let output = command.output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{scenario}: {error}: {}", String::from_utf8_lossy(&output.stderr))
    });
    let checks = report["checks"].as_array().unwrap();
    checks.iter().map(|check| (check["id"].as_str().unwrap().to_owned(), check.clone())).collect()
}

#[track_caller]
fn check(checks: &BTreeMap<String, Value>, id: &str, verdict: &str) {
    assert_eq!(checks[id]["verdict"], verdict, "{id}: {}", checks[id]);
}

#[test]
fn healthy_hosts_raise_no_alarm_about_gpus() {
    let of_the_driver = [
        "nvml-unavailable",
        "driver-hang",
        "gpu-lost",
        "gpu-busy",
        "ecc-mode",
        "ecc-uncorrected",
        "hw-throttle",
        "temperature-margin",
        "power-cap",
        "persistence-off",
        "pcie-width",
        "memory-skew",
        "nvlink-inactive",
    ];
    for (scenario, gpus) in [
        ("healthy-8xh100", 8),
        ("healthy-8xh100-580", 8),
        ("healthy-4xa100", 4),
        ("healthy-8xv100", 8),
    ] {
        let checks = checks(scenario, gpus);
        for id in of_the_driver {
            let verdict = checks[id]["verdict"].as_str().unwrap();
            assert!(matches!(verdict, "pass" | "skipped"), "{scenario} {id}: {}", checks[id]);
        }
        check(&checks, "nvml-unavailable", "pass");
        check(&checks, "gpu-lost", "pass");
    }
}

#[test]
fn the_faults_of_a_broken_host_are_found() {
    let checks = checks("broken-host", 4);
    for id in [
        "ecc-uncorrected",
        "row-remap-pending",
        "row-remap-failed",
        "hw-throttle",
        "nvlink-inactive",
    ] {
        check(&checks, id, "fail");
    }
}

#[test]
fn a_driver_that_is_not_loaded_blocks() {
    let checks = checks("init-driver-not-loaded", 4);
    check(&checks, "nvml-unavailable", "fail");
    check(&checks, "ecc-uncorrected", "unknown");
}

#[test]
fn a_call_that_hangs_is_named_and_does_not_hang_the_doctor() {
    let begin = Instant::now();
    let checks = checks("hung-call", 2);
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    check(&checks, "driver-hang", "fail");
    let what = checks["driver-hang"]["problems"][0]["what"].as_str().unwrap();
    assert!(what.contains("nvmlDeviceGetTemperature of GPU 1"), "{what}");
}
