//! Reads stored lines back: all streams of a job, merged by time.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use super::names::{self, StreamName};
use crate::logs::segment::{Body, Frames, MAX_FRAME, Record};

/// Bytes that are read at once.
const BLOCK: usize = 128 * 1024;
const _: () = assert!(MAX_FRAME <= BLOCK);

/// Which lines are wanted.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// All ranks if empty.
    pub ranks: Vec<u32>,
    pub attempt: Option<u32>,
    /// Milliseconds since the Unix epoch.
    pub since: Option<u64>,
}

/// One line of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredLine {
    pub time_ms: u64,
    /// Attempt of the job.
    pub attempt: u32,
    /// Start of the trainer within the job.
    pub epoch: u32,
    pub rank: u32,
    /// UID of the pod.
    pub pod: String,
    /// Number of the line, or of the first one that is missing.
    pub number: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// So many lines are missing here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
}

/// One stream of a job, as `GET …/streams` tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamInfo {
    pub attempt: u32,
    pub rank: u32,
    pub index: u32,
    pub pod: String,
    /// Number of the first line that is left.
    pub first: u64,
    pub bytes: u64,
}

/// What is stored of a job.
pub(super) fn streams(job: &std::path::Path) -> io::Result<Vec<StreamInfo>> {
    let mut streams: BTreeMap<StreamName, StreamInfo> = BTreeMap::new();
    for names::Part { stream, first } in names::parts(job)? {
        let bytes = std::fs::metadata(stream.part(job, first)).map_or(0, |file| file.len());
        let StreamName { attempt, rank, index, pod_uid } = stream.clone();
        let new = StreamInfo { attempt, rank, index, pod: pod_uid, first, bytes: 0 };
        streams.entry(stream).or_insert(new).bytes += bytes;
    }
    Ok(streams.into_values().collect())
}

/// Reads a job's lines, each once, while they grow.
#[derive(Debug)]
pub(super) struct Reader {
    job: PathBuf,
    query: Query,
    streams: BTreeMap<StreamName, StreamReader>,
}

impl Reader {
    pub(super) fn new(job: PathBuf, query: Query) -> Self {
        Reader { job, query, streams: BTreeMap::new() }
    }

    /// Gives the lines that are new since the last call to `each`, in the order of their times
    /// as far as each stream keeps to it, until `each` gives `false`.
    pub(super) fn read_new(&mut self, mut each: impl FnMut(StoredLine) -> bool) -> io::Result<()> {
        self.find_streams()?;
        let mut heads = BinaryHeap::new();
        let mut readers: Vec<&mut StreamReader> = self.streams.values_mut().collect();
        for (i, reader) in readers.iter_mut().enumerate() {
            if let Some(line) = reader.next(&self.query)? {
                heads.push(Reverse((line.time_ms, i, Head(line))));
            }
        }
        while let Some(Reverse((_time, i, Head(line)))) = heads.pop() {
            if let Some(next) = readers[i].next(&self.query)? {
                heads.push(Reverse((next.time_ms, i, Head(next))));
            }
            if !each(line) {
                break;
            }
        }
        Ok(())
    }

    fn find_streams(&mut self) -> io::Result<()> {
        for names::Part { stream, first } in names::parts(&self.job)? {
            let Query { ranks, attempt, .. } = &self.query;
            let wanted = (ranks.is_empty() || ranks.contains(&stream.rank))
                && attempt.is_none_or(|attempt| attempt == stream.attempt);
            if !wanted {
                continue;
            }
            let job = &self.job;
            let reader = self.streams.entry(stream);
            let reader = reader.or_insert_with_key(|name| StreamReader::new(job, name.clone()));
            reader.parts.insert(first);
        }
        Ok(())
    }
}

/// The order of heads is that of time and stream; the line itself is carried along.
struct Head(StoredLine);

impl PartialEq for Head {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}
impl Eq for Head {}
impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Head {
    fn cmp(&self, _other: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

#[derive(Debug)]
struct StreamReader {
    job: PathBuf,
    name: StreamName,
    /// First numbers of the files from the current one on.
    parts: std::collections::BTreeSet<u64>,
    /// The current file and the place of the next block in it.
    at: Option<(u64, u64)>,
    block: std::collections::VecDeque<Record>,
    /// Number of the next line, if all are there.
    next: u64,
}

impl StreamReader {
    fn new(job: &std::path::Path, name: StreamName) -> Self {
        let (parts, block) = Default::default();
        StreamReader { job: job.to_owned(), name, parts, at: None, block, next: 0 }
    }

    /// The next line that the query wants; `None` when there is no further one yet.
    fn next(&mut self, query: &Query) -> io::Result<Option<StoredLine>> {
        loop {
            let Some(record) = self.block.pop_front() else {
                if self.fill()? {
                    continue;
                }
                return Ok(None);
            };
            // A file may have been removed, or its end was torn: what is missing shows.
            let missing = record.number.saturating_sub(self.next);
            if 0 < missing {
                let gap = Record { number: self.next, body: Body::Gap(missing), ..record.clone() };
                self.next = record.number;
                self.block.push_front(record);
                self.block.push_front(gap);
                continue;
            }
            self.next = self.next.max(record.next_number());
            if query.since.is_none_or(|since| since <= record.time_ms) {
                return Ok(self.line(record));
            }
        }
    }

    fn line(&self, record: Record) -> Option<StoredLine> {
        let Record { rank, attempt: _, epoch, time_ms, number, body } = record;
        let (text, lost) = match body {
            Body::Line(text) => (Some(text), None),
            Body::Gap(count) => (None, Some(count)),
            Body::Next => return None,
        };
        let (attempt, pod) = (self.name.attempt, self.name.pod_uid.clone());
        Some(StoredLine { time_ms, attempt, epoch, rank, pod, number, text, lost })
    }

    /// Reads the next block; `false` at the end of what is there.
    fn fill(&mut self) -> io::Result<bool> {
        loop {
            let Some((first, offset)) = self.at.or_else(|| Some((*self.parts.first()?, 0))) else {
                return Ok(false);
            };
            let mut bytes = vec![0; BLOCK];
            let length = match File::open(self.name.part(&self.job, first)) {
                Ok(file) => read_at(&file, &mut bytes, offset)?,
                // Retention took it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
                Err(error) => return Err(error),
            };
            bytes.truncate(length);
            let mut frames = Frames::new(&bytes);
            self.block.extend(frames.by_ref());
            let mut end = frames.end();
            if self.block.is_empty() && 0 < length {
                // Damage, or a frame that is being written: only the first has more behind it.
                if frames.skip_damage() {
                    end = frames.end();
                } else if length == BLOCK {
                    end = BLOCK - MAX_FRAME;
                }
            }
            self.at = Some((first, offset + end as u64));
            if !self.block.is_empty() {
                return Ok(true);
            }
            if 0 < end {
                continue;
            }
            let Some(next) = self.parts.range(first + 1..).next().copied() else {
                return Ok(false);
            };
            self.parts.remove(&first);
            self.at = Some((next, 0));
        }
    }
}

/// Reads until the block is full or the file ends.
fn read_at(file: &File, block: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut length = 0;
    while length < block.len() {
        match file.read_at(&mut block[length..], offset + length as u64)? {
            0 => break,
            more => length += more,
        }
    }
    Ok(length)
}
