//! A library for `LD_PRELOAD` that kills a process with SIGKILL at its Nth step.
//!
//! Steps are the calls by which a program leaves traces on a disk or in the kernel: `write` to a
//! file, `fsync`, `rename`, `unlink`, `ftruncate`. A death comes before the call; a `write` has a
//! second one, after half of the bytes. The program itself is the real one and knows nothing of it.
//!
//! `QVL_KILLER_AT` is N, counted from 1; `QVL_KILLER_ARGUMENT` a word that the command line must
//! have, so that children live on.

use std::{
    ffi::{c_char, c_int, c_void},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

static STEPS: AtomicU64 = AtomicU64::new(0);
static AT: OnceLock<Option<u64>> = OnceLock::new();

fn at() -> Option<u64> {
    *AT.get_or_init(|| {
        let at = std::env::var("QVL_KILLER_AT").ok()?.parse().ok()?;
        let argument = std::env::var("QVL_KILLER_ARGUMENT").ok()?;
        std::env::args().any(|own| own == argument).then_some(at)
    })
}

/// Whether this is the step to die at.
fn is_now() -> bool {
    at().is_some_and(|at| STEPS.fetch_add(1, Ordering::SeqCst) + 1 == at)
}

fn die() {
    // SAFETY: kill and getpid take numbers and touch no memory.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

/// Whether this is a file, and not a pipe or a terminal.
fn is_file(descriptor: c_int) -> bool {
    // SAFETY: all-zero bytes are valid for this struct of numbers.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: fstat fills the struct that it is given.
    let known = unsafe { libc::fstat(descriptor, &raw mut stat) } == 0;
    known && stat.st_mode & libc::S_IFMT == libc::S_IFREG
}

/// The function of the C library that this one stands before.
macro_rules! next {
    ($name:literal, $kind:ty) => {{
        // SAFETY: dlsym takes a C string; the C library has a function of this name and type.
        unsafe {
            std::mem::transmute::<*mut c_void, $kind>(libc::dlsym(
                libc::RTLD_NEXT,
                concat!($name, "\0").as_ptr().cast::<c_char>(),
            ))
        }
    }};
}

type Write = extern "C" fn(c_int, *const c_void, usize) -> isize;
type OnDescriptor = extern "C" fn(c_int) -> c_int;
type OnPath = extern "C" fn(*const c_char) -> c_int;
type OnPaths = extern "C" fn(*const c_char, *const c_char) -> c_int;
type Truncate = extern "C" fn(c_int, libc::off64_t) -> c_int;

#[unsafe(no_mangle)]
extern "C" fn write(descriptor: c_int, bytes: *const c_void, length: usize) -> isize {
    let write = next!("write", Write);
    if at().is_some() && is_file(descriptor) {
        if is_now() {
            die();
        }
        if is_now() {
            write(descriptor, bytes, length / 2);
            die();
        }
    }
    write(descriptor, bytes, length)
}

#[unsafe(no_mangle)]
extern "C" fn fsync(descriptor: c_int) -> c_int {
    if is_now() {
        die();
    }
    next!("fsync", OnDescriptor)(descriptor)
}

#[unsafe(no_mangle)]
extern "C" fn unlink(path: *const c_char) -> c_int {
    if is_now() {
        die();
    }
    next!("unlink", OnPath)(path)
}

#[unsafe(no_mangle)]
extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    if is_now() {
        die();
    }
    next!("rename", OnPaths)(from, to)
}

#[unsafe(no_mangle)]
extern "C" fn ftruncate64(descriptor: c_int, length: libc::off64_t) -> c_int {
    if is_now() {
        die();
    }
    next!("ftruncate64", Truncate)(descriptor, length)
}
