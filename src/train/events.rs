//! The trainer's side of the event stream: one JSON record per line.

use std::{
    io::Write,
    sync::Mutex,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::wire::{Event, Record};

/// Writes [`Record`]s of one rank. Shared by the loop and its background threads.
pub struct Events {
    rank: u32,
    attempt: u32,
    out: Mutex<Box<dyn Write + Send>>,
}

impl Events {
    /// A stream that ends in `out`, normally the standard output.
    pub fn new(rank: u32, attempt: u32, out: Box<dyn Write + Send>) -> Self {
        Events { rank, attempt, out: Mutex::new(out) }
    }

    /// Sends one event. A reader that went away is no reason to stop training: the
    /// supervisor notices by itself, and the run's files stay complete.
    pub fn send(&self, event: Event) {
        let record = Record {
            v: Record::VERSION,
            time_ms: now_ms(),
            rank: self.rank,
            attempt: self.attempt,
            event,
        };
        let mut line = serde_json::to_string(&record).expect("events are plain data");
        line.push('\n');
        let mut out = self.out.lock().expect("no writer panics while it holds the stream");
        let _written = out.write_all(line.as_bytes()).and_then(|()| out.flush());
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
