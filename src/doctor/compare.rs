//! Two reports side by side: which verdicts are not the same.

use std::collections::{BTreeMap, BTreeSet};

use super::{CheckResult, Report, Subject, Verdict};

/// A verdict that is not the same on two sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Id of the check.
    pub id: String,
    /// What was judged.
    pub subject: String,
    /// Name of the verdict on the first side; `None` if it was not judged there.
    pub first: Option<Verdict>,
    /// On the second side.
    pub second: Option<Verdict>,
    /// What the worse side says, in one line.
    pub what: String,
}

/// Verdicts that differ, in the order of the reports. With `nodes_alike` the reports are about one
/// node each, and a node is compared with the other whatever its name.
pub fn turns(first: &Report, second: &Report, nodes_alike: bool) -> Vec<Turn> {
    let key = |result: &CheckResult| {
        let subject = match &result.subject {
            Subject::Node(_) if nodes_alike => "node".to_owned(),
            Subject::Node(_) | Subject::All | Subject::Job => result.subject.to_string(),
        };
        (result.rule.area, result.rule.id, subject)
    };
    let index = |report: &'_ Report| -> BTreeMap<_, usize> {
        report.results.iter().enumerate().map(|(at, result)| (key(result), at)).collect()
    };
    let (a, b) = (index(first), index(second));
    let keys: BTreeSet<_> = a.keys().chain(b.keys()).cloned().collect();
    let turn = |key: (_, &str, String)| {
        let before = a.get(&key).map(|at| &first.results[*at]);
        let after = b.get(&key).map(|at| &second.results[*at]);
        let verdict = |result: Option<&CheckResult>| result.map(|result| result.verdict);
        let (before_is, after_is) = (verdict(before), verdict(after));
        (before_is != after_is).then(|| Turn {
            id: key.1.to_owned(),
            subject: key.2,
            first: before_is,
            second: after_is,
            what: said(if after_is < before_is { before } else { after }),
        })
    };
    keys.into_iter().filter_map(turn).collect()
}

/// What a result says first.
fn said(result: Option<&CheckResult>) -> String {
    let Some(result) = result else { return String::new() };
    let problem = result.problems.first().map(|problem| problem.what.clone());
    let unknown = || result.unknown.first().map(ToString::to_string);
    problem
        .or_else(unknown)
        .or_else(|| result.skipped.as_deref().map(str::to_owned))
        .unwrap_or_default()
}
