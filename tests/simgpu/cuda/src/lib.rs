//! A simulated `libcuda.so.1`: initialisation, versions, devices, peer access, contexts, memory and
//! copies of the CUDA driver interface over the scenario of the crate `simgpu`. There are no kernels
//! and no private export tables, so nothing computes: a program that needs them fails.
#![allow(non_snake_case, reason = "names of C functions")]

mod memory;
mod pinned;

use std::{
    cell::RefCell,
    env,
    ffi::{c_char, c_int, c_uint, c_void},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use simgpu::{
    live,
    scenario::{P2p, Scenario},
};

/// `CUresult`.
type Code = c_uint;
/// A call's own answer.
type Answer = Result<(), Code>;

const INVALID_VALUE: Code = 1;
const NOT_INITIALIZED: Code = 3;
const NO_DEVICE: Code = 100;
const INVALID_DEVICE: Code = 101;
const INVALID_CONTEXT: Code = 201;
const PEER_ACCESS_ALREADY_ENABLED: Code = 704;

const MIB: usize = 1 << 20;
/// Value of the first device's context.
const FIRST_CONTEXT: usize = 0x2000;

static INITIALISED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Contexts of this thread, the current one last.
    static CONTEXTS: RefCell<Vec<*mut c_void>> = const { RefCell::new(Vec::new()) };
}

/// The host as it is now, and the GPUs that this process sees.
struct Now {
    scenario: Arc<Scenario>,
    visible: Vec<usize>,
}

impl Now {
    /// `CUDA_VISIBLE_DEVICES` counts among the GPUs that `NVIDIA_VISIBLE_DEVICES` leaves; a lost
    /// GPU is no device.
    fn read() -> Result<Now, Code> {
        let scenario = live::current(Now::read as *const c_void).map_err(|_absent| NO_DEVICE)?;
        let all: Vec<usize> = (0..scenario.gpus.len()).collect();
        let list = |name| env::var(name).ok();
        let allotted = scenario.visible(&all, list("NVIDIA_VISIBLE_DEVICES").as_deref());
        let mut visible = scenario.visible(&allotted, list("CUDA_VISIBLE_DEVICES").as_deref());
        visible.retain(|index| !scenario.gpus[*index].lost);
        visible.truncate(scenario.cuda.count.map_or(usize::MAX, |count| count as usize));
        Ok(Now { scenario, visible })
    }

    fn gpu(&self, device: c_int) -> Result<usize, Code> {
        let position = usize::try_from(device).map_err(|_negative| INVALID_DEVICE)?;
        self.visible.get(position).copied().ok_or(INVALID_DEVICE)
    }

    fn driver(&self) -> u32 {
        self.scenario.cuda.driver.unwrap_or(self.scenario.cuda_driver)
    }

    fn current(&self) -> Result<usize, Code> {
        let context = CONTEXTS.with_borrow(|contexts| contexts.last().copied());
        self.gpu(device_of(context.unwrap_or(std::ptr::null_mut()))?)
    }
}

fn context_of(device: c_int) -> *mut c_void {
    std::ptr::without_provenance_mut(FIRST_CONTEXT + device as usize)
}

fn device_of(context: *mut c_void) -> Result<c_int, Code> {
    let device = context.addr().checked_sub(FIRST_CONTEXT).ok_or(INVALID_CONTEXT)?;
    c_int::try_from(device).map_err(|_large| INVALID_CONTEXT)
}

/// Errors and delays that the scenario demands, then the call's own answer.
fn answer(call: &str, own: impl FnOnce(&Now) -> Answer) -> Code {
    let result = Now::read().and_then(|now| {
        if let Some(delay) = now.scenario.cuda.delays_ms.get(call) {
            thread::sleep(Duration::from_millis(*delay));
        }
        match now.scenario.cuda.errors.get(call) {
            Some(code) => Err(*code),
            None => own(&now),
        }
    });
    result.err().unwrap_or(0)
}

/// The same for calls that need `cuInit`.
fn ready(call: &str, own: impl FnOnce(&Now) -> Answer) -> Code {
    if !INITIALISED.load(Ordering::SeqCst) {
        return NOT_INITIALIZED;
    }
    answer(call, own)
}

fn put<T>(place: *mut T, value: T) -> Answer {
    if place.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: CUDA's contract: a pointer that is not null points to a writable `T`.
    unsafe { place.write_unaligned(value) };
    Ok(())
}

fn put_text(place: *mut c_char, length: c_int, text: &str) -> Answer {
    let room = usize::try_from(length).map_err(|_negative| INVALID_VALUE)?;
    if place.is_null() || room == 0 {
        return Err(INVALID_VALUE);
    }
    let kept = text.len().min(room - 1);
    // SAFETY: CUDA's contract: `place` has `length` writable bytes; `kept` and the end fit.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast::<c_char>(), place, kept);
        place.add(kept).write(0);
    }
    Ok(())
}

/// `GPU-xxxxxxxx-...` as 16 bytes.
fn uuid_bytes(uuid: &str) -> [u8; 16] {
    let digits: String = uuid.trim_start_matches("GPU-").replace('-', "");
    let mut bytes = [0; 16];
    for (place, byte) in bytes.iter_mut().enumerate() {
        let digits = digits.get(2 * place..2 * place + 2).unwrap_or("00");
        *byte = u8::from_str_radix(digits, 16).unwrap_or(0);
    }
    bytes
}

/// `CUdevice_attribute`: those that clients ask before they compute.
fn attribute(now: &Now, gpu: usize, attribute: c_int) -> Result<c_int, Code> {
    let profile = now.scenario.gpus[gpu].profile();
    let (domain, bus, device) = now.scenario.pci(gpu);
    Ok(match attribute {
        1..=3 => 1024,
        10 => 32,
        13 => profile.clocks_mhz.0.cast_signed() * 1000,
        16 => profile.multiprocessors,
        20 => now.scenario.gpus[gpu].compute_mode.cast_signed(),
        32 => c_int::from(now.scenario.gpus[gpu].ecc.unwrap_or(profile.ecc)),
        33 => bus.cast_signed(),
        34 => device.cast_signed(),
        36 => profile.clocks_mhz.1.cast_signed() * 1000,
        41 => 1,
        50 => domain.cast_signed(),
        75 => profile.compute_capability.0,
        76 => profile.compute_capability.1,
        132 => c_int::from(profile.fabric),
        _ => 0,
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuInit(flags: c_uint) -> Code {
    answer("cuInit", |now| {
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        if let Some(code) = now.scenario.cuda.init_error {
            return Err(code);
        }
        if now.visible.is_empty() {
            return Err(NO_DEVICE);
        }
        INITIALISED.store(true, Ordering::SeqCst);
        Ok(())
    })
}

/// Works without `cuInit`, as the real one does.
#[unsafe(no_mangle)]
extern "C" fn cuDriverGetVersion(version: *mut c_int) -> Code {
    answer("cuDriverGetVersion", |now| put(version, now.driver().cast_signed()))
}

macro_rules! calls {
    ($(fn $name:ident($now:ident $(, $argument:ident: $type:ty)*) $body:block)*) => { $(
        #[unsafe(no_mangle)]
        extern "C" fn $name($($argument: $type),*) -> Code {
            ready(stringify!($name), |$now| $body)
        }
    )* };
}

calls! {
    fn cuDeviceGetCount(now, count: *mut c_int) { put(count, now.visible.len() as c_int) }
    fn cuDeviceGet(now, device: *mut c_int, ordinal: c_int) {
        now.gpu(ordinal)?;
        put(device, ordinal)
    }
    fn cuDeviceGetName(now, name: *mut c_char, length: c_int, device: c_int) {
        put_text(name, length, now.scenario.gpus[now.gpu(device)?].profile().name)
    }
    fn cuDeviceGetUuid(now, uuid: *mut [u8; 16], device: c_int) {
        put(uuid, uuid_bytes(&now.scenario.uuid(now.gpu(device)?)))
    }
    fn cuDeviceGetUuid_v2(now, uuid: *mut [u8; 16], device: c_int) {
        put(uuid, uuid_bytes(&now.scenario.uuid(now.gpu(device)?)))
    }
    fn cuDeviceTotalMem(now, bytes: *mut usize, device: c_int) { total(now, bytes, device) }
    fn cuDeviceTotalMem_v2(now, bytes: *mut usize, device: c_int) { total(now, bytes, device) }
    fn cuDeviceComputeCapability(now, major: *mut c_int, minor: *mut c_int, device: c_int) {
        let capability = now.scenario.gpus[now.gpu(device)?].profile().compute_capability;
        put(major, capability.0)?;
        put(minor, capability.1)
    }
    fn cuDeviceGetAttribute(now, value: *mut c_int, which: c_int, device: c_int) {
        put(value, attribute(now, now.gpu(device)?, which)?)
    }
    fn cuDeviceGetPCIBusId(now, address: *mut c_char, length: c_int, device: c_int) {
        let (domain, bus, slot) = now.scenario.pci(now.gpu(device)?);
        put_text(address, length, &format!("{domain:04x}:{bus:02x}:{slot:02x}.0"))
    }
    fn cuDeviceCanAccessPeer(now, can: *mut c_int, device: c_int, peer: c_int) {
        let (a, b) = (now.gpu(device)?, now.gpu(peer)?);
        put(can, c_int::from(a != b && now.scenario.peer(a, b) == P2p::Ok))
    }
    fn cuDeviceGetP2PAttribute(now, value: *mut c_int, which: c_int, device: c_int, peer: c_int) {
        let (a, b) = (now.gpu(device)?, now.gpu(peer)?);
        // 1 performance rank, 2 access, 3 native atomics, 4 CUDA arrays.
        let works = now.scenario.peer(a, b) == P2p::Ok;
        put(value, c_int::from(which != 1 && works))
    }
    fn cuMemGetInfo(now, free: *mut usize, total: *mut usize) { information(now, free, total) }
    fn cuMemGetInfo_v2(now, free: *mut usize, total: *mut usize) { information(now, free, total) }
    fn cuMemAlloc_v2(now, address: *mut u64, bytes: usize) {
        put(address, memory::allocate(now, now.current()?, bytes as u64)?)
    }
    fn cuMemFree_v2(_now, address: u64) { memory::free(address) }
    fn cuMemHostAlloc(now, begin: *mut *mut c_void, bytes: usize, _flags: c_uint) {
        now.current()?;
        put(begin, pinned::allocate(bytes)?)
    }
    fn cuMemFreeHost(_now, begin: *mut c_void) { pinned::free(begin) }
    fn cuMemcpyHtoD_v2(now, to: u64, from: *const c_void, bytes: usize) {
        now.current()?;
        if from.is_null() { return Err(INVALID_VALUE) }
        // SAFETY: CUDA's contract: `from` points to so many readable bytes.
        let mut sent = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), bytes) }.to_vec();
        memory::spoil(now, "cuMemcpyHtoD_v2", None, memory::gpu_at(to)?, &mut sent);
        memory::write(to, &sent)
    }
    fn cuMemcpyDtoH_v2(now, to: *mut c_void, from: u64, bytes: usize) {
        now.current()?;
        if to.is_null() { return Err(INVALID_VALUE) }
        let mut sent = memory::read(from, bytes)?;
        memory::spoil(now, "cuMemcpyDtoH_v2", None, memory::gpu_at(from)?, &mut sent);
        // SAFETY: CUDA's contract: `to` points to so many writable bytes.
        unsafe { std::ptr::copy_nonoverlapping(sent.as_ptr(), to.cast::<u8>(), bytes) };
        Ok(())
    }
    fn cuMemcpyPeer(
        now, to: u64, to_context: *mut c_void, from: u64, from_context: *mut c_void, bytes: usize
    ) {
        let gpus = (now.gpu(device_of(from_context)?)?, now.gpu(device_of(to_context)?)?);
        if gpus != (memory::gpu_at(from)?, memory::gpu_at(to)?) { return Err(INVALID_VALUE) }
        let mut sent = memory::read(from, bytes)?;
        memory::spoil(now, "cuMemcpyPeer", Some(gpus.0), gpus.1, &mut sent);
        memory::write(to, &sent)
    }
    fn cuCtxDisablePeerAccess(now, peer: *mut c_void) {
        now.current()?;
        now.gpu(device_of(peer)?).map(drop)
    }
    fn cuDevicePrimaryCtxRetain(now, context: *mut *mut c_void, device: c_int) {
        now.gpu(device)?;
        put(context, context_of(device))
    }
    fn cuDevicePrimaryCtxRelease(now, device: c_int) { now.gpu(device).map(drop) }
    fn cuDevicePrimaryCtxRelease_v2(now, device: c_int) { now.gpu(device).map(drop) }
    fn cuCtxCreate(now, context: *mut *mut c_void, _flags: c_uint, device: c_int) {
        create(now, context, device)
    }
    fn cuCtxCreate_v2(now, context: *mut *mut c_void, _flags: c_uint, device: c_int) {
        create(now, context, device)
    }
    fn cuCtxDestroy(_now, context: *mut c_void) { destroy(context) }
    fn cuCtxDestroy_v2(_now, context: *mut c_void) { destroy(context) }
    fn cuCtxSetCurrent(_now, context: *mut c_void) {
        CONTEXTS.with_borrow_mut(|contexts| {
            contexts.pop();
            if !context.is_null() { contexts.push(context) }
        });
        Ok(())
    }
    fn cuCtxGetCurrent(_now, context: *mut *mut c_void) {
        let current = CONTEXTS.with_borrow(|contexts| contexts.last().copied());
        put(context, current.unwrap_or(std::ptr::null_mut()))
    }
    fn cuCtxPushCurrent_v2(_now, context: *mut c_void) {
        device_of(context)?;
        CONTEXTS.with_borrow_mut(|contexts| contexts.push(context));
        Ok(())
    }
    fn cuCtxPopCurrent_v2(_now, context: *mut *mut c_void) {
        let popped = CONTEXTS.with_borrow_mut(Vec::pop).ok_or(INVALID_CONTEXT)?;
        put(context, popped)
    }
    fn cuCtxGetDevice(now, device: *mut c_int) {
        now.current()?;
        let context = CONTEXTS.with_borrow(|contexts| contexts.last().copied());
        put(device, device_of(context.ok_or(INVALID_CONTEXT)?)?)
    }
    fn cuCtxSynchronize(now) { now.current().map(drop) }
    fn cuCtxEnablePeerAccess(now, peer: *mut c_void, _flags: c_uint) {
        let (own, other) = (now.current()?, now.gpu(device_of(peer)?)?);
        if own == other { return Err(PEER_ACCESS_ALREADY_ENABLED) }
        if now.scenario.peer(own, other) == P2p::Ok { Ok(()) } else { Err(217) }
    }
}

fn total(now: &Now, bytes: *mut usize, device: c_int) -> Answer {
    let profile = now.scenario.gpus[now.gpu(device)?].profile();
    put(bytes, (profile.memory_mib - profile.reserved_mib) as usize * MIB)
}

fn information(now: &Now, free: *mut usize, total: *mut usize) -> Answer {
    let current = now.current()?;
    let profile = now.scenario.gpus[current].profile();
    put(free, memory::free_bytes(now, current) as usize)?;
    put(total, (profile.memory_mib - profile.reserved_mib) as usize * MIB)
}

fn create(now: &Now, context: *mut *mut c_void, device: c_int) -> Answer {
    now.gpu(device)?;
    CONTEXTS.with_borrow_mut(|contexts| contexts.push(context_of(device)));
    put(context, context_of(device))
}

fn destroy(context: *mut c_void) -> Answer {
    device_of(context)?;
    CONTEXTS.with_borrow_mut(|contexts| contexts.retain(|other| *other != context));
    Ok(())
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorName(code: Code, name: *mut *const c_char) -> Code {
    let text = match code {
        0 => c"CUDA_SUCCESS",
        1 => c"CUDA_ERROR_INVALID_VALUE",
        2 => c"CUDA_ERROR_OUT_OF_MEMORY",
        3 => c"CUDA_ERROR_NOT_INITIALIZED",
        34 => c"CUDA_ERROR_STUB_LIBRARY",
        46 => c"CUDA_ERROR_DEVICE_UNAVAILABLE",
        100 => c"CUDA_ERROR_NO_DEVICE",
        101 => c"CUDA_ERROR_INVALID_DEVICE",
        201 => c"CUDA_ERROR_INVALID_CONTEXT",
        802 => c"CUDA_ERROR_SYSTEM_NOT_READY",
        803 => c"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
        804 => c"CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
        999 => c"CUDA_ERROR_UNKNOWN",
        _ => return INVALID_VALUE,
    };
    put(name, text.as_ptr()).err().unwrap_or(0)
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorString(code: Code, text: *mut *const c_char) -> Code {
    let message = match code {
        0 => c"no error",
        1 => c"invalid argument",
        2 => c"out of memory",
        3 => c"initialization error",
        34 => c"CUDA driver is a stub library",
        46 => c"CUDA-capable device(s) is/are busy or unavailable",
        100 => c"no CUDA-capable device is detected",
        101 => c"invalid device ordinal",
        201 => c"invalid device context",
        802 => c"system not yet initialized",
        803 => c"system has unsupported display driver / cuda driver combination",
        804 => c"forward compatibility was attempted on non supported HW",
        999 => c"unknown error",
        _ => return INVALID_VALUE,
    };
    put(text, message.as_ptr()).err().unwrap_or(0)
}
