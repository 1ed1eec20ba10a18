//! `y = w·x̂ + b` where x̂ is a row x with mean 0 and variance 1: `x̂ = (x − mean)·r`,
//! `r = (variance + ε)^−½`, ε = 1e-6 throughout the vision tower.
#![expect(clippy::inline_always, reason = "only inlined code is compiled for the vector unit")]

use std::ops::Range;

use candle_core::{D, DType, Result, Tensor};
use candle_nn::ops;

use super::{
    host::{self, Kernel, Plan},
    math, wide,
};

/// The vision tower's ε.
const EPSILON: f64 = 1e-6;
#[expect(clippy::cast_possible_truncation, reason = "1e-6 in f32")]
const EPSILON_F32: f32 = EPSILON as f32;

/// Gradients of a norm.
pub(crate) struct LayerNormGradients {
    pub x_TD: Tensor,
    pub weight_D: Tensor,
    pub bias_D: Tensor,
}

/// (T, D) -> (T, D).
pub(crate) fn forward(x_TD: &Tensor, weight_D: &Tensor, bias_D: &Tensor) -> Result<Tensor> {
    let (rows, width) = x_TD.dims2()?;
    let plan = Plan { rows, widths: [width], sums: 0 };
    let host =
        host::slices([x_TD, weight_D, bias_D], |[x, w, b]| host::run(&Forward { x, w, b }, plan).0);
    if let Some([y]) = host {
        return host::tensor(y, (rows, width));
    }
    if x_TD.dtype() == DType::F64 {
        let (n_TD, _r_T1) = normalise(x_TD)?;
        return n_TD.broadcast_mul(weight_D)?.broadcast_add(bias_D);
    }
    ops::layer_norm(&x_TD.contiguous()?, weight_D, bias_D, EPSILON_F32)
}

struct Forward<'a> {
    x: &'a [f32],
    w: &'a [f32],
    b: &'a [f32],
}

impl Kernel<1> for Forward<'_> {
    #[inline(always)]
    fn block(&self, rows: Range<usize>, [out]: [&mut [f32]; 1], _sums: &mut [f32]) {
        let width = self.w.len();
        let x = &self.x[rows.start * width..rows.end * width];
        for (x, y) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let (mean, r) = statistics(x);
            for (((y, x), w), b) in y.iter_mut().zip(x).zip(self.w).zip(self.b) {
                *y = (x - mean) * r * w + b;
            }
        }
    }
}

/// Mean and r of a row.
#[inline(always)]
fn statistics(x: &[f32]) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = math::sum(x, x, |x, _| x) / n;
    let variance = math::sum(x, x, |x, _| (x - mean) * (x - mean)) / n;
    (mean, 1.0 / (variance + EPSILON_F32).sqrt())
}

/// x̂ and r.
fn normalise(x_TD: &Tensor) -> Result<(Tensor, Tensor)> {
    let centred_TD = x_TD.broadcast_sub(&x_TD.mean_keepdim(D::Minus1)?)?;
    let variance_T1 = centred_TD.sqr()?.mean_keepdim(D::Minus1)?;
    let r_T1 = (variance_T1 + EPSILON)?.sqrt()?.recip()?;
    Ok((centred_TD.broadcast_mul(&r_T1)?, r_T1))
}

/// With g' = g·w: dx = r·(g' − mean g' − x̂·mean(g'·x̂)), dw = Σ g·x̂, db = Σ g.
pub(crate) fn backward(
    x_TD: &Tensor,
    weight_D: &Tensor,
    dy_TD: &Tensor,
) -> Result<LayerNormGradients> {
    let (rows, width) = x_TD.dims2()?;
    let plan = Plan { rows, widths: [width], sums: 2 * width };
    let host =
        host::slices([x_TD, weight_D, dy_TD], |[x, w, dy]| host::run(&Backward { x, w, dy }, plan));
    if let Some(([dx], mut dw)) = host {
        let db = dw.split_off(width);
        return Ok(LayerNormGradients {
            x_TD: host::tensor(dx, (rows, width))?,
            weight_D: host::tensor(dw, width)?,
            bias_D: host::tensor(db, width)?,
        });
    }
    let dtype = x_TD.dtype();
    let (n_TD, r_T1) = normalise(&x_TD.to_dtype(wide(dtype))?)?;
    let dy_TD = dy_TD.to_dtype(wide(dtype))?;
    let g_TD = dy_TD.broadcast_mul(&weight_D.to_dtype(wide(dtype))?)?;
    let mean_T1 = g_TD.mean_keepdim(D::Minus1)?;
    let along_T1 = (&g_TD * &n_TD)?.mean_keepdim(D::Minus1)?;
    let dx_TD = g_TD
        .broadcast_sub(&mean_T1)?
        .sub(&n_TD.broadcast_mul(&along_T1)?)?
        .broadcast_mul(&r_T1)?
        .to_dtype(dtype)?;
    Ok(LayerNormGradients {
        x_TD: dx_TD,
        weight_D: (&dy_TD * &n_TD)?.sum(0)?,
        bias_D: dy_TD.sum(0)?,
    })
}

struct Backward<'a> {
    x: &'a [f32],
    w: &'a [f32],
    dy: &'a [f32],
}

impl Kernel<1> for Backward<'_> {
    #[inline(always)]
    fn block(&self, rows: Range<usize>, [out]: [&mut [f32]; 1], sums: &mut [f32]) {
        let width = self.w.len();
        let (dw, db) = sums.split_at_mut(width);
        let numbers = rows.start * width..rows.end * width;
        let inputs =
            self.x[numbers.clone()].chunks_exact(width).zip(self.dy[numbers].chunks_exact(width));
        for ((x, dy), dx) in inputs.zip(out.chunks_exact_mut(width)) {
            let (mean, r) = statistics(x);
            // `dx` holds g' for a while.
            for ((g, dy), w) in dx.iter_mut().zip(dy).zip(self.w) {
                *g = dy * w;
            }
            let n = width as f32;
            let mean_g = math::sum(dx, dx, |g, _| g) / n;
            let along = math::sum(dx, x, |g, x| g * ((x - mean) * r)) / n;
            for (((dx, x), dy), (dw, db)) in
                dx.iter_mut().zip(x).zip(dy).zip(dw.iter_mut().zip(db.iter_mut()))
            {
                let normalised = (x - mean) * r;
                *dw += dy * normalised;
                *db += dy;
                *dx = r * (*dx - mean_g - normalised * along);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::ops::testing::{assert_close, f64s, normal};

    #[test]
    fn kernels_equal_compositions() {
        for (rows, width) in [(1, 8), (700, 96), (3, 1031)] {
            let x = ((normal("x", (rows, width)) * 2.0).unwrap() + 0.5).unwrap();
            let (w, b) = (normal("w", width), normal("b", width));
            let dy = normal("dy", (rows, width));
            let [wide_x, wide_w, wide_b, wide_dy] = [&x, &w, &b, &dy].map(f64s);
            let y = forward(&wide_x, &wide_w, &wide_b).unwrap();
            assert_close(&forward(&x, &w, &b).unwrap(), &y);
            let kernel = backward(&x, &w, &dy).unwrap();
            let composition = backward(&wide_x, &wide_w, &wide_dy).unwrap();
            assert_close(&kernel.x_TD, &composition.x_TD);
            assert_close(&kernel.weight_D, &composition.weight_D);
            assert_close(&kernel.bias_D, &composition.bias_D);
        }
    }

    /// ε counts only where the variance is about as small: 1e-5 would be another norm.
    #[test]
    fn epsilon_is_one_millionth() {
        let x = Tensor::new(&[[-1e-3_f32, 1e-3]], &candle_core::Device::Cpu).unwrap();
        let (one, zero) = (Tensor::ones(2, DType::F32, x.device()).unwrap(), normal("b", 2));
        let zero = (zero * 0.0).unwrap();
        let y = forward(&x, &one, &zero).unwrap().to_vec2::<f32>().unwrap();
        assert!((y[0][1] - std::f32::consts::FRAC_1_SQRT_2).abs() < 1e-5, "{y:?}");
    }
}
