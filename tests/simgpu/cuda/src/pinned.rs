//! Memory of the host that clients ask the driver for.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    collections::BTreeMap,
    ffi::c_void,
    sync::{Mutex, PoisonError},
};

use super::{Answer, Code, INVALID_VALUE};

/// Sizes of the host memory that clients hold, by address.
static PINNED: Mutex<BTreeMap<usize, Layout>> = Mutex::new(BTreeMap::new());

pub(super) fn allocate(bytes: usize) -> Result<*mut c_void, Code> {
    let layout = Layout::from_size_align(bytes, 4096).map_err(|_large| INVALID_VALUE)?;
    if bytes == 0 {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the size is not 0.
    let begin = unsafe { alloc_zeroed(layout) };
    if begin.is_null() {
        return Err(2);
    }
    PINNED.lock().unwrap_or_else(PoisonError::into_inner).insert(begin.addr(), layout);
    Ok(begin.cast())
}

pub(super) fn free(begin: *mut c_void) -> Answer {
    let mut pinned = PINNED.lock().unwrap_or_else(PoisonError::into_inner);
    let layout = pinned.remove(&begin.addr()).ok_or(INVALID_VALUE)?;
    // SAFETY: this address was given with this layout, and is taken back once.
    unsafe { dealloc(begin.cast(), layout) };
    Ok(())
}
