//! The document, part after part.

use std::fmt::Write as _;

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{
    input::{DoctorVerdict, Measured, Memory, Picture, Proof, ReportInput, Row, Tone},
    numbers,
};
use crate::{
    telemetry::curve,
    wire::{Event, Interval},
};

const STYLE: &str = include_str!("style.css");

/// The report as one HTML document.
pub fn html(input: &ReportInput) -> String {
    let name = escape(&input.name);
    let mut out = format!(
        "<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n\
         <meta name=viewport content=\"width=device-width,initial-scale=1\">\n\
         <title>{name}: qvl report</title>\n<style>\n{STYLE}</style>\n<main>\n<header><h1>{name}</h1>{}</header>\n",
        badge(&input.status, input.tone)
    );
    out += &tiles(input);
    section(&mut out, "Evaluation", evaluation(input));
    section(&mut out, "Curves", curves(input));
    for picture in &input.pictures {
        section(&mut out, &picture.title, Some(figure(picture)));
    }
    section(&mut out, "Same bits on any number of ranks", input.proof.as_ref().map(proof));
    section(&mut out, "What happened", story(&input.story));
    section(&mut out, "Run and machine", Some(columns(input)));
    section(&mut out, "Doctor", Some(doctor(input.doctor.as_ref())));
    section(&mut out, "Plan", plan(input));
    section(&mut out, "What this does not show", list(&input.limits));
    section(&mut out, "Files", (!input.files.is_empty()).then(|| rows(&input.files)));
    if !input.job.is_empty() {
        let job = escape(&input.job);
        let job =
            format!("<details><summary>Show the job file</summary><pre>{job}</pre></details>");
        section(&mut out, "Job", Some(job));
    }
    out += "<footer class=note>Written by <code>qvl report</code>. This file needs nothing from outside.</footer>\n\
            </main>\n</html>\n";
    out
}

/// Text that stands for itself in HTML, in attributes too.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn section(out: &mut String, title: &str, body: Option<String>) {
    if let Some(body) = body {
        let anchor: String =
            title.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let (title, anchor) = (escape(title), anchor.to_lowercase());
        let _ = writeln!(out, "<section id=\"{anchor}\"><h2>{title}</h2>{body}</section>");
    }
}

fn badge(text: &str, tone: Tone) -> String {
    format!("<span class=\"badge {}\">{}</span>", class(tone), escape(text))
}

fn class(tone: Tone) -> &'static str {
    match tone {
        Tone::Good => "good",
        Tone::Warn => "warn",
        Tone::Bad => "bad",
    }
}

/// The last measurement of each set, large.
fn tiles(input: &ReportInput) -> String {
    let mut out = "<div class=tiles>".to_owned();
    for set in &input.sets {
        let (Some(Measured { metrics: last, .. }), first) = (set.measured.last(), &set.measured[0])
        else {
            continue;
        };
        let (what, now, before) = match (last.acc_at_50, last.exact_match) {
            (Some(share), _) => ("Acc@0.5", share, first.metrics.acc_at_50),
            (None, Some(share)) => ("exact match", share, first.metrics.exact_match),
            (None, None) => continue,
        };
        let before = before.filter(|_share| 1 < set.measured.len());
        let before =
            before.map_or(String::new(), |Interval { value, .. }| format!(", before {value:.3}"));
        let _ = write!(
            out,
            "<div class=tile>{}<b>{:.3}</b><small>{what}{before}</small></div>",
            escape(&set.name),
            now.value
        );
    }
    out + "</div>\n"
}

fn evaluation(input: &ReportInput) -> Option<String> {
    (!input.sets.is_empty()).then(|| numbers::evaluations(&input.sets))
}

fn curves(input: &ReportInput) -> Option<String> {
    let steps = input.records.iter().any(|record| matches!(record.event, Event::Step(_)));
    let table = numbers::tasks(&input.records).filter(|_table| steps)?;
    Some(format!(
        "<figure>{}<figcaption>Thin: each step. Thick: means over a fiftieth of the run. What is higher than the picture is drawn at its edge.</figcaption></figure>{table}",
        curve::svg(&input.records)
    ))
}

fn figure(picture: &Picture) -> String {
    format!(
        "<figure><img alt=\"{}\" src=\"data:image/png;base64,{}\"><figcaption>{}</figcaption></figure>",
        escape(&picture.title),
        STANDARD.encode(&picture.png),
        escape(&picture.caption)
    )
}

fn proof(proof: &Proof) -> String {
    let verdict = match (proof.equal, proof.differs_at) {
        (true, _) => badge("equal to the bit", Tone::Good),
        (false, Some(step)) => badge(&format!("losses differ from step {step} on"), Tone::Bad),
        (false, None) => badge("the weights differ", Tone::Bad),
    };
    let mut out = format!(
        "<p>{verdict}<div class=scroll><table><thead><tr><th>run<th class=n>ranks<th class=n>steps\
         <th class=n>last loss<th>SHA-256 of the trained weights<tbody>"
    );
    for run in &proof.runs {
        let _ = write!(
            out,
            "<tr><th>{}<td class=n>{}<td class=n>{}<td class=n>{}<td><code>{}</code>",
            escape(&run.name),
            run.ranks,
            run.steps,
            escape(&run.last_loss),
            escape(&run.sha256)
        );
    }
    out + "</table></div>"
}

fn story(lines: &[String]) -> Option<String> {
    let items: String = lines.iter().map(|line| format!("<li>{}", escape(line))).collect();
    (!lines.is_empty()).then(|| format!("<ol class=story>{items}</ol>"))
}

fn list(lines: &[String]) -> Option<String> {
    let items: String = lines.iter().map(|line| format!("<li>{}", escape(line))).collect();
    (!lines.is_empty()).then(|| format!("<ul>{items}</ul>"))
}

fn columns(input: &ReportInput) -> String {
    let machine = if input.machine.is_empty() {
        "<p class=note>Nothing was recorded about the machine.".to_owned()
    } else {
        rows(&input.machine)
    };
    format!("<div class=columns><div>{}</div><div>{machine}</div></div>", rows(&input.run))
}

fn doctor(verdict: Option<&DoctorVerdict>) -> String {
    let Some(DoctorVerdict { verdict, tone, counts, checks }) = verdict else {
        return "<p class=note>No verdict was recorded for this run.".to_owned();
    };
    let mut out = format!("<p>{} {}", badge(verdict, *tone), escape(counts));
    if !checks.is_empty() {
        out += "<div class=scroll><table><thead><tr><th>check<th>what<th>what to do<tbody>";
        for check in checks {
            let _ = write!(
                out,
                "<tr><td class={}><code>{}</code><td>{}<td>{}",
                class(check.tone),
                escape(&check.id),
                escape(&check.what),
                escape(&check.fix)
            );
        }
        out += "</table></div>";
    }
    out
}

fn plan(input: &ReportInput) -> Option<String> {
    if input.plan.is_empty() {
        return None;
    }
    let mut out = rows(&input.plan);
    out += "<h3>Memory of one rank</h3><div class=scroll><table><tbody>";
    for Memory { name, bytes, from } in &input.memory {
        let _ = write!(
            out,
            "<tr><th>{}<td class=n>{}<td><small>{}</small>",
            escape(name),
            size(*bytes),
            escape(from)
        );
    }
    let total = input.memory.iter().map(|part| part.bytes).sum();
    let _ = write!(out, "<tr><th><b>total</b><td class=n><b>{}</b><td></table></div>", size(total));
    Some(out)
}

fn rows(rows: &[Row]) -> String {
    let row = |row: &Row| format!("<tr><th>{}<td>{}", escape(&row.name), escape(&row.value));
    let body: String = rows.iter().map(row).collect();
    format!("<table class=rows><tbody>{body}</table>")
}

/// Bytes in the unit that people read.
fn size(bytes: u64) -> String {
    let units = [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let unit = units.iter().find(|(_name, unit)| *unit <= bytes);
    unit.map_or(format!("{bytes} B"), |(name, unit)| {
        format!("{:.1} {name}", bytes as f64 / *unit as f64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        telemetry::{
            answers::Gain,
            report::{ProofRun, SetReport},
        },
        wire::EvalMetrics,
    };

    fn measured(label: &str, value: f64) -> Measured {
        let acc_at_50 = Some(Interval { value, low: value - 0.05, high: value + 0.05 });
        let metrics = EvalMetrics { samples: 200, acc_at_50, ..EvalMetrics::default() };
        Measured { label: label.to_owned(), metrics }
    }

    fn input() -> ReportInput {
        let change = Interval { value: 0.7, low: 0.6, high: 0.8 };
        ReportInput {
            name: "<b>".to_owned(),
            run: vec![Row::new("a", "x & y")],
            sets: vec![SetReport {
                name: "held-out".to_owned(),
                measured: vec![measured("before", 0.12), measured("step 500", 0.82)],
                gains: vec![Gain { metric: "Acc@0.5".to_owned(), change }],
            }],
            pictures: vec![Picture {
                title: "p".to_owned(),
                caption: "c".to_owned(),
                png: vec![1, 2, 3],
            }],
            ..ReportInput::default()
        }
    }

    #[test]
    fn text_is_escaped_and_nothing_comes_from_outside() {
        let html = html(&input());
        assert!(html.contains("<h1>&lt;b&gt;</h1>"));
        assert!(html.contains("<td>x &amp; y"));
        assert!(html.contains("base64,AQID"));
        for outside in ["http://", "https://", "<script", "<link", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
    }

    #[test]
    fn before_after_and_the_gain_stand_side_by_side() {
        let html = html(&input());
        assert!(html.contains("<b>0.820</b><small>Acc@0.5, before 0.120</small>"));
        assert!(html.contains("<b class=good>+0.700</b>"));
        assert!(html.contains("0.070 to 0.170"));
    }

    #[test]
    fn what_is_not_known_is_said() {
        let html = html(&ReportInput::default());
        assert!(html.contains("No verdict was recorded"));
        assert!(html.contains("Nothing was recorded about the machine"));
        assert!(!html.contains("Same bits"));
    }

    #[test]
    fn a_difference_between_ranks_is_no_quiet_one() {
        let run = ProofRun {
            name: "one".to_owned(),
            ranks: 1,
            steps: 20,
            last_loss: "1.5".to_owned(),
            sha256: "ab".to_owned(),
        };
        let proof = Proof { runs: vec![run], equal: false, differs_at: Some(7) };
        let html = html(&ReportInput { proof: Some(proof), ..ReportInput::default() });
        assert!(html.contains("badge bad\">losses differ from step 7 on"));
    }
}
