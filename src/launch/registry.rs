//! Which runs this user has: one small file per output folder.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::state::{FILE, RunState};

/// Remembers an output folder. `home` is the registry's folder.
pub fn remember(home: &Path, name: &str, output: &Path) -> io::Result<()> {
    fs::create_dir_all(home)?;
    let mut file = tempfile::NamedTempFile::new_in(home)?;
    io::Write::write_all(&mut file, output.as_os_str().as_encoded_bytes())?;
    file.persist(home.join(name)).map_err(|error| error.error)?;
    Ok(())
}

/// All runs whose folders still exist, by name.
pub fn list(home: &Path) -> io::Result<Vec<RunState>> {
    let entries = match fs::read_dir(home) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut runs = Vec::new();
    for entry in entries {
        let output = fs::read_to_string(entry?.path())?;
        if let Ok(run) = RunState::read(Path::new(&output)) {
            runs.push(run);
        }
    }
    runs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(runs)
}

/// A run by its output folder or its name.
pub fn find(home: &Path, name: &str) -> Option<RunState> {
    let folder = Path::new(name);
    if folder.join(FILE).exists() {
        return RunState::read(folder).ok();
    }
    let output = PathBuf::from(fs::read_to_string(home.join(name)).ok()?);
    RunState::read(&output).ok()
}
