//! The report as Markdown, for an issue, a pull request or a chat.

use std::fmt::Write;

use super::{View, words};
use crate::doctor::{CheckResult, Counts, Overall, Report, Severity};

/// The report as GitHub-flavoured Markdown.
pub fn markdown(report: &Report, view: &View<'_>) -> String {
    let mut text = String::new();
    let overall = report.overall(view.strict, view.allowed);
    let Counts { pass, warn, fail, unknown, skipped } = report.counts();
    let mut line = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    line(&format!("# qvl doctor: {}\n", title(overall)));
    line(&format!("{}.\n", prose(&words::asked(report))));
    line(&format!("{}.\n", prose(&report.driver)));
    line("| ok | warnings | failed | unknown | skipped |");
    line("|---:|---:|---:|---:|---:|");
    line(&format!("| {pass} | {warn} | {fail} | {unknown} | {skipped} |"));
    problems(report, &mut text);
    unknowns(report, view, &mut text);
    writeln!(text, "\n{}.", prose(&report.coverage())).expect("a string grows");
    text
}

fn title(overall: Overall) -> &'static str {
    match overall {
        Overall::Ready => "ready, nothing blocks",
        Overall::Unknown => "not known, a launch would stop",
        Overall::Blocked => "blocked",
    }
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "note",
        Severity::Warn => "warn",
        Severity::Block => "**FAIL**",
    }
}

/// What blocks first, then warnings, each with effect, remedy and command.
fn problems(report: &Report, text: &mut String) {
    let of = |result: &'_ CheckResult| result.problems.len();
    if report.results.iter().map(of).sum::<usize>() == 0 {
        return;
    }
    let mut all: Vec<_> = report
        .results
        .iter()
        .flat_map(|result| result.problems.iter().map(move |problem| (result, problem)))
        .collect();
    all.sort_by_key(|(_result, problem)| std::cmp::Reverse(problem.severity));
    text.push_str("\n| | check | on | what |\n|---|---|---|---|\n");
    for (result, problem) in &all {
        let (word, id) = (word(problem.severity), result.rule.id);
        let (on, what) = (cell(&result.subject.to_string()), cell(&problem.what));
        writeln!(text, "| {word} | `{id}` | {on} | {what} |").expect("a string grows");
    }
    for (result, problem) in all {
        let (id, on) = (result.rule.id, prose(&result.subject.to_string()));
        let heading = format!("\n### `{id}` on {on}\n\n{}\n\n", prose(&problem.what));
        text.push_str(&heading);
        for (name, part) in [("Effect", &problem.impact), ("Fix", &problem.fix)] {
            writeln!(text, "- {name}: {}", prose(part)).expect("a string grows");
        }
        writeln!(text, "- See: {}", code(&problem.see)).expect("a string grows");
    }
}

fn unknowns(report: &Report, view: &View<'_>, text: &mut String) {
    let stops = |result: &&CheckResult| {
        result.is_needed_unknown() && !view.allowed.contains(result.rule.id)
    };
    let open: Vec<&CheckResult> = report.results.iter().filter(stops).collect();
    if open.is_empty() {
        return;
    }
    text.push_str(
        "\n## Not known, and needed for a launch\n\n| check | on | why |\n|---|---|---|\n",
    );
    for result in open {
        let why: Vec<String> = result.unknown.iter().map(ToString::to_string).collect();
        let (on, why) = (cell(&result.subject.to_string()), cell(&why.join("; ")));
        writeln!(text, "| `{}` | {on} | {why} |", result.rule.id).expect("a string grows");
    }
}

/// Text in which nothing is markup, in one line.
fn prose(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' => safe.push(' '),
            '*' | '_' | '`' | '<' | '[' | ']' | '\\' | '#' | '~' => {
                safe.push('\\');
                safe.push(c);
            }
            c => safe.push(c),
        }
    }
    safe
}

/// The same between the bars of a table.
fn cell(text: &str) -> String {
    prose(text).replace('|', "\\|")
}

/// A command, fenced by more back quotes than it has.
fn code(text: &str) -> String {
    let runs = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(runs + 1);
    let space = if runs == 0 { "" } else { " " };
    format!("{fence}{space}{}{space}{fence}", text.replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_no_markup() {
        assert_eq!(cell("a|b*\nc_"), "a\\|b\\* c\\_");
        assert_eq!(code("echo `date`"), "`` echo `date` ``");
        assert_eq!(code("df"), "`df`");
    }
}
