//! `qvl launch` in a cluster: plan, doctor, submit, follow.

use std::{io::Write, path::Path, time::Duration};

use clap::{Args, ValueEnum};

use super::{
    Call, Cluster, Target, connect, fleet,
    follow::{self, End, Limits, follow},
    observe,
    place::{self, Demanded},
    plan::{Fit, Shape},
    record::Told,
    seen::Seen,
    show::Show,
    submit,
    trouble::JOBS,
};
use crate::{
    cli::{
        CliError, doctor, home,
        launch::{Output, refuse_bad_data},
        plan as job_plan,
    },
    doctor::Sizes,
    job::{FineTuneJob, JobSpec, Method, pod_paths},
    launch::{registry, supervisor},
    wire::ExitStatus,
};

/// Field manager of what users write through this program.
pub(crate) const MANAGER: &str = "qvl";

/// Options that only a launch in a cluster has.
#[derive(Debug, Args)]
pub(crate) struct ClusterLaunch {
    #[command(flatten)]
    pub target: Target,
    /// Shape of the job: N nodes with G ranks each.
    #[arg(short = 'j', long, value_name = "NxG", value_parser = shape)]
    pub shape: Option<Shape>,
    /// Local queue of Kueue that the job waits in.
    #[arg(long, value_name = "NAME")]
    pub queue: Option<String>,
    /// Plan and check, but submit nothing; `server` lets the cluster check the object too.
    #[arg(long, value_name = "WHERE", value_enum, num_args = 0..=1, default_missing_value = "client", require_equals = true)]
    pub dry_run: Option<DryRun>,
    /// Print the object that would be submitted.
    #[arg(short = 'o', long = "object", value_name = "FORMAT", value_enum, requires = "dry_run")]
    pub object: Option<ObjectFormat>,
    /// Wait so long for free GPUs and the start, as in `30m`; then give up.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub timeout: Option<Duration>,
}

impl ClusterLaunch {
    /// A launch on this machine has none of these options: it must not look as if it had.
    pub(crate) fn refuse_local(&self) -> Result<(), CliError> {
        let given = [
            ("-j", self.shape.is_some()),
            ("--queue", self.queue.is_some()),
            ("--dry-run", self.dry_run.is_some()),
            ("--timeout", self.timeout.is_some()),
            ("--namespace", self.target.namespace.is_some()),
            ("--context", self.target.context.is_some()),
        ];
        match given.iter().find(|(_option, given)| *given) {
            None => Ok(()),
            Some((option, _given)) => {
                let what = format!("{option} is for a launch in a cluster, not for --local");
                Err(CliError::new(ExitStatus::Usage, what)
                    .hint("`qvl plan` shows what a local run will do"))
            }
        }
    }
}

/// Who checks a job that is not submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DryRun {
    Client,
    Server,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ObjectFormat {
    Yaml,
    Json,
}

fn shape(text: &str) -> Result<Shape, String> {
    let wrong = || "expected nodes x ranks per node, for example 2x4".to_owned();
    let (nodes, per_node) = text.split_once(['x', 'X']).ok_or_else(wrong)?;
    let number = |text: &str| text.parse::<u32>().ok().filter(|n| (1..=65_536).contains(n));
    let shape = number(nodes).zip(number(per_node)).ok_or_else(wrong)?;
    Ok(Shape { nodes: shape.0, per_node: shape.1 })
}

/// A time such as `90s`, `10m` or `2h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = |_error| "expected a time such as 90s, 10m or 2h".to_owned();
    let span = text.parse::<jiff::SignedDuration>().map_err(wrong)?;
    Duration::try_from(span).map_err(|_error| "a time cannot be negative".to_owned())
}

/// Everything that `qvl launch` without `--local` was told.
pub(crate) struct Order<'o> {
    pub job: &'o Path,
    pub gpus: Option<u32>,
    pub output: Output,
    pub detach: bool,
    pub allow_unknown: &'o [String],
    pub verdict: &'o doctor::VerdictArgs,
    pub options: &'o ClusterLaunch,
}

/// Ranks as told by `--gpus` and `-j`, which must agree.
fn ranks(order: &Order<'_>) -> Result<Option<u32>, CliError> {
    match (order.gpus, order.options.shape) {
        (Some(gpus), Some(shape)) if gpus != shape.ranks() => Err(CliError::new(
            ExitStatus::Usage,
            format!("--gpus {gpus} and -j {shape} disagree: {shape} is {} ranks", shape.ranks()),
        )
        .hint("give one of them")),
        (_, Some(shape)) => Ok(Some(shape.ranks())),
        (gpus, None) => Ok(gpus),
    }
}

pub(crate) async fn launch(order: Order<'_>) -> Result<ExitStatus, CliError> {
    let options = order.options;
    let mut job = job_plan::read_job(order.job, ranks(&order)?)?;
    let permission = order.verdict.read(&job)?;
    let read = job.clone();
    job.spec.cluster.queue = options.queue.clone().or(job.spec.cluster.queue);
    let cluster = connect(&options.target).await?;
    let name = job.metadata.name.clone();
    refuse_existing(&cluster, &name).await?;
    let mut out = anstream::stderr();
    let checked = local_part(&order, &job, &mut out)?;
    let world = observe::world(&cluster).await?;
    let unfit = fleet::unfit(&world, checked.as_ref(), order.allow_unknown);
    let decided = place::decide(&world, &mut job, options.shape, unfit)?;
    place::print(&decided, &job, &mut out)?;
    let waits = options.timeout.is_some() || job.spec.cluster.queue.is_some();
    refuse_misfit(&decided, waits)?;
    let (permission, allow_unknown) = (permission.as_ref(), order.allow_unknown);
    doctor::Permission::check_placed(permission, decided.placement(), &mut out)?;
    let mut verdict = None;
    if let Some(placement) = decided.placement() {
        let asked = fleet::Asked { read: &read, permission, allow_unknown };
        match fleet::gate(&world, &job, placement, checked.as_ref(), &asked, &mut out)? {
            fleet::Verdict::Open(passed) => verdict = Some(*passed),
            fleet::Verdict::Closed(status) => return Ok(status),
        }
    } else {
        writeln!(out, "doctor  not asked: it is not known which nodes the job will run on")?;
    }
    let object = submit::object(&cluster, &job, verdict.as_ref());
    if let Some(dry_run) = options.dry_run {
        return submit::dry(&cluster, &name, object, dry_run, options.object).await;
    }
    submit::submit(&cluster, &name, &object, false).await?;
    // Without it, commands that only name the job may find an older run of this machine.
    let _best_effort = registry::remember_submitted(&home::jobs(), &name, supervisor::now_ms());
    let mut show = Show::new(order.output, &cluster.namespace, &name);
    show.tell(0, submitted(&job))?;
    if order.detach {
        show.clear();
        come_back(&cluster, &name)?;
        return Ok(ExitStatus::JobRunning);
    }
    let limits = Limits { start: options.timeout, end: None };
    let end = follow(&cluster, &name, &mut show, limits).await?;
    show.clear();
    finish(&cluster, &name, end, &mut show).await
}

fn submitted(job: &FineTuneJob) -> Told {
    let ranks = job.spec.world.gpus;
    let ranks_per_node = job.spec.cluster.gpus_per_node.unwrap_or(ranks).max(1);
    Told::Submitted { ranks, nodes: ranks.div_ceil(ranks_per_node), ranks_per_node }
}

/// A name that is taken is the user's to free: nothing that exists is changed by a launch.
async fn refuse_existing(cluster: &Cluster, name: &str) -> Result<(), CliError> {
    let call = Call::one("get", JOBS, &cluster.namespace, name);
    let Some(object) = cluster.call(call, cluster.jobs().get_opt(name)).await? else {
        return observe::installed(cluster).await;
    };
    let seen = Seen::of(object).map_err(follow::other_version)?;
    let word = seen.word();
    let error = CliError::new(
        ExitStatus::Usage,
        format!("job `{name}` exists in namespace `{}`: it is {word}", cluster.namespace),
    );
    Err(if seen.is_over() {
        error
            .hint(format!("`qvl retry {name}` runs it again, from its newest checkpoint"))
            .hint(format!("`qvl stop --delete {name}` frees the name; files and logs stay"))
    } else {
        error
            .hint(format!("`qvl status {name}` shows it, `qvl wait {name}` follows it"))
            .hint("another metadata.name starts a second job")
    })
}

/// Plan and data lint, if model and data can be read from here too.
fn local_part(
    order: &Order<'_>,
    job: &FineTuneJob,
    out: &mut impl Write,
) -> Result<Option<(job_plan::Plan, Sizes)>, CliError> {
    let folder = order.job.parent().filter(|path| !path.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let spec = &job.spec;
    let absent = std::iter::once(("model", &spec.model.path))
        .chain(spec.data.train.iter().map(|set| ("training set", &set.path)))
        .find(|(_what, path)| !folder.join(path).exists());
    if let Some((what, path)) = absent {
        writeln!(out, "local   not checked: {what} `{path}` is not reachable from here")?;
        writeln!(out, "        memory, steps and data are checked in the pods before the start")?;
        return Ok(None);
    }
    let planned = job_plan::make(job.clone(), folder)?;
    refuse_bad_data(&planned)?;
    let steps = planned.steps.total_steps;
    let memory = job_plan::human(planned.memory.total());
    writeln!(out, "local   {steps} steps, {memory} per rank; data has no blocking problem")?;
    let sizes = doctor::sizes(&planned, folder);
    Ok(Some((planned, sizes)))
}

/// A job that cannot start is not submitted, unless the user wants to wait for room.
fn refuse_misfit(decided: &Demanded, waits: bool) -> Result<(), CliError> {
    let Some(fit) = &decided.fit else { return Ok(()) };
    let smaller = |error: CliError, shape: Option<Shape>, when: &str| match shape {
        Some(shape) => error.hint(format!(
            "the largest that fits {when} is {} ranks as {shape}: `-j {shape}`",
            shape.ranks()
        )),
        None => error.hint(format!("nothing of it fits {when}")),
    };
    let nodes = decided.nodes.iter().map(|line| format!("\n  {line}")).collect::<String>();
    match fit {
        Fit::Now(_) => Ok(()),
        Fit::Later { .. } if waits => Ok(()),
        Fit::Later { placement, now } => {
            let what =
                format!("the job needs {}, but that is not free now:{nodes}", placement.shape);
            let error = CliError::new(ExitStatus::Infeasible, what);
            Err(smaller(error, *now, "now")
                .hint("--timeout 1h waits for room; --queue NAME waits in a queue of Kueue"))
        }
        Fit::Never { largest } => {
            let what = format!("{} ranks do not fit into this cluster:{nodes}", decided.ranks);
            Err(smaller(CliError::new(ExitStatus::Infeasible, what), *largest, "an empty cluster"))
        }
    }
}

/// How the user finds the job again.
fn come_back(cluster: &Cluster, name: &str) -> std::io::Result<()> {
    let there = format!("-n {} {name}", cluster.namespace);
    writeln!(
        anstream::stderr(),
        "\n{name} runs in the cluster\n\n  \
         qvl wait {there}      follow it again\n  \
         qvl status {there}    how far it is\n  \
         qvl logs -f {there}   what its ranks say\n  \
         qvl stop {there}      save a checkpoint and stop"
    )
}

/// Last words and exit code of a launch or a wait.
pub(crate) async fn finish(
    cluster: &Cluster,
    name: &str,
    end: End,
    show: &mut Show,
) -> Result<ExitStatus, CliError> {
    match end {
        End::Over(status, seen) => {
            let word = match (status, seen.is_over()) {
                (ExitStatus::Success, _) => "succeeded",
                (ExitStatus::JobCancelled, true) => "was cancelled",
                (ExitStatus::JobCancelled, false) => "is suspended",
                (_, _) => "failed",
            };
            let why = seen.reason();
            show.tell(seen.status.attempt, Told::Ended { status: word.to_owned(), why })?;
            if let (ExitStatus::Success, Some(result)) = (status, result(&seen)) {
                show.line(&format!("result  {result}, on the volume of the job"))?;
            }
            if status == ExitStatus::JobFailed {
                show.line(&format!(
                    "hint: `qvl explain {name}` tells why, `qvl logs --first-error {name}` shows it"
                ))?;
            }
            if status == ExitStatus::JobCancelled && !seen.is_over() {
                show.line(&format!("hint: `qvl resume {name}` goes on"))?;
            }
            Ok(status)
        }
        End::Deleted => {
            let told = Told::Ended { status: "was deleted".to_owned(), why: String::new() };
            show.tell(0, told)?;
            Ok(ExitStatus::JobCancelled)
        }
        End::Detached => {
            come_back(cluster, name)?;
            Ok(ExitStatus::JobRunning)
        }
        End::TimedOut => {
            show.line(&format!("{name} is not over yet"))?;
            Ok(ExitStatus::JobRunning)
        }
        End::NotStarted(seen) => {
            let why = seen.map_or(String::new(), |seen| seen.reason());
            super::act::delete(cluster, name).await?;
            let error = CliError::new(
                ExitStatus::Infeasible,
                format!("{name} did not start in time and was removed: {why}"),
            );
            Err(error.hint("`qvl top` shows who uses the GPUs"))
        }
    }
}

/// Folder of what was trained, as the pods saw it.
fn result(seen: &Seen) -> Option<String> {
    let spec: JobSpec = serde_json::from_value(seen.spec.clone()).ok()?;
    let kind = match &spec.method {
        Method::Lora(_) => "adapter",
        Method::Full(_) => "model",
    };
    Some(format!("{}/{kind}", pod_paths::resolved(&spec).output))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_and_times_are_read() {
        assert_eq!(shape("2x4"), Ok(Shape { nodes: 2, per_node: 4 }));
        for wrong in ["2", "x4", "0x4", "2x", "2x4x1", "99999x1"] {
            assert!(shape(wrong).unwrap_err().contains("2x4"), "{wrong}");
        }
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert!(duration("soon").unwrap_err().contains("10m"));
        assert!(duration("-5s").is_err());
    }
}
