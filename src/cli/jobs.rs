//! `qvl ps`, `qvl status` and `qvl stop`.

use std::{
    io::Write,
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{CliError, home};
use crate::{
    launch::{
        registry,
        state::{RunState, Status},
    },
    wire::ExitStatus,
};

/// A run has this long to save and stop.
const STOP_WITHIN: Duration = Duration::from_secs(120);

#[derive(Debug, Args)]
pub struct PsArgs {
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct NameArgs {
    /// Name of the job, or its output folder.
    name: String,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

/// The run of that name.
pub(super) fn find(name: &str) -> Result<RunState, CliError> {
    registry::find(&home::jobs(), name).ok_or_else(|| {
        CliError::new(ExitStatus::JobNotFound, format!("no run named `{name}`"))
            .hint("`qvl ps` lists the runs; a run is also found by its output folder")
    })
}

/// What a run is doing, in one word.
pub(super) fn word(run: &RunState) -> &'static str {
    match run.status {
        Status::Running if run.is_alive() => "running",
        Status::Running => "dead",
        Status::Succeeded => "succeeded",
        Status::Failed => "failed",
        Status::Stopped => "stopped",
    }
}

pub(super) fn ps(args: &PsArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    let runs = registry::list(&home::jobs())?;
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&runs).expect("plain data"))?;
        return Ok(ExitStatus::Success);
    }
    if runs.is_empty() {
        writeln!(out, "no runs; `qvl launch JOB.yaml --local` starts one")?;
        return Ok(ExitStatus::Success);
    }
    let name_width = runs.iter().map(|run| run.name.len()).max().unwrap_or(4).max(4);
    writeln!(out, "{:<name_width$}  STATUS     STEP           LOSS    ATTEMPT  OUTPUT", "NAME")?;
    for run in &runs {
        let step = format!("{}/{}", run.step, run.total_steps);
        let loss = run.loss.map_or("-".to_owned(), |loss| format!("{loss:.3}"));
        let (name, status, attempt) = (&run.name, word(run), run.attempt);
        let output = run.output.display();
        writeln!(
            out,
            "{name:<name_width$}  {status:<9}  {step:<13}  {loss:<6}  {attempt:<7}  {output}"
        )?;
    }
    Ok(ExitStatus::Success)
}

pub(super) fn status(args: &NameArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    let run = find(&args.name)?;
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&run).expect("plain data"))?;
    } else {
        describe(&run, out)?;
    }
    Ok(match run.status {
        Status::Succeeded => ExitStatus::Success,
        Status::Running if run.is_alive() => ExitStatus::JobRunning,
        Status::Running | Status::Failed => ExitStatus::JobFailed,
        Status::Stopped => ExitStatus::JobCancelled,
    })
}

fn describe(run: &RunState, out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "{}: {}", run.name, word(run))?;
    writeln!(out, "  step        {} of {}", run.step, run.total_steps)?;
    if let Some(loss) = run.loss {
        writeln!(out, "  loss        {loss:.4}")?;
    }
    writeln!(out, "  attempt     {}", run.attempt)?;
    for rank in &run.ranks {
        writeln!(out, "  rank {:<6} process {}, {}", rank.rank, rank.pid, rank.phase)?;
    }
    if let Some(checkpoint) = &run.checkpoint {
        writeln!(out, "  checkpoint  {checkpoint}")?;
    }
    if let Some(result) = &run.result {
        writeln!(out, "  result      {result}")?;
    }
    for incident in &run.incidents {
        let after = if incident.restarted { "restarted" } else { "gave up" };
        writeln!(
            out,
            "  incident    attempt {}, step {}: rank {} {} ({after})",
            incident.attempt, incident.step, incident.culprit, incident.what
        )?;
    }
    writeln!(out, "  output      {}", run.output.display())?;
    if run.status == Status::Running && !run.is_alive() {
        writeln!(
            out,
            "\nits supervisor (process {}) is gone; `qvl resume {}` goes on",
            run.supervisor, run.name
        )?;
    }
    Ok(())
}

pub(super) fn stop(args: &NameArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    let run = find(&args.name)?;
    if !run.is_alive() {
        writeln!(out, "{} does not run ({})", run.name, word(&run))?;
        return Ok(ExitStatus::Success);
    }
    let pid = i32::try_from(run.supervisor).unwrap_or(0);
    kill(Pid::from_raw(pid), Signal::SIGTERM)
        .map_err(|error| CliError::of(ExitStatus::Unreachable, error))?;
    let until = Instant::now() + STOP_WITHIN;
    while Instant::now() < until {
        let now = RunState::read(&run.output)?;
        if now.status != Status::Running || !now.is_alive() {
            writeln!(out, "{} stopped at step {} of {}", now.name, now.step, now.total_steps)?;
            return Ok(ExitStatus::Success);
        }
        thread::sleep(Duration::from_millis(100));
    }
    Err(CliError::new(ExitStatus::JobRunning, format!("`{}` still runs", run.name))
        .hint("it may be saving a large checkpoint; look at `qvl status` again"))
}
