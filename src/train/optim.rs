//! AdamW with decoupled weight decay and clipping by the global norm.
//!
//! Own code because candle's AdamW keeps its moments private (no exact resume) and in the
//! parameter's number format. Formula: torch's `AdamW`,
//! `p ← p·(1 − lr·wd)`, `m ← β1·m + (1−β1)·g`, `v ← β2·v + (1−β2)·g²`,
//! `p ← p − lr/(1−β1ᵗ) · m / (√v/√(1−β2ᵗ) + ε)` with t counted from 1.
//! All arithmetic is f32 tensor operations on the device of the parameter.

use candle_core::{DType, Result, Tensor};

use crate::job;

/// Moments of all parameters, in the parameters' order.
#[derive(Clone, Debug)]
pub struct AdamW {
    config: job::Optimizer,
    steps: u64,
    moments: Vec<Moments>,
}

/// First and second moment of one parameter, f32, in its shape.
#[derive(Clone, Debug)]
pub struct Moments {
    /// Decaying mean of the gradient.
    pub first: Tensor,
    /// Decaying mean of the squared gradient.
    pub second: Tensor,
}

impl AdamW {
    /// Moments of zero for parameters of the shapes of `values`.
    pub fn new(config: &job::Optimizer, values: &[Tensor]) -> Result<Self> {
        let zeros = |value: &Tensor| {
            let first = value.zeros_like()?.to_dtype(DType::F32)?;
            Ok(Moments { second: first.zeros_like()?, first })
        };
        let moments = values.iter().map(zeros).collect::<Result<_>>()?;
        Ok(AdamW { config: config.clone(), steps: 0, moments })
    }

    /// Goes on from saved moments after `steps` updates.
    pub fn resume(config: &job::Optimizer, steps: u64, moments: Vec<Moments>) -> Self {
        AdamW { config: config.clone(), steps, moments }
    }

    /// Updates done so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The moments, in the parameters' order.
    pub fn moments(&self) -> &[Moments] {
        &self.moments
    }

    /// One update; returns the new values. `grads` are already averaged and clipped; `decays`
    /// tells for each parameter whether weight decay applies.
    pub fn update(
        &mut self,
        values: &[Tensor],
        grads: &[Tensor],
        decays: &[bool],
        learning_rate: f64,
    ) -> Result<Vec<Tensor>> {
        self.steps += 1;
        let t = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let first_scale = learning_rate / (1.0 - self.config.beta1.powi(t));
        let second_scale = (1.0 - self.config.beta2.powi(t)).sqrt();
        let parameters = values.iter().zip(grads).zip(decays).zip(&mut self.moments);
        parameters
            .map(|(((value, grad), decays), moments)| {
                moments.decay_towards(grad, &self.config)?;
                let shrink =
                    if *decays { 1.0 - learning_rate * self.config.weight_decay } else { 1.0 };
                let root = (moments.second.sqrt()? / second_scale)?;
                let direction = (&moments.first / (root + self.config.epsilon)?)?;
                (value * shrink)? - (direction * first_scale)?
            })
            .collect()
    }
}

impl Moments {
    fn decay_towards(&mut self, grad: &Tensor, config: &job::Optimizer) -> Result<()> {
        let (beta1, beta2) = (config.beta1, config.beta2);
        self.first = ((&self.first * beta1)? + (grad * (1.0 - beta1))?)?;
        self.second = ((&self.second * beta2)? + (grad.sqr()? * (1.0 - beta2))?)?;
        Ok(())
    }
}

/// L2 norm over all gradients together.
///
/// The squares of one tensor are summed in f32 on its device; the sums of the tensors are
/// added in f64 in their order, so that every rank gets the same bits.
pub fn global_norm(grads: &[Tensor]) -> Result<f64> {
    let squares =
        grads.iter().map(|grad| grad.sqr()?.sum_all()).collect::<Result<Vec<Tensor>>>()?;
    if squares.is_empty() {
        return Ok(0.0);
    }
    let squares = Tensor::stack(&squares, 0)?.to_vec1::<f32>()?;
    Ok(squares.into_iter().map(f64::from).sum::<f64>().sqrt())
}

/// Scales all gradients by `min(1, max_norm / (norm + 1e-6))`, as torch's `clip_grad_norm_`
/// does. A `max_norm` of 0 leaves them as they are.
pub fn clip(grads: &mut [Tensor], norm: f64, max_norm: f64) -> Result<()> {
    let scale = max_norm / (norm + 1e-6);
    if max_norm <= 0.0 || 1.0 <= scale {
        return Ok(());
    }
    for grad in grads {
        *grad = (&*grad * scale)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    /// The same formula on plain f64 numbers.
    fn reference(grads: &[f64], lr: f64, decay: f64) -> f64 {
        let (mut p, mut m, mut v) = (1.0_f64, 0.0, 0.0);
        for (i, g) in grads.iter().enumerate() {
            let t = i32::try_from(i).unwrap() + 1;
            p *= 1.0 - lr * decay;
            m = 0.9 * m + 0.1 * g;
            v = 0.95 * v + 0.05 * g * g;
            p -= lr / (1.0 - 0.9_f64.powi(t)) * m
                / (v.sqrt() / (1.0 - 0.95_f64.powi(t)).sqrt() + 1e-8);
        }
        p
    }

    #[test]
    fn update_follows_the_formula() {
        let grads = [0.5, -0.25, 1.5, 0.0];
        for decays in [true, false] {
            let mut value = vec![tensor(&[1.0, 1.0])];
            let mut optimizer = AdamW::new(&job::Optimizer::default(), &value).unwrap();
            for grad in grads {
                #[expect(clippy::cast_possible_truncation, reason = "exact in f32")]
                let grad = tensor(&[grad as f32, grad as f32]);
                value = optimizer.update(&value, &[grad], &[decays], 1e-2).unwrap();
            }
            let expected = reference(&grads, 1e-2, if decays { 0.1 } else { 0.0 });
            for got in value[0].to_vec1::<f32>().unwrap() {
                assert!((f64::from(got) - expected).abs() < 1e-6, "{got} {expected}");
            }
        }
    }

    #[test]
    fn clipping_bounds_the_norm_and_zero_turns_it_off() {
        let mut grads = vec![tensor(&[3.0]), tensor(&[4.0])];
        let norm = global_norm(&grads).unwrap();
        assert!((norm - 5.0).abs() < 1e-6);
        clip(&mut grads, norm, 0.0).unwrap();
        assert_eq!(grads[0].to_vec1::<f32>().unwrap(), [3.0]);
        clip(&mut grads, norm, 1.0).unwrap();
        assert!((global_norm(&grads).unwrap() - 1.0).abs() < 1e-5);
        clip(&mut grads, 1.0, 2.0).unwrap();
        assert!((global_norm(&grads).unwrap() - 1.0).abs() < 1e-5);
    }
}
