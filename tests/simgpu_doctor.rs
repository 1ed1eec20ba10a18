//! `qvl doctor` on hosts with a simulated driver: each fault is found by the check that is for it,
//! and healthy hosts raise no alarm.
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]

use std::collections::BTreeMap;

use serde_json::Value;
use simgpu::Host;

/// Verdicts by check of `qvl doctor --gpus N`, and the text of all problems and reasons.
fn verdicts(scenario: &str, gpus: u32) -> (BTreeMap<String, String>, String, Option<i32>) {
    let host = Host::named(scenario);
    let mut command = host.command(env!("CARGO_BIN_EXE_qvl"));
    command.args(["doctor", "--format", "json", "--gpus", &gpus.to_string()]);
    let output = command.output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{scenario}: {error}: {}", String::from_utf8_lossy(&output.stderr))
    });
    let checks = report["checks"].as_array().unwrap();
    let word = |check: &Value, key: &str| check[key].as_str().unwrap().to_owned();
    let by_id = checks.iter().map(|check| (word(check, "id"), word(check, "verdict"))).collect();
    (by_id, report.to_string(), output.status.code())
}

fn expect(scenario: &str, gpus: u32, expected: &[(&str, &str)]) -> String {
    let (verdicts, report, _code) = verdicts(scenario, gpus);
    for (check, verdict) in expected {
        let found = verdicts.get(*check).map(String::as_str);
        assert_eq!(found, Some(*verdict), "{scenario}: {check}\n{report}");
    }
    report
}

/// Checks that only the driver answers.
const OF_THE_DRIVER: &[&str] = &[
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
];

#[test]
fn healthy_hosts_raise_no_alarm_about_gpus() {
    for (scenario, gpus) in [
        ("healthy-8xh100", 8),
        ("healthy-8xh100-580", 8),
        ("healthy-4xa100", 4),
        ("healthy-8xv100", 8),
        ("healthy-8x4090-idle", 8),
    ] {
        let (verdicts, report, _code) = verdicts(scenario, gpus);
        for check in OF_THE_DRIVER {
            let verdict = verdicts[*check].as_str();
            assert!(matches!(verdict, "pass" | "skipped"), "{scenario}: {check}\n{report}");
        }
        assert_eq!(verdicts["nvml-unavailable"], "pass", "{scenario}");
        assert_eq!(verdicts["gpu-lost"], "pass", "{scenario}");
        assert_eq!(verdicts["pcie-width"], "pass", "{scenario}");
    }
}

#[test]
fn every_fault_of_the_broken_host_is_found() {
    let report = expect(
        "broken-host",
        4,
        &[
            ("nvml-unavailable", "pass"),
            ("gpu-lost", "pass"),
            ("recovery-action-pending", "fail"),
            ("ecc-uncorrected", "fail"),
            ("row-remap-pending", "fail"),
            ("row-remap-failed", "fail"),
            ("hw-throttle", "fail"),
            ("pcie-width", "warn"),
            ("nvlink-inactive", "fail"),
        ],
    );
    assert!(report.contains("4242"), "the process on GPU 2 is not named");
}

#[test]
fn a_lost_gpu_blocks() {
    let report = expect("lost-gpu", 8, &[("nvml-unavailable", "pass"), ("gpu-lost", "fail")]);
    assert!(report.contains("GPU 1 is lost"));
    assert_eq!(verdicts("lost-gpu", 8).2, Some(1));
}

#[test]
fn a_driver_that_does_not_start_blocks_with_its_code_and_the_words_people_search_for() {
    for (scenario, code, text) in [
        ("init-driver-not-loaded", "returned 9", "couldn't communicate with the NVIDIA driver"),
        ("init-library-not-found", "returned 12", "couldn't find libnvidia-ml.so"),
        ("init-version-mismatch", "returned 18", "Driver/library version mismatch"),
    ] {
        let report = expect(scenario, 4, &[("nvml-unavailable", "fail")]);
        assert!(report.contains(code) && report.contains(text), "{scenario}: {report}");
        assert_eq!(verdicts(scenario, 4).2, Some(1), "{scenario}");
    }
}

#[test]
fn what_an_old_driver_cannot_tell_is_unknown_and_not_healthy() {
    let (verdicts, report, _code) = verdicts("missing-symbols-535", 2);
    for check in ["ecc-mode", "row-remap-pending", "row-remap-failed"] {
        assert_eq!(verdicts[check], "unknown", "{check}\n{report}");
    }
}

#[test]
fn a_fabric_that_is_not_ready_blocks_a_group() {
    expect("fabric-not-ready", 8, &[("fabric-not-ready", "fail")]);
}

#[test]
fn a_divided_gpu_blocks_a_group() {
    expect("mig-on", 2, &[("mig-enabled", "fail")]);
}

#[test]
fn a_call_that_hangs_is_named_after_five_seconds() {
    let report = expect("hung-call", 2, &[("driver-hang", "fail")]);
    assert!(report.contains("nvmlDeviceGetTemperature of GPU 1"), "{report}");
}

#[test]
fn the_faults_of_single_gpus_are_found() {
    expect("row-remap-pending", 8, &[("row-remap-pending", "fail"), ("row-remap-failed", "pass")]);
    expect("row-remap-failed", 4, &[("row-remap-failed", "fail"), ("row-remap-pending", "pass")]);
    expect("throttled", 8, &[("hw-throttle", "fail"), ("power-cap", "warn")]);
    expect("nvlink-down", 4, &[("nvlink-inactive", "fail")]);
    expect("ecc-pending", 4, &[("ecc-mode", "warn")]);
    expect("mixed-gpus", 4, &[("memory-skew", "warn")]);
}
