//! Softmax over keys, with a mask.
//!
//! Shapes: B rows, H heads, L queries, M keys.
#![expect(clippy::inline_always, reason = "only inlined code is compiled for the vector unit")]

use std::{cell::OnceCell, ops::Range};

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::ops;

use super::{
    host::{self, Kernel, Plan},
    math, wide,
};

/// A query sees itself and what lies before it, and no padding. Padding is on the right, so every
/// query sees something.
#[derive(Debug)]
pub(crate) struct CausalMask {
    /// Length of each row without its padding; at least 1.
    lengths: Vec<usize>,
    additive: OnceCell<Tensor>,
}

impl CausalMask {
    pub(crate) fn new(lengths: &[usize]) -> Self {
        CausalMask { lengths: lengths.to_vec(), additive: OnceCell::new() }
    }

    /// (B, 1, L, L): 0 where a query may look, −∞ where not; made on the device, once.
    fn additive(&self, length: usize, dtype: DType, device: &Device) -> Result<&Tensor> {
        if let Some(mask) = self.additive.get() {
            return Ok(mask);
        }
        let size = u32::try_from(length).expect("a row has fewer than 2^32 tokens");
        let places = Tensor::arange(0, size, device)?;
        let lengths: Vec<u32> = self
            .lengths
            .iter()
            .map(|length| u32::try_from(*length).expect("a row has fewer than 2^32 tokens"))
            .collect();
        let lengths = Tensor::from_vec(lengths, (self.lengths.len(), 1, 1, 1), device)?;
        let keys = places.reshape((1, 1, 1, length))?;
        let causal = keys.broadcast_le(&places.reshape((1, 1, length, 1))?)?;
        let visible = causal.broadcast_mul(&keys.broadcast_lt(&lengths)?)?;
        let zero = Tensor::zeros(visible.shape(), dtype, device)?;
        let hidden = Tensor::full(f32::NEG_INFINITY, visible.shape(), device)?.to_dtype(dtype)?;
        let mask = visible.where_cond(&zero, &hidden)?;
        Ok(self.additive.get_or_init(|| mask))
    }
}

/// Softmax of scores (B, H, L, M) that nothing else uses. It is computed in f32: candle's CPU
/// kernel adds up in the tensor's own format, and in bf16 such a sum stops at 256 terms of 1.
pub(crate) fn forward(s_BHLM: Tensor, mask: Option<&CausalMask>) -> Result<Tensor> {
    let (rows, heads, queries, keys) = s_BHLM.dims4()?;
    if host::is_host([&s_BHLM]) {
        let kernel = Forward { heads, queries, keys, lengths: mask.map(|m| m.lengths.as_slice()) };
        let plan = Plan { rows: rows * heads * queries, widths: [keys], sums: 0 };
        host::change(&s_BHLM, |s| drop(host::run_into(&kernel, plan, [s])))?;
        return Ok(s_BHLM);
    }
    let dtype = s_BHLM.dtype();
    let s_BHLM = s_BHLM.to_dtype(wide(dtype))?;
    let s_BHLM = match mask {
        Some(mask) => {
            s_BHLM.broadcast_add(mask.additive(queries, s_BHLM.dtype(), s_BHLM.device())?)?
        }
        None => s_BHLM,
    };
    ops::softmax_last_dim(&s_BHLM)?.to_dtype(dtype)
}

struct Forward<'a> {
    heads: usize,
    queries: usize,
    keys: usize,
    lengths: Option<&'a [usize]>,
}

impl Kernel<1> for Forward<'_> {
    #[inline(always)]
    fn block(&self, rows: Range<usize>, [s]: [&mut [f32]; 1], _sums: &mut [f32]) {
        for (row, s) in rows.zip(s.chunks_exact_mut(self.keys)) {
            let visible = match self.lengths {
                Some(lengths) => {
                    let length = lengths[row / (self.heads * self.queries)];
                    length.min(row % self.queries + 1)
                }
                None => self.keys,
            };
            let (seen, hidden) = s.split_at_mut(visible);
            hidden.fill(0.0);
            let max = math::max(seen);
            seen.iter_mut().for_each(|s| *s = math::exp(*s - max));
            let scale = 1.0 / math::sum(seen, seen, |p, _| p);
            seen.iter_mut().for_each(|s| *s *= scale);
        }
    }
}

/// P·(g − Σ g·P) for a gradient g of P that nothing else uses.
pub(crate) fn backward(p_BHLM: &Tensor, g_BHLM: Tensor) -> Result<Tensor> {
    if host::is_host([p_BHLM, &g_BHLM]) {
        let keys = g_BHLM.dim(D::Minus1)?;
        let plan = Plan { rows: g_BHLM.elem_count() / keys, widths: [keys], sums: 0 };
        host::change_with(&g_BHLM, p_BHLM, |g, p| {
            host::run_into(&Backward { p, keys }, plan, [g]);
        })?;
        return Ok(g_BHLM);
    }
    let dtype = p_BHLM.dtype();
    let p_BHLM = p_BHLM.to_dtype(wide(dtype))?;
    let weighted_BHLM = (&p_BHLM * g_BHLM.to_dtype(wide(dtype))?)?;
    let sum_BHL1 = weighted_BHLM.sum_keepdim(D::Minus1)?;
    (weighted_BHLM - p_BHLM.broadcast_mul(&sum_BHL1)?)?.to_dtype(dtype)
}

struct Backward<'a> {
    p: &'a [f32],
    keys: usize,
}

impl Kernel<1> for Backward<'_> {
    #[inline(always)]
    fn block(&self, rows: Range<usize>, [g]: [&mut [f32]; 1], _sums: &mut [f32]) {
        let p = &self.p[rows.start * self.keys..rows.end * self.keys];
        for (p, g) in p.chunks_exact(self.keys).zip(g.chunks_exact_mut(self.keys)) {
            let sum = math::sum(p, g, |p, g| p * g);
            g.iter_mut().zip(p).for_each(|(g, p)| *g = p * (*g - sum));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::ops::testing::{assert_close, f64s, normal};

    #[test]
    fn kernels_equal_compositions() {
        // One row has a single token: its padding looks at that token only, and is finite.
        let lengths = [19, 1, 7];
        let s = (normal("s", (3, 2, 19, 19)) * 4.0).unwrap();
        let g = normal("g", (3, 2, 19, 19));
        for mask in [None, Some(CausalMask::new(&lengths))] {
            let p = forward(s.copy().unwrap(), mask.as_ref()).unwrap();
            let wide_mask = mask.as_ref().map(|mask| CausalMask::new(&mask.lengths));
            let wide_p = forward(f64s(&s), wide_mask.as_ref()).unwrap();
            assert_close(&p, &wide_p);
            let ds = backward(&p, g.copy().unwrap()).unwrap();
            assert_close(&ds, &backward(&wide_p, f64s(&g)).unwrap());
        }
    }

    #[test]
    fn hidden_keys_get_exactly_nothing() {
        let mask = CausalMask::new(&[3, 2]);
        let p = forward(normal("s", (2, 1, 4, 4)), Some(&mask)).unwrap();
        let p = p.reshape((2, 4, 4)).unwrap().to_vec3::<f32>().unwrap();
        for (row, length) in [3, 2].into_iter().enumerate() {
            for (query, keys) in p[row].iter().enumerate() {
                for (key, p) in keys.iter().enumerate() {
                    let seen = key <= query && key < length;
                    assert_eq!(0.0 < *p, seen, "{row} {query} {key}");
                }
            }
        }
    }
}
