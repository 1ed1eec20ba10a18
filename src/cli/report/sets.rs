//! Evaluation sets of a run: measurements, gains and pictures.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::CliError;
use crate::{
    telemetry::{
        answers::{self, Answer},
        contact_sheet,
        report::{Measured, Picture, SetReport},
    },
    wire::{EvalMetrics, Event, ExitStatus, Record},
};

/// Answers of another model to an evaluation set.
#[derive(Clone, Debug)]
pub(super) struct Baseline {
    set: String,
    path: PathBuf,
}

/// Reads `SET=FILE`.
pub(super) fn baseline(text: &str) -> Result<Baseline, String> {
    let (set, path) = text.split_once('=').ok_or("expected SET=FILE")?;
    Ok(Baseline { set: set.to_owned(), path: PathBuf::from(path) })
}

/// First and last measurement of each set, and the gain between them.
pub(super) fn measured(
    output: &Path,
    records: &[Record],
    baselines: &[Baseline],
) -> Result<Vec<SetReport>, CliError> {
    let mut sets: BTreeMap<&str, Vec<(u64, &EvalMetrics)>> = BTreeMap::new();
    for record in records {
        if let Event::Evaluated { step, set, metrics } = &record.event {
            sets.entry(set).or_default().push((*step, metrics));
        }
    }
    if let Some(unknown) = baselines.iter().find(|b| !sets.contains_key(b.set.as_str())) {
        let known: Vec<&str> = sets.keys().copied().collect();
        let what = format!("the run measured no evaluation set `{}`", unknown.set);
        return Err(
            CliError::new(ExitStatus::Usage, what).hint(format!("it has {}", known.join(", ")))
        );
    }
    let mut reports = Vec::new();
    for (set, points) in sets {
        let baseline = baselines.iter().find(|baseline| baseline.set == set);
        let baseline = baseline.map(|b| read(&b.path)).transpose()?;
        reports.push(report(output, set, &points, baseline.as_deref())?);
    }
    Ok(reports)
}

fn report(
    output: &Path,
    set: &str,
    points: &[(u64, &EvalMetrics)],
    baseline: Option<&[Answer]>,
) -> Result<SetReport, CliError> {
    let (first, last) = (points[0], points[points.len() - 1]);
    let mut measured = Vec::new();
    if let Some(answers) = baseline {
        measured
            .push(Measured { label: "baseline".to_owned(), metrics: answers::metrics(answers) });
    }
    let chosen = if first.0 == last.0 { vec![last] } else { vec![first, last] };
    for (step, metrics) in chosen {
        let label =
            if step == 0 { "before training".to_owned() } else { format!("after step {step}") };
        measured.push(Measured { label, metrics: metrics.clone() });
    }
    let after = answers_of(output, set, last.0)?;
    let before = match baseline {
        Some(answers) => Some(answers.to_vec()),
        None if first.0 == last.0 => None,
        None => answers_of(output, set, first.0)?,
    };
    let gains = before.zip(after).and_then(|(before, after)| answers::gains(&before, &after));
    Ok(SetReport { name: set.to_owned(), measured, gains: gains.unwrap_or_default() })
}

fn read(path: &Path) -> Result<Vec<Answer>, CliError> {
    answers::read(path).map_err(|error| {
        CliError::of(ExitStatus::Usage, error)
            .hint("`qvl-train eval --answers FILE` writes such a file")
    })
}

/// The answers that the trainer wrote; `None` if the file is gone.
fn answers_of(output: &Path, set: &str, step: u64) -> Result<Option<Vec<Answer>>, CliError> {
    let path = output.join(format!("eval/{set}-step-{step:06}.jsonl"));
    if path.exists() { read(&path).map(Some) } else { Ok(None) }
}

/// A contact sheet of the last answers of each set.
pub(super) fn pictures(output: &Path) -> Result<Vec<Picture>, CliError> {
    let mut pictures = Vec::new();
    for (set, path) in last_files(&output.join("eval")) {
        let items = answers::sheet_items(&read(&path)?);
        if items.is_empty() {
            continue;
        }
        let png = tempfile::Builder::new().suffix(".png").tempfile()?;
        // Pictures that were moved away are no reason to have no report.
        let Ok(()) = contact_sheet::write(png.path(), &items) else { continue };
        let boxes = items.iter().any(|item| item.expected.is_some());
        let what =
            if boxes { "Blue: true box. Orange: the model's box." } else { "The model's words." };
        let shown = items.len().min(contact_sheet::MOST);
        pictures.push(Picture {
            title: format!("Answers: {set}"),
            caption: format!(
                "The first {shown} of {} pictures, not chosen. {what} Red: wrong.",
                items.len()
            ),
            png: fs::read(png.path())?,
        });
    }
    Ok(pictures)
}

/// The newest file of each set.
fn last_files(folder: &Path) -> BTreeMap<String, PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return BTreeMap::new() };
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    let mut last = BTreeMap::new();
    for path in files {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if let Some((set, _step)) = stem.rsplit_once("-step-") {
            last.insert(set.to_owned(), path.clone());
        }
    }
    last
}
