//! `qvl logs`.

use std::{io::Write, thread, time::Duration};

use clap::Args;
use jiff::Timestamp;
use regex::Regex;

use super::{CliError, jobs, view};
use crate::{
    launch::{
        logs::{Line, Reader},
        state::{RunState, Status},
        supervisor,
    },
    wire::{Event, ExitStatus},
};

#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Name of the job, or its output folder.
    name: String,
    /// Go on until the run ends; the exit status is then the run's.
    #[arg(short, long)]
    follow: bool,
    /// Only this rank.
    #[arg(long)]
    rank: Option<u32>,
    /// Only this attempt.
    #[arg(long)]
    attempt: Option<u32>,
    /// Only lines since then: a time as in `2026-05-01T12:00:00Z`, or an age as in `10m`.
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<u64>,
    /// Only lines that match this regular expression.
    #[arg(long, value_name = "REGEX")]
    grep: Option<Regex>,
    /// Only the first line that reports a failure of the newest attempt that has one.
    #[arg(long, conflicts_with = "follow")]
    first_error: bool,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &LogsArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    let run = jobs::find(&args.name)?;
    let mut reader = Reader::new(&run.output);
    if args.first_error {
        return first_error(args, &reader.read_new()?, out);
    }
    loop {
        // The state is read first: lines written before it changed are then seen for sure.
        let now = RunState::read(&run.output)?;
        for line in reader.read_new()?.iter().filter(|line| args.wants(line)) {
            args.print(line, out)?;
        }
        out.flush()?;
        if !args.follow {
            return Ok(ExitStatus::Success);
        }
        match now.status {
            Status::Running if now.is_alive() => thread::sleep(Duration::from_millis(200)),
            Status::Succeeded => return Ok(ExitStatus::Success),
            Status::Running | Status::Failed => return Ok(ExitStatus::JobFailed),
            Status::Stopped => return Ok(ExitStatus::JobCancelled),
        }
    }
}

fn first_error(
    args: &LogsArgs,
    lines: &[Line],
    out: &mut impl Write,
) -> Result<ExitStatus, CliError> {
    let errors = || lines.iter().filter(|line| args.wants(line) && is_error(&line.text));
    let newest = errors().map(|line| line.attempt).max();
    match errors().find(|line| Some(line.attempt) == newest) {
        Some(line) => args.print(line, out)?,
        None => writeln!(anstream::stderr(), "no line reports a failure")?,
    }
    Ok(ExitStatus::Success)
}

fn is_error(text: &str) -> bool {
    text.starts_with("error:")
        || text.contains("\"event\":\"failed\"")
        || text.contains("panicked at")
        || (text.starts_with("[supervisor]") && !text.ends_with("ended well"))
}

/// Milliseconds since the Unix epoch of a time or an age.
fn since(text: &str) -> Result<u64, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(u64::try_from(time.as_millisecond()).unwrap_or(0));
    }
    let age = text.parse::<jiff::SignedDuration>().map_err(|_error| {
        "expected a time such as 2026-05-01T12:00:00Z, or an age such as 90s, 10m or 2h".to_owned()
    })?;
    Ok(supervisor::now_ms().saturating_sub(u64::try_from(age.as_millis()).unwrap_or(0)))
}

impl LogsArgs {
    fn wants(&self, line: &Line) -> bool {
        self.rank.is_none_or(|rank| rank == line.rank)
            && self.attempt.is_none_or(|attempt| attempt == line.attempt)
            && self.since.is_none_or(|since| since <= line.time_ms)
            && self.grep.as_ref().is_none_or(|regex| {
                regex.is_match(&line.text) || regex.is_match(&readable(&line.text))
            })
    }

    fn print(&self, line: &Line, out: &mut impl Write) -> std::io::Result<()> {
        let Line { time_ms, attempt, rank, number, text } = line;
        if self.json {
            let value = serde_json::json!({"time_ms": time_ms, "attempt": attempt, "rank": rank,
                "number": number, "text": text});
            return writeln!(out, "{value}");
        }
        let time = i64::try_from(*time_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
        let time = time.map_or_else(String::new, |time| time.strftime("%H:%M:%S%.3f").to_string());
        writeln!(out, "{time} a{attempt} r{rank}  {}", readable(text))
    }
}

/// An event in words, anything else as it is.
fn readable(text: &str) -> String {
    match text.starts_with('{').then(|| serde_json::from_str::<Event>(text)) {
        Some(Ok(event)) => view::event(&event),
        Some(Err(_)) | None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_takes_times_and_ages() {
        assert_eq!(since("1970-01-01T00:00:02Z").unwrap(), 2000);
        let now = supervisor::now_ms();
        assert!(since("10m").unwrap().abs_diff(now - 600_000) < 5000);
        assert!(since("yesterday").unwrap_err().contains("10m"));
    }

    #[test]
    fn failures_are_told_from_progress() {
        assert!(is_error("error: no weights"));
        assert!(is_error(r#"{"event":"failed","exit":"data","message":"a"}"#));
        assert!(is_error("[supervisor] rank 1 was killed (signal 9)"));
        assert!(!is_error("[supervisor] rank 1 ended well"));
        assert!(!is_error(r#"{"event":"phase","name":"train"}"#));
        assert_eq!(readable(r#"{"event":"phase","name":"train"}"#), "phase train");
        assert_eq!(readable("{no event"), "{no event");
    }
}
