//! The report of a run: one HTML file without anything from outside.

use std::{collections::BTreeMap, fmt::Write as _};

use base64::{Engine, engine::general_purpose::STANDARD};

use super::curve;
use crate::wire::{EvalMetrics, Event, Interval, Record};

/// What a report shows.
#[derive(Debug, Default)]
pub struct ReportInput {
    pub name: String,
    /// Rows of the table at the top: name and value.
    pub facts: Vec<(String, String)>,
    pub records: Vec<Record>,
    /// What went wrong on the way, one sentence each.
    pub incidents: Vec<String>,
    /// Title and PNG bytes.
    pub pictures: Vec<(String, Vec<u8>)>,
    /// The job file.
    pub job: String,
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2rem auto;padding:0 1rem;\
color:#1b1b1b;background:#fff}h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;\
width:100%}td,th{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid #ddd;vertical-align:top}\
td.n{font-variant-numeric:tabular-nums}small{color:#666}img,svg{max-width:100%;background:#fff}\
pre{background:#f5f5f5;padding:1rem;overflow-x:auto;font-size:13px}\
@media(prefers-color-scheme:dark){body{color:#e6e6e6;background:#161616}td,th{border-color:#333}\
pre{background:#222}small{color:#999}}";

/// The document.
pub fn html(input: &ReportInput) -> String {
    let mut out = String::new();
    let name = escape(&input.name);
    let _ = write!(
        out,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{name}</title><style>{STYLE}</style><h1>{name}</h1>"
    );
    out += "<table>";
    for (key, value) in &input.facts {
        let _ = write!(out, "<tr><th>{}<td>{}", escape(key), escape(value));
    }
    out += "</table>";
    evaluations(&input.records, &mut out);
    if input.records.iter().any(|record| matches!(record.event, Event::Step(_))) {
        let _ = write!(out, "<h2>Loss</h2>{}", curve::svg(&input.records));
        out += "<p><small>content: words and coordinates only, without the template and the \
                structure of boxes, which are easy to learn. Curves are means over a fiftieth of the run.</small>";
    }
    for (title, png) in &input.pictures {
        let _ = write!(
            out,
            "<h2>{}</h2><img alt=\"{0}\" src=\"data:image/png;base64,{}\">",
            escape(title),
            STANDARD.encode(png)
        );
    }
    if !input.incidents.is_empty() {
        out += "<h2>On the way</h2><ul>";
        for incident in &input.incidents {
            let _ = write!(out, "<li>{}", escape(incident));
        }
        out += "</ul>";
    }
    let _ = writeln!(out, "<h2>Job</h2><pre>{}</pre></html>", escape(&input.job));
    out
}

/// First and last measurement of each set side by side.
fn evaluations(records: &[Record], out: &mut String) {
    let mut sets: BTreeMap<&str, Vec<(u64, &EvalMetrics)>> = BTreeMap::new();
    for record in records {
        if let Event::Evaluated { step, set, metrics } = &record.event {
            sets.entry(set).or_default().push((*step, metrics));
        }
    }
    if sets.is_empty() {
        return;
    }
    *out += "<h2>Evaluation</h2><table><tr><th>set<th>step<th>samples<th>Acc@0.5<th>mean IoU<th>exact match\
             <th>parsed<th>loss";
    for (set, measured) in &sets {
        let (first, last) = (measured[0], measured[measured.len() - 1]);
        let rows = if first.0 == last.0 { vec![last] } else { vec![first, last] };
        for (step, metrics) in rows {
            let _ = write!(
                out,
                "<tr><td>{}<td class=n>{step}<td class=n>{}",
                escape(set),
                metrics.samples
            );
            for value in
                [metrics.acc_at_50, metrics.mean_iou, metrics.exact_match, metrics.parse_rate]
            {
                let _ = write!(out, "<td class=n>{}", cell(value));
            }
            let loss = metrics.loss.map_or(String::new(), |loss| format!("{loss:.3}"));
            let _ = write!(out, "<td class=n>{loss}");
        }
    }
    *out += "</table><p><small>In brackets: 95 % confidence interval (Wilson for shares, bootstrap for means). \
             The first row of a set is before the first step.</small>";
}

fn cell(value: Option<Interval>) -> String {
    value.map_or("–".to_owned(), |Interval { value, low, high }| {
        format!("{value:.3} <small>({low:.3}–{high:.3})</small>")
    })
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_and_nothing_comes_from_outside() {
        let input = ReportInput {
            name: "<b>".to_owned(),
            facts: vec![("a".to_owned(), "x & y".to_owned())],
            pictures: vec![("p".to_owned(), vec![1, 2, 3])],
            ..ReportInput::default()
        };
        let html = html(&input);
        assert!(html.contains("<h1>&lt;b&gt;</h1>"));
        assert!(html.contains("<td>x &amp; y"));
        assert!(html.contains("base64,AQID"));
        assert!(!html.contains("http://") && !html.contains("https://"));
    }
}
