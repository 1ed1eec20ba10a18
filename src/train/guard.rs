//! Guards against a training that silently trains nothing, or diverges.

use candle_core::Tensor;

use super::{failure::Failure, model::Parameter};
use crate::wire::TrainerExit;

/// Every trainable parameter must get a finite, non-zero gradient in the first two steps; a
/// gradient graph that is cut somewhere shows itself here and nowhere else. At step 1 all
/// `lora_B` are zero, so the gradients of `lora_A` are exactly zero and are judged at step 2.
pub fn check_gradients(
    parameters: &[Parameter],
    grads: &[Tensor],
    step: u64,
    fresh_lora: bool,
) -> Result<(), Failure> {
    let mut dead = Vec::new();
    for (parameter, grad) in parameters.iter().zip(grads) {
        let absmax = grad.abs()?.max_all()?.to_scalar::<f32>()?;
        if !absmax.is_finite() {
            return Err(diverged(step, &format!("the gradient of `{}`", parameter.name)));
        }
        let may_be_zero = fresh_lora && step == 1 && parameter.name.contains(".lora_A.");
        if absmax == 0.0 && !may_be_zero {
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
