//! From the state of a target now to the state that it should have.

use crate::job::edit::{Edit, edited};

/// What a target should become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// This, whatever it was.
    Value(String),
    /// This size, or what it has if that is more.
    Size(u64),
    /// A soft limit of at least this, and a hard limit that allows it; `None` = unlimited.
    AtLeast(Option<u64>),
    /// A soft limit of at most this; the hard limit stays.
    AtMost(u64),
    /// The text of a job with these changes.
    Edits(Vec<Edit>),
}

/// A limit; unlimited is more than all numbers.
fn limit(text: &str) -> Option<u64> {
    if text == "unlimited" { Some(u64::MAX) } else { text.parse().ok() }
}

/// Soft and hard limit of a state.
fn limits(state: &str) -> Option<(u64, u64)> {
    let (soft, hard) = state.split_once(' ')?;
    Some((limit(soft)?, limit(hard)?))
}

fn text(limit: u64) -> String {
    if limit == u64::MAX { "unlimited".to_owned() } else { limit.to_string() }
}

/// Whether a change of limits is one that only root may make.
pub(super) fn raises_hard(old: Option<&str>, new: Option<&str>) -> bool {
    let hard = |state: Option<&str>| limits(state?).map(|(_soft, hard)| hard);
    hard(old).zip(hard(new)).is_none_or(|(old, new)| old < new)
}

impl Goal {
    /// The state that follows on this one, or why there is none.
    pub fn next(&self, old: Option<&str>) -> Result<Option<String>, String> {
        let there = || old.ok_or_else(|| "it is not there".to_owned());
        let odd = |old: &str| format!("its state `{old}` is not understood");
        match self {
            Goal::Value(value) => Ok(Some(value.clone())),
            Goal::Size(bytes) => {
                let old = there()?;
                let now: u64 = old.parse().map_err(|_error| odd(old))?;
                Ok(Some(now.max(*bytes).to_string()))
            }
            Goal::AtLeast(wanted) => {
                let old = there()?;
                let (soft, hard) = limits(old).ok_or_else(|| odd(old))?;
                let soft = soft.max(wanted.unwrap_or(u64::MAX));
                Ok(Some(format!("{} {}", text(soft), text(hard.max(soft)))))
            }
            Goal::AtMost(wanted) => {
                let old = there()?;
                let (soft, hard) = limits(old).ok_or_else(|| odd(old))?;
                Ok(Some(format!("{} {}", text(soft.min(*wanted)), text(hard))))
            }
            Goal::Edits(edits) => {
                edited(there()?, edits).map(Some).map_err(|error| error.to_string())
            }
        }
    }

    /// The state as far as it is known without the present one.
    pub(super) fn shown(&self) -> Option<String> {
        match self {
            Goal::Value(value) => Some(value.clone()),
            Goal::Size(bytes) => Some(bytes.to_string()),
            Goal::AtLeast(limit) => Some(format!("{0} {0}", text(limit.unwrap_or(u64::MAX)))),
            Goal::AtMost(limit) => Some(format!("{limit} ")),
            Goal::Edits(_) => None,
        }
    }

    /// Takes over the changes of another one.
    pub(super) fn join(&mut self, other: Goal) {
        if let (Goal::Edits(edits), Goal::Edits(more)) = (self, other) {
            for edit in more {
                if !edits.contains(&edit) {
                    edits.push(edit);
                }
            }
        }
    }
}
