//! GELU in its exact form, `x·Φ(x)`.
#![expect(clippy::inline_always, reason = "only inlined code is compiled for the vector unit")]

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::{
    host::{self, Kernel, Plan},
    math, wide,
};

pub(crate) fn forward(x: &Tensor) -> Result<Tensor> {
    let plan = Plan { rows: x.elem_count(), widths: [1], sums: 0 };
    match host::slices([x], |[x]| host::run(&Forward { x }, plan).0) {
        Some([y]) => host::tensor(y, x.shape()),
        None => x.gelu_erf(),
    }
}

struct Forward<'a> {
    x: &'a [f32],
}

impl Kernel<1> for Forward<'_> {
    #[inline(always)]
    fn block(&self, rows: Range<usize>, [y]: [&mut [f32]; 1], _sums: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(&self.x[rows]) {
            *y = x * math::normal(*x).0;
        }
    }
}

/// g·(Φ(x) + x·φ(x)).
pub(crate) fn backward(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let plan = Plan { rows: x.elem_count(), widths: [1], sums: 0 };
    if let Some([dx]) = host::slices([x, dy], |[x, dy]| host::run(&Backward { x, dy }, plan).0) {
        return host::tensor(dx, x.shape());
    }
    let dtype = x.dtype();
    let x = x.to_dtype(wide(dtype))?;
    let cdf = (((&x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)? * 0.5)?;
    let inv_sqrt_tau = 1.0 / std::f64::consts::TAU.sqrt();
    let density = ((x.sqr()? * -0.5)?.exp()? * inv_sqrt_tau)?;
    (dy.to_dtype(wide(dtype))? * (cdf + (x * density)?)?)?.to_dtype(dtype)
}

struct Backward<'a> {
    x: &'a [f32],
    dy: &'a [f32],
}

impl Kernel<1> for Backward<'_> {
    #[inline(always)]
    fn block(&self, rows: Range<usize>, [dx]: [&mut [f32]; 1], _sums: &mut [f32]) {
        for ((dx, x), dy) in dx.iter_mut().zip(&self.x[rows.clone()]).zip(&self.dy[rows]) {
            let (cdf, density) = math::normal(*x);
            *dx = dy * (cdf + x * density);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::ops::testing::{assert_close, f64s, normal};

    #[test]
    fn kernels_equal_compositions() {
        let (x, dy) = ((normal("x", (70, 301)) * 2.0).unwrap(), normal("dy", (70, 301)));
        assert_close(&forward(&x).unwrap(), &forward(&f64s(&x)).unwrap());
        assert_close(&backward(&x, &dy).unwrap(), &backward(&f64s(&x), &f64s(&dy)).unwrap());
    }

    /// The tanh approximation is 4.7e-4 away near 2.7, and the model code does not use it.
    #[test]
    fn the_form_is_exact() {
        let x = Tensor::new(&[-2.7_f32, -1.0, 0.0, 1.0, 2.7], &candle_core::Device::Cpu).unwrap();
        let exact = [
            -2.7 * (1.0 - 0.996_533_026_2),
            -1.0 + 0.841_344_746_1,
            0.0,
            0.841_344_746_1,
            2.7 * 0.996_533_026_2,
        ];
        for x in [x.clone(), f64s(&x)] {
            let y = f64s(&forward(&x).unwrap()).to_vec1::<f64>().unwrap();
            for (y, exact) in y.iter().zip(exact) {
                assert!((y - exact).abs() < 1e-6, "{y} {exact}");
            }
        }
    }
}
