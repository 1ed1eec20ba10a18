//! `qvl logs`.

mod cluster;
mod selection;
mod source;

use std::{io::Write, path::PathBuf, thread, time::Duration};

use clap::Args;
use jiff::Timestamp;
use regex::Regex;

use selection::{Ranks, Saved};

use super::{CliError, cluster::At, jobs, view};
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
    /// Only these ranks, as in `0,3`; `-1` is the last one. `all` for all: without it, a job in a
    /// cluster shows its first and last rank, and warnings and errors of the others.
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    rank: Option<Ranks>,
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
    /// Write the lines into this folder, one file per attempt and rank, instead of showing them.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["first_error", "json"])]
    save: Option<PathBuf>,
    #[command(flatten)]
    at: At,
    /// Namespace that qvl is installed in.
    #[arg(long, value_name = "NAME", default_value = "qvl-system", hide = true)]
    system_namespace: String,
}

pub(super) fn run(args: &LogsArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    if args.at.is_cluster(&args.name)? {
        return cluster::run(args, out);
    }
    run_local(args, &jobs::find(&args.name)?, out)
}

fn run_local(
    args: &LogsArgs,
    run: &RunState,
    out: &mut impl Write,
) -> Result<ExitStatus, CliError> {
    let mut reader = Reader::new(&run.output);
    if args.first_error {
        return first_error(args, &reader.read_new()?, out);
    }
    let mut saved = args.save.as_deref().map(Saved::create).transpose()?;
    let ranks = args.rank.clone().unwrap_or_default();
    loop {
        // The state is read first: lines written before it changed are then seen for sure.
        let now = RunState::read(&run.output)?;
        let last = now.ranks.iter().map(|rank| rank.rank).max();
        let lines = reader.read_new()?;
        for line in lines.iter().filter(|line| ranks.has(line.rank, last) && args.wants(line)) {
            match &mut saved {
                Some(saved) => saved.push(line)?,
                None => args.print(line, out)?,
            }
        }
        out.flush()?;
        let ended = match now.status {
            Status::Running if now.is_alive() => None,
            Status::Succeeded => Some(ExitStatus::Success),
            Status::Running | Status::Failed => Some(ExitStatus::JobFailed),
            Status::Stopped => Some(ExitStatus::JobCancelled),
        };
        match ended {
            Some(status) if args.follow => return finish(saved, status, out),
            _going_on if !args.follow => return finish(saved, ExitStatus::Success, out),
            _going_on => thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// Says what was saved.
fn finish(
    saved: Option<Saved>,
    status: ExitStatus,
    out: &mut impl Write,
) -> Result<ExitStatus, CliError> {
    if let Some(saved) = saved {
        saved.finish(out)?;
    }
    Ok(status)
}

fn first_error(
    args: &LogsArgs,
    lines: &[Line],
    out: &mut impl Write,
) -> Result<ExitStatus, CliError> {
    let ranks = args.rank.clone().unwrap_or_default();
    let last = lines.iter().map(|line| line.rank).max();
    let wanted = |line: &&Line| ranks.has(line.rank, last) && args.wants(line);
    let errors = || lines.iter().filter(wanted).filter(|line| is_error(&line.text));
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
        self.attempt.is_none_or(|attempt| attempt == line.attempt)
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
