//! Names of folders and files: `{namespace}/{job}/a00001/r00003.i0001.{pod uid}.{first number}.log`.
//!
//! Every name that comes from a request is checked before a path is made of it.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

/// Ranks of one pod at most: one pod per node, one rank per GPU.
pub(super) const RANKS_PER_POD: u32 = 16;

/// A name that no namespace, job or pod has.
#[derive(Debug, thiserror::Error)]
#[error("`{value}` is no {what}: expected 1 to {longest} of a-z, 0-9 and `-`")]
pub(super) struct BadName {
    what: &'static str,
    value: String,
    longest: usize,
}

/// The checked names of a job.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct JobName {
    pub namespace: String,
    pub job: String,
}

impl JobName {
    pub(super) fn new(namespace: &str, job: &str) -> Result<Self, BadName> {
        check("namespace", namespace)?;
        check("job", job)?;
        Ok(JobName { namespace: namespace.to_owned(), job: job.to_owned() })
    }

    pub(super) fn folder(&self, root: &Path) -> PathBuf {
        root.join(&self.namespace).join(&self.job)
    }
}

pub(super) fn attempt_folder(job: &Path, attempt: u32) -> PathBuf {
    job.join(format!("a{attempt:05}"))
}

/// Refuses what could leave the folder, or name a file that is none of ours.
pub(super) fn check(what: &'static str, value: &str) -> Result<(), BadName> {
    let longest = 63;
    let fits = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    if value.is_empty() || longest < value.len() || !value.bytes().all(fits) {
        let value = value.chars().take(80).collect();
        return Err(BadName { what, value, longest });
    }
    Ok(())
}

/// All lines of one rank from one pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct StreamName {
    pub attempt: u32,
    pub rank: u32,
    /// Completion index of the pod.
    pub index: u32,
    pub pod_uid: String,
}

impl StreamName {
    pub(super) fn part(&self, job: &Path, first: u64) -> PathBuf {
        let StreamName { attempt, rank, index, pod_uid } = self;
        attempt_folder(job, *attempt)
            .join(format!("r{rank:05}.i{index:04}.{pod_uid}.{first:020}.log"))
    }
}

/// One file of a stream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Part {
    pub stream: StreamName,
    /// Number of its first line.
    pub first: u64,
}

/// The parts below a job's folder, those of a stream together and in order.
pub(super) fn parts(job: &Path) -> io::Result<Vec<Part>> {
    let mut parts = Vec::new();
    for entry in entries(job)? {
        let name = entry.file_name();
        let attempt = name.to_str().and_then(|name| name.strip_prefix('a')?.parse().ok());
        if let Some(attempt) = attempt {
            parts.extend(parts_of_attempt(job, attempt)?);
        }
    }
    parts.sort_unstable();
    Ok(parts)
}

/// The parts of one attempt, in no order.
pub(super) fn parts_of_attempt(job: &Path, attempt: u32) -> io::Result<Vec<Part>> {
    let entries = entries(&attempt_folder(job, attempt))?;
    Ok(entries.iter().filter_map(|e| part(attempt, e.file_name().to_str()?)).collect())
}

fn part(attempt: u32, name: &str) -> Option<Part> {
    let mut words = name.strip_suffix(".log")?.split('.');
    let rank = words.next()?.strip_prefix('r')?.parse().ok()?;
    let index = words.next()?.strip_prefix('i')?.parse().ok()?;
    let pod_uid = words.next()?.to_owned();
    let first = words.next()?.parse().ok()?;
    let stream = StreamName { attempt, rank, index, pod_uid };
    words.next().is_none().then_some(Part { stream, first })
}

/// What a folder holds; nothing if it does not exist.
pub(super) fn entries(folder: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_no_names() {
        for bad in ["", "..", "a/b", "a\0", "A", "a.b", "a b", "é", "../../etc", &"a".repeat(64)] {
            assert!(check("job", bad).is_err(), "{bad:?}");
        }
        check("job", "digits-2").unwrap();
    }

    #[test]
    fn a_part_is_read_back_from_its_name() {
        let pod_uid = "0b1f-22".to_owned();
        let stream = StreamName { attempt: 2, rank: 70_000, index: 3, pod_uid };
        let path = stream.part(Path::new("j"), 12);
        assert_eq!(path, Path::new("j/a00002/r70000.i0003.0b1f-22.00000000000000000012.log"));
        let name = path.file_name().unwrap().to_str().unwrap();
        assert_eq!(part(2, name), Some(Part { stream, first: 12 }));
        assert_eq!(part(2, "r1.log"), None);
        assert_eq!(part(2, "lost+found"), None);
    }
}
