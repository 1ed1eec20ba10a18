//! Writes, syncs, reads back and renames in a folder, as a checkpoint does.
//!
//! The file that holds the data has no name: it is unlinked as soon as it is open, so the kernel
//! frees it whatever happens to this process. What can be left behind is one file of 4 KiB, and
//! the next test of the folder removes it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    process,
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    sys::statvfs::statvfs,
};

use crate::{facts::StorageResult, probe::Progress};

/// What this test is called in evidence.
pub(super) const FROM: &str = "write, fsync, read, rename";
/// A block that takes longer than this is a hang: 8 MiB at 0.3 MB/s.
pub(super) const SILENCE: Duration = Duration::from_secs(30);
/// All steps together.
pub(super) const LONGEST: Duration = Duration::from_secs(90);

/// Files of all such tests.
const PREFIX: &str = ".qvl-storage-test-";
/// Written and synced at a time.
const BLOCK: usize = 8 << 20;
/// No new block is begun after this time.
const TIME: Duration = Duration::from_secs(4);
/// Small writes that are synced one by one, and the time for all of them.
const SYNCS: usize = 16;
const SYNC_TIME: Duration = Duration::from_secs(3);
const SMALL: usize = 4096;
/// Files of tests that were killed are older than this; a test takes less.
const STALE: Duration = Duration::from_secs(600);
/// A test may use this part of the free space.
const SHARE: u64 = 4;

/// A name that no other test uses.
pub(super) fn name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanos = since.unwrap_or_default().as_nanos();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}{}-{count}-{nanos:x}", process::id())
}

/// Removes what a killed test left behind; does not wait for a disk that hangs.
pub(super) fn clean(folder: &Path, name: &str) {
    let (folder, name) = (folder.to_owned(), name.to_owned());
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let folder = nearest(&folder);
        for file in files(&folder, &name) {
            // Not there, most likely.
            let _removed = fs::remove_file(file);
        }
        let _told = sender.send(());
    });
    let _in_time = receiver.recv_timeout(Duration::from_secs(2));
}

fn files(folder: &Path, name: &str) -> [PathBuf; 3] {
    ["", ".new", ".renamed"].map(|end| folder.join(format!("{name}{end}")))
}

fn nearest(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_error| path.to_owned());
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

/// Tests the nearest folder that exists.
pub(super) fn test(folder: &Path, bytes: u64, name: &str, progress: &Progress) -> StorageResult {
    let folder = nearest(folder);
    let mut found = StorageResult::default();
    let mut step = "its start";
    let mut begin = |what: &'static str| {
        progress.begin(format!("{what} in {}", folder.display()));
        step = what;
    };
    let done = all(&folder, bytes, name, &mut begin, &mut found);
    if let Err(error) = done {
        found.error = Some(format!("{step}: {error}"));
    }
    for file in files(&folder, name) {
        let _removed = fs::remove_file(file);
    }
    found
}

fn all(
    folder: &Path,
    bytes: u64,
    name: &str,
    begin: &mut impl FnMut(&'static str),
    found: &mut StorageResult,
) -> io::Result<()> {
    let [data, new, renamed] = files(folder, name);
    begin("statvfs");
    let room = free(folder)?;
    let bytes = bytes.min(room / SHARE);
    if bytes < SMALL as u64 {
        return Err(io::Error::other(format!("{room} bytes are free")));
    }
    begin("create");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&data)?;
    begin("unlink");
    fs::remove_file(&data)?;
    sweep(folder, &file);
    write(&mut file, bytes, begin, found)?;
    read(&mut file, begin, found)?;
    syncs(&mut file, begin, found)?;
    let start = Instant::now();
    begin("rename");
    rename(folder, &new, &renamed)?;
    found.rename_us = micros(start);
    begin("statvfs");
    drop(file);
    found.free_bytes = free(folder)?;
    Ok(())
}

fn free(folder: &Path) -> io::Result<u64> {
    let stat = statvfs(folder)?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

fn write(
    file: &mut File,
    bytes: u64,
    begin: &mut impl FnMut(&'static str),
    found: &mut StorageResult,
) -> io::Result<()> {
    let (mut block, mut took) = (Vec::new(), Duration::ZERO);
    while found.bytes < bytes && took < TIME {
        let length = usize::try_from(bytes - found.bytes).unwrap_or(BLOCK).min(BLOCK);
        // Making the bytes is no work of the disk.
        fill(&mut block, length, found.bytes);
        let start = Instant::now();
        begin("write");
        file.write_all(&block)?;
        begin("fsync");
        file.sync_data()?;
        took += start.elapsed();
        found.bytes += length as u64;
    }
    let start = Instant::now();
    begin("fsync");
    file.sync_all()?;
    found.write_seconds = (took + start.elapsed()).as_secs_f64();
    Ok(())
}

fn read(
    file: &mut File,
    begin: &mut impl FnMut(&'static str),
    found: &mut StorageResult,
) -> io::Result<()> {
    // From the disk, not from memory, where the kernel lets it.
    let _advised = posix_fadvise(&*file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    file.rewind()?;
    let (mut block, mut expected) = (vec![0; BLOCK], Vec::new());
    let (mut at, mut took) = (0, Duration::ZERO);
    while at < found.bytes {
        let length = usize::try_from(found.bytes - at).unwrap_or(BLOCK).min(BLOCK);
        begin("read");
        let start = Instant::now();
        file.read_exact(&mut block[..length])?;
        took += start.elapsed();
        fill(&mut expected, length, at);
        if block[..length] != expected {
            let differs = block[..length].iter().zip(&expected).filter(|(a, b)| a != b);
            found.wrong_bytes += differs.count() as u64;
        }
        at += length as u64;
    }
    found.read_seconds = took.as_secs_f64();
    Ok(())
}

fn syncs(
    file: &mut File,
    begin: &mut impl FnMut(&'static str),
    found: &mut StorageResult,
) -> io::Result<()> {
    let start = Instant::now();
    let mut times = Vec::new();
    let mut block = Vec::new();
    while times.len() < SYNCS && (times.is_empty() || start.elapsed() < SYNC_TIME) {
        fill(&mut block, SMALL, times.len() as u64);
        begin("fsync");
        let one = Instant::now();
        file.write_all(&block)?;
        file.sync_all()?;
        times.push(micros(one));
    }
    times.sort_unstable();
    found.fsync_median_us = times[times.len() / 2];
    found.fsync_longest_us = times[times.len() - 1];
    Ok(())
}

/// A file appears whole under its name, and its folder knows it after a loss of power.
fn rename(folder: &Path, new: &Path, renamed: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(new)?;
    let mut block = Vec::new();
    fill(&mut block, SMALL, 7);
    file.write_all(&block)?;
    file.sync_all()?;
    fs::rename(new, renamed)?;
    File::open(folder)?.sync_all()?;
    let back = fs::read(renamed)?;
    fs::remove_file(renamed)?;
    if back == block {
        return Ok(());
    }
    Err(io::Error::other("the file under the new name has other bytes"))
}

/// Bytes that depend on their place, so that one which comes back from elsewhere shows.
fn fill(block: &mut Vec<u8>, length: usize, at: u64) {
    block.resize(length, 0);
    for (word, bytes) in (0_u64..).zip(block.chunks_mut(8)) {
        let mixed = super::compute::mix(at + 8 * word).to_le_bytes();
        bytes.copy_from_slice(&mixed[..bytes.len()]);
    }
}

/// Removes files of tests that were killed: by the clock of the file system, which may be another
/// machine's.
fn sweep(folder: &Path, fresh: &File) {
    let now = fresh.metadata().and_then(|metadata| metadata.modified());
    let (Ok(now), Ok(entries)) = (now, fs::read_dir(folder)) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let age = modified.ok().and_then(|then| now.duration_since(then).ok());
        if age.is_some_and(|age| STALE < age) {
            let _removed = fs::remove_file(entry.path());
        }
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        names.map(|name| name.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_folder_that_works_is_measured_and_left_clean() {
        let folder = tempfile::tempdir().unwrap();
        let stale = folder.path().join(format!("{PREFIX}1-0-0"));
        let file = File::create(&stale).unwrap();
        file.set_modified(std::time::SystemTime::now() - 2 * STALE).unwrap();
        // It is not there yet: the nearest folder is tested.
        let output = folder.path().join("out/run");
        let found = test(&output, 20 << 20, &name(), &Progress::default());
        assert_eq!(found.error, None);
        assert_eq!((found.bytes, found.wrong_bytes), (20 << 20, 0));
        assert!(0.0 < found.write_seconds && 0.0 < found.read_seconds, "{found:?}");
        assert!(found.fsync_median_us <= found.fsync_longest_us && 0 < found.free_bytes);
        assert_eq!(entries(folder.path()), Vec::<String>::new());
    }

    #[test]
    fn bytes_that_change_on_the_way_are_counted() {
        let mut file = tempfile::tempfile().unwrap();
        let mut found = StorageResult::default();
        write(&mut file, 1 << 20, &mut |_| {}, &mut found).unwrap();
        file.seek(io::SeekFrom::Start(4096)).unwrap();
        let mut block = Vec::new();
        // A block that came from another place.
        fill(&mut block, 4096, 0);
        file.write_all(&block).unwrap();
        read(&mut file, &mut |_| {}, &mut found).unwrap();
        assert!((4000..=4096).contains(&found.wrong_bytes), "{found:?}");
    }

    #[test]
    fn the_step_that_fails_is_named() {
        let found = test(Path::new("/proc"), 1 << 20, &name(), &Progress::default());
        let error = found.error.unwrap();
        assert!(error.starts_with("create: ") || error.starts_with("statvfs: "), "{error}");
    }
}
