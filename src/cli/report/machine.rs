//! What was recorded before the start: the machine, the doctor's verdict, the plan.

use std::{fs, path::Path};

use serde::Deserialize;

use super::{DOCTOR_FILE, FACTS_FILE, PLAN_FILE};
use crate::{
    facts::FactsFile,
    telemetry::report::{Check, DoctorVerdict, Memory, Row, Tone},
    wire::{Event, Record},
};

/// The parts of the doctor's JSON that a report shows.
#[derive(Deserialize)]
struct Doctor {
    verdict: String,
    driver: String,
    counts: Counts,
    checks: Vec<CheckLine>,
}

#[derive(Deserialize)]
struct Counts {
    pass: usize,
    warn: usize,
    fail: usize,
    unknown: usize,
    skipped: usize,
}

#[derive(Deserialize)]
struct CheckLine {
    id: String,
    verdict: String,
    #[serde(default)]
    unknown: Vec<Unread>,
    #[serde(default)]
    problems: Vec<Problem>,
}

#[derive(Deserialize)]
struct Unread {
    call: String,
    why: String,
}

#[derive(Deserialize)]
struct Problem {
    what: String,
    fix: String,
}

/// The parts of the plan's JSON that a report shows.
#[derive(Deserialize)]
struct Plan {
    #[serde(rename = "plan")]
    steps: Steps,
    memory: Vec<Component>,
    data: Vec<SetLine>,
}

#[derive(Deserialize)]
struct Steps {
    stages: Vec<Stage>,
    warnings: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stage {
    name: String,
    samples: u64,
    steps: u64,
    warmup_steps: u64,
    peak: f64,
}

#[derive(Deserialize)]
struct Component {
    name: String,
    bytes: u64,
    from: String,
}

#[derive(Deserialize)]
struct SetLine {
    file: String,
    samples: u64,
    mean_tokens: f64,
    max_tokens: u64,
}

/// A file that an older launch did not write is no error: the report says what is missing.
fn read<T: for<'de> Deserialize<'de>>(output: &Path, name: &str) -> Option<T> {
    serde_json::from_slice(&fs::read(output.join(name)).ok()?).ok()
}

/// The doctor's verdict.
pub(super) fn doctor(output: &Path) -> Option<DoctorVerdict> {
    let doctor: Doctor = read(output, DOCTOR_FILE)?;
    let Counts { pass, warn, fail, unknown, skipped } = doctor.counts;
    let checks = doctor.checks.iter().flat_map(check);
    Some(DoctorVerdict {
        tone: if doctor.verdict == "ready" { Tone::Good } else { Tone::Bad },
        verdict: doctor.verdict,
        counts: format!(
            "{pass} passed, {warn} warnings, {fail} failed, {unknown} unknown, {skipped} do not apply. {}",
            doctor.driver
        ),
        checks: checks.collect(),
    })
}

fn check(line: &CheckLine) -> Vec<Check> {
    let tone = if line.verdict == "fail" { Tone::Bad } else { Tone::Warn };
    let of = |what: &str, fix: &str| Check {
        id: line.id.clone(),
        tone,
        what: what.to_owned(),
        fix: fix.to_owned(),
    };
    let problems = line.problems.iter().map(|problem| of(&problem.what, &problem.fix));
    let unknown = line.unknown.iter().map(|Unread { call, why }| {
        let what = format!("unknown: {call}: {why}");
        of(&what, "")
    });
    problems.chain(unknown).collect()
}

/// The machine in a few rows.
pub(super) fn rows(output: &Path) -> Vec<Row> {
    let Some(file) = read::<FactsFile>(output, FACTS_FILE) else { return Vec::new() };
    let facts = &file.facts;
    let mut rows = vec![Row::new("machine", file.node.to_string())];
    let mut add = |name: &str, value: Option<String>| {
        rows.push(Row::new(name, value.unwrap_or_else(|| "unknown".to_owned())));
    };
    add("system", facts.kernel.os.get().ok().cloned());
    add("kernel", facts.kernel.release.get().ok().cloned());
    add("processors", facts.memory.cpus.get().ok().map(ToString::to_string));
    let memory = facts.memory.total_bytes.get().ok();
    add("memory", memory.map(|bytes| format!("{:.1} GiB", *bytes as f64 / (1_u64 << 30) as f64)));
    let gpus = facts.nvml.gpus.get().ok().map(|gpus| {
        let names = gpus.iter().filter_map(|gpu| gpu.name.get().ok().cloned());
        names.collect::<Vec<_>>().join(", ")
    });
    add("GPUs", gpus.or_else(|| has_no_gpu(output).then(|| "none".to_owned())));
    rows
}

/// Whether the bus was looked at and shows no NVIDIA GPU.
pub(super) fn has_no_gpu(output: &Path) -> bool {
    let file: Option<FactsFile> = read(output, FACTS_FILE);
    file.is_some_and(|file| file.facts.driver.pci_gpus.get().is_ok_and(Vec::is_empty))
}

/// The plan in rows, and the memory of a rank.
pub(super) fn plan(output: &Path) -> (Vec<Row>, Vec<Memory>) {
    let Some(plan) = read::<Plan>(output, PLAN_FILE) else { return (Vec::new(), Vec::new()) };
    let stages = plan.steps.stages.iter().map(|stage| {
        let Stage { name, samples, steps, warmup_steps, peak } = stage;
        let value = format!(
            "{steps} steps over {samples} samples; warm-up of {warmup_steps} steps to {peak:.1e}"
        );
        Row::new(format!("stage {name}"), value)
    });
    let files = plan.data.iter().map(|file| {
        let SetLine { file, samples, mean_tokens, max_tokens } = file;
        let value = format!(
            "{file}: {samples} samples, {mean_tokens:.0} tokens on average, {max_tokens} at most"
        );
        Row::new("data", value)
    });
    let warnings = plan.steps.warnings.iter().map(|warning| Row::new("warning", warning));
    let memory = plan.memory.into_iter();
    let memory = memory.map(|part| Memory { name: part.name, bytes: part.bytes, from: part.from });
    (stages.chain(files).chain(warnings).collect(), memory.collect())
}

/// Of the median step.
pub(super) fn samples_per_second(records: &[Record]) -> Option<f64> {
    let mut rates: Vec<f64> = records
        .iter()
        .filter_map(|record| if let Event::Step(step) = &record.event { Some(step) } else { None })
        .map(|step| step.samples as f64 / step.seconds.max(1e-9))
        .collect();
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied()
}
