//! `gpustat`, which reads NVML through NVIDIA's Python bindings and adds its own view of processes.

use std::process::{Child, Command};

use qvl::facts::{Fact, GpuFacts, GpuHandle, NvmlState};
use serde_json::{Value, json};
use simgpu::{Host, host};

use crate::{compare::Comparison, environment, observed, steady};

const MIB: u64 = 1 << 20;

/// What it says, or its message.
fn in_gpustat(host: &Host) -> Result<Value, String> {
    let mut command = host.command(environment().join("bin/gpustat"));
    let output = command.args(["--json"]).env("TERM", "xterm").output().unwrap();
    if output.status.success() {
        return Ok(serde_json::from_slice(&output.stdout).unwrap());
    }
    Err([output.stdout, output.stderr]
        .map(|text| String::from_utf8_lossy(&text).into_owned())
        .concat())
}

/// A process that lives: gpustat leaves out those that are not in this machine's list.
struct Alive(Child);

impl Alive {
    fn new() -> Self {
        Alive(Command::new("sleep").arg("600").spawn().unwrap())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn compare_gpu(comparison: &mut Comparison, place: &str, gpu: &GpuFacts, theirs: &Value) {
    let mut same = |key: &str, fact: Fact<Value>| {
        // It prints null for what it cannot have, whatever the reason.
        let their = &theirs[key];
        let unknown = json!({"error": 3});
        comparison.same(
            &format!("{place}.{key}"),
            &fact,
            if their.is_null() { &unknown } else { their },
        );
    };
    same("index", Fact::known(json!(gpu.index), ""));
    same("name", as_json(&gpu.name, |name| json!(name)));
    same("uuid", as_json(&gpu.uuid, |uuid| json!(uuid)));
    same("temperature.gpu", as_json(&gpu.temperature_c, |celsius| json!(celsius)));
    same("utilization.gpu", as_json(&gpu.utilization_percent, |percent| json!(percent)));
    same("enforced.power.limit", as_json(&gpu.power_limit_mw, |mw| json!(mw.map(|mw| mw / 1000))));
    same("memory.total", as_json(&gpu.memory_total_bytes, |bytes| json!(bytes / MIB)));
    same("memory.used", as_json(&gpu.memory_used_bytes, |bytes| json!(bytes / MIB)));
    // It prints null where it may not ask.
    let processes = theirs["processes"].as_array().map_or(json!({"error": 3}), |all| {
        let one = |one: &Value| json!({"pid": one["pid"], "mib": one["gpu_memory_usage"]});
        all.iter().map(one).collect()
    });
    let ours = as_json(&gpu.processes, |all| {
        all.iter()
            .map(|one| json!({"pid": one.pid, "mib": one.used_bytes.map(|b| b / MIB)}))
            .collect()
    });
    comparison.same(&format!("{place}.processes"), &ours, &processes);
}

fn as_json<T>(fact: &Fact<T>, value: impl Fn(&T) -> Value) -> Fact<Value> {
    match fact.get() {
        Ok(known) => Fact::known(value(known), ""),
        Err(unread) => Fact::unread(&unread.why, ""),
    }
}

#[test]
fn gpustat_prints_the_same_values_in_every_scenario() {
    let alive = Alive::new();
    let mut comparison = Comparison::with("gpustat");
    for name in steady() {
        // The other process must not be one of this machine.
        let scenario = host::named(&name).replace("4242", &alive.0.id().to_string());
        let host = Host::new(&scenario.replace("777", "99999999"));
        let ours = observed(&host).nvml;
        let theirs = in_gpustat(&host);
        if let NvmlState::Failed { code, .. } = ours.state.get().unwrap() {
            let message = theirs.unwrap_err();
            assert!(
                message.contains("Error on querying NVIDIA devices"),
                "{name}, {code}: {message}"
            );
            continue;
        }
        let theirs = theirs.unwrap_or_else(|message| panic!("{name}: {message}"));
        comparison.same(&name, &ours.driver_version, &theirs["driver_version"]);
        let (gpus, theirs) = (ours.gpus.get().unwrap(), theirs["gpus"].as_array().unwrap());
        assert_eq!(gpus.len(), theirs.len(), "{name}");
        for (gpu, theirs) in gpus.iter().zip(theirs) {
            let place = format!("{name} GPU {}", gpu.index);
            match &gpu.handle {
                GpuHandle::Ready => compare_gpu(&mut comparison, &place, gpu, theirs),
                GpuHandle::Lost => {
                    comparison.same(&place, &Fact::known("((GPU is lost))", ""), &theirs["name"]);
                }
                GpuHandle::Failed { .. } => {
                    comparison.same(&place, &Fact::known("((Unknown Error))", ""), &theirs["name"]);
                }
            }
        }
    }
    comparison.finish(700);
}
