//! The report as one HTML page: the fleet as a matrix of checks and nodes, then every problem.
//!
//! Nothing is loaded from elsewhere, and without scripts everything is shown. A cell has a letter
//! beside its colour, for readers who do not tell colours apart.

use std::io::{self, Write};

use super::{View, words, words::escape};
use crate::doctor::{Area, CheckResult, Counts, Overall, Problem, Report, Subject, Verdict};

const VERDICTS: [Verdict; 5] =
    [Verdict::Fail, Verdict::Unknown, Verdict::Warn, Verdict::Pass, Verdict::Skipped];

fn letter(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "ok",
        Verdict::Warn => "W",
        Verdict::Fail => "F",
        Verdict::Unknown => "?",
        Verdict::Skipped => "-",
    }
}

/// Writes the page.
pub fn html(report: &Report, view: &View<'_>, page: &mut impl Write) -> io::Result<()> {
    let overall = report.overall(view.strict, view.allowed);
    write!(page, "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n")?;
    writeln!(page, "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">")?;
    writeln!(page, "<title>qvl doctor: {}</title>", words::overall(overall))?;
    write!(page, "<style>\n{}</style>\n</head>\n<body>\n<main>\n", include_str!("html.css"))?;
    head(report, view, page)?;
    filter(report, page)?;
    matrix(report, page)?;
    problems(report, page)?;
    foot(report, view, page)?;
    write!(page, "</main>\n<script>\n{}</script>\n</body>\n</html>\n", include_str!("html.js"))
}

fn head(report: &Report, view: &View<'_>, page: &mut impl Write) -> io::Result<()> {
    let (class, text) = match report.overall(view.strict, view.allowed) {
        Overall::Ready => ("pass", "ready"),
        Overall::Unknown => ("unknown", "not known"),
        Overall::Blocked => ("fail", "blocked"),
    };
    let says = match report.overall(view.strict, view.allowed) {
        Overall::Ready => "Nothing blocks: the job can be launched.",
        Overall::Unknown => "A launch stops: a check that the job needs is unknown.",
        Overall::Blocked => "A launch stops: something is wrong that makes the job fail.",
    };
    write!(
        page,
        "<h1>qvl doctor <span class=\"badge {class}\">{text}</span></h1>\n<p>{says}</p>\n<p class=\"soft\">{}</p>\n<p class=\"soft\">{}</p>\n",
        escape(&words::asked(report)),
        escape(&report.driver)
    )
}

/// What passed and what does not apply is not shown at first: problems are what a reader came for.
fn filter(report: &Report, page: &mut impl Write) -> io::Result<()> {
    let Counts { pass, warn, fail, unknown, skipped } = report.counts();
    writeln!(page, "<form hidden aria-label=\"Verdicts to show\">Show")?;
    for verdict in VERDICTS {
        let (name, count) = (
            words::verdict(verdict),
            match verdict {
                Verdict::Fail => fail,
                Verdict::Unknown => unknown,
                Verdict::Warn => warn,
                Verdict::Pass => pass,
                Verdict::Skipped => skipped,
            },
        );
        let bad = fail + unknown + warn;
        let hide = 0 < bad && matches!(verdict, Verdict::Pass | Verdict::Skipped);
        let checked = if hide { "" } else { " checked" };
        writeln!(
            page,
            "<label class=\"{name}\"><input type=\"checkbox\" value=\"{name}\"{checked}> {} {name} {count}</label>",
            letter(verdict)
        )?;
    }
    writeln!(page, "</form>")
}

/// Columns: the job and all nodes together if a check judges them, then every node.
fn columns(report: &Report) -> Vec<Subject> {
    let mut columns: Vec<Subject> =
        report.results.iter().map(|result| result.subject.clone()).collect();
    columns.extend(report.nodes.iter().cloned().map(Subject::Node));
    columns.sort();
    columns.dedup();
    columns
}

fn matrix(report: &Report, page: &mut impl Write) -> io::Result<()> {
    let columns = columns(report);
    write!(page, "<div class=\"scroll\"><table>\n<thead><tr><th>check</th>")?;
    for column in &columns {
        write!(page, "<th>{}</th>", escape(&column.to_string()))?;
    }
    write!(page, "</tr></thead>\n<tbody>\n")?;
    let mut area: Option<Area> = None;
    for (at, results) in by_rule(report) {
        let rule = results[0].rule;
        if area != Some(rule.area) {
            area = Some(rule.area);
            let width = columns.len() + 1;
            writeln!(
                page,
                "<tr class=\"area\"><th colspan=\"{width}\">{}</th></tr>",
                rule.area.name()
            )?;
        }
        let (id, summary) = (rule.id, escape(rule.summary));
        write!(
            page,
            "<tr data-verdicts=\"{}\"><th title=\"{summary}\">{id}<small>{summary}</small></th>",
            verdicts(&results)
        )?;
        for column in &columns {
            write!(page, "{}", cell(&results, at, column))?;
        }
        writeln!(page, "</tr>")?;
    }
    write!(page, "</tbody>\n</table></div>\n")
}

/// Results of each rule, with the number of the first.
fn by_rule(report: &Report) -> Vec<(usize, Vec<&CheckResult>)> {
    let mut groups: Vec<(usize, Vec<&CheckResult>)> = Vec::new();
    for (index, result) in report.results.iter().enumerate() {
        match groups.last_mut() {
            Some((_at, results)) if results[0].rule.id == result.rule.id => results.push(result),
            Some(_) | None => groups.push((index, vec![result])),
        }
    }
    groups
}

fn verdicts(results: &[&CheckResult]) -> String {
    let is = |verdict: &Verdict| results.iter().any(|result| result.verdict == *verdict);
    let names: Vec<&str> = VERDICTS.iter().filter(|v| is(v)).map(|v| words::verdict(*v)).collect();
    names.join(" ")
}

/// One verdict; what it says in short is its title, and a problem is a link to its text.
fn cell(results: &[&CheckResult], at: usize, column: &Subject) -> String {
    let found = results.iter().position(|result| result.subject == *column);
    let Some(offset) = found else { return "<td></td>".to_owned() };
    let result = results[offset];
    let (class, letter) = (words::verdict(result.verdict), letter(result.verdict));
    let title = escape(&short(result));
    let told = !result.problems.is_empty() || !result.unknown.is_empty();
    let text = if told {
        format!("<a href=\"#r{}\">{letter}</a>", at + offset)
    } else {
        letter.to_owned()
    };
    format!("<td class=\"{class}\" title=\"{title}\">{text}</td>")
}

fn short(result: &CheckResult) -> String {
    if let Some(problem) = result.problems.first() {
        return problem.what.clone();
    }
    if let Some(unread) = result.unknown.first() {
        return format!("not known: {unread}");
    }
    if let Some(why) = &result.skipped {
        return format!("skipped: {why}");
    }
    let read =
        result.evidence.first().map(|evidence| format!("{}: {}", evidence.call, evidence.value));
    read.unwrap_or_else(|| result.rule.summary.to_owned())
}

/// What blocks first, then what is unknown, then warnings.
fn problems(report: &Report, page: &mut impl Write) -> io::Result<()> {
    let told = |(_index, result): &(usize, &CheckResult)| {
        !result.problems.is_empty() || !result.unknown.is_empty()
    };
    let mut all: Vec<(usize, &CheckResult)> =
        report.results.iter().enumerate().filter(told).collect();
    all.sort_by_key(|(index, result)| {
        (VERDICTS.iter().position(|verdict| *verdict == result.verdict), *index)
    });
    if all.is_empty() {
        return Ok(());
    }
    writeln!(page, "<h2>What it does to the job, and what to do</h2>")?;
    for (index, result) in all {
        let (name, id) = (words::verdict(result.verdict), result.rule.id);
        write!(
            page,
            "<section class=\"problem is-{name}\" id=\"r{index}\" data-verdicts=\"{name}\">\n<h3><span class=\"badge {name}\">{name}</span> {id} on {}</h3>\n",
            escape(&result.subject.to_string())
        )?;
        result.problems.iter().try_for_each(|problem| four_parts(problem, page))?;
        for unread in &result.unknown {
            let needed = if result.rule.is_needed() { "" } else { " This does not stop a launch." };
            writeln!(page, "<p>Not known: {}.{needed}</p>", escape(&unread.to_string()))?;
        }
        writeln!(page, "</section>")?;
    }
    Ok(())
}

fn four_parts(problem: &Problem, page: &mut impl Write) -> io::Result<()> {
    let parts = [("effect", &problem.impact), ("fix", &problem.fix)];
    write!(page, "<p>{}</p>\n<dl>", escape(&problem.what))?;
    for (name, text) in parts {
        write!(page, "<dt>{name}</dt><dd>{}</dd>", escape(text))?;
    }
    writeln!(page, "<dt>see</dt><dd><code>{}</code></dd></dl>", escape(&problem.see))
}

fn foot(report: &Report, view: &View<'_>, page: &mut impl Write) -> io::Result<()> {
    let missing: Vec<&str> = report.missing.iter().map(|name| name.0.as_str()).collect();
    if !missing.is_empty() {
        let names = escape(&missing.join(", "));
        writeln!(page, "<p><span class=\"badge unknown\">did not report</span> {names}</p>")?;
    }
    write!(page, "<footer><p>{}</p>", escape(&report.coverage()))?;
    if let Some(ms) = view.elapsed_ms {
        write!(page, "<p>looked and judged in {ms} ms</p>")?;
    }
    writeln!(page, "<p>qvl {}</p></footer>", env!("CARGO_PKG_VERSION"))
}
