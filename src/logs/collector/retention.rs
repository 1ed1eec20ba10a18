//! What goes when: files that are too old, and the oldest ones when there is too much.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use super::{
    names::{self, JobName, Part},
    store::{Store, lock},
};

/// A stream is forgotten after so long without a line; its files are then removable as a whole.
const IDLE: Duration = Duration::from_secs(600);

/// When nothing could be removed, we look again after so long.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// One file of the collector.
#[derive(Debug)]
pub(super) struct StoredFile {
    pub job: JobName,
    pub part: Part,
    pub path: PathBuf,
    pub bytes: u64,
    pub changed: SystemTime,
}

/// All parts below the root; whatever else lies there is none of ours.
pub(super) fn files(root: &Path) -> io::Result<Vec<StoredFile>> {
    let mut files = Vec::new();
    for (job, folder) in jobs(root)? {
        for part in names::parts(&folder)? {
            let path = part.stream.part(&folder, part.first);
            // It may go while we look.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            let changed = metadata.modified()?;
            files.push(StoredFile { job: job.clone(), part, path, bytes: metadata.len(), changed });
        }
    }
    Ok(files)
}

/// Jobs with their folders.
fn jobs(root: &Path) -> io::Result<Vec<(JobName, PathBuf)>> {
    let mut jobs = Vec::new();
    for namespace in names::entries(root)? {
        if !namespace.file_type()?.is_dir() {
            continue;
        }
        for entry in names::entries(&namespace.path())? {
            let (namespace, job) = (namespace.file_name(), entry.file_name());
            let name = namespace.to_str().zip(job.to_str());
            if let Some(Ok(name)) = name.map(|(namespace, job)| JobName::new(namespace, job)) {
                jobs.push((name, entry.path()));
            }
        }
    }
    Ok(jobs)
}

impl Store {
    /// Removes what is too old, and forgets streams that are idle.
    pub(super) fn sweep(&self) -> io::Result<u64> {
        self.forget_idle();
        let mut removed = 0;
        for file in files(&self.root)? {
            let age = file.changed.elapsed().unwrap_or_default();
            if self.limits.age < age && self.remove(&file) {
                removed += 1;
            }
        }
        for (_job, folder) in jobs(&self.root)? {
            // This fails, as it should, where something is left.
            for attempt in names::entries(&folder)? {
                drop(fs::remove_dir(attempt.path()));
            }
            drop(fs::remove_dir(folder));
        }
        Ok(removed)
    }

    /// Removes the oldest files that do not grow until so many bytes have room, and some more so
    /// that this is not needed at once again. Whether there is room.
    pub(super) fn make_room(&self, bytes: u64) -> bool {
        let total = self.limits.total_bytes;
        let mut full_since = lock(&self.full_since);
        if full_since.is_some_and(|since| since.elapsed() < LOOK_AGAIN) {
            return false;
        }
        let Ok(mut files) = files(&self.root) else { return false };
        files.sort_by_key(|file| file.changed);
        let wanted = total - total / 20;
        for file in files {
            if self.used_bytes() + bytes <= wanted {
                break;
            }
            self.remove(&file);
        }
        let room = self.used_bytes() + bytes <= total;
        *full_since = (!room).then(Instant::now);
        room
    }

    /// Removes a file unless it grows; whether it is gone.
    fn remove(&self, file: &StoredFile) -> bool {
        // While this lock is held, nobody opens the stream.
        let streams = lock(&self.streams);
        let open = streams.get(&(file.job.clone(), file.part.stream.clone()));
        if let Some(stream) = open {
            let mut stream = lock(stream);
            if stream.grows(file.part.first) {
                return false;
            }
            stream.forget(file.part.first);
        } else if file.changed.elapsed().unwrap_or_default() < IDLE && self.is_last(file) {
            // Its pod may come back to a collector that has just started.
            return false;
        }
        let removed = fs::remove_file(&file.path).is_ok();
        if removed {
            self.used.fetch_sub(file.bytes, Ordering::Relaxed);
        }
        removed
    }

    fn is_last(&self, file: &StoredFile) -> bool {
        let folder = file.job.folder(&self.root);
        let parts = names::parts_of_attempt(&folder, file.part.stream.attempt).unwrap_or_default();
        let newer = |part: &&Part| part.stream == file.part.stream && file.part.first < part.first;
        !parts.iter().any(|part| newer(&part))
    }

    fn forget_idle(&self) {
        let mut streams = lock(&self.streams);
        // One that a request holds is in use, whatever its clock says.
        streams.retain(|_key, stream| 1 < Arc::strong_count(stream) || lock(stream).idle() < IDLE);
    }
}
