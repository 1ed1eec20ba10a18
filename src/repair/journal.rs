//! What the journal says: records, and the repairs that they tell of. Pure.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::doctor::fix::Change;

/// One line of the journal. It is on disk before what it announces is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Record {
    /// A repair begins. Nothing is changed yet.
    Begin(Begin),
    /// This change is about to be made.
    Applying {
        /// The repair.
        id: u64,
        /// Index in its changes.
        change: usize,
    },
    /// It was made.
    Applied {
        /// The repair.
        id: u64,
        /// Index in its changes.
        change: usize,
    },
    /// The check passes now: the repair stays.
    Kept {
        /// The repair.
        id: u64,
    },
    /// The old state of this change is about to be restored.
    Restoring {
        /// The repair.
        id: u64,
        /// Index in its changes.
        change: usize,
    },
    /// It was restored.
    Restored {
        /// The repair.
        id: u64,
        /// Index in its changes.
        change: usize,
    },
    /// Nothing of the repair is left.
    Ended {
        /// The repair.
        id: u64,
        /// Why.
        how: End,
    },
}

/// Why nothing of a repair is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// It failed, its check still failed, or it was interrupted.
    RolledBack,
    /// A person took it back.
    Undone,
}

/// A repair, with all that is needed to take it back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// Version of this format: 1.
    pub v: u32,
    /// Number, from 1 on.
    pub id: u64,
    /// Seconds since the Unix epoch.
    pub at: i64,
    /// Random id of the boot in which it was made.
    pub boot: String,
    /// Id of the check.
    pub rule: String,
    /// What the check judged.
    pub subject: String,
    /// What was wrong.
    pub what: String,
    /// Changes, in order.
    pub changes: Vec<Change>,
}

/// Where a repair stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It was interrupted, or runs.
    Open,
    /// It is in force.
    Kept,
    /// An undo was interrupted, or refused half-way.
    Restoring,
    /// Nothing of it is left.
    RolledBack,
    /// Nothing of it is left.
    Undone,
}

impl State {
    /// Name for people.
    pub const fn name(self) -> &'static str {
        match self {
            State::Open => "interrupted",
            State::Kept => "in force",
            State::Restoring => "half undone",
            State::RolledBack => "rolled back",
            State::Undone => "undone",
        }
    }
}

/// A repair and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The repair.
    pub begin: Begin,
    /// Where it stands.
    pub state: State,
    /// Changes that were made, or may have been made.
    pub touched: BTreeSet<usize>,
}

impl Transaction {
    /// Whether something of it may be in force.
    pub fn is_live(&self) -> bool {
        !matches!(self.state, State::RolledBack | State::Undone)
    }
}

/// A line that no version of this program has written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct Torn {
    /// Number of the line.
    pub line: usize,
    /// What is wrong with it.
    pub why: String,
}

/// The records of a text. What stands behind the last line end was not completed, and nothing that
/// it announces was done: it does not count.
pub fn records(text: &str) -> Result<Vec<Record>, Torn> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines = whole.lines().enumerate().filter(|(_index, line)| !line.is_empty());
    lines
        .map(|(index, line)| {
            let torn = |error: serde_json::Error| Torn { line: index + 1, why: error.to_string() };
            serde_json::from_str(line).map_err(torn)
        })
        .collect()
}

/// What became of every repair, the oldest first.
pub fn transactions(records: &[Record]) -> Vec<Transaction> {
    let mut all: Vec<Transaction> = Vec::new();
    for record in records {
        let id = match record {
            Record::Begin(begin) => {
                let (begin, touched) = (begin.clone(), BTreeSet::new());
                all.push(Transaction { begin, state: State::Open, touched });
                continue;
            }
            Record::Applying { id, .. }
            | Record::Applied { id, .. }
            | Record::Kept { id }
            | Record::Restoring { id, .. }
            | Record::Restored { id, .. }
            | Record::Ended { id, .. } => *id,
        };
        if let Some(one) = all.iter_mut().rev().find(|one| one.begin.id == id) {
            one.hear(record);
        }
    }
    all
}

impl Transaction {
    fn hear(&mut self, record: &Record) {
        match record {
            Record::Applying { change, .. } | Record::Applied { change, .. } => {
                self.touched.insert(*change);
            }
            Record::Kept { .. } => self.state = State::Kept,
            Record::Restoring { .. } => self.state = State::Restoring,
            Record::Restored { change, .. } => {
                self.touched.remove(change);
            }
            Record::Ended { how: End::RolledBack, .. } => self.state = State::RolledBack,
            Record::Ended { how: End::Undone, .. } => self.state = State::Undone,
            Record::Begin(_) => {}
        }
    }
}

/// What the present state of a target is to a change of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// As before the change.
    Old,
    /// As after it.
    New,
    /// Neither: somebody else changed it.
    Other,
}

/// Compares the present state with those of a change.
pub fn found(change: &Change, present: Option<&str>) -> Found {
    if present == change.old.as_deref() {
        Found::Old
    } else if present == change.new.as_deref() {
        Found::New
    } else {
        Found::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(id: u64) -> Record {
        let text = |text: &str| text.to_owned();
        let (boot, rule, subject, what) = (text("b"), text("fd-limit"), text("n"), text("w"));
        Record::Begin(Begin { v: 1, id, at: 0, boot, rule, subject, what, changes: Vec::new() })
    }

    fn text(records: &[Record]) -> String {
        records.iter().map(|record| serde_json::to_string(record).unwrap() + "\n").collect()
    }

    #[test]
    fn every_prefix_of_a_journal_tells_what_may_have_been_done() {
        let all = [
            begin(1),
            Record::Applying { id: 1, change: 0 },
            Record::Applied { id: 1, change: 0 },
            Record::Kept { id: 1 },
            Record::Restoring { id: 1, change: 0 },
            Record::Restored { id: 1, change: 0 },
            Record::Ended { id: 1, how: End::Undone },
        ];
        let expected = [
            (State::Open, 0),
            (State::Open, 1),
            (State::Open, 1),
            (State::Kept, 1),
            (State::Restoring, 1),
            (State::Restoring, 0),
            (State::Undone, 0),
        ];
        for (length, (state, touched)) in expected.into_iter().enumerate() {
            let records = records(&text(&all[..=length])).unwrap();
            let one = &transactions(&records)[0];
            assert_eq!((one.state, one.touched.len()), (state, touched), "{length}");
        }
    }

    #[test]
    fn a_line_without_an_end_does_not_count_and_a_wrong_one_is_told() {
        let whole = text(&[begin(1), begin(2)]);
        let first = text(&[begin(1)]).len();
        for cut in 0..whole.len() {
            let expected = usize::from(first <= cut);
            assert_eq!(records(&whole[..cut]).unwrap().len(), expected, "{cut}");
        }
        let torn = records(&format!("{{}}\n{whole}")).unwrap_err();
        assert_eq!(torn.line, 1);
    }
}
