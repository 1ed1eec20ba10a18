//! `qvl ps`, `qvl status`, `qvl wait` and `qvl stop`; jobs of a cluster are handed on.

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

use super::{CliError, cluster, home, view::clock};
use crate::{
    launch::{
        registry,
        state::{Incident, RankState, RunState, Status},
        supervisor,
    },
    wire::ExitStatus,
};

/// A run has this long to save and stop.
const STOP_WITHIN: Duration = Duration::from_secs(120);
/// A rank without a supervisor has this long to save and stop.
const ORPHAN_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub struct PsArgs {
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Jobs of all namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    #[command(flatten)]
    at: cluster::At,
}

#[derive(Debug, Args)]
pub struct StopArgs {
    /// Name of the job, or its output folder.
    name: String,
    /// Kill the ranks at once; what was done since the newest checkpoint is lost.
    #[arg(long)]
    now: bool,
    /// In a cluster: delete the job afterwards; its files and logs stay.
    #[arg(long)]
    delete: bool,
    #[command(flatten)]
    at: cluster::At,
}

#[derive(Debug, Args)]
pub struct NameArgs {
    /// Name of the job, or its output folder.
    name: String,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: cluster::At,
}

/// The run of that name.
pub(super) fn find(name: &str) -> Result<RunState, CliError> {
    registry::find(&home::jobs(), name)?.ok_or_else(|| {
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
    let runs = if args.at.cluster { Vec::new() } else { registry::list(&home::jobs())? };
    let jobs = cluster::commands::list(&args.at, args.all_namespaces)?;
    if args.json {
        let jobs = jobs.map(|jobs| jobs.iter().map(cluster::commands::json).collect::<Vec<_>>());
        let value = serde_json::json!({"local": runs, "cluster": jobs});
        writeln!(out, "{}", serde_json::to_string_pretty(&value).expect("plain data"))?;
        return Ok(ExitStatus::Success);
    }
    let jobs = jobs.unwrap_or_default();
    if runs.is_empty() && jobs.is_empty() {
        let how = if args.at.cluster { "" } else { " --local" };
        writeln!(out, "no runs; `qvl launch JOB.yaml{how}` starts one")?;
    }
    if !runs.is_empty() {
        print_runs(&runs, out)?;
    }
    if !jobs.is_empty() {
        if !runs.is_empty() {
            writeln!(out)?;
        }
        cluster::commands::print_list(&jobs, out)?;
    }
    Ok(ExitStatus::Success)
}

fn print_runs(runs: &[RunState], out: &mut impl Write) -> std::io::Result<()> {
    let titles = ["NAME", "STATUS", "STEP", "LOSS", "ATTEMPT", "CHANGED", "OUTPUT"];
    let mut rows = vec![titles.map(str::to_owned)];
    rows.extend(runs.iter().map(|run| {
        [
            run.name.clone(),
            word(run).to_owned(),
            format!("{}/{}", run.step, run.total_steps),
            run.loss.map_or("-".to_owned(), |loss| format!("{loss:.3}")),
            run.attempt.to_string(),
            ago(run.updated_ms),
            run.output.display().to_string(),
        ]
    }));
    print_table(&rows, out)
}

/// Columns as wide as their widest cell; the last one has no end.
fn print_table(rows: &[[String; 7]], out: &mut impl Write) -> std::io::Result<()> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..6).map(|column| width(column).unwrap_or(0)).collect();
    for row in rows {
        for (cell, width) in row.iter().zip(&widths) {
            write!(out, "{cell:<width$}  ")?;
        }
        writeln!(out, "{}", row[6])?;
    }
    Ok(())
}

fn ago(time_ms: u64) -> String {
    let seconds = supervisor::now_ms().saturating_sub(time_ms) / 1000;
    format!("{} ago", clock(seconds as f64))
}

/// Time since a second of the Unix epoch.
fn since(unix_seconds: i64) -> String {
    let then_ms = u64::try_from(unix_seconds).unwrap_or(0).saturating_mul(1000);
    clock((supervisor::now_ms().saturating_sub(then_ms) / 1000) as f64)
}

pub(super) fn status(args: &NameArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    if args.at.is_cluster(&args.name)? {
        return cluster::commands::status(&args.name, &args.at, args.json, out);
    }
    let run = find(&args.name)?;
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&run).expect("plain data"))?;
    } else {
        describe(&run, out)?;
    }
    Ok(end(&run))
}

fn end(run: &RunState) -> ExitStatus {
    match run.status {
        Status::Succeeded => ExitStatus::Success,
        Status::Running if run.is_alive() => ExitStatus::JobRunning,
        Status::Running | Status::Failed => ExitStatus::JobFailed,
        Status::Stopped => ExitStatus::JobCancelled,
    }
}

/// Waits for a run of this machine.
pub(super) fn wait(name: &str, timeout: Option<Duration>) -> Result<ExitStatus, CliError> {
    let begin = Instant::now();
    let mut err = anstream::stderr();
    loop {
        let run = find(name)?;
        let status = end(&run);
        let over = timeout.is_some_and(|timeout| timeout <= begin.elapsed());
        if status != ExitStatus::JobRunning || over {
            writeln!(err, "{name}: {}, step {} of {}", word(&run), run.step, run.total_steps)?;
            return Ok(status);
        }
        thread::sleep(Duration::from_millis(200));
    }
}

pub(super) fn describe(run: &RunState, out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "{}: {}", run.name, word(run))?;
    let mut row = |name: &str, value: String| writeln!(out, "  {name:<11} {value}");
    row("step", format!("{} of {}", run.step, run.total_steps))?;
    if let Some(loss) = run.loss {
        row("loss", format!("{loss:.4}"))?;
    }
    row("changed", ago(run.updated_ms))?;
    row("attempt", run.attempt.to_string())?;
    if let Some(doctor) = &run.doctor {
        row("doctor", doctor.sentence(&since(doctor.unix_seconds)))?;
    }
    for rank in &run.ranks {
        row(&format!("rank {}", rank.rank), format!("process {}, {}", rank.pid, rank.phase))?;
    }
    if let Some(checkpoint) = &run.checkpoint {
        row("checkpoint", checkpoint.clone())?;
    }
    if let Some(result) = &run.result {
        row("result", result.clone())?;
    }
    for incident in &run.incidents {
        let Incident { attempt, culprit, what, step, restarted, .. } = incident;
        let after = if *restarted { "restarted" } else { "gave up" };
        row(
            "incident",
            format!("attempt {attempt}, step {step}: rank {culprit} {what} ({after})"),
        )?;
    }
    if let Some(why) = &run.why {
        row("why", why.clone())?;
    }
    row("output", run.output.display().to_string())?;
    let (name, supervisor) = (&run.name, run.supervisor);
    let orphans = run.orphans();
    if run.status == Status::Running && !run.is_alive() {
        writeln!(out, "\nits supervisor (process {supervisor}) is gone")?;
    }
    if !orphans.is_empty() {
        writeln!(out, "{} still run without it; `qvl stop {name}` ends them", processes(&orphans))?;
    }
    if run.status != Status::Succeeded && !run.is_alive() {
        writeln!(out, "\nhint: `qvl resume {name}` goes on from the newest checkpoint")?;
    }
    Ok(())
}

fn processes(ranks: &[&RankState]) -> String {
    let list: Vec<String> =
        ranks.iter().map(|rank| format!("rank {} (process {})", rank.rank, rank.pid)).collect();
    list.join(", ")
}

pub(super) fn stop(args: &StopArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    if args.at.is_cluster(&args.name)? {
        let how = cluster::Stop { now: args.now, delete: args.delete };
        return cluster::commands::stop(&args.name, &args.at, how, out);
    }
    let run = find(&args.name)?;
    if args.delete {
        let what = format!("`{}` runs on this machine, where there is no object", run.name);
        return Err(CliError::new(ExitStatus::Usage, what)
            .hint(format!("its files are in `{}`", run.output.display())));
    }
    if !run.is_alive() {
        end_orphans(&run, out)?;
        writeln!(out, "{} does not run ({})", run.name, word(&run))?;
        return Ok(ExitStatus::Success);
    }
    signal(run.supervisor, Signal::SIGTERM)?;
    let until = Instant::now() + STOP_WITHIN;
    while Instant::now() < until {
        let now = RunState::read(&run.output)?;
        if now.status != Status::Running || !now.is_alive() {
            let (name, step, total) = (&now.name, now.step, now.total_steps);
            writeln!(out, "{name} {} at step {step} of {total}", word(&now))?;
            return Ok(ExitStatus::Success);
        }
        thread::sleep(Duration::from_millis(100));
        if args.now {
            signal(run.supervisor, Signal::SIGTERM)?;
        }
    }
    Err(CliError::new(ExitStatus::JobRunning, format!("`{}` still runs", run.name))
        .hint("it may be saving a large checkpoint: look at `qvl status` again")
        .hint(format!("`qvl stop --now {}` kills its ranks", run.name)))
}

/// Ends ranks whose supervisor is gone: they would compute, and hold memory, for nothing.
pub(super) fn end_orphans(run: &RunState, out: &mut impl Write) -> Result<(), CliError> {
    let orphans = run.orphans();
    if orphans.is_empty() {
        return Ok(());
    }
    writeln!(out, "ending {}, whose supervisor is gone", processes(&orphans))?;
    let deadline = Instant::now() + ORPHAN_WITHIN;
    for rank in &orphans {
        signal(rank.pid, Signal::SIGTERM)?;
    }
    while orphans.iter().any(|rank| rank.is_alive()) {
        if deadline < Instant::now() {
            for rank in orphans.iter().filter(|rank| rank.is_alive()) {
                signal(rank.pid, Signal::SIGKILL)?;
            }
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// A process that has ended in this moment has what it was told.
fn signal(pid: u32, signal: Signal) -> Result<(), CliError> {
    let number = i32::try_from(pid).unwrap_or(0);
    match kill(Pid::from_raw(number), signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => {
            let what = format!("failed to signal process {pid}");
            Err(CliError::of(ExitStatus::Unreachable, anyhow::Error::new(error).context(what))
                .hint("it belongs to another user"))
        }
    }
}
