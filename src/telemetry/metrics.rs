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
    Ok(latest(read_all(folder)?))
}

/// All records of a run, those of lost steps too.
pub fn read_all(folder: &Path) -> io::Result<Vec<Record>> {
    let file = BufReader::new(File::open(folder.join("metrics.jsonl"))?);
    let mut records: Vec<Record> = Vec::new();
    for line in file.lines() {
        // A line that a crash cut in half is the last one of an attempt.
        let Ok(record) = serde_json::from_str::<Record>(&line?) else { continue };
        records.push(record);
    }
    Ok(records)
}

/// The records without those of steps that were done again.
pub fn latest(all: Vec<Record>) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::with_capacity(all.len());
    let mut last = 0;
    for record in all {
        if let Event::Step(step) = &record.event {
            if step.step <= last {
                records.retain(|old| step_of(old).is_none_or(|known| known < step.step));
            }
            last = step.step;
        }
        records.push(record);
    }
    records
}

/// The steps of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptSteps {
    pub attempt: u32,
    pub first: u64,
    pub last: u64,
    /// When the first and the last of them ended, in milliseconds since the Unix epoch.
    pub began_ms: u64,
    pub ended_ms: u64,
}

/// Which steps each attempt did, from all records.
pub fn attempts(all: &[Record]) -> Vec<AttemptSteps> {
    let mut attempts: Vec<AttemptSteps> = Vec::new();
    for record in all {
        let Some(step) = step_of(record) else { continue };
        match attempts.last_mut().filter(|attempt| attempt.attempt == record.attempt) {
            Some(attempt) => (attempt.last, attempt.ended_ms) = (step, record.time_ms),
            None => attempts.push(AttemptSteps {
                attempt: record.attempt,
                first: step,
                last: step,
                began_ms: record.time_ms,
                ended_ms: record.time_ms,
            }),
        }
    }
    attempts
}

fn step_of(record: &Record) -> Option<u64> {
    if let Event::Step(step) = &record.event { Some(step.step) } else { None }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn step(attempt: u32, step: u64) -> Record {
        let text = format!(
            r#"{{"v":1,"time_ms":{step},"rank":0,"attempt":{attempt},"event":"step","step":{step},
            "total_steps":9,"epoch":0.0,"stage":"s","loss":1.0,"tasks":{{}},"learning_rate":0.1,
            "grad_norm":1.0,"samples":1,"tokens":1,"seconds":1.0,"reduce_seconds":0.0}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn steps_that_were_done_again_replace_the_lost_ones() {
        let all = [step(1, 1), step(1, 2), step(1, 3), step(2, 3), step(2, 4)];
        let spans: Vec<_> = attempts(&all).iter().map(|a| (a.attempt, a.first, a.last)).collect();
        assert_eq!(spans, [(1, 1, 3), (2, 3, 4)]);
        let kept: Vec<_> =
            latest(all.to_vec()).iter().map(|r| (r.attempt, step_of(r).unwrap())).collect();
        assert_eq!(kept, [(1, 1), (1, 2), (2, 3), (2, 4)]);
    }

    #[test]
    fn a_file_that_a_crash_cut_off_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(folder.path(), 1, 1).unwrap();
        metrics.keep(&step(1, 1)).unwrap();
        metrics.keep(&Record { rank: 1, ..step(1, 1) }).unwrap();
        metrics.lines.write_all(br#"{"v":1,"time_ms":"#).unwrap();
        assert_eq!(read(folder.path()).unwrap(), [step(1, 1)]);
    }
}
