//! The segment files of a spool and the position up to which the collector has them.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write,
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{
    Limits,
    segment::{Body, Frames, Record},
};

/// Number of the next line by rank.
pub(super) type Numbers = BTreeMap<u32, u64>;

/// A place in the row of segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    segment: u64,
    offset: u64,
}

/// Frames that the collector does not have yet.
#[derive(Debug)]
pub(super) struct Batch {
    pub frames: Vec<u8>,
    /// Lines in it.
    pub lines: u64,
    /// Where the next batch begins.
    pub end: Position,
    /// Numbers of the ranks' next lines after it.
    pub next: Numbers,
}

#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
    limits: Limits,
    /// Number and whole bytes of each segment file, oldest first. The last one grows.
    segments: VecDeque<(u64, u64)>,
    newest: File,
    /// Number of the next line of each rank.
    next: Numbers,
    /// The collector has everything before it.
    acknowledged: Position,
    /// Numbers of the ranks' next lines at that position. They outlive the segments, since a
    /// number that is given twice would look like a repetition.
    acknowledged_next: Numbers,
}

impl Store {
    /// Reads what is there. A frame that a dead process left half-written is cut off.
    pub(super) fn open(folder: &Path, limits: Limits) -> io::Result<Store> {
        fs::create_dir_all(folder)?;
        let (mut acknowledged, acknowledged_next) = read_position(folder).unwrap_or_default();
        let mut segments = VecDeque::new();
        let mut next = acknowledged_next.clone();
        for number in numbers(folder)? {
            let path = path(folder, number);
            let bytes = fs::read(&path)?;
            let mut frames = Frames::new(&bytes);
            for record in frames.by_ref() {
                let next = next.entry(record.rank).or_default();
                *next = record.next_number().max(*next);
            }
            if frames.end() < bytes.len() {
                OpenOptions::new().write(true).open(&path)?.set_len(frames.end() as u64)?;
            }
            segments.push_back((number, frames.end() as u64));
        }
        if segments.is_empty() {
            // The old position must not cover what is to come.
            segments.push_back((acknowledged.segment + 1, 0));
        }
        let (newest, bytes) = *segments.back().expect("there is always one");
        let first = Position { segment: segments[0].0, offset: 0 };
        let end = Position { segment: newest, offset: bytes };
        acknowledged = acknowledged.clamp(first, end);
        let newest = open_segment(folder, newest)?;
        let folder = folder.to_owned();
        Ok(Store { folder, limits, segments, newest, next, acknowledged, acknowledged_next })
    }

    pub(super) fn next_numbers(&self) -> &Numbers {
        &self.next
    }

    pub(super) fn is_acknowledged(&self) -> bool {
        self.end() <= self.acknowledged
    }

    fn end(&self) -> Position {
        let (segment, offset) = *self.segments.back().expect("there is always one");
        Position { segment, offset }
    }

    /// Appends lines, a gap before those whose predecessors were lost on the way. Gives the number
    /// of older lines that had to go for it.
    pub(super) fn append(&mut self, records: &[Record]) -> io::Result<u64> {
        let mut dropped = self.rotate()?;
        let mut frames = Vec::new();
        let mut next = self.next.clone();
        for record in records {
            let expected = next.entry(record.rank).or_default();
            if *expected < record.number {
                let body = Body::Gap(record.number - *expected);
                Record { number: *expected, body, ..record.clone() }.encode(&mut frames);
            }
            record.encode(&mut frames);
            *expected = record.next_number();
        }
        dropped += self.write_making_room(&frames)?;
        self.next = next;
        Ok(dropped)
    }

    /// Writes; on a full disk at the cost of older segments.
    fn write_making_room(&mut self, frames: &[u8]) -> io::Result<u64> {
        let mut dropped = 0;
        while let Err(error) = self.write(frames) {
            // The volume may be smaller than our limit, or others fill it.
            if error.kind() != ErrorKind::StorageFull || self.segments.len() == 1 {
                return Err(error);
            }
            dropped += self.drop_oldest()?;
        }
        Ok(dropped)
    }

    /// Writes all of the frames or none.
    fn write(&mut self, frames: &[u8]) -> io::Result<()> {
        let (_number, bytes) = self.segments.back_mut().expect("there is always one");
        if let Err(error) = self.newest.write_all_at(frames, *bytes) {
            // If this fails too, the next write begins at the same place, over what is there.
            drop(self.newest.set_len(*bytes));
            return Err(error);
        }
        *bytes += frames.len() as u64;
        Ok(())
    }

    /// Begins a new segment after a full one, and keeps to the limit of all.
    fn rotate(&mut self) -> io::Result<u64> {
        let (number, bytes) = *self.segments.back().expect("there is always one");
        if bytes < self.limits.segment_bytes {
            return Ok(0);
        }
        self.newest = open_segment(&self.folder, number + 1)?;
        self.segments.push_back((number + 1, 0));
        // The numbers go on even if this segment is all that is left.
        let mut frames = Vec::new();
        for (rank, number) in &self.next {
            let body = Body::Next;
            let (rank, number) = (*rank, *number);
            Record { rank, attempt: 0, epoch: 0, time_ms: 0, number, body }.encode(&mut frames);
        }
        let mut dropped = self.write_making_room(&frames)?;
        while 1 < self.segments.len() && self.limits.total_bytes < self.bytes() {
            dropped += self.drop_oldest()?;
        }
        Ok(dropped)
    }

    fn bytes(&self) -> u64 {
        self.segments.iter().map(|(_number, bytes)| bytes).sum()
    }

    /// Removes the oldest segment; gives the number of lines in it that the collector has not.
    fn drop_oldest(&mut self) -> io::Result<u64> {
        let (number, _bytes) = self.segments[0];
        let path = path(&self.folder, number);
        let mut lost = 0;
        if self.acknowledged.segment <= number {
            let bytes = fs::read(&path)?;
            let from = usize::try_from(self.acknowledged.offset).unwrap_or(usize::MAX);
            lost = count_lines(bytes.get(from..).unwrap_or_default());
        }
        fs::remove_file(&path)?;
        self.segments.pop_front();
        let first = Position { segment: self.segments[0].0, offset: 0 };
        self.acknowledged = self.acknowledged.max(first);
        Ok(lost)
    }

    /// The oldest frames that the collector does not have, about `limit` bytes of them.
    pub(super) fn batch(&mut self, limit: usize) -> io::Result<Option<Batch>> {
        while self.acknowledged < self.end() {
            let Position { segment, offset } = self.acknowledged;
            let held = self.segments.iter().find(|(number, _bytes)| *number == segment);
            let bytes = held.map_or(0, |(_number, bytes)| *bytes);
            if bytes <= offset {
                // All of this segment is acknowledged, and it is not the newest.
                fs::remove_file(path(&self.folder, segment))?;
                self.segments.retain(|(number, _bytes)| *number != segment);
                self.acknowledged = Position { segment: self.segments[0].0, offset: 0 };
                continue;
            }
            let length = usize::try_from(bytes - offset).unwrap_or(usize::MAX).min(limit);
            let mut frames = vec![0; length];
            File::open(path(&self.folder, segment))?.read_exact_at(&mut frames, offset)?;
            let mut reader = Frames::new(&frames);
            let (mut lines, mut next) = (0, BTreeMap::new());
            for record in reader.by_ref() {
                lines += u64::from(is_line(&record));
                next.insert(record.rank, record.next_number());
            }
            let whole = reader.end();
            if whole == 0 {
                // The disk has changed what was written: the gap will show.
                self.acknowledged.offset = bytes;
                continue;
            }
            frames.truncate(whole);
            let end = Position { segment, offset: offset + whole as u64 };
            return Ok(Some(Batch { frames, lines, end, next }));
        }
        Ok(None)
    }

    /// The collector has this batch, given as its end and next numbers.
    pub(super) fn acknowledge(&mut self, end: Position, next: Numbers) -> io::Result<()> {
        if end <= self.acknowledged {
            // The batch was given up meanwhile, to make room.
            return Ok(());
        }
        self.acknowledged = end;
        self.acknowledged_next.extend(next);
        let mut text = format!("{} {}\n", end.segment, end.offset);
        for (rank, number) in &self.acknowledged_next {
            writeln!(text, "{rank} {number}").expect("a string takes all");
        }
        // A position that is too old costs a repetition, which the collector knows by its numbers.
        let new = self.folder.join("acknowledged.new");
        fs::write(&new, text)?;
        fs::rename(new, self.folder.join("acknowledged"))
    }
}

fn is_line(record: &Record) -> bool {
    matches!(record.body, Body::Line(_))
}

fn count_lines(frames: &[u8]) -> u64 {
    Frames::new(frames).filter(is_line).count() as u64
}

fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:012}.seg"))
}

fn open_segment(folder: &Path, number: u64) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).open(path(folder, number))
}

/// Numbers of the segment files, in order.
fn numbers(folder: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let stem = name.to_str().and_then(|name| name.strip_suffix(".seg"));
        numbers.extend(stem.and_then(|stem| stem.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The first line holds segment and offset, each other one a rank and its next number.
fn read_position(folder: &Path) -> Option<(Position, Numbers)> {
    let text = fs::read_to_string(folder.join("acknowledged")).ok()?;
    let pair = |line: &str| {
        let (one, two) = line.split_once(' ')?;
        Some((one.parse::<u64>().ok()?, two.parse::<u64>().ok()?))
    };
    let mut pairs = text.lines().filter_map(pair);
    let (segment, offset) = pairs.next()?;
    let next = pairs.filter_map(|(rank, number)| Some((u32::try_from(rank).ok()?, number)));
    Some((Position { segment, offset }, next.collect()))
}
