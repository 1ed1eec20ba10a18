//! `qvl report`: the story of a run in one HTML file.

mod machine;
mod proof;
mod sets;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use clap::Args;

use super::{CliError, jobs};
use crate::{
    job::{self, Compute, FineTuneJob},
    launch::state::{RunState, Status},
    telemetry::{
        metrics::{self, AttemptSteps},
        report::{self, ReportInput, Row, Tone},
        whole,
    },
    wire::{ExitStatus, Record},
};

/// What `qvl launch` leaves in the output folder for the report.
pub(super) const DOCTOR_FILE: &str = "doctor.json";
pub(super) const FACTS_FILE: &str = "facts.json";
pub(super) const PLAN_FILE: &str = "plan.json";

#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Name of the job, or its output folder.
    name: String,
    /// File to write; `report.html` in the output folder if not given.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Answers of another model to an evaluation set, as `qvl-train eval --answers` writes them,
    /// to stand before the run's own. May be given several times.
    #[arg(long, value_name = "SET=FILE", value_parser = sets::baseline)]
    baseline: Vec<sets::Baseline>,
    /// A run of the same job on another number of ranks, by name or folder. Give it twice or more:
    /// the report tells whether their losses and results are equal to the bit.
    #[arg(long, value_name = "RUN")]
    proof: Vec<String>,
}

pub(super) fn run(args: &ReportArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    let run = jobs::find(&args.name)?;
    let input = gather(&run, args)?;
    let path = args.out.clone().unwrap_or_else(|| run.output.join("report.html"));
    whole::write(&path, report::html(&input).as_bytes()).map_err(|error| {
        let what = format!("failed to write report `{}`", path.display());
        CliError::of(ExitStatus::Usage, anyhow::Error::new(error).context(what))
            .hint("its folder must exist and be writable")
    })?;
    report::table(&input.sets, out)?;
    writeln!(out, "\nwrote {}", path.display())?;
    Ok(ExitStatus::Success)
}

fn gather(run: &RunState, args: &ReportArgs) -> Result<ReportInput, CliError> {
    let all = metrics::read_all(&run.output).map_err(|error| {
        let what = format!("failed to read the metrics of `{}`", run.name);
        CliError::of(ExitStatus::JobFailed, anyhow::Error::new(error).context(what))
            .hint("the run has not begun to train; `qvl status` and `qvl logs` say why")
    })?;
    let attempts = metrics::attempts(&all);
    let records = metrics::latest(all);
    let job_text = fs::read_to_string(run.output.join("job.yaml"))?;
    let parsed = job::parse(&job_text, "job.yaml").ok();
    let (plan, memory) = machine::plan(&run.output);
    Ok(ReportInput {
        name: run.name.clone(),
        status: jobs::word(run).to_owned(),
        tone: match run.status {
            Status::Succeeded => Tone::Good,
            Status::Running | Status::Stopped => Tone::Warn,
            Status::Failed => Tone::Bad,
        },
        run: numbers(run, parsed.as_ref(), &records),
        machine: machine::rows(&run.output),
        doctor: machine::doctor(&run.output),
        plan,
        memory,
        sets: sets::measured(&run.output, &records, &args.baseline)?,
        story: story(run, &attempts),
        proof: proof::compare(&args.proof)?,
        pictures: sets::pictures(&run.output)?,
        files: files(&run.output),
        limits: limits(parsed.as_ref(), &run.output),
        records,
        job: job_text,
    })
}

fn numbers(run: &RunState, job: Option<&FineTuneJob>, records: &[Record]) -> Vec<Row> {
    let seconds = run.updated_ms.saturating_sub(run.started_ms) as f64 / 1000.0;
    let mut rows = vec![
        Row::new("steps", format!("{} of {}", run.step, run.total_steps)),
        Row::new("attempts", run.attempt.to_string()),
        Row::new("time", format!("{seconds:.0} s, evaluations and restarts included")),
    ];
    if let Some(job) = job {
        let world = job.spec.world;
        let on = match world.compute {
            Compute::Cpu => "CPU processes",
            Compute::Cuda => "GPUs",
            Compute::Auto => "GPUs if there are any, else CPU processes",
        };
        rows.push(Row::new("ranks", format!("{} ({on})", world.gpus)));
        rows.push(Row::new("batch", format!("{} samples per step", job.spec.batch.global)));
        rows.push(Row::new("seed", job.spec.seed.to_string()));
    }
    if let Some(rate) = machine::samples_per_second(records) {
        rows.push(Row::new("speed", format!("{rate:.0} samples/s (median step)")));
    }
    if let Some(loss) = run.loss {
        rows.push(Row::new("last loss", format!("{loss:.4}")));
    }
    rows
}

/// Attempts and incidents in the order of time.
fn story(run: &RunState, attempts: &[AttemptSteps]) -> Vec<String> {
    let mut story = Vec::new();
    let mut reached = 0_u64;
    for attempt in attempts {
        let AttemptSteps { attempt: number, first, last, began_ms, ended_ms } = attempt;
        let seconds = ended_ms.saturating_sub(*began_ms) as f64 / 1000.0;
        let again = (reached + 1).saturating_sub(*first);
        let again = if 0 < again && 0 < reached {
            format!(
                "; it began at the checkpoint of step {}, so {again} steps were done again",
                first - 1
            )
        } else {
            String::new()
        };
        story.push(format!(
            "Attempt {number} did steps {first} to {last} in {seconds:.0} s{again}."
        ));
        for incident in run.incidents.iter().filter(|incident| incident.attempt == *number) {
            let then = if incident.restarted {
                "All ranks were restarted from the newest checkpoint."
            } else {
                "The run was given up."
            };
            story.push(format!(
                "At step {}, rank {} {}. {then}",
                incident.step, incident.culprit, incident.what
            ));
        }
        reached = *last;
    }
    story.push(format!("The run {} at step {} of {}.", ending(run), run.step, run.total_steps));
    story
}

fn ending(run: &RunState) -> &'static str {
    match run.status {
        Status::Succeeded => "succeeded",
        Status::Failed => "failed",
        Status::Stopped => "was stopped on request",
        Status::Running if run.is_alive() => "still goes on",
        Status::Running => "lost its supervisor",
    }
}

/// What lies in the output folder.
fn files(output: &Path) -> Vec<Row> {
    let known = [
        ("adapter", "the result: an adapter that PEFT loads"),
        ("model", "the result: a whole model"),
        ("checkpoints", "complete states for a resume"),
        ("metrics.jsonl", "every step and evaluation"),
        ("tensorboard", "the same for TensorBoard"),
        ("loss.svg", "the curves"),
        ("eval", "every answer to the evaluation sets"),
        ("logs", "logs of all ranks"),
        ("job.yaml", "the job with absolute paths"),
        ("state.json", "status of the run"),
    ];
    let there = known.iter().filter(|(name, _what)| output.join(name).exists());
    there.map(|(name, what)| Row::new(output.join(name).display().to_string(), *what)).collect()
}

fn limits(job: Option<&FineTuneJob>, output: &Path) -> Vec<String> {
    let mut limits = Vec::new();
    let cpu = job.is_some_and(|job| job.spec.world.compute == Compute::Cpu);
    if cpu || machine::has_no_gpu(output) {
        limits.push(
            "No GPU took part: the ranks were processes on CPUs of one machine. Speed on GPUs, NCCL and \
             networks between machines are not measured here."
                .to_owned(),
        );
    }
    limits.push(
        "Intervals tell how much the choice of questions matters. They say nothing about other seeds."
            .to_owned(),
    );
    limits.push(
        "Numbers belong to this base model and these sets; another model has to be measured itself."
            .to_owned(),
    );
    limits
}
