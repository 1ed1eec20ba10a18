//! One driver call after the other: which one is being made, how long each took, and what its
//! error means.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use nvml_wrapper::error::NvmlError;

use crate::facts::Fact;

/// The driver call in progress. Another thread may look at it, or a listener hears of each call
/// before it is made: if the driver hangs, that is the call to blame.
#[derive(Clone, Default)]
pub struct Progress(Arc<Mutex<State>>);

type Listener = Box<dyn FnMut(&str) + Send>;

#[derive(Default)]
struct State {
    call: String,
    listener: Option<Listener>,
}

impl Progress {
    /// Tells `listener` each call before it is made.
    pub(super) fn to(listener: impl FnMut(&str) + Send + 'static) -> Self {
        let state = State { call: String::new(), listener: Some(Box::new(listener)) };
        Progress(Arc::new(Mutex::new(state)))
    }

    /// The call that was begun last; empty before the first.
    pub fn call(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).call.clone()
    }

    pub(super) fn begin(&self, call: String) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(listener) = &mut state.listener {
            listener(&call);
        }
        state.call = call;
    }
}

/// Makes calls, and remembers the slowest.
pub(super) struct Calls<'a> {
    progress: &'a Progress,
    gpu: Option<u32>,
    slowest: (String, u64),
}

impl<'a> Calls<'a> {
    pub(super) fn new(progress: &'a Progress) -> Self {
        Calls { progress, gpu: None, slowest: (String::new(), 0) }
    }

    /// The calls that follow are about this GPU.
    pub(super) fn about(&mut self, gpu: Option<u32>) {
        self.gpu = gpu;
    }

    /// Name and milliseconds of the slowest call.
    pub(super) fn slowest(self) -> (String, u64) {
        self.slowest
    }

    /// Makes one call.
    pub(super) fn make<T>(&mut self, name: &str, call: impl FnOnce() -> T) -> T {
        let name = match self.gpu {
            Some(gpu) => format!("{name} of GPU {gpu}"),
            None => name.to_owned(),
        };
        self.progress.begin(name.clone());
        let begin = Instant::now();
        let answer = call();
        let took = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        if self.slowest.0.is_empty() || self.slowest.1 < took {
            self.slowest = (name, took);
        }
        answer
    }

    /// What a call gives, as a fact. "Not supported" is unread too.
    pub(super) fn fact<T>(
        &mut self,
        name: &str,
        call: impl FnOnce() -> Result<T, NvmlError>,
    ) -> Fact<T> {
        match self.make(name, call) {
            Ok(value) => Fact::known(value, name),
            Err(error) => unread(error, name),
        }
    }

    /// A feature that a GPU may not have: "not supported" is `None`.
    pub(super) fn optional<T>(
        &mut self,
        name: &str,
        call: impl FnOnce() -> Result<T, NvmlError>,
    ) -> Fact<Option<T>> {
        match self.make(name, call) {
            Ok(value) => Fact::known(Some(value), name),
            Err(NvmlError::NotSupported) => Fact::known(None, name),
            Err(error) => unread(error, name),
        }
    }

    /// A call that some drivers do not have either; "no such function" is `None`, too.
    pub(super) fn if_known<T>(
        &mut self,
        name: &str,
        call: impl FnOnce() -> Result<T, NvmlError>,
    ) -> Fact<Option<T>> {
        match self.make(name, call) {
            Ok(value) => Fact::known(Some(value), name),
            Err(
                NvmlError::NotSupported
                | NvmlError::FunctionNotFound
                | NvmlError::FailedToLoadSymbol(_),
            ) => Fact::known(None, name),
            Err(error) => unread(error, name),
        }
    }
}

/// A fact that an error of NVML leaves unread.
pub(super) fn unread<T>(error: NvmlError, name: &str) -> Fact<T> {
    Fact::unread(Failure::of(error).to_string(), name)
}

/// An error of NVML in the words that a reader may search for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// `nvmlReturn_t`; `None` if NVML was not reached.
    pub(super) code: Option<u32>,
    /// Text.
    pub(super) text: String,
}

impl Failure {
    pub(super) fn of(error: NvmlError) -> Failure {
        let text = error.to_string();
        let is_of_the_binding = matches!(
            error,
            NvmlError::Utf8Error(_)
                | NvmlError::NulError(_)
                | NvmlError::LibloadingError(_)
                | NvmlError::FailedToLoadSymbol(_)
                | NvmlError::StringTooLong { .. }
                | NvmlError::IncorrectBits(_)
                | NvmlError::SetReleaseFailed
                | NvmlError::GetPciInfoFailed
                | NvmlError::PciInfoToCFailed
        );
        if is_of_the_binding {
            return Failure { code: None, text };
        }
        let code = u32::from(error);
        Failure { code: Some(code), text: newer_text(code).map_or(text, str::to_owned) }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.code {
            Some(code) => write!(f, "{} (NVML error {code})", self.text),
            None => f.write_str(&self.text),
        }
    }
}

/// Codes of nvml.h that the binding has no name for.
fn newer_text(code: u32) -> Option<&'static str> {
    match code {
        23 => Some("insufficient resources"),
        24 => Some("the requested frequency is not supported"),
        25 => Some("the driver does not know this version of the argument"),
        26 => Some("the function is deprecated"),
        27 => Some("the system is not ready"),
        28 => Some("no GPU was found"),
        29 => Some("invalid state"),
        30 => Some("this kind of reset is not supported"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_nvml_keeps_its_number() {
        for code in (1..=30).chain([999]) {
            let failure = Failure::of(NvmlError::from(code));
            assert_eq!(failure.code, Some(code));
            assert!(!failure.text.contains("variant"), "{code}: {}", failure.text);
        }
    }

    #[test]
    fn not_supported_is_absent_only_where_a_gpu_may_lack_it() {
        let progress = Progress::default();
        let mut calls = Calls::new(&progress);
        let failed = |code: u32| move || Err::<u32, _>(NvmlError::from(code));
        assert_eq!(calls.optional("f", failed(3)), Fact::known(None, "f"));
        assert!(calls.optional("f", failed(15)).get().is_err());
        assert!(calls.fact("f", failed(3)).get().is_err());
        calls.about(Some(7));
        assert!(calls.fact("g", failed(0xff)).get().is_err());
        assert_eq!(progress.call(), "g of GPU 7");
    }
}
