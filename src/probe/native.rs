//! Calls into the driver's libraries that no safe binding offers. The only unsafe code of the
//! doctor.
#![expect(unsafe_code, reason = "the driver is a C library, loaded at run time")]

use std::{ffi::c_int, sync::mpsc::RecvTimeoutError, time::Duration};

use libloading::{Library, Symbol};
use nvml_wrapper::{
    Device,
    error::{NvmlError, nvml_sym, nvml_try},
};
use nvml_wrapper_sys::bindings::{nvmlGpuFabricInfo_v2_t, nvmlGpuFabricInfoV_t};

use crate::facts::{CudaFacts, CudaState, Fabric, Fact, RemappedRows};

const LIBRARY: &str = "libcuda.so.1";

/// CUDA that was not asked.
pub(super) fn cuda_unread(why: &str) -> CudaFacts {
    CudaFacts::without_devices(Fact::unread(why, LIBRARY), why)
}

/// CUDA that gave no answer.
pub(super) fn cuda_silent(error: RecvTimeoutError, waited: Duration) -> CudaFacts {
    let after_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
    let state = match error {
        RecvTimeoutError::Timeout => CudaState::Hung { call: "cuInit".to_owned(), after_ms },
        RecvTimeoutError::Disconnected => {
            CudaState::Crashed { message: "the thread that asked CUDA panicked".to_owned() }
        }
    };
    CudaFacts::without_devices(Fact::known(state, "cuInit"), "CUDA gave no answer")
}

/// Loads the CUDA driver library, initialises it and counts devices.
pub(super) fn cuda() -> CudaFacts {
    // SAFETY: loading runs the initialisers of the driver's own library, which are made for it.
    let library = match unsafe { Library::new(LIBRARY) } {
        Ok(library) => library,
        Err(error) => {
            let state = CudaState::LibraryMissing { message: error.to_string() };
            return CudaFacts::without_devices(
                Fact::known(state, "dlopen libcuda.so.1"),
                "libcuda.so.1 cannot be loaded",
            );
        }
    };
    // SAFETY: `CUresult cuInit(unsigned int)` of the CUDA driver API; flags must be 0.
    let code = unsafe {
        let init: Result<Symbol<'_, unsafe extern "C" fn(u32) -> c_int>, _> =
            library.get(b"cuInit\0");
        init.map(|init| init(0))
    };
    let state = match code {
        Ok(0) => CudaState::Ready,
        Ok(code) => CudaState::Failed {
            code: u32::try_from(code).unwrap_or(u32::MAX),
            message: meaning(code).to_owned(),
        },
        Err(error) => {
            let message = error.to_string();
            return CudaFacts::without_devices(
                Fact::unread(message, "cuInit"),
                "cuInit is missing",
            );
        }
    };
    let ready = state == CudaState::Ready;
    let state = Fact::known(state, "cuInit");
    if !ready {
        return CudaFacts::without_devices(state, "cuInit failed");
    }
    CudaFacts {
        state,
        driver_version: number(&library, "cuDriverGetVersion"),
        device_count: number(&library, "cuDeviceGetCount"),
    }
}

/// The number that `CUresult name(int *)` gives.
fn number(library: &Library, name: &str) -> Fact<u32> {
    let mut value: c_int = 0;
    // SAFETY: both functions that are asked for have the signature `CUresult f(int *)`, and the
    // pointer is to a live local.
    let code = unsafe {
        let call: Result<Symbol<'_, unsafe extern "C" fn(*mut c_int) -> c_int>, _> =
            library.get(name.as_bytes());
        call.map(|call| call(&raw mut value))
    };
    match (code, u32::try_from(value)) {
        (Ok(0), Ok(value)) => Fact::known(value, name),
        (Ok(code), _) => Fact::unread(format!("CUDA error {code} ({})", meaning(code)), name),
        (Err(error), _) => Fact::unread(error.to_string(), name),
    }
}

/// Names of the codes that `cuInit` gives (cuda.h).
fn meaning(code: c_int) -> &'static str {
    match code {
        3 => "not initialised",
        34 => "stub library",
        100 => "no device",
        101 => "invalid device",
        304 => "operating system",
        802 => "system not ready: fabric manager",
        803 => "driver and library do not match",
        804 => "forward compatibility is not supported on this GPU",
        999 => "unknown",
        _ => "see CUresult in cuda.h",
    }
}

/// `nvmlDeviceGetRemappedRows`.
pub(super) fn remapped_rows(device: &Device<'_>) -> Result<RemappedRows, NvmlError> {
    let call = nvml_sym(device.nvml().lib().nvmlDeviceGetRemappedRows.as_ref())?;
    let (mut correctable, mut uncorrectable, mut pending, mut failed) = (0, 0, 0, 0);
    // SAFETY: the handle is of a live `Nvml`, and the pointers are to live locals.
    let code = unsafe {
        call(
            device.handle(),
            &raw mut correctable,
            &raw mut uncorrectable,
            &raw mut pending,
            &raw mut failed,
        )
    };
    nvml_try(code)?;
    Ok(RemappedRows { correctable, uncorrectable, pending: pending != 0, failed: failed != 0 })
}

/// `nvmlDeviceGetGpuFabricInfoV`, version 2 of its struct, which drivers know from 545 on;
/// `None` when the GPU is not on a fabric.
pub(super) fn fabric(device: &Device<'_>) -> Result<Option<Fabric>, NvmlError> {
    let call = nvml_sym(device.nvml().lib().nvmlDeviceGetGpuFabricInfoV.as_ref())?;
    // SAFETY: the struct is plain numbers, for which zero is a value.
    let mut info: nvmlGpuFabricInfoV_t = unsafe { std::mem::zeroed() };
    let size = u32::try_from(size_of::<nvmlGpuFabricInfo_v2_t>()).unwrap_or(0);
    // NVML_STRUCT_VERSION of nvml.h: the size, and the version from bit 24 on.
    info.version = size | (2 << 24);
    // SAFETY: the handle is of a live `Nvml`; version 3 of the struct begins with version 2, so
    // the driver writes inside of it.
    nvml_try(unsafe { call(device.handle(), &raw mut info) })?;
    if info.state == 0 {
        return Ok(None);
    }
    Ok(Some(Fabric {
        state: u32::from(info.state),
        status: info.status,
        health_mask: info.healthMask,
    }))
}
