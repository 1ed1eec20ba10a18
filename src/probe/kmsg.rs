//! The kernel log, `/dev/kmsg`: one record a line, `priority,sequence,microseconds,flags;text`.

use std::{
    fs::OpenOptions,
    io::{ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
};

use super::Options;
use crate::facts::{Fact, FaultKind, KernelFault, KernelLog, XidEvent};

const FROM: &str = "/dev/kmsg";
/// Records of the kernel fit into this.
const RECORD: usize = 8192;
/// More than any ring buffer holds.
const RECORDS: usize = 1_000_000;

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

pub(super) fn log(options: &Options) -> Fact<KernelLog> {
    let text = read(options).map_err(|error| {
        if error.kind() == ErrorKind::PermissionDenied {
            format!("{error}; reading it needs CAP_SYSLOG")
        } else {
            error.to_string()
        }
    });
    Fact::from_result(text.map(|text| parse(&text)), FROM)
}

fn read(options: &Options) -> std::io::Result<String> {
    let mut file =
        OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(options.at(FROM))?;
    let mut text = Vec::new();
    let mut record = vec![0; RECORD];
    for _record in 0..RECORDS {
        match file.read(&mut record) {
            Ok(0) => break,
            Ok(length) => text.extend_from_slice(&record[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            // EPIPE: a record was overwritten while we read; the next read goes on after it.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) => return Err(error),
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn parse(text: &str) -> KernelLog {
    let mut log = KernelLog::default();
    for line in text.lines() {
        let Some((head, message)) = line.split_once(';') else { continue };
        let Some(time_us) = head.split(',').nth(2).and_then(|time| time.parse().ok()) else {
            continue;
        };
        if let Some(event) = xid(message, time_us) {
            log.xids.push(event);
        } else if message.contains("NVRM: loading NVIDIA") {
            log.module_loaded_us = Some(time_us);
        } else if let Some((_pattern, kind)) =
            FAULTS.iter().find(|(pattern, _kind)| message.contains(pattern))
        {
            // XFS names its mounts in good messages too.
            let harmless = message.contains("XFS (") && !message.to_lowercase().contains("error");
            if !harmless {
                log.faults.push(KernelFault { kind: *kind, time_us, text: message.to_owned() });
            }
        }
    }
    log
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
    Some(XidEvent { xid, pci_address, pid, time_us, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_the_driver_are_read() {
        let text = "6,1,100,-;NVRM: loading NVIDIA UNIX x86_64 Kernel Module  535.54.03\n\
            4,2,200,-;NVRM: Xid (PCI:0000:3B:00): 79, pid='1234', name=python, GPU has fallen off the bus.\n\
            4,3,300,-;NVRM: Xid (PCI:0000:3b:00): 154, GPU recovery action changed from 0x0 (None) to 0x1\n\
            4,4,400,-;Out of memory: Killed process 77 (qvl-train)\n\
            6,5,500,-;XFS (sda1): Mounting V5 Filesystem\n SUBSYSTEM=block\n";
        let log = parse(text);
        assert_eq!(log.module_loaded_us, Some(100));
        assert_eq!(log.xids.iter().map(|event| event.xid).collect::<Vec<_>>(), [79, 154]);
        assert_eq!(log.xids[0].pci_address, "0000:3b:00.0");
        assert_eq!(log.xids[0].pid, Some(1234));
        assert_eq!(log.faults.len(), 1);
        assert_eq!(log.faults[0].kind, FaultKind::OutOfMemory);
    }
}
