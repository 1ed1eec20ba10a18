//! Whether runs on different numbers of ranks gave the same bits.

use std::{
    fs,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{CliError, jobs};
use crate::{
    job,
    telemetry::{
        metrics,
        report::{Proof, ProofRun},
    },
    wire::{Event, ExitStatus},
};

/// Compares runs with each other, step by step and file by file.
pub(super) fn compare(names: &[String]) -> Result<Option<Proof>, CliError> {
    if names.is_empty() {
        return Ok(None);
    }
    if names.len() < 2 {
        return Err(CliError::new(
            ExitStatus::Usage,
            "--proof compares runs, but only one is given",
        )
        .hint("give it once for each run: --proof one-rank --proof two-ranks"));
    }
    let mut runs = Vec::new();
    let mut losses: Vec<Vec<f64>> = Vec::new();
    for name in names {
        let (run, steps) = read(name)?;
        runs.push(run);
        losses.push(steps);
    }
    let differs_at = losses.iter().skip(1).filter_map(|other| first_difference(&losses[0], other));
    let differs_at = differs_at.min();
    let same_files = runs.iter().all(|run| run.sha256 == runs[0].sha256);
    Ok(Some(Proof { runs, equal: same_files && differs_at.is_none(), differs_at }))
}

/// The first step, from 1, whose losses are not the same bits.
fn first_difference(one: &[f64], other: &[f64]) -> Option<u64> {
    let differs = one.iter().zip(other).position(|(a, b)| a.to_bits() != b.to_bits());
    let shorter = (one.len() != other.len()).then(|| one.len().min(other.len()));
    differs.or(shorter).map(|i| i as u64 + 1)
}

fn read(name: &str) -> Result<(ProofRun, Vec<f64>), CliError> {
    let run = jobs::find(name)?;
    let records = metrics::read(&run.output)?;
    let losses: Vec<f64> = records
        .iter()
        .filter_map(|r| if let Event::Step(step) = &r.event { Some(step.loss) } else { None })
        .collect();
    let text = fs::read_to_string(run.output.join("job.yaml"))?;
    let job =
        job::parse(&text, "job.yaml").map_err(|error| CliError::of(ExitStatus::Usage, error))?;
    let proof = ProofRun {
        name: run.name.clone(),
        ranks: job.spec.world.gpus,
        steps: losses.len() as u64,
        last_loss: losses.last().map_or("–".to_owned(), ToString::to_string),
        sha256: digest(&run.output, name)?,
    };
    Ok((proof, losses))
}

/// Digest of all weight files of the result.
fn digest(output: &Path, name: &str) -> Result<String, CliError> {
    let folders = [output.join("adapter"), output.join("model")];
    let mut files: Vec<PathBuf> = Vec::new();
    for folder in folders.iter().filter(|folder| folder.is_dir()) {
        for entry in fs::read_dir(folder)? {
            files.push(entry?.path());
        }
    }
    files.retain(|path| path.extension().is_some_and(|ext| ext == "safetensors"));
    files.sort();
    if files.is_empty() {
        return Err(CliError::new(ExitStatus::Usage, format!("run `{name}` has no result yet"))
            .hint("a proof compares runs that have succeeded"));
    }
    let mut hash = Sha256::new();
    for path in &files {
        hash.update(fs::read(path)?);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_differing_step_is_found_and_so_is_a_missing_one() {
        assert_eq!(first_difference(&[1.0, 2.0], &[1.0, 2.0]), None);
        assert_eq!(first_difference(&[1.0, 2.0], &[1.0, 2.0 + f64::EPSILON * 2.0]), Some(2));
        assert_eq!(first_difference(&[1.0, 2.0], &[1.0]), Some(2));
        assert_eq!(first_difference(&[0.0], &[-0.0]), Some(1));
    }
}
