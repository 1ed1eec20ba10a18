//! A few steps of a job on some number of ranks.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    judge::{self, Compared, Difference},
    tensors,
};
use crate::{
    cli::{CliError, supervise, view::count},
    job::{Checkpoint, Evaluation, FineTuneJob},
    launch::{
        attempt::Request,
        state::Status,
        supervisor::{self, Launch, Notice},
    },
    wire::{Event, ExitStatus, StepMetrics},
};

/// Files of a checkpoint, in the order in which a difference matters.
const FILES: [&str; 2] = ["weights.safetensors", "optimizer.safetensors"];

/// Where the runs are.
pub(super) struct Places {
    folder: PathBuf,
    /// Removed at the end, unless the user wants to keep it.
    _temporary: Option<tempfile::TempDir>,
}

impl Places {
    pub(super) fn new(keep: Option<&Path>) -> Result<Self, CliError> {
        let Some(keep) = keep else {
            let temporary = tempfile::Builder::new().prefix("qvl-parity-").tempdir()?;
            return Ok(Places { folder: temporary.path().to_owned(), _temporary: Some(temporary) });
        };
        fs::create_dir(keep).map_err(|error| {
            let what = format!("failed to make folder `{}`", keep.display());
            CliError::of(ExitStatus::Usage, anyhow::Error::new(error).context(what))
                .hint("--keep names a folder that does not exist yet, in one that does")
        })?;
        Ok(Places { folder: keep.canonicalize()?, _temporary: None })
    }
}

/// A run.
pub(super) struct Run {
    pub ranks: u32,
    pub steps: Vec<StepMetrics>,
    output: PathBuf,
}

/// The first steps of the first stage, each saved, without evaluation and without restarts.
pub(super) fn shortened(mut job: FineTuneJob, steps: u64) -> FineTuneJob {
    let spec = &mut job.spec;
    spec.stages.truncate(1);
    for stage in &mut spec.stages {
        (stage.epochs, stage.steps) = (None, Some(steps));
        if let Some(schedule) = &mut stage.schedule {
            schedule.warmup_steps = schedule.warmup_steps.map(|warmup| warmup.min(steps - 1));
        }
    }
    let warmup = &mut spec.schedule.warmup_steps;
    *warmup = warmup.map(|warmup| warmup.min(steps - 1));
    let keep = u32::try_from(steps).unwrap_or(u32::MAX);
    spec.checkpoint = Checkpoint { every_steps: 1, keep };
    spec.evaluation = Evaluation { every_steps: 0, at_start: false, ..spec.evaluation.clone() };
    spec.data.eval.clear();
    spec.evaluation.best_by = None;
    spec.failure.max_restarts = 0;
    job
}

/// Runs it to its end.
pub(super) fn run(mut job: FineTuneJob, places: &Places, trainer: &Path) -> Result<Run, CliError> {
    let ranks = job.spec.world.gpus;
    let output = places.folder.join(format!("ranks-{ranks}"));
    fs::create_dir(&output)?;
    job.spec.output = output.display().to_string();
    let job_path = output.join("job.yaml");
    let text =
        serde_saphyr::to_string(&job).map_err(|error| CliError::of(ExitStatus::Internal, error))?;
    fs::write(&job_path, text)?;
    let threads = supervise::threads(&job);
    let launch =
        Launch { job, job_path, output: output.clone(), trainer: trainer.to_owned(), threads };
    let mut steps = Vec::new();
    let ending = supervisor::supervise(
        &launch,
        1,
        |notice| {
            if let Notice::Record(record) = notice
                && record.rank == 0
                && let Event::Step(step) = record.event
            {
                steps.push(step);
            }
        },
        || Request::Nothing,
    )?;
    if ending.state.status != Status::Succeeded {
        let why = ending.state.why.unwrap_or_default();
        let incident = ending.state.incidents.last().map(|incident| incident.what.clone());
        let what =
            format!("the run on {} failed: {}", count(ranks, "rank"), incident.unwrap_or(why));
        return Err(CliError::new(ExitStatus::Unknown, what).hint(
            "--keep DIR keeps its logs; `qvl doctor --job` and `qvl launch --local` tell more",
        ));
    }
    Ok(Run { ranks, steps, output })
}

/// Step by step: the numbers, then what the step made of weights and optimizer.
pub(super) fn compare(one: &Run, other: &Run) -> Result<Compared, CliError> {
    let mut compared =
        Compared { ranks: [one.ranks, other.ranks], numbers: 0, tensors: 0, difference: None };
    for (a, b) in one.steps.iter().zip(&other.steps) {
        let (numbers, difference) = judge::numbers(a, b);
        compared.numbers += numbers;
        compared.difference = difference;
        if compared.difference.is_none() {
            compared.difference = saved(one, other, a.step, &mut compared.tensors)?;
        }
        if compared.difference.is_some() {
            break;
        }
    }
    Ok(compared)
}

fn saved(
    one: &Run,
    other: &Run,
    step: u64,
    count: &mut usize,
) -> Result<Option<Difference>, CliError> {
    for file in FILES {
        let path = |run: &Run| run.output.join(format!("checkpoints/step-{step:08}")).join(file);
        let (same, different) = tensors::compare(&path(one), &path(other))?;
        *count += same;
        if let Some((tensor, values)) = different {
            return Ok(Some(judge::tensor(step, format!("{file}: {tensor}"), values)));
        }
    }
    Ok(None)
}
