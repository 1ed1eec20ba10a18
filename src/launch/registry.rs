//! Which runs this user has: one small file per output folder.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::state::{FILE, RunState};

/// Remembers an output folder. `home` is the registry's folder.
pub fn remember(home: &Path, name: &str, output: &Path) -> io::Result<()> {
    fs::create_dir_all(home)?;
    let mut file = tempfile::NamedTempFile::new_in(home)?;
    let bytes = output.as_os_str().as_encoded_bytes();
    io::Write::write_all(&mut file, bytes)?;
    // Two runs may have one name; a folder has one run.
    let folder: String = Sha256::digest(bytes).iter().take(6).map(|b| format!("{b:02x}")).collect();
    file.persist(home.join(format!("{name}@{folder}"))).map_err(|error| error.error)?;
    Ok(())
}

/// Remembers that a job of this name was submitted to a cluster.
pub fn remember_submitted(home: &Path, name: &str, time_ms: u64) -> io::Result<()> {
    fs::create_dir_all(home)?;
    fs::write(submitted(home, name), time_ms.to_string())
}

/// When a job of this name was last submitted to a cluster, in milliseconds since the Unix epoch.
pub fn submitted_ms(home: &Path, name: &str) -> Option<u64> {
    fs::read_to_string(submitted(home, name)).ok()?.trim().parse().ok()
}

/// No run on this machine has such a file: the names of their folders are hexadecimal.
fn submitted(home: &Path, name: &str) -> PathBuf {
    home.join(format!("{name}@cluster"))
}

/// All runs whose folders still exist, by name, the newest last.
pub fn list(home: &Path) -> io::Result<Vec<RunState>> {
    let entries = match fs::read_dir(home) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut runs: Vec<RunState> = Vec::new();
    for entry in entries {
        // A file of another program, or one that goes away in this moment, is no run.
        let Ok(output) = fs::read_to_string(entry?.path()) else { continue };
        if let Ok(run) = RunState::read(Path::new(&output))
            && runs.iter().all(|known| known.output != run.output)
        {
            runs.push(run);
        }
    }
    runs.sort_by(|a, b| (&a.name, a.started_ms).cmp(&(&b.name, b.started_ms)));
    Ok(runs)
}

/// A run by its output folder or its name; of several with one name the one that runs, or else
/// the newest.
pub fn find(home: &Path, name: &str) -> io::Result<Option<RunState>> {
    let folder = PathBuf::from(name);
    if folder.join(FILE).exists() {
        return RunState::read(&folder).map(Some);
    }
    let named = list(home)?.into_iter().filter(|run| run.name == name);
    Ok(named.max_by_key(|run| (run.is_alive(), run.started_ms)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_by_folder_and_by_name_the_newest_first() {
        let home = tempfile::tempdir().unwrap();
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        for (folder, started) in folders.iter().zip([1, 2]) {
            RunState::new("a", folder.path(), started).write().unwrap();
            remember(home.path(), "a", folder.path()).unwrap();
        }
        assert_eq!(list(home.path()).unwrap().len(), 2);
        let newest = find(home.path(), "a").unwrap().unwrap();
        assert_eq!(newest.output, folders[1].path());
        let first = folders[0].path().to_str().unwrap();
        assert_eq!(find(home.path(), first).unwrap().unwrap().started_ms, 1);
        assert_eq!(find(home.path(), "b").unwrap(), None);
        remember_submitted(home.path(), "a", 7).unwrap();
        assert_eq!(submitted_ms(home.path(), "a"), Some(7));
        assert_eq!(submitted_ms(home.path(), "b"), None);
        assert_eq!(list(home.path()).unwrap().len(), 2, "that is no run of this machine");
        drop(folders);
        assert_eq!(list(home.path()).unwrap(), []);
    }
}
