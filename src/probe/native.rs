//! Calls into the driver's libraries and the kernel that no safe binding offers. The only unsafe
//! code of the doctor.
#![expect(unsafe_code, reason = "the driver is a C library, loaded at run time")]

use std::{
    error::Error,
    ffi::{CStr, OsStr, c_char, c_int, c_uint},
    mem::ManuallyDrop,
    ptr,
};

use libloading::{Library, Symbol};
use nvml_wrapper::{
    Device,
    error::{NvmlError, nvml_sym, nvml_try},
};
use nvml_wrapper_sys::bindings::{
    nvmlEccSramErrorStatus_t, nvmlGpuFabricInfo_v2_t, nvmlGpuFabricInfoV_t, nvmlMemory_t,
};

use crate::facts::{ClockState, Fabric, Fact, RemappedRows};

/// The CUDA driver library. It is never unloaded: it starts threads of its own.
pub(super) struct Cuda(ManuallyDrop<Library>);

impl Cuda {
    /// Loads it; the error is what the loader said.
    pub(super) fn load(name: &OsStr) -> Result<Cuda, String> {
        // SAFETY: loading runs the initialisers of the driver's own library, which are made for it.
        let library = unsafe { Library::new(name) };
        library.map(|library| Cuda(ManuallyDrop::new(library))).map_err(|error| cause(&error))
    }

    /// `cuInit`, or why it cannot be called.
    pub(super) fn init(&self) -> Result<u32, String> {
        // SAFETY: `CUresult cuInit(unsigned int)` of cuda.h; the flags must be 0.
        unsafe {
            let init: Symbol<'_, unsafe extern "C" fn(c_uint) -> c_uint> =
                self.0.get(b"cuInit\0").map_err(|error| cause(&error))?;
            Ok(init(0))
        }
    }

    /// Code and number that `cuDriverGetVersion` or `cuDeviceGetCount` gives, or why it cannot be
    /// called.
    pub(super) fn number(&self, name: &'static str) -> Result<(u32, c_int), String> {
        let mut value: c_int = 0;
        // SAFETY: both functions have the signature `CUresult f(int *)`, and the pointer is to a
        // live local.
        let code = unsafe {
            let call: Symbol<'_, unsafe extern "C" fn(*mut c_int) -> c_uint> =
                self.0.get(name.as_bytes()).map_err(|error| cause(&error))?;
            call(&raw mut value)
        };
        Ok((code, value))
    }

    /// The library's own text for a code, if it has one.
    pub(super) fn error_text(&self, code: u32) -> Option<String> {
        let mut text: *const c_char = ptr::null();
        // SAFETY: `CUresult cuGetErrorString(CUresult, const char **)` of cuda.h; the pointer is to
        // a live local, and a text that it gives is a C string that lives as long as the library.
        unsafe {
            let call: Symbol<'_, unsafe extern "C" fn(c_uint, *mut *const c_char) -> c_uint> =
                self.0.get(b"cuGetErrorString\0").ok()?;
            let known = call(code, &raw mut text) == 0 && !text.is_null();
            known.then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        }
    }
}

/// What the loader said: it stands behind the error of the binding.
fn cause(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// `nvmlDeviceGetMemoryInfo`, which drivers before 510 have instead of version 2.
pub(super) fn memory(device: &Device<'_>) -> Result<nvmlMemory_t, NvmlError> {
    let call = nvml_sym(device.nvml().lib().nvmlDeviceGetMemoryInfo.as_ref())?;
    let mut info = nvmlMemory_t { total: 0, free: 0, used: 0 };
    // SAFETY: the handle is of a live `Nvml`, and the pointer is to a live local.
    nvml_try(unsafe { call(device.handle(), &raw mut info) })?;
    Ok(info)
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

/// `nvmlDeviceGetSramEccErrorStatus`: whether the threshold for a replacement is passed; `None`
/// with drivers before 550, which do not have the call.
pub(super) fn sram_threshold_exceeded(device: &Device<'_>) -> Result<Option<bool>, NvmlError> {
    let Some(call) = device.nvml().lib().nvmlDeviceGetSramEccErrorStatus.as_ref().ok() else {
        return Ok(None);
    };
    // SAFETY: the struct is plain numbers, for which zero is a value.
    let mut status: nvmlEccSramErrorStatus_t = unsafe { std::mem::zeroed() };
    let size = u32::try_from(size_of::<nvmlEccSramErrorStatus_t>()).unwrap_or(0);
    status.version = size | (1 << 24);
    // SAFETY: the handle is of a live `Nvml`, and the pointer is to a live local.
    match nvml_try(unsafe { call(device.handle(), &raw mut status) }) {
        Ok(()) => Ok(Some(status.bThresholdExceeded != 0)),
        Err(NvmlError::FunctionNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// State of the kernel's clock.
pub(super) fn clock() -> Fact<ClockState> {
    const FROM: &str = "adjtimex";
    // SAFETY: the struct is plain numbers, for which zero is a value; `modes` = 0 only reads.
    let mut state: nix::libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live local.
    let code = unsafe { nix::libc::adjtimex(&raw mut state) };
    if code < 0 {
        return Fact::unread(std::io::Error::last_os_error().to_string(), FROM);
    }
    let microseconds = |value: nix::libc::c_long| u64::try_from(value).unwrap_or(0);
    let value = ClockState {
        synchronised: code != nix::libc::TIME_ERROR && state.status & nix::libc::STA_UNSYNC == 0,
        max_error_us: microseconds(state.maxerror),
        estimated_error_us: microseconds(state.esterror),
    };
    Fact::known(value, FROM)
}
