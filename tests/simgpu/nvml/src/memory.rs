//! Memory of one GPU: size, errors, repairs.

use crate::{
    answer::{
        Answer, Code, INSUFFICIENT_SIZE, INVALID_ARGUMENT, NOT_SUPPORTED, This, put, put_versioned,
    },
    calls::gpu_calls,
    layout::{EccCounts, Memory, MemoryV2, RemapHistogram, SramErrors, version},
};

const MIB: u64 = 1 << 20;

/// Whether the product has error correction at all: data-centre GPUs and the largest others do.
/// `nvmlMemoryErrorType_t`: 0 corrected, 1 uncorrected.
fn count(this: &This, kind: u32) -> Result<u64, Code> {
    if !this.gpu().ecc.unwrap_or(this.profile().ecc) {
        return Err(NOT_SUPPORTED);
    }
    match kind {
        0 => Ok(this.gpu().ecc_corrected),
        1 => Ok(this.gpu().ecc_unc),
        _ => Err(INVALID_ARGUMENT),
    }
}

fn remapping(this: &This) -> Result<[u32; 4], Code> {
    (this.profile().remap_banks != 0).then_some(this.gpu().remap).ok_or(NOT_SUPPORTED)
}

/// `nvmlPageRetirementCause_t`: 0 many single-bit errors, 1 a double-bit error.
fn retired(this: &This, cause: u32) -> Result<u32, Code> {
    if !this.profile().retires_pages {
        return Err(NOT_SUPPORTED);
    }
    match cause {
        0 | 1 => Ok(this.gpu().retired[cause as usize]),
        _ => Err(INVALID_ARGUMENT),
    }
}

/// Fills arrays whose size the caller learns from a first call with too little room.
fn put_pages(count: *mut u32, pages: u32, arrays: &[*mut u64]) -> Answer {
    let room = room(count)?;
    put(count, pages)?;
    if room < pages {
        return Err(INSUFFICIENT_SIZE);
    }
    for array in arrays.iter().filter(|array| !array.is_null()) {
        for page in 0..pages {
            // SAFETY: NVML's contract: the arrays have as many elements as `count` said.
            unsafe { array.add(page as usize).write(0x1000 * (u64::from(page) + 1)) };
        }
    }
    Ok(())
}

/// How many elements the caller's array has.
pub(crate) fn room(count: *mut u32) -> Result<u32, Code> {
    if count.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: NVML's contract: a pointer that is not null points to a count.
    Ok(unsafe { count.read() })
}

gpu_calls! {
    fn nvmlDeviceGetMemoryInfo(this, memory: *mut Memory) {
        let (total, reserved) = (this.profile().memory_mib, this.profile().reserved_mib);
        let used = this.gpu().used_mib() + reserved;
        put(memory, Memory { total: total * MIB, free: (total - used) * MIB, used: used * MIB })
    }
    fn nvmlDeviceGetMemoryInfo_v2(this, memory: *mut MemoryV2) {
        let (total, reserved) = (this.profile().memory_mib, this.profile().reserved_mib);
        let used = this.gpu().used_mib();
        let version = version::<MemoryV2>(2);
        put_versioned(memory, version, MemoryV2 {
            version,
            total: total * MIB,
            reserved: reserved * MIB,
            free: (total - reserved - used) * MIB,
            used: used * MIB,
        })
    }
    fn nvmlDeviceGetBAR1MemoryInfo(this, memory: *mut Memory) {
        let total = this.profile().bar1_mib * MIB;
        put(memory, Memory { total, free: total - MIB, used: MIB })
    }
    fn nvmlDeviceGetEccMode(this, current: *mut u32, pending: *mut u32) {
        let now = this.gpu().ecc.unwrap_or(this.profile().ecc);
        put(current, u32::from(now))?;
        put(pending, u32::from(this.gpu().ecc_pending.unwrap_or(now)))
    }
    fn nvmlDeviceGetDefaultEccMode(this, default: *mut u32) {
        put(default, u32::from(this.profile().ecc))
    }
    fn nvmlDeviceGetTotalEccErrors(this, kind: u32, _counter: u32, errors: *mut u64) {
        put(errors, count(this, kind)?)
    }
    fn nvmlDeviceGetMemoryErrorCounter(this, kind: u32, _counter: u32, place: u32, errors: *mut u64) {
        // Place 2 is the device's memory: all errors happen there.
        let all = count(this, kind)?;
        put(errors, if place == 2 { all } else { 0 })
    }
    fn nvmlDeviceGetDetailedEccErrors(this, kind: u32, _counter: u32, errors: *mut EccCounts) {
        let device_memory = count(this, kind)?;
        put(errors, EccCounts { l1: 0, l2: 0, device_memory, registers: 0 })
    }
    fn nvmlDeviceGetSramEccErrorStatus(this, status: *mut SramErrors) {
        count(this, 0)?;
        let version = version::<SramErrors>(1);
        let (aggregate, volatile, buckets) = ([0; 3], [0; 3], [0; 5]);
        put_versioned(status, version, SramErrors {
            version, aggregate, volatile, buckets, threshold_exceeded: 0,
        })
    }
    fn nvmlDeviceGetRetiredPages(this, cause: u32, count: *mut u32, addresses: *mut u64) {
        put_pages(count, retired(this, cause)?, &[addresses])
    }
    fn nvmlDeviceGetRetiredPages_v2(this, cause: u32, count: *mut u32, addresses: *mut u64, times: *mut u64) {
        put_pages(count, retired(this, cause)?, &[addresses, times])
    }
    fn nvmlDeviceGetRetiredPagesPendingStatus(this, pending: *mut u32) {
        retired(this, 0)?;
        put(pending, this.gpu().retired[2])
    }
    fn nvmlDeviceGetRemappedRows(this, corrected: *mut u32, uncorrected: *mut u32, pending: *mut u32, failed: *mut u32) {
        let rows = remapping(this)?;
        put(corrected, rows[0])?;
        put(uncorrected, rows[1])?;
        put(pending, rows[2])?;
        put(failed, rows[3])
    }
    fn nvmlDeviceGetRowRemapperHistogram(this, banks: *mut RemapHistogram) {
        let rows = remapping(this)?;
        let used = rows[0] + rows[1];
        let max = this.profile().remap_banks.saturating_sub(used);
        put(banks, RemapHistogram { max, high: used, partial: 0, low: 0, none: 0 })
    }
}
