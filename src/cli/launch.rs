//! `qvl launch` and `qvl resume`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};

use super::{
    CliError, cluster,
    doctor::{self, Gate},
    jobs, plan, report, supervise,
};
use crate::{
    data::lint::{Finding, Severity},
    job::FineTuneJob,
    launch::{
        state::{RunState, Status},
        supervisor,
    },
    wire::ExitStatus,
};

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// A progress bar on a terminal, a line for each change otherwise.
    Text,
    /// The event stream, one JSON object per line; `qvl schema events` describes it.
    Json,
}

#[derive(Debug, Args)]
pub struct LaunchArgs {
    /// Job file.
    job: PathBuf,
    /// Run the ranks as processes on this machine.
    #[arg(long)]
    local: bool,
    /// Number of ranks, instead of `spec.world.gpus`. On a CPU job each is a process.
    #[arg(long)]
    gpus: Option<u32>,
    /// Remove what an earlier run left in the output folder.
    #[arg(long)]
    overwrite: bool,
    /// Start although this check of the doctor cannot be evaluated. May be given several times.
    #[arg(long, value_name = "ID")]
    allow_unknown: Vec<String>,
    #[command(flatten)]
    verdict: doctor::VerdictArgs,
    #[command(flatten)]
    how: How,
    #[command(flatten, next_help_heading = "In a cluster")]
    cluster: cluster::launch::ClusterLaunch,
}

#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// Name of the job, or its output folder.
    name: String,
    /// Number of ranks from now on; the result does not depend on it.
    #[arg(long)]
    gpus: Option<u32>,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    at: cluster::At,
}

#[derive(Debug, Args)]
pub(super) struct How {
    /// How progress is shown.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// Start in the background and return at once.
    #[arg(long)]
    pub detach: bool,
    /// This process is the supervisor that `--detach` started.
    #[arg(long, hide = true)]
    pub background: bool,
    /// The trainer to start, instead of the `qvl-train` beside this program.
    #[arg(long, value_name = "FILE", env = "QVL_TRAIN_BIN")]
    trainer: Option<PathBuf>,
}

pub(super) fn run(args: &LaunchArgs) -> Result<ExitStatus, CliError> {
    if !args.local {
        return in_cluster(args);
    }
    args.cluster.refuse_local()?;
    let job = plan::read_job(&args.job, args.gpus)?;
    let permission = args.verdict.read(&job)?;
    let trainer = trainer(args.how.trainer.as_deref())?;
    let folder = args.job.parent().filter(|path| !path.as_os_str().is_empty());
    let folder = absolute(folder.unwrap_or(Path::new(".")))?;
    let planned = plan::make(job.clone(), &folder)?;
    refuse_bad_data(&planned)?;
    if args.how.output == Output::Text {
        plan::print(&planned, &mut anstream::stdout())?;
    }
    // The event stream has stdout to itself.
    let mut out = anstream::stderr();
    let gate = doctor::gate(
        &job,
        &planned,
        &folder,
        &trainer,
        &args.allow_unknown,
        permission.as_ref(),
        &mut out,
    )?;
    let (facts, judged, verdict) = match gate {
        Gate::Open { facts, report, verdict } => (facts, report, verdict),
        Gate::Closed(refused) => return Ok(refused),
    };
    let job = with_absolute_paths(job, &folder);
    let output = PathBuf::from(&job.spec.output);
    prepare_output(&output, args.overwrite)?;
    let saved = [
        (report::FACTS_FILE, facts),
        (report::DOCTOR_FILE, judged),
        (report::PLAN_FILE, plan::json(&planned)),
    ];
    for (name, text) in saved {
        fs::write(output.join(name), text)?;
    }
    let job_path = output.join("job.yaml");
    let text =
        serde_saphyr::to_string(&job).map_err(|error| CliError::of(ExitStatus::Internal, error))?;
    fs::write(&job_path, text)?;
    // The supervisor goes on from this state, here or in the background.
    let fresh = RunState::new(&job.metadata.name, &output, supervisor::now_ms());
    RunState { doctor: Some(*verdict), ..fresh }.write()?;
    supervise::start(&job, &job_path, trainer, 1, &args.how)
}

fn in_cluster(args: &LaunchArgs) -> Result<ExitStatus, CliError> {
    if args.overwrite {
        return Err(CliError::new(
            ExitStatus::Usage,
            "--overwrite is for runs on this machine: the output of a job lies on a volume",
        )
        .hint("another spec.output keeps what is there"));
    }
    cluster::block_on(cluster::launch::launch(cluster::launch::Order {
        job: &args.job,
        gpus: args.gpus,
        output: args.how.output,
        detach: args.how.detach,
        allow_unknown: &args.allow_unknown,
        verdict: &args.verdict,
        options: &args.cluster,
    }))
}

pub(super) fn resume(args: &ResumeArgs) -> Result<ExitStatus, CliError> {
    if args.at.is_cluster(&args.name)? {
        if args.gpus.is_some() {
            return Err(CliError::new(
                ExitStatus::Usage,
                "the number of ranks of a job in a cluster cannot change",
            )
            .hint("`qvl launch --gpus N` with another metadata.name and the same spec.output"));
        }
        let (output, detach) = (args.how.output, args.how.detach);
        return cluster::commands::resume(&args.name, &args.at, output, detach);
    }
    let run = jobs::find(&args.name)?;
    if run.is_alive() {
        return Err(CliError::new(ExitStatus::Usage, format!("`{}` runs already", run.name))
            .hint(format!("`qvl status {}` shows it", run.name)));
    }
    if run.status == Status::Succeeded {
        return Err(CliError::new(ExitStatus::Usage, format!("`{}` has succeeded", run.name))
            .hint("start another job from its result with spec.model.adapter"));
    }
    let job_path = run.output.join("job.yaml");
    let job = plan::read_job(&job_path, args.gpus)?;
    let trainer = trainer(args.how.trainer.as_deref())?;
    jobs::end_orphans(&run, &mut anstream::stderr())?;
    supervise::start(&job, &job_path, trainer, run.attempt + 1, &args.how)
}

/// The first problem of the data that stops a launch, and how many there are.
pub(super) fn refuse_bad_data(planned: &plan::Plan) -> Result<(), CliError> {
    let blocks = |finding: &&Finding| finding.severity == Severity::Block;
    let Some(first) = planned.data.findings.iter().find(blocks) else { return Ok(()) };
    let sample =
        if first.sample.is_empty() { String::new() } else { format!(" sample `{}`", first.sample) };
    let count = planned.data.findings.iter().filter(blocks).count();
    let error = CliError::new(
        ExitStatus::Blocked,
        format!("`{}`{sample}: {} ({})", first.file, first.what, first.rule),
    );
    let error = error.hint(first.hint);
    Err(match count {
        1 => error,
        _ => error.hint(format!("there are {count} such problems: `qvl data lint` shows all")),
    })
}

/// The trainer beside this program.
pub(super) fn trainer(given: Option<&Path>) -> Result<PathBuf, CliError> {
    let beside = std::env::current_exe()?.with_file_name("qvl-train");
    let path = given.map_or(beside, Path::to_owned);
    if path.exists() {
        return Ok(path);
    }
    Err(CliError::new(ExitStatus::Usage, format!("no trainer at `{}`", path.display()))
        .hint("build it with `cargo build --release --bin qvl-train`, or name it with --trainer"))
}

pub(super) fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    path.canonicalize().map_err(|error| {
        let what = format!("failed to open folder `{}`", path.display());
        CliError::of(ExitStatus::Usage, anyhow::Error::new(error).context(what))
    })
}

/// The job as the ranks read it: its copy lies in the output folder, so paths must not be
/// relative to the original any more.
pub(super) fn with_absolute_paths(mut job: FineTuneJob, folder: &Path) -> FineTuneJob {
    let fix = |path: &mut String| *path = tidy(&folder.join(&*path)).display().to_string();
    fix(&mut job.spec.model.path);
    job.spec.model.adapter.as_mut().map(fix);
    job.spec.data.train.iter_mut().for_each(|set| fix(&mut set.path));
    job.spec.data.eval.iter_mut().for_each(|set| fix(&mut set.path));
    fix(&mut job.spec.output);
    job
}

/// Resolves `.` and `..` by name: the path may not exist yet.
fn tidy(path: &Path) -> PathBuf {
    use std::path::Component;
    let mut tidy = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                tidy.pop();
            }
            Component::CurDir => {}
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => {
                tidy.push(component);
            }
        }
    }
    tidy
}

/// The output folder must be new, or hold a run that may be removed.
fn prepare_output(output: &Path, overwrite: bool) -> Result<(), CliError> {
    if let Ok(run) = RunState::read(output) {
        if run.is_alive() {
            return Err(CliError::new(
                ExitStatus::Usage,
                format!("`{}` runs in `{}`", run.name, output.display()),
            )
            .hint(format!("`qvl stop {}` stops it", run.name)));
        }
        if !overwrite {
            return Err(CliError::new(
                ExitStatus::Usage,
                format!(
                    "`{}` holds the run `{}` ({})",
                    output.display(),
                    run.name,
                    jobs::word(&run)
                ),
            )
            .hint(format!("`qvl resume {}` goes on with it", run.name))
            .hint("--overwrite removes it; another spec.output keeps both"));
        }
        fs::remove_dir_all(output)?;
    }
    fs::create_dir_all(output).map_err(|error| {
        let what = format!("failed to create output folder `{}`", output.display());
        CliError::of(ExitStatus::Usage, anyhow::Error::new(error).context(what))
    })
}
