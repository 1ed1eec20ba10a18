//! The CUDA driver library.

use serde::{Deserialize, Serialize};

use super::Fact;

/// What the CUDA driver library says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CudaFacts {
    /// Result of loading the library and of `cuInit`.
    pub state: Fact<CudaState>,
    /// `cuDriverGetVersion`, as `major * 1000 + minor * 10`.
    pub driver_version: Fact<u32>,
    /// `cuDeviceGetCount`.
    pub device_count: Fact<u32>,
    /// The file that was loaded, links resolved.
    #[serde(default = "Fact::not_recorded")]
    pub library_path: Fact<String>,
}

impl CudaFacts {
    /// A CUDA driver library that gave nothing but its state.
    pub fn without_devices(state: Fact<CudaState>, why: &str) -> Self {
        CudaFacts {
            state,
            driver_version: Fact::unread(why, "cuDriverGetVersion"),
            device_count: Fact::unread(why, "cuDeviceGetCount"),
            library_path: Fact::unread(why, "/proc/self/maps"),
        }
    }
}

/// Result of loading the CUDA driver library and of `cuInit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CudaState {
    /// `cuInit` returned 0.
    Ready,
    /// `libcuda.so.1` cannot be loaded.
    LibraryMissing {
        /// What the loader said.
        message: String,
    },
    /// `cuInit` failed: 34 stub library, 100 no device, 802 system not ready, 803 driver and
    /// library do not match, 804 forward compatibility on a GPU that has none.
    Failed {
        /// `CUresult`.
        code: u32,
        /// Text for the code.
        message: String,
    },
    /// `cuInit` did not come back in time; the process that made it was killed.
    Hung {
        /// The call.
        call: String,
        /// How long it was waited for.
        after_ms: u64,
    },
    /// The process that talks to the driver died.
    Crashed {
        /// How it ended: signal or exit code.
        message: String,
    },
}
