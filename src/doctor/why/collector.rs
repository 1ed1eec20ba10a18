//! Reads lines of any number of logs, and says in the end what was first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use regex::Regex;

use super::{
    Class, Pattern,
    line::{self, Stamp},
    pattern::{self, SET},
};

/// Where a line stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Name of the file, or `exit code`.
    pub source: String,
    /// Number of the line, from 1; 0 = not a line.
    pub line: u64,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            0 => f.write_str(&self.source),
            line => write!(f, "{}:{line}", self.source),
        }
    }
}

/// The first line of one pattern, and how often it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it means.
    pub pattern: &'static Pattern,
    /// Where it came first.
    pub place: Place,
    /// Who wrote that line, such as `rank 3`.
    pub rank: Option<String>,
    /// The line itself, cut to [`Collector::EVIDENCE`] characters.
    pub text: String,
    /// Lines of this pattern in all logs.
    pub count: u64,
    /// All who wrote such lines.
    pub ranks: BTreeSet<String>,
    stamp: Option<Stamp>,
    order: u64,
}

/// A line with a word such as `error` that no pattern knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TailLine {
    /// Where it stands.
    pub place: Place,
    /// The line, cut.
    pub text: String,
}

/// How much was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Logs.
    pub sources: u64,
    /// Lines.
    pub lines: u64,
}

/// What the logs say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// One for each pattern that was seen: strongest class first, earliest first within it.
    pub findings: Vec<Finding>,
    /// The last lines with words of errors that no pattern knows; empty if something was found.
    pub tail: Vec<TailLine>,
    /// How much was read.
    pub seen: Seen,
    /// Whether it is known which finding of the strongest class is the earliest: all stand in one
    /// log, or have times that can be compared.
    pub ordered: bool,
    /// The exit code, if it was given and no row knows it.
    pub unknown_exit: Option<i32>,
}

impl Answer {
    /// What explains the failure best. A [`Class::FollowUp`] is never one: then the cause is not
    /// in these logs.
    pub fn cause(&self) -> Option<&Finding> {
        self.findings.first().filter(|finding| finding.pattern.class != Class::FollowUp)
    }
}

/// Reads lines, one log after the other.
#[derive(Debug, Default)]
pub struct Collector {
    sources: Vec<String>,
    lines: u64,
    /// Rank that the name of the current log tells.
    named: Option<String>,
    /// Beginning of the last line of the current log that may hold a time.
    time_line: Vec<u8>,
    /// By pattern and log, so that the earliest can be chosen when all is known.
    found: BTreeMap<(usize, usize), Finding>,
    tail: VecDeque<TailLine>,
    exit: Option<i32>,
}

/// Error-looking lines that are kept.
const TAIL: usize = 6;
/// Logs beyond this number are counted and searched, but share one entry for each pattern.
const SOURCES: usize = 4096;

impl Collector {
    /// Characters of a line that are kept as evidence.
    pub const EVIDENCE: usize = 300;

    /// Begins with the next log.
    pub fn source(&mut self, name: impl Into<String>) {
        let name = name.into();
        self.named = rank_of_name(&name);
        self.time_line.clear();
        self.sources.push(name);
    }

    /// The exit code of the program that wrote the logs.
    pub fn exit_code(&mut self, code: i32) {
        self.exit = Some(code);
    }

    /// A line of the current log: its number, and what there is of it.
    pub fn line(&mut self, number: u64, bytes: &[u8]) {
        self.lines += 1;
        if line::may_have_time(bytes) {
            self.time_line.clear();
            self.time_line.extend_from_slice(&bytes[..bytes.len().min(256)]);
        }
        // Few lines say anything, and few need to be unwrapped before it shows.
        let wrapped = bytes.first() == Some(&b'{') || bytes.contains(&0x1b);
        let unwrapped = if wrapped { line::text(bytes) } else { String::new() };
        let searched = if wrapped { unwrapped.as_bytes() } else { bytes };
        let Some(first) = SET.matches(searched).iter().next() else { return };
        let text = if wrapped { unwrapped } else { line::text(bytes) };
        if let Some(pattern) = pattern::patterns().get(first) {
            return self.found(first, pattern, number, &text);
        }
        self.tail.push_back(TailLine { place: self.place(number), text: cut(&text) });
        if TAIL < self.tail.len() {
            self.tail.pop_front();
        }
    }

    fn place(&self, line: u64) -> Place {
        Place { source: self.sources.last().cloned().unwrap_or_default(), line }
    }

    fn found(&mut self, index: usize, pattern: &'static Pattern, number: u64, text: &str) {
        let rank = line::rank(text).or_else(|| self.named.clone());
        let key = (index, self.sources.len().min(SOURCES));
        if let Some(finding) = self.found.get_mut(&key) {
            finding.count += 1;
            finding.ranks.extend(rank);
            return;
        }
        let stamp = line::stamp(&String::from_utf8_lossy(&self.time_line));
        let finding = Finding {
            pattern,
            place: self.place(number),
            ranks: rank.iter().cloned().collect(),
            rank,
            text: around(pattern, line::body(text)),
            count: 1,
            stamp,
            order: self.lines,
        };
        self.found.insert(key, finding);
    }

    /// What all lines together say.
    pub fn finish(self) -> Answer {
        let seen = Seen { sources: self.sources.len() as u64, lines: self.lines };
        let mut all: Vec<Finding> = self.found.into_values().collect();
        let order = order(&all, seen.sources);
        let when = |finding: &Finding| match (finding.stamp, order) {
            (Some(stamp), Order::Times(form)) if stamp.form == form => (stamp.ms, finding.order),
            (_, Order::Times(_)) => (i64::MAX, finding.order),
            (_, Order::Lines | Order::Arguments) => (0, finding.order),
        };
        all.sort_by_key(when);
        let mut findings: Vec<Finding> = Vec::new();
        for finding in all {
            match findings.iter_mut().find(|known| known.pattern.id == finding.pattern.id) {
                Some(known) => {
                    known.count += finding.count;
                    known.ranks.extend(finding.ranks);
                }
                None => findings.push(finding),
            }
        }
        let exit = self.exit.filter(|code| *code != 0);
        let row = exit.and_then(pattern::exit_code);
        findings.extend(row.map(|pattern| of_exit(pattern, exit.unwrap_or_default())));
        // Stable: within a class the order of time stays.
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.pattern.class));
        let unknown_exit = exit.filter(|_code| row.is_none());
        let nothing = findings.iter().all(|finding| finding.pattern.class == Class::FollowUp);
        let tail = if nothing { self.tail.into() } else { Vec::new() };
        Answer { findings, tail, seen, ordered: order != Order::Arguments, unknown_exit }
    }
}

/// What tells which of two findings is earlier.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// They stand in one log, or there is one that counts.
    Lines,
    /// Times of this form, which all that count have.
    Times(line::Form),
    /// Nothing: the order in which the logs were named.
    Arguments,
}

/// Lines of one log are in order, whatever their times say; a time orders only what has times of
/// the same form. Only the strongest class counts: its first finding is the answer.
fn order(all: &[Finding], sources: u64) -> Order {
    let top = all.iter().map(|finding| finding.pattern.class).max();
    let mut counting = all.iter().filter(|finding| Some(finding.pattern.class) == top);
    let form = |finding: &Finding| finding.stamp.map(|stamp| stamp.form);
    let first = counting.next().and_then(form);
    let mut others = counting.peekable();
    if sources < 2 || others.peek().is_none() {
        return Order::Lines;
    }
    match first {
        Some(first) if others.all(|finding| form(finding) == Some(first)) => Order::Times(first),
        Some(_) | None => Order::Arguments,
    }
}

fn of_exit(pattern: &'static Pattern, code: i32) -> Finding {
    Finding {
        pattern,
        place: Place { source: "exit code".to_owned(), line: 0 },
        rank: None,
        text: format!("exit code {code}"),
        count: 1,
        ranks: BTreeSet::new(),
        stamp: None,
        order: u64::MAX,
    }
}

/// `rank 3` of `logs/attempt-001-rank-003.log`, `rank3.txt`, or torchrun's `attempt_0/3/stderr.log`.
fn rank_of_name(name: &str) -> Option<String> {
    let number = |text: &str| -> Option<u32> {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    };
    let mut parts = name.rsplit('/');
    let file = parts.next().unwrap_or_default().to_ascii_lowercase();
    if matches!(&*file, "stderr.log" | "stdout.log") {
        return number(parts.next()?).map(|rank| format!("local rank {rank}"));
    }
    let after = file.split("rank").nth(1)?.trim_start_matches(['-', '_', '.', '=']);
    number(after).map(|rank| format!("rank {rank}"))
}

/// The part of a long line that the pattern is about.
fn around(pattern: &Pattern, text: &str) -> String {
    /// Characters before the match that say whose message it is.
    const BEFORE: usize = 60;
    let text = text.trim();
    let whole = text.chars().count() <= Collector::EVIDENCE;
    let found =
        if whole { None } else { Regex::new(pattern.regex).ok().and_then(|r| r.find(text)) };
    let Some(found) = found else { return cut(text) };
    let skipped = text[..found.start()].chars().count().saturating_sub(BEFORE);
    if skipped == 0 {
        return cut(text);
    }
    format!("...{}", cut(&text.chars().skip(skipped).collect::<String>()))
}

/// The beginning of a text, with `...` if there was more.
fn cut(text: &str) -> String {
    let text = text.trim();
    if text.chars().count() <= Collector::EVIDENCE {
        return text.to_owned();
    }
    text.chars().take(Collector::EVIDENCE).chain("...".chars()).collect()
}
