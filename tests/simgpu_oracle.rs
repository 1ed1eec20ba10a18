//! NVIDIA's own Python bindings and qvl's probe read the same simulated driver, and must agree on
//! every value. Neither uses the other's code, nor the simulation's structs.
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nvml_wrapper::{Nvml, bitmasks::event::EventTypes, enums::event::XidError, error::NvmlError};
use qvl::{
    facts::{Fact, GpuFacts, GpuHandle, NvmlFacts, NvmlState},
    probe::{Progress, nvml},
};
use serde::Serialize;
use serde_json::{Value, json};
use simgpu::{Host, host};

/// Scenarios with a call that takes a minute: for tests of the timeout.
const SLOW: &[&str] = &["hung-call"];

const NOT_SUPPORTED: u64 = 3;

/// The Python that `tests/python/setup-nvml` made.
fn python() -> PathBuf {
    let home = || PathBuf::from(env::var_os("HOME").expect("HOME is set")).join(".cache/qvl");
    let cache = env::var_os("QVL_CACHE").map_or_else(home, PathBuf::from);
    let folder = cache.join("venv-nvml");
    assert!(
        folder.join("complete").is_file(),
        "`{}` is missing or incomplete, expected nvidia-ml-py there\n  hint: run \
         `tests/python/setup-nvml`",
        folder.display(),
    );
    folder.join("bin/python")
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

/// Collects differences, so that one run shows all of them.
#[derive(Default)]
struct Comparison {
    compared: usize,
    differences: Vec<String>,
}

impl Comparison {
    /// A value, or an error on both sides. `None` means "not supported".
    fn same<T: Serialize>(&mut self, place: &str, fact: &Fact<T>, theirs: &Value) {
        self.compared += 1;
        let error = theirs.get("error").and_then(Value::as_u64);
        let agree = match fact.get() {
            Ok(value) => match (serde_json::to_value(value).unwrap(), error) {
                (Value::Null, Some(code)) => code == NOT_SUPPORTED,
                (ours, None) => ours == *theirs,
                (_, Some(_)) => false,
            },
            Err(_unread) => error.is_some(),
        };
        if !agree {
            let ours = serde_json::to_value(fact).unwrap();
            self.differences.push(format!("{place}: qvl {ours}, nvidia-ml-py {theirs}"));
        }
    }

    fn gpu(&mut self, place: &str, ours: &GpuFacts, theirs: &Value) {
        let mut same = |field: &str, fact: &Fact<Value>| {
            self.same(&format!("{place}.{field}"), fact, &theirs[field]);
        };
        // All facts of a GPU by their names, but for the memory, whose three come from one call.
        let facts = serde_json::to_value(ours).unwrap();
        for (field, fact) in facts.as_object().unwrap() {
            if !matches!(field.as_str(), "index" | "handle") && !field.starts_with("memory_") {
                same(field, &serde_json::from_value(fact.clone()).unwrap());
            }
        }
        let memory = match (
            ours.memory_total_bytes.get(),
            ours.memory_reserved_bytes.get(),
            ours.memory_used_bytes.get(),
        ) {
            (Ok(total), Ok(reserved), Ok(used)) => Fact::known(
                json!({"total": total, "reserved": reserved, "used": used}),
                ours.memory_total_bytes.from(),
            ),
            _ => Fact::unread("memory", "memory"),
        };
        same("memory", &memory);
    }

    fn host(&mut self, scenario: &str, ours: &NvmlFacts, theirs: &Value) {
        match ours.state.get().unwrap() {
            NvmlState::Ready => {}
            NvmlState::Failed { code, .. } => {
                self.same(scenario, &Fact::known(*code, "nvmlInit_v2"), &theirs["init"]);
                return;
            }
            state @ (NvmlState::LibraryMissing { .. }
            | NvmlState::Hung { .. }
            | NvmlState::Crashed { .. }) => panic!("{scenario}: {state:?}"),
        }
        self.same(scenario, &ours.driver_version, &theirs["driver_version"]);
        self.same(scenario, &ours.nvml_version, &theirs["nvml_version"]);
        self.same(scenario, &ours.cuda_version, &theirs["cuda_version"]);
        let (gpus, their_gpus) = (ours.gpus.get().unwrap(), theirs["gpus"].as_array().unwrap());
        assert_eq!(gpus.len(), their_gpus.len(), "{scenario}");
        for (gpu, theirs) in gpus.iter().zip(their_gpus) {
            let place = format!("{scenario} GPU {}", gpu.index);
            match &gpu.handle {
                GpuHandle::Ready => self.gpu(&place, gpu, theirs),
                GpuHandle::Lost => self.same(&place, &Fact::known(15, ""), &theirs["handle"]),
                GpuHandle::Failed { code, .. } => {
                    self.same(&place, &Fact::known(*code, ""), &theirs["handle"]);
                }
            }
        }
    }
}

#[test]
fn nvidia_ml_py_reads_the_same_values_in_every_scenario() {
    let mut comparison = Comparison::default();
    let names = host::names();
    for name in names.iter().filter(|name| !SLOW.contains(&name.as_str())) {
        let host = Host::named(name);
        comparison.host(name, &in_qvl(&host), &in_python(&host, None));
    }
    println!("{} values in {} scenarios", comparison.compared, names.len() - SLOW.len());
    assert!(comparison.differences.is_empty(), "{}", comparison.differences.join("\n"));
    // 30 facts of some 60 GPUs: fewer means that the comparison lost its way.
    assert!(1500 < comparison.compared, "{}", comparison.compared);
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
