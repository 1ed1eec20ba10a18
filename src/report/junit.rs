//! The report as JUnit XML, for CI systems: one suite for each area, one case for each check and
//! subject.
//!
//! JUnit knows no warnings: with `--strict` they are failures, else a case that passes and says so.
//! A check that the job needs and that is unknown is an error, because it could not run.

use std::io::{self, Write};

use super::{View, words, words::escape};
use crate::doctor::{Area, CheckResult, Problem, Report, Severity, Verdict};

/// What a case is to JUnit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Passed,
    Failed,
    Broken,
    Skipped,
}

fn case(result: &CheckResult, view: &View<'_>) -> Case {
    let stops = result.rule.is_needed() || view.strict;
    match result.verdict {
        Verdict::Pass => Case::Passed,
        Verdict::Warn if view.strict => Case::Failed,
        Verdict::Warn => Case::Passed,
        Verdict::Fail => Case::Failed,
        Verdict::Unknown if stops && !view.allowed.contains(result.rule.id) => Case::Broken,
        Verdict::Unknown | Verdict::Skipped => Case::Skipped,
    }
}

/// Writes the report as one XML document.
pub fn junit(report: &Report, view: &View<'_>, xml: &mut impl Write) -> io::Result<()> {
    let mut suites: Vec<(Area, Vec<&CheckResult>)> = Vec::new();
    for result in &report.results {
        match suites.last_mut() {
            Some((area, results)) if *area == result.rule.area => results.push(result),
            Some(_) | None => suites.push((result.rule.area, vec![result])),
        }
    }
    let all: Vec<&CheckResult> = report.results.iter().collect();
    let seconds = view.elapsed_ms.map_or(0.0, |ms| ms as f64 / 1000.0);
    writeln!(xml, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>")?;
    let totals = counts(&all, view, "");
    writeln!(xml, "<testsuites name=\"qvl doctor\" {totals} time=\"{seconds}\">")?;
    for (area, results) in suites {
        let skipped = results.iter().filter(|result| case(result, view) == Case::Skipped).count();
        let counts = counts(&results, view, &format!(" skipped=\"{skipped}\""));
        writeln!(xml, "  <testsuite name=\"{}\" {counts} time=\"0\">", area.name())?;
        results.into_iter().try_for_each(|result| write_case(result, view, xml))?;
        writeln!(xml, "  </testsuite>")?;
    }
    writeln!(xml, "</testsuites>")
}

/// The schema knows `skipped` for a suite, and not for all of them.
fn counts(results: &[&CheckResult], view: &View<'_>, skipped: &str) -> String {
    let count = |kind| results.iter().filter(|result| case(result, view) == kind).count();
    let (failed, broken) = (count(Case::Failed), count(Case::Broken));
    format!("tests=\"{}\" failures=\"{failed}\" errors=\"{broken}\"{skipped}", results.len())
}

fn write_case(result: &CheckResult, view: &View<'_>, xml: &mut impl Write) -> io::Result<()> {
    let (id, subject) = (result.rule.id, escape(&result.subject.to_string()));
    write!(xml, "    <testcase name=\"{id}\" classname=\"{subject}\" time=\"0\"")?;
    let body = match case(result, view) {
        Case::Passed if result.problems.is_empty() => String::new(),
        Case::Passed => {
            format!("      <system-out>{}</system-out>\n", escape(&told(&result.problems)))
        }
        Case::Failed => {
            let worst = result.problems.first();
            let kind = worst.map_or("block", |problem| words::severity(problem.severity));
            let what = worst.map_or("", |problem| problem.what.as_str());
            element("failure", kind, what, &told(&result.problems))
        }
        Case::Broken => element("error", "unknown", &missing(result), ""),
        Case::Skipped => {
            let why = result.skipped.as_deref().map_or_else(|| missing(result), str::to_owned);
            format!("      <skipped message=\"{}\"/>\n", attribute(&why))
        }
    };
    if body.is_empty() { writeln!(xml, "/>") } else { write!(xml, ">\n{body}    </testcase>\n") }
}

fn element(name: &str, kind: &str, message: &str, text: &str) -> String {
    let message = attribute(message);
    format!("      <{name} type=\"{kind}\" message=\"{message}\">{}</{name}>\n", escape(text))
}

/// XML turns line breaks of attributes into spaces; say so here.
fn attribute(text: &str) -> String {
    escape(text).replace(['\n', '\t'], " ")
}

fn missing(result: &CheckResult) -> String {
    let reasons: Vec<String> = result.unknown.iter().map(ToString::to_string).collect();
    format!("not known: {}", reasons.join("; "))
}

fn told(problems: &[Problem]) -> String {
    let tell = |problem: &Problem| {
        let Problem { severity, what, impact, fix, see } = problem;
        let word = match severity {
            Severity::Info => "note",
            Severity::Warn => "warning",
            Severity::Block => "blocks",
        };
        format!("{word}: {what}\neffect: {impact}\nfix: {fix}\nsee: {see}\n")
    };
    problems.iter().map(tell).collect::<Vec<_>>().join("\n")
}
