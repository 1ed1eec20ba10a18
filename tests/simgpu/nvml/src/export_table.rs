//! The private interface that `nvidia-smi` takes beside the public one: a table of functions, found
//! by place. Places are the same in 470, 535 and 550, which were run against this; 580 has some more.
//!
//! Nobody documents it. A function whose meaning is not known says "not supported", so the client
//! prints `N/A` there, and no value is made up.

use std::{
    ffi::{c_char, c_void},
    mem,
};

use simgpu::scenario::ProcessKind;

use crate::{
    answer::{self, Code, INVALID_ARGUMENT, NOT_FOUND, NOT_SUPPORTED, Now, SUCCESS, put},
    layout::{Device, ProcessPrivate},
    processes,
    system::{nvmlDeviceGetHandleByIndex_v2, text},
};

/// The clients that were run ask for places up to 249.
const PLACES: usize = 400;

/// Name of the table, `6c3efec4-8fc9-4e6c-a327-ee696e12f7c4`, as it lies in memory.
const NAME: [u8; 16] = [
    0xc4, 0xfe, 0x3e, 0x6c, 0xc9, 0x8f, 0x6c, 0x4e, 0xa3, 0x27, 0xee, 0x69, 0x6e, 0x12, 0xf7, 0xc4,
];

/// Any function of the table: the client knows by the place what it takes.
type Function = extern "C" fn() -> Code;

/// Its size in bytes, then the functions; the first has place 1.
#[repr(C)]
struct Table {
    bytes: usize,
    functions: [Function; PLACES],
}

static TABLE: Table = Table { bytes: size_of::<Table>(), functions: functions() };

const fn functions() -> [Function; PLACES] {
    type Path = extern "C" fn(*const c_char, *const c_char, *mut u32) -> Code;
    type ByIndex = extern "C" fn(u32, *mut Device, u32) -> Code;
    type Processes = extern "C" fn(Device, *mut u32, *mut ProcessPrivate) -> Code;
    let mut all = [unknown as Function; PLACES];
    // SAFETY: functions of the C interface may be kept as one another, and clients call each with
    // what belongs to its place.
    unsafe {
        all[23 - 1] = mem::transmute::<Path, Function>(path);
        all[81 - 1] = mem::transmute::<ByIndex, Function>(handle_by_index);
        all[213 - 1] = mem::transmute::<Processes, Function>(computing);
        all[214 - 1] = mem::transmute::<Processes, Function>(sharing);
        all[215 - 1] = mem::transmute::<Processes, Function>(drawing);
    }
    all
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInternalGetExportTable(table: *mut *const c_void, name: *const [u8; 16]) -> Code {
    if name.is_null() || table.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: a name has 16 bytes, and the pointer is not null.
    if unsafe { name.read_unaligned() } != NAME {
        return NOT_FOUND;
    }
    put(table, (&raw const TABLE).cast()).err().unwrap_or(SUCCESS)
}

extern "C" fn unknown() -> Code {
    NOT_SUPPORTED
}

/// The third argument says which interface the client was built for.
extern "C" fn handle_by_index(index: u32, device: *mut Device, _interface: u32) -> Code {
    nvmlDeviceGetHandleByIndex_v2(index, device)
}

extern "C" fn computing(device: Device, count: *mut u32, entries: *mut ProcessPrivate) -> Code {
    answer::of_gpu("nvmlDeviceGetComputeRunningProcesses_v3", device, |this| {
        processes::list(this, ProcessKind::C, count, entries, processes::private)
    })
}

extern "C" fn drawing(device: Device, count: *mut u32, entries: *mut ProcessPrivate) -> Code {
    answer::of_gpu("nvmlDeviceGetGraphicsRunningProcesses_v3", device, |this| {
        processes::list(this, ProcessKind::G, count, entries, processes::private)
    })
}

/// Processes that share the GPU through MPS: the simulation has none.
extern "C" fn sharing(device: Device, count: *mut u32, _entries: *mut ProcessPrivate) -> Code {
    answer::of_gpu("nvmlDeviceGetMPSComputeRunningProcesses_v3", device, |_this| put(count, 0))
}

/// How two GPUs reach each other, counted from one switch (0) to across sockets (4).
extern "C" fn path(a: *const c_char, b: *const c_char, level: *mut u32) -> Code {
    answer::of_host("nvmlDeviceGetTopologyCommonAncestor", |now| {
        let (a, b) = (by_address(now, a)?, by_address(now, b)?);
        put(level, (now.scenario.ancestor(a, b) as u32 / 10).saturating_sub(1))
    })
}

fn by_address(now: &Now, address: *const c_char) -> Result<usize, Code> {
    let address = simgpu::scenario::parse_address(text(address)?).ok_or(INVALID_ARGUMENT)?;
    let mut all = now.visible().into_iter();
    all.find(|index| now.scenario.pci(*index) == address).ok_or(NOT_FOUND)
}
