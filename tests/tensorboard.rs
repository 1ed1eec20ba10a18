//! The real `tensorboard` package reads what qvl writes: same tags, steps, values and times.

mod python;

use std::{collections::BTreeMap, fs, path::Path};

use qvl::{
    telemetry::metrics::Metrics,
    wire::{EvalMetrics, Event, Interval, Record, StepMetrics, TaskLoss},
};

/// Unix time of the first record, in milliseconds.
const START_MS: u64 = 1_795_525_927_250;

/// Step, value and Unix time in seconds of each point, by tag.
type Scalars = BTreeMap<String, Vec<(u64, f64, f64)>>;

fn record(seconds: u64, attempt: u32, event: Event) -> Record {
    let time_ms = START_MS + 1000 * seconds;
    Record { v: Record::VERSION, time_ms, rank: 0, attempt, event }
}

fn ready(step: u64) -> Event {
    let resumed_from = (step != 0).then(|| format!("checkpoints/{step}"));
    Event::Ready { step, total_steps: 8, resumed_from }
}

fn step(step: u64, loss: f64) -> Event {
    let task = TaskLoss { loss: loss / 2.0, content_loss: loss / 4.0, tokens: 12 };
    Event::Step(StepMetrics {
        step,
        total_steps: 8,
        epoch: 0.5,
        stage: "one".to_owned(),
        loss,
        tasks: BTreeMap::from([("grounding".to_owned(), task)]),
        learning_rate: 1e-4,
        grad_norm: 0.75,
        samples: 32,
        tokens: 3000,
        seconds: 0.5,
        reduce_seconds: 0.1,
    })
}

fn evaluated(step: u64) -> Event {
    let share = |value| Some(Interval { value, low: value - 0.1, high: value + 0.1 });
    let metrics = EvalMetrics {
        samples: 100,
        loss: Some(1.25),
        mean_iou: share(0.5),
        acc_at_50: share(0.75),
        ..EvalMetrics::default()
    };
    Event::Evaluated { step, set: "held-out".to_owned(), metrics }
}

fn read(folder: &Path) -> Scalars {
    let text = python::run(python::NEWEST, "tensorboard_check.py", &[folder]);
    serde_json::from_str(&text).expect("the script prints JSON")
}

fn steps(points: &[(u64, f64, f64)]) -> Vec<u64> {
    points.iter().map(|point| point.0).collect()
}

#[test]
fn tensorboard_reads_the_same_numbers() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut metrics = Metrics::open(folder.path(), 1, START_MS / 1000).expect("files open");
    metrics.keep(&record(0, 1, ready(0))).expect("a write");
    let losses = [5.125, 3.75, 1.0 / 3.0, f64::from(f32::MIN_POSITIVE), 1e-3];
    for (i, loss) in (1..).zip(losses) {
        metrics.keep(&record(i, 1, step(i, loss))).expect("a write");
    }
    metrics.keep(&record(6, 1, evaluated(5))).expect("a write");
    // While the file is still open: TensorBoard is used during a run.
    let scalars = read(&folder.path().join("tensorboard"));

    let expected: Vec<_> = (1..).zip(losses).map(|(i, loss)| (i, as_f32(loss), time(i))).collect();
    assert_eq!(scalars["train/loss"], expected);
    assert_eq!(scalars["train/loss/grounding"][0], (1, 2.5625, time(1)));
    assert_eq!(scalars["train/content_loss/grounding"][1], (2, 0.9375, time(2)));
    assert_eq!(scalars["train/learning_rate"][4], (5, as_f32(1e-4), time(5)));
    assert_eq!(scalars["train/grad_norm"][2], (3, 0.75, time(3)));
    assert_eq!(scalars["train/samples_per_second"][0], (1, 64.0, time(1)));
    assert_eq!(scalars["eval/held-out/loss"], [(5, 1.25, time(6))]);
    assert_eq!(scalars["eval/held-out/mean_iou"], [(5, 0.5, time(6))]);
    assert_eq!(scalars["eval/held-out/acc_at_50"], [(5, 0.75, time(6))]);
    let tags: Vec<&String> = scalars.keys().filter(|tag| tag.starts_with("eval/")).collect();
    assert_eq!(tags.len(), 3, "a metric that a task does not have has no tag: {tags:?}");
}

/// Steps after the checkpoint are done again by the next attempt; they must not show twice.
#[test]
fn a_restart_replaces_the_lost_steps() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (attempt, first, last) in [(1, 0, 5), (2, 3, 8)] {
        let began = START_MS / 1000 + 100 * u64::from(attempt);
        let mut metrics = Metrics::open(folder.path(), attempt, began).expect("files open");
        metrics.keep(&record(0, attempt, ready(first))).expect("a write");
        for i in first + 1..=last {
            let loss = f64::from(attempt);
            metrics.keep(&record(i, attempt, step(i, loss))).expect("a write");
        }
    }
    let scalars = read(&folder.path().join("tensorboard"));
    assert_eq!(steps(&scalars["train/loss"]), [1, 2, 3, 4, 5, 6, 7, 8]);
    let losses: Vec<f64> = scalars["train/loss"].iter().map(|point| point.1).collect();
    assert_eq!(losses, [1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]);
}

/// The script can fail: a flipped bit is found by the checksum.
#[test]
fn a_damaged_file_is_noticed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut metrics = Metrics::open(folder.path(), 1, START_MS / 1000).expect("files open");
    metrics.keep(&record(1, 1, step(1, 2.0))).expect("a write");
    let board = folder.path().join("tensorboard");
    let file = fs::read_dir(&board).expect("a folder").next().expect("a file").expect("an entry");
    let mut bytes = fs::read(file.path()).expect("a file");
    let last = bytes.len() - 8;
    bytes[last] ^= 1;
    fs::write(file.path(), bytes).expect("a write");
    let found = std::panic::catch_unwind(|| read(&board)).expect_err("the damage is not seen");
    let text = found.downcast_ref::<String>().map_or("", String::as_str);
    assert!(text.contains("crc32"), "{text}");
}

/// TensorBoard keeps values in f32.
fn as_f32(value: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, reason = "meant")]
    let narrow = value as f32;
    f64::from(narrow)
}

fn time(seconds: u64) -> f64 {
    (START_MS + 1000 * seconds) as f64 / 1000.0
}
