//! Clients that others wrote and qvl's probe read the same simulated driver, and must agree on every
//! value: NVIDIA's Python bindings here, `nvidia-smi` in [`smi`], `gpustat` in [`gpustat`], NVIDIA's device plugin for
//! Kubernetes in [`plugin`]. None uses another's code, nor the simulation's structs.
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]

mod compare;
mod gpustat;
mod plugin;
mod smi;

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use compare::Comparison;
use nvml_wrapper::{Nvml, bitmasks::event::EventTypes, enums::event::XidError, error::NvmlError};
use qvl::{
    facts::{FactsFile, NodeFacts, NvmlFacts, NvmlState},
    probe::{Progress, nvml},
};
use serde_json::{Value, json};
use simgpu::{Host, host};

/// Scenarios that two clients cannot compare, and the tests of which are elsewhere: one call takes a
/// minute, or a GPU is lost a moment after the start.
const UNSTEADY: &[&str] = &["hung-call", "fault-appears"];

/// A folder that a script made.
fn made(name: &str, script: &str) -> PathBuf {
    let home = || PathBuf::from(env::var_os("HOME").expect("HOME is set")).join(".cache/qvl");
    let folder = env::var_os("QVL_CACHE").map_or_else(home, PathBuf::from).join(name);
    assert!(
        folder.join("complete").is_file(),
        "`{}` is missing or incomplete\n  hint: run `{script}`",
        folder.display(),
    );
    folder
}

/// The environment with the clients in Python.
fn environment() -> PathBuf {
    made("venv-nvml", "tests/python/setup-nvml")
}

fn python() -> PathBuf {
    environment().join("bin/python")
}

/// The scenarios whose calls all return at once, with the same values each time.
fn steady() -> Vec<String> {
    host::names().into_iter().filter(|name| !UNSTEADY.contains(&name.as_str())).collect()
}

/// What `qvl doctor` observes on a host, through the program itself.
fn observed(host: &Host) -> NodeFacts {
    let file = host.path().join("facts.json");
    let mut command = host.command(env!("CARGO_BIN_EXE_qvl"));
    command.args(["doctor", "--format", "json", "--save-facts"]).arg(&file);
    let output = command.output().unwrap();
    let text = std::fs::read_to_string(&file)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    serde_json::from_str::<FactsFile>(&text).unwrap().facts
}

/// What the Python bindings say on a host.
fn in_python(host: &Host, mode: Option<&str>) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/nvml_read.py");
    let output = host.command(python()).arg(script).args(mode).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn in_qvl(host: &Host) -> NvmlFacts {
    nvml::read(host.nvml().as_os_str(), &Progress::default())
}

#[test]
fn nvidia_ml_py_reads_the_same_values_in_every_scenario() {
    let mut comparison = Comparison::with("nvidia-ml-py");
    for name in steady() {
        let host = Host::named(&name);
        comparison.host(&name, &in_qvl(&host), &in_python(&host, None));
    }
    // 35 facts of some 90 GPUs: fewer means that the comparison lost its way.
    comparison.finish(3000);
}

#[test]
fn every_function_that_nvidia_ml_py_knows_is_exported() {
    let answer = in_python(&Host::named("healthy-4xa100"), Some("symbols"));
    assert_eq!(answer, json!({"asked": 408, "missing": []}));
}

#[test]
fn visible_devices_hide_the_others() {
    let host = Host::named("healthy-8xh100");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/nvml_read.py");
    let mut command = host.command(python());
    command.arg(script).env("NVIDIA_VISIBLE_DEVICES", "5,2");
    let answer: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    let all = in_qvl(&host);
    let uuids: Vec<&String> =
        all.gpus.get().unwrap().iter().map(|gpu| gpu.uuid.get().unwrap()).collect();
    let seen: Vec<&Value> =
        answer["gpus"].as_array().unwrap().iter().map(|gpu| &gpu["uuid"]).collect();
    assert_eq!(seen, [&json!(uuids[5]), &json!(uuids[2])]);
}

#[test]
fn an_xid_reaches_both_bindings() {
    let host = Host::named("broken-host");
    assert_eq!(in_python(&host, Some("xid")), json!({"gpu": 2, "xid": 79}));
    let nvml = Nvml::builder().lib_path(host.nvml().as_os_str()).init().unwrap();
    let events = nvml.create_event_set().unwrap();
    let device = nvml.device_by_index(2).unwrap();
    let events = device.register_events(EventTypes::CRITICAL_XID_ERROR, events).unwrap();
    let event = events.wait(5000).unwrap();
    let xid = event.event_data.expect("an XID");
    assert_eq!(format!("{xid:?}"), format!("{:?}", XidError::Value(79)));
    assert!(matches!(events.wait(20), Err(NvmlError::Timeout)));
}

#[test]
fn a_fault_appears_while_a_client_runs() {
    let host = Host::named("fault-appears");
    let nvml = Nvml::builder().lib_path(host.nvml().as_os_str()).init().unwrap();
    let device = nvml.device_by_index(2).unwrap();
    assert_eq!(device.name().unwrap(), "NVIDIA H100 80GB HBM3");
    let begin = Instant::now();
    while device.name().is_ok() && begin.elapsed() < Duration::from_secs(10) {
        thread::sleep(Duration::from_millis(10));
    }
    assert!(matches!(device.name(), Err(NvmlError::GpuLost)));
    // Written anew, the file is read again: the GPU is back.
    host.change(&host::named("healthy-8xh100"));
    assert_eq!(nvml.device_count().unwrap(), 8);
    assert!(nvml.device_by_index(2).unwrap().name().is_ok());
}

#[test]
fn without_a_scenario_the_driver_is_not_loaded() {
    let host = Host::named("healthy-4xa100");
    std::fs::remove_file(host.path().join("scenario.json")).unwrap();
    let facts = in_qvl(&host);
    assert!(matches!(facts.state.get().unwrap(), NvmlState::Failed { code: 9, .. }));
    assert_eq!(in_python(&host, None), json!({"init": 9}));
    let missing = nvml::read(OsStr::new("/nowhere/libnvidia-ml.so.1"), &Progress::default());
    assert!(matches!(missing.state.get().unwrap(), NvmlState::LibraryMissing { .. }));
}
