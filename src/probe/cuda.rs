//! What the CUDA driver library says: whether it starts, its version, how many devices it sees.

use std::{ffi::OsStr, fs, path::Path};

use super::{Progress, calls::Calls, child::Silence, native::Cuda};
use crate::facts::{CudaFacts, CudaState, Fact};

/// Name by which the loader finds the CUDA driver library.
pub const LIBRARY: &str = "libcuda.so.1";

/// CUDA that was not asked.
pub(super) fn unread(why: &str) -> CudaFacts {
    CudaFacts::without_devices(Fact::unread(why, LIBRARY), why)
}

/// CUDA that gave no answer.
pub(super) fn silent(silence: Silence) -> CudaFacts {
    let state = match silence {
        Silence::Hung { call, after_ms } => CudaState::Hung { call, after_ms },
        Silence::Crashed { message } => CudaState::Crashed { message },
    };
    CudaFacts::without_devices(Fact::known(state, LIBRARY), "CUDA gave no answer")
}

/// Loads the CUDA driver library, initialises it and counts devices. `library` is [`LIBRARY`],
/// or the path of a certain file.
///
/// May take seconds, and never comes back if the driver hangs: `progress` tells another thread
/// which call that is.
pub fn read(library: &OsStr, progress: &Progress) -> CudaFacts {
    let mut calls = Calls::new(progress);
    let cuda = match calls.make("dlopen libcuda.so.1", || Cuda::load(library)) {
        Ok(cuda) => cuda,
        Err(message) => {
            let state = Fact::known(CudaState::LibraryMissing { message }, "dlopen libcuda.so.1");
            return CudaFacts::without_devices(state, "libcuda.so.1 cannot be loaded");
        }
    };
    let library_path = loaded_path(library);
    // The version needs no initialisation: it explains why one fails.
    let driver_version = number(&cuda, "cuDriverGetVersion", &mut calls);
    let state = match calls.make("cuInit", || cuda.init()) {
        Ok(0) => Fact::known(CudaState::Ready, "cuInit"),
        Ok(code) => {
            let message = meaning(&cuda, code);
            Fact::known(CudaState::Failed { code, message }, "cuInit")
        }
        Err(message) => Fact::unread(message, "cuInit"),
    };
    let device_count = if state.value() == Some(&CudaState::Ready) {
        number(&cuda, "cuDeviceGetCount", &mut calls)
    } else {
        Fact::unread("cuInit failed", "cuDeviceGetCount")
    };
    CudaFacts { state, driver_version, device_count, library_path }
}

fn number(cuda: &Cuda, name: &'static str, calls: &mut Calls<'_>) -> Fact<u32> {
    match calls.make(name, || cuda.number(name)) {
        Ok((0, value)) => Fact::from_result(u32::try_from(value), name),
        Ok((code, _)) => {
            let meaning = meaning(cuda, code);
            Fact::unread(format!("CUDA error {code} ({meaning})"), name)
        }
        Err(message) => Fact::unread(message, name),
    }
}

/// The driver's own words; an old one does not know newer codes.
fn meaning(cuda: &Cuda, code: u32) -> String {
    let own = cuda.error_text(code);
    own.unwrap_or_else(|| {
        let text = match code {
            34 => "CUDA driver is a stub library",
            100 => "no CUDA-capable device is detected",
            802 => "system not yet initialized",
            803 => "system has unsupported display driver / cuda driver combination",
            804 => "forward compatibility was attempted on non supported HW",
            _ => "the driver has no text for this code",
        };
        text.to_owned()
    })
}

/// The file behind the loaded library, links resolved.
fn loaded_path(library: &OsStr) -> Fact<String> {
    let library = Path::new(library);
    if library.is_absolute() {
        let path = fs::canonicalize(library).map(|path| path.display().to_string());
        return Fact::from_result(path, library.display().to_string());
    }
    let maps = match fs::read_to_string("/proc/self/maps") {
        Ok(maps) => maps,
        Err(error) => return Fact::unread(error.to_string(), "/proc/self/maps"),
    };
    match mapped(&maps, "libcuda.so") {
        Some(path) => Fact::known(path.to_owned(), "/proc/self/maps"),
        None => Fact::unread("no mapped file is called libcuda.so*", "/proc/self/maps"),
    }
}

/// Path of the first mapped file whose name begins with `prefix`.
fn mapped<'t>(maps: &'t str, prefix: &str) -> Option<&'t str> {
    let paths = maps.lines().filter_map(|line| Some(&line[line.find('/')?..]));
    let mut named = paths
        .filter(|path| path.rsplit_once('/').is_some_and(|(_, name)| name.starts_with(prefix)));
    named.next()
}

#[cfg(test)]
mod tests {
    use simgpu::Host;

    use super::*;

    fn facts(scenario: &str) -> CudaFacts {
        let host = Host::named(scenario);
        read(host.cuda().as_os_str(), &Progress::default())
    }

    #[test]
    fn a_healthy_driver_counts_its_devices() {
        let host = Host::named("healthy-4xa100");
        let facts = read(host.cuda().as_os_str(), &Progress::default());
        assert_eq!(facts.state.get().unwrap(), &CudaState::Ready);
        assert_eq!(*facts.driver_version.get().unwrap(), 12040);
        assert_eq!(*facts.device_count.get().unwrap(), 4);
        let path = fs::canonicalize(host.cuda()).unwrap();
        assert_eq!(facts.library_path.get().unwrap(), &path.display().to_string());
    }

    #[test]
    fn a_failed_initialisation_keeps_code_text_and_version() {
        for (scenario, code, text) in [
            ("cuda-no-device", 100, "no CUDA-capable device is detected"),
            ("cuda-802", 802, "system not yet initialized"),
            ("cuda-803", 803, "unsupported display driver / cuda driver combination"),
        ] {
            let facts = facts(scenario);
            let Fact::Known { value: CudaState::Failed { code: found, message }, .. } =
                &facts.state
            else {
                panic!("{scenario}: {:?}", facts.state);
            };
            assert_eq!(*found, code);
            assert!(message.contains(text), "{message}");
            assert_eq!(*facts.driver_version.get().unwrap(), 12040);
            assert!(facts.device_count.get().is_err());
        }
    }

    #[test]
    fn a_lost_gpu_is_no_device() {
        assert_eq!(*facts("lost-gpu").device_count.get().unwrap(), 7);
    }

    #[test]
    fn it_may_disagree_with_nvml() {
        let facts = facts("cuda-older-than-nvml");
        assert_eq!(*facts.driver_version.get().unwrap(), 11040);
        assert_eq!(*facts.device_count.get().unwrap(), 3);
    }

    #[test]
    fn a_missing_library_says_what_the_loader_said() {
        let facts = read("/nowhere/libcuda.so.1".as_ref(), &Progress::default());
        let Fact::Known { value: CudaState::LibraryMissing { message }, .. } = &facts.state else {
            panic!("{:?}", facts.state);
        };
        assert!(message.contains("/nowhere/libcuda.so.1"), "{message}");
    }

    #[test]
    fn a_library_without_the_functions_is_unread() {
        let host = Host::new(
            r#"{"driver": "550.163.01", "cuda_driver": 12040, "missing_symbols": ["cuInit"],
                "gpus": [{"profile": "a100-sxm4-80g"}]}"#,
        );
        let facts = read(host.cuda().as_os_str(), &Progress::default());
        assert!(facts.state.get().unwrap_err().why.contains("cuInit"));
        assert!(facts.device_count.get().is_err());
    }

    #[test]
    fn the_mapped_file_is_found() {
        let maps = "7f00-7f01 r-xp 00000000 08:01 1 /usr/lib/libcudart.so.12\n\
                    7f02-7f03 r-xp 00000000 08:01 2 /usr/lib/libcuda.so.550.163.01\n\
                    7f04-7f05 rw-p 00000000 00:00 0\n";
        assert_eq!(mapped(maps, "libcuda.so"), Some("/usr/lib/libcuda.so.550.163.01"));
        assert_eq!(mapped("", "libcuda.so"), None);
    }
}
