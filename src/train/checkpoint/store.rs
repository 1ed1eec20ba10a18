//! Saving checkpoints: complete or not at all, and only by the newest attempt.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde::Serialize;

use super::disk::{self, check_space, free_bytes, is_full, name_of, write_error};
use super::load::{folder_name, list};
use super::{CheckpointError, FileEntry, Identity, Manifest, State, tensors};

/// Room for headers, text files and rounding to blocks.
const OVERHEAD: u64 = 1 << 16;

/// The checkpoints of one job, opened for writing by one attempt.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    attempt: u32,
    identity: Identity,
    keep: usize,
}

/// A checkpoint that is on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Its folder.
    pub path: PathBuf,
    /// Size of all its files.
    pub bytes: u64,
    /// Whether it is the best so far.
    pub best: bool,
    /// Older checkpoints that were removed because of `keep`.
    pub removed: Vec<PathBuf>,
}

impl Store {
    /// Opens `OUTPUT/checkpoints`, creates it if missing, claims it for `attempt` (from now on,
    /// older attempts cannot save), and removes what killed processes left behind. One process
    /// of an attempt may open it, rank 0. The newest `keep` checkpoints are kept (at least
    /// one), and the best besides.
    pub fn open(
        output: &Path,
        attempt: u32,
        identity: Identity,
        keep: usize,
    ) -> Result<Self, CheckpointError> {
        let folder = output.join("checkpoints");
        fs::create_dir_all(&folder).map_err(write_error(&folder))?;
        let store = Store { folder, attempt, identity, keep: keep.max(1) };
        let _lock = disk::lock(&store.folder)?;
        if store.check_fence()? != Some(attempt) {
            disk::replace_file(&store.folder, "attempt", &format!("{attempt}\n"))?;
        }
        store.clean()?;
        Ok(store)
    }

    /// The folder that holds the checkpoints.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Saves a checkpoint and returns when it is on disk. `weights` and `moments` (parameter,
    /// first, second moment) are f32. `score` is the measure by which the best checkpoint is
    /// chosen, if it was taken at this step; higher is better, so negate a loss.
    pub fn save(
        &self,
        state: &State,
        weights: &[(String, Tensor)],
        moments: &[(String, Tensor, Tensor)],
        score: Option<f64>,
    ) -> Result<Saved, CheckpointError> {
        self.check_fence()?;
        let numbers = |tensor: &Tensor| 4 * tensor.elem_count() as u64;
        let needed = OVERHEAD
            + weights.iter().map(|(_, tensor)| numbers(tensor)).sum::<u64>()
            + moments.iter().map(|(_, m, v)| numbers(m) + numbers(v)).sum::<u64>();
        check_space(&self.folder, needed, free_bytes(&self.folder))?;
        let score = score.filter(|score| !score.is_nan());
        let new = self.folder.join(format!(
            ".saving-{}.{}.{}",
            folder_name(state.step),
            self.attempt,
            std::process::id()
        ));
        let saved = write_files(&new, state, weights, moments)
            .and_then(|files| self.write_manifest(&new, state.step, score, files))
            .and_then(|bytes| self.publish(&new, state.step, score).map(|saved| (bytes, saved)));
        let (bytes, (path, best, removed)) =
            saved.map_err(|error| self.give_up(&new, error, needed))?;
        Ok(Saved { path, bytes, best, removed })
    }

    /// Completes the folder `new`; returns the size of all its files.
    fn write_manifest(
        &self,
        new: &Path,
        step: u64,
        score: Option<f64>,
        files: Vec<FileEntry>,
    ) -> Result<u64, CheckpointError> {
        let (attempt, identity) = (self.attempt, self.identity.clone());
        let format = Manifest::FORMAT;
        let manifest = Manifest { format, step, attempt, score, identity, files };
        let own = write_json(new, "manifest.json", &manifest)?;
        disk::sync_folder(new)?;
        Ok(manifest.files.iter().map(|file| file.bytes).sum::<u64>() + own.bytes)
    }

    /// Gives the folder its name, points to it, and removes what is too old.
    fn publish(
        &self,
        new: &Path,
        step: u64,
        score: Option<f64>,
    ) -> Result<(PathBuf, bool, Vec<PathBuf>), CheckpointError> {
        let _lock = disk::lock(&self.folder)?;
        self.check_fence()?;
        let best_before = self.best_score(step)?;
        let best = score.is_some_and(|score| best_before.is_none_or(|before| score > before));
        let path = self.folder.join(folder_name(step));
        disk::publish(new, &path)?;
        disk::sync_folder(&self.folder)?;
        let pointer = format!("{}\n", name_of(&path));
        disk::replace_file(&self.folder, "latest", &pointer)?;
        if best {
            disk::replace_file(&self.folder, "best", &pointer)?;
        }
        let removed = self.retire()?;
        Ok((path, best, removed))
    }

    /// Score of the best checkpoint, unless that is the one of `step`, which is replaced now.
    fn best_score(&self, step: u64) -> Result<Option<f64>, CheckpointError> {
        let Some(best) = self.pointer("best").filter(|best| *best != folder_name(step)) else {
            return Ok(None);
        };
        let found = list(&self.folder)?.into_iter().find(|(path, _)| name_of(path) == best);
        Ok(found.and_then(|(_, manifest)| manifest.ok()?.score))
    }

    fn pointer(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.folder.join(name)).ok()?;
        Some(text.trim_end().to_owned())
    }

    /// Removes all but the newest `keep` checkpoints and the best. One without a manifest counts
    /// for nothing and is kept for the user to look at.
    fn retire(&self) -> Result<Vec<PathBuf>, CheckpointError> {
        let best = self.pointer("best");
        let complete = list(&self.folder)?.into_iter().filter(|(_, manifest)| manifest.is_ok());
        let old: Vec<PathBuf> = complete.skip(self.keep).map(|(path, _)| path).collect();
        let mut removed = Vec::new();
        for path in old.into_iter().filter(|path| Some(name_of(path)) != best) {
            // With another name first, so that a kill in between leaves no half checkpoint.
            let gone = self.folder.join(format!(".removed-{}", name_of(&path)));
            disk::remove(&gone)?;
            fs::rename(&path, &gone).map_err(write_error(&path))?;
            disk::remove(&gone)?;
            removed.push(path);
        }
        Ok(removed)
    }

    /// Fails if a newer attempt has claimed the folder; returns the attempt that has it.
    fn check_fence(&self) -> Result<Option<u32>, CheckpointError> {
        let Some(text) = self.pointer("attempt") else { return Ok(None) };
        let newer = text.parse().map_err(|_| CheckpointError::Damaged {
            path: self.folder.join("attempt"),
            what: format!("it holds {text:?}, expected a number"),
        })?;
        if newer > self.attempt {
            let (folder, own) = (self.folder.clone(), self.attempt);
            return Err(CheckpointError::Fenced { folder, own, newer });
        }
        Ok(Some(newer))
    }

    /// Removes what killed processes left. An older attempt that is still writing loses its
    /// files, which it may not publish anyway.
    fn clean(&self) -> Result<(), CheckpointError> {
        let entries = fs::read_dir(&self.folder).map_err(write_error(&self.folder))?;
        let names: BTreeSet<String> = entries
            .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
            .filter(|name| name.starts_with(".saving-") || name.starts_with(".removed-"))
            .collect();
        names.iter().try_for_each(|name| disk::remove(&self.folder.join(name)))
    }

    /// Removes what was written and says what the failure really was.
    fn give_up(&self, new: &Path, error: CheckpointError, needed: u64) -> CheckpointError {
        // If this fails too, the next process that opens the store removes it.
        let _left_behind = disk::remove(new);
        if let Err(fenced) = self.check_fence() {
            return fenced;
        }
        if let CheckpointError::Write { path, source } = &error
            && is_full(source)
        {
            let free = free_bytes(&self.folder).unwrap_or_default();
            return CheckpointError::NoSpace { path: path.clone(), needed, free };
        }
        error
    }
}

/// Writes all files but the manifest to the new folder `new`.
fn write_files(
    new: &Path,
    state: &State,
    weights: &[(String, Tensor)],
    moments: &[(String, Tensor, Tensor)],
) -> Result<Vec<FileEntry>, CheckpointError> {
    disk::remove(new)?;
    fs::create_dir(new).map_err(write_error(new))?;
    let weights: Vec<_> = weights.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
    let moments: Vec<_> = moments
        .iter()
        .flat_map(|(name, m, v)| {
            [(format!("{name}.exp_avg"), m), (format!("{name}.exp_avg_sq"), v)]
        })
        .collect();
    Ok(vec![
        tensors::write(new, "weights.safetensors", &weights)?,
        tensors::write(new, "optimizer.safetensors", &moments)?,
        write_json(new, "state.json", state)?,
    ])
}

fn write_json(
    folder: &Path,
    name: &str,
    value: &impl Serialize,
) -> Result<FileEntry, CheckpointError> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|source| CheckpointError::Describe { path: folder.join(name), source })?;
    text.push(b'\n');
    disk::write_file(folder, name, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_that_is_fenced_after_its_files_are_written_cannot_publish_them() {
        let output = tempfile::tempdir().unwrap();
        let identity = Identity { job: String::new(), base: String::new() };
        let old = Store::open(output.path(), 1, identity.clone(), 3).unwrap();
        let new_attempt = Store::open(output.path(), 2, identity, 3).unwrap();
        let new = old.folder.join(".saving-late");
        let files = write_files(&new, &State::default(), &[], &[]).unwrap();
        old.write_manifest(&new, 0, None, files).unwrap();
        let error = old.publish(&new, 0, None).unwrap_err();
        assert!(matches!(error, CheckpointError::Fenced { own: 1, newer: 2, .. }), "{error}");
        assert_eq!(list(new_attempt.folder()).unwrap().len(), 0);
    }
}
