//! What is known of the ranks of this pod in an epoch, in the words of the broker.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use super::{Pod, Refused};
use crate::{
    api::job::LastFailure,
    launch::{
        attempt::News,
        ladder::{self, RankEnd},
        text,
    },
    wire::{
        Event, StepMetrics, TrainerExit,
        sync::{RankReport, SyncRequest},
    },
};

/// Bytes that are kept of the end of a log.
const TAIL: usize = 2048;
/// Longest message that the kubelet takes.
const TERMINATION: usize = 4096;

/// The last lines of a rank.
#[derive(Debug, Default)]
struct Tail {
    lines: VecDeque<String>,
    bytes: usize,
}

impl Tail {
    fn push(&mut self, line: &str) {
        let line = text::head(line, TAIL - 1).to_owned();
        self.bytes += line.len() + 1;
        self.lines.push_back(line);
        while TAIL < self.bytes {
            let Some(line) = self.lines.pop_front() else { return };
            self.bytes -= line.len() + 1;
        }
    }

    fn text(&self) -> String {
        self.lines.iter().map(|line| format!("{line}\n")).collect()
    }
}

/// A rank that has ended, and when that was seen.
#[derive(Debug)]
struct Ended {
    end: RankEnd,
    at: Instant,
    step: u64,
}

/// The ranks of an epoch.
#[derive(Debug)]
pub(super) struct Ledger {
    node: String,
    first: u32,
    ranks: u32,
    epoch: u32,
    tails: BTreeMap<u32, Tail>,
    steps: BTreeMap<u32, u64>,
    stopped: BTreeSet<u32>,
    ready: BTreeSet<u32>,
    ended: Vec<Ended>,
    last_step: Option<StepMetrics>,
    checkpoint_step: Option<u64>,
    /// Since when a step takes long.
    slow_since: Option<Instant>,
}

impl Ledger {
    pub(super) fn new(pod: &Pod) -> Self {
        Ledger {
            node: pod.node.clone(),
            first: pod.index * pod.ranks,
            ranks: pod.ranks,
            epoch: 0,
            tails: BTreeMap::new(),
            steps: BTreeMap::new(),
            stopped: BTreeSet::new(),
            ready: BTreeSet::new(),
            ended: Vec::new(),
            last_step: None,
            checkpoint_step: None,
            slow_since: None,
        }
    }

    /// A new epoch: nothing of the old one is told any more, but the newest checkpoint.
    pub(super) fn begin(&mut self, epoch: u32) {
        let checkpoint_step = self.checkpoint_step;
        let new = Ledger {
            node: std::mem::take(&mut self.node),
            first: self.first,
            ranks: self.ranks,
            epoch,
            checkpoint_step,
            tails: BTreeMap::new(),
            steps: BTreeMap::new(),
            stopped: BTreeSet::new(),
            ready: BTreeSet::new(),
            ended: Vec::new(),
            last_step: None,
            slow_since: None,
        };
        *self = new;
    }

    /// Takes what has happened; `line` is called for every line of a rank.
    pub(super) fn take(&mut self, news: &News, mut line: impl FnMut(u32, &str)) {
        match news {
            News::Spawned { .. } | News::Signalled(_) => {}
            News::Line { rank, text } => {
                line(*rank, text);
                self.tails.entry(*rank).or_default().push(text);
            }
            News::Event(record) => {
                let text = serde_json::to_string(&record.event).expect("events are plain data");
                line(record.rank, &text);
                self.event(record.rank, &record.event);
            }
            News::Slow(silence) => {
                let since = Instant::now().checked_sub(Duration::from_secs_f64(silence.seconds));
                self.slow_since = since;
            }
            News::Stopped { rank } => {
                self.stopped.insert(*rank);
            }
            News::Ended(end) => {
                let what = match end.exit {
                    Some(TrainerExit::Success) => "ended well".to_owned(),
                    _ if end.swept => "was killed, because another rank had ended".to_owned(),
                    _ => ladder::describe(end),
                };
                line(end.rank, &format!("[supervisor] rank {} {what}", end.rank));
                let step = self.steps.get(&end.rank).copied().unwrap_or(0);
                self.ended.push(Ended { end: end.clone(), at: Instant::now(), step });
            }
        }
    }

    fn event(&mut self, rank: u32, event: &Event) {
        self.slow_since = None;
        if let Event::Ready { step, .. } = event {
            self.ready.insert(rank);
            self.steps.insert(rank, *step);
        }
        if let Event::Step(step) = event {
            self.steps.insert(rank, step.step);
            if rank == self.first {
                self.last_step = Some(step.clone());
            }
        }
        if let Event::CheckpointSaved { step, .. } = event {
            self.checkpoint_step = self.checkpoint_step.max(Some(*step));
        }
    }

    /// Puts what the operator wants to know into a request.
    pub(super) fn show(&self, request: &mut SyncRequest) {
        request.ready = self.ready.len() == self.ranks as usize;
        request.slow_seconds = self.slow_since.map(|since| since.elapsed().as_secs_f64());
        request.step.clone_from(&self.last_step);
        request.checkpoint_step = self.checkpoint_step;
    }

    pub(super) fn is_success(&self) -> bool {
        self.ended.iter().all(|ended| ended.end.exit == Some(TrainerExit::Success))
    }

    /// All ends in the order in which they were seen.
    pub(super) fn reports(&self, now: Instant) -> Vec<RankReport> {
        self.ended.iter().map(|ended| self.report(ended, now)).collect()
    }

    fn report(&self, ended: &Ended, now: Instant) -> RankReport {
        let end = &ended.end;
        let stopped = self.stopped.contains(&end.rank);
        let age = now.saturating_duration_since(ended.at).as_millis();
        let silent = end.stalled.map(|silence| silence.seconds);
        // A rank that was stopped is not a victim, whoever noticed first.
        let silent = silent.or(stopped.then_some(0.0));
        let message = match (stopped, silent) {
            (true, _) => Some("was stopped by a signal or a debugger and made no step".to_owned()),
            (false, Some(_)) => Some(ladder::describe(end)),
            (false, None) => end.message.clone(),
        };
        RankReport {
            rank: end.rank,
            exit: end.exit,
            code: end.code,
            signal: end.signal,
            peer: end.peer,
            swept: end.swept && !stopped,
            stalled_seconds: silent,
            stopped,
            memory_kill: end.signal == Some(9) && end.memory_kills.is_some_and(|kills| 0 < kills),
            message,
            hint: end.hint.clone(),
            tail: self.tails.get(&end.rank).map_or_else(String::new, Tail::text),
            step: ended.step,
            age_ms: u64::try_from(age).unwrap_or(u64::MAX),
        }
    }

    fn culprit(&self) -> Option<&RankEnd> {
        let ended = || self.ended.iter().map(|ended| &ended.end);
        let stopped = ended().find(|end| self.stopped.contains(&end.rank));
        stopped.or_else(|| {
            let ends: Vec<RankEnd> = ended().cloned().collect();
            let rank = ladder::culprit(&ends)?.rank;
            ended().find(|end| end.rank == rank)
        })
    }

    /// The code of this pod if nobody knows a better one.
    pub(super) fn exit_code(&self) -> u8 {
        let Some(end) = self.culprit() else { return TrainerExit::Internal.code() };
        let stalled = end.stalled.is_some() || self.stopped.contains(&end.rank);
        match (stalled, end.exit, end.signal) {
            (true, _, _) => TrainerExit::Stalled.code(),
            (false, Some(exit), _) => exit.code(),
            (false, None, Some(signal)) => u8::try_from(128 + signal).unwrap_or(255),
            (false, None, None) => TrainerExit::Internal.code(),
        }
    }

    /// The failure as this pod sees it.
    pub(super) fn failure(&self) -> LastFailure {
        let end = self.culprit();
        let rank = end.map_or(self.first, |end| end.rank);
        let ended = self.ended.iter().find(|ended| ended.end.rank == rank);
        let report = ended.map(|ended| self.report(ended, ended.at));
        let words = match (&report, end) {
            (Some(RankReport { stalled_seconds: Some(_), message: Some(text), .. }), _) => {
                text.clone()
            }
            (_, Some(end)) => ladder::describe(end),
            (_, None) => "ended for an unknown reason".to_owned(),
        };
        LastFailure {
            class: end.map_or("crash", |end| ladder::class(end).name()).to_owned(),
            rank,
            node: self.node.clone(),
            exit_code: Some(i32::from(self.exit_code())),
            what: format!("rank {rank} {words}"),
            hint: end.and_then(ladder::hint),
            tail: report.map_or_else(String::new, |report| report.tail),
            epoch: self.epoch,
            step: ended.map_or(0, |ended| ended.step),
        }
    }

    /// A failed test before the start.
    pub(super) fn refused(&self, refused: &Refused) -> LastFailure {
        let Refused { what, checks, exit } = refused;
        LastFailure {
            class: ladder::class_of_test(*exit).to_owned(),
            rank: self.first,
            node: self.node.clone(),
            exit_code: Some(i32::from(exit.code())),
            what: format!("the test before the start failed ({}): {what}", checks.join(", ")),
            hint: None,
            tail: String::new(),
            epoch: 0,
            step: 0,
        }
    }
}

/// The failure as JSON that fits into the kubelet's limit: the tail is cut from its beginning.
pub(super) fn termination_message(failure: &LastFailure) -> String {
    let mut failure = failure.clone();
    failure.what = text::head(&failure.what, 1024).to_owned();
    failure.hint = failure.hint.map(|hint| text::head(&hint, 512).to_owned());
    loop {
        let text = serde_json::to_string(&failure).expect("plain data");
        if text.len() <= TERMINATION || (failure.tail.is_empty() && failure.hint.is_none()) {
            return text;
        }
        if failure.tail.is_empty() {
            failure.hint = None;
            continue;
        }
        let left = failure.tail.len().saturating_sub(256);
        failure.tail = text::tail(&failure.tail, left).to_owned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_holds_the_last_lines_and_no_more_than_two_kibibytes() {
        let mut tail = Tail::default();
        (0..1000).for_each(|i| tail.push(&format!("line {i}")));
        let text = tail.text();
        assert!(text.len() <= TAIL && TAIL - 20 < text.len(), "{}", text.len());
        assert!(text.ends_with("line 999\n"));
        tail.push(&"ä".repeat(TAIL));
        assert!(tail.text().len() <= TAIL);
    }

    #[test]
    fn a_termination_message_fits_and_stays_json() {
        let failure = LastFailure {
            class: "crash".to_owned(),
            rank: 3,
            node: "n".to_owned(),
            exit_code: Some(137),
            what: "x".repeat(5000),
            hint: Some("\u{1}".repeat(600)),
            tail: "\"ä\n".repeat(1000),
            epoch: 2,
            step: 7,
        };
        let text = termination_message(&failure);
        assert!(text.len() <= TERMINATION, "{}", text.len());
        let read: LastFailure = serde_json::from_str(&text).unwrap();
        assert_eq!((read.rank, read.exit_code), (3, Some(137)));
    }
}
