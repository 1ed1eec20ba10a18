//! What NVML says about the driver and its GPUs. A call that a driver does not know is unread;
//! one that a GPU does not support is absent.

use std::{ffi::OsStr, thread, time::Duration};

use serde::{Deserialize, Serialize};

use nvml_wrapper::{Device, Nvml, enum_wrappers::device::P2pCapabilitiesIndex, error::NvmlError};

use super::{
    Progress,
    calls::{Calls, Failure, unread as unread_fact},
    child::Silence,
    gpu,
};
use crate::facts::{Fact, GpuFacts, GpuHandle, NvmlFacts, NvmlState, Peer};

/// Name by which the loader finds NVML.
pub const LIBRARY: &str = "libnvidia-ml.so.1";
/// `NVML_ERROR_FUNCTION_NOT_FOUND`.
const FUNCTION_NOT_FOUND: u32 = 13;
/// Time between two samples of the clock event reasons.
const SAMPLE: Duration = Duration::from_millis(20);
const REASONS: &str = "nvmlDeviceGetCurrentClocksThrottleReasons";

/// NVML that was not asked.
pub(super) fn unread(why: &str) -> NvmlFacts {
    NvmlFacts::without_gpus(Fact::unread(why, LIBRARY), why)
}

/// NVML that gave no answer.
pub(super) fn silent(silence: Silence) -> NvmlFacts {
    let state = match silence {
        Silence::Hung { call, after_ms } => NvmlState::Hung { call, after_ms },
        Silence::Crashed { message } => NvmlState::Crashed { message },
    };
    NvmlFacts::without_gpus(Fact::known(state, LIBRARY), "NVML gave no answer")
}

/// Asks NVML for everything. `library` is [`LIBRARY`], or the path of a certain file.
///
/// May take long if the driver is ill, and never comes back if it hangs: `progress` tells
/// another thread which call that is.
pub fn read(library: &OsStr, progress: &Progress) -> NvmlFacts {
    let mut calls = Calls::new(progress);
    let opened = calls.make("nvmlInit_v2", || Nvml::builder().lib_path(library).init());
    let nvml = match opened {
        Ok(nvml) => nvml,
        Err(error) => {
            let state = Fact::known(init_state(library, error), "nvmlInit_v2");
            return NvmlFacts::without_gpus(state, "NVML is not available");
        }
    };
    let driver_version = calls.fact("nvmlSystemGetDriverVersion", || nvml.sys_driver_version());
    let nvml_version = calls.fact("nvmlSystemGetNVMLVersion", || nvml.sys_nvml_version());
    let cuda_version = calls.fact("nvmlSystemGetCudaDriverVersion_v2", || {
        u32::try_from(nvml.sys_cuda_driver_version()?).map_err(|_negative| NvmlError::Unknown)
    });
    let major = driver_version.value().and_then(|version| version.split('.').next()?.parse().ok());
    let count = calls.fact("nvmlDeviceGetCount_v2", || nvml.device_count());
    let gpus = count.map(|count| gpus(&nvml, count, major, &mut calls));
    NvmlFacts {
        state: Fact::known(NvmlState::Ready, "nvmlInit_v2"),
        driver_version,
        nvml_version,
        cuda_version,
        gpus,
        slowest_call: Fact::known(calls.slowest(), "clock around NVML calls"),
    }
}

/// Why the persistence mode could not be read or set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersistenceError {
    /// The call, and what it said.
    pub message: String,
    /// Whether rights are missing.
    pub denied: bool,
}

/// Persistence mode of the GPU with this UUID, after it was set, if `set`.
pub(super) fn persistence(
    library: &OsStr,
    gpu: &str,
    set: Option<bool>,
    progress: &Progress,
) -> Result<bool, PersistenceError> {
    let told = |call: &'static str| {
        move |error: NvmlError| {
            let denied = matches!(error, NvmlError::NoPermission);
            PersistenceError { message: format!("{call}: {}", Failure::of(error)), denied }
        }
    };
    let mut calls = Calls::new(progress);
    let nvml = calls.make("nvmlInit_v2", || Nvml::builder().lib_path(library).init());
    let nvml = nvml.map_err(told("nvmlInit_v2"))?;
    let found = calls.make("nvmlDeviceGetHandleByUUID", || nvml.device_by_uuid(gpu));
    let mut device = found.map_err(told("nvmlDeviceGetHandleByUUID"))?;
    if let Some(on) = set {
        let done = calls.make("nvmlDeviceSetPersistenceMode", || device.set_persistent(on));
        done.map_err(told("nvmlDeviceSetPersistenceMode"))?;
    }
    let mode = calls.make("nvmlDeviceGetPersistenceMode", || device.is_in_persistent_mode());
    mode.map_err(told("nvmlDeviceGetPersistenceMode"))
}

fn init_state(library: &OsStr, error: NvmlError) -> NvmlState {
    if let NvmlError::LibloadingError(cause) = &error {
        let message = cause.to_string();
        return if is_absent(library, &message) {
            NvmlState::LibraryMissing { message }
        } else {
            NvmlState::LibraryBroken { message }
        };
    }
    let Failure { code, text } = Failure::of(error);
    // Without a code the library has no function to initialise it.
    let code = code.unwrap_or(FUNCTION_NOT_FOUND);
    NvmlState::Failed { code, message: with_smi_text(code, &text) }
}

/// Whether the loader found no such library. It names the file that it did not find, which may be
/// another one that the library needs; the reason is strerror(ENOENT), for dlopen gives no code.
fn is_absent(library: &OsStr, message: &str) -> bool {
    let named = message.strip_prefix(&*library.to_string_lossy());
    named.is_some_and(|rest| rest.starts_with(':') && rest.ends_with("No such file or directory"))
}

/// The binding's text, and the one that `nvidia-smi` prints: the one that people search for.
fn with_smi_text(code: u32, text: &str) -> String {
    let smi = match code {
        4 => "Failed to initialize NVML: Insufficient Permissions",
        9 => "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver",
        12 => "NVIDIA-SMI couldn't find libnvidia-ml.so library in your system",
        17 => "Failed to initialize NVML: GPU access blocked by the operating system",
        18 => "Failed to initialize NVML: Driver/library version mismatch",
        999 => "Failed to initialize NVML: Unknown Error",
        _ => return text.to_owned(),
    };
    format!("{text}; nvidia-smi: \"{smi}\"")
}

fn gpus(nvml: &Nvml, count: u32, major: Option<u32>, calls: &mut Calls<'_>) -> Vec<GpuFacts> {
    let mut ready: Vec<(u32, Device<'_>)> = Vec::new();
    let mut gpus = Vec::new();
    for index in 0..count {
        calls.about(Some(index));
        match calls.make("nvmlDeviceGetHandleByIndex_v2", || nvml.device_by_index(index)) {
            Ok(device) => {
                gpus.push(gpu::read(index, &device, major, calls));
                ready.push((index, device));
            }
            Err(error) => gpus.push(without_handle(index, error)),
        }
    }
    for (index, device) in &ready {
        calls.about(Some(*index));
        let facts = gpus.iter_mut().find(|gpu| gpu.index == *index);
        if let Some(facts) = facts {
            facts.peers = peers(nvml, device, *index, &ready, calls);
        }
    }
    sample_reasons(&mut gpus, &ready, calls);
    calls.about(None);
    gpus
}

fn without_handle(index: u32, error: NvmlError) -> GpuFacts {
    let is_lost = matches!(error, NvmlError::GpuLost);
    let failure = Failure::of(error);
    let why = format!("NVML gives no handle for this GPU: {failure}");
    let failed = GpuHandle::Failed { code: failure.code, message: failure.text };
    GpuFacts::unread(index, if is_lost { GpuHandle::Lost } else { failed }, &why)
}

/// How a GPU reaches the others that answer.
fn peers(
    nvml: &Nvml,
    device: &Device<'_>,
    index: u32,
    all: &[(u32, Device<'_>)],
    calls: &mut Calls<'_>,
) -> Fact<Vec<Peer>> {
    let others = all.iter().filter(|(other, _)| *other != index);
    let peers: Result<Vec<Peer>, NvmlError> = others
        .map(|(other, peer)| {
            let status = calls.make("nvmlDeviceGetP2PStatus", || {
                device.p2p_status(peer, P2pCapabilitiesIndex::Read)
            })?;
            let level = calls.make("nvmlDeviceGetTopologyCommonAncestor", || {
                device.topology_common_ancestor(nvml.device_by_index(*other)?)
            })?;
            Ok(Peer { index: *other, p2p_read: status.as_c(), path: level.as_c() })
        })
        .collect();
    match peers {
        Ok(peers) => Fact::known(peers, "nvmlDeviceGetP2PStatus"),
        Err(error) => unread_fact(error, "nvmlDeviceGetP2PStatus"),
    }
}

/// Two samples: a reason that shows in one of them only is not a state.
fn sample_reasons(gpus: &mut [GpuFacts], ready: &[(u32, Device<'_>)], calls: &mut Calls<'_>) {
    if ready.is_empty() {
        return;
    }
    let mut sample = || -> Vec<Fact<u64>> {
        let bits = |(index, device): &(u32, Device<'_>)| {
            calls.about(Some(*index));
            calls.fact(REASONS, || Ok(device.current_throttle_reasons()?.bits()))
        };
        ready.iter().map(bits).collect()
    };
    let first = sample();
    thread::sleep(SAMPLE);
    let second = sample();
    let handled = gpus.iter_mut().filter(|gpu| gpu.handle == GpuHandle::Ready);
    for ((gpu, first), second) in handled.zip(first).zip(second) {
        gpu.clock_event_reasons = match (first, second) {
            (Fact::Known { value: first, from }, Fact::Known { value: second, .. }) => {
                Fact::known(vec![first, second], from)
            }
            (Fact::Unread { why, from }, _) | (_, Fact::Unread { why, from }) => {
                Fact::Unread { why, from }
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use simgpu::Host;

    use super::*;

    fn facts(scenario: &str) -> NvmlFacts {
        let host = Host::named(scenario);
        read(host.nvml().as_os_str(), &Progress::default())
    }

    #[test]
    fn a_file_that_is_not_there_is_a_missing_library() {
        let facts = read("/nowhere/libnvidia-ml.so.1".as_ref(), &Progress::default());
        let Fact::Known { value: NvmlState::LibraryMissing { message }, .. } = &facts.state else {
            panic!("{:?}", facts.state);
        };
        assert!(message.contains("/nowhere/libnvidia-ml.so.1"), "{message}");
        assert!(facts.gpus.get().is_err());
    }

    #[test]
    fn a_file_that_does_not_load_is_a_broken_library() {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("libnvidia-ml.so.1");
        std::fs::write(&library, "not a library").unwrap();
        let facts = read(library.as_os_str(), &Progress::default());
        assert!(matches!(facts.state.get().unwrap(), NvmlState::LibraryBroken { .. }));
        // A library that needs another one, which is not there.
        let message = "libother.so.2: cannot open shared object file: No such file or directory";
        assert!(!is_absent("libnvidia-ml.so.1".as_ref(), message));
    }

    #[test]
    fn an_error_of_the_initialisation_keeps_its_code_and_both_texts() {
        for (scenario, code, texts) in [
            ("init-driver-not-loaded", 9, ["driver is not loaded", "couldn't communicate with"]),
            ("init-library-not-found", 12, ["shared library", "couldn't find libnvidia-ml.so"]),
            ("init-version-mismatch", 18, ["version mismatch", "Driver/library version mismatch"]),
            ("init-no-permission", 4, ["permission", "Insufficient Permissions"]),
            ("init-not-ready", 27, ["not ready", "not ready"]),
        ] {
            let facts = facts(scenario);
            let Fact::Known { value: NvmlState::Failed { code: found, message }, .. } =
                &facts.state
            else {
                panic!("{scenario}: {:?}", facts.state);
            };
            assert_eq!(*found, code, "{scenario}");
            for text in texts {
                assert!(message.contains(text), "{scenario}: {message}");
            }
            assert!(facts.gpus.get().is_err() && facts.driver_version.get().is_err());
        }
    }

    #[test]
    fn a_lost_gpu_is_lost_and_the_others_are_read() {
        let facts = facts("lost-gpu");
        let gpus = facts.gpus.get().unwrap();
        assert_eq!(gpus.len(), 8);
        assert_eq!(gpus[1].handle, GpuHandle::Lost);
        assert!(gpus[1].memory_total_bytes.get().is_err());
        for gpu in gpus.iter().filter(|gpu| gpu.index != 1) {
            assert_eq!(gpu.handle, GpuHandle::Ready);
            assert_eq!(gpu.peers.get().unwrap().len(), 6);
            assert_eq!(gpu.clock_event_reasons.get().unwrap(), &[1, 1]);
        }
    }

    #[test]
    fn a_driver_whose_calls_all_fail_gives_no_value() {
        let facts = facts("every-call-fails");
        let gpus = facts.gpus.get().unwrap();
        assert_eq!(gpus.len(), 2);
        for gpu in gpus {
            let GpuHandle::Failed { code, .. } = &gpu.handle else { panic!("{:?}", gpu.handle) };
            assert_eq!(*code, Some(999));
            assert!(gpu.uuid.get().is_err() && gpu.ecc.get().is_err());
        }
    }

    #[test]
    fn the_call_that_hangs_is_known_to_another_thread() {
        let host = Host::named("hung-call");
        let progress = Progress::default();
        let watched = progress.clone();
        let path = host.nvml();
        let asked = thread::spawn(move || read(path.as_os_str(), &progress));
        let hangs = "nvmlDeviceGetTemperature of GPU 1";
        let begin = std::time::Instant::now();
        while watched.call() != hangs && begin.elapsed() < Duration::from_secs(20) {
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(watched.call(), hangs);
        assert!(!asked.is_finished());
        let facts = silent(Silence::Hung { call: watched.call(), after_ms: 5000 });
        let hung = NvmlState::Hung { call: hangs.to_owned(), after_ms: 5000 };
        assert_eq!(facts.state.value(), Some(&hung));
    }
}
