//! `qvl launch` and `qvl resume`.

use std::{
    fs,
    io::{IsTerminal, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use clap::{Args, ValueEnum};

use super::{
    CliError,
    doctor::{self, Gate},
    home, jobs, plan, report,
    view::View,
};
use crate::{
    job::FineTuneJob,
    launch::{
        attempt::Request,
        registry,
        state::{RunState, Status},
        supervisor::{self, Launch},
    },
    wire::ExitStatus,
};

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// A progress bar on a terminal, a line for each change otherwise.
    Text,
    /// The event stream, one JSON object per line.
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
    how: How,
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
}

#[derive(Debug, Args)]
struct How {
    /// How progress is shown.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Start in the background and return at once.
    #[arg(long)]
    detach: bool,
    /// The trainer to start, instead of the `qvl-train` beside this program.
    #[arg(long, value_name = "FILE", env = "QVL_TRAIN_BIN")]
    trainer: Option<PathBuf>,
}

pub(super) fn run(args: &LaunchArgs) -> Result<ExitStatus, CliError> {
    let job = plan::read_job(&args.job, args.gpus)?;
    if !args.local {
        return Err(CliError::new(
            ExitStatus::Unreachable,
            "this version launches on this machine only: the operator for clusters is not part of it yet",
        )
        .hint("add --local to run the ranks as processes on this machine"));
    }
    let trainer = trainer(args.how.trainer.as_deref())?;
    let folder = args.job.parent().filter(|path| !path.as_os_str().is_empty());
    let folder = absolute(folder.unwrap_or(Path::new(".")))?;
    let planned = plan::make(job.clone(), &folder)?;
    if planned.data.blocks() {
        let finding =
            planned.data.findings.iter().find(|f| f.severity == crate::data::lint::Severity::Block);
        let what =
            finding.map_or_else(String::new, |f| format!("{} `{}`: {}", f.file, f.sample, f.what));
        return Err(CliError::new(
            ExitStatus::Blocked,
            format!("the training data has problems: {what}"),
        )
        .hint("`qvl data lint` shows all of them"));
    }
    // The event stream has stdout to itself.
    let mut out = anstream::stderr();
    let gate = doctor::gate(&planned, &folder, &trainer, &args.allow_unknown, &mut out)?;
    let (facts, verdict) = match gate {
        Gate::Open { facts, verdict } => (facts, verdict),
        Gate::Closed(refused) => return Ok(refused),
    };
    let job = with_absolute_paths(job, &folder);
    let output = PathBuf::from(&job.spec.output);
    prepare_output(&output, args.overwrite)?;
    if args.how.output == Output::Text {
        plan::print(&planned, &mut anstream::stdout())?;
    }
    let saved = [
        (report::FACTS_FILE, facts),
        (report::DOCTOR_FILE, verdict),
        (report::PLAN_FILE, plan::json(&planned)),
    ];
    for (name, text) in saved {
        fs::write(output.join(name), text)?;
    }
    let job_path = output.join("job.yaml");
    let text =
        serde_saphyr::to_string(&job).map_err(|error| CliError::of(ExitStatus::Internal, error))?;
    fs::write(&job_path, text)?;
    registry::remember(&home::jobs(), &job.metadata.name, &output)?;
    start(&job, &job_path, trainer, 1, &args.how)
}

pub(super) fn resume(args: &ResumeArgs) -> Result<ExitStatus, CliError> {
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
    start(&job, &job_path, trainer(args.how.trainer.as_deref())?, run.attempt + 1, &args.how)
}

/// Supervises the run in this process, or in one of its own.
fn start(
    job: &FineTuneJob,
    job_path: &Path,
    trainer: PathBuf,
    attempt: u32,
    how: &How,
) -> Result<ExitStatus, CliError> {
    if how.detach {
        return detach(job, attempt);
    }
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let shared = cores / job.spec.world.gpus.max(1) as usize;
    let threads = match job.spec.world.threads {
        0 => u32::try_from(shared.max(1)).unwrap_or(1),
        threads => threads,
    };
    let launch = Launch {
        job: job.clone(),
        job_path: job_path.to_owned(),
        output: PathBuf::from(&job.spec.output),
        trainer,
        threads,
    };
    let interrupts = Arc::new(AtomicUsize::new(0));
    watch_signals(&interrupts)?;
    let mut view = View::new(how.output, std::io::stderr().is_terminal(), job);
    let ending = supervisor::supervise(
        &launch,
        attempt,
        |notice| view.show(&notice),
        || match interrupts.load(Ordering::Relaxed) {
            0 => Request::Nothing,
            1 => Request::Stop,
            _ => Request::Kill,
        },
    )?;
    view.finish(&ending)?;
    Ok(match ending.state.status {
        Status::Succeeded => ExitStatus::Success,
        Status::Stopped => ExitStatus::JobCancelled,
        Status::Failed | Status::Running => ExitStatus::JobFailed,
    })
}

/// Counts Ctrl-C and SIGTERM: the first asks the ranks to save and stop, the second kills them.
fn watch_signals(interrupts: &Arc<AtomicUsize>) -> Result<(), CliError> {
    let signals = [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM];
    let mut signals = signal_hook::iterator::Signals::new(signals)?;
    let interrupts = Arc::clone(interrupts);
    thread::spawn(move || {
        for _signal in &mut signals {
            interrupts.fetch_add(1, Ordering::Relaxed);
        }
    });
    Ok(())
}

/// Starts `qvl resume` as a process that outlives this terminal.
fn detach(job: &FineTuneJob, attempt: u32) -> Result<ExitStatus, CliError> {
    let output = PathBuf::from(&job.spec.output);
    let log = fs::File::create(output.join("supervisor.log"))?;
    if attempt == 1 {
        initial_state(job, &output).write()?;
    }
    let program = std::env::current_exe()?;
    Command::new(program)
        .arg("resume")
        .arg(&output)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()?;
    let name = &job.metadata.name;
    writeln!(
        anstream::stdout(),
        "{name} runs in the background; `qvl status {name}`, `qvl logs -f {name}`, `qvl stop {name}`"
    )?;
    Ok(ExitStatus::JobRunning)
}

fn initial_state(job: &FineTuneJob, output: &Path) -> RunState {
    RunState {
        name: job.metadata.name.clone(),
        output: output.to_owned(),
        status: Status::Stopped,
        supervisor: 0,
        supervisor_start: 0,
        started_ms: supervisor::now_ms(),
        updated_ms: supervisor::now_ms(),
        attempt: 0,
        ranks: Vec::new(),
        step: 0,
        total_steps: 0,
        loss: None,
        checkpoint: None,
        result: None,
        incidents: Vec::new(),
    }
}

/// The trainer beside this program.
fn trainer(given: Option<&Path>) -> Result<PathBuf, CliError> {
    let beside = std::env::current_exe()?.with_file_name("qvl-train");
    let path = given.map_or(beside, Path::to_owned);
    if path.exists() {
        return Ok(path);
    }
    Err(CliError::new(ExitStatus::Usage, format!("no trainer at `{}`", path.display()))
        .hint("build it with `cargo build --release --bin qvl-train`, or name it with --trainer"))
}

fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    path.canonicalize().map_err(|error| {
        let what = format!("failed to open folder `{}`", path.display());
        CliError::of(ExitStatus::Usage, anyhow::Error::new(error).context(what))
    })
}

/// The job as the ranks read it: its copy lies in the output folder, so paths must not be
/// relative to the original any more.
fn with_absolute_paths(mut job: FineTuneJob, folder: &Path) -> FineTuneJob {
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
