//! The metrics of a run on disk: `metrics.jsonl` and TensorBoard event files.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    path::Path,
};

use super::tensorboard::EventFile;
use crate::wire::{EvalMetrics, Event, Record, StepMetrics};

/// Where records go as they arrive. Only rank 0 reports steps and evaluations, because all
/// ranks report the same numbers.
#[derive(Debug)]
pub struct Metrics {
    lines: File,
    board: EventFile,
}

impl Metrics {
    /// Opens the files below the run's `folder`; an earlier attempt's lines stay.
    pub fn open(folder: &Path, attempt: u32, unix_seconds: u64) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let lines =
            OpenOptions::new().create(true).append(true).open(folder.join("metrics.jsonl"))?;
        let suffix = format!("attempt-{attempt}");
        let board = EventFile::create(&folder.join("tensorboard"), unix_seconds, &suffix)?;
        Ok(Metrics { lines, board })
    }

    /// Keeps a record if it is a measurement of rank 0, or says at which step its attempt begins.
    pub fn keep(&mut self, record: &Record) -> io::Result<()> {
        if record.rank != 0 {
            return Ok(());
        }
        if let Event::Ready { step, .. } = &record.event {
            return self.board.starts_at(record.time_ms, step + 1);
        }
        let (step, scalars) = if let Event::Step(step) = &record.event {
            (step.step, step_scalars(step))
        } else if let Event::Evaluated { step, set, metrics } = &record.event {
            (*step, eval_scalars(set, metrics))
        } else {
            return Ok(());
        };
        let line = serde_json::to_string(record).expect("records are plain data") + "\n";
        self.lines.write_all(line.as_bytes())?;
        self.board.scalars(record.time_ms, step, &scalars)
    }
}

/// The records of a run, in order. After a restart from a checkpoint steps repeat; the later
/// record of a step replaces the earlier one.
pub fn read(folder: &Path) -> io::Result<Vec<Record>> {
    let file = BufReader::new(File::open(folder.join("metrics.jsonl"))?);
    let mut records: Vec<Record> = Vec::new();
    for line in file.lines() {
        // A line that a crash cut in half is the last one of an attempt.
        let Ok(record) = serde_json::from_str::<Record>(&line?) else { continue };
        if let Event::Step(step) = &record.event {
            records
                .retain(|old| !matches!(&old.event, Event::Step(known) if step.step <= known.step));
        }
        records.push(record);
    }
    Ok(records)
}

fn step_scalars(step: &StepMetrics) -> Vec<(String, f64)> {
    let mut scalars = vec![
        ("train/loss".to_owned(), step.loss),
        ("train/learning_rate".to_owned(), step.learning_rate),
        ("train/grad_norm".to_owned(), step.grad_norm),
        ("train/samples_per_second".to_owned(), step.samples as f64 / step.seconds.max(1e-9)),
    ];
    for (task, loss) in &step.tasks {
        scalars.push((format!("train/loss/{task}"), loss.loss));
        scalars.push((format!("train/content_loss/{task}"), loss.content_loss));
    }
    scalars
}

fn eval_scalars(set: &str, metrics: &EvalMetrics) -> Vec<(String, f64)> {
    let named = [
        ("loss", metrics.loss),
        ("parse_rate", metrics.parse_rate.map(|interval| interval.value)),
        ("mean_iou", metrics.mean_iou.map(|interval| interval.value)),
        ("acc_at_50", metrics.acc_at_50.map(|interval| interval.value)),
        ("exact_match", metrics.exact_match.map(|interval| interval.value)),
    ];
    let known = named.into_iter().filter_map(|(name, value)| Some((name, value?)));
    known.map(|(name, value)| (format!("eval/{set}/{name}"), value)).collect()
}
