//! `qvl doctor why LOG...`: from logs to the cause of a failure.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
};

use clap::Args;

use super::{Format, view};
use crate::{cli::CliError, doctor::why::Collector, report::why, wire::ExitStatus};

#[derive(Debug, Args)]
pub(super) struct WhyArgs {
    /// Logs of the ranks and of the launcher, in any order; `-` is standard input, a folder means
    /// all files in it.
    #[arg(value_name = "LOG", required_unless_present = "exit_code")]
    logs: Vec<PathBuf>,
    /// Code that the program ended with; negative for a signal, as Python gives it.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    exit_code: Option<i32>,
    /// Form of the answer.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// Bytes of a line that are looked at: what is longer is a picture or a tensor.
const LONGEST: usize = 16 << 10;

pub(super) fn run(args: &WhyArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    let mut collector = Collector::default();
    if let Some(code) = args.exit_code {
        collector.exit_code(code);
    }
    for path in files(&args.logs)? {
        read_log(&path, &mut collector).map_err(|error| {
            let what = format!("failed to read log `{}`", path.display());
            CliError::of(ExitStatus::Usage, anyhow::Error::new(error).context(what))
                .hint("name files that exist and may be read, or - for standard input")
        })?;
    }
    let answer = collector.finish();
    match args.format {
        Format::Text => why::text(&answer, &view(&BTreeSet::new()), out)?,
        Format::Json => writeln!(out, "{}", why::json(&answer))?,
    }
    Ok(if answer.cause().is_some() { ExitStatus::Success } else { ExitStatus::Unknown })
}

/// The files that are meant: those of a folder in the order of their names.
fn files(logs: &[PathBuf]) -> Result<Vec<PathBuf>, CliError> {
    let mut files = Vec::new();
    for path in logs {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path)?.collect::<Result<Vec<_>, _>>()?;
        let mut inside: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
        inside.retain(|path| path.is_file());
        inside.sort();
        if inside.is_empty() {
            let what = format!("folder `{}` has no files", path.display());
            return Err(CliError::new(ExitStatus::Usage, what)
                .hint("the logs of a run are in the folder `logs` of its output"));
        }
        files.extend(inside);
    }
    Ok(files)
}

fn read_log(path: &Path, collector: &mut Collector) -> io::Result<()> {
    if path == Path::new("-") {
        collector.source("stdin");
        return read_lines(&mut io::stdin().lock(), collector);
    }
    let file = File::open(path)?;
    collector.source(path.display().to_string());
    read_lines(&mut BufReader::with_capacity(256 << 10, file), collector)
}

/// Reads piece by piece, so that a log may be larger than memory. A carriage return ends a piece
/// but not a line: progress bars stand before it, and errors after it.
fn read_lines(from: &mut impl BufRead, collector: &mut Collector) -> io::Result<()> {
    let mut piece = Vec::with_capacity(LONGEST);
    let mut number = 1;
    loop {
        let bytes = from.fill_buf()?;
        if bytes.is_empty() {
            break;
        }
        let end = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
        let part = &bytes[..end.unwrap_or(bytes.len())];
        piece.extend_from_slice(&part[..part.len().min(LONGEST - piece.len())]);
        let read = end.map_or(bytes.len(), |end| end + 1);
        let newline = end.is_some_and(|end| bytes[end] == b'\n');
        from.consume(read);
        if end.is_some() {
            hand_over(&mut piece, number, collector);
        }
        number += u64::from(newline);
    }
    hand_over(&mut piece, number, collector);
    Ok(())
}

fn hand_over(piece: &mut Vec<u8>, number: u64, collector: &mut Collector) {
    if !piece.is_empty() {
        collector.line(number, piece);
        piece.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(log: &[u8], found: &str, line: u64) {
        let mut collector = Collector::default();
        collector.source("log");
        // A small buffer, so that pieces are put together from many.
        read_lines(&mut BufReader::with_capacity(7, log), &mut collector).unwrap();
        let answer = collector.finish();
        let cause = answer.cause().expect("something is found");
        assert_eq!((cause.pattern.id.as_str(), cause.place.line), (found, line));
    }

    #[test]
    fn an_error_after_a_progress_bar_is_found_on_its_line() {
        let bar = "\r 66%|######    | 500/760".repeat(5000);
        check(format!("a\n{bar}\rCUDA out of memory\n").as_bytes(), "cuda-out-of-memory", 2);
    }

    #[test]
    fn what_is_no_text_and_what_is_too_long_does_no_harm() {
        let mut log = vec![0, 159, 146, 150, b'\n', 0xff, 0xfe, b'\n'];
        log.extend(vec![b'x'; 3 * LONGEST]);
        log.extend(b"\nlog ends without a newline: Too many open files");
        check(&log, "too-many-files", 4);
    }
}
