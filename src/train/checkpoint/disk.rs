//! Files that are on disk when the call returns, and what is left when they are not.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::{CheckpointError, FileEntry};

/// How long to wait for the lock; it is only ever held for a few renames.
const LOCK_SECONDS: u64 = 30;

/// A new file whose digest is computed while it is written.
pub(super) struct NewFile {
    file: BufWriter<File>,
    path: PathBuf,
    digest: Sha256,
    bytes: u64,
}

impl NewFile {
    pub(super) fn create(path: PathBuf) -> Result<Self, CheckpointError> {
        let file = File::create_new(&path).map_err(write_error(&path))?;
        Ok(NewFile { file: BufWriter::new(file), path, digest: Sha256::new(), bytes: 0 })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes).map_err(write_error(&self.path))
    }

    /// Returns when the content is on disk.
    pub(super) fn finish(self, name: &str) -> Result<FileEntry, CheckpointError> {
        let NewFile { file, path, digest, bytes } = self;
        let file = file.into_inner().map_err(|error| write_error(&path)(error.into_error()))?;
        file.sync_all().map_err(write_error(&path))?;
        Ok(FileEntry { name: name.to_owned(), bytes, sha256: hex(&digest.finalize()) })
    }
}

pub(super) fn hex(digest: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = digest.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

/// Writes a whole file and returns when it is on disk.
pub(super) fn write_file(
    folder: &Path,
    name: &str,
    bytes: &[u8],
) -> Result<FileEntry, CheckpointError> {
    let mut file = NewFile::create(folder.join(name))?;
    file.write(bytes)?;
    file.finish(name)
}

/// Replaces a small file so that a reader sees the old content or the new one.
pub(super) fn replace_file(folder: &Path, name: &str, text: &str) -> Result<(), CheckpointError> {
    let new = format!(".saving-{name}");
    let path = folder.join(&new);
    remove(&path)?;
    write_file(folder, &new, text.as_bytes())?;
    fs::rename(&path, folder.join(name)).map_err(write_error(&path))?;
    sync_folder(folder)
}

/// Makes the names in `folder` durable.
pub(super) fn sync_folder(folder: &Path) -> Result<(), CheckpointError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(write_error(folder))
}

/// Removes a file or a folder, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), CheckpointError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(write_error(path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Gives the folder `new` the name `target`, in one step even if there is a `target` already.
pub(super) fn publish(new: &Path, target: &Path) -> Result<(), CheckpointError> {
    if !target.exists() {
        return fs::rename(new, target).map_err(write_error(target));
    }
    if exchange(new, target).is_err() {
        // Not every file system can exchange two folders. Between the two renames `target` is
        // missing, and a reader takes the checkpoint before it.
        let old = target.with_file_name(format!(".removed-{}", name_of(target)));
        remove(&old)?;
        fs::rename(target, &old).map_err(write_error(&old))?;
        fs::rename(new, target).map_err(write_error(target))?;
        return remove(&old);
    }
    remove(new)
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    Ok(renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE)?)
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn exchange(_a: &Path, _b: &Path) -> io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

pub(super) fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Takes the lock of a folder; it is free again when the file is dropped or the process dies.
pub(super) fn lock(folder: &Path) -> Result<File, CheckpointError> {
    let path = folder.join("lock");
    let file = File::options().create(true).append(true).open(&path).map_err(write_error(&path))?;
    let deadline = Instant::now() + Duration::from_secs(LOCK_SECONDS);
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(source)) => return Err(write_error(&path)(source)),
            Err(TryLockError::WouldBlock) if Instant::now() > deadline => {
                return Err(CheckpointError::Locked { path, seconds: LOCK_SECONDS });
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Bytes that may still be written to the file system of `path`; `None` if it does not tell.
pub(super) fn free_bytes(path: &Path) -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    Some(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// Refuses to begin what cannot be completed.
pub(super) fn check_space(
    path: &Path,
    needed: u64,
    free: Option<u64>,
) -> Result<(), CheckpointError> {
    match free {
        Some(free) if free < needed => {
            Err(CheckpointError::NoSpace { path: path.to_owned(), needed, free })
        }
        Some(_) | None => Ok(()),
    }
}

pub(super) fn write_error(path: &Path) -> impl Fn(io::Error) -> CheckpointError {
    move |source| CheckpointError::Write { path: path.to_owned(), source }
}

/// Whether a write failed because something is full.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
    )
}
