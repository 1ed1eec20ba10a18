//! For tests: a folder that holds both libraries under the names that clients load, and the
//! scenario that they read. Programs started by [`Host::command`] see a host with that driver.
//!
//! The libraries come out of the test's own build: `simgpu-nvml` and `simgpu-cuda` must be
//! dev-dependencies of the package under test.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use crate::{live, scenario::Scenario};

const LIBRARIES: [(&str, &str); 2] =
    [("libsimgpu_nvml.so", "libnvidia-ml.so.1"), ("libsimgpu_cuda.so", "libcuda.so.1")];

/// A host with a simulated driver.
#[derive(Debug)]
pub struct Host {
    folder: TempDir,
}

impl Host {
    /// A host as `scenario` (JSON) describes it.
    ///
    /// # Panics
    ///
    /// If the scenario is invalid or the libraries were not built.
    pub fn new(scenario: &str) -> Host {
        let host = Host { folder: tempfile::tempdir().expect("a temporary folder") };
        install(&built(), host.path(), scenario).unwrap_or_else(|error| {
            panic!(
                "{error}\n  hint: the package under test needs dev-dependencies on simgpu-nvml and \
                 simgpu-cuda"
            )
        });
        host
    }

    /// A host of the catalogue `tests/simgpu/scenarios/`.
    pub fn named(name: &str) -> Host {
        Host::new(&named(name))
    }

    /// Folder with the libraries and `scenario.json`.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Full path of `libnvidia-ml.so.1`.
    pub fn nvml(&self) -> PathBuf {
        self.path().join(LIBRARIES[0].1)
    }

    /// Full path of `libcuda.so.1`.
    pub fn cuda(&self) -> PathBuf {
        self.path().join(LIBRARIES[1].1)
    }

    /// Replaces the scenario; running clients see it with their next call. Removed symbols stay
    /// removed.
    pub fn change(&self, scenario: &str) {
        Scenario::parse(scenario).expect("valid scenario");
        let draft = self.path().join("scenario.json.new");
        fs::write(&draft, scenario).expect("the scenario can be written");
        let renamed: io::Result<()> = fs::rename(draft, self.path().join("scenario.json"));
        renamed.expect("the scenario can be replaced");
    }

    /// A command that sees this host's driver.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("LD_LIBRARY_PATH", self.path())
            .env_remove(live::VARIABLE)
            .env_remove("NVIDIA_VISIBLE_DEVICES")
            .env_remove("CUDA_VISIBLE_DEVICES");
        command
    }
}

/// Copies both libraries from `built`, where cargo put them, into `folder`, under the names that
/// clients load, and writes the scenario beside them.
pub fn install(built: &Path, folder: &Path, scenario: &str) -> io::Result<()> {
    let parsed = Scenario::parse(scenario).map_err(io::Error::other)?;
    for (from, to) in LIBRARIES {
        let from = built.join(from);
        let named = |error| io::Error::other(format!("`{}`: {error}", from.display()));
        let mut library = fs::read(&from).map_err(named)?;
        if !parsed.missing_symbols.is_empty() {
            remove_symbols(&mut library, &parsed.missing_symbols);
        }
        fs::write(folder.join(to), library)?;
    }
    fs::write(folder.join("scenario.json"), scenario)
}

/// Text of a scenario in the catalogue.
pub fn named(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios").join(format!("{name}.json"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("`{}`: {error}", path.display()))
}

/// Names in the catalogue, sorted.
pub fn names() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let entries = fs::read_dir(&folder).expect("the catalogue is readable");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("the catalogue is readable").path())
        .filter_map(|path| Some(path.file_name()?.to_str()?.strip_suffix(".json")?.to_owned()))
        .collect();
    names.sort();
    names
}

/// Folder into which cargo built the libraries: that of the running test.
fn built() -> PathBuf {
    let test = env::current_exe().expect("a test has a path");
    test.parent().expect("a file is in a folder").to_path_buf()
}

/// Renames symbols in the string table, so that the loader no longer finds them.
fn remove_symbols(library: &mut [u8], symbols: &[String]) {
    let mut begin = 0;
    while let Some(length) = library[begin..].iter().position(|byte| *byte == 0) {
        let word = &mut library[begin..begin + length];
        if symbols.iter().any(|symbol| symbol.as_bytes() == word) {
            word[0] = b'x';
        }
        begin += length + 1;
    }
}
