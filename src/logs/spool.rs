//! The spool of a pod: lines are written to segment files at once and sent to the collector
//! after that. Training never waits for either.
//!
//! A line that was pushed is in the page cache within milliseconds, so it survives the death of
//! this process, and the next one goes on with it. When a disk or the collector is too slow, the
//! oldest lines are given up, and counted: numbers have no gaps, so each lost line shows.

mod disk;
mod ship;

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use disk::Store;

use super::segment::{self, Body, Record};
use crate::tls::Roots;

/// Which pod writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub namespace: String,
    pub job: String,
    /// Attempt of the job that the pod belongs to.
    pub attempt: u32,
    /// Completion index of the pod.
    pub index: u32,
    pub pod_uid: String,
}

/// Where the lines go.
#[derive(Clone, Debug)]
pub struct Destination {
    /// URL of the collector.
    pub collector: String,
    /// The pod's token, which the kubelet renews.
    pub token_file: PathBuf,
    /// Whom to believe to be the collector; none of them if it speaks plain HTTP.
    pub roots: Option<Roots>,
}

/// How much a spool may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A segment file ends after so many bytes.
    pub segment_bytes: u64,
    /// All segment files together; beyond it the oldest goes.
    pub total_bytes: u64,
    /// Text that waits in memory for the disk.
    pub queue_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { segment_bytes: 4 << 20, total_bytes: 256 << 20, queue_bytes: 8 << 20 }
    }
}

/// What has happened so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Lines that were pushed.
    pub pushed: u64,
    /// Lines in segment files.
    pub written: u64,
    /// Lines that the collector has on its disk.
    pub acknowledged: u64,
    /// Lines that were given up before they were acknowledged.
    pub lost: u64,
    /// Why the last request or write failed; empty after one that did not.
    pub trouble: Option<String>,
}

/// Takes lines, keeps them, sends them.
#[derive(Debug)]
pub struct Spool {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    shipper: Option<JoinHandle<()>>,
}

/// What the caller, the writer and the shipper share. Locks are taken one at a time.
#[derive(Debug)]
struct Shared {
    identity: Identity,
    queue_bytes: usize,
    queue: Mutex<Queue>,
    /// Lines are in the queue, or the spool closes.
    pushed: Condvar,
    store: Mutex<Store>,
    stats: Mutex<Stats>,
}

#[derive(Debug, Default)]
struct Queue {
    records: VecDeque<Record>,
    bytes: usize,
    /// Number of the next line by rank.
    next: BTreeMap<u32, u64>,
    /// The writer has lines that are in no segment yet.
    writing: bool,
    /// No more lines come, and all must be done by then.
    closing: Option<Instant>,
}

impl Spool {
    /// Opens the folder, goes on with what an earlier process left there, and begins to send it.
    /// Without a collector the segments stay in the folder, up to the limit.
    pub fn start(
        folder: &Path,
        destination: Option<Destination>,
        identity: Identity,
    ) -> io::Result<Spool> {
        Self::start_with(folder, destination, identity, Limits::default())
    }

    /// As [`Spool::start`], with other limits.
    pub fn start_with(
        folder: &Path,
        destination: Option<Destination>,
        identity: Identity,
        limits: Limits,
    ) -> io::Result<Spool> {
        let store = Store::open(folder, limits)?;
        let queue = Queue { next: store.next_numbers().clone(), ..Queue::default() };
        let shared = Arc::new(Shared {
            identity,
            queue_bytes: limits.queue_bytes,
            queue: Mutex::new(queue),
            pushed: Condvar::new(),
            store: Mutex::new(store),
            stats: Mutex::default(),
        });
        let shipper = match destination {
            Some(destination) => {
                let target = ship::Target::new(destination, &shared.identity);
                let shared = Arc::clone(&shared);
                let ship = move || ship::run(&shared, &target);
                Some(thread::Builder::new().name("log-shipper".to_owned()).spawn(ship)?)
            }
            None => None,
        };
        let writing = Arc::clone(&shared);
        let write = move || writing.write();
        let writer = thread::Builder::new().name("log-writer".to_owned()).spawn(write)?;
        Ok(Spool { shared, writer: Some(writer), shipper })
    }

    /// Takes a line of a rank. It only puts it into memory; if the disk cannot follow, the line
    /// is counted as lost. A text longer than [`segment::MAX_TEXT`] is cut.
    pub fn push(&self, rank: u32, epoch: u32, time_ms: u64, text: &str) {
        let mut queue = lock(&self.shared.queue);
        let next = queue.next.entry(rank).or_default();
        let number = *next;
        *next += 1;
        let text = &text[..segment::cut(text)];
        let fits = queue.bytes + text.len() <= self.shared.queue_bytes;
        if fits {
            queue.bytes += text.len() + size_of::<Record>();
            let body = Body::Line(text.to_owned());
            let attempt = self.shared.identity.attempt;
            queue.records.push_back(Record { rank, attempt, epoch, time_ms, number, body });
            self.shared.pushed.notify_all();
        }
        drop(queue);
        let mut stats = lock(&self.shared.stats);
        stats.pushed += 1;
        stats.lost += u64::from(!fits);
    }

    pub fn stats(&self) -> Stats {
        lock(&self.shared.stats).clone()
    }

    /// Whether the collector has every line on its disk; without a collector never.
    pub fn is_drained(&self) -> bool {
        self.shared.is_drained()
    }

    /// Writes what waits and sends it, for as long as the deadline allows. What is left then stays
    /// in the folder.
    pub fn close(mut self, deadline: Duration) -> Stats {
        self.end(deadline);
        self.stats()
    }

    fn end(&mut self, deadline: Duration) {
        let until = Instant::now() + deadline;
        lock(&self.shared.queue).closing.get_or_insert(until);
        self.shared.pushed.notify_all();
        for thread in [self.writer.take(), self.shipper.take()].into_iter().flatten() {
            // A thread that hangs in the kernel, on a dead disk, must not hold up the pod's end.
            while !thread.is_finished() && Instant::now() < until + Duration::from_millis(500) {
                thread::sleep(Duration::from_millis(5));
            }
            if thread.is_finished() {
                drop(thread.join());
            }
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if self.writer.is_some() {
            self.end(Duration::from_millis(200));
        }
    }
}

impl Shared {
    /// The writer: moves lines from memory to the newest segment.
    fn write(&self) {
        while let Some(records) = self.take() {
            let lines = records.len() as u64;
            let written = lock(&self.store).append(&records);
            let mut stats = lock(&self.stats);
            match written {
                Ok(dropped) => {
                    stats.written += lines;
                    stats.lost += dropped;
                }
                Err(error) => {
                    stats.lost += lines;
                    stats.trouble = Some(format!("failed to write a segment: {error}"));
                }
            }
        }
    }

    /// Waits for lines; `None` when the spool closes and all are taken.
    fn take(&self) -> Option<Vec<Record>> {
        let mut queue = lock(&self.queue);
        queue.writing = false;
        while queue.records.is_empty() {
            if queue.closing.is_some() {
                return None;
            }
            queue = self.pushed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.bytes = 0;
        queue.writing = true;
        Some(queue.records.drain(..).collect())
    }

    fn is_drained(&self) -> bool {
        // In this order: what left the writer's hands is in the store by then.
        let written = {
            let queue = lock(&self.queue);
            queue.records.is_empty() && !queue.writing
        };
        written && lock(&self.store).is_acknowledged()
    }

    fn closing(&self) -> Option<Instant> {
        lock(&self.queue).closing
    }

    /// Waits so long, or until the spool closes.
    fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut queue = lock(&self.queue);
        while queue.closing.is_none() {
            let Some(left) = until.checked_duration_since(Instant::now()) else { return };
            let waited = self.pushed.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A thread that panicked has left plain counters and positions behind, which are as true as ever.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
