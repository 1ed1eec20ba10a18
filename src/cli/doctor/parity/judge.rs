//! Where two runs part, and what that points to. Pure.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use serde::Serialize;

use crate::{cli::plan::Plan, wire::StepMetrics};

/// The whole answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Parity {
    pub job: String,
    pub ranks: Vec<u32>,
    /// Optimizer steps that were made on each number of ranks.
    pub steps: u64,
    pub planned: Vec<Row>,
    /// Every number of ranks but the first, against the first.
    pub compared: Vec<Compared>,
}

impl Parity {
    pub(super) fn is_same(&self) -> bool {
        self.compared.iter().all(|compared| compared.difference.is_none())
    }
}

/// A number of the whole job's plan, for each number of ranks.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Row {
    pub name: &'static str,
    pub values: Vec<String>,
    /// Why values that differ are no fault; without it they are one.
    pub note: Option<&'static str>,
}

impl Row {
    pub(super) fn is_equal(&self) -> bool {
        self.values.windows(2).all(|pair| pair[0] == pair[1])
    }
}

/// Two runs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Compared {
    pub ranks: [u32; 2],
    /// Numbers and tensors that were compared until the first difference.
    pub numbers: usize,
    pub tensors: usize,
    pub difference: Option<Difference>,
}

/// The first difference, in the order in which a step is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Difference {
    pub step: u64,
    /// What differs: a number of the step, or a tensor and its element.
    pub what: String,
    pub values: [String; 2],
    /// What that points to.
    pub points_to: &'static str,
}

const SAMPLER: &str = "the ranks draw other samples: the sampler depends on the number of ranks";
const SCHEDULE: &str = "the schedule of the learning rate depends on the number of ranks";
const WEIGHTING: &str = "tokens are weighed in another way: the normalisation of the loss, the order of the samples, or \
     the random numbers of dropout depend on the number of ranks";
const TASKS: &str = "each task has the same loss, but their sum differs: the weights of tasks, or what they are \
     divided by, depend on the number of ranks";
const GRADIENTS: &str = "the losses are the same, the gradients are not: their sum over ranks, what it is divided by, or the \
     random numbers of dropout depend on the number of ranks (a fresh LoRA adapter changes no loss yet, \
     so dropout shows in the gradients first)";
const UPDATE: &str = "the gradient's norm is the same, the weights are not: the order of sums, clipping or the \
     optimizer depend on the number of ranks";

/// Numbers of a plan that must not depend on the number of ranks, and some that may.
pub(super) fn planned(plans: &[Plan]) -> Vec<Row> {
    type Read = fn(&Plan) -> String;
    let rows: [(&'static str, Read, Option<&'static str>); 9] = [
        ("samples of a step", |plan| plan.steps.batch.here.to_string(), None),
        ("optimizer steps", |plan| plan.steps.total_steps.to_string(), None),
        ("peak learning rate", |plan| list(plan, |stage| format!("{:e}", stage.peak)), None),
        ("warm-up steps", |plan| list(plan, |stage| stage.warmup_steps.to_string()), None),
        ("checkpoints", |plan| plan.steps.saves.len().to_string(), None),
        ("evaluations", |plan| plan.steps.evaluations.len().to_string(), None),
        (
            "units of the busiest rank",
            |plan| plan.steps.batch.most_units.to_string(),
            Some("the same batch, shared by more ranks"),
        ),
        (
            "memory of a rank",
            |plan| format!("{:.1} MiB", plan.memory.total() as f64 / f64::from(1 << 20)),
            Some("fewer samples at a time"),
        ),
        (
            "official finetune.py",
            |plan| format!("{} samples", plan.steps.batch.official_on_all),
            Some("its batch grows with the GPUs, and so do the epochs per step"),
        ),
    ];
    rows.into_iter()
        .map(|(name, read, note)| Row { name, values: plans.iter().map(read).collect(), note })
        .collect()
}

fn list(plan: &Plan, read: impl Fn(&crate::job::plan::StagePlan) -> String) -> String {
    plan.steps.stages.iter().map(read).collect::<Vec<_>>().join(", ")
}

/// The numbers of a step, in the order in which they come about; floating point bit by bit.
pub(super) fn numbers(one: &StepMetrics, other: &StepMetrics) -> (usize, Option<Difference>) {
    let exact = |name: &str, a: f64, b: f64, points_to| {
        (
            name.to_owned(),
            format!("{a:.17e}"),
            format!("{b:.17e}"),
            a.to_bits() == b.to_bits(),
            points_to,
        )
    };
    let whole = |name: &str, a: u64, b: u64, points_to| {
        (name.to_owned(), a.to_string(), b.to_string(), a == b, points_to)
    };
    let mut rows = vec![
        whole("samples", one.samples, other.samples, SAMPLER),
        whole("tokens", one.tokens, other.tokens, SAMPLER),
        exact("learning rate", one.learning_rate, other.learning_rate, SCHEDULE),
    ];
    let names = one.tasks.keys().chain(other.tasks.keys());
    let mut names: Vec<&String> = names.collect();
    names.sort();
    names.dedup();
    for name in names {
        let (a, b) = (one.tasks.get(name).copied(), other.tasks.get(name).copied());
        let (a, b) = (a.unwrap_or_default(), b.unwrap_or_default());
        rows.push(whole(&format!("labelled tokens of task {name}"), a.tokens, b.tokens, SAMPLER));
        rows.push(exact(&format!("loss of task {name}"), a.loss, b.loss, WEIGHTING));
    }
    rows.push(exact("loss", one.loss, other.loss, TASKS));
    rows.push(exact("gradient norm", one.grad_norm, other.grad_norm, GRADIENTS));
    let count = rows.len();
    let first = rows.into_iter().find(|(.., same, _)| !same);
    let difference = first.map(|(what, a, b, _, points_to)| Difference {
        step: one.step,
        what,
        values: [a, b],
        points_to,
    });
    (count, difference)
}

/// A tensor that differs in a step whose numbers are the same.
pub(super) fn tensor(step: u64, what: String, values: [String; 2]) -> Difference {
    Difference { step, what, values, points_to: UPDATE }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::wire::TaskLoss;

    fn step() -> StepMetrics {
        let task = TaskLoss { loss: 1.25, content_loss: 1.0, tokens: 40 };
        StepMetrics {
            step: 2,
            total_steps: 3,
            epoch: 0.5,
            stage: "one".to_owned(),
            loss: 1.25,
            tasks: BTreeMap::from([("grounding".to_owned(), task)]),
            learning_rate: 0.001,
            grad_norm: 0.5,
            samples: 8,
            tokens: 100,
            seconds: 1.0,
            reduce_seconds: 0.1,
        }
    }

    #[test]
    fn time_does_not_count_and_one_bit_does() {
        let later = StepMetrics { seconds: 9.0, reduce_seconds: 3.0, ..step() };
        assert_eq!(numbers(&step(), &later), (7, None));
        let next = f64::from_bits(step().loss.to_bits() + 1);
        let (_, difference) = numbers(&step(), &StepMetrics { loss: next, ..step() });
        let difference = difference.unwrap();
        assert_eq!((difference.step, difference.what.as_str()), (2, "loss"));
        assert_ne!(difference.values[0], difference.values[1], "the digits show one bit");
    }

    #[test]
    fn the_first_number_that_differs_points_to_its_cause() {
        let mut other_task = step();
        other_task.tasks.get_mut("grounding").unwrap().loss = 1.5;
        let cases = [
            (StepMetrics { tokens: 99, loss: 2.0, ..step() }, SAMPLER),
            (StepMetrics { learning_rate: 0.002, ..step() }, SCHEDULE),
            (other_task, WEIGHTING),
            (StepMetrics { loss: 2.0, grad_norm: 2.0, ..step() }, TASKS),
            (StepMetrics { grad_norm: 2.0, ..step() }, GRADIENTS),
        ];
        for (other, expected) in cases {
            assert_eq!(numbers(&step(), &other).1.unwrap().points_to, expected);
        }
    }
}
