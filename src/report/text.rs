//! The report for a person: one line for each check, four parts for each problem.

mod fleet;
mod measured;
mod memory;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
};

use anstyle::{AnsiColor, Style};

use super::{
    View, words,
    wrap::{cut, wrap},
};
use crate::doctor::{
    Area, CheckResult, Counts, Overall, Problem, Report, Rule, Severity, Subject, Value, Verdict,
    fix::repairable,
};

/// Columns of the verdict and of the id.
const VERDICT_WIDTH: usize = 9;
const ID_WIDTH: usize = 31;
/// Column in which the text of a problem begins.
const TEXT_COLUMN: usize = 2 + VERDICT_WIDTH + 8;

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

fn style(verdict: Verdict) -> Style {
    match verdict {
        Verdict::Pass => AnsiColor::Green.on_default(),
        Verdict::Warn => AnsiColor::Yellow.on_default().bold(),
        Verdict::Fail => AnsiColor::Red.on_default().bold(),
        Verdict::Unknown => AnsiColor::Magenta.on_default().bold(),
        Verdict::Skipped => DIM,
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "ok",
        Verdict::Warn => "WARN",
        Verdict::Fail => "FAIL",
        Verdict::Unknown => "UNKNOWN",
        Verdict::Skipped => "skip",
    }
}

/// `text`, in `style` if there are colours.
fn paint(view: &View<'_>, style: Style, text: &str) -> String {
    if view.color { format!("{style}{text}{style:#}") } else { text.to_owned() }
}

/// Writes the whole report.
pub fn text(report: &Report, view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{}", paint(view, BOLD, &format!("qvl doctor: {}", words::asked(report))))?;
    for line in wrap(&report.driver, view.width) {
        writeln!(out, "{line}")?;
    }
    let mut area: Option<Area> = None;
    for (rule, results) in by_rule(report) {
        if results.iter().all(|result| is_quiet(result)) {
            continue;
        }
        if area != Some(rule.area) {
            area = Some(rule.area);
            writeln!(out, "\n{}", paint(view, BOLD, rule.area.name()))?;
        }
        passes(rule, &results, view, out)?;
        let bad = results.iter().filter(|result| !result.problems.is_empty());
        bad.into_iter().try_for_each(|result| problem_lines(report, result, view, out))?;
    }
    unknowns(report, view, out)?;
    skips(report, view, out)?;
    measured::figures(report, view, out)?;
    memory::fit(report, view, out)?;
    fleet::drift(report, view, out)?;
    fleet::remedy(report, view, out)?;
    writeln!(out, "\n{}", report.coverage())?;
    if let Some(ms) = view.elapsed_ms {
        writeln!(out, "looked and judged in {ms} ms")?;
    }
    seal(view, out)?;
    verdict(report, view, out)
}

/// Digests of what the verdict was made of.
fn seal(view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    let Some(seal) = view.seal else { return Ok(()) };
    let job = seal.job.as_deref().unwrap_or("none");
    for (name, digest) in [("facts", seal.facts.as_str()), ("rules", &seal.rules), ("job", job)] {
        writeln!(out, "{name:<6}{}", paint(view, DIM, digest))?;
    }
    Ok(())
}

/// Writes what is wrong and what is not known, and nothing else.
pub fn problems(report: &Report, view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    let bad = report.results.iter().filter(|result| !result.problems.is_empty());
    bad.into_iter().try_for_each(|result| problem_lines(report, result, view, out))?;
    unknowns(report, view, out)
}

/// One line about everything: `doctor: 31 ok, 1 warning, 0 failed, 2 unknown, 30 skipped`.
pub fn summary(report: &Report) -> String {
    let Counts { pass, warn, fail, unknown, skipped } = report.counts();
    let warnings = if warn == 1 { "warning" } else { "warnings" };
    format!(
        "doctor: {pass} ok, {warn} {warnings}, {fail} failed, {unknown} unknown, {skipped} skipped"
    )
}

/// Results without a line of their own: they are listed by reason at the end.
fn is_quiet(result: &CheckResult) -> bool {
    matches!(result.verdict, Verdict::Skipped | Verdict::Unknown) && result.problems.is_empty()
}

fn by_rule(report: &Report) -> Vec<(&'static Rule, Vec<&CheckResult>)> {
    let mut groups: Vec<(&'static Rule, Vec<&CheckResult>)> = Vec::new();
    for result in &report.results {
        match groups.last_mut() {
            Some((rule, results)) if rule.id == result.rule.id => results.push(result),
            Some(_) | None => groups.push((result.rule, vec![result])),
        }
    }
    groups
}

/// One line for all subjects that passed.
fn passes(
    rule: &Rule,
    results: &[&CheckResult],
    view: &View<'_>,
    out: &mut impl Write,
) -> io::Result<()> {
    let passed: Vec<&&CheckResult> =
        results.iter().filter(|result| result.verdict == Verdict::Pass).collect();
    if passed.is_empty() {
        return Ok(());
    }
    let word = paint(view, style(Verdict::Pass), &format!("{:<VERDICT_WIDTH$}", "ok"));
    let mut observed = observed(&passed);
    if 1 < passed.len() {
        observed = format!("{observed} ({} nodes)", passed.len());
    }
    let room = view.width.saturating_sub(2 + VERDICT_WIDTH + ID_WIDTH);
    let observed = paint(view, DIM, &cut(&observed, room));
    writeln!(out, "  {word}{:<ID_WIDTH$}{observed}", rule.id)
}

/// What was checked, and what was read if it is one thing for all.
fn observed(passed: &[&&CheckResult]) -> String {
    let summary = passed.first().map_or("", |result| result.rule.summary);
    let mut evidence = passed.iter().flat_map(|result| result.evidence.iter());
    let first = evidence.next().map(|first| &first.value);
    let same = first.filter(|first| evidence.all(|other| other.value == **first));
    match same {
        // "Yes" and "none" say no more than the summary.
        None | Some(Value::Flag(_) | Value::Absent) => summary.to_owned(),
        Some(Value::List(list)) if list.is_empty() => summary.to_owned(),
        Some(
            value @ (Value::Number(_)
            | Value::Bytes(_)
            | Value::Real(_)
            | Value::Text(_)
            | Value::List(_)),
        ) => format!("{summary}: {value}"),
    }
}

fn problem_lines(
    report: &Report,
    result: &CheckResult,
    view: &View<'_>,
    out: &mut impl Write,
) -> io::Result<()> {
    let many = 1 < report.nodes.len() + report.missing.len();
    for problem in &result.problems {
        let verdict = match problem.severity {
            Severity::Info => Verdict::Pass,
            Severity::Warn => Verdict::Warn,
            Severity::Block => Verdict::Fail,
        };
        let word = paint(view, style(verdict), &format!("{:<VERDICT_WIDTH$}", word(verdict)));
        let subject = if many { format!(" on {}", result.subject) } else { String::new() };
        writeln!(out, "  {word}{}{subject}", paint(view, BOLD, result.rule.id))?;
        four_parts(problem, result.rule, view, out)?;
    }
    Ok(())
}

fn four_parts(
    problem: &Problem,
    rule: &Rule,
    view: &View<'_>,
    out: &mut impl Write,
) -> io::Result<()> {
    let why = format!("qvl doctor explain {}", rule.id);
    let repair = format!("qvl doctor --fix --only {}", rule.id);
    let mut parts = vec![
        ("what", problem.what.as_str()),
        ("effect", &problem.impact),
        ("fix", &problem.fix),
        ("see", &problem.see),
        ("why", &why),
    ];
    // A plan that can be undone; it changes nothing until it is told to.
    if repairable(rule.id).is_some() && Severity::Info < problem.severity {
        parts.insert(3, ("repair", &repair));
    }
    let room = view.width.saturating_sub(TEXT_COLUMN).max(20);
    for (name, text) in parts {
        // A command must stay in one piece, so that it can be copied.
        let lines =
            if matches!(name, "see" | "repair") { vec![text.to_owned()] } else { wrap(text, room) };
        for (index, line) in lines.iter().enumerate() {
            let name = if index == 0 { name } else { "" };
            let indent = 2 + VERDICT_WIDTH;
            writeln!(out, "{:indent$}{}{line}", "", paint(view, DIM, &format!("{name:<8}")))?;
        }
    }
    Ok(())
}

/// Checks that could not be evaluated, by reason: one missing library makes twenty of them, and one
/// missing right makes them on every node.
fn unknowns(report: &Report, view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    let many = 1 < report.nodes.len() + report.missing.len();
    // Calls that fail for one reason are one reason.
    let mut ids_of: BTreeMap<(bool, &str, &Subject), BTreeSet<&str>> = BTreeMap::new();
    for result in &report.results {
        for unread in &result.unknown {
            let key = (!result.rule.is_needed(), unread.why.as_str(), &result.subject);
            ids_of.entry(key).or_default().insert(result.rule.id);
        }
    }
    let mut merged: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for ((optional, why, subject), ids) in ids_of {
        merged.entry((optional, why, ids)).or_default().push(subject.to_string());
    }
    if !merged.is_empty() {
        writeln!(out, "\n{}", paint(view, BOLD, "not known"))?;
    }
    for ((optional, why, ids), subjects) in merged {
        let word = if optional { "unknown" } else { "UNKNOWN" };
        let style = if optional { DIM } else { style(Verdict::Unknown) };
        let word = paint(view, style, &format!("{word:<VERDICT_WIDTH$}"));
        let on = if many { format!("{}: ", few(&subjects)) } else { String::new() };
        let needed = if optional { " (does not stop a launch)" } else { "" };
        let ids: Vec<&str> = ids.into_iter().collect();
        list(&word, &format!("{on}{why}{needed}"), &ids, view, out)?;
    }
    Ok(())
}

/// The first few of many names.
fn few(names: &[String]) -> String {
    const FEW: usize = 5;
    let more = names.len().saturating_sub(FEW);
    let list = names[..names.len().min(FEW)].join(", ");
    if more == 0 { list } else { format!("{list} and {more} more") }
}

/// Checks that do not apply, by reason: nobody reads thirty lines of them.
fn skips(report: &Report, view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for result in &report.results {
        let Some(why) = result.skipped.as_deref() else { continue };
        match reasons.iter_mut().find(|(reason, _ids)| *reason == why) {
            Some((_reason, ids)) => ids.push(result.rule.id),
            None => reasons.push((why, vec![result.rule.id])),
        }
    }
    if !reasons.is_empty() {
        writeln!(out, "\n{}", paint(view, BOLD, "skipped"))?;
    }
    for (why, mut ids) in reasons {
        ids.dedup();
        let word = paint(view, DIM, &format!("{:<VERDICT_WIDTH$}", ids.len()));
        list(&word, why, &ids, view, out)?;
    }
    Ok(())
}

/// A reason, and below it the ids that it is about.
fn list(
    word: &str,
    reason: &str,
    ids: &[&str],
    view: &View<'_>,
    out: &mut impl Write,
) -> io::Result<()> {
    let indent = 2 + VERDICT_WIDTH;
    let room = view.width.saturating_sub(indent).max(20);
    for (index, line) in wrap(reason, room).iter().enumerate() {
        let word = if index == 0 { word.to_owned() } else { " ".repeat(VERDICT_WIDTH) };
        writeln!(out, "  {word}{line}")?;
    }
    for line in wrap(&ids.join(" "), room) {
        writeln!(out, "{:indent$}{}", "", paint(view, DIM, &line))?;
    }
    Ok(())
}

fn verdict(report: &Report, view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    let Counts { warn, fail, .. } = report.counts();
    let plural = |count: usize, what: &str| match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    };
    let (verdict, text) = match report.overall(view.strict, view.allowed) {
        Overall::Ready if warn == 0 => (Verdict::Pass, "ready: nothing blocks".to_owned()),
        Overall::Ready => {
            (Verdict::Pass, format!("ready: nothing blocks, {}", plural(warn, "warning")))
        }
        Overall::Unknown => {
            let hint = "accept one with --allow-unknown ID";
            (Verdict::Unknown, format!("not known: a launch needs the checks above; {hint}"))
        }
        Overall::Blocked if fail == 0 => {
            (Verdict::Fail, format!("blocked: {}, and --strict", plural(warn, "warning")))
        }
        Overall::Blocked => (Verdict::Fail, format!("blocked: {}", plural(fail, "failed check"))),
    };
    writeln!(out, "{}", paint(view, style(verdict), &text))
}
