//! The answer of `qvl doctor why`, for a person and for a program.

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

use anstyle::{AnsiColor, Style};
use schemars::JsonSchema;
use serde::Serialize;

use super::{View, schema_of, wrap::wrap};
use crate::doctor::{
    self,
    why::{Answer, Class, Finding, TailLine},
};

/// Columns before the text of a part.
const COLUMN: usize = 10;

/// Writes the answer for a person.
pub fn text(answer: &Answer, view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    match answer.cause() {
        Some(cause) => parts(cause, view, out)?,
        None => nothing(answer, view, out)?,
    }
    let others = answer.findings.iter().skip(usize::from(answer.cause().is_some()));
    let (followed, others): (Vec<_>, Vec<_>) =
        others.partition(|finding| finding.pattern.class == Class::FollowUp);
    list("also seen", &others, view, out)?;
    list("what followed", &followed, view, out)?;
    tail(&answer.tail, view, out)?;
    if let Some(code) = answer.unknown_exit {
        writeln!(out, "\nexit code {code} is not one that qvl knows")?;
    }
    if !answer.ordered {
        let why =
            "the logs have no times that can be compared: their order is that of the arguments";
        writeln!(out, "\n{why}")?;
    }
    let logs = plural(answer.seen.sources, "log");
    writeln!(out, "\nread {} of {logs}", plural(answer.seen.lines, "line"))
}

fn paint(view: &View<'_>, style: Style, text: &str) -> String {
    if view.color { format!("{style}{text}{style:#}") } else { text.to_owned() }
}

fn plural(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Says whether the line explains the failure by itself.
fn reach(class: Class) -> Option<&'static str> {
    match class {
        Class::Cause | Class::FollowUp => None,
        Class::Symptom => Some("this has a cause of its own, which these logs do not name"),
        Class::Note => Some("this ends no job; it explains slowness or a doubtful result"),
    }
}

fn parts(cause: &Finding, view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    let pattern = cause.pattern;
    let bad = AnsiColor::Red.on_default().bold();
    writeln!(out, "why: {} ({})", paint(view, bad, pattern.title), pattern.id)?;
    if let Some(reach) = reach(pattern.class) {
        writeln!(out, "{reach}")?;
    }
    writeln!(out)?;
    part("seen", &place(cause), view, out)?;
    // The line stays in one piece, so that it can be searched for.
    writeln!(out, "{:COLUMN$}{}", "", cause.text)?;
    part("means", pattern.means, view, out)?;
    checks(&pattern.checks, view, out)?;
    part("fix", pattern.fix, view, out)?;
    part("source", pattern.source, view, out)
}

fn part(name: &str, text: &str, view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    let room = view.width.saturating_sub(COLUMN).max(20);
    for (index, line) in wrap(text, room).iter().enumerate() {
        let name = if index == 0 { name } else { "" };
        let width = COLUMN - 2;
        writeln!(
            out,
            "  {}{line}",
            paint(view, Style::new().dimmed(), &format!("{name:<width$}"))
        )?;
    }
    Ok(())
}

/// The checks that would have caught it, and how to read about the first.
fn checks(ids: &[&str], view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    let Some(first) = ids.first() else {
        return part("check", "none: this does not show before the start", view, out);
    };
    for (index, id) in ids.iter().enumerate() {
        let what = doctor::rule(id).map_or("", |rule| rule.summary);
        let name = if index == 0 { "check" } else { "" };
        part(name, &format!("{id}: {what}"), view, out)?;
    }
    part("", &format!("qvl doctor explain {first}"), view, out)
}

fn place(finding: &Finding) -> String {
    let mut text = finding.place.to_string();
    if let Some(rank) = &finding.rank {
        text = format!("{text}, {rank}");
    }
    if 1 < finding.count {
        text = format!("{text}; {} in all", plural(finding.count, "line"));
    }
    if 1 < finding.ranks.len() {
        text = format!("{text}, from {}", ranks(&finding.ranks));
    }
    text
}

/// `rank 0-2, 5` of many names.
fn ranks(names: &BTreeSet<String>) -> String {
    let number = |prefix: &str| -> Vec<u32> {
        let rest = names.iter().filter_map(|name| name.strip_prefix(prefix));
        let mut numbers: Vec<u32> = rest.filter_map(|text| text.parse().ok()).collect();
        numbers.sort_unstable();
        numbers
    };
    let all = [("rank ", number("rank ")), ("local rank ", number("local rank "))];
    let all = all.iter().filter(|(_prefix, numbers)| !numbers.is_empty());
    let texts: Vec<String> =
        all.map(|(prefix, numbers)| format!("{}s {}", prefix.trim(), ranges(numbers))).collect();
    texts.join(", ")
}

/// `0-2, 5` of `0, 1, 2, 5`.
fn ranges(numbers: &[u32]) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_first, last)) if *last + 1 == *number => *last = *number,
            Some(_) | None => ranges.push((*number, *number)),
        }
    }
    let text = |(first, last): &(u32, u32)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    ranges.iter().map(text).collect::<Vec<_>>().join(", ")
}

fn nothing(answer: &Answer, view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    let style = AnsiColor::Magenta.on_default().bold();
    if answer.findings.is_empty() {
        writeln!(out, "why: {}", paint(view, style, "no known failure in these logs"))?;
        return writeln!(
            out,
            "hint: give the logs of all ranks and of the launcher, and --exit-code"
        );
    }
    writeln!(out, "why: {}", paint(view, style, "the cause is not in these logs"))?;
    writeln!(out, "they only tell what happens to others once a rank has failed")?;
    writeln!(
        out,
        "hint: give the logs of all ranks: the one that failed first is missing, or said nothing"
    )
}

fn list(
    title: &str,
    findings: &[&Finding],
    view: &View<'_>,
    out: &mut impl Write,
) -> io::Result<()> {
    if findings.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{}", paint(view, Style::new().bold(), title))?;
    for finding in findings {
        let pattern = finding.pattern;
        writeln!(out, "  {:<10}{} ({})", pattern.class.name(), pattern.title, pattern.id)?;
        let room = view.width.saturating_sub(12).max(20);
        for line in wrap(&place(finding), room) {
            writeln!(out, "{:12}{}", "", paint(view, Style::new().dimmed(), &line))?;
        }
    }
    Ok(())
}

fn tail(lines: &[TailLine], view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{}", paint(view, Style::new().bold(), "last lines that look like errors"))?;
    for line in lines {
        writeln!(out, "  {}: {}", line.place, line.text)?;
    }
    Ok(())
}

/// The answer of `qvl doctor why --format json`.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(title = "WhyAnswer")]
struct Document<'a> {
    /// Version of this format: 1.
    v: u32,
    /// Class of the first finding; `unknown` if nothing explains the failure.
    verdict: &'static str,
    /// Strongest class first, earliest first within it. Without a cause they are follow-ups.
    findings: Vec<Found<'a>>,
    /// Last lines with words of errors that no pattern knows.
    tail: Vec<Tail<'a>>,
    /// Logs that were read.
    logs: u64,
    /// Lines that were read.
    lines: u64,
    /// Whether it is known which finding of the first class is the earliest.
    ordered: bool,
    /// The exit code, if no row knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown_exit_code: Option<i32>,
}

/// One pattern that was seen.
#[derive(Serialize, JsonSchema)]
struct Found<'a> {
    /// Id of the pattern.
    id: &'a str,
    /// `cause`, `symptom`, `note` or `follow-up`.
    class: &'a str,
    /// What happened.
    title: &'a str,
    /// File of the first line; `exit code` if it is none.
    file: &'a str,
    /// Number of the first line, from 1; 0 = not a line.
    line: u64,
    /// Who wrote the first line.
    #[serde(skip_serializing_if = "Option::is_none")]
    rank: Option<&'a str>,
    /// The first line.
    text: &'a str,
    /// How many lines there are.
    count: u64,
    /// Who wrote them.
    ranks: Vec<&'a str>,
    /// What is behind it.
    means: &'a str,
    /// Checks that would have caught it.
    checks: Vec<Check<'a>>,
    /// What to do.
    fix: &'a str,
    /// Where the pattern comes from.
    source: &'a str,
}

/// A check of the doctor.
#[derive(Serialize, JsonSchema)]
struct Check<'a> {
    id: &'a str,
    what: &'a str,
}

/// A line.
#[derive(Serialize, JsonSchema)]
struct Tail<'a> {
    file: &'a str,
    line: u64,
    text: &'a str,
}

/// The answer as pretty JSON.
pub fn json(answer: &Answer) -> String {
    let document = Document {
        v: 1,
        verdict: answer.cause().map_or("unknown", |cause| cause.pattern.class.name()),
        findings: answer.findings.iter().map(found).collect(),
        tail: answer
            .tail
            .iter()
            .map(|line| Tail { file: &line.place.source, line: line.place.line, text: &line.text })
            .collect(),
        logs: answer.seen.sources,
        lines: answer.seen.lines,
        ordered: answer.ordered,
        unknown_exit_code: answer.unknown_exit,
    };
    serde_json::to_string_pretty(&document).expect("plain data")
}

/// The JSON Schema of [`json`].
pub fn schema() -> schemars::Schema {
    schema_of::<Document<'static>>()
}

fn found(finding: &Finding) -> Found<'_> {
    let pattern = finding.pattern;
    let check =
        |id: &&'static str| Check { id, what: doctor::rule(id).map_or("", |rule| rule.summary) };
    Found {
        id: &pattern.id,
        class: pattern.class.name(),
        title: pattern.title,
        file: &finding.place.source,
        line: finding.place.line,
        rank: finding.rank.as_deref(),
        text: &finding.text,
        count: finding.count,
        ranks: finding.ranks.iter().map(String::as_str).collect(),
        means: pattern.means,
        checks: pattern.checks.iter().map(check).collect(),
        fix: pattern.fix,
        source: pattern.source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_ranks_are_ranges() {
        let names = ["rank 10", "rank 0", "rank 1", "rank 2", "local rank 3"];
        let names = names.into_iter().map(str::to_owned).collect();
        assert_eq!(ranks(&names), "ranks 0-2, 10, local ranks 3");
    }
}
