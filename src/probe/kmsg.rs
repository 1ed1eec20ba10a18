//! The kernel log, `/dev/kmsg`: one record a line, `priority,sequence,microseconds,flags;text`.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{ErrorKind, Read},
    mem,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::Options;
use crate::facts::{Fact, FaultKind, KernelFault, KernelLog, XidEvent};

const FROM: &str = "/dev/kmsg";
/// Records of the kernel fit into this.
const RECORD: usize = 8192;
/// A record that is read in several parts is not longer.
const LONGEST: usize = 8 * RECORD;
/// More than any ring buffer holds, which is 32 MiB with the largest usual setting.
const BYTES: u64 = 256 << 20;
/// A log that never stops must not fill the memory: so many messages of one kind are kept, the
/// newest, each so long.
const KEPT_OF_A_KIND: usize = 32;
const KEPT: usize = 256;
const TEXT: usize = 400;

/// Patterns of messages about trouble, and what they mean.
const FAULTS: [(&str, FaultKind); 11] = [
    ("Out of memory: Kill", FaultKind::OutOfMemory),
    ("Memory cgroup out of memory: Kill", FaultKind::OutOfMemory),
    ("blocked for more than", FaultKind::HungTask),
    ("soft lockup", FaultKind::Lockup),
    ("hard LOCKUP", FaultKind::Lockup),
    ("Machine check events logged", FaultKind::MachineCheck),
    ("[Hardware Error]", FaultKind::MachineCheck),
    ("I/O error, dev", FaultKind::Io),
    ("EXT4-fs error", FaultKind::Io),
    ("XFS (", FaultKind::Io),
    ("AER: Uncorrected", FaultKind::Pcie),
];

/// What the log says now.
pub(super) fn log(options: &Options) -> Fact<KernelLog> {
    let mut follower = KernelLogFollower::new(&options.root);
    follower.poll();
    follower.log()
}

/// Reads the kernel log as it grows. Each record is read once; reading never waits.
#[derive(Debug)]
pub struct KernelLogFollower {
    path: PathBuf,
    file: Option<File>,
    /// Begin of a record whose end was not there yet.
    rest: Vec<u8>,
    /// Sequence number of the last record.
    last: Option<u64>,
    messages: Messages,
    /// Why nothing can be read.
    error: Option<String>,
    lost: u64,
}

/// Messages of the kernel, of which those about trouble are kept.
#[derive(Debug, Default)]
pub(super) struct Messages {
    pub(super) log: KernelLog,
    /// XIDs by code, all of them.
    xids: BTreeMap<u32, u64>,
}

impl KernelLogFollower {
    /// Follows `dev/kmsg` below `root`. Nothing is read yet.
    pub fn new(root: &Path) -> Self {
        KernelLogFollower {
            path: root.join(FROM.trim_start_matches('/')),
            file: None,
            rest: Vec::new(),
            last: None,
            messages: Messages::default(),
            error: Some("not read yet".to_owned()),
            lost: 0,
        }
    }

    /// Reads what is new. Says whether that is trouble, or whether the log can no longer be read,
    /// or can be read again.
    pub fn poll(&mut self) -> bool {
        let before = (self.messages.log.clone(), self.error.is_some());
        match self.read() {
            Ok(()) => self.error = None,
            Err(error) => {
                // Opened again next time, in case that what failed was this opening.
                self.file = None;
                self.rest.clear();
                let denied = error.kind() == ErrorKind::PermissionDenied;
                let hint = if denied { "; reading it needs CAP_SYSLOG" } else { "" };
                self.error = Some(format!("{error}{hint}"));
            }
        }
        before != (self.messages.log.clone(), self.error.is_some())
    }

    /// What was read so far.
    pub fn log(&self) -> Fact<KernelLog> {
        match &self.error {
            None => Fact::known(self.messages.log.clone(), FROM),
            Some(why) => Fact::unread(why, FROM),
        }
    }

    /// XIDs by code, all that were read.
    pub const fn xids(&self) -> &BTreeMap<u32, u64> {
        &self.messages.xids
    }

    /// Records that the kernel overwrote before they were read.
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    fn read(&mut self) -> std::io::Result<()> {
        if self.file.is_none() {
            let mut options = OpenOptions::new();
            options.read(true).custom_flags(nix::libc::O_NONBLOCK);
            self.file = Some(options.open(&self.path)?);
        }
        let mut record = vec![0; RECORD];
        let mut bytes = 0;
        while let Some(file) = &mut self.file {
            match file.read(&mut record) {
                Ok(0) => break,
                Ok(length) => {
                    bytes += length as u64;
                    self.take(&record[..length]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // EPIPE: a record was overwritten while we read; the next read goes on after it.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(error) => return Err(error),
            }
            if BYTES < bytes {
                let what = format!("more than {} MiB, which no kernel log is", BYTES >> 20);
                return Err(std::io::Error::new(ErrorKind::FileTooLarge, what));
            }
        }
        // A kernel has said something; a file without any record is no kernel log.
        let nothing = || std::io::Error::new(ErrorKind::InvalidData, "there is no record in it");
        self.last.map(|_sequence| ()).ok_or_else(nothing)
    }

    /// Takes bytes, which may be a part of a record or several of them.
    fn take(&mut self, bytes: &[u8]) {
        let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n') else {
            self.rest.extend_from_slice(bytes);
            if LONGEST < self.rest.len() {
                // No record is that long: this one is thrown away up to its end.
                self.rest.clear();
            }
            return;
        };
        let mut whole = mem::replace(&mut self.rest, bytes[end + 1..].to_vec());
        whole.extend_from_slice(&bytes[..=end]);
        String::from_utf8_lossy(&whole).lines().for_each(|line| self.line(line));
    }

    fn line(&mut self, line: &str) {
        let Some((head, message)) = line.split_once(';') else { return };
        let mut numbers = head.split(',').skip(1).map(|number| number.parse::<u64>().ok());
        let (Some(Some(sequence)), Some(Some(time_us))) = (numbers.next(), numbers.next()) else {
            return;
        };
        if let Some(last) = self.last {
            // After an error the file is read from its begin.
            if sequence <= last {
                return;
            }
            self.lost += sequence - last - 1;
        }
        self.last = Some(sequence);
        self.messages.take(message, time_us);
    }
}

impl Messages {
    pub(super) fn take(&mut self, message: &str, time_us: u64) {
        if let Some(event) = xid(message, time_us) {
            *self.xids.entry(event.xid).or_default() += 1;
            self.log.xids.push(event);
            let same =
                |a: &XidEvent, b: &XidEvent| a.xid == b.xid && a.pci_address == b.pci_address;
            self.log.forgotten += bound(&mut self.log.xids, same);
        } else if message.contains("NVRM: loading NVIDIA") {
            self.log.module_loaded_us = Some(time_us);
        } else if let Some(kind) = fault(message) {
            let text = cut(message);
            self.log.faults.push(KernelFault { kind, time_us, text });
            self.log.forgotten += bound(&mut self.log.faults, |a, b| a.kind == b.kind);
        }
    }
}

/// Removes the oldest like the newest, or the oldest of all, if there are too many. Says how many
/// were removed.
fn bound<T>(list: &mut Vec<T>, same: impl Fn(&T, &T) -> bool) -> u64 {
    let Some(newest) = list.last() else { return 0 };
    let alike = list.iter().filter(|other| same(other, newest)).count();
    let first = list.iter().position(|other| same(other, newest)).unwrap_or(0);
    if KEPT_OF_A_KIND < alike {
        list.remove(first);
        return 1;
    }
    if KEPT < list.len() {
        list.remove(0);
        return 1;
    }
    0
}

fn cut(text: &str) -> String {
    text.chars().take(TEXT).collect()
}

fn fault(message: &str) -> Option<FaultKind> {
    let (_pattern, kind) = FAULTS.iter().find(|(pattern, _kind)| message.contains(pattern))?;
    // XFS names its mounts in good messages too.
    let harmless = message.contains("XFS (") && !message.to_lowercase().contains("error");
    (!harmless).then_some(*kind)
}

/// `NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, GPU has fallen off the bus.`
fn xid(message: &str, time_us: u64) -> Option<XidEvent> {
    let (_before, rest) = message.split_once("NVRM: Xid (PCI:")?;
    let (address, rest) = rest.split_once("): ")?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let xid = rest[..end].parse().ok()?;
    let text = rest[end..].trim_start_matches([',', ' ']).to_owned();
    let pid = text.split_once("pid=").and_then(|(_before, rest)| {
        let digits: String =
            rest.trim_start_matches('\'').chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    });
    let address = address.to_lowercase();
    let pci_address = if address.contains('.') { address } else { format!("{address}.0") };
    Some(XidEvent { xid, pci_address, pid, time_us, text: cut(&text) })
}

#[cfg(test)]
mod tests {
    use std::{fmt::Write as _, fs, io::Write as _};

    use super::*;

    /// A log of this text, and its file.
    fn follow(text: &str) -> (KernelLogFollower, File, tempfile::TempDir) {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("dev")).unwrap();
        let mut file = File::create(root.path().join("dev/kmsg")).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        (KernelLogFollower::new(root.path()), file, root)
    }

    #[test]
    fn messages_of_the_driver_are_read() {
        let text = "6,1,100,-;NVRM: loading NVIDIA UNIX x86_64 Kernel Module  535.54.03\n\
            4,2,200,-;NVRM: Xid (PCI:0000:3B:00): 79, pid='1234', name=python, GPU has fallen off the bus.\n\
            4,3,300,-;NVRM: Xid (PCI:0000:3b:00): 154, GPU recovery action changed from 0x0 (None) to 0x1\n\
            4,4,400,-;Out of memory: Killed process 77 (qvl-train)\n\
            6,5,500,-;XFS (sda1): Mounting V5 Filesystem\n SUBSYSTEM=block\n";
        let (mut follower, _file, _root) = follow(text);
        assert!(follower.poll());
        let Fact::Known { value: log, .. } = follower.log() else { panic!("unread") };
        assert_eq!(log.module_loaded_us, Some(100));
        assert_eq!(log.xids.iter().map(|event| event.xid).collect::<Vec<_>>(), [79, 154]);
        assert_eq!(log.xids[0].pci_address, "0000:3b:00.0");
        assert_eq!(log.xids[0].pid, Some(1234));
        assert_eq!(log.faults.len(), 1);
        assert_eq!(log.faults[0].kind, FaultKind::OutOfMemory);
    }

    #[test]
    fn a_log_that_grows_is_read_once_and_only_trouble_is_news() {
        let (mut follower, mut file, _root) = follow("6,0,1,-;hello\n");
        // From "not read yet" to readable.
        assert!(follower.poll());
        assert!(!follower.poll());
        file.write_all(b"6,1,2,-;still well\n4,2,3,-;NVRM: Xid (PCI:0000:3b:00): 48, Dou").unwrap();
        assert!(!follower.poll());
        file.write_all(b"ble Bit\n").unwrap();
        assert!(follower.poll());
        assert!(!follower.poll());
        file.write_all(b"4,7,3,-;NVRM: Xid (PCI:0000:3b:00): 48, again\n").unwrap();
        assert!(follower.poll());
        assert_eq!(*follower.xids(), BTreeMap::from([(48, 2)]));
        assert_eq!(follower.lost(), 4);
        assert_eq!(follower.log().value().unwrap().xids[0].text, "Double Bit");
    }

    #[test]
    fn a_log_that_cannot_be_read_is_unread_until_it_can() {
        let (mut follower, _file, root) = follow("4,0,1,-;soft lockup\n");
        let path = root.path().join("dev/kmsg");
        fs::rename(&path, root.path().join("gone")).unwrap();
        assert!(!follower.poll());
        assert!(follower.log().get().unwrap_err().why.contains("No such file"));
        fs::rename(root.path().join("gone"), &path).unwrap();
        assert!(follower.poll());
        assert_eq!(follower.log().value().unwrap().faults.len(), 1);
    }

    #[test]
    fn what_is_no_kernel_log_is_unread() {
        for text in ["", "hello\n", "a;b\n1,2;3\n", "\0\0\n"] {
            let (mut follower, _file, _root) = follow(text);
            follower.poll();
            let why = follower.log().get().unwrap_err().why.clone();
            assert!(why.contains("no record"), "{text:?}: {why}");
        }
    }

    /// A sparse file of two gigabytes without an end of a line.
    #[test]
    fn a_huge_file_costs_neither_memory_nor_minutes() {
        let (mut follower, file, _root) = follow("6,0,1,-;hello\n");
        file.set_len(2 << 30).unwrap();
        let begin = std::time::Instant::now();
        follower.poll();
        assert!(begin.elapsed() < std::time::Duration::from_secs(20), "{:?}", begin.elapsed());
        assert!(follower.rest.capacity() < 4 * LONGEST, "{}", follower.rest.capacity());
        assert!(follower.log().get().unwrap_err().why.contains("256 MiB"));
    }

    #[test]
    fn a_flood_keeps_the_newest_and_what_is_rare() {
        let mut text = "4,0,1,-;NVRM: Xid (PCI:0000:3b:00): 79, rare\n".to_owned();
        for sequence in 1..=1000 {
            writeln!(text, "4,{sequence},9,-;NVRM: Xid (PCI:0000:3b:00): 31, number {sequence}")
                .unwrap();
        }
        let (mut follower, _file, _root) = follow(&text);
        follower.poll();
        let Fact::Known { value: log, .. } = follower.log() else { panic!("unread") };
        assert_eq!(log.xids.len(), 1 + KEPT_OF_A_KIND);
        assert_eq!(log.xids[0].text, "rare");
        assert_eq!(log.xids.last().unwrap().text, "number 1000");
        assert_eq!(log.forgotten, 1000 - KEPT_OF_A_KIND as u64);
        assert_eq!(follower.xids()[&31], 1000);
    }
}
