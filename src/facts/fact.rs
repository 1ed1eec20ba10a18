//! One observation, or the reason why there is none.

use serde::{Deserialize, Serialize};

use super::Source;

/// One observation with its source, or why it could not be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fact<T> {
    /// It was read.
    Known {
        /// What was read.
        value: T,
        /// Call or file that gave it, such as `nvmlDeviceGetCount_v2` or `/proc/meminfo`.
        from: Source,
    },
    /// It could not be read.
    Unread {
        /// The reason, for a person.
        why: Box<str>,
        /// Call or file that was tried.
        from: Source,
    },
}

/// A rule needed a fact that was not observed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{from}: {why}")]
pub struct Unread {
    /// The reason, for a person.
    pub why: String,
    /// Call or file that was tried.
    pub from: String,
}

impl<T> Fact<T> {
    /// A value that was read from `from`.
    pub fn known(value: T, from: impl Into<Source>) -> Self {
        Fact::Known { value, from: from.into() }
    }

    /// A value that `from` did not give.
    pub fn unread(why: impl Into<String>, from: impl Into<Source>) -> Self {
        Fact::Unread { why: why.into().into(), from: from.into() }
    }

    /// A value that an older file of facts does not have.
    pub fn not_recorded() -> Self {
        Fact::unread("not recorded: the facts are from an older version of qvl", "file of facts")
    }

    /// The value of a reading that may fail; the error becomes the reason.
    pub fn from_result<E: std::fmt::Display>(
        result: Result<T, E>,
        from: impl Into<Source>,
    ) -> Self {
        match result {
            Ok(value) => Fact::known(value, from),
            Err(error) => Fact::unread(error.to_string(), from),
        }
    }

    /// The value, or the reason why a rule cannot judge.
    pub fn get(&self) -> Result<&T, Unread> {
        match self {
            Fact::Known { value, .. } => Ok(value),
            Fact::Unread { why, from } => {
                Err(Unread { why: why.to_string(), from: from.as_str().to_owned() })
            }
        }
    }

    /// The value, where not knowing is as good as not having.
    pub fn value(&self) -> Option<&T> {
        self.get().ok()
    }

    /// Call or file that gave the value, or was tried.
    pub fn from(&self) -> &str {
        match self {
            Fact::Known { from, .. } | Fact::Unread { from, .. } => from.as_str(),
        }
    }

    /// The same fact about a part of the value.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Fact<U> {
        match self {
            Fact::Known { value, from } => Fact::Known { value: f(value), from },
            Fact::Unread { why, from } => Fact::Unread { why, from },
        }
    }
}
