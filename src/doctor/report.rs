//! The result of all rules.

use std::{collections::BTreeSet, ops::Deref, slice, sync::Arc};

use super::{Conflict, Drift, Evidence, MemoryFit, Outcome, Problem, Remedy, Rule, Severity, Stop};
use crate::{
    facts::{NodeName, Unread},
    job::Compute,
};

/// The result of all rules, sorted by area, rule and subject.
#[derive(Debug)]
pub struct Report {
    /// Name of the job; `None` if the doctor was asked about the machine alone.
    pub job: Option<String>,
    /// What the ranks compute on: never `auto`.
    pub compute: Compute,
    /// Ranks of the whole job; `None` = one for each GPU.
    pub ranks: Option<u32>,
    /// One line about the driver.
    pub driver: String,
    /// Nodes that reported.
    pub nodes: Vec<NodeName>,
    /// Nodes that should have reported.
    pub missing: Vec<NodeName>,
    /// One result for each rule and subject.
    pub results: Vec<CheckResult>,
    /// The estimate of a rank's memory against every GPU; `None` if it was not asked for.
    pub memory: Option<MemoryFit>,
    /// What differs between the nodes; `None` if it was not asked for, or there is one node.
    pub drift: Option<Drift>,
    /// The smallest change after which the job can be launched; `None` if it was not asked for, or
    /// nothing stops it.
    pub remedy: Option<Remedy>,
}

/// What one rule says about one subject.
#[derive(Debug)]
pub struct CheckResult {
    /// The rule.
    pub rule: &'static Rule,
    /// What it judged.
    pub subject: Subject,
    /// The worst of what follows.
    pub verdict: Verdict,
    /// What is wrong, worst first.
    pub problems: Few<Problem>,
    /// Facts that were missing, with the reason.
    pub unknown: Few<Unread>,
    /// Why the rule does not apply.
    pub skipped: Option<Box<str>>,
    /// What the judgement rests on; nodes of which it is the same share it.
    pub evidence: Arc<[Evidence]>,
    /// Nodes that cannot be in one job as they are.
    pub conflicts: Few<Conflict>,
}

/// A list that is empty most of the time and then takes one word: a fleet of a thousand nodes has
/// a hundred thousand results.
#[derive(Debug)]
#[expect(clippy::box_collection, reason = "one word")]
pub struct Few<T>(Option<Box<Vec<T>>>);

impl<T> Default for Few<T> {
    fn default() -> Self {
        Few(None)
    }
}

impl<T> From<Vec<T>> for Few<T> {
    fn from(list: Vec<T>) -> Self {
        Few((!list.is_empty()).then(|| Box::new(list)))
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.0.as_ref().map_or(&[], |list| list)
    }
}

impl<'f, T> IntoIterator for &'f Few<T> {
    type Item = &'f T;
    type IntoIter = slice::Iter<'f, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// What a rule judges.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// The job file.
    Job,
    /// All nodes together.
    All,
    /// One node.
    Node(NodeName),
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Subject::Job => f.write_str("job"),
            Subject::All => f.write_str("all nodes"),
            Subject::Node(name) => name.fmt(f),
        }
    }
}

/// Verdict of one rule on one subject, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// The rule does not apply.
    Skipped,
    /// Nothing is wrong.
    Pass,
    /// Something is wrong, but the job runs.
    Warn,
    /// Not enough is known. Never taken for a pass.
    Unknown,
    /// The job fails.
    Fail,
}

/// Verdict on the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Overall {
    /// Nothing blocks.
    Ready,
    /// A check that the job needs could not be evaluated, or a node did not report.
    Unknown,
    /// Something blocks.
    Blocked,
}

/// How many results have which verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Passed.
    pub pass: usize,
    /// With warnings.
    pub warn: usize,
    /// Blocking.
    pub fail: usize,
    /// Not evaluated.
    pub unknown: usize,
    /// Not applicable.
    pub skipped: usize,
}

impl CheckResult {
    pub(super) fn new(rule: &'static Rule, subject: Subject, outcome: Outcome) -> Self {
        match outcome {
            Ok(mut judgement) => {
                judgement.problems.sort_by(|a, b| b.cmp(a));
                let worst = judgement.problems.first().map(|problem| problem.severity);
                CheckResult {
                    rule,
                    subject,
                    verdict: verdict(worst, !judgement.unknown.is_empty()),
                    problems: judgement.problems.into(),
                    unknown: judgement.unknown.into(),
                    skipped: None,
                    evidence: judgement.evidence.into(),
                    conflicts: judgement.conflicts.into(),
                }
            }
            Err(Stop::Skip(why)) => CheckResult::skipped(rule, subject, why),
            Err(Stop::Unknown(unread)) => CheckResult {
                rule,
                subject,
                verdict: Verdict::Unknown,
                problems: Few::default(),
                unknown: vec![unread].into(),
                skipped: None,
                evidence: Arc::default(),
                conflicts: Few::default(),
            },
        }
    }

    pub(super) fn skipped(rule: &'static Rule, subject: Subject, why: impl Into<String>) -> Self {
        CheckResult {
            rule,
            subject,
            verdict: Verdict::Skipped,
            problems: Few::default(),
            unknown: Few::default(),
            skipped: Some(why.into().into()),
            evidence: Arc::default(),
            conflicts: Few::default(),
        }
    }

    /// Whether the launch must stop because this is not known.
    pub fn is_needed_unknown(&self) -> bool {
        self.verdict == Verdict::Unknown && self.rule.is_needed()
    }
}

fn verdict(worst: Option<Severity>, unknown: bool) -> Verdict {
    match (worst, unknown) {
        (Some(Severity::Block), _) => Verdict::Fail,
        (_, true) => Verdict::Unknown,
        (Some(Severity::Warn), false) => Verdict::Warn,
        (Some(Severity::Info) | None, false) => Verdict::Pass,
    }
}

impl Report {
    /// Verdict on the whole. `strict` lets warnings block; `allowed` names rules that may be
    /// unknown.
    pub fn overall(&self, strict: bool, allowed: &BTreeSet<String>) -> Overall {
        let counts = self.counts();
        if 0 < counts.fail || (strict && 0 < counts.warn) {
            return Overall::Blocked;
        }
        let stops = |result: &&CheckResult| {
            let needed =
                result.is_needed_unknown() || (strict && result.verdict == Verdict::Unknown);
            needed && !allowed.contains(result.rule.id)
        };
        if self.results.iter().any(|result| stops(&result)) {
            return Overall::Unknown;
        }
        Overall::Ready
    }

    /// How many results have which verdict.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for result in &self.results {
            match result.verdict {
                Verdict::Pass => counts.pass += 1,
                Verdict::Warn => counts.warn += 1,
                Verdict::Fail => counts.fail += 1,
                Verdict::Unknown => counts.unknown += 1,
                Verdict::Skipped => counts.skipped += 1,
            }
        }
        counts
    }

    /// How much of the whole was judged, in one line.
    pub fn coverage(&self) -> String {
        let Counts { pass, warn, fail, unknown, skipped } = self.counts();
        let evaluated = pass + warn + fail;
        format!(
            "{evaluated} of {} checks evaluated, {unknown} unknown, {skipped} skipped; nodes {}/{} reported",
            evaluated + unknown,
            self.nodes.len(),
            self.nodes.len() + self.missing.len(),
        )
    }
}
