//! One optimizer step of one rank.

use std::{collections::BTreeMap, time::Instant};

use candle_core::Tensor;

use super::{
    batch::UnitBatch,
    collective::Collective,
    failure::Failure,
    guard,
    model::{DropoutKey, QwenVl},
    optim::{self, AdamW},
    reduce::{Layout, Tree, TreeSum},
};
use crate::{
    job::{Normalisation, Task},
    wire::TaskLoss,
};

/// What one label contributes to the reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LabelInfo {
    /// Task of the sample.
    pub task: Task,
    /// Whether the token is content, not template or structure.
    pub content: bool,
    /// Loss weight before any normalisation.
    pub weight: f32,
}

/// A unit with what the reports need beside it; `info` is aligned with `unit.labels`.
#[derive(Clone, Debug)]
pub struct Unit {
    pub unit: UnitBatch,
    pub info: Vec<LabelInfo>,
}

/// Sums over units, in f64, added along the same tree as the gradients.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sums {
    /// Weighted sum of losses and sum of the weights.
    pub loss: f64,
    pub weight: f64,
    /// Samples and tokens without padding.
    pub samples: f64,
    pub tokens: f64,
    /// Ranks that were asked to stop.
    pub stops: f64,
    /// By task: sum of losses, labels, sum over content, content labels.
    pub tasks: [[f64; 4]; TASKS.len()],
}

const TASKS: [Task; 4] = [Task::Grounding, Task::Caption, Task::Vqa, Task::Text];

impl Sums {
    /// Length of the flat form.
    pub const LENGTH: usize = 5 + 4 * TASKS.len();

    /// The sums of one unit whose labels cost `losses`.
    pub fn of(unit: &Unit, losses: &[f32]) -> Sums {
        let mut sums = Sums {
            samples: unit.unit.rows as f64,
            tokens: unit.unit.lengths.iter().sum::<usize>() as f64,
            ..Sums::default()
        };
        for (info, loss) in unit.info.iter().zip(losses) {
            let (weight, loss) = (f64::from(info.weight), f64::from(*loss));
            sums.loss += weight * loss;
            sums.weight += weight;
            let task = &mut sums.tasks[TASKS.iter().position(|t| *t == info.task).unwrap_or(0)];
            task[0] += loss;
            task[1] += 1.0;
            if info.content {
                task[2] += loss;
                task[3] += 1.0;
            }
        }
        sums
    }

    /// All numbers in a fixed order.
    pub fn flat(&self) -> Vec<f64> {
        let head = [self.loss, self.weight, self.samples, self.tokens, self.stops];
        head.into_iter().chain(self.tasks.iter().flatten().copied()).collect()
    }

    /// The inverse of [`Sums::flat`].
    pub fn from_flat(flat: &[f64]) -> Sums {
        let mut sums = Sums {
            loss: flat[0],
            weight: flat[1],
            samples: flat[2],
            tokens: flat[3],
            stops: flat[4],
            ..Sums::default()
        };
        for (task, numbers) in sums.tasks.iter_mut().zip(flat[5..].chunks_exact(4)) {
            task.copy_from_slice(numbers);
        }
        sums
    }

    /// Mean losses of the tasks that have labels.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "label counts are small whole numbers"
    )]
    pub fn task_losses(&self) -> BTreeMap<String, TaskLoss> {
        TASKS
            .iter()
            .zip(&self.tasks)
            .filter(|(_task, numbers)| 0.0 < numbers[1])
            .map(|(task, [loss, labels, content, content_labels])| {
                let loss = TaskLoss {
                    loss: loss / labels,
                    content_loss: content / content_labels.max(1.0),
                    tokens: *labels as u64,
                };
                (task.name().to_owned(), loss)
            })
            .collect()
    }
}

/// What all ranks know after a step; the same bits everywhere.
#[derive(Clone, Debug)]
pub struct StepResult {
    /// Weighted mean loss of the global batch (or the mean of unit means, in reference mode).
    pub loss: f64,
    /// Global L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    pub sums: Sums,
    /// Seconds spent in the collective.
    pub reduce_seconds: f64,
}

/// How a step is done; the same on all ranks.
#[derive(Clone, Copy, Debug)]
pub struct StepPlan {
    /// Steps done before, over all stages.
    pub done: u64,
    pub learning_rate: f64,
    pub max_grad_norm: f64,
    pub normalisation: Normalisation,
    /// Units of the whole global batch.
    pub units: usize,
    /// Key of the dropout masks.
    pub dropout: DropoutKey,
    /// This rank was asked to stop.
    pub stop: bool,
}

/// Forward and backward of this rank's units, reduction over all ranks, clipping, update.
/// `units` are those of this rank, in the order of the batch.
pub fn step(
    model: &mut QwenVl,
    optimizer: &mut AdamW,
    group: &mut dyn Collective,
    units: &[Unit],
    plan: &StepPlan,
) -> Result<StepResult, Failure> {
    let (mut grads, sums, reduce_seconds) = reduced(model, group, units, plan)?;
    let (scale, loss) = match plan.normalisation {
        Normalisation::Tokens => (1.0 / sums.weight, sums.loss / sums.weight),
        // Each unit was already divided by its own weight, so `loss` is a sum of means.
        Normalisation::Reference => (1.0 / plan.units as f64, sums.loss / plan.units as f64),
    };
    for grad in &mut grads {
        *grad = (&*grad * scale)?;
    }
    let grad_norm = optim::global_norm(&grads)?;
    guard::check_finite(plan.done + 1, loss, grad_norm)?;
    if plan.done < guard::CHECKED_STEPS {
        guard::check_gradients(model.parameters(), &grads, plan.done + 1)?;
    }
    optim::clip(&mut grads, grad_norm, plan.max_grad_norm)?;
    let values: Vec<Tensor> = model.parameters().iter().map(|p| p.value.clone()).collect();
    let decays: Vec<bool> = model.parameters().iter().map(|p| p.decay).collect();
    let values = optimizer.update(&values, &grads, &decays, plan.learning_rate)?;
    for (i, value) in values.into_iter().enumerate() {
        model.set_parameter(i, value)?;
    }
    Ok(StepResult { loss, grad_norm, sums, reduce_seconds })
}

/// The sum of gradients and numbers over the units of all ranks, and the seconds it took.
fn reduced(
    model: &QwenVl,
    group: &mut dyn Collective,
    units: &[Unit],
    plan: &StepPlan,
) -> Result<(Vec<Tensor>, Sums, f64), Failure> {
    let values: Vec<Tensor> = model.parameters().iter().map(|p| p.value.clone()).collect();
    let layout = Layout::of(&values, Sums::LENGTH, model.device());
    let mut sum = TreeSum::new(Tree::new(plan.units), group.rank(), group.world(), layout);
    for (i, unit) in sum.range().zip(units) {
        let mut batch = unit.unit.clone();
        if plan.normalisation == Normalisation::Reference {
            let weight: f32 = unit.info.iter().map(|info| info.weight).sum();
            batch.labels.iter_mut().for_each(|label| label.weight /= weight.max(f32::MIN_POSITIVE));
        }
        let (losses, grads) = model.forward_backward(&batch, Some(plan.dropout))?;
        let mut sums = Sums::of(unit, &losses);
        if plan.normalisation == Normalisation::Reference {
            sums.loss /= sums.weight.max(f64::MIN_POSITIVE);
        }
        // One unit of each rank carries the rank's wish to stop.
        if plan.stop && i == sum.range().start {
            sums.stops = 1.0;
        }
        sum.push(i, &grads, &sums.flat())?;
    }
    let started = Instant::now();
    let total = group.reduce_tree(sum.finish()?)?;
    Ok((total.tensors, Sums::from_flat(&total.scalars), started.elapsed().as_secs_f64()))
}
