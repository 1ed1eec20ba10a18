//! NVIDIA's device plugin, through which Kubernetes learns of GPUs. A kubelet is not needed: `tests/python/plugin_read.py`
//! asks what a kubelet would ask. With a real kubelet it runs in `tests/e2e_node.rs` and `tests/e2e`.

use std::path::{Path, PathBuf};

use qvl::facts::{Fact, GpuFacts, GpuHandle, NvmlState};
use qvl_cluster::places::{DEFAULT_NAME, Places};
use serde_json::{Value, json};
use simgpu::Host;

use crate::{compare::Comparison, observed, python, steady};

/// Words of the plugin, which are NVML's own, by `nvmlReturn_t`.
const WORDS: [(u32, &str); 7] = [
    (4, "Insufficient Permissions"),
    (9, "Driver Not Loaded"),
    (12, "NVML Shared Library Not Found"),
    (15, "GPU is lost"),
    (18, "Driver/library version mismatch"),
    (27, "System is not ready"),
    (999, "Unknown Error"),
];

fn client() -> PathBuf {
    let path = Places::new(DEFAULT_NAME).unwrap().program("nvidia-device-plugin");
    assert!(path.is_file(), "`{}` is missing\n  hint: run `make cluster-build`", path.display());
    path
}

/// What it tells a kubelet. It always takes the same place, so it gets mounts of its own: as root.
fn in_plugin(host: &Host, mode: Option<&str>) -> Value {
    assert!(nix::unistd::geteuid().is_root(), "the device plugin is given mounts: run as root");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/plugin_read.py");
    let mut command = host.command("unshare");
    command.arg("-m").arg(python()).arg(script).arg(client()).args(mode);
    let output = command.output().expect("unshare(1) of util-linux: apt-get install util-linux");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn words(code: u32) -> &'static str {
    WORDS.iter().find(|(known, _words)| *known == code).expect("all codes are known").1
}

/// One GPU without a handle stops the plugin, and no GPU of the node is announced.
fn expected_failure(state: &NvmlState, gpus: &[GpuFacts]) -> Option<String> {
    if let NvmlState::Failed { code, .. } = state {
        return Some(format!("nvml init failed: {}", words(*code)));
    }
    let code = |gpu: &GpuFacts| match gpu.handle {
        GpuHandle::Ready => None,
        GpuHandle::Lost => Some(15),
        GpuHandle::Failed { code, .. } => code,
    };
    let (index, code) = gpus.iter().find_map(|gpu| Some((gpu.index, code(gpu)?)))?;
    Some(format!("error getting device handle for index '{index}': {}", words(code)))
}

#[test]
fn the_device_plugin_announces_the_same_gpus_in_every_scenario() {
    let mut comparison = Comparison::with("the device plugin");
    for name in steady() {
        let host = Host::named(&name);
        let ours = observed(&host).nvml;
        let theirs = in_plugin(&host, None);
        let none = Vec::new();
        let gpus = ours.gpus.get().unwrap_or(&none);
        if let Some(expected) = expected_failure(ours.state.get().unwrap(), gpus) {
            let message = theirs["message"].as_str().unwrap_or_else(|| panic!("{name}: {theirs}"));
            assert!(message.contains(&expected), "{name}: no `{expected}` in {message}");
            comparison.same(&name, &Fact::known(true, ""), &json!(true));
            continue;
        }
        let theirs = &theirs["gpus"];
        let count = theirs.as_object().unwrap_or_else(|| panic!("{name}: {theirs}")).len();
        comparison.same(&name, &Fact::known(gpus.len(), ""), &json!(count));
        for gpu in gpus {
            let place = format!("{name} GPU {}", gpu.index);
            comparison.same(&place, &gpu.minor_number, &theirs[gpu.uuid.get().unwrap()]);
        }
    }
    comparison.finish(100);
}

#[test]
fn an_xid_makes_the_device_plugin_take_the_gpu_away() {
    let host = Host::named("broken-host");
    let facts = observed(&host).nvml;
    let uuid = facts.gpus.get().unwrap()[2].uuid.get().unwrap();
    assert_eq!(in_plugin(&host, Some("unhealthy")), json!({"unhealthy": [uuid]}));
}
