//! What is known about lines of logs and about exit codes.

use std::sync::LazyLock;

use regex::bytes::{RegexSet, RegexSetBuilder};

use crate::doctor::table;

/// What a recognised line is worth, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// What happens to the others once somebody has failed.
    FollowUp,
    /// Explains slowness or a doubtful result; ends no job.
    Note,
    /// A failure that has a cause of its own, which the line does not name.
    Symptom,
    /// Explains a failure.
    Cause,
}

impl Class {
    /// Name in tables and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Class::FollowUp => "follow-up",
            Class::Note => "note",
            Class::Symptom => "symptom",
            Class::Cause => "cause",
        }
    }

    fn named(name: &str) -> Option<Class> {
        let all = [Class::FollowUp, Class::Note, Class::Symptom, Class::Cause];
        all.into_iter().find(|class| class.name() == name)
    }
}

/// One row: what a line, or an exit code, means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Kebab-case and stable; `exit-137` for an exit code.
    pub id: String,
    /// What it is worth.
    pub class: Class,
    /// Regular expression; empty for an exit code.
    pub regex: &'static str,
    /// What happened, in a few words.
    pub title: &'static str,
    /// What is behind it.
    pub means: &'static str,
    /// Ids of the checks that would have caught it before the start, the likeliest first.
    pub checks: Vec<&'static str>,
    /// What to do.
    pub fix: &'static str,
    /// Where the pattern and its meaning come from.
    pub source: &'static str,
}

static PATTERNS: LazyLock<Vec<Pattern>> = LazyLock::new(|| {
    let rows = table::rows(include_str!("../data/log_patterns.tsv"));
    rows.filter_map(|row| {
        let [id, class, regex, title, means, checks, fix, source] = row[..] else { return None };
        let (id, class) = (id.to_owned(), Class::named(class)?);
        let checks = ids(checks);
        Some(Pattern { id, class, regex, title, means, checks, fix, source })
    })
    .collect()
});

static EXIT_CODES: LazyLock<Vec<(i32, Pattern)>> = LazyLock::new(|| {
    let rows = table::rows(include_str!("../data/exit_codes.tsv"));
    rows.filter_map(|row| {
        let [code, class, title, means, checks, fix, source] = row[..] else { return None };
        let (id, class, regex) = (format!("exit-{code}"), Class::named(class)?, "");
        let checks = ids(checks);
        let pattern = Pattern { id, class, regex, title, means, checks, fix, source };
        Some((code.parse().ok()?, pattern))
    })
    .collect()
});

fn ids(text: &'static str) -> Vec<&'static str> {
    text.split(' ').filter(|id| *id != "-").collect()
}

/// All rows about lines; the first that matches a line is the line's.
pub fn patterns() -> &'static [Pattern] {
    &PATTERNS
}

/// The row about an exit code. A negative code is a signal, as in Python.
pub fn exit_code(code: i32) -> Option<&'static Pattern> {
    let code = if code < 0 { 128 - code } else { code };
    EXIT_CODES.iter().find(|(known, _pattern)| *known == code).map(|(_code, pattern)| pattern)
}

/// Words of errors that no row knows. Lines with them are shown when nothing was recognised.
const ERROR_WORDS: &str = r"(?i)\b(error|exception|fatal|failed|failure|traceback|panicked|abort(ed)?|critical|cannot|killed)\b|\w(Error|Exception)\b";

/// Bytes of the automaton that one thread may keep: the default makes it start anew too often.
const AUTOMATON_BYTES: usize = 64 << 20;

/// All rows at once, and behind them the words of errors.
pub(super) static SET: LazyLock<RegexSet> = LazyLock::new(|| {
    let all = PATTERNS.iter().map(|pattern| pattern.regex).chain([ERROR_WORDS]);
    let mut builder = RegexSetBuilder::new(all);
    // Rows are ASCII: without Unicode's classes the automaton is many times smaller.
    builder.unicode(false).dfa_size_limit(AUTOMATON_BYTES).size_limit(AUTOMATON_BYTES);
    builder.build().expect("a test compiles the table")
});
