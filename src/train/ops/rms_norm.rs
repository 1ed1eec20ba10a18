//! `y = w·x̂` with `x̂ = x·r`, `r = (mean(x²) + ε)^−½`. x̂ is rounded to the model's number format
//! *before* it is multiplied, as the official code does.
#![expect(clippy::inline_always, reason = "only inlined code is compiled for the vector unit")]

use std::ops::Range;

use candle_core::{D, Result, Tensor};

use super::{
    host::{self, Kernel, Plan},
    math, wide,
};

/// (T, D) -> (T, D).
pub(crate) fn forward(x_TD: &Tensor, weight_D: &Tensor, epsilon: f64) -> Result<Tensor> {
    let (rows, width) = x_TD.dims2()?;
    let plan = Plan { rows, widths: [width], sums: 0 };
    let host = host::slices([x_TD, weight_D], |[x, w]| {
        host::run(&Forward { x, w, epsilon: narrow(epsilon) }, plan).0
    });
    if let Some([y]) = host {
        return host::tensor(y, (rows, width));
    }
    let (n_TD, _r_T1) = normalise(x_TD, epsilon)?;
    n_TD.to_dtype(x_TD.dtype())?.broadcast_mul(weight_D)
}

#[expect(clippy::cast_possible_truncation, reason = "a small number in f32")]
fn narrow(epsilon: f64) -> f32 {
    epsilon as f32
}

struct Forward<'a> {
    x: &'a [f32],
    w: &'a [f32],
    epsilon: f32,
}

impl Kernel<1> for Forward<'_> {
    #[inline(always)]
    fn block(&self, rows: Range<usize>, [out]: [&mut [f32]; 1], _sums: &mut [f32]) {
        let width = self.w.len();
        let x = &self.x[rows.start * width..rows.end * width];
        for (x, y) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let r = rate(x, self.epsilon);
            for ((y, x), w) in y.iter_mut().zip(x).zip(self.w) {
                *y = x * r * w;
            }
        }
    }
}

#[inline(always)]
fn rate(x: &[f32], epsilon: f32) -> f32 {
    1.0 / (math::sum(x, x, |x, _| x * x) / x.len() as f32 + epsilon).sqrt()
}

/// x̂ and r.
fn normalise(x_TD: &Tensor, epsilon: f64) -> Result<(Tensor, Tensor)> {
    let x_TD = x_TD.to_dtype(wide(x_TD.dtype()))?;
    let r_T1 = (x_TD.sqr()?.mean_keepdim(D::Minus1)? + epsilon)?.sqrt()?.recip()?;
    Ok((x_TD.broadcast_mul(&r_T1)?, r_T1))
}

/// With g' = g·w: dx = r·(g' − x̂·mean(g'·x̂)), dw = Σ g·x̂. Returns dx (T, D) and dw (D).
pub(crate) fn backward(
    x_TD: &Tensor,
    weight_D: &Tensor,
    epsilon: f64,
    dy_TD: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let (rows, width) = x_TD.dims2()?;
    let plan = Plan { rows, widths: [width], sums: width };
    let host = host::slices([x_TD, weight_D, dy_TD], |[x, w, dy]| {
        host::run(&Backward { x, w, dy, epsilon: narrow(epsilon) }, plan)
    });
    if let Some(([dx], dw)) = host {
        return Ok((host::tensor(dx, (rows, width))?, host::tensor(dw, width)?));
    }
    let dtype = x_TD.dtype();
    let (n_TD, r_T1) = normalise(x_TD, epsilon)?;
    let dy_TD = dy_TD.to_dtype(wide(dtype))?;
    let dw_D = (&dy_TD * &n_TD)?.sum(0)?;
    let g_TD = dy_TD.broadcast_mul(&weight_D.to_dtype(wide(dtype))?)?;
    let mean_T1 = (&g_TD * &n_TD)?.mean_keepdim(D::Minus1)?;
    let dx_TD = (g_TD - n_TD.broadcast_mul(&mean_T1)?)?.broadcast_mul(&r_T1)?.to_dtype(dtype)?;
    Ok((dx_TD, dw_D))
}

struct Backward<'a> {
    x: &'a [f32],
    w: &'a [f32],
    dy: &'a [f32],
    epsilon: f32,
}

impl Kernel<1> for Backward<'_> {
    #[inline(always)]
    fn block(&self, rows: Range<usize>, [out]: [&mut [f32]; 1], dw: &mut [f32]) {
        let width = self.w.len();
        let numbers = rows.start * width..rows.end * width;
        let inputs =
            self.x[numbers.clone()].chunks_exact(width).zip(self.dy[numbers].chunks_exact(width));
        for ((x, dy), dx) in inputs.zip(out.chunks_exact_mut(width)) {
            let r = rate(x, self.epsilon);
            // `dx` holds g' for a while.
            for ((g, dy), w) in dx.iter_mut().zip(dy).zip(self.w) {
                *g = dy * w;
            }
            let along = math::sum(dx, x, |g, x| g * (x * r)) / width as f32;
            for (((dx, x), dy), dw) in dx.iter_mut().zip(x).zip(dy).zip(dw.iter_mut()) {
                let normalised = x * r;
                *dw += dy * normalised;
                *dx = r * (*dx - normalised * along);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::train::ops::testing::{assert_close, f64s, normal};

    #[test]
    fn kernels_equal_compositions() {
        for (rows, width) in [(1, 8), (700, 96), (3, 1031)] {
            let [x, dy] = ["x", "dy"].map(|name| normal(name, (rows, width)));
            let w = normal("w", width);
            let [wide_x, wide_w, wide_dy] = [&x, &w, &dy].map(f64s);
            let y = forward(&wide_x, &wide_w, 1e-6).unwrap();
            assert_close(&forward(&x, &w, 1e-6).unwrap(), &y);
            let (dx, dw) = backward(&x, &w, 1e-6, &dy).unwrap();
            let (wide_dx, wide_dw) = backward(&wide_x, &wide_w, 1e-6, &wide_dy).unwrap();
            assert_close(&dx, &wide_dx);
            assert_close(&dw, &wide_dw);
        }
    }

    /// 3 and 4 have x̂ = 0.84853, 1.13137; rounded to bf16 they are 0.84765625 and 1.1328125.
    #[test]
    fn bf16_is_rounded_before_the_weight() {
        let device = candle_core::Device::Cpu;
        let bf16 = |x: &Tensor| x.to_dtype(DType::BF16).unwrap();
        let x = bf16(&Tensor::new(&[[3.0_f32, 4.0]], &device).unwrap());
        let weight = bf16(&Tensor::new(&[1.5_f32, 1.5], &device).unwrap());
        let y = forward(&x, &weight, 0.0).unwrap();
        let expected = bf16(&Tensor::new(&[[0.847_656_25_f32, 1.132_812_5]], &device).unwrap());
        let expected = expected.broadcast_mul(&weight).unwrap();
        let read = |x: &Tensor| x.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(read(&y), read(&expected));
        let late = Tensor::new(&[[0.848_528_1_f32, 1.131_370_9]], &device).unwrap();
        let late = late.broadcast_mul(&weight.to_dtype(DType::F32).unwrap()).unwrap();
        assert_ne!(read(&y), read(&bf16(&late)), "this input does not show the order");
    }
}
