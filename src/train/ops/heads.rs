//! From packed projections to heads and back, with rotary angles on the way.
//!
//! Shapes: B rows, L positions, T = B·L, H heads, K channels of a head, C = M·H·K columns.
#![expect(clippy::inline_always, reason = "only inlined code is compiled for the vector unit")]

use std::ops::Range;

use candle_core::{Result, Tensor};
use candle_nn::rotary_emb::rope;

use super::{
    host::{self, Kernel, Plan},
    wide,
};

/// How M parts (queries, keys, values) lie in the columns of a packed projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// M blocks of columns, each with all heads: the language model.
    Parts,
    /// Head by head, each with its M parts: the vision tower.
    Heads,
}

/// Cosines and sines of rotary angles, (L, K/2), and factors of the queries, (L).
#[derive(Clone, Debug)]
pub(crate) struct Angles {
    pub cos_LK: Tensor,
    pub sin_LK: Tensor,
    pub query_scale_L: Option<Tensor>,
}

/// What is done to packed columns.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_field_names, reason = "the standard term")]
pub(crate) struct Heads<'a> {
    pub rows: usize,
    pub heads: usize,
    pub order: Order,
    /// Turns parts 0 and 1 and scales part 0.
    pub angles: Option<&'a Angles>,
    /// Part 0 is divided by this.
    pub divisor: f64,
}

/// Places of one part within a packed row.
#[derive(Clone, Copy)]
struct Stride {
    part: usize,
    head: usize,
}

impl Heads<'_> {
    /// (T, C) -> M times (B, H, L, K).
    pub(crate) fn split<const M: usize>(&self, x_TC: &Tensor) -> Result<[Tensor; M]> {
        let (tokens, columns) = x_TC.dims2()?;
        let (length, channels) = (tokens / self.rows, columns / M / self.heads);
        let shape = (self.rows, self.heads, length, channels);
        let plan = Plan { rows: self.rows * self.heads, widths: [length * channels; M], sums: 0 };
        let host = self.with_angles(x_TC, |[x, cos, sin, scale]| {
            let kernel = Split::<M> {
                x,
                cos,
                sin,
                scale,
                heads: self.heads,
                length,
                channels,
                stride: self.stride(M, channels),
                divisor: narrow(self.divisor),
            };
            host::run(&kernel, plan).0
        });
        if let Some(parts) = host {
            let mut tensors = parts.map(|part| host::tensor(part, shape)).into_iter();
            return collect(|_i| tensors.next().expect("M tensors"));
        }
        let parts: [Tensor; M] = self.unpack(x_TC, length, channels)?;
        let mut parts = parts.into_iter().enumerate();
        collect(|_i| {
            let (i, part) = parts.next().expect("M parts");
            self.prepare(i, part)
        })
    }

    /// The reverse of [`Heads::split`] for gradients: M times (B, H, L, K) -> (T, C).
    pub(crate) fn merge<const M: usize>(&self, parts: [&Tensor; M]) -> Result<Tensor> {
        let (rows, heads, length, channels) = parts[0].dims4()?;
        let columns = M * heads * channels;
        let plan = Plan { rows: rows * length, widths: [columns], sums: 0 };
        let host = self.with_angles(parts[0], |[_first, cos, sin, scale]| {
            host::slices(parts, |parts| {
                let kernel = Merge {
                    parts,
                    cos,
                    sin,
                    scale,
                    heads,
                    length,
                    channels,
                    stride: self.stride(M, channels),
                    divisor: narrow(self.divisor),
                };
                host::run(&kernel, plan).0
            })
        });
        if let Some(Some([x])) = host {
            return host::tensor(x, (rows * length, columns));
        }
        let parts: [Tensor; M] = collect(|i| self.unprepare(i, parts[i]))?;
        self.pack(&parts)
    }

    fn stride(&self, parts: usize, channels: usize) -> Stride {
        match self.order {
            Order::Parts => Stride { part: self.heads * channels, head: channels },
            Order::Heads => Stride { part: channels, head: parts * channels },
        }
    }

    /// Calls `kernel` with the slices of `x` and of the angles, which are empty if there are none.
    fn with_angles<R>(&self, x: &Tensor, kernel: impl FnOnce([&[f32]; 4]) -> R) -> Option<R> {
        let Some(angles) = self.angles else {
            return host::slices([x], |[x]| kernel([x, &[], &[], &[]]));
        };
        let (cos, sin) = (&angles.cos_LK, &angles.sin_LK);
        match &angles.query_scale_L {
            None => host::slices([x, cos, sin], |[x, cos, sin]| kernel([x, cos, sin, &[]])),
            Some(scale) => host::slices([x, cos, sin, scale], kernel),
        }
    }

    fn unpack<const M: usize>(
        &self,
        x_TC: &Tensor,
        length: usize,
        channels: usize,
    ) -> Result<[Tensor; M]> {
        let x = match self.order {
            Order::Parts => x_TC.reshape((self.rows, length, M, self.heads, channels))?,
            Order::Heads => {
                x_TC.reshape((self.rows, length, self.heads, M, channels))?.transpose(2, 3)?
            }
        };
        collect(|i| x.narrow(2, i, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous())
    }

    fn pack<const M: usize>(&self, parts: &[Tensor; M]) -> Result<Tensor> {
        let (rows, heads, length, channels) = parts[0].dims4()?;
        let parts: Vec<Tensor> = parts.iter().map(|p| p.transpose(1, 2)).collect::<Result<_>>()?;
        let x = match self.order {
            Order::Parts => Tensor::stack(&parts, 2)?,
            Order::Heads => Tensor::stack(&parts, 3)?,
        };
        x.reshape((rows * length, M * heads * channels))
    }

    fn prepare(&self, part: usize, x_BHLK: Tensor) -> Result<Tensor> {
        let x_BHLK = self.turn(part, x_BHLK, false)?;
        if part == 0 { self.scale(x_BHLK)? / self.divisor } else { Ok(x_BHLK) }
    }

    fn unprepare(&self, part: usize, x_BHLK: &Tensor) -> Result<Tensor> {
        let x_BHLK = if part == 0 { self.scale((x_BHLK / self.divisor)?)? } else { x_BHLK.clone() };
        self.turn(part, x_BHLK, true)
    }

    fn turn(&self, part: usize, x_BHLK: Tensor, back: bool) -> Result<Tensor> {
        let Some(angles) = self.angles.filter(|_angles| part < 2) else { return Ok(x_BHLK) };
        let dtype = x_BHLK.dtype();
        let cos_LK = angles.cos_LK.to_dtype(wide(dtype))?;
        let sin_LK = angles.sin_LK.to_dtype(wide(dtype))?;
        let sin_LK = if back { sin_LK.neg()? } else { sin_LK };
        rope(&x_BHLK.to_dtype(wide(dtype))?.contiguous()?, &cos_LK, &sin_LK)?.to_dtype(dtype)
    }

    fn scale(&self, q_BHLK: Tensor) -> Result<Tensor> {
        match self.angles.and_then(|angles| angles.query_scale_L.as_ref()) {
            Some(factors) => {
                let factors = factors.reshape((1, 1, (), 1))?.to_dtype(q_BHLK.dtype())?;
                q_BHLK.broadcast_mul(&factors)
            }
            None => Ok(q_BHLK),
        }
    }
}

fn collect<const M: usize>(mut each: impl FnMut(usize) -> Result<Tensor>) -> Result<[Tensor; M]> {
    let tensors = (0..M).map(&mut each).collect::<Result<Vec<Tensor>>>()?;
    Ok(tensors.try_into().expect("M tensors"))
}

#[expect(clippy::cast_possible_truncation, reason = "a divisor near 10")]
fn narrow(divisor: f64) -> f32 {
    divisor as f32
}

struct Split<'a, const M: usize> {
    x: &'a [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    scale: &'a [f32],
    heads: usize,
    length: usize,
    channels: usize,
    stride: Stride,
    divisor: f32,
}

impl<const M: usize> Kernel<M> for Split<'_, M> {
    #[inline(always)]
    fn block(&self, rows: Range<usize>, outs: [&mut [f32]; M], _sums: &mut [f32]) {
        let (size, channels) = (self.length * self.channels, self.channels);
        let columns = M * self.heads * channels;
        for (part, out) in outs.into_iter().enumerate() {
            for (row, out) in rows.clone().zip(out.chunks_exact_mut(size)) {
                let (b, head) = (row / self.heads, row % self.heads);
                let column = part * self.stride.part + head * self.stride.head;
                for (at, out) in out.chunks_exact_mut(channels).enumerate() {
                    let first = (b * self.length + at) * columns + column;
                    let x = &self.x[first..first + channels];
                    self.prepare(part, at, x, out);
                }
            }
        }
    }
}

impl<const M: usize> Split<'_, M> {
    #[inline(always)]
    fn prepare(&self, part: usize, at: usize, x: &[f32], out: &mut [f32]) {
        let half = self.channels / 2;
        if self.cos.is_empty() || 2 <= part {
            out.copy_from_slice(x);
        } else {
            let cos = &self.cos[at * half..(at + 1) * half];
            let sin = &self.sin[at * half..(at + 1) * half];
            turn(x, cos, sin, out);
        }
        if part == 0 {
            let scale = self.scale.get(at).copied().unwrap_or(1.0);
            out.iter_mut().for_each(|out| *out = *out * scale / self.divisor);
        }
    }
}

/// Rotates the pairs (i, i + K/2).
#[inline(always)]
fn turn(x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
    let half = cos.len();
    let (x_1, x_2) = x.split_at(half);
    let (out_1, out_2) = out.split_at_mut(half);
    for i in 0..half {
        out_1[i] = x_1[i] * cos[i] - x_2[i] * sin[i];
        out_2[i] = x_1[i] * sin[i] + x_2[i] * cos[i];
    }
}

struct Merge<'a, const M: usize> {
    parts: [&'a [f32]; M],
    cos: &'a [f32],
    sin: &'a [f32],
    scale: &'a [f32],
    heads: usize,
    length: usize,
    channels: usize,
    stride: Stride,
    divisor: f32,
}

impl<const M: usize> Kernel<1> for Merge<'_, M> {
    #[inline(always)]
    fn block(&self, rows: Range<usize>, [out]: [&mut [f32]; 1], _sums: &mut [f32]) {
        let channels = self.channels;
        let columns = M * self.heads * channels;
        for (token, out) in rows.zip(out.chunks_exact_mut(columns)) {
            let (b, at) = (token / self.length, token % self.length);
            for (part, x) in self.parts.iter().enumerate() {
                for head in 0..self.heads {
                    let first = ((b * self.heads + head) * self.length + at) * channels;
                    let x = &x[first..first + channels];
                    let column = part * self.stride.part + head * self.stride.head;
                    self.unprepare(part, at, x, &mut out[column..column + channels]);
                }
            }
        }
    }
}

impl<const M: usize> Merge<'_, M> {
    #[inline(always)]
    fn unprepare(&self, part: usize, at: usize, x: &[f32], out: &mut [f32]) {
        let half = self.channels / 2;
        if self.cos.is_empty() || 2 <= part {
            out.copy_from_slice(x);
        } else {
            let cos = &self.cos[at * half..(at + 1) * half];
            let sin = &self.sin[at * half..(at + 1) * half];
            turn_back(x, cos, sin, out);
        }
        if part == 0 {
            let scale = self.scale.get(at).copied().unwrap_or(1.0);
            out.iter_mut().for_each(|out| *out = *out * scale / self.divisor);
        }
    }
}

/// Rotates the pairs (i, i + K/2) by the negative angle.
#[inline(always)]
fn turn_back(x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
    let half = cos.len();
    let (x_1, x_2) = x.split_at(half);
    let (out_1, out_2) = out.split_at_mut(half);
    for i in 0..half {
        out_1[i] = x_1[i] * cos[i] + x_2[i] * sin[i];
        out_2[i] = x_2[i] * cos[i] - x_1[i] * sin[i];
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::train::ops::testing::{assert_close, f64s, normal};

    const SHAPE: (usize, usize, usize, usize) = (3, 2, 11, 6);

    fn angles(scaled: bool) -> Angles {
        let angle = normal("angle", (11, 3));
        let scale = normal("scale", 11);
        Angles {
            cos_LK: angle.cos().unwrap(),
            sin_LK: angle.sin().unwrap(),
            query_scale_L: scaled.then_some(scale),
        }
    }

    fn check<const M: usize>(order: Order, angles: Option<&Angles>) {
        let (rows, heads, length, channels) = SHAPE;
        let layout = Heads { rows, heads, order, angles, divisor: 2.5 };
        let x = normal("x", (rows * length, M * heads * channels));
        let split: [Tensor; M] = layout.split(&x).unwrap();
        let wide_split: [Tensor; M] = layout.split(&f64s(&x)).unwrap();
        for (part, wide_part) in split.iter().zip(&wide_split) {
            assert_eq!(part.dims4().unwrap(), SHAPE);
            assert_close(part, wide_part);
        }
        let merged = layout.merge(split.each_ref()).unwrap();
        assert_close(&merged, &layout.merge(wide_split.each_ref()).unwrap());
        // `merge` is the transpose of `split`: Σ y·split(x) = Σ merge(y)·x.
        let y: [Tensor; M] = std::array::from_fn(|i| f64s(&normal(&i.to_string(), SHAPE)));
        let dot = |a: &Tensor, b: &Tensor| {
            (a * b).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap()
        };
        let left: f64 = y.iter().zip(&wide_split).map(|(y, part)| dot(y, part)).sum();
        let right = dot(&layout.merge(y.each_ref()).unwrap(), &f64s(&x));
        assert!((left - right).abs() < 1e-9 * left.abs().max(1.0), "{left} {right}");
    }

    #[test]
    fn kernels_equal_compositions_and_merge_is_the_transpose_of_split() {
        for order in [Order::Parts, Order::Heads] {
            check::<1>(order, None);
            check::<3>(order, None);
            check::<3>(order, Some(&angles(false)));
            check::<3>(order, Some(&angles(true)));
        }
    }

    /// Head 1 of the queries: columns 2 and 3 in the language model, 6 and 7 in the vision tower.
    #[test]
    fn the_orders_differ() {
        let device = candle_core::Device::Cpu;
        let x = Tensor::arange(0_f32, 12.0, &device).unwrap().reshape((1, 12)).unwrap();
        for (order, expected) in [(Order::Parts, [2.0, 3.0]), (Order::Heads, [6.0, 7.0])] {
            let layout = Heads { rows: 1, heads: 2, order, angles: None, divisor: 1.0 };
            for x in [x.clone(), x.to_dtype(DType::F64).unwrap()] {
                let [q, _k, _v] = layout.split(&x).unwrap();
                let q = q.to_dtype(DType::F32).unwrap().squeeze(0).unwrap();
                assert_eq!(q.to_vec3::<f32>().unwrap()[1][0], expected);
            }
        }
    }
}
