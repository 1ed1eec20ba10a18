//! Event sets: XIDs of the scenario's timeline reach clients that registered for them.

use std::{
    collections::BTreeSet,
    ffi::c_void,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use simgpu::live;

use crate::{
    answer::{Answer, Code, INVALID_ARGUMENT, TIMEOUT, put},
    calls::{gpu_calls, host_calls},
    layout::EventData,
    system::handle,
};

/// `nvmlEventTypeXidCriticalError`.
const XID: u64 = 8;
/// What the simulation can deliver or at least accept.
const SUPPORTED: u64 = 0x1_ffff;

#[derive(Default)]
struct Set {
    gpus: BTreeSet<usize>,
    /// How many XIDs of the timeline were looked at.
    seen: usize,
}

fn with<T>(set: *mut c_void, f: impl FnOnce(&mut Set) -> Result<T, Code>) -> Result<T, Code> {
    if set.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: the only sets that exist were made by nvmlEventSetCreate, and NVML forbids to use
    // one after nvmlEventSetFree.
    let set = unsafe { &*set.cast::<Mutex<Set>>() };
    f(&mut set.lock().unwrap_or_else(PoisonError::into_inner))
}

fn wait(set: *mut c_void, data: *mut EventData, timeout_ms: u32) -> Answer {
    let until = Instant::now() + Duration::from_millis(u64::from(timeout_ms));
    loop {
        let next = with(set, |set| Ok(next(set)))?;
        if let Some(xid) = next {
            return put(
                data,
                EventData {
                    device: handle(xid.gpu),
                    event_type: XID,
                    event_data: xid.xid,
                    gpu_instance: u32::MAX,
                    compute_instance: u32::MAX,
                },
            );
        }
        if until <= Instant::now() {
            return Err(TIMEOUT);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn next(set: &mut Set) -> Option<live::Xid> {
    let xids = live::xids(next as *const c_void);
    while let Some(xid) = xids.get(set.seen) {
        set.seen += 1;
        if set.gpus.contains(&xid.gpu) {
            return Some(*xid);
        }
    }
    None
}

host_calls! {
    fn nvmlEventSetCreate(_now, set: *mut *mut c_void) {
        if set.is_null() { return Err(INVALID_ARGUMENT) }
        put(set, Box::into_raw(Box::new(Mutex::new(Set::default()))).cast())
    }
    fn nvmlEventSetFree(_now, set: *mut c_void) {
        if set.is_null() { return Err(INVALID_ARGUMENT) }
        // SAFETY: made by nvmlEventSetCreate, and not freed before: NVML's contract.
        drop(unsafe { Box::from_raw(set.cast::<Mutex<Set>>()) });
        Ok(())
    }
    fn nvmlEventSetWait(_now, set: *mut c_void, data: *mut EventData, timeout_ms: u32) {
        wait(set, data, timeout_ms)
    }
    fn nvmlEventSetWait_v2(_now, set: *mut c_void, data: *mut EventData, timeout_ms: u32) {
        wait(set, data, timeout_ms)
    }
}

gpu_calls! {
    fn nvmlDeviceRegisterEvents(this, types: u64, set: *mut c_void) {
        with(set, |set| {
            if types & XID != 0 { set.gpus.insert(this.index); }
            Ok(())
        })
    }
    fn nvmlDeviceGetSupportedEventTypes(_this, types: *mut u64) { put(types, SUPPORTED) }
}
