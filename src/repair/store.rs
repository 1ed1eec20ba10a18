//! The journal on disk: one process at a time, one line at a time, each on the disk before the next
//! step.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::journal::{Record, Torn, Transaction, records, transactions};

/// How long another `--fix` or `undo` on this machine is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It cannot be read or written.
    #[error("failed to use the journal of repairs `{path}`")]
    Io {
        /// Its path.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// Another process has it.
    #[error("another repair or undo is running on this machine (it holds `{path}`)")]
    Busy {
        /// Its path.
        path: String,
    },
    /// Somebody else wrote into it.
    #[error("the journal of repairs `{path}` is damaged")]
    Torn {
        /// Its path.
        path: String,
        /// Where.
        source: Torn,
    },
}

/// The journal, locked until it is dropped.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    records: Vec<Record>,
}

impl Journal {
    /// Opens the journal at `path`, creates it if needed, and waits for its lock.
    pub fn open(path: &Path) -> Result<Journal, JournalError> {
        let io = |source| JournalError::Io { path: path.display().to_string(), source };
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(io)?;
        lock(&file, path)?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)?;
        let mut journal = Journal { path: path.to_owned(), file, records: Vec::new() };
        let text = journal.text().map_err(io)?;
        journal.records = parsed(path, &text)?;
        // A line that was being written when its writer died.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        journal.file.set_len(whole as u64).map_err(io)?;
        Ok(journal)
    }

    /// What a journal says, without waiting for its lock; nothing if there is none.
    pub fn read(path: &Path) -> Result<Vec<Transaction>, JournalError> {
        match fs::read_to_string(path) {
            Ok(text) => Ok(transactions(&parsed(path, &text)?)),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(JournalError::Io { path: path.display().to_string(), source }),
        }
    }

    fn text(&mut self) -> io::Result<String> {
        let mut text = String::new();
        self.file.seek(SeekFrom::Start(0))?;
        self.file.read_to_string(&mut text)?;
        Ok(text)
    }

    /// Every repair and what became of it, the oldest first.
    pub fn transactions(&self) -> Vec<Transaction> {
        transactions(&self.records)
    }

    /// A number that no repair has had.
    pub fn next_id(&self) -> u64 {
        self.transactions().iter().map(|one| one.begin.id).max().unwrap_or(0) + 1
    }

    /// Writes a record to the disk.
    pub fn append(&mut self, record: Record) -> Result<(), JournalError> {
        let written = self.write(&record);
        written
            .map_err(|source| JournalError::Io { path: self.path.display().to_string(), source })?;
        self.records.push(record);
        Ok(())
    }

    fn write(&mut self, record: &Record) -> io::Result<()> {
        let line = serde_json::to_string(record).expect("plain data") + "\n";
        let end = self.file.seek(SeekFrom::End(0))?;
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_all());
        if written.is_err() {
            // A full disk: what does not count must not stand before what will.
            let _best_effort = self.file.set_len(end);
        }
        written
    }

    /// A handle that keeps the lock for as long as a child of this process has it, even if this
    /// process dies before the child.
    pub fn lock(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

fn parsed(path: &Path, text: &str) -> Result<Vec<Record>, JournalError> {
    records(text).map_err(|source| JournalError::Torn { path: path.display().to_string(), source })
}

fn lock(file: &File, path: &Path) -> Result<(), JournalError> {
    let begin = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if begin.elapsed() < PATIENCE => {
                thread::sleep(Duration::from_millis(50));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(JournalError::Busy { path: path.display().to_string() });
            }
            Err(TryLockError::Error(source)) => {
                return Err(JournalError::Io { path: path.display().to_string(), source });
            }
        }
    }
}
