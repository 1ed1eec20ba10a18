//! Cross-entropy of labels in nats, and its gradient.
#![expect(clippy::inline_always, reason = "only inlined code is compiled for the vector unit")]

use std::ops::Range;

use candle_core::{D, DType, Result, Tensor};

use super::{
    host::{self, Kernel, Plan},
    math,
};

/// Losses of n labels whose logits are (n, V).
pub(crate) fn losses(logits: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
    let (rows, width) = logits.dims2()?;
    let plan = Plan { rows, widths: [1], sums: 0 };
    let host = host::slices([logits], |[x]| host::run(&Losses { x, width, targets }, plan).0);
    match host {
        Some([losses]) => Ok(losses),
        None => composition(logits, targets)?.0.to_dtype(DType::F32)?.to_vec1(),
    }
}

struct Losses<'a> {
    x: &'a [f32],
    width: usize,
    targets: &'a [u32],
}

impl Kernel<1> for Losses<'_> {
    #[inline(always)]
    fn block(&self, rows: Range<usize>, [losses]: [&mut [f32]; 1], _sums: &mut [f32]) {
        for (row, loss) in rows.zip(losses) {
            let x = &self.x[row * self.width..(row + 1) * self.width];
            let max = math::max(x);
            let sum = math::sum(x, x, |x, _| math::exp(x - max));
            *loss = sum.ln() - (x[self.targets[row] as usize] - max);
        }
    }
}

/// Losses, and the gradient (n, V) of `Σ weight · loss` for the logits:
/// `weight · (softmax − onehot)`.
pub(crate) fn with_gradient(
    logits: &Tensor,
    targets: &[u32],
    weights: &[f32],
) -> Result<(Vec<f32>, Tensor)> {
    let (rows, width) = logits.dims2()?;
    let plan = Plan { rows, widths: [1, width], sums: 0 };
    let host = host::slices([logits], |[x]| {
        host::run(&WithGradient { losses: Losses { x, width, targets }, weights }, plan).0
    });
    if let Some([losses, gradient]) = host {
        return Ok((losses, host::tensor(gradient, (rows, width))?));
    }
    let (losses, log_probs) = composition(logits, targets)?;
    let device = logits.device();
    let targets = Tensor::from_slice(targets, (rows, 1), device)?;
    let weights = Tensor::from_slice(weights, (rows, 1), device)?.to_dtype(logits.dtype())?;
    let minus_one = (weights.zeros_like()? - 1.0)?;
    let gradient =
        log_probs.exp()?.scatter_add(&targets, &minus_one, 1)?.broadcast_mul(&weights)?;
    Ok((losses.to_dtype(DType::F32)?.to_vec1()?, gradient))
}

struct WithGradient<'a> {
    losses: Losses<'a>,
    weights: &'a [f32],
}

impl Kernel<2> for WithGradient<'_> {
    #[inline(always)]
    fn block(&self, rows: Range<usize>, [losses, out]: [&mut [f32]; 2], _sums: &mut [f32]) {
        let Losses { x, width, targets } = self.losses;
        for ((row, loss), out) in rows.zip(losses).zip(out.chunks_exact_mut(width)) {
            let x = &x[row * width..(row + 1) * width];
            let (target, weight) = (targets[row] as usize, self.weights[row]);
            let max = math::max(x);
            out.iter_mut().zip(x).for_each(|(out, x)| *out = math::exp(x - max));
            let sum = math::sum(out, out, |p, _| p);
            *loss = sum.ln() - (x[target] - max);
            out.iter_mut().for_each(|p| *p /= sum);
            out[target] -= 1.0;
            out.iter_mut().for_each(|p| *p *= weight);
        }
    }
}

/// Losses (n) and log-probabilities (n, V).
fn composition(logits: &Tensor, targets: &[u32]) -> Result<(Tensor, Tensor)> {
    let targets = Tensor::from_slice(targets, (targets.len(), 1), logits.device())?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let log_probs = shifted.broadcast_sub(&log_sum)?;
    let losses = log_probs.gather(&targets, 1)?.squeeze(1)?.neg()?;
    Ok((losses, log_probs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::ops::testing::{assert_close, f64s, normal};

    #[test]
    fn kernels_equal_compositions() {
        for (rows, width) in [(4, 3), (90, 480), (40, 1001)] {
            let logits = (normal("logits", (rows, width)) * 5.0).unwrap();
            let limit = u32::try_from(width).unwrap();
            let targets: Vec<u32> =
                (0..u32::try_from(rows).unwrap()).map(|i| i * 7 % limit).collect();
            let weights: Vec<f32> = (0..rows).map(|i| 0.5 + i as f32 * 0.01).collect();
            let (found, gradient) = with_gradient(&logits, &targets, &weights).unwrap();
            let (exact, wide_gradient) = with_gradient(&f64s(&logits), &targets, &weights).unwrap();
            assert_close(&gradient, &wide_gradient);
            for (found, exact) in found.iter().zip(&exact) {
                assert!((found - exact).abs() < 2e-6 * exact.max(1.0), "{found} {exact}");
            }
            let again = losses(&logits, &targets).unwrap();
            assert!(again.iter().zip(&found).all(|(a, b)| (a - b).abs() < 1e-6 * b.max(1.0)));
        }
    }
}
