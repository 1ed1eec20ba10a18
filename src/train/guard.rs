//! Guards against a training that silently trains nothing, or diverges.

use candle_core::Tensor;

use super::{failure::Failure, model::Parameter};
use crate::wire::TrainerExit;

/// Steps in which gradients are checked: one before `lora_B` is anything but zero, one more if
/// the warm-up begins with a learning rate of zero, and one after that.
pub const CHECKED_STEPS: u64 = 3;

/// Every trainable parameter must get a finite, non-zero gradient in the first steps; a gradient
/// graph that is cut somewhere shows itself here and nowhere else. As long as a `lora_B` is zero,
/// the gradient of its `lora_A` is exactly zero too, and is not judged.
pub fn check_gradients(
    parameters: &[Parameter],
    grads: &[Tensor],
    step: u64,
) -> Result<(), Failure> {
    let mut dead = Vec::new();
    for (parameter, grad) in parameters.iter().zip(grads) {
        let absmax = grad.abs()?.max_all()?.to_scalar::<f32>()?;
        if !absmax.is_finite() {
            return Err(diverged(step, &format!("the gradient of `{}`", parameter.name)));
        }
        if absmax == 0.0 && !has_zero_b(parameters, &parameter.name)? {
            dead.push(parameter.name.as_str());
        }
    }
    if dead.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        TrainerExit::Internal,
        format!(
            "{} of {} trainable parameters got no gradient at step {step}, for example `{}`",
            dead.len(),
            parameters.len(),
            dead[0]
        ),
    )
    .hint(
        "if the batch holds no pictures, do not train the vision parts; else report this as a bug",
    ))
}

/// Whether `name` is a `lora_A` whose `lora_B` is still zero.
fn has_zero_b(parameters: &[Parameter], name: &str) -> candle_core::Result<bool> {
    let b = name.replace(".lora_A.", ".lora_B.");
    match parameters.iter().find(|parameter| b != name && parameter.name == b) {
        Some(b) => Ok(b.value.abs()?.max_all()?.to_scalar::<f32>()? == 0.0),
        None => Ok(false),
    }
}

/// Refuses a loss or gradient norm that is not a number: the weights must not see it.
pub fn check_finite(step: u64, loss: f64, grad_norm: f64) -> Result<(), Failure> {
    if !loss.is_finite() {
        return Err(diverged(step, "the loss"));
    }
    if !grad_norm.is_finite() {
        return Err(diverged(step, "the gradient norm"));
    }
    Ok(())
}

fn diverged(step: u64, what: &str) -> Failure {
    Failure::new(TrainerExit::Diverged, format!("{what} is not finite at step {step}"))
        .hint("lower optimizer.learningRate (try a third) and resume from the last checkpoint")
}
