//! Processes on one GPU.

use simgpu::scenario::{Process, ProcessKind};

use crate::{
    answer::{Answer, INSUFFICIENT_SIZE, INVALID_ARGUMENT, This, put, text_array},
    calls::gpu_calls,
    layout::{ProcessPrivate, ProcessV1, ProcessV2},
    memory::room,
};

/// Fills an array whose size the caller learns from a first call with too little room.
pub(crate) fn list<T>(
    this: &This,
    kind: ProcessKind,
    count: *mut u32,
    entries: *mut T,
    entry: impl Fn(&Process) -> T,
) -> Answer {
    let room = room(count)?;
    let processes: Vec<&Process> =
        this.gpu().processes.iter().filter(|process| process.kind == kind).collect();
    put(count, processes.len() as u32)?;
    if (room as usize) < processes.len() {
        return Err(INSUFFICIENT_SIZE);
    }
    if entries.is_null() && !processes.is_empty() {
        return Err(INVALID_ARGUMENT);
    }
    for (place, process) in processes.into_iter().enumerate() {
        // SAFETY: NVML's contract: the array has as many elements as `count` said.
        unsafe { entries.add(place).write_unaligned(entry(process)) };
    }
    Ok(())
}

fn v1(process: &Process) -> ProcessV1 {
    ProcessV1 { pid: process.pid, used_memory: process.mem_mib << 20 }
}

/// Outside of a multi-instance GPU both instances are all ones.
fn v2(process: &Process) -> ProcessV2 {
    ProcessV2 {
        pid: process.pid,
        used_memory: process.mem_mib << 20,
        gpu_instance: u32::MAX,
        compute_instance: u32::MAX,
    }
}

pub(crate) fn private(process: &Process) -> ProcessPrivate {
    ProcessPrivate {
        pid: process.pid,
        used_memory: process.mem_mib << 20,
        gpu_instance: u32::MAX,
        compute_instance: u32::MAX,
        _unused: [0; 8],
        name: text_array(&process.name),
    }
}

gpu_calls! {
    fn nvmlDeviceGetComputeRunningProcesses(this, count: *mut u32, entries: *mut ProcessV1) {
        list(this, ProcessKind::C, count, entries, v1)
    }
    fn nvmlDeviceGetComputeRunningProcesses_v2(this, count: *mut u32, entries: *mut ProcessV2) {
        list(this, ProcessKind::C, count, entries, v2)
    }
    fn nvmlDeviceGetComputeRunningProcesses_v3(this, count: *mut u32, entries: *mut ProcessV2) {
        list(this, ProcessKind::C, count, entries, v2)
    }
    fn nvmlDeviceGetGraphicsRunningProcesses(this, count: *mut u32, entries: *mut ProcessV1) {
        list(this, ProcessKind::G, count, entries, v1)
    }
    fn nvmlDeviceGetGraphicsRunningProcesses_v2(this, count: *mut u32, entries: *mut ProcessV2) {
        list(this, ProcessKind::G, count, entries, v2)
    }
    fn nvmlDeviceGetGraphicsRunningProcesses_v3(this, count: *mut u32, entries: *mut ProcessV2) {
        list(this, ProcessKind::G, count, entries, v2)
    }
    fn nvmlDeviceGetMPSComputeRunningProcesses_v3(_this, count: *mut u32, _entries: *mut ProcessV2) {
        put(count, 0)
    }
}
