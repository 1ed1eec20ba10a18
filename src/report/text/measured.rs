//! What active tests measured: numbers are what they are made for.

use std::io::{self, Write};

use super::{BOLD, DIM, View, paint};
use crate::{
    doctor::{self, Report},
    report::wrap::wrap,
};

/// Columns of the id.
const ID_WIDTH: usize = 26;

/// One line for each number, if active tests were made.
pub(super) fn figures(report: &Report, view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    let many = 1 < report.nodes.len();
    let results = report.results.iter().filter(|result| doctor::is_active(result.rule));
    let mut lines: Vec<(&str, String)> = Vec::new();
    for result in results {
        for evidence in result.evidence.iter() {
            let on = if many { format!("{}: ", result.subject) } else { String::new() };
            let about = evidence.subject.as_ref().map_or(String::new(), |s| format!("{s}: "));
            lines.push((result.rule.id, format!("{on}{about}{}", evidence.value)));
        }
    }
    if lines.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{}", paint(view, BOLD, "measured"))?;
    let room = view.width.saturating_sub(2 + ID_WIDTH).max(20);
    let mut last = "";
    for (id, text) in lines {
        let mut head = if id == last { "" } else { id };
        last = id;
        for line in wrap(&text, room) {
            writeln!(out, "  {head:<ID_WIDTH$}{}", paint(view, DIM, &line))?;
            head = "";
        }
    }
    Ok(())
}
