//! Subcommands for jobs that may be on this machine or in a cluster.

use std::{io::Write, path::PathBuf, time::Duration};

use clap::Args;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;

use super::{
    Call, Cluster, Target, act, block_on, bundle, client, connect, events, explain,
    follow::{Limits, follow, other_version},
    launch::{duration, finish},
    objects, observe, rooms,
    seen::Seen,
    show::Show,
    status, top,
    trouble::JOBS,
};
use crate::{
    cli::{CliError, home, jobs, launch::Output},
    launch::registry,
    wire::ExitStatus,
};

/// Where a job of that name is looked for.
#[derive(Debug, Default, Args)]
pub(crate) struct At {
    #[command(flatten)]
    pub target: Target,
    /// A job of the cluster, even if a newer run on this machine has that name.
    #[arg(long)]
    pub cluster: bool,
}

impl At {
    /// Whether the user named a cluster.
    fn is_explicit(&self) -> bool {
        self.cluster || self.target.namespace.is_some() || self.target.context.is_some()
    }

    /// Whether `name` is a job of the cluster: if a cluster or a namespace was named, if no run on
    /// this machine has that name, or if it was submitted after the last of them had begun.
    pub(crate) fn is_cluster(&self, name: &str) -> Result<bool, CliError> {
        if self.is_explicit() {
            return Ok(true);
        }
        let home = home::jobs();
        let Some(local) = registry::find(&home, name)? else { return Ok(client::is_configured()) };
        let submitted = registry::submitted_ms(&home, name);
        let later = submitted.is_some_and(|submitted| local.started_ms < submitted);
        Ok(later && !local.is_alive() && local.name == name && client::is_configured())
    }
}

#[derive(Debug, Args)]
pub struct OneArgs {
    /// Name of the job.
    name: String,
    #[command(flatten)]
    at: At,
}

#[derive(Debug, Args)]
pub struct WaitArgs {
    /// Name of the job; on this machine also its output folder.
    name: String,
    /// Give up after this time, as in `30m`; the job goes on.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    /// How progress is shown.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(flatten)]
    at: At,
}

#[derive(Debug, Args)]
pub struct RetryArgs {
    /// Name of the job.
    name: String,
    /// How progress is shown.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Return at once.
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    at: At,
}

#[derive(Debug, Args)]
pub struct TopArgs {
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
pub struct BundleArgs {
    /// Name of the job.
    name: String,
    /// File to write, instead of `NAME-bundle.tar.gz`.
    #[arg(short = 'f', long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
}

/// A command that only a cluster has: a run on this machine of that name gets `instead`.
fn only_cluster(name: &str, at: &At, verb: &str, instead: &str) -> Result<(), CliError> {
    if at.is_cluster(name)? {
        return Ok(());
    }
    jobs::find(name)?;
    let what = format!("`{name}` runs on this machine, where there is no `qvl {verb}`");
    Err(CliError::new(ExitStatus::Usage, what)
        .hint(instead.replace("NAME", name))
        .hint("--cluster means a job of the cluster of the same name"))
}

pub(crate) fn status(
    name: &str,
    at: &At,
    json: bool,
    out: &mut impl Write,
) -> Result<ExitStatus, CliError> {
    block_on(async {
        let cluster = connect(&at.target).await?;
        let (mut object, seen) = act::read(&cluster, name).await?;
        if json {
            object.metadata.managed_fields = None;
            writeln!(out, "{}", serde_json::to_string_pretty(&object).expect("plain data"))?;
        } else {
            status::describe(&seen, Timestamp::now(), out)?;
        }
        Ok(seen.end().unwrap_or(ExitStatus::JobRunning))
    })
}

/// Jobs of the cluster for `qvl ps`. Without a word about a cluster by the user, one that does
/// not answer is only mentioned.
pub(crate) fn list(at: &At, all: bool) -> Result<Option<Vec<Seen>>, CliError> {
    let explicit = all || at.is_explicit();
    if !explicit && !client::is_configured() {
        return Ok(None);
    }
    let jobs = block_on(async {
        let cluster = connect(&at.target).await?;
        let namespace = (!all).then_some(cluster.namespace.as_str());
        seen_jobs(&cluster, namespace).await
    });
    match jobs {
        Err(error) if !explicit => {
            writeln!(anstream::stderr(), "jobs of the cluster are not shown: {}", error.line())?;
            Ok(None)
        }
        jobs => jobs.map(Some),
    }
}

async fn seen_jobs(cluster: &Cluster, namespace: Option<&str>) -> Result<Vec<Seen>, CliError> {
    let api = if namespace.is_some() { cluster.jobs() } else { cluster.all_jobs() };
    let call = Call::many("list", JOBS, namespace);
    let objects = observe::all(cluster, &api, call, ListParams::default()).await?;
    objects.into_iter().map(|object| Seen::of(object).map_err(other_version)).collect()
}

/// A job as `qvl ps --json` shows it.
pub(crate) fn json(job: &Seen) -> serde_json::Value {
    serde_json::json!({"namespace": job.namespace, "name": job.name, "spec": job.spec,
        "status": job.status})
}

pub(crate) fn print_list(jobs: &[Seen], out: &mut impl Write) -> std::io::Result<()> {
    status::list(jobs, Timestamp::now(), out)
}

pub(crate) fn wait(args: &WaitArgs) -> Result<ExitStatus, CliError> {
    if !args.at.is_cluster(&args.name)? {
        return jobs::wait(&args.name, args.timeout);
    }
    block_on(async {
        let cluster = connect(&args.at.target).await?;
        // Says at once that there is no such job, or no cluster.
        act::read(&cluster, &args.name).await?;
        let mut show = Show::new(args.output, &cluster.namespace, &args.name);
        let limits = Limits { start: None, end: args.timeout };
        let end = follow(&cluster, &args.name, &mut show, limits).await?;
        show.clear();
        finish(&cluster, &args.name, end, &mut show).await
    })
}

pub(crate) fn stop(
    name: &str,
    at: &At,
    how: act::Stop,
    out: &mut impl Write,
) -> Result<ExitStatus, CliError> {
    block_on(async { act::stop(&connect(&at.target).await?, name, how, out).await })
}

pub(crate) fn suspend(args: &OneArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    only_cluster(
        &args.name,
        &args.at,
        "suspend",
        "`qvl stop NAME` saves a checkpoint and stops it",
    )?;
    block_on(async { act::suspend(&connect(&args.at.target).await?, &args.name, out).await })
}

pub(crate) fn resume(
    name: &str,
    at: &At,
    output: Output,
    detach: bool,
) -> Result<ExitStatus, CliError> {
    block_on(async { act::resume(&connect(&at.target).await?, name, output, detach).await })
}

pub(crate) fn retry(args: &RetryArgs) -> Result<ExitStatus, CliError> {
    let RetryArgs { name, at, output, detach } = args;
    only_cluster(name, at, "retry", "`qvl resume NAME` goes on from its newest checkpoint")?;
    block_on(async { act::retry(&connect(&at.target).await?, name, *output, *detach).await })
}

pub(crate) fn events(args: &OneArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    only_cluster(
        &args.name,
        &args.at,
        "events",
        "`qvl logs NAME` shows what its supervisor and ranks said",
    )?;
    block_on(async {
        let cluster = connect(&args.at.target).await?;
        let objects = objects::collect(&cluster, &args.name).await?;
        if objects.events.is_empty() {
            writeln!(out, "no events about {}; a cluster forgets them after an hour", args.name)?;
        } else {
            events::print(&objects.events, Timestamp::now(), out)?;
        }
        Ok(ExitStatus::Success)
    })
}

pub(crate) fn explain(name: &str, at: &At, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    block_on(async {
        let cluster = connect(&at.target).await?;
        let objects = objects::collect(&cluster, name).await?;
        explain::print(&explain::chain(&objects, Timestamp::now()), out)?;
        Ok(ExitStatus::Success)
    })
}

pub(crate) fn top(args: &TopArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    block_on(async {
        let cluster = connect(&args.target).await?;
        let nodes = observe::nodes(&cluster).await?;
        let pods = observe::pods(&cluster).await?;
        let reports = observe::reports(&cluster).await?;
        let jobs = seen_jobs(&cluster, args.target.namespace.as_deref()).await?;
        let none = std::collections::BTreeMap::new();
        let rooms = rooms::of(&nodes, &pods, Some(rooms::GPU), &none, &[]);
        top::print(&rooms, &pods, &reports, &jobs, Timestamp::now(), out)?;
        Ok(ExitStatus::Success)
    })
}

pub(crate) fn bundle(args: &BundleArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    block_on(async {
        let cluster = connect(&args.target).await?;
        bundle::bundle(&cluster, &args.name, args.file.as_deref(), out).await
    })
}
