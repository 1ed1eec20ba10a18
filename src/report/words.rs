//! Words that several forms of the report share.

use crate::{
    doctor::{Overall, Report, Severity, Verdict},
    job::Compute,
};

/// Name of a verdict in formats for programs.
pub(super) fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Warn => "warn",
        Verdict::Fail => "fail",
        Verdict::Unknown => "unknown",
        Verdict::Skipped => "skipped",
    }
}

/// Name of a severity.
pub(super) fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "info",
        Severity::Warn => "warn",
        Severity::Block => "block",
    }
}

/// The verdict on the whole.
pub(super) fn overall(overall: Overall) -> &'static str {
    match overall {
        Overall::Ready => "ready",
        Overall::Unknown => "unknown",
        Overall::Blocked => "blocked",
    }
}

/// What was judged: the job, or machines alone, and the number of nodes.
pub(super) fn asked(report: &Report) -> String {
    let device = match report.compute {
        Compute::Cpu => "CPUs",
        Compute::Cuda | Compute::Auto => "GPUs",
    };
    let ranks = match report.ranks {
        Some(1) => format!("1 rank on {device}"),
        Some(ranks) => format!("{ranks} ranks on {device}"),
        None => format!("judged for {device}"),
    };
    let nodes = match report.nodes.as_slice() {
        [node] if report.missing.is_empty() => format!("node {node}"),
        nodes => format!("{} nodes", nodes.len() + report.missing.len()),
    };
    match &report.job {
        Some(job) => format!("job {job}, {ranks}, {nodes}"),
        None => format!("{nodes}, {ranks}, without a job (--job FILE)"),
    }
}

/// `text` with the characters that XML and HTML reserve, and without those that XML forbids.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\t' | '\n' => safe.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_is_text_and_control_characters_are_replaced() {
        assert_eq!(escape("<a b=\"1\">&\u{1b}[1m"), "&lt;a b=&quot;1&quot;&gt;&amp;\u{fffd}[1m");
    }
}
