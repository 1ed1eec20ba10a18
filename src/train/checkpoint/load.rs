//! Finding and loading checkpoints. Nothing here writes.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

use super::tensors::{read, read_bytes, read_error};
use super::{CheckpointError, FileEntry, Identity, Manifest, State};

/// Longest manifest that is read.
const MANIFEST_LIMIT: u64 = 1 << 20;

/// A checkpoint in memory.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Its folder.
    pub path: PathBuf,
    /// What it says about itself.
    pub manifest: Manifest,
    /// Where the run was.
    pub state: State,
    /// Trained parameters, in the order in which they were saved.
    pub weights: Vec<(String, Tensor)>,
    /// First and second moment of each parameter, in the order in which they were saved.
    pub moments: Vec<(String, Tensor, Tensor)>,
}

/// The result of looking for the newest checkpoint.
#[derive(Clone, Debug)]
pub struct Found {
    /// The newest intact checkpoint; `None` if nothing was ever saved.
    pub checkpoint: Option<Loaded>,
    /// One sentence for each newer checkpoint that could not be used, with the file's name.
    pub warnings: Vec<String>,
}

/// Loads the newest intact checkpoint of the output folder `output`. It is an error if there are
/// checkpoints but none is intact: to begin again from step 0 must be a decision of the user.
///
/// In a group one rank looks, and the others [`load`] the folder that it tells them.
pub fn load_latest(
    output: &Path,
    identity: &Identity,
    device: &Device,
) -> Result<Found, CheckpointError> {
    let folder = output.join("checkpoints");
    let mut warnings = Vec::new();
    for (path, manifest) in list(&folder)? {
        let loaded = manifest.and_then(|manifest| load_files(&path, manifest, identity, device));
        match loaded {
            Ok(loaded) => return Ok(Found { checkpoint: Some(loaded), warnings }),
            Err(error) if error.is_damage() => warnings.push(format!("skipped: {error}")),
            Err(error) => return Err(error),
        }
    }
    if warnings.is_empty() {
        return Ok(Found { checkpoint: None, warnings });
    }
    Err(CheckpointError::NoneUsable { folder, reasons: warnings })
}

/// Loads the checkpoint in the folder `path`; any damage is an error.
pub fn load(path: &Path, identity: &Identity, device: &Device) -> Result<Loaded, CheckpointError> {
    load_files(path, read_manifest(path)?, identity, device)
}

/// A checkpoint folder, with its manifest or the reason why it has none.
pub(super) type Entry = (PathBuf, Result<Manifest, CheckpointError>);

/// The checkpoints in `folder`, newest first. One without a manifest sorts by its name among the
/// newest, because its attempt is not known.
pub(super) fn list(folder: &Path) -> Result<Vec<Entry>, CheckpointError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| read_error(folder, error))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| read_error(folder, error))?;
        if let Some(step) = step_of(&entry.file_name().to_string_lossy()) {
            let manifest = read_manifest(&entry.path());
            let attempt = manifest.as_ref().map_or(u32::MAX, |manifest| manifest.attempt);
            found.push(((attempt, step), (entry.path(), manifest)));
        }
    }
    found.sort_by_key(|(order, _)| std::cmp::Reverse(*order));
    Ok(found.into_iter().map(|(_, entry)| entry).collect())
}

/// Name of the folder of a checkpoint: `step-00000120`.
pub(super) fn folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (folder_name(step) == name).then_some(step)
}

fn read_manifest(folder: &Path) -> Result<Manifest, CheckpointError> {
    let path = folder.join("manifest.json");
    let damaged = |what: String| CheckpointError::Damaged { path: path.clone(), what };
    let bytes = fs::metadata(&path).map_err(|error| read_error(&path, error))?.len();
    if bytes > MANIFEST_LIMIT {
        return Err(damaged(format!("it has {bytes} bytes, at most {MANIFEST_LIMIT} expected")));
    }
    let text = fs::read(&path).map_err(|error| read_error(&path, error))?;
    let manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|error| damaged(format!("it is not a manifest: {error}")))?;
    let (found, expected) = (manifest.format, Manifest::FORMAT);
    if found != expected {
        return Err(CheckpointError::Format { path, found, expected });
    }
    Ok(manifest)
}

fn load_files(
    path: &Path,
    manifest: Manifest,
    identity: &Identity,
    device: &Device,
) -> Result<Loaded, CheckpointError> {
    check_identity(path, &manifest.identity, identity)?;
    let state = load_state(path, &manifest)?;
    let weights = read(path, entry(path, &manifest, "weights.safetensors")?, device)?;
    let moments = read(path, entry(path, &manifest, "optimizer.safetensors")?, device)?;
    let moments = pair_moments(path, moments)?;
    Ok(Loaded { path: path.to_owned(), manifest, state, weights, moments })
}

fn check_identity(path: &Path, found: &Identity, wanted: &Identity) -> Result<(), CheckpointError> {
    let pairs = [("base model", &found.base, &wanted.base), ("job", &found.job, &wanted.job)];
    for (what, found, expected) in pairs {
        if found != expected {
            let (found, expected) = (found.clone(), expected.clone());
            return Err(CheckpointError::Other { path: path.to_owned(), what, found, expected });
        }
    }
    Ok(())
}

fn load_state(folder: &Path, manifest: &Manifest) -> Result<State, CheckpointError> {
    let text = read_bytes(folder, entry(folder, manifest, "state.json")?)?;
    let damaged = |what| CheckpointError::Damaged { path: folder.join("state.json"), what };
    let state: State = serde_json::from_slice(&text)
        .map_err(|error| damaged(format!("it is not a state: {error}")))?;
    if state.step != manifest.step {
        return Err(damaged(format!("it is of step {}, expected {}", state.step, manifest.step)));
    }
    Ok(state)
}

fn entry<'a>(
    folder: &Path,
    manifest: &'a Manifest,
    name: &str,
) -> Result<&'a FileEntry, CheckpointError> {
    manifest.files.iter().find(|file| file.name == name).ok_or_else(|| CheckpointError::Damaged {
        path: folder.join("manifest.json"),
        what: format!("it does not list {name}"),
    })
}

fn pair_moments(
    folder: &Path,
    tensors: Vec<(String, Tensor)>,
) -> Result<Vec<(String, Tensor, Tensor)>, CheckpointError> {
    let mut moments = Vec::with_capacity(tensors.len() / 2);
    let mut tensors = tensors.into_iter();
    while let Some((first, mean)) = tensors.next() {
        let name = first.strip_suffix(".exp_avg").unwrap_or(&first).to_owned();
        match tensors.next() {
            Some((second, square)) if second == format!("{name}.exp_avg_sq") => {
                moments.push((name, mean, square));
            }
            Some(_) | None => {
                let path = folder.join("optimizer.safetensors");
                let what = format!("`{first}` has no `{name}.exp_avg_sq` beside it");
                return Err(CheckpointError::Damaged { path, what });
            }
        }
    }
    Ok(moments)
}
