//! Counters of the collector in Prometheus' text format.

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering},
};

use super::store::{Receipt, StoreError};

#[derive(Debug, Default)]
pub(super) struct Metrics {
    lines: AtomicU64,
    repeated: AtomicU64,
    lost: AtomicU64,
    bytes: AtomicU64,
    removed: AtomicU64,
    full: AtomicU64,
    errors: AtomicU64,
    pub(super) unauthorized: AtomicU64,
    pub(super) invalid: AtomicU64,
    pub(super) busy: AtomicU64,
    pub(super) readers: AtomicU64,
}

/// Adds one.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Metrics {
    pub(super) fn stored(&self, receipt: Receipt, bytes: usize) {
        self.lines.fetch_add(receipt.lines, Ordering::Relaxed);
        self.repeated.fetch_add(receipt.repeated, Ordering::Relaxed);
        self.lost.fetch_add(receipt.lost, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, error: &StoreError) {
        match error {
            StoreError::Malformed { .. } | StoreError::ForeignRank { .. } => count(&self.invalid),
            StoreError::Full { .. } | StoreError::DiskFull { .. } => count(&self.full),
            StoreError::Write { .. } => count(&self.errors),
        }
    }

    pub(super) fn removed(&self, files: u64) {
        self.removed.fetch_add(files, Ordering::Relaxed);
    }

    pub(super) fn text(&self, used: u64, total: u64) -> String {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut text = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, value: u64| {
            let written =
                write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
            written.expect("a string takes all");
        };
        metric("qvl_collector_lines_total", "counter", "Lines stored.", of(&self.lines));
        let help = "Lines that were sent again.";
        metric("qvl_collector_repeated_lines_total", "counter", help, of(&self.repeated));
        let help = "Lines that pods had to give up.";
        metric("qvl_collector_lost_lines_total", "counter", help, of(&self.lost));
        let help = "Bytes of accepted segments.";
        metric("qvl_collector_received_bytes_total", "counter", help, of(&self.bytes));
        let help = "Files that were removed for their age.";
        metric("qvl_collector_expired_files_total", "counter", help, of(&self.removed));
        let help = "Segments that had no room.";
        metric("qvl_collector_full_total", "counter", help, of(&self.full));
        let help = "Segments that could not be written.";
        metric("qvl_collector_write_errors_total", "counter", help, of(&self.errors));
        metric("qvl_collector_used_bytes", "gauge", "Bytes of all files.", used);
        metric("qvl_collector_limit_bytes", "gauge", "Bytes that files may have.", total);
        metric("qvl_collector_readers", "gauge", "Readers at work.", of(&self.readers));
        let name = "qvl_collector_refused_total";
        let head = format!("# HELP {name} Refused requests.\n# TYPE {name} counter\n");
        text.push_str(&head);
        let reasons = [
            ("unauthorized", &self.unauthorized),
            ("invalid", &self.invalid),
            ("busy", &self.busy),
        ];
        for (reason, counter) in reasons {
            let line = writeln!(text, "{name}{{reason=\"{reason}\"}} {}", of(counter));
            line.expect("a string takes all");
        }
        text
    }
}
