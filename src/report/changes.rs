//! What changes: between facts as they are and as they might be, and between two machines or
//! reports.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
};

use anstyle::Style;
use serde::{Deserialize, Serialize};

use super::{View, words, wrap::wrap};
use crate::{
    doctor::{self, Overall, Report, Turn},
    facts::Difference,
};

/// A fact that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Name of the node.
    pub node: String,
    /// Path of the fact.
    pub path: String,
    /// What was there.
    pub before: String,
    /// What was put there.
    pub after: String,
}

/// Reports before and after changes.
#[derive(Debug)]
pub struct WhatIf<'w> {
    /// What was changed.
    pub changes: &'w [Change],
    /// The report on the facts as they are.
    pub before: &'w Report,
    /// The report on the changed facts.
    pub after: &'w Report,
}

/// A verdict of one check that is not the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Changed {
    id: String,
    subject: String,
    /// `null` if it was not judged there.
    before: Option<String>,
    after: Option<String>,
    /// What the worse side says.
    what: String,
}

impl From<&Turn> for Changed {
    fn from(turn: &Turn) -> Self {
        let name = |verdict: Option<doctor::Verdict>| {
            verdict.map(|verdict| words::verdict(verdict).to_owned())
        };
        Changed {
            id: turn.id.clone(),
            subject: turn.subject.clone(),
            before: name(turn.first),
            after: name(turn.second),
            what: turn.what.clone(),
        }
    }
}

fn paint(view: &View<'_>, style: Style, text: &str) -> String {
    if view.color { format!("{style}{text}{style:#}") } else { text.to_owned() }
}

fn changed_lines(changed: &[Changed], view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    for Changed { id, subject, before, after, what } in changed {
        let name = |verdict: &Option<String>| verdict.clone().unwrap_or("not judged".to_owned());
        let id = paint(view, Style::new().bold(), id);
        writeln!(out, "  {id} on {subject}: {} -> {}", name(before), name(after))?;
        for line in wrap(what, view.width.saturating_sub(6).max(20)) {
            writeln!(out, "      {line}")?;
        }
    }
    Ok(())
}

/// Writes the answer of `what-if` for a person.
pub fn what_if_text(answer: &WhatIf<'_>, view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{}", paint(view, Style::new().bold(), "what if"))?;
    for Change { node, path, before, after } in answer.changes {
        writeln!(out, "  {node}.{path} = {after} (it is {before})")?;
    }
    let changed = of_turns(answer);
    writeln!(out)?;
    if changed.is_empty() {
        writeln!(out, "no verdict changes")?;
    } else {
        writeln!(out, "{}", paint(view, Style::new().bold(), "then"))?;
        changed_lines(&changed, view, out)?;
    }
    let (before, after) = overall(answer, view);
    let says = match (before == Overall::Ready, after == Overall::Ready) {
        (false, true) => "the job becomes launchable",
        (true, false) => "the job is not launchable any more",
        (true, true) => "the job stays launchable",
        (false, false) => "the job stays not launchable",
    };
    writeln!(out, "\n{says}: {} -> {}", words::overall(before), words::overall(after))?;
    if after != Overall::Ready {
        writeln!(out, "still in the way: {}", in_the_way(answer.after, view).join(", "))?;
    }
    Ok(())
}

fn of_turns(answer: &WhatIf<'_>) -> Vec<Changed> {
    doctor::turns(answer.before, answer.after, false).iter().map(Changed::from).collect()
}

fn overall(answer: &WhatIf<'_>, view: &View<'_>) -> (Overall, Overall) {
    let of = |report: &Report| report.overall(view.strict, view.allowed);
    (of(answer.before), of(answer.after))
}

/// Checks that stop a launch.
fn in_the_way(report: &Report, view: &View<'_>) -> Vec<&'static str> {
    let stops = |result: &&doctor::CheckResult| match result.verdict {
        doctor::Verdict::Fail => true,
        doctor::Verdict::Warn => view.strict,
        doctor::Verdict::Unknown => {
            (view.strict || result.rule.is_needed()) && !view.allowed.contains(result.rule.id)
        }
        doctor::Verdict::Pass | doctor::Verdict::Skipped => false,
    };
    let mut ids: Vec<&str> =
        report.results.iter().filter(stops).map(|result| result.rule.id).collect();
    ids.dedup();
    ids
}

/// The answer of `what-if` as pretty JSON.
pub fn what_if_json(answer: &WhatIf<'_>, view: &View<'_>) -> String {
    let (before, after) = overall(answer, view);
    let document = serde_json::json!({
        "v": 1,
        "changes": answer.changes,
        "checks": of_turns(answer),
        "verdictBefore": words::overall(before),
        "verdictAfter": words::overall(after),
        "inTheWay": in_the_way(answer.after, view),
    });
    serde_json::to_string_pretty(&document).expect("plain data")
}

/// The parts of a saved report that are compared.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SavedReport {
    verdict: String,
    #[serde(default)]
    job: Option<String>,
    nodes: Vec<String>,
    checks: Vec<SavedCheck>,
}

#[derive(Debug, Deserialize)]
struct SavedCheck {
    id: String,
    subject: String,
    verdict: String,
    #[serde(default)]
    problems: Vec<SavedProblem>,
}

#[derive(Debug, Deserialize)]
struct SavedProblem {
    what: String,
}

/// What differs between two sides.
#[derive(Debug, Serialize)]
pub struct Diff {
    v: u32,
    /// Names of the two sides.
    sides: [String; 2],
    /// Facts that differ, or the head of the reports.
    facts: Vec<Fact>,
    /// Verdicts that differ.
    checks: Vec<Changed>,
}

#[derive(Debug, Serialize)]
struct Fact {
    path: String,
    /// `null` where it is not there.
    first: Option<String>,
    second: Option<String>,
}

/// What differs between the facts of two nodes.
pub fn of_facts(sides: [String; 2], facts: Vec<Difference>, turns: &[Turn]) -> Diff {
    let fact = |Difference { path, first, second }| Fact { path, first, second };
    let checks = turns.iter().map(Changed::from).collect();
    Diff { v: 1, sides, facts: facts.into_iter().map(fact).collect(), checks }
}

/// What differs between two reports.
pub fn of_reports(first: &SavedReport, second: &SavedReport) -> Diff {
    let head = |report: &SavedReport| {
        let job = report.job.clone().unwrap_or_else(|| "none".to_owned());
        [("verdict", report.verdict.clone()), ("job", job), ("nodes", report.nodes.join(", "))]
    };
    let pairs = head(first).into_iter().zip(head(second)).filter(|(a, b)| a != b);
    let facts = pairs.map(|((path, a), (_path, b))| Fact {
        path: path.to_owned(),
        first: Some(a),
        second: Some(b),
    });
    let index = |report: &'_ SavedReport| -> BTreeMap<(String, String), usize> {
        let checks = report.checks.iter().enumerate();
        checks.map(|(at, check)| ((check.id.clone(), check.subject.clone()), at)).collect()
    };
    let (a, b) = (index(first), index(second));
    let keys: BTreeSet<_> = a.keys().chain(b.keys()).cloned().collect();
    let changed = keys.into_iter().filter_map(|key| {
        let before = a.get(&key).map(|at| &first.checks[*at]);
        let after = b.get(&key).map(|at| &second.checks[*at]);
        let verdict = |check: Option<&SavedCheck>| check.map(|check| check.verdict.clone());
        let said = |check: Option<&SavedCheck>| Some(check?.problems.first()?.what.clone());
        let what = said(after).or_else(|| said(before)).unwrap_or_default();
        let (before, after) = (verdict(before), verdict(after));
        let (id, subject) = key;
        (before != after).then_some(Changed { id, subject, before, after, what })
    });
    let checks = changed.collect();
    let sides = ["first".to_owned(), "second".to_owned()];
    Diff { v: 1, sides, facts: facts.collect(), checks }
}

/// Writes what differs for a person.
pub fn diff_text(diff: &Diff, view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    let [first, second] = &diff.sides;
    let bold = Style::new().bold();
    writeln!(out, "{}", paint(view, bold, &format!("{first} -> {second}")))?;
    if diff.facts.is_empty() && diff.checks.is_empty() {
        return writeln!(out, "nothing differs");
    }
    for Fact { path, first, second } in &diff.facts {
        let side = |value: &Option<String>| match value.as_deref() {
            None => "not there".to_owned(),
            Some("") => "(empty)".to_owned(),
            Some(text) => text.to_owned(),
        };
        writeln!(out, "  {path}: {} -> {}", side(first), side(second))?;
    }
    if diff.checks.is_empty() {
        return writeln!(out, "\nno verdict differs");
    }
    writeln!(out, "\n{}", paint(view, bold, "verdicts"))?;
    changed_lines(&diff.checks, view, out)
}

/// What differs as pretty JSON.
pub fn diff_json(diff: &Diff) -> String {
    serde_json::to_string_pretty(diff).expect("plain data")
}
