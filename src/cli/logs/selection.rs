//! Which ranks are shown, and files of saved lines.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    str::FromStr,
};

use super::Line;
use crate::{cli::CliError, wire::ExitStatus};

/// Ranks, counted from the first or, negative, from the last; all if empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranks(Vec<i64>);

impl FromStr for Ranks {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Ranks::default());
        }
        let ranks = text.split(',').map(|rank| rank.trim().parse::<i32>().map(i64::from));
        let ranks = ranks.collect::<Result<Vec<i64>, _>>();
        ranks.map(Ranks).map_err(|_error| {
            "expected ranks such as 0 or 0,3,-1 (-1 is the last), or `all`".to_owned()
        })
    }
}

impl Ranks {
    /// The first and the last.
    pub(super) fn ends() -> Self {
        Ranks(vec![0, -1])
    }

    /// Whether a rank is among them; `last` is the highest one, if it is known.
    pub(super) fn has(&self, rank: u32, last: Option<u32>) -> bool {
        let from_end = last.map(|last| i64::from(rank) - i64::from(last) - 1);
        let is = |wanted: &i64| *wanted == i64::from(rank) || Some(*wanted) == from_end;
        self.0.is_empty() || self.0.iter().any(is)
    }
}

/// A folder that lines are written into.
#[derive(Debug)]
pub(super) struct Saved {
    folder: PathBuf,
    files: BTreeMap<(u32, u32), BufWriter<File>>,
    lines: u64,
}

impl Saved {
    /// Creates the folder. Lines that are there already are not added to.
    pub(super) fn create(folder: &Path) -> Result<Self, CliError> {
        let failed = |error: io::Error| {
            let what = format!("failed to create `{}`", folder.display());
            CliError::of(ExitStatus::Usage, anyhow::Error::new(error).context(what))
        };
        fs::create_dir_all(folder).map_err(failed)?;
        if fs::read_dir(folder).map_err(failed)?.next().is_some() {
            let what = format!("folder `{}` is not empty", folder.display());
            return Err(CliError::new(ExitStatus::Usage, what)
                .hint("--save writes into a new or an empty folder"));
        }
        Ok(Saved { folder: folder.to_owned(), files: BTreeMap::new(), lines: 0 })
    }

    /// Appends a line with its time and number, as in the logs of a local run.
    pub(super) fn push(&mut self, line: &Line) -> io::Result<()> {
        let Line { time_ms, attempt, rank, number, text } = line;
        let file = match self.files.entry((*attempt, *rank)) {
            std::collections::btree_map::Entry::Occupied(file) => file.into_mut(),
            std::collections::btree_map::Entry::Vacant(place) => {
                let name = format!("attempt-{attempt:03}-rank-{rank:03}.log");
                place.insert(BufWriter::new(File::create_new(self.folder.join(name))?))
            }
        };
        self.lines += 1;
        writeln!(file, "{time_ms} {number} {text}")
    }

    pub(super) fn finish(self, out: &mut impl Write) -> io::Result<()> {
        let files = self.files.len();
        for file in self.files.into_values() {
            file.into_inner()?.sync_all()?;
        }
        writeln!(out, "{} lines in {files} files below {}", self.lines, self.folder.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_counted_from_both_ends() {
        let ranks: Ranks = "0,-1".parse().unwrap();
        assert_eq!(ranks, Ranks::ends());
        let shown = |last| (0..4).filter(|rank| ranks.has(*rank, last)).collect::<Vec<_>>();
        assert_eq!(shown(Some(3)), [0, 3]);
        assert_eq!(shown(None), [0]);
        assert!("all".parse::<Ranks>().unwrap().has(7, None));
        for bad in ["", "a", "1,", "99999999999"] {
            assert!(bad.parse::<Ranks>().unwrap_err().contains("0,3,-1"), "{bad}");
        }
    }

    #[test]
    fn saved_lines_go_into_a_file_per_rank() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("logs");
        let mut saved = Saved::create(&target).unwrap();
        let line = |rank| Line { time_ms: 5, attempt: 1, rank, number: 0, text: "a b".to_owned() };
        [0, 3, 0].iter().for_each(|rank| saved.push(&line(*rank)).unwrap());
        let mut out = Vec::new();
        saved.finish(&mut out).unwrap();
        assert!(String::from_utf8(out).unwrap().starts_with("3 lines in 2 files below "));
        let text = fs::read_to_string(target.join("attempt-001-rank-000.log")).unwrap();
        assert_eq!(text, "5 0 a b\n5 0 a b\n");
        assert!(Saved::create(&target).unwrap_err().to_string().contains("is not empty"));
    }
}
