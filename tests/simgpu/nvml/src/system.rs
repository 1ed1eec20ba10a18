//! The host: initialisation, versions, enumeration.

use std::ffi::{CStr, c_char, c_int};

use crate::{
    answer::{self, Answer, Code, FIRST_HANDLE, INVALID_ARGUMENT, NOT_FOUND, Now, put, put_text},
    calls::host_calls,
    layout::Device,
};

#[unsafe(no_mangle)]
extern "C" fn nvmlInit() -> Code {
    answer::initialise("nvmlInit")
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInit_v2() -> Code {
    answer::initialise("nvmlInit_v2")
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInitWithFlags(_flags: u32) -> Code {
    answer::initialise("nvmlInitWithFlags")
}

#[unsafe(no_mangle)]
extern "C" fn nvmlShutdown() -> Code {
    answer::shut_down()
}

#[unsafe(no_mangle)]
extern "C" fn nvmlErrorString(code: Code) -> *const c_char {
    message(code).as_ptr()
}

fn message(code: Code) -> &'static CStr {
    match code {
        0 => c"Success",
        1 => c"Uninitialized",
        2 => c"Invalid Argument",
        3 => c"Not Supported",
        4 => c"Insufficient Permissions",
        5 => c"Already Initialized",
        6 => c"Not Found",
        7 => c"Insufficient Size",
        8 => c"Insufficient External Power",
        9 => c"Driver Not Loaded",
        10 => c"Timeout",
        11 => c"Interrupt Request Issue",
        12 => c"NVML Shared Library Not Found",
        13 => c"Function Not Found",
        14 => c"Corrupted infoROM",
        15 => c"GPU is lost",
        16 => c"GPU requires reset",
        17 => c"GPU access blocked by the operating system",
        18 => c"Driver/library version mismatch",
        19 => c"In use by another client",
        20 => c"Insufficient Memory",
        21 => c"No data",
        22 => c"VGPU ECC not supported",
        23 => c"Insufficient resources",
        24 => c"Requested frequency is not supported",
        25 => c"Argument version mismatch",
        26 => c"Deprecated",
        27 => c"System is not ready",
        28 => c"GPU not found",
        29 => c"Invalid state",
        _ => c"Unknown Error",
    }
}

host_calls! {
    fn nvmlSystemGetDriverVersion(now, version: *mut c_char, length: u32) {
        put_text(version, length, &now.scenario.driver)
    }
    fn nvmlSystemGetNVMLVersion(now, version: *mut c_char, length: u32) {
        let cuda = now.scenario.cuda_driver / 1000;
        put_text(version, length, &format!("{cuda}.{}", now.scenario.driver))
    }
    fn nvmlSystemGetCudaDriverVersion(now, version: *mut c_int) {
        put(version, now.scenario.cuda_driver.cast_signed())
    }
    fn nvmlSystemGetCudaDriverVersion_v2(now, version: *mut c_int) {
        put(version, now.scenario.cuda_driver.cast_signed())
    }
    fn nvmlSystemGetProcessName(now, pid: u32, name: *mut c_char, length: u32) {
        let mut processes = now.scenario.gpus.iter().flat_map(|gpu| &gpu.processes);
        let process = processes.find(|process| process.pid == pid).ok_or(NOT_FOUND)?;
        put_text(name, length, &process.name)
    }
    fn nvmlDeviceGetCount(now, count: *mut u32) { put(count, now.visible().len() as u32) }
    fn nvmlDeviceGetCount_v2(now, count: *mut u32) { put(count, now.visible().len() as u32) }
    fn nvmlDeviceGetHandleByIndex(now, index: u32, device: *mut Device) {
        by_index(now, index, device)
    }
    fn nvmlDeviceGetHandleByIndex_v2(now, index: u32, device: *mut Device) {
        by_index(now, index, device)
    }
    fn nvmlDeviceGetHandleByUUID(now, uuid: *const c_char, device: *mut Device) {
        let uuid = text(uuid)?;
        by(now, device, |index| now.scenario.uuid(index) == uuid)
    }
    fn nvmlDeviceGetHandleBySerial(now, serial: *const c_char, device: *mut Device) {
        let serial = text(serial)?;
        by(now, device, |index| crate::device::serial(now, index).is_ok_and(|own| own == serial))
    }
    fn nvmlDeviceGetHandleByPciBusId(now, address: *const c_char, device: *mut Device) {
        by_address(now, text(address)?, device)
    }
    fn nvmlDeviceGetHandleByPciBusId_v2(now, address: *const c_char, device: *mut Device) {
        by_address(now, text(address)?, device)
    }
}

fn by_index(now: &Now, index: u32, device: *mut Device) -> Answer {
    let index = *now.visible().get(index as usize).ok_or(INVALID_ARGUMENT)?;
    hand_out(now, index, device)
}

fn by_address(now: &Now, address: &str, device: *mut Device) -> Answer {
    let address = simgpu::scenario::parse_address(address).ok_or(INVALID_ARGUMENT)?;
    by(now, device, |index| now.scenario.pci(index) == address)
}

fn by(now: &Now, device: *mut Device, is_it: impl Fn(usize) -> bool) -> Answer {
    let index = now.visible().into_iter().find(|index| is_it(*index)).ok_or(NOT_FOUND)?;
    hand_out(now, index, device)
}

fn hand_out(now: &Now, index: usize, device: *mut Device) -> Answer {
    answer::check_gpu(now, index, "nvmlDeviceGetHandleByIndex_v2")?;
    put(device, handle(index))
}

/// Handle of a GPU of the scenario.
pub(crate) fn handle(index: usize) -> Device {
    std::ptr::without_provenance_mut(FIRST_HANDLE + index)
}

pub(crate) fn text<'a>(text: *const c_char) -> Result<&'a str, Code> {
    if text.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: NVML's contract: a C string that lives during the call, and the result is only used
    // during the call.
    unsafe { CStr::from_ptr(text) }.to_str().map_err(|_error| INVALID_ARGUMENT)
}
