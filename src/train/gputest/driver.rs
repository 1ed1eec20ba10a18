//! The calls of the CUDA driver that the tests make, opened at run time: a build without CUDA has
//! them, too.
#![expect(unsafe_code, reason = "the driver is a C library, loaded at run time")]

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    mem::ManuallyDrop,
    ops::{Deref, DerefMut},
    ptr, slice,
};

use libloading::Library;

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) call: String,
    /// `CUresult`; 0 if the call could not be made.
    pub(super) code: u32,
    pub(super) message: String,
}

/// `libcuda.so.1`. It is never unloaded: it starts threads of its own.
pub(super) struct Driver(ManuallyDrop<Library>);

/// The primary context of a GPU, current in this thread while one of its calls is made.
pub(super) struct Context<'d> {
    pub(super) driver: &'d Driver,
    /// Number of the GPU, as CUDA counts.
    pub(super) ordinal: u32,
    device: c_int,
    raw: *mut c_void,
}

/// Memory of a GPU, freed when dropped.
pub(super) struct Memory<'c> {
    context: &'c Context<'c>,
    address: u64,
    bytes: u64,
}

/// Memory of the host that the GPU copies from and to without a detour, freed when dropped.
pub(super) struct Pinned<'c> {
    context: &'c Context<'c>,
    begin: *mut u8,
    bytes: usize,
}

/// Looks a function up, calls it and makes its code a result. The types are those of cuda.h, and
/// the caller's arguments are valid for it.
macro_rules! call {
    ($driver:expr, $name:literal, ($($kind:ty),*), $($argument:expr),*) => {{
        let driver: &Driver = $driver;
        // SAFETY: the function has this signature in cuda.h; pointers among the arguments are to
        // live memory of the stated size, and handles came from the driver.
        let code = unsafe {
            let name = concat!($name, "\0").as_bytes();
            driver.0.get::<unsafe extern "C" fn($($kind),*) -> c_uint>(name)
                .map(|function| function($($argument),*))
        };
        match code {
            Ok(0) => Ok(()),
            Ok(code) => Err(Failed { call: $name.to_owned(), code, message: driver.text(code) }),
            Err(error) => {
                Err(Failed { call: $name.to_owned(), code: 0, message: error.to_string() })
            }
        }
    }};
}

impl Driver {
    pub(super) fn load() -> Result<Driver, Failed> {
        // SAFETY: loading runs the initialisers of the driver's own library, which are made for it.
        let library = unsafe { Library::new("libcuda.so.1") };
        library.map(|library| Driver(ManuallyDrop::new(library))).map_err(|error| {
            // What the loader said stands behind the error of the binding.
            let message = std::error::Error::source(&error)
                .map_or_else(|| error.to_string(), ToString::to_string);
            Failed { call: "dlopen libcuda.so.1".to_owned(), code: 0, message }
        })
    }

    /// The driver's own words for a code.
    fn text(&self, code: c_uint) -> String {
        let mut text: *const c_char = ptr::null();
        // SAFETY: `CUresult cuGetErrorString(CUresult, const char **)`; a text that it gives is a C
        // string that lives as long as the library.
        unsafe {
            let call = self.0.get::<unsafe extern "C" fn(c_uint, *mut *const c_char) -> c_uint>(
                b"cuGetErrorString\0",
            );
            match call {
                Ok(call) if call(code, &raw mut text) == 0 && !text.is_null() => {
                    CStr::from_ptr(text).to_string_lossy().into_owned()
                }
                _ => "the driver has no text for this code".to_owned(),
            }
        }
    }

    pub(super) fn init(&self) -> Result<(), Failed> {
        call!(self, "cuInit", (c_uint), 0)
    }

    pub(super) fn device_count(&self) -> Result<u32, Failed> {
        let mut count: c_int = 0;
        call!(self, "cuDeviceGetCount", (*mut c_int), &raw mut count)?;
        Ok(u32::try_from(count).unwrap_or(0))
    }

    fn device(&self, ordinal: u32) -> Result<c_int, Failed> {
        let mut device: c_int = 0;
        let ordinal = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
        call!(self, "cuDeviceGet", (*mut c_int, c_int), &raw mut device, ordinal)?;
        Ok(device)
    }

    pub(super) fn name(&self, ordinal: u32) -> Result<String, Failed> {
        let (mut text, device) = ([0_u8; 256], self.device(ordinal)?);
        let room = text.as_mut_ptr().cast::<c_char>();
        call!(self, "cuDeviceGetName", (*mut c_char, c_int, c_int), room, 255, device)?;
        Ok(until_zero(&text))
    }

    /// In the form of sysfs.
    pub(super) fn pci_address(&self, ordinal: u32) -> Result<String, Failed> {
        let (mut text, device) = ([0_u8; 64], self.device(ordinal)?);
        let room = text.as_mut_ptr().cast::<c_char>();
        call!(self, "cuDeviceGetPCIBusId", (*mut c_char, c_int, c_int), room, 63, device)?;
        Ok(until_zero(&text).to_ascii_lowercase())
    }

    pub(super) fn context(&self, ordinal: u32) -> Result<Context<'_>, Failed> {
        let device = self.device(ordinal)?;
        let mut raw: *mut c_void = ptr::null_mut();
        let place = &raw mut raw;
        call!(self, "cuDevicePrimaryCtxRetain", (*mut *mut c_void, c_int), place, device)?;
        Ok(Context { driver: self, ordinal, device, raw })
    }
}

fn until_zero(text: &[u8]) -> String {
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    String::from_utf8_lossy(&text[..end]).into_owned()
}

impl Context<'_> {
    fn enter(&self) -> Result<(), Failed> {
        call!(self.driver, "cuCtxSetCurrent", (*mut c_void), self.raw)
    }

    pub(super) fn allocate(&self, bytes: u64) -> Result<Memory<'_>, Failed> {
        self.enter()?;
        let mut address: u64 = 0;
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        call!(self.driver, "cuMemAlloc_v2", (*mut u64, usize), &raw mut address, length)?;
        Ok(Memory { context: self, address, bytes })
    }

    pub(super) fn pinned(&self, bytes: usize) -> Result<Pinned<'_>, Failed> {
        self.enter()?;
        let mut begin: *mut c_void = ptr::null_mut();
        let place = &raw mut begin;
        call!(self.driver, "cuMemHostAlloc", (*mut *mut c_void, usize, c_uint), place, bytes, 0)?;
        // SAFETY: the driver gave `bytes` writable bytes; zeroed, they are initialised.
        unsafe { ptr::write_bytes(begin.cast::<u8>(), 0, bytes) };
        Ok(Pinned { context: self, begin: begin.cast(), bytes })
    }

    fn finish(&self) -> Result<(), Failed> {
        call!(self.driver, "cuCtxSynchronize", (),)
    }

    pub(super) fn copy_to(&self, to: &Memory<'_>, from: &[u8]) -> Result<(), Failed> {
        assert!(from.len() as u64 <= to.bytes, "{} bytes into {}", from.len(), to.bytes);
        self.enter()?;
        let source = from.as_ptr().cast::<c_void>();
        let (to, bytes) = (to.address, from.len());
        call!(self.driver, "cuMemcpyHtoD_v2", (u64, *const c_void, usize), to, source, bytes)?;
        self.finish()
    }

    pub(super) fn copy_from(&self, to: &mut [u8], from: &Memory<'_>) -> Result<(), Failed> {
        assert!(to.len() as u64 <= from.bytes, "{} bytes from {}", to.len(), from.bytes);
        self.enter()?;
        let (target, bytes) = (to.as_mut_ptr().cast::<c_void>(), to.len());
        let from = from.address;
        call!(self.driver, "cuMemcpyDtoH_v2", (*mut c_void, u64, usize), target, from, bytes)?;
        self.finish()
    }

    pub(super) fn can_access(&self, peer: &Context<'_>) -> Result<bool, Failed> {
        let mut can: c_int = 0;
        let (place, own, other) = (&raw mut can, self.device, peer.device);
        call!(self.driver, "cuDeviceCanAccessPeer", (*mut c_int, c_int, c_int), place, own, other)?;
        Ok(can != 0)
    }

    pub(super) fn enable_peer(&self, peer: &Context<'_>) -> Result<(), Failed> {
        const ALREADY: u32 = 704;
        self.enter()?;
        match call!(self.driver, "cuCtxEnablePeerAccess", (*mut c_void, c_uint), peer.raw, 0) {
            Err(Failed { code: ALREADY, .. }) => Ok(()),
            enabled => enabled,
        }
    }

    pub(super) fn disable_peer(&self, peer: &Context<'_>) -> Result<(), Failed> {
        self.enter()?;
        call!(self.driver, "cuCtxDisablePeerAccess", (*mut c_void), peer.raw)
    }

    /// The whole of `from`, which lies here, to `to`, which lies on `peer`.
    pub(super) fn copy_to_peer(
        &self,
        to: &Memory<'_>,
        from: &Memory<'_>,
        peer: &Context<'_>,
    ) -> Result<(), Failed> {
        assert!(from.bytes <= to.bytes, "{} bytes into {}", from.bytes, to.bytes);
        self.enter()?;
        let bytes = usize::try_from(from.bytes).unwrap_or(usize::MAX);
        call!(
            self.driver,
            "cuMemcpyPeer",
            (u64, *mut c_void, u64, *mut c_void, usize),
            to.address,
            peer.raw,
            from.address,
            self.raw,
            bytes
        )?;
        self.finish()
    }
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        // The process ends soon after; a driver that cannot release has said so before.
        let _released = call!(self.driver, "cuDevicePrimaryCtxRelease_v2", (c_int), self.device);
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        let _freed = self
            .context
            .enter()
            .and_then(|()| call!(self.context.driver, "cuMemFree_v2", (u64), self.address));
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        let begin = self.begin.cast::<c_void>();
        let _freed = self
            .context
            .enter()
            .and_then(|()| call!(self.context.driver, "cuMemFreeHost", (*mut c_void), begin));
    }
}

impl Deref for Pinned<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `begin` points to `bytes` initialised bytes that live as long as this does.
        unsafe { slice::from_raw_parts(self.begin, self.bytes) }
    }
}

impl DerefMut for Pinned<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and this is the only reference.
        unsafe { slice::from_raw_parts_mut(self.begin, self.bytes) }
    }
}
