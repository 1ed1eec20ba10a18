//! Supervises a run in this process, or in one of its own that outlives the terminal.

use std::{
    fs,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{CliError, home, launch::How, view::View};
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

/// How long a supervisor in the background may take to say that it lives.
const BACKGROUND_START: Duration = Duration::from_secs(20);
/// Log of a supervisor in the background, in the output folder.
const LOG: &str = "supervisor.log";

/// Runs the ranks of a job whose file lies in its output folder.
pub(super) fn start(
    job: &FineTuneJob,
    job_path: &Path,
    trainer: PathBuf,
    attempt: u32,
    how: &How,
) -> Result<ExitStatus, CliError> {
    let output = PathBuf::from(&job.spec.output);
    registry::remember(&home::jobs(), &job.metadata.name, &output)?;
    if how.detach {
        return detach(job, &trainer);
    }
    if how.background {
        // Leaves the terminal's session, so that closing the terminal does not reach it. It fails
        // only for the leader of a group, which a fresh child is not.
        let _session = nix::unistd::setsid();
    }
    let launch = Launch {
        job: job.clone(),
        job_path: job_path.to_owned(),
        output,
        trainer,
        threads: threads(job),
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
    );
    let ending = ending.map_err(|error| {
        let what = format!("failed to run the ranks of `{}`", job.metadata.name);
        CliError::of(ExitStatus::JobFailed, anyhow::Error::new(error).context(what))
            .hint(format!("the trainer is `{}`; is it executable?", launch.trainer.display()))
    })?;
    view.finish(&ending)?;
    Ok(status(ending.state.status))
}

fn status(status: Status) -> ExitStatus {
    match status {
        Status::Succeeded => ExitStatus::Success,
        Status::Stopped => ExitStatus::JobCancelled,
        Status::Failed | Status::Running => ExitStatus::JobFailed,
    }
}

/// CPU threads of a rank: as the job says, or an even share of the cores.
pub(super) fn threads(job: &FineTuneJob) -> u32 {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let shared = cores / job.spec.world.gpus.max(1) as usize;
    match job.spec.world.threads {
        0 => u32::try_from(shared.max(1)).unwrap_or(1),
        threads => threads,
    }
}

/// Counts Ctrl-C, SIGTERM and the end of the terminal: the first asks the ranks to save and stop,
/// the second kills them.
fn watch_signals(interrupts: &Arc<AtomicUsize>) -> Result<(), CliError> {
    let signals =
        [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP];
    let mut signals = signal_hook::iterator::Signals::new(signals)?;
    let interrupts = Arc::clone(interrupts);
    thread::spawn(move || {
        for _signal in &mut signals {
            interrupts.fetch_add(1, Ordering::Relaxed);
        }
    });
    Ok(())
}

/// Starts `qvl resume` in the background and waits until it says that it lives.
fn detach(job: &FineTuneJob, trainer: &Path) -> Result<ExitStatus, CliError> {
    let output = PathBuf::from(&job.spec.output);
    let log = fs::OpenOptions::new().create(true).append(true).open(output.join(LOG))?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg("resume")
        .arg(&output)
        .arg("--background")
        .arg("--gpus")
        .arg(job.spec.world.gpus.to_string())
        .arg("--trainer")
        .arg(trainer)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    wait_until_alive(&mut child, &output)?;
    let name = &job.metadata.name;
    writeln!(
        anstream::stdout(),
        "{name} runs in the background\n\n  \
         qvl status {name}    how far it is\n  \
         qvl logs -f {name}   what its ranks say\n  \
         qvl stop {name}      save a checkpoint and stop"
    )?;
    Ok(ExitStatus::JobRunning)
}

fn wait_until_alive(child: &mut Child, output: &Path) -> Result<(), CliError> {
    let until = Instant::now() + BACKGROUND_START;
    while Instant::now() < until {
        let ended = child.try_wait()?;
        let state = RunState::read(output)?;
        if state.supervisor == child.id() {
            return Ok(());
        }
        if ended.is_some() {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    let log = output.join(LOG);
    let text = fs::read_to_string(&log).unwrap_or_default();
    let said = text.lines().find(|line| line.starts_with("error:")).unwrap_or("it said nothing");
    Err(CliError::new(
        ExitStatus::JobFailed,
        format!("the supervisor in the background did not start: {said}"),
    )
    .hint(format!("its log is `{}`", log.display())))
}
