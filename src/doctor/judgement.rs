//! What a rule says about a subject.

use super::Severity;
use crate::facts::{Fact, NodeName, Unread};

/// A judgement, or why there is none.
pub type Outcome = Result<Judgement, Stop>;

/// Why a rule does not judge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A fact that it needs was not read.
    Unknown(Unread),
    /// It does not apply here.
    Skip(String),
}

impl From<Unread> for Stop {
    fn from(unread: Unread) -> Self {
        Stop::Unknown(unread)
    }
}

impl Stop {
    /// The rule does not apply, because `why`.
    pub fn skip(why: impl Into<String>) -> Self {
        Stop::Skip(why.into())
    }
}

/// What was found. Without problems and unknowns it is a pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judgement {
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// Parts of the subject that could not be judged.
    pub unknown: Vec<Unread>,
    /// What the judgement rests on.
    pub evidence: Vec<Evidence>,
    /// Nodes that cannot be in one job as they are.
    pub conflicts: Vec<Conflict>,
}

/// Nodes of which one side may be in a job as it is, and not several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// At least two.
    pub sides: Vec<Side>,
}

/// One side of a conflict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// What its nodes have in common; empty if each side is one node that is like the others.
    pub value: String,
    /// The nodes.
    pub nodes: Vec<NodeName>,
}

impl Conflict {
    /// Nodes that differ in a value which must be equal.
    pub(super) fn of_values<'v>(
        sides: impl IntoIterator<Item = (&'v String, Vec<NodeName>)>,
    ) -> Self {
        let side = |(value, nodes): (&'v String, _)| Side { value: value.clone(), nodes };
        Conflict { sides: sides.into_iter().map(side).collect() }
    }

    /// Nodes that share something which each must have alone.
    pub(super) fn of_twins(nodes: impl IntoIterator<Item = NodeName>) -> Self {
        let side = |node| Side { value: String::new(), nodes: vec![node] };
        Conflict { sides: nodes.into_iter().map(side).collect() }
    }
}

impl Judgement {
    /// Nothing is wrong.
    pub fn pass(evidence: Evidence) -> Self {
        Judgement { evidence: vec![evidence], ..Judgement::default() }
    }

    /// One thing is wrong.
    pub fn problem(problem: Problem, evidence: Evidence) -> Self {
        Judgement { problems: vec![problem], ..Judgement::pass(evidence) }
    }

    /// A pass, or a problem if there is one.
    pub fn from_option(problem: Option<Problem>, evidence: Evidence) -> Self {
        Judgement { problems: problem.into_iter().collect(), ..Judgement::pass(evidence) }
    }

    /// What one fact says: a pass, or a problem.
    #[expect(clippy::unnecessary_wraps, reason = "the last line of most checks")]
    pub(super) fn of<T>(
        fact: &Fact<T>,
        value: impl Into<Value>,
        required: impl Into<String>,
        problem: Option<Problem>,
    ) -> Outcome {
        Ok(Judgement::from_option(problem, Evidence::of(fact, value, required)))
    }

    /// The same with one more piece of evidence.
    #[must_use]
    pub fn and(mut self, evidence: Evidence) -> Self {
        self.evidence.push(evidence);
        self
    }
}

/// One thing that is wrong, in the four parts that a reader needs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong: observed against required.
    pub what: String,
    /// What it does to this job.
    pub impact: String,
    /// What to do.
    pub fix: String,
    /// Command that shows it.
    pub see: String,
}

impl Problem {
    /// The same, as bad as this.
    #[must_use]
    pub(super) fn at(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }
}

/// One reading that a judgement rests on.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    /// Call or file.
    pub call: String,
    /// The part of the subject that it is about, such as `GPU 3`.
    pub subject: Option<String>,
    /// What it gave.
    pub value: Value,
    /// What the rule asks for.
    pub required: String,
}

impl Evidence {
    /// The value of a fact.
    pub fn of<T>(fact: &Fact<T>, value: impl Into<Value>, required: impl Into<String>) -> Self {
        Evidence {
            call: fact.from().to_owned(),
            subject: None,
            value: value.into(),
            required: required.into(),
        }
    }

    /// A value that was computed from the job.
    pub fn new(
        call: impl Into<String>,
        value: impl Into<Value>,
        required: impl Into<String>,
    ) -> Self {
        Evidence {
            call: call.into(),
            subject: None,
            value: value.into(),
            required: required.into(),
        }
    }

    /// The same about a part of the subject.
    #[must_use]
    pub fn about(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }
}

/// A reading.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A count, or a number in the unit that the call documents.
    Number(u64),
    /// A number of bytes.
    Bytes(u64),
    /// A fraction or rate.
    Real(f64),
    /// Yes or no.
    Flag(bool),
    /// A name, version or path.
    Text(String),
    /// Several of them.
    List(Vec<String>),
    /// The driver says that there is no such thing.
    Absent,
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Value::Number(value)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Value::Number(u64::from(value))
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Value::Number(value as u64)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Value::Real(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Value::Flag(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::Text(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Value::Text(value)
    }
}

impl From<Vec<String>> for Value {
    fn from(value: Vec<String>) -> Self {
        Value::List(value)
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Value::Absent, Into::into)
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Number(number) => write!(f, "{number}"),
            Value::Bytes(bytes) => f.write_str(&super::table::bytes(*bytes)),
            Value::Real(real) => write!(f, "{real}"),
            Value::Flag(flag) => f.write_str(if *flag { "yes" } else { "no" }),
            Value::Text(text) => f.write_str(text),
            Value::List(list) if list.is_empty() => f.write_str("none"),
            Value::List(list) => f.write_str(&list.join(", ")),
            Value::Absent => f.write_str("not there"),
        }
    }
}
