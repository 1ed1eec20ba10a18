//! Columns and ages for people. Pure.

use std::io::{self, Write};

use k8s_openapi::jiff::Timestamp;

/// Columns as wide as their widest cell; the last one has no end.
pub(crate) fn print(rows: &[Vec<String>], out: &mut impl Write) -> io::Result<()> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.extend([cell.as_str(), &" ".repeat(width + 2 - cell.chars().count())]);
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// A row of a table.
pub(crate) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// A cell; what is not known is a dash.
pub(crate) fn cell(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// How long ago, in the two largest units, as kubectl does.
pub(crate) fn age(then: Option<Timestamp>, now: Timestamp) -> String {
    let Some(then) = then else { return "-".to_owned() };
    let seconds = (now.as_second() - then.as_second()).max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=599 => format!("{minutes}m{}s", seconds % 60),
        600..=10_799 => format!("{minutes}m"),
        10_800..=172_799 => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let cases = [
            (0, "0s"),
            (119, "119s"),
            (185, "3m5s"),
            (3600, "60m"),
            (11_000, "3h3m"),
            (200_000, "2d7h"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(age(Some(at(1000)), at(1000 + seconds)), expected);
        }
        assert_eq!(age(None, at(0)), "-");
        assert_eq!(age(Some(at(9)), at(5)), "0s");
    }

    #[test]
    fn columns_fit_their_cells_and_lines_have_no_tail() {
        let mut out = Vec::new();
        let rows =
            [row(["NAME", "STATE", "WHY"]), row(["a", "running", ""]), row(["long", "x", "y z"])];
        print(&rows, &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "NAME  STATE    WHY\na     running\nlong  x        y z\n"
        );
    }
}
