//! `qvl doctor parity JOB`: whether a job is the same on one rank and on several, by what it plans
//! and by the bits of a few steps.

mod judge;
mod runs;
mod show;
mod tensors;

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use clap::Args;

use self::{judge::Parity, runs::Places};
use super::Format;
use crate::{
    cli::{CliError, launch, plan},
    wire::ExitStatus,
};

#[derive(Debug, Args)]
pub(super) struct ParityArgs {
    /// Job file.
    job: PathBuf,
    /// Numbers of ranks; each is compared with the first.
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [1, 2])]
    gpus: Vec<u32>,
    /// Optimizer steps of each run.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    steps: u64,
    /// The trainer to start, instead of the `qvl-train` beside this program.
    #[arg(long, value_name = "FILE", env = "QVL_TRAIN_BIN")]
    trainer: Option<PathBuf>,
    /// Keep the runs in this folder, which must not exist.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Form of the answer.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

pub(super) fn run(args: &ParityArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    let ranks = ranks(&args.gpus)?;
    let folder = args.job.parent().filter(|path| !path.as_os_str().is_empty());
    let folder = launch::absolute(folder.unwrap_or(Path::new(".")))?;
    let plans = ranks.iter().map(|ranks| {
        let job = plan::read_job(&args.job, Some(*ranks))?;
        plan::make_to(job, &folder, plan::Depth::Lengths)
    });
    let plans = plans.collect::<Result<Vec<_>, _>>()?;
    for planned in &plans {
        launch::refuse_bad_data(planned)?;
    }
    let trainer = launch::trainer(args.trainer.as_deref())?;
    let places = Places::new(args.keep.as_deref())?;
    let planned = judge::planned(&plans);
    let mut seen = Vec::new();
    for made in &plans {
        let job =
            runs::shortened(launch::with_absolute_paths(made.job.clone(), &folder), args.steps);
        show::begin(made.job.spec.world.gpus, args.steps)?;
        seen.push(runs::run(job, &places, &trainer)?);
    }
    let mut compared = Vec::new();
    for other in seen.iter().skip(1) {
        compared.push(runs::compare(&seen[0], other)?);
    }
    let name = plans[0].job.metadata.name.clone();
    let parity = Parity { job: name, ranks, steps: args.steps, planned, compared };
    match args.format {
        Format::Json => {
            writeln!(out, "{}", serde_json::to_string_pretty(&parity).expect("plain data"))?;
        }
        Format::Text => show::text(&parity, &seen, out)?,
    }
    Ok(if parity.is_same() { ExitStatus::Success } else { ExitStatus::Blocked })
}

fn ranks(given: &[u32]) -> Result<Vec<u32>, CliError> {
    let mut ranks: Vec<u32> = Vec::new();
    for count in given {
        if !ranks.contains(count) {
            ranks.push(*count);
        }
    }
    if ranks.len() < 2 || ranks.contains(&0) {
        let what = "parity compares at least two different numbers of ranks";
        return Err(CliError::new(ExitStatus::Usage, what).hint("for example --gpus 1,4"));
    }
    Ok(ranks)
}
