//! The report for a person.

use std::{collections::BTreeMap, io};

use super::{FileSummary, Finding, LintReport, Purpose, Severity};

/// Findings of one rule that are listed before the rest is only counted.
const LISTED: usize = 5;

/// Writes the numbers of each file, then the findings by rule, blocking ones first.
pub fn print(report: &LintReport, out: &mut impl io::Write) -> io::Result<()> {
    for file in &report.files {
        summary(file, out)?;
    }
    let mut rules: BTreeMap<(std::cmp::Reverse<Severity>, &str), Vec<&Finding>> = BTreeMap::new();
    for finding in &report.findings {
        let key = (std::cmp::Reverse(finding.severity), finding.rule);
        rules.entry(key).or_default().push(finding);
    }
    for ((severity, rule), findings) in &rules {
        let word = match severity.0 {
            Severity::Block => "BLOCK",
            Severity::Warn => "warn ",
        };
        let total = report.counts.get(rule).copied().unwrap_or(findings.len());
        writeln!(out, "{word} {rule}: {total} found")?;
        for finding in findings.iter().take(LISTED) {
            writeln!(out, "      {finding}")?;
        }
        if LISTED < total {
            writeln!(out, "      and {} more", total - LISTED.min(findings.len()))?;
        }
        writeln!(out, "      hint: {}", findings[0].hint)?;
    }
    if rules.is_empty() {
        writeln!(out, "no problems found")?;
    }
    Ok(())
}

fn summary(file: &FileSummary, out: &mut impl io::Write) -> io::Result<()> {
    let FileSummary { file: name, purpose, samples, unusable, pictures, boxes, .. } = file;
    let purpose = match purpose {
        Purpose::Train => "train",
        Purpose::Eval => "eval ",
    };
    write!(out, "{purpose} {name}: {samples} samples, {pictures} pictures, {boxes} boxes")?;
    if 0 < *unusable {
        write!(out, ", {unusable} samples cannot be used")?;
    }
    if 0 < file.max_tokens {
        let FileSummary { mean_tokens, p95_tokens, max_tokens, label_tokens, tokens, .. } = file;
        let share = *label_tokens as f64 * 100.0 / (*tokens).max(1) as f64;
        write!(
            out,
            "; tokens mean {mean_tokens:.0}, p95 {p95_tokens}, max {max_tokens}, {share:.1} % labels"
        )?;
    }
    writeln!(out)
}
