//! The collector's files: appends what pods send, once, and says so when it is on the disk.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::names::{self, JobName, RANKS_PER_POD, StreamName};
use crate::logs::segment::{Body, Frames, Record};

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// All files together. When it is reached the oldest go; if none may go, writers are told to
    /// keep their lines.
    pub total_bytes: u64,
    /// Files of one rank in one pod; when it is reached the oldest of them go.
    pub stream_bytes: u64,
    /// A file ends after so many bytes; retention removes whole files.
    pub part_bytes: u64,
    /// Files that nothing was added to for so long go.
    pub age: Duration,
}

/// Why lines were not stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the segment is damaged after {at} bytes, or not from attempt {attempt}")]
    Malformed { at: usize, attempt: u32 },
    #[error("rank {rank} is not one of pod {index}")]
    ForeignRank { rank: u32, index: u32 },
    #[error("no room: {used} of {total} bytes are used")]
    Full { used: u64, total: u64 },
    #[error("the disk is full")]
    DiskFull { source: io::Error },
    #[error("failed to write `{path}`")]
    Write { path: PathBuf, source: io::Error },
}

/// What became of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// Lines that are new.
    pub lines: u64,
    /// Lines that were here already.
    pub repeated: u64,
    /// Lines that the pod had to give up.
    pub lost: u64,
}

/// A stream that was written to lately.
#[derive(Debug)]
pub(super) struct Stream {
    /// Number of the next line.
    next: u64,
    /// First number and whole bytes of the file that grows; `None` before there is one.
    part: Option<(u64, u64)>,
    /// Bytes of the closed files by first number.
    closed: BTreeMap<u64, u64>,
    used: Instant,
}

type Key = (JobName, StreamName);

#[derive(Debug)]
pub struct Store {
    pub(super) root: PathBuf,
    pub(super) limits: Limits,
    pub(super) used: AtomicU64,
    pub(super) streams: Mutex<HashMap<Key, Arc<Mutex<Stream>>>>,
    /// Since when there is no room; held while room is made.
    pub(super) full_since: Mutex<Option<Instant>>,
}

impl Store {
    /// Opens the folder and counts what it holds.
    pub fn open(root: &Path, limits: Limits) -> io::Result<Store> {
        fs::create_dir_all(root)?;
        let used = super::retention::files(root)?.iter().map(|file| file.bytes).sum();
        let (root, used) = (root.to_owned(), AtomicU64::new(used));
        let (streams, full_since) = (Mutex::default(), Mutex::default());
        Ok(Store { root, limits, used, streams, full_since })
    }

    pub fn used_bytes(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Stores a segment of a pod; when this returns, it is on the disk. What was stored before is
    /// not stored again.
    pub(super) fn append(
        &self,
        job: &JobName,
        (attempt, index, pod_uid): (u32, u32, &str),
        segment: &[u8],
    ) -> Result<Receipt, StoreError> {
        let by_rank = split(segment, attempt, index)?;
        let bytes = segment.len() as u64;
        if self.limits.total_bytes < self.used_bytes() + bytes && !self.make_room(bytes) {
            let (used, total) = (self.used_bytes(), self.limits.total_bytes);
            return Err(StoreError::Full { used, total });
        }
        let mut receipt = Receipt::default();
        for (rank, records) in by_rank {
            let name = StreamName { attempt, rank, index, pod_uid: pod_uid.to_owned() };
            let stream = self.stream(job, &name)?;
            let mut stream = lock(&stream);
            stream.used = Instant::now();
            let one = self.append_stream(&job.folder(&self.root), &name, &mut stream, &records)?;
            receipt.lines += one.lines;
            receipt.repeated += one.repeated;
            receipt.lost += one.lost;
        }
        Ok(receipt)
    }

    fn append_stream(
        &self,
        job: &Path,
        name: &StreamName,
        stream: &mut Stream,
        records: &[Record],
    ) -> Result<Receipt, StoreError> {
        let (frames, next, receipt) = fresh(stream.next, records);
        if frames.is_empty() {
            return Ok(receipt);
        }
        let (first, bytes) = match stream.part {
            Some((first, bytes)) if bytes < self.limits.part_bytes => (first, bytes),
            Some((first, bytes)) => {
                stream.closed.insert(first, bytes);
                (stream.next, 0)
            }
            None => (stream.next, 0),
        };
        let path = name.part(job, first);
        write(&path, &frames, bytes).map_err(|source| {
            if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
                StoreError::DiskFull { source }
            } else {
                StoreError::Write { path, source }
            }
        })?;
        stream.part = Some((first, bytes + frames.len() as u64));
        stream.next = next;
        self.used.fetch_add(frames.len() as u64, Ordering::Relaxed);
        self.limit_stream(job, name, stream);
        Ok(receipt)
    }

    /// Removes the oldest files of a stream that is too large.
    fn limit_stream(&self, job: &Path, name: &StreamName, stream: &mut Stream) {
        let newest = stream.part.map_or(0, |(_first, bytes)| bytes);
        while self.limits.stream_bytes < newest + stream.closed.values().sum::<u64>() {
            let Some((first, bytes)) = stream.closed.pop_first() else { return };
            if fs::remove_file(name.part(job, first)).is_ok() {
                self.used.fetch_sub(bytes, Ordering::Relaxed);
            }
        }
    }

    fn stream(&self, job: &JobName, name: &StreamName) -> Result<Arc<Mutex<Stream>>, StoreError> {
        let mut streams = lock(&self.streams);
        let key = (job.clone(), name.clone());
        if let Some(stream) = streams.get(&key) {
            return Ok(Arc::clone(stream));
        }
        let folder = job.folder(&self.root);
        let failed = |source| StoreError::Write { path: folder.clone(), source };
        let parts = names::parts_of_attempt(&folder, name.attempt).map_err(failed)?;
        let StreamName { rank, index, .. } = *name;
        // A rank belongs to the pod that wrote it first, and a pod has few of them.
        let mut ranks: Vec<u32> = parts
            .iter()
            .filter(|part| part.stream.index == index)
            .map(|part| part.stream.rank)
            .chain([rank])
            .collect();
        ranks.sort_unstable();
        let wide = RANKS_PER_POD <= ranks[ranks.len() - 1] - ranks[0];
        let taken = |part: &names::Part| part.stream.rank == rank && part.stream.index != index;
        if wide || parts.iter().any(taken) {
            return Err(StoreError::ForeignRank { rank, index });
        }
        let mut firsts: Vec<u64> =
            parts.iter().filter(|part| part.stream == *name).map(|part| part.first).collect();
        firsts.sort_unstable();
        let stream = open_stream(&folder, name, &firsts).map_err(failed)?;
        let stream = Arc::new(Mutex::new(stream));
        streams.insert(key, Arc::clone(&stream));
        Ok(stream)
    }
}

/// The records of a segment by rank; all of them, or an error.
fn split(
    segment: &[u8],
    attempt: u32,
    index: u32,
) -> Result<BTreeMap<u32, Vec<Record>>, StoreError> {
    let mut by_rank: BTreeMap<u32, Vec<Record>> = BTreeMap::new();
    let mut frames = Frames::new(segment);
    while let Some(record) = frames.next() {
        let rank = record.rank;
        // Pods are equal: with g ranks each, pod i has the ranks from i*g.
        let most = (u64::from(index) + 1) * u64::from(RANKS_PER_POD);
        if rank < index || most <= u64::from(rank) {
            return Err(StoreError::ForeignRank { rank, index });
        }
        if record.attempt != attempt && record.body != Body::Next {
            return Err(StoreError::Malformed { at: frames.end(), attempt });
        }
        by_rank.entry(rank).or_default().push(record);
    }
    if frames.end() != segment.len() {
        return Err(StoreError::Malformed { at: frames.end(), attempt });
    }
    Ok(by_rank)
}

/// Frames of what is new from `next` on, gaps included; the number after them; the receipt.
fn fresh(mut next: u64, records: &[Record]) -> (Vec<u8>, u64, Receipt) {
    let mut frames = Vec::new();
    let mut receipt = Receipt::default();
    let mut time_ms = records.iter().map(|record| record.time_ms).find(|time| *time != 0);
    for record in records {
        let until = match record.body {
            Body::Line(_) | Body::Next => record.number,
            Body::Gap(_) => record.next_number(),
        };
        if next < until {
            let body = Body::Gap(until - next);
            // A gap without a time stands beside its neighbours.
            let time_ms = if record.time_ms == 0 { time_ms.unwrap_or(0) } else { record.time_ms };
            receipt.lost += until - next;
            Record { number: next, body, time_ms, ..record.clone() }.encode(&mut frames);
            next = until;
        }
        if matches!(record.body, Body::Line(_)) {
            if record.number < next {
                receipt.repeated += 1;
                continue;
            }
            record.encode(&mut frames);
            receipt.lines += 1;
            next = record.next_number();
            time_ms = Some(record.time_ms);
        }
    }
    (frames, next, receipt)
}

/// What the files of a stream say; a torn end is cut off.
fn open_stream(job: &Path, name: &StreamName, firsts: &[u64]) -> io::Result<Stream> {
    let mut stream = Stream { next: 0, part: None, closed: BTreeMap::new(), used: Instant::now() };
    let Some((newest, closed)) = firsts.split_last() else { return Ok(stream) };
    for first in closed {
        stream.closed.insert(*first, fs::metadata(name.part(job, *first))?.len());
    }
    let path = name.part(job, *newest);
    let bytes = fs::read(&path)?;
    let mut frames = Frames::new(&bytes);
    stream.next = *newest;
    let mut whole;
    loop {
        for record in frames.by_ref() {
            stream.next = record.next_number();
        }
        whole = frames.end();
        // Damage in the middle must not make old numbers new.
        if !frames.skip_damage() {
            break;
        }
    }
    if whole < bytes.len() {
        OpenOptions::new().write(true).open(&path)?.set_len(whole as u64)?;
    }
    stream.part = Some((*newest, whole as u64));
    Ok(stream)
}

/// Writes at that place and waits for the disk; on an error the file is as before.
fn write(path: &Path, frames: &[u8], at: u64) -> io::Result<()> {
    let new = at == 0;
    let folder = path.parent().expect("a part lies in the folder of its attempt");
    if new {
        fs::create_dir_all(folder)?;
    }
    let file = OpenOptions::new().create(new).truncate(false).write(true).open(path)?;
    let written = file.write_all_at(frames, at).and_then(|()| file.sync_data());
    if let Err(error) = written {
        // If this fails too, the next write begins at the same place, over what is there.
        drop(file.set_len(at));
        return Err(error);
    }
    if new {
        // The names must be on the disk as well: of the file, its attempt, job and namespace.
        for folder in folder.ancestors().take(4) {
            File::open(folder)?.sync_all()?;
        }
    }
    Ok(())
}

impl Stream {
    /// How long nothing was added.
    pub(super) fn idle(&self) -> Duration {
        self.used.elapsed()
    }

    /// A file of it was removed.
    pub(super) fn forget(&mut self, first: u64) {
        self.closed.remove(&first);
    }

    /// Whether this file still grows.
    pub(super) fn grows(&self, first: u64) -> bool {
        self.part.is_some_and(|(newest, _bytes)| newest == first)
    }
}

/// A request that panicked has changed no position before its bytes were written.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
