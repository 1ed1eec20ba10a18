//! NVIDIA's own `nvidia-smi`, of three series of the driver.
//!
//! `tests/python/smi_read.py` reads what it prints and knows what each version cannot show: 470 neither reserved
//! memory, fabric, GSP firmware nor links; none of them NUMA nodes of single GPUs, errors of links or the
//! recovery action.

use std::path::{Path, PathBuf};

use qvl::facts::{Fact, GpuFacts, GpuHandle, NvmlFacts, NvmlState};
use serde_json::{Value, json};
use simgpu::{Host, host, scenario::Scenario};

use crate::{
    compare::{Comparison, memory},
    made, observed, python, steady,
};

/// Series whose place for every fact is known, run on every host.
const SERIES: [&str; 2] = ["535", "550"];

/// Words of `nvidia-smi` about a driver that does not start, by `nvmlReturn_t`.
const WORDS: [(u32, &str); 5] = [
    (4, "Insufficient Permissions"),
    (9, "couldn't communicate with the NVIDIA driver"),
    (12, "couldn't find libnvidia-ml.so"),
    (18, "Driver/library version mismatch"),
    (27, "System is not in ready state"),
];

fn client(series: &str) -> PathBuf {
    made("nvidia-smi", "tests/setup/nvidia-smi").join(series).join("nvidia-smi")
}

fn in_smi(host: &Host, name: &str, series: &str) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/smi_read.py");
    let gpus = Scenario::parse(&host::named(name)).unwrap().gpus.len();
    let mut command = host.command(python());
    command.arg(script).arg(client(series)).arg(gpus.to_string());
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}, nvidia-smi {series}: {errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Compares a host. What the client cannot show, it has no key for.
fn compare(comparison: &mut Comparison, name: &str, ours: &NvmlFacts, theirs: &Value) {
    if let NvmlState::Failed { code, .. } = ours.state.get().unwrap() {
        let (_code, words) = WORDS.iter().find(|(known, _words)| known == code).unwrap();
        let message = theirs["message"].as_str().unwrap();
        assert!(message.contains(words), "{name}: {message}");
        comparison.same(name, &Fact::known(true, ""), &json!(true));
        return;
    }
    for (key, fact) in [
        ("driver_version", serde_json::to_value(&ours.driver_version).unwrap()),
        ("cuda_version", serde_json::to_value(&ours.cuda_version).unwrap()),
    ] {
        if let Some(value) = theirs.get(key) {
            comparison.same(name, &serde_json::from_value::<Fact<Value>>(fact).unwrap(), value);
        }
    }
    let (gpus, theirs) = (ours.gpus.get().unwrap(), theirs["gpus"].as_array().unwrap());
    assert_eq!(gpus.len(), theirs.len(), "{name}");
    for (gpu, theirs) in gpus.iter().zip(theirs) {
        let place = format!("{name} GPU {}", gpu.index);
        match &gpu.handle {
            GpuHandle::Ready => compare_gpu(comparison, &place, gpu, theirs),
            GpuHandle::Lost => comparison.same(&place, &Fact::known(15, ""), &theirs["handle"]),
            GpuHandle::Failed { code, .. } => {
                comparison.same(&place, &Fact::known(*code, ""), &theirs["handle"]);
            }
        }
    }
}

fn compare_gpu(comparison: &mut Comparison, place: &str, gpu: &GpuFacts, theirs: &Value) {
    let ours = serde_json::to_value(gpu).unwrap();
    for (key, value) in theirs.as_object().unwrap() {
        let fact = match key.as_str() {
            "index" => Fact::known(json!(gpu.index), ""),
            "memory" => memory(gpu),
            "fabric_state" => mapped(&gpu.fabric, |fabric| json!(fabric.as_ref().map(|f| f.state))),
            "p2p_read" => {
                mapped(&gpu.peers, |peers| peers.iter().map(|peer| json!(peer.p2p_read)).collect())
            }
            _ => serde_json::from_value(ours[key.as_str()].clone())
                .unwrap_or_else(|error| panic!("{place}: no fact `{key}`: {error}")),
        };
        comparison.same(&format!("{place}.{key}"), &fact, value);
    }
}

fn mapped<T>(fact: &Fact<T>, value: impl Fn(&T) -> Value) -> Fact<Value> {
    match fact.get() {
        Ok(known) => Fact::known(value(known), ""),
        Err(unread) => Fact::unread(&unread.why, ""),
    }
}

#[test]
fn nvidia_smi_prints_the_same_values_in_every_scenario() {
    let mut comparison = Comparison::with("nvidia-smi");
    // A client of a newer driver cannot read the old one: its own client is asked, below.
    for name in steady().into_iter().filter(|name| name != "old-driver") {
        let host = Host::named(&name);
        let ours = observed(&host).nvml;
        for series in SERIES {
            let place = format!("{name}, {series}:");
            compare(&mut comparison, &place, &ours, &in_smi(&host, &name, series));
        }
    }
    comparison.finish(5000);
}

#[test]
fn the_client_of_an_old_driver_agrees_about_it() {
    let host = Host::named("old-driver");
    let mut comparison = Comparison::with("nvidia-smi of 470");
    compare(&mut comparison, "", &observed(&host).nvml, &in_smi(&host, "old-driver", "470"));
    comparison.finish(90);
}

#[test]
fn the_table_names_processes_of_both_kinds() {
    let host = Host::named("busy");
    for series in SERIES {
        let output = host.command(client(series)).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let line = |pid: &str| {
            let line =
                text.lines().find(|line| line.contains(pid)).unwrap_or_else(|| panic!("{text}"));
            line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<String>>().join(" ")
        };
        assert_eq!(line(" 4242 "), "0 N/A N/A 4242 C python 71680MiB |");
        assert_eq!(line(" 777 "), "0 N/A N/A 777 G Xorg 12MiB |");
    }
}

#[test]
fn a_lost_gpu_is_named_in_the_words_people_search_for() {
    let host = Host::named("lost-gpu");
    for series in ["470", "535", "550"] {
        let output = host.command(client(series)).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(15), "{text}");
        assert!(text.contains("GPU is lost.  Reboot the system to recover this GPU"), "{text}");
    }
}
