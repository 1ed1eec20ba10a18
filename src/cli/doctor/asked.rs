//! What the doctor is asked: for which job, with how many ranks, and whose trainer.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};

use super::fleet::{self, Known};
use crate::{
    cli::{CliError, plan},
    data::lint,
    doctor::{DataVerdict, Demand, Sizes, Stack},
    facts::Place,
    job::{FineTuneJob, memory},
};

/// The job that the doctor judges for.
#[derive(Debug, Args)]
pub(super) struct JobArgs {
    /// Judge for this job; without it, for a machine alone.
    #[arg(long, value_name = "FILE")]
    pub(super) job: Option<PathBuf>,
    /// Number of ranks, instead of `spec.world.gpus`.
    #[arg(long, value_name = "N")]
    pub(super) gpus: Option<u32>,
    /// Whose trainer will run.
    #[arg(long, value_enum, default_value_t = StackArg::Own)]
    stack: StackArg,
}

impl JobArgs {
    pub(super) fn stack(&self) -> Stack {
        match self.stack {
            StackArg::Own => Stack::Own,
            StackArg::Official => Stack::Official,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StackArg {
    /// `qvl-train`.
    Own,
    /// The official finetune.py with DeepSpeed.
    Official,
}

/// What is asked for, the folders that the job uses, and the job and its plan.
pub(super) type Asked = (Demand, Vec<(Place, PathBuf)>, Known);

pub(super) fn demand(args: &JobArgs, cluster: bool) -> Result<Asked, CliError> {
    let stack = args.stack();
    let Some(path) = &args.job else {
        let folders = vec![(Place::Temporary, std::env::temp_dir())];
        let demand = Demand { stack, ranks: args.gpus, ..Demand::default() };
        return Ok((demand, folders, Known { job: None, planned: None }));
    };
    let folder = path.parent().filter(|path| !path.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let job = plan::read_job(path, args.gpus)?;
    if cluster && !folder.join(&job.spec.model.path).exists() {
        // Model and data lie on volumes of the cluster: their sizes are not known here.
        let demand = Demand { stack, ..Demand::of(&job, Sizes::default()) };
        return Ok((demand, Vec::new(), Known { job: Some(job), planned: None }));
    }
    let planned = plan::make(job, folder)?;
    let mut sizes = sizes(&planned, folder);
    if stack == Stack::Official {
        sizes.rank_memory_bytes = fleet::official(&planned).or(sizes.rank_memory_bytes);
    }
    let demand = Demand { stack, ..Demand::of(&planned.job, sizes) };
    let folders = folders(&planned.job, folder);
    let job = Some(planned.job.clone());
    Ok((demand, folders, Known { job, planned: Some(planned) }))
}

/// The folders and files that a job reads and writes.
pub(crate) fn folders(job: &FineTuneJob, folder: &Path) -> Vec<(Place, PathBuf)> {
    let spec = &job.spec;
    let mut folders = vec![
        (Place::Temporary, std::env::temp_dir()),
        (Place::Output, folder.join(&spec.output)),
        (Place::Model, folder.join(&spec.model.path)),
    ];
    let sets = spec.data.train.iter().map(|set| &set.path);
    let sets = sets.chain(spec.data.eval.iter().map(|set| &set.path));
    folders.extend(sets.map(|path| (Place::Data, folder.join(path))));
    folders
}

pub(crate) fn sizes(planned: &plan::Plan, folder: &Path) -> Sizes {
    let blocking = |finding: &&lint::Finding| finding.severity == lint::Severity::Block;
    let findings = &planned.data.findings;
    let blocks = findings.iter().filter(blocking).count();
    let worst = findings.iter().find(blocking).or(findings.first());
    Sizes {
        rank_memory_bytes: Some(planned.memory.total()),
        model_file_bytes: weight_bytes(&folder.join(&planned.job.spec.model.path)),
        trained_parameters: Some(memory::trained_parameters(&planned.job, &planned.shape)),
        data: Some(DataVerdict {
            blocking: blocks as u64,
            warnings: (findings.len() - blocks) as u64,
            worst: worst.map(|f| format!("{} `{}`: {}", f.file, f.sample, f.what)),
        }),
    }
}

/// Size of all weight files of a release; `None` if there is none to measure.
fn weight_bytes(base: &Path) -> Option<u64> {
    let entries = fs::read_dir(base).ok()?.flatten();
    let weights = entries.filter(|entry| {
        let name = entry.file_name();
        Path::new(&name).extension().is_some_and(|e| e == "safetensors" || e == "bin")
    });
    let sizes: Vec<u64> =
        weights.filter_map(|entry| fs::metadata(entry.path()).ok()).map(|m| m.len()).collect();
    (!sizes.is_empty()).then(|| sizes.iter().sum())
}
