//! `qvl logs`.

use std::{io::Write, thread, time::Duration};

use clap::Args;

use super::{CliError, jobs};
use crate::{
    launch::{
        logs::{self, Line},
        state::{RunState, Status},
    },
    wire::ExitStatus,
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
    /// Only lines with this text.
    #[arg(long, value_name = "TEXT")]
    grep: Option<String>,
    /// Only the first line that reports a failure.
    #[arg(long)]
    first_error: bool,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &LogsArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    let run = jobs::find(&args.name)?;
    let mut shown = 0;
    loop {
        // The state is read first: lines written before it changed are then seen for sure.
        let now = RunState::read(&run.output)?;
        let lines = logs::read(&run.output)?;
        let chosen: Vec<&Line> = lines.iter().filter(|line| args.wants(line)).collect();
        if args.first_error {
            if let Some(line) = chosen.iter().find(|line| is_error(&line.text)) {
                args.print(line, out)?;
            }
            return Ok(ExitStatus::Success);
        }
        for line in chosen.iter().skip(shown) {
            args.print(line, out)?;
        }
        shown = chosen.len();
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

fn is_error(text: &str) -> bool {
    text.starts_with("error:")
        || text.contains("\"event\":\"failed\"")
        || text.contains("panicked at")
}

impl LogsArgs {
    fn wants(&self, line: &Line) -> bool {
        self.rank.is_none_or(|rank| rank == line.rank)
            && self.attempt.is_none_or(|attempt| attempt == line.attempt)
            && self.grep.as_ref().is_none_or(|text| line.text.contains(text))
    }

    fn print(&self, line: &Line, out: &mut impl Write) -> std::io::Result<()> {
        let Line { time_ms, attempt, rank, number, text } = line;
        if self.json {
            let value = serde_json::json!({"time_ms": time_ms, "attempt": attempt, "rank": rank,
                "number": number, "text": text});
            return writeln!(out, "{value}");
        }
        let time =
            i64::try_from(*time_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        let time = time.map_or_else(String::new, |time| time.strftime("%H:%M:%S%.3f").to_string());
        writeln!(out, "{time} attempt {attempt} rank {rank}  {text}")
    }
}
