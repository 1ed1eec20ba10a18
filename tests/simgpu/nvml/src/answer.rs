//! How every call is answered: is NVML initialised, does the handle exist, does the scenario
//! demand an error; then the call's own answer.

use std::{
    env,
    ffi::{c_char, c_void},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use simgpu::{
    Value,
    live::{self, Absent},
    scenario::{Gpu, Scenario},
};

use crate::layout::Device;

/// `nvmlReturn_t`.
pub(crate) type Code = u32;
/// A call's own answer.
pub(crate) type Answer = Result<(), Code>;

pub(crate) const SUCCESS: Code = 0;
pub(crate) const UNINITIALIZED: Code = 1;
pub(crate) const INVALID_ARGUMENT: Code = 2;
pub(crate) const NOT_SUPPORTED: Code = 3;
pub(crate) const NO_PERMISSION: Code = 4;
pub(crate) const NOT_FOUND: Code = 6;
pub(crate) const INSUFFICIENT_SIZE: Code = 7;
pub(crate) const DRIVER_NOT_LOADED: Code = 9;
pub(crate) const TIMEOUT: Code = 10;
pub(crate) const GPU_IS_LOST: Code = 15;
pub(crate) const ARGUMENT_VERSION_MISMATCH: Code = 25;
pub(crate) const UNKNOWN: Code = 999;

/// Handle of the scenario's first GPU.
pub(crate) const FIRST_HANDLE: usize = 0x1000;

static INITIALISED: AtomicU32 = AtomicU32::new(0);

/// The host as it is now.
pub(crate) struct Now {
    pub(crate) scenario: Arc<Scenario>,
}

impl Now {
    pub(crate) fn gpu(&self, index: usize) -> &Gpu {
        &self.scenario.gpus[index]
    }

    /// Scenario indices of the GPUs that `NVIDIA_VISIBLE_DEVICES` lets this process see.
    pub(crate) fn visible(&self) -> Vec<usize> {
        let all: Vec<usize> = (0..self.scenario.gpus.len()).collect();
        self.scenario.visible(&all, env::var("NVIDIA_VISIBLE_DEVICES").ok().as_deref())
    }

    /// Changes a GPU for all clients, as a setting in the kernel would.
    pub(crate) fn keep(&self, index: usize, field: &str, value: &Value) -> Answer {
        live::keep(now as *const c_void, index, field, value).map_err(|_absent| UNKNOWN)
    }

    /// Scenario index behind a handle.
    pub(crate) fn index(&self, device: Device) -> Result<usize, Code> {
        let index = device.addr().checked_sub(FIRST_HANDLE).ok_or(INVALID_ARGUMENT)?;
        self.visible().contains(&index).then_some(index).ok_or(INVALID_ARGUMENT)
    }
}

/// The GPU that a call is about.
pub(crate) struct This {
    pub(crate) now: Now,
    pub(crate) index: usize,
}

impl This {
    pub(crate) fn gpu(&self) -> &Gpu {
        self.now.gpu(self.index)
    }

    pub(crate) fn profile(&self) -> &'static simgpu::profile::Profile {
        self.gpu().profile()
    }
}

fn now() -> Result<Now, Code> {
    match live::current(now as *const c_void) {
        Ok(scenario) => Ok(Now { scenario }),
        Err(Absent::NoFile) => Err(DRIVER_NOT_LOADED),
        Err(Absent::Invalid) => Err(UNKNOWN),
    }
}

/// `nvmlInit`: counts, so that as many shutdowns are needed.
pub(crate) fn initialise(call: &str) -> Code {
    let opened = now().and_then(|now| {
        sleep(now.scenario.delays_ms.get(call));
        now.scenario.init_error.map_or(Ok(()), Err)
    });
    if let Err(code) = opened {
        return code;
    }
    INITIALISED.fetch_add(1, Ordering::SeqCst);
    SUCCESS
}

pub(crate) fn shut_down() -> Code {
    let one_less = |count: u32| count.checked_sub(1);
    match INITIALISED.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less) {
        Ok(_before) => SUCCESS,
        Err(_zero) => UNINITIALIZED,
    }
}

/// A call about the host.
pub(crate) fn of_host(call: &str, answer: impl FnOnce(&Now) -> Answer) -> Code {
    let result = initialised().and_then(|now| {
        sleep(now.scenario.delays_ms.get(call));
        demanded(now.scenario.errors.get(call))?;
        answer(&now)
    });
    code(result)
}

/// A call about one GPU.
pub(crate) fn of_gpu(call: &str, device: Device, answer: impl FnOnce(&This) -> Answer) -> Code {
    let result = initialised().and_then(|now| {
        let index = now.index(device)?;
        check_gpu(&now, index, call)?;
        answer(&This { now, index })
    });
    code(result)
}

/// Errors and delays that the scenario demands of a call on a GPU.
pub(crate) fn check_gpu(now: &Now, index: usize, call: &str) -> Answer {
    let gpu = now.gpu(index);
    sleep(gpu.delays_ms.get(call));
    if gpu.lost {
        return Err(GPU_IS_LOST);
    }
    demanded(gpu.errors.get(call).or_else(|| gpu.errors.get("*")))
}

fn initialised() -> Result<Now, Code> {
    if INITIALISED.load(Ordering::SeqCst) == 0 {
        return Err(UNINITIALIZED);
    }
    now()
}

fn demanded(error: Option<&u32>) -> Answer {
    error.map_or(Ok(()), |code| Err(*code))
}

fn sleep(milliseconds: Option<&u64>) {
    if let Some(milliseconds) = milliseconds {
        thread::sleep(Duration::from_millis(*milliseconds));
    }
}

fn code(answer: Answer) -> Code {
    answer.err().unwrap_or(SUCCESS)
}

/// Writes one answer; a null pointer is the caller's mistake.
pub(crate) fn put<T>(place: *mut T, value: T) -> Answer {
    if place.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: NVML's contract: a pointer that is not null points to a writable `T`.
    unsafe { place.write_unaligned(value) };
    Ok(())
}

/// Writes a struct that starts with its version word, which must be one of `accepted`.
pub(crate) fn put_versioned<T>(place: *mut T, accepted: u32, value: T) -> Answer {
    if asked_version(place.cast_const().cast())? != accepted {
        return Err(ARGUMENT_VERSION_MISMATCH);
    }
    put(place, value)
}

/// The version word that the caller set.
pub(crate) fn asked_version(place: *const c_void) -> Result<u32, Code> {
    if place.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: NVML's contract: a pointer that is not null points to a struct whose first word is
    // its version.
    Ok(unsafe { place.cast::<u32>().read_unaligned() })
}

/// Writes a C string into a buffer of `length` bytes.
pub(crate) fn put_text(place: *mut c_char, length: u32, text: &str) -> Answer {
    if place.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    if (length as usize) <= text.len() {
        return Err(INSUFFICIENT_SIZE);
    }
    // SAFETY: NVML's contract: `place` has `length` writable bytes, and the text with its end
    // fits; the text does not overlap a caller's buffer.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast::<c_char>(), place, text.len());
        place.add(text.len()).write(0);
    }
    Ok(())
}

/// A C string in an array.
pub(crate) fn text_array<const N: usize>(text: &str) -> [c_char; N] {
    let mut array = [0; N];
    for (slot, byte) in array[..N - 1].iter_mut().zip(text.bytes()) {
        *slot = byte as c_char;
    }
    array
}
