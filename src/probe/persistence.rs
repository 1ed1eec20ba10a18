//! The one thing that the doctor changes in a driver, in a process of its own: the persistence mode.

use std::{path::Path, process::Stdio};

use super::{
    Progress,
    child::{self, DriverLibrary, Errand, LONGEST, Silence},
    nvml,
};
use crate::wire::gputest::{ANSWER, CALL};

/// Asks for the persistence mode of a GPU, or sets it first. Turning it on initialises the GPU,
/// which takes seconds. `stdin` is held open by the process that makes the calls.
pub fn persistence(
    program: &Path,
    gpu: &str,
    set: Option<bool>,
    stdin: Stdio,
) -> Result<bool, nvml::PersistenceError> {
    let lost = |message: String| nvml::PersistenceError { message, denied: false };
    let library = DriverLibrary::Nvml;
    if let Some(call) = child::hangs(library) {
        return Err(lost(format!("the driver hangs in {call}")));
    }
    let text = set.map(|on| on.to_string());
    let mut more = vec!["--persistence", gpu];
    if let Some(text) = &text {
        more.extend(["--set", text]);
    }
    // One call, and a slow one.
    let errand = Errand { silence: LONGEST, ..child::errand(program, library, &more) };
    let answer: Result<Result<bool, nvml::PersistenceError>, Silence> =
        child::ask(errand, stdin).answer();
    answer.unwrap_or_else(|silence| match silence {
        Silence::Hung { call, after_ms } => {
            Err(lost(format!("the driver did not return from {call} within {after_ms} ms")))
        }
        Silence::Crashed { message } => Err(lost(format!("the driver crashed: {message}"))),
    })
}

/// The child's side of [`persistence`].
pub fn serve_persistence(
    gpu: &str,
    set: Option<bool>,
    mut say: impl FnMut(&str) + Send + 'static,
) -> String {
    let progress = Progress::to(move |call| say(&format!("{CALL}{call}")));
    let answer = nvml::persistence(nvml::LIBRARY.as_ref(), gpu, set, &progress);
    format!("{ANSWER}{}", serde_json::to_string(&answer).expect("plain data"))
}
