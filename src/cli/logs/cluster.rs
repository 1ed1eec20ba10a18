//! `qvl logs` of a job in a cluster.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    Line, LogsArgs, first_error, is_error,
    selection::{Ranks, Saved},
    source::{self, Collector, Found, Lines},
};
use crate::{
    cli::{
        CliError,
        cluster::{self, Call, Cluster, JOBS, no_job},
    },
    logs::{collector::StoredLine, merge::Reorder},
    wire::ExitStatus,
};

/// Lines of different pods wait so long for each other.
const WINDOW: Duration = Duration::from_secs(1);
/// The job is looked at this often.
const LOOK: Duration = Duration::from_secs(2);
/// After a job has ended, its last lines have so long to arrive.
const DRAIN: Duration = Duration::from_secs(4);

pub(super) fn run(args: &LogsArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    cluster::block_on(show(args, out))
}

async fn show(args: &LogsArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    let cluster = cluster::connect(&args.at.target).await?;
    let job = job(&cluster, &args.name).await?;
    let collector = Collector::new(&cluster, args);
    let (lines, last) = match collector.streams().await? {
        // The logs of a job outlive it.
        Found::Streams(streams) if job.is_none() && streams.is_empty() => {
            return Err(no_job(&args.name, &cluster.namespace));
        }
        Found::Streams(streams) => {
            let last = streams.iter().map(|stream| stream.rank).max();
            // Ranks are chosen here: which is the last one may change.
            let lines = collector.lines(args.attempt, args.since, args.follow);
            (lines, last.max(last_rank(job.as_ref())))
        }
        Found::Absent(why) => {
            if job.is_none() {
                return Err(no_job(&args.name, &cluster.namespace));
            }
            let mut err = anstream::stderr();
            writeln!(err, "the log collector cannot be asked: {why}")?;
            writeln!(err, "showing what the live pods still have, without the ended ones\n")?;
            (source::pods(&cluster, args).await?, last_rank(job.as_ref()))
        }
    };
    let view = View { args, ranks: ranks(args), others_warn: others_warn(args), last };
    if args.first_error {
        return first_error(args, &view.all(lines).await?, out);
    }
    let mut saved = args.save.as_deref().map(Saved::create).transpose()?;
    let status = if args.follow {
        view.follow(&cluster, lines, &mut saved, out).await?
    } else {
        let mut lines = lines;
        while let Some(line) = lines.recv().await {
            view.put(&line?, &mut saved, out)?;
        }
        ExitStatus::Success
    };
    super::finish(saved, status, out)
}

/// The job, if it is there.
async fn job(cluster: &Cluster, name: &str) -> Result<Option<Value>, CliError> {
    let call = Call::one("get", JOBS, &cluster.namespace, name);
    let found = cluster.call(call, cluster.jobs().get_opt(name)).await?;
    Ok(found.map(|job| job.data))
}

/// The highest rank that the job says it has, from `4/4`.
fn last_rank(job: Option<&Value>) -> Option<u32> {
    let ranks = job?.pointer("/status/summary/ranks")?.as_str()?;
    ranks.rsplit('/').next()?.parse::<u32>().ok()?.checked_sub(1)
}

/// How a job has ended, as an exit status; `None` while it goes on.
fn ending(job: &Value) -> Option<ExitStatus> {
    match job.pointer("/status/summary/state").and_then(Value::as_str)? {
        "Complete" => Some(ExitStatus::Success),
        "Failed" => {
            let conditions = job.pointer("/status/conditions").and_then(Value::as_array);
            let cancelled = conditions.into_iter().flatten().any(|condition| {
                condition["type"] == "Failed"
                    && condition["status"] == "True"
                    && condition["reason"] == "Cancelled"
            });
            Some(if cancelled { ExitStatus::JobCancelled } else { ExitStatus::JobFailed })
        }
        _going_on => None,
    }
}

fn ranks(args: &LogsArgs) -> Ranks {
    let default = || if others_warn(args) { Ranks::ends() } else { Ranks::default() };
    args.rank.clone().unwrap_or_else(default)
}

/// Whether the other ranks show what is wrong, and only that.
fn others_warn(args: &LogsArgs) -> bool {
    let everything = args.json || args.first_error || args.save.is_some() || args.grep.is_some();
    args.rank.is_none() && !everything
}

struct View<'a> {
    args: &'a LogsArgs,
    ranks: Ranks,
    others_warn: bool,
    last: Option<u32>,
}

impl View<'_> {
    async fn all(&self, mut lines: Lines) -> Result<Vec<Line>, CliError> {
        let mut all = Vec::new();
        while let Some(line) = lines.recv().await {
            all.push(plain(&line?));
        }
        all.sort_by_key(|line| line.time_ms);
        Ok(all)
    }

    /// Shows lines until the job has ended and they have all arrived.
    async fn follow(
        &self,
        cluster: &Cluster,
        mut lines: Lines,
        saved: &mut Option<Saved>,
        out: &mut impl Write,
    ) -> Result<ExitStatus, CliError> {
        let begin = Instant::now();
        let mut reorder = Reorder::new(WINDOW);
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        let (mut looked, mut ended): (Option<Instant>, Option<(Instant, ExitStatus)>) =
            (None, None);
        let mut open = true;
        loop {
            tokio::select! {
                line = lines.recv(), if open => match line {
                    Some(line) => {
                        let line = line?;
                        reorder.push(begin.elapsed(), line.time_ms, line.rank, line);
                        if let Some((since, _status)) = &mut ended {
                            *since = Instant::now();
                        }
                    }
                    None => open = false,
                },
                _tick = tick.tick() => {}
            }
            for line in reorder.ready(begin.elapsed()) {
                self.put(&line, saved, out)?;
            }
            out.flush()?;
            if let Some((since, status)) = ended {
                if !open || DRAIN < since.elapsed() {
                    for line in reorder.finish() {
                        self.put(&line, saved, out)?;
                    }
                    return Ok(status);
                }
            } else if looked.is_none_or(|looked| LOOK < looked.elapsed()) {
                looked = Some(Instant::now());
                // A cluster that does not answer for a moment ends no logs.
                if let Ok(found) = job(cluster, &self.args.name).await {
                    let status = found.map_or(Some(ExitStatus::JobNotFound), |job| ending(&job));
                    ended = status.map(|status| (Instant::now(), status));
                }
            }
        }
    }

    fn put(
        &self,
        stored: &StoredLine,
        saved: &mut Option<Saved>,
        out: &mut impl Write,
    ) -> Result<(), CliError> {
        let line = plain(stored);
        let shown = self.ranks.has(line.rank, self.last)
            || (self.others_warn && (stored.lost.is_some() || is_warning(&line.text)));
        if !shown || !self.args.wants(&line) {
            return Ok(());
        }
        match saved {
            Some(saved) => saved.push(&line)?,
            None if self.args.json => writeln!(out, "{}", json(stored))?,
            None => self.args.print(&line, out)?,
        }
        Ok(())
    }
}

fn is_warning(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    is_error(text) || lower.contains("warn") || lower.contains("error")
}

fn plain(line: &StoredLine) -> Line {
    let StoredLine { time_ms, attempt, rank, number, text, lost, .. } = line;
    let lost = || match lost.unwrap_or(0) {
        1 => "[1 line was lost here]".to_owned(),
        count => format!("[{count} lines were lost here]"),
    };
    let text = text.clone().unwrap_or_else(lost);
    Line { time_ms: *time_ms, attempt: *attempt, rank: *rank, number: *number, text }
}

/// The names of a local run's lines, and what only a cluster has.
fn json(line: &StoredLine) -> Value {
    let StoredLine { time_ms, attempt, epoch, rank, pod, number, text, lost } = line;
    let mut value = serde_json::json!({"time_ms": time_ms, "attempt": attempt, "epoch": epoch,
        "rank": rank, "pod": pod, "number": number});
    match (text, lost) {
        (Some(text), _) => value["text"] = text.as_str().into(),
        (None, lost) => value["lost"] = lost.unwrap_or(0).into(),
    }
    value
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_end_of_a_job_is_an_exit_status() {
        let job = |state: &str, reason: &str| {
            json!({"status": {"summary": {"state": state, "ranks": "3/4"}, "conditions": [
                {"type": "Failed", "status": "True", "reason": reason}]}})
        };
        assert_eq!(ending(&job("Running", "")), None);
        assert_eq!(ending(&job("Complete", "")), Some(ExitStatus::Success));
        assert_eq!(ending(&job("Failed", "BackoffExceeded")), Some(ExitStatus::JobFailed));
        assert_eq!(ending(&job("Failed", "Cancelled")), Some(ExitStatus::JobCancelled));
        assert_eq!(ending(&json!({})), None);
        assert_eq!(last_rank(Some(&job("Running", ""))), Some(3));
        assert_eq!(last_rank(None), None);
    }

    #[test]
    fn a_gap_is_told() {
        let line = StoredLine {
            time_ms: 7,
            attempt: 1,
            epoch: 2,
            rank: 0,
            pod: "u".to_owned(),
            number: 5,
            text: None,
            lost: Some(3),
        };
        assert_eq!(plain(&line).text, "[3 lines were lost here]");
        assert_eq!(json(&line)["lost"], 3);
        assert!(json(&line).get("text").is_none());
    }
}
