//! The report for a program. These structs are the contract; the doctor's own types may change.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::{
    doctor::{CheckResult, Counts, Evidence, Overall, Problem, Report, Severity, Value, Verdict},
    job::Compute,
};

/// Version of the format: grows when a field changes its meaning or goes away.
pub const JSON_VERSION: u32 = 1;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'r> {
    v: u32,
    verdict: &'static str,
    driver: &'r str,
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<&'r str>,
    compute: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ranks: Option<u32>,
    nodes: Vec<&'r str>,
    missing_nodes: Vec<&'r str>,
    counts: CountsLine,
    checks: Vec<CheckLine<'r>>,
}

#[derive(Serialize)]
struct CountsLine {
    pass: usize,
    warn: usize,
    fail: usize,
    unknown: usize,
    skipped: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CheckLine<'r> {
    id: &'r str,
    area: &'r str,
    subject: String,
    verdict: &'static str,
    /// Whether a launch needs to know it.
    needed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<&'r str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unknown: Vec<&'r str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<ProblemLine<'r>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    evidence: Vec<EvidenceLine<'r>>,
    source: &'r str,
}

#[derive(Serialize)]
struct ProblemLine<'r> {
    severity: &'static str,
    what: &'r str,
    impact: &'r str,
    fix: &'r str,
    see: &'r str,
}

#[derive(Serialize)]
struct EvidenceLine<'r> {
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'r str>,
    observed: serde_json::Value,
    required: &'r str,
    source: &'r str,
}

/// The report as pretty JSON.
pub fn json(report: &Report, strict: bool, allowed: &BTreeSet<String>) -> String {
    let Counts { pass, warn, fail, unknown, skipped } = report.counts();
    let document = Document {
        v: JSON_VERSION,
        verdict: match report.overall(strict, allowed) {
            Overall::Ready => "ready",
            Overall::Unknown => "unknown",
            Overall::Blocked => "blocked",
        },
        driver: &report.driver,
        job: report.job.as_deref(),
        compute: match report.compute {
            Compute::Cpu => "cpu",
            Compute::Cuda | Compute::Auto => "cuda",
        },
        ranks: report.ranks,
        nodes: report.nodes.iter().map(|name| name.0.as_str()).collect(),
        missing_nodes: report.missing.iter().map(|name| name.0.as_str()).collect(),
        counts: CountsLine { pass, warn, fail, unknown, skipped },
        checks: report.results.iter().map(check).collect(),
    };
    serde_json::to_string_pretty(&document).expect("plain data")
}

fn check(result: &CheckResult) -> CheckLine<'_> {
    CheckLine {
        id: result.rule.id,
        area: result.rule.area.name(),
        subject: result.subject.to_string(),
        verdict: match result.verdict {
            Verdict::Skipped => "skipped",
            Verdict::Pass => "pass",
            Verdict::Warn => "warn",
            Verdict::Unknown => "unknown",
            Verdict::Fail => "fail",
        },
        needed: result.rule.is_needed(),
        skipped: result.skipped.as_deref(),
        unknown: result.unknown.iter().map(String::as_str).collect(),
        problems: result.problems.iter().map(problem).collect(),
        evidence: result.evidence.iter().map(evidence).collect(),
        source: result.rule.source,
    }
}

fn problem(problem: &Problem) -> ProblemLine<'_> {
    ProblemLine {
        severity: match problem.severity {
            Severity::Info => "info",
            Severity::Warn => "warn",
            Severity::Block => "block",
        },
        what: &problem.what,
        impact: &problem.impact,
        fix: &problem.fix,
        see: &problem.see,
    }
}

fn evidence(evidence: &Evidence) -> EvidenceLine<'_> {
    EvidenceLine {
        subject: evidence.subject.as_deref(),
        observed: match &evidence.value {
            Value::Number(number) | Value::Bytes(number) => (*number).into(),
            Value::Real(real) => (*real).into(),
            Value::Flag(flag) => (*flag).into(),
            Value::Text(text) => text.as_str().into(),
            Value::List(list) => list.clone().into(),
            Value::Absent => serde_json::Value::Null,
        },
        required: &evidence.required,
        source: &evidence.call,
    }
}
