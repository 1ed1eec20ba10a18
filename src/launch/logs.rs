//! Logs of the ranks: every line that a rank writes, with its time and a number.
//!
//! One file per attempt and rank, `logs/attempt-001-rank-000.log`; a line is
//! `milliseconds number text`. Numbers have no gaps, so a lost line would show.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// One line of one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub time_ms: u64,
    pub attempt: u32,
    pub rank: u32,
    pub number: u64,
    pub text: String,
}

/// The log of one rank of one attempt, while it grows.
#[derive(Debug)]
pub struct RankLog {
    file: File,
    next: u64,
}

impl RankLog {
    /// Creates the file below the output folder.
    pub fn create(output: &Path, attempt: u32, rank: u32) -> io::Result<Self> {
        let path = path(output, attempt, rank);
        fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(RankLog { file, next: 0 })
    }

    /// Appends a line.
    pub fn push(&mut self, time_ms: u64, text: &str) -> io::Result<()> {
        let line = format!("{time_ms} {} {text}\n", self.next);
        self.next += 1;
        self.file.write_all(line.as_bytes())
    }
}

fn path(output: &Path, attempt: u32, rank: u32) -> PathBuf {
    output.join("logs").join(format!("attempt-{attempt:03}-rank-{rank:03}.log"))
}

/// All lines of a run, merged over ranks and attempts in the order of their times.
pub fn read(output: &Path) -> io::Result<Vec<Line>> {
    Reader::new(output).read_new()
}

/// Reads logs that grow, each byte once.
#[derive(Debug)]
pub struct Reader {
    folder: PathBuf,
    /// By file: bytes that were read as whole lines.
    read: BTreeMap<PathBuf, u64>,
}

impl Reader {
    /// A reader of the logs below an output folder, from their beginning.
    pub fn new(output: &Path) -> Self {
        Reader { folder: output.join("logs"), read: BTreeMap::new() }
    }

    /// Lines that were completed since the last call, in the order of their times.
    pub fn read_new(&mut self) -> io::Result<Vec<Line>> {
        let mut lines = Vec::new();
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(lines),
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            let mut numbers = name.split('-').filter_map(|word| word.parse::<u32>().ok());
            let (Some(attempt), Some(rank)) = (numbers.next(), numbers.next()) else { continue };
            let text = self.new_text(path)?;
            lines.extend(text.lines().filter_map(|line| parse(line, attempt, rank)));
        }
        lines.sort_by_key(|line| (line.time_ms, line.attempt, line.rank, line.number));
        Ok(lines)
    }

    fn new_text(&mut self, path: PathBuf) -> io::Result<String> {
        let mut file = File::open(&path)?;
        let from = self.read.entry(path).or_default();
        file.seek(SeekFrom::Start(*from))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        // The writer may be in the middle of the last line.
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        *from += whole as u64;
        Ok(String::from_utf8_lossy(&bytes[..whole]).into_owned())
    }
}

fn parse(line: &str, attempt: u32, rank: u32) -> Option<Line> {
    let mut words = line.splitn(3, ' ');
    let time_ms = words.next()?.parse().ok()?;
    let number = words.next()?.parse().ok()?;
    Some(Line { time_ms, attempt, rank, number, text: words.next()?.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_all_ranks_come_in_the_order_of_time() {
        let folder = tempfile::tempdir().unwrap();
        let mut zero = RankLog::create(folder.path(), 1, 0).unwrap();
        let mut one = RankLog::create(folder.path(), 1, 1).unwrap();
        zero.push(10, "a b").unwrap();
        one.push(5, "").unwrap();
        zero.push(20, "c").unwrap();
        let lines = read(folder.path()).unwrap();
        let seen: Vec<_> = lines.iter().map(|l| (l.rank, l.number, l.text.as_str())).collect();
        assert_eq!(seen, [(1, 0, ""), (0, 0, "a b"), (0, 1, "c")]);
    }

    #[test]
    fn a_reader_gives_each_line_once_and_waits_for_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = RankLog::create(folder.path(), 2, 1).unwrap();
        let mut reader = Reader::new(folder.path());
        assert_eq!(reader.read_new().unwrap(), []);
        log.push(1, "a").unwrap();
        log.file.write_all(b"2 1 hal").unwrap();
        let first = reader.read_new().unwrap();
        let expected = Line { time_ms: 1, attempt: 2, rank: 1, number: 0, text: "a".to_owned() };
        assert_eq!(first, [expected]);
        log.file.write_all(b"f\n").unwrap();
        let texts: Vec<_> = reader.read_new().unwrap().into_iter().map(|line| line.text).collect();
        assert_eq!(texts, ["half"]);
        assert_eq!(reader.read_new().unwrap(), []);
    }
}
