//! The scenario as it is now: the file is read again when it changes, and its events happen.

use std::{
    env,
    ffi::{CStr, c_void},
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use serde_json::Value;

use crate::scenario::{self, Scenario};

/// Names the scenario file. Without it, `scenario.json` beside the library is read.
pub const VARIABLE: &str = "QVL_SIMGPU_SCENARIO";

/// Why there is no scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// There is no file: as on a host without a driver.
    NoFile,
    /// The file cannot be understood; standard error says why.
    Invalid,
}

/// An XID that was reported.
#[derive(Clone, Copy, Debug)]
pub struct Xid {
    /// GPU of the scenario.
    pub gpu: usize,
    /// Code.
    pub xid: u64,
}

struct Loaded {
    path: PathBuf,
    modified: SystemTime,
    at: Instant,
    happened: usize,
    raw: Value,
    scenario: Arc<Scenario>,
}

static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);

/// The scenario now. `library` is any address inside of the library that asks.
pub fn current(library: *const c_void) -> Result<Arc<Scenario>, Absent> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    reload(&mut loaded, library)?;
    let loaded = loaded.as_mut().ok_or(Absent::NoFile)?;
    loaded.happen()?;
    Ok(Arc::clone(&loaded.scenario))
}

/// XIDs so far, oldest first.
pub fn xids(library: *const c_void) -> Vec<Xid> {
    let Ok(scenario) = current(library) else { return Vec::new() };
    let loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let happened = loaded.as_ref().map_or(0, |loaded| loaded.happened);
    let events = scenario.events.iter().take(happened);
    events.filter_map(|event| Some(Xid { gpu: event.gpu, xid: event.xid? })).collect()
}

/// Changes one field of a GPU in the scenario's file, whole or not at all: what a client sets in
/// the kernel is seen by all, and stays when the client ends.
pub fn keep(library: *const c_void, gpu: usize, field: &str, value: &Value) -> Result<(), Absent> {
    let path = file(library).ok_or(Absent::NoFile)?;
    let read = |path: &Path| -> Result<Value, String> {
        let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
        let mut raw = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        scenario::expand(&mut raw);
        Ok(raw)
    };
    let mut raw = read(&path).map_err(complain)?;
    raw["gpus"][gpu][field] = value.clone();
    let draft = path.with_extension(format!("json.{}", std::process::id()));
    let written = fs::write(&draft, raw.to_string()).and_then(|()| fs::rename(&draft, &path));
    written.map_err(|error| complain(error.to_string()))
}

fn reload(loaded: &mut Option<Loaded>, library: *const c_void) -> Result<(), Absent> {
    let path = file(library).ok_or(Absent::NoFile)?;
    let modified = fs::metadata(&path).and_then(|data| data.modified());
    let modified = modified.map_err(|_error| Absent::NoFile)?;
    if loaded.as_ref().is_some_and(|old| old.path == path && old.modified == modified) {
        return Ok(());
    }
    *loaded = Some(Loaded::read(path, modified).map_err(complain)?);
    Ok(())
}

impl Loaded {
    fn read(path: PathBuf, modified: SystemTime) -> Result<Loaded, String> {
        let place = |error: String| format!("{}: {error}", path.display());
        let text = fs::read_to_string(&path).map_err(|error| place(error.to_string()))?;
        let mut raw: Value =
            serde_json::from_str(&text).map_err(|error| place(error.to_string()))?;
        scenario::expand(&mut raw);
        let mut scenario = Scenario::from_value(raw.clone()).map_err(place)?;
        scenario.events.sort_by_key(|event| event.after_ms);
        let scenario = Arc::new(scenario);
        Ok(Loaded { path, modified, at: Instant::now(), happened: 0, raw, scenario })
    }

    /// Applies the events whose time has come.
    fn happen(&mut self) -> Result<(), Absent> {
        let now = self.at.elapsed();
        let events = self.scenario.events.clone();
        let due =
            events.iter().filter(|event| Duration::from_millis(event.after_ms) <= now).count();
        if due <= self.happened {
            return Ok(());
        }
        for event in &events[self.happened..due] {
            if let Some(gpu) = self.raw["gpus"][event.gpu].as_object_mut() {
                gpu.extend(event.set.clone());
            }
        }
        let mut scenario = Scenario::from_value(self.raw.clone()).map_err(complain)?;
        scenario.events = events;
        self.scenario = Arc::new(scenario);
        self.happened = due;
        Ok(())
    }
}

fn complain(error: String) -> Absent {
    // A client's test must not mistake a mistyped scenario for a fault in it. The client may have
    // closed its standard error: then nobody reads this.
    let _unread = writeln!(io::stderr(), "simgpu: invalid scenario: {error}");
    Absent::Invalid
}

fn file(library: *const c_void) -> Option<PathBuf> {
    match env::var_os(VARIABLE) {
        Some(path) => Some(PathBuf::from(path)),
        None => Some(folder_of(library)?.join("scenario.json")),
    }
}

/// Folder of the library that `address` lies in.
fn folder_of(address: *const c_void) -> Option<PathBuf> {
    // SAFETY: all-zero bytes are valid for this struct of pointers.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: dladdr takes any address, and `info` is a valid place for its answer.
    if unsafe { libc::dladdr(address, &raw mut info) } == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: dladdr answered, so the name is a C string that lives as long as the library.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    Some(Path::new(name.to_str().ok()?).parent()?.to_path_buf())
}
