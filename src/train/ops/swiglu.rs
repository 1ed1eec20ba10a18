//! `a · silu(b)` with `silu(b) = b·σ(b)`: `w1` makes a, `w2` makes the gate b.
#![expect(clippy::inline_always, reason = "only inlined code is compiled for the vector unit")]

use std::ops::Range;

use candle_core::{Result, Tensor};
use candle_nn::ops;

use super::{
    host::{self, Kernel, Plan},
    math,
};

pub(crate) fn forward(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let plan = Plan { rows: a.elem_count(), widths: [1], sums: 0 };
    match host::slices([a, b], |[a, b]| host::run(&Forward { a, b }, plan).0) {
        Some([y]) => host::tensor(y, a.shape()),
        None => a * b.silu()?,
    }
}

struct Forward<'a> {
    a: &'a [f32],
    b: &'a [f32],
}

impl Kernel<1> for Forward<'_> {
    #[inline(always)]
    fn block(&self, rows: Range<usize>, [y]: [&mut [f32]; 1], _sums: &mut [f32]) {
        for ((y, a), b) in y.iter_mut().zip(&self.a[rows.clone()]).zip(&self.b[rows]) {
            *y = a * (b * math::sigmoid(*b));
        }
    }
}

/// da = g·silu(b); db = g·a·σ(b)·(1 + b·(1 − σ(b))).
pub(crate) fn backward(a: &Tensor, b: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let plan = Plan { rows: a.elem_count(), widths: [1, 1], sums: 0 };
    let host = host::slices([a, b, dy], |[a, b, dy]| host::run(&Backward { a, b, dy }, plan).0);
    if let Some([da, db]) = host {
        return Ok((host::tensor(da, a.shape())?, host::tensor(db, a.shape())?));
    }
    let sigma = ops::sigmoid(b)?;
    let silu = (b * &sigma)?;
    let slope = (&sigma + (&silu * (1.0 - &sigma)?)?)?;
    Ok(((dy * &silu)?, ((dy * a)? * slope)?))
}

struct Backward<'a> {
    a: &'a [f32],
    b: &'a [f32],
    dy: &'a [f32],
}

impl Kernel<2> for Backward<'_> {
    #[inline(always)]
    fn block(&self, rows: Range<usize>, [da, db]: [&mut [f32]; 2], _sums: &mut [f32]) {
        let inputs = self.a[rows.clone()].iter().zip(&self.b[rows.clone()]).zip(&self.dy[rows]);
        for ((da, db), ((a, b), dy)) in da.iter_mut().zip(db).zip(inputs) {
            let sigma = math::sigmoid(*b);
            let silu = b * sigma;
            *da = dy * silu;
            *db = dy * a * (sigma + silu * (1.0 - sigma));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::ops::testing::{assert_close, f64s, normal};

    #[test]
    fn kernels_equal_compositions() {
        let [a, b, dy] = ["a", "b", "dy"].map(|name| (normal(name, (33, 500)) * 3.0).unwrap());
        let [wide_a, wide_b, wide_dy] = [&a, &b, &dy].map(f64s);
        assert_close(&forward(&a, &b).unwrap(), &forward(&wide_a, &wide_b).unwrap());
        let (da, db) = backward(&a, &b, &dy).unwrap();
        let (wide_da, wide_db) = backward(&wide_a, &wide_b, &wide_dy).unwrap();
        assert_close(&da, &wide_da);
        assert_close(&db, &wide_db);
    }
}
