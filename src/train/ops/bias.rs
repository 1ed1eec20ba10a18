//! Sums with a row and over rows.
#![expect(clippy::inline_always, reason = "only inlined code is compiled for the vector unit")]

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::{
    host::{self, Kernel, Plan},
    wide,
};

/// `y + x` for a `y` (T, D) that nothing else uses and an `x` (D), added to each row.
pub(crate) fn add_bias(y_TD: Tensor, x_D: &Tensor) -> Result<Tensor> {
    if !host::is_host([&y_TD, x_D]) {
        return y_TD.broadcast_add(x_D);
    }
    let (rows, width) = y_TD.dims2()?;
    host::change_with(&y_TD, x_D, |y, x| {
        host::run_into(&AddBias { x }, Plan { rows, widths: [width], sums: 0 }, [y]);
    })?;
    Ok(y_TD)
}

struct AddBias<'a> {
    x: &'a [f32],
}

impl Kernel<1> for AddBias<'_> {
    #[inline(always)]
    fn block(&self, _rows: Range<usize>, [y]: [&mut [f32]; 1], _sums: &mut [f32]) {
        for row in y.chunks_exact_mut(self.x.len()) {
            row.iter_mut().zip(self.x).for_each(|(y, x)| *y += x);
        }
    }
}

/// `y + x` for a `y` that nothing else uses and an `x` of the same shape.
pub(crate) fn add(y: Tensor, x: &Tensor) -> Result<Tensor> {
    if !host::is_host([&y, x]) {
        return y + x;
    }
    host::change_with(&y, x, |y, x| {
        host::run_into(&Add { x }, Plan { rows: x.len(), widths: [1], sums: 0 }, [y]);
    })?;
    Ok(y)
}

struct Add<'a> {
    x: &'a [f32],
}

impl Kernel<1> for Add<'_> {
    #[inline(always)]
    fn block(&self, rows: Range<usize>, [y]: [&mut [f32]; 1], _sums: &mut [f32]) {
        y.iter_mut().zip(&self.x[rows]).for_each(|(y, x)| *y += x);
    }
}

/// Sum over the rows of (T, D): (D).
pub(crate) fn sum_rows(x_TD: &Tensor) -> Result<Tensor> {
    let (rows, width) = x_TD.dims2()?;
    let plan = Plan { rows, widths: [], sums: width };
    match host::slices([x_TD], |[x]| host::run(&SumRows { x, width }, plan).1) {
        Some(sums) => host::tensor(sums, width),
        None => x_TD.to_dtype(wide(x_TD.dtype()))?.sum(0),
    }
}

struct SumRows<'a> {
    x: &'a [f32],
    width: usize,
}

impl Kernel<0> for SumRows<'_> {
    #[inline(always)]
    fn block(&self, rows: Range<usize>, []: [&mut [f32]; 0], sums: &mut [f32]) {
        for row in self.x[rows.start * self.width..rows.end * self.width].chunks_exact(self.width) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::ops::testing::{assert_close, f64s, normal};

    #[test]
    fn kernels_equal_compositions() {
        for (rows, width) in [(1, 1), (1, 7), (5, 1), (300, 96), (2000, 31)] {
            let (y, x) = (normal("y", (rows, width)), normal("x", width));
            let same = normal("z", (rows, width));
            let sums = sum_rows(&y).unwrap();
            assert_close(&sums, &sum_rows(&f64s(&y)).unwrap());
            let biased = add_bias(y.copy().unwrap(), &x).unwrap();
            assert_close(&biased, &add_bias(f64s(&y), &f64s(&x)).unwrap());
            let all = add(y.copy().unwrap(), &same).unwrap();
            assert_close(&all, &add(f64s(&y), &f64s(&same)).unwrap());
        }
    }
}
