//! The report for a person: one line for each check, four parts for each problem.

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

use anstyle::{AnsiColor, Style};

use crate::{
    doctor::{Area, CheckResult, Counts, Overall, Problem, Report, Severity, Verdict},
    job::Compute,
};

/// Column in which a subject or a value begins.
const ID_WIDTH: usize = 24;

/// Styles of a report; all plain without colour.
#[derive(Clone, Copy)]
struct Paint {
    color: bool,
}

impl Paint {
    fn write(self, out: &mut impl Write, style: Style, text: &str) -> io::Result<()> {
        if self.color {
            write!(out, "{style}{text}{style:#}")
        } else {
            out.write_all(text.as_bytes())
        }
    }
}

fn style(verdict: Verdict) -> Style {
    match verdict {
        Verdict::Pass => AnsiColor::Green.on_default(),
        Verdict::Warn => AnsiColor::Yellow.on_default(),
        Verdict::Fail => AnsiColor::Red.on_default().bold(),
        Verdict::Unknown => AnsiColor::Magenta.on_default(),
        Verdict::Skipped => Style::new().dimmed(),
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "ok",
        Verdict::Warn => "warn",
        Verdict::Fail => "FAIL",
        Verdict::Unknown => "unknown",
        Verdict::Skipped => "skip",
    }
}

/// Writes the whole report. `allowed` names rules that may be unknown.
pub fn text(
    report: &Report,
    color: bool,
    strict: bool,
    allowed: &BTreeSet<String>,
    out: &mut impl Write,
) -> io::Result<()> {
    let paint = Paint { color };
    writeln!(out, "{}", report.driver)?;
    writeln!(out, "{}", asked(report))?;
    let mut area: Option<Area> = None;
    let shown = |result: &&CheckResult| result.verdict != Verdict::Skipped;
    for result in report.results.iter().filter(shown) {
        if area != Some(result.rule.area) {
            area = Some(result.rule.area);
            writeln!(out)?;
            paint.write(out, Style::new().bold(), result.rule.area.name())?;
            writeln!(out)?;
        }
        line(report, result, paint, out)?;
    }
    skipped(report, paint, out)?;
    writeln!(out, "\n{}", report.coverage())?;
    verdict(report, strict, allowed, paint, out)
}

/// Writes what is wrong and what is not known, and nothing else.
pub fn problems(report: &Report, color: bool, out: &mut impl Write) -> io::Result<()> {
    let paint = Paint { color };
    let bad = |result: &&CheckResult| {
        matches!(result.verdict, Verdict::Warn | Verdict::Fail) || result.is_needed_unknown()
    };
    report.results.iter().filter(bad).try_for_each(|result| line(report, result, paint, out))
}

/// One line about everything: `doctor: 31 ok, 1 warning, 0 failed, 2 unknown, 30 skipped`.
pub fn summary(report: &Report) -> String {
    let Counts { pass, warn, fail, unknown, skipped } = report.counts();
    let warnings = if warn == 1 { "warning" } else { "warnings" };
    format!(
        "doctor: {pass} ok, {warn} {warnings}, {fail} failed, {unknown} unknown, {skipped} skipped"
    )
}

fn asked(report: &Report) -> String {
    let device = match report.compute {
        Compute::Cpu => "CPUs",
        Compute::Cuda | Compute::Auto => "GPUs",
    };
    let ranks = match report.ranks {
        Some(1) => "1 rank".to_owned(),
        Some(ranks) => format!("{ranks} ranks"),
        None if report.compute == Compute::Cpu => "ranks".to_owned(),
        None => "one rank for each GPU".to_owned(),
    };
    match &report.job {
        Some(job) => format!("judged for the job `{job}`: {ranks} on {device}"),
        None => format!("judged without a job (--job FILE): {ranks} on {device}"),
    }
}

fn line(
    report: &Report,
    result: &CheckResult,
    paint: Paint,
    out: &mut impl Write,
) -> io::Result<()> {
    write!(out, "  ")?;
    paint.write(out, style(result.verdict), &format!("{:<8}", word(result.verdict)))?;
    let many = 1 < report.nodes.len() + report.missing.len();
    let subject = if many { format!("{}: ", result.subject) } else { String::new() };
    writeln!(out, "{:<ID_WIDTH$} {subject}{}", result.rule.id, result.rule.summary)?;
    for unknown in &result.unknown {
        writeln!(out, "          not known: {unknown}")?;
    }
    result.problems.iter().try_for_each(|problem| four_parts(problem, paint, out))
}

fn four_parts(problem: &Problem, paint: Paint, out: &mut impl Write) -> io::Result<()> {
    let verdict = match problem.severity {
        Severity::Info => Verdict::Pass,
        Severity::Warn => Verdict::Warn,
        Severity::Block => Verdict::Fail,
    };
    let parts = [
        ("what", &problem.what),
        ("so", &problem.impact),
        ("fix", &problem.fix),
        ("see", &problem.see),
    ];
    for (name, text) in parts {
        write!(out, "          ")?;
        paint.write(out, style(verdict), &format!("{name:<5}"))?;
        writeln!(out, "{text}")?;
    }
    Ok(())
}

/// Checks that do not apply, by reason: nobody reads thirty lines of them.
fn skipped(report: &Report, paint: Paint, out: &mut impl Write) -> io::Result<()> {
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for result in &report.results {
        let Some(why) = &result.skipped else { continue };
        match reasons.iter_mut().find(|(reason, _ids)| reason == why) {
            Some((_reason, ids)) if ids.contains(&result.rule.id) => {}
            Some((_reason, ids)) => ids.push(result.rule.id),
            None => reasons.push((why, vec![result.rule.id])),
        }
    }
    if reasons.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    paint.write(out, Style::new().bold(), "skipped")?;
    writeln!(out)?;
    for (why, ids) in reasons {
        let ids = match ids.len() {
            0..=3 => ids.join(", "),
            many => format!("{many} checks"),
        };
        writeln!(out, "  {ids}: {why}")?;
    }
    Ok(())
}

fn verdict(
    report: &Report,
    strict: bool,
    allowed: &BTreeSet<String>,
    paint: Paint,
    out: &mut impl Write,
) -> io::Result<()> {
    let counts = report.counts();
    let (verdict, text) = match report.overall(strict, allowed) {
        Overall::Ready if counts.warn == 0 => (Verdict::Pass, "ready".to_owned()),
        Overall::Ready => (Verdict::Pass, format!("ready, with {} warnings", counts.warn)),
        Overall::Unknown => (
            Verdict::Unknown,
            "not known: a launch needs the checks above; --allow-unknown ID accepts one".to_owned(),
        ),
        Overall::Blocked if counts.fail == 0 => {
            (Verdict::Fail, format!("blocked: {} warnings, and --strict", counts.warn))
        }
        Overall::Blocked => (Verdict::Fail, format!("blocked: {} checks failed", counts.fail)),
    };
    paint.write(out, style(verdict), &text)?;
    writeln!(out)
}
