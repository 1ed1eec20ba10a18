//! `qvl doctor list` and `explain`: what the checks are.

use std::io::Write;

use serde::Serialize;

use crate::{
    cli::CliError,
    doctor::{self, Rule, Severity},
    wire::ExitStatus,
};

/// A check as `list --format json` shows it.
#[derive(Debug, Serialize)]
struct Entry<'r> {
    id: &'r str,
    area: &'r str,
    /// The worst that it may find.
    severity: &'r str,
    /// Whether a launch stops when it is unknown.
    needed: bool,
    what: &'r str,
    why: &'r str,
    reads: &'r str,
    source: &'r str,
    fix: &'r str,
    /// Numbers of the causes in docs/causes.md that it catches.
    causes: Vec<u32>,
}

#[derive(Debug, Serialize)]
struct Catalog<'r> {
    v: u32,
    checks: Vec<Entry<'r>>,
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "info",
        Severity::Warn => "warn",
        Severity::Block => "block",
    }
}

fn causes(rule: &Rule) -> Vec<u32> {
    let all = doctor::causes();
    let of_rule = all.iter().filter(|cause| cause.rules.contains(&rule.id));
    of_rule.map(|cause| cause.number).collect()
}

pub(super) fn explain(rule: &Rule, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    writeln!(out, "{}: {}", rule.id, rule.summary)?;
    writeln!(out, "\n{}\n", rule.docs)?;
    writeln!(out, "area      {}", rule.area.name())?;
    writeln!(out, "severity  {} at most", word(rule.severity))?;
    let needed = if rule.is_needed() { "stops a launch" } else { "is only reported" };
    writeln!(out, "unknown   {needed}")?;
    writeln!(out, "reads     {}", rule.reads)?;
    writeln!(out, "fix       {}", rule.fix)?;
    writeln!(out, "source    {}", rule.source)?;
    let causes: Vec<String> = causes(rule).iter().map(ToString::to_string).collect();
    if !causes.is_empty() {
        writeln!(out, "causes    {} of docs/causes.md", causes.join(", "))?;
    }
    Ok(ExitStatus::Success)
}

pub(super) fn text(out: &mut impl Write) -> Result<ExitStatus, CliError> {
    for rule in doctor::RULES {
        let (area, severity) = (rule.area.name(), word(rule.severity));
        writeln!(out, "{:<30} {area:<11} {severity:<6} {}", rule.id, rule.summary)?;
    }
    Ok(ExitStatus::Success)
}

pub(super) fn json(out: &mut impl Write) -> Result<ExitStatus, CliError> {
    let entry = |rule: &&'static Rule| Entry {
        id: rule.id,
        area: rule.area.name(),
        severity: word(rule.severity),
        needed: rule.is_needed(),
        what: rule.summary,
        why: rule.docs,
        reads: rule.reads,
        source: rule.source,
        fix: rule.fix,
        causes: causes(rule),
    };
    let catalog = Catalog { v: 1, checks: doctor::RULES.iter().map(entry).collect() };
    writeln!(out, "{}", serde_json::to_string_pretty(&catalog).expect("plain data"))?;
    Ok(ExitStatus::Success)
}
