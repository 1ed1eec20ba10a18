//! A kernel log that somebody saved: text of `dmesg` or syslog, `/dev/kmsg`, or a journal's export.
//!
//! Only the last boot of a file counts: a cold start must not judge a machine by faults that it left behind.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use serde_json::Value;

use super::kmsg::Messages;
use crate::facts::KernelLog;

/// A larger file is refused.
const LARGEST: u64 = 2 << 30;
/// Of a line so much is read; the rest is skipped.
const LINE: u64 = 64 << 10;

/// A time that is older than the one before by more belongs to another boot.
const MOMENT_US: u64 = 1_000_000;

/// What a file says.
///
/// # Errors
///
/// If it cannot be read, is larger than 2 GiB, or has no line of a kernel in it.
pub fn read_kernel_log(path: &Path) -> io::Result<KernelLog> {
    // A pipe that nobody writes to must not make the doctor wait.
    let file = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    if LARGEST < metadata.len() {
        let what = format!("it has {} bytes, at most {LARGEST} are read", metadata.len());
        return Err(io::Error::new(ErrorKind::FileTooLarge, what));
    }
    let mut reader = Reader::default();
    reader.read(BufReader::new(file.take(LARGEST)))?;
    if reader.lines == 0 {
        return Err(io::Error::new(ErrorKind::InvalidData, "there is no line of a kernel in it"));
    }
    Ok(reader.messages.log)
}

#[derive(Default)]
struct Reader {
    messages: Messages,
    /// Lines that a kernel may have written.
    lines: u64,
    /// Boot of the journal's entries.
    boot: Option<String>,
    /// Time of the line before, in microseconds since boot.
    time_us: u64,
    /// Fields of the entry of a journal's export that is being read.
    entry: Entry,
}

#[derive(Default)]
struct Entry {
    message: Option<String>,
    boot: Option<String>,
    time_us: Option<u64>,
    is_kernel: Option<bool>,
}

impl Entry {
    fn set(&mut self, name: &str, value: &str) {
        match name {
            "MESSAGE" => self.message = Some(value.to_owned()),
            "_BOOT_ID" => self.boot = Some(value.to_owned()),
            "_SOURCE_MONOTONIC_TIMESTAMP" => self.time_us = value.parse().ok(),
            "__MONOTONIC_TIMESTAMP" => self.time_us = self.time_us.or(value.parse().ok()),
            "_TRANSPORT" => self.is_kernel = Some(value == "kernel"),
            _ => {}
        }
    }
}

impl Reader {
    fn read(&mut self, mut file: impl BufRead) -> io::Result<()> {
        let mut line = Vec::new();
        loop {
            line.clear();
            if file.by_ref().take(LINE).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            if line.last() == Some(&b'\n') {
                line.pop();
            } else {
                file.skip_until(b'\n')?;
            }
            // A field that is not plain text: its name alone, its length in 8 bytes, then the bytes.
            if line == b"MESSAGE" {
                self.binary_message(&mut file)?;
                continue;
            }
            let text = String::from_utf8_lossy(&line);
            self.line(text.trim_end_matches('\r'));
        }
        self.end_of_entry();
        Ok(())
    }

    fn binary_message(&mut self, file: &mut impl BufRead) -> io::Result<()> {
        let mut length = [0; 8];
        let mut bytes = Vec::new();
        // A file that ends here has no more messages.
        if file.read_exact(&mut length).is_err() {
            return Ok(());
        }
        let length = u64::from_le_bytes(length);
        file.by_ref().take(length.min(LINE)).read_to_end(&mut bytes)?;
        io::copy(&mut file.by_ref().take(length.saturating_sub(LINE)), &mut io::sink())?;
        self.entry.message = Some(String::from_utf8_lossy(&bytes).into_owned());
        Ok(())
    }

    fn line(&mut self, line: &str) {
        if line.starts_with('{') {
            return self.json(line);
        }
        if line.is_empty() {
            return self.end_of_entry();
        }
        if let Some((name, value)) = field(line) {
            return self.entry.set(name, value);
        }
        if let Some((time_us, message)) = text(line) {
            // A clock that runs back, or the first words of a kernel: another boot. Processors may
            // overtake each other by a moment.
            let time_us = time_us.unwrap_or(self.time_us);
            let back_us = self.time_us.saturating_sub(time_us);
            if MOMENT_US < back_us || message.starts_with("Linux version ") {
                self.messages = Messages::default();
            }
            self.message(message, time_us);
        }
    }

    fn message(&mut self, message: &str, time_us: u64) {
        self.time_us = time_us;
        self.lines += 1;
        self.messages.take(message, time_us);
    }

    /// An entry of `journalctl -o json`.
    fn json(&mut self, line: &str) {
        let Ok(Value::Object(fields)) = serde_json::from_str::<Value>(line) else { return };
        for (name, value) in &fields {
            match value {
                Value::String(text) => self.entry.set(name, text),
                // Text that is not UTF-8 comes as numbers.
                Value::Array(bytes) => {
                    let byte = |value: &Value| value.as_u64().and_then(|n| u8::try_from(n).ok());
                    let bytes: Vec<u8> = bytes.iter().filter_map(byte).collect();
                    self.entry.set(name, &String::from_utf8_lossy(&bytes));
                }
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {}
            }
        }
        self.end_of_entry();
    }

    fn end_of_entry(&mut self) {
        let entry = std::mem::take(&mut self.entry);
        let Some(message) = entry.message else { return };
        if entry.is_kernel == Some(false) {
            return;
        }
        if entry.boot.is_some() && entry.boot != self.boot {
            self.messages = Messages::default();
            self.boot = entry.boot;
        }
        self.message(&message, entry.time_us.unwrap_or(self.time_us));
    }
}

/// A field of a journal's export: `NAME=value`, the name in capitals.
fn field(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once('=')?;
    let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    (!name.is_empty() && name.chars().all(is_name)).then_some((name, value))
}

/// Time since boot, if the line says it, and the message. `None` for a line that no kernel wrote.
fn text(line: &str) -> Option<(Option<u64>, &str)> {
    if let Some((head, message)) = line.split_once(';')
        && let [_priority, _sequence, time, ..] = head.split(',').collect::<Vec<_>>().as_slice()
        && let Ok(time) = time.parse()
    {
        return Some((Some(time), message));
    }
    // syslog: `Nov 24 10:10:29 node1 kernel: [ 123.4] text`. Its date has no year, so it is not used.
    let (of_kernel, rest) = match line.split_once(" kernel: ") {
        Some((_head, rest)) => (true, rest),
        None => (false, line.strip_prefix("kernel: ").unwrap_or(line)),
    };
    if let Some((stamp, message)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        // Some kernels name the thread or processor after the time: `[ 12.5][ T77] text`.
        let caller = message.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let message = caller.map_or(message, |(_caller, message)| message).trim_start();
        match seconds(stamp) {
            Some(time) => return Some((Some(time), message)),
            None if is_other_time(stamp) => return Some((None, message)),
            None => {}
        }
    }
    let is_bare = of_kernel || rest.len() < line.len() || rest.starts_with("NVRM: ");
    is_bare.then_some((None, rest))
}

/// A date, as `dmesg -T` writes it, or the time since the line before, as `dmesg -d` does. Neither is used.
fn is_other_time(stamp: &str) -> bool {
    let year = stamp.rsplit(' ').next().unwrap_or("");
    let is_date =
        stamp.contains(':') && year.len() == 4 && year.bytes().all(|b| b.is_ascii_digit());
    is_date || stamp.trim().strip_prefix('+').is_some_and(|rest| seconds(rest).is_some())
}

/// `123.456789` in microseconds.
fn seconds(stamp: &str) -> Option<u64> {
    let (whole, part) = stamp.trim().split_once('.')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) || 6 < part.len() {
        return None;
    }
    let part: u64 = format!("{part:0<6}").parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(part)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn log(content: &[u8]) -> io::Result<KernelLog> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), content).unwrap();
        read_kernel_log(file.path())
    }

    const XID: &str = "NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, GPU has fallen off the bus.";

    #[test]
    fn every_form_says_the_same() {
        let export = format!(
            "__CURSOR=s=1\n__MONOTONIC_TIMESTAMP=99\n_BOOT_ID=b1\n_TRANSPORT=kernel\n\
             _SOURCE_MONOTONIC_TIMESTAMP=12500000\nMESSAGE={XID}\n\n"
        );
        let mut binary =
            b"_BOOT_ID=b1\n_TRANSPORT=kernel\n_SOURCE_MONOTONIC_TIMESTAMP=12500000\nMESSAGE\n"
                .to_vec();
        binary.extend((XID.len() as u64).to_le_bytes());
        binary.extend(XID.bytes());
        binary.extend(b"\n\n");
        let json = serde_json::json!({
            "MESSAGE": XID, "_BOOT_ID": "b1", "_TRANSPORT": "kernel",
            "_SOURCE_MONOTONIC_TIMESTAMP": "12500000",
        });
        let bytes = serde_json::json!({
            "MESSAGE": XID.as_bytes(), "__MONOTONIC_TIMESTAMP": "12500000",
        });
        for content in [
            export.into_bytes(),
            binary,
            format!("{json}\n").into_bytes(),
            format!("{bytes}\n").into_bytes(),
            format!("4,77,12500000,-;{XID}\n").into_bytes(),
            format!("[   12.500000] {XID}\n").into_bytes(),
            format!("[   12.500000][   T77] {XID}\n").into_bytes(),
            format!("Nov 24 10:10:29 node1 kernel: [   12.500000] {XID}\r\n").into_bytes(),
        ] {
            let log = log(&content).unwrap();
            let [event] = log.xids.as_slice() else { panic!("{log:?}") };
            let seen = (event.xid, event.pci_address.as_str(), event.pid, event.time_us);
            assert_eq!(seen, (79, "0000:3b:00.0", Some(1234), 12_500_000));
        }
        for content in [
            format!("[Mon Nov 24 10:10:29 2026] {XID}\n"),
            format!("[  +0.000316] {XID}\n"),
            format!("Nov 24 10:10:29 node1 kernel: {XID}\n"),
            format!("kernel: {XID}\n"),
            format!("{XID}\n"),
        ] {
            assert_eq!(log(content.as_bytes()).unwrap().xids.len(), 1, "{content}");
        }
    }

    #[test]
    fn only_the_last_boot_counts() {
        let of = |boot: &str, code: u32| {
            format!(
                "_BOOT_ID={boot}\n_TRANSPORT=kernel\nMESSAGE=NVRM: Xid (PCI:0000:3b:00): {code}, x\n\n"
            )
        };
        let codes = |content: String| -> Vec<u32> {
            log(content.as_bytes()).unwrap().xids.iter().map(|event| event.xid).collect()
        };
        assert_eq!(codes(of("b1", 79) + &of("b1", 48) + &of("b2", 31)), [31]);
        let xid =
            |time: &str, code: u32| format!("[{time}] NVRM: Xid (PCI:0000:3b:00): {code}, x\n");
        assert_eq!(codes(xid("99.000000", 79) + &xid(" 3.000000", 31)), [31]);
        assert_eq!(codes(xid("99.000000", 79) + &xid("98.999990", 31)), [79, 31]);
        let reboot = "Nov 24 10:11:00 node1 kernel: Linux version 6.8.0-45-generic\n";
        let line =
            |code| format!("Nov 24 10:10:29 node1 kernel: NVRM: Xid (PCI:0000:3b:00): {code}, x\n");
        assert_eq!(codes(line(79) + reboot + &line(31)), [31]);
        // A program's message is not the kernel's.
        let other = "_TRANSPORT=stdout\nMESSAGE=NVRM: Xid (PCI:0000:3b:00): 79, x\n\n";
        assert_eq!(codes(of("b1", 31) + other), [31]);
    }

    #[test]
    fn what_is_no_kernel_log_is_refused() {
        let training = "[INFO] step 1\n[rank0]: loss 3\n";
        for content in
            ["", "hello\n", training, "{}\n", "{\"MESSAGE\": 3}\n", "[[[[\n", "MESSAGE\n\u{1}"]
        {
            let error = log(content.as_bytes()).unwrap_err();
            assert!(error.to_string().contains("no line of a kernel"), "{content:?}: {error}");
        }
        let folder = tempfile::tempdir().unwrap();
        assert!(read_kernel_log(folder.path()).unwrap_err().to_string().contains("regular file"));
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(read_kernel_log(&pipe).unwrap_err().to_string().contains("regular file"));
        let huge = folder.path().join("huge");
        File::create(&huge).unwrap().set_len(3 << 30).unwrap();
        assert!(read_kernel_log(&huge).unwrap_err().to_string().contains("at most 2147483648"));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600)) {
            let mut reader = Reader::default();
            reader.read(bytes.as_slice()).unwrap();
        }

        #[test]
        fn nearly_good_lines_do_not_either(text in "(\\[ ?[0-9.]{0,25}\\] |kernel: |[0-9]{0,21},[0-9]{0,21},[0-9]{0,21};|_BOOT_ID=|MESSAGE=?|\\{\"MESSAGE\":)?(NVRM: Xid \\(PCI:[0-9a-f:.]{0,14}\\)?: [0-9]{0,12}, ?(pid='?[0-9]{0,12})?)?.{0,9}\n?") {
            let mut reader = Reader::default();
            reader.read(text.as_bytes()).unwrap();
        }
    }
}
