//! What a job will do, from its text and the size of its data: steps, saves, measurements, the
//! learning rate, and tokens that padding costs.

use serde::Serialize;

use super::{FineTuneJob, Method, Stage, schedule};

/// Points of the learning-rate curve.
const CURVE_POINTS: u64 = 240;
/// Samples of one optimizer step of the official scripts: on one GPU
/// (`finetune_lora_single.sh`, 1 x 8), and per GPU (`finetune_lora_ds.sh` 2 x 8, `finetune_ds.sh`
/// 1 x 16).
const OFFICIAL_SINGLE: u64 = 8;
const OFFICIAL_PER_GPU: u64 = 16;

/// The numbers of one training set that a plan needs.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SetFacts {
    pub name: String,
    pub samples: u64,
    /// Mean and largest length in tokens, pictures included; 0 if not measured.
    pub mean_tokens: f64,
    pub max_tokens: u64,
}

/// What a job will do.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobPlan {
    pub total_steps: u64,
    pub stages: Vec<StagePlan>,
    /// Steps after which a checkpoint is written.
    pub saves: Vec<u64>,
    /// Steps after which the evaluation sets are measured; 0 is before the first one.
    pub evaluations: Vec<u64>,
    pub learning_rate: Vec<RatePoint>,
    pub padding: Padding,
    pub batch: BatchPlan,
    pub warnings: Vec<String>,
}

/// One stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StagePlan {
    pub name: String,
    /// Samples of the stage's sets.
    pub samples: u64,
    pub steps: u64,
    /// Steps of one pass over the samples, the last one begun rounded up.
    pub steps_per_epoch: u64,
    pub epochs: f64,
    pub warmup_steps: u64,
    pub peak: f64,
    /// Learning rate of the last step.
    pub last: f64,
}

/// Learning rate of one step; the first step is 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RatePoint {
    pub step: u64,
    pub learning_rate: f64,
}

/// Shares of computed positions that would hold padding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Padding {
    /// Mean length over all samples, in tokens; 0 if not measured, as are the shares.
    pub mean_tokens: f64,
    pub max_tokens: u64,
    /// At most: every unit as long as the longest sample. 0 if a unit is one sample.
    pub here_at_most: f64,
    /// Every sample padded to `maxLength`, as the official trainer does.
    pub official: f64,
}

/// Samples of one optimizer step, here and with the official scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchPlan {
    pub gpus: u32,
    /// The same on any number of ranks.
    pub here: u64,
    /// Units of the rank with most of them, and with fewest.
    pub most_units: u32,
    pub fewest_units: u32,
    pub official_on_one: u64,
    pub official_on_all: u64,
}

/// Makes the plan of a job on data of that size; `sets` are in the order of `spec.data.train`.
pub fn plan(job: &FineTuneJob, sets: &[SetFacts]) -> JobPlan {
    let spec = &job.spec;
    let stages: Vec<StagePlan> =
        spec.stages.iter().map(|stage| stage_plan(job, stage, sets)).collect();
    let ends: Vec<u64> = stages
        .iter()
        .scan(0, |end, stage| {
            *end += stage.steps;
            Some(*end)
        })
        .collect();
    let total_steps = ends.last().copied().unwrap_or(0);
    let due = |every: u64| {
        let times = total_steps.checked_div(every).unwrap_or(0);
        (1..=times).map(move |i| i * every)
    };
    let mut saves: Vec<u64> =
        due(spec.checkpoint.every_steps).chain(ends.iter().copied()).collect();
    saves.sort_unstable();
    saves.dedup();
    let mut evaluations = Vec::new();
    if !spec.data.eval.is_empty() {
        evaluations.extend(spec.evaluation.at_start.then_some(0));
        evaluations.extend(due(spec.evaluation.every_steps).filter(|step| *step != total_steps));
        evaluations.push(total_steps);
    }
    let mut plan = JobPlan {
        total_steps,
        saves,
        evaluations,
        learning_rate: curve(job, &stages, total_steps),
        padding: padding(job, sets),
        batch: batch(job),
        stages,
        warnings: Vec::new(),
    };
    plan.warnings = warnings(job, &plan);
    plan
}

fn stage_plan(job: &FineTuneJob, stage: &Stage, sets: &[SetFacts]) -> StagePlan {
    let wanted = |name: &String| stage.sets.as_ref().is_none_or(|names| names.contains(name));
    let samples: u64 = sets.iter().filter(|set| wanted(&set.name)).map(|set| set.samples).sum();
    let global = job.spec.batch.global;
    let steps = schedule::stage_steps(stage, samples, global);
    let curve = stage.schedule.as_ref().unwrap_or(&job.spec.schedule);
    let peak = stage.learning_rate.unwrap_or(job.spec.optimizer.learning_rate);
    StagePlan {
        name: stage.name.clone(),
        samples,
        steps,
        steps_per_epoch: samples.div_ceil(u64::from(global.max(1))),
        epochs: steps as f64 * f64::from(global) / samples.max(1) as f64,
        warmup_steps: schedule::warmup_steps(curve, steps),
        peak,
        last: schedule::learning_rate(curve, peak, steps.saturating_sub(1), steps),
    }
}

/// The learning rate of every step, or of evenly spread ones if there are many. The trainer uses
/// the same function.
fn curve(job: &FineTuneJob, stages: &[StagePlan], total: u64) -> Vec<RatePoint> {
    let points = total.min(CURVE_POINTS);
    let at = |i: u64| if points < 2 { 0 } else { i * (total - 1) / (points - 1) };
    let point = |done: u64| RatePoint { step: done + 1, learning_rate: rate(job, stages, done) };
    (0..points).map(|i| point(at(i))).collect()
}

fn rate(job: &FineTuneJob, stages: &[StagePlan], done: u64) -> f64 {
    let mut first = 0;
    for (stage, plan) in job.spec.stages.iter().zip(stages) {
        if done < first + plan.steps {
            let curve = stage.schedule.as_ref().unwrap_or(&job.spec.schedule);
            return schedule::learning_rate(curve, plan.peak, done - first, plan.steps);
        }
        first += plan.steps;
    }
    0.0
}

fn padding(job: &FineTuneJob, sets: &[SetFacts]) -> Padding {
    let samples: u64 = sets.iter().map(|set| set.samples).sum();
    let tokens: f64 = sets.iter().map(|set| set.mean_tokens * set.samples as f64).sum();
    let max_tokens = sets.iter().map(|set| set.max_tokens).max().unwrap_or(0);
    if samples == 0 || max_tokens == 0 {
        return Padding::default();
    }
    let mean_tokens = tokens / samples as f64;
    let waste = |length: f64| (1.0 - mean_tokens / length.max(1.0)).max(0.0);
    Padding {
        mean_tokens,
        max_tokens,
        here_at_most: if job.spec.batch.unit < 2 { 0.0 } else { waste(max_tokens as f64) },
        official: waste(f64::from(job.spec.data.max_length)),
    }
}

fn batch(job: &FineTuneJob) -> BatchPlan {
    let (batch, gpus) = (&job.spec.batch, job.spec.world.gpus.max(1));
    let units = batch.global / batch.unit.max(1);
    let on_one = match job.spec.method {
        Method::Lora(_) => OFFICIAL_SINGLE,
        // The official script for full training is made for several GPUs only.
        Method::Full(_) => OFFICIAL_PER_GPU,
    };
    BatchPlan {
        gpus,
        here: u64::from(batch.global),
        most_units: units.div_ceil(gpus),
        fewest_units: units / gpus,
        official_on_one: on_one,
        official_on_all: if gpus == 1 { on_one } else { OFFICIAL_PER_GPU * u64::from(gpus) },
    }
}

/// What a user should know before it starts.
fn warnings(job: &FineTuneJob, plan: &JobPlan) -> Vec<String> {
    let spec = &job.spec;
    let mut warnings = Vec::new();
    let mut warn = |wrong: bool, text: String| warnings.extend(wrong.then_some(text));
    let (every, total) = (spec.checkpoint.every_steps, plan.total_steps);
    warn(
        total < every,
        format!(
            "checkpoint.everySteps is {every}, but the job has {total} steps: if it dies, it begins again"
        ),
    );
    warn(
        total < spec.evaluation.every_steps,
        format!(
            "evaluation.everySteps is {}, but the job has {total} steps",
            spec.evaluation.every_steps
        ),
    );
    warn(
        spec.data.eval.is_empty(),
        "no evaluation set: the loss alone does not tell what the model learns".to_owned(),
    );
    warn(
        spec.data.eval.len() == 1,
        "one evaluation set only: a second one from another distribution tells learning from memory".to_owned(),
    );
    warn(
        2048 < spec.data.max_length,
        "maxLength is above 2048: longer samples are trained without NTK scaling, but answered with it".to_owned(),
    );
    for stage in &plan.stages {
        let name = &stage.name;
        warn(stage.samples == 0, format!("stage `{name}` has no sample"));
        warn(
            stage.steps <= stage.warmup_steps,
            format!("stage `{name}` ends within its warm-up of {} steps", stage.warmup_steps),
        );
    }
    let BatchPlan { gpus, most_units, fewest_units, .. } = plan.batch;
    warn(
        most_units != fewest_units,
        format!(
            "units do not divide evenly over {gpus} ranks: each step waits for a rank with {most_units} while others have {fewest_units}"
        ),
    );
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::parse;

    fn job(more: &str) -> FineTuneJob {
        let text = format!(
            "apiVersion: qvl.dev/v1alpha1
kind: FineTuneJob
metadata: {{name: a}}
spec:
  model: {{path: m}}
  data:
    train: [{{name: t, path: t.json, task: grounding}}, {{name: u, path: u.json, task: caption}}]
    eval: [{{name: e, path: e.json, task: grounding}}, {{name: f, path: f.json, task: grounding}}]
  output: out
{more}"
        );
        parse(&text, "j").unwrap()
    }

    fn sets() -> Vec<SetFacts> {
        let set = |name: &str, samples, mean_tokens| SetFacts {
            name: name.to_owned(),
            samples,
            mean_tokens,
            max_tokens: 400,
        };
        vec![set("t", 3000, 300.0), set("u", 2000, 350.0)]
    }

    #[test]
    fn the_official_recipe_on_eight_gpus_never_saves_on_the_way() {
        // 5000 samples / (8 GPUs x 2 x 8) = 39 steps an epoch; DeepSpeed drops the last part of a
        // step, qvl begins it, so 5 epochs are 196 steps and not 195.
        let job = job("  batch: {global: 128}
  world: {gpus: 8}
  checkpoint: {everySteps: 1000}
  stages: [{name: main, epochs: 5}]
");
        let plan = plan(&job, &sets());
        assert_eq!((plan.total_steps, plan.stages[0].warmup_steps), (196, 2));
        assert_eq!(plan.saves, [196]);
        assert_eq!(plan.batch.official_on_all, 128);
        assert_eq!(plan.batch.official_on_one, 8);
        insta::assert_snapshot!(plan.warnings.join("\n"), @"checkpoint.everySteps is 1000, but the job has 196 steps: if it dies, it begins again");
    }

    #[test]
    fn stages_saves_and_measurements_follow_each_other() {
        let job = job("  batch: {global: 100, unit: 2}
  world: {gpus: 3}
  checkpoint: {everySteps: 20}
  evaluation: {everySteps: 25, atStart: true}
  schedule: {kind: linear, warmupSteps: 0}
  stages: [{name: one, epochs: 1, sets: [t]}, {name: two, steps: 20, learningRate: 0.5}]
");
        let plan = plan(&job, &sets());
        assert_eq!(plan.total_steps, 50);
        assert_eq!(plan.saves, [20, 30, 40, 50]);
        assert_eq!(plan.evaluations, [0, 25, 50]);
        assert_eq!((plan.stages[0].samples, plan.stages[1].samples), (3000, 5000));
        assert_eq!((plan.batch.most_units, plan.batch.fewest_units), (17, 16));
        assert!(plan.warnings[0].contains("a rank with 17 while others have 16"));
        assert_eq!(plan.learning_rate.len(), 50);
        let second = plan.learning_rate[30];
        assert_eq!((second.step, second.learning_rate), (31, 0.5));
        assert!((plan.learning_rate[49].learning_rate - 0.025).abs() < 1e-12);
        assert!((plan.stages[1].last - 0.025).abs() < 1e-12);
        // (3000 x 300 + 2000 x 350) / 5000 = 320 tokens.
        assert!((plan.padding.mean_tokens - 320.0).abs() < 1e-9);
        assert!((plan.padding.here_at_most - 0.2).abs() < 1e-9);
        assert!((plan.padding.official - (1.0 - 320.0 / 2048.0)).abs() < 1e-9);
    }

    #[test]
    fn a_long_curve_keeps_its_first_and_last_step() {
        let job = job("  stages: [{name: main, steps: 100000}]\n");
        let plan = plan(&job, &sets());
        let steps: Vec<u64> = plan.learning_rate.iter().map(|point| point.step).collect();
        assert_eq!((steps.len(), steps[0], steps[239]), (240, 1, 100_000));
    }
}
