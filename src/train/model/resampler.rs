//! The resampler: learned queries read the patches by cross-attention, then `ln_post` and `proj`.
//!
//! Shapes: N pictures, P patches, Q queries, W width of the vision tower, D width of the
//! language model, H heads, K channels of a head.

use candle_core::{Result, Tensor};

use super::{
    attention::{SavedAttention, attend, attend_backward},
    config::VisualConfig,
    layers::{LayerNorm, Linear, SavedLinear},
    position::PositionTable,
    store::{Gradients, Id, Store},
};
use crate::train::ops::{
    bias,
    heads::{Heads, Order},
};

/// `attn_pool`, `ln_post` and `proj`.
#[derive(Clone, Debug)]
pub(super) struct Resampler {
    heads: usize,
    kv_proj: Option<Linear>,
    ln_q: LayerNorm,
    ln_kv: LayerNorm,
    query: Id,
    query_positions: PositionTable,
    key_positions: PositionTable,
    in_proj_weight: Id,
    in_proj_bias: Id,
    out_proj: Linear,
    ln_post: LayerNorm,
    proj: Id,
}

/// What the backward pass needs.
pub(super) struct SavedResampler {
    kv_proj: Option<SavedLinear>,
    kv_in: Tensor,
    q_in: Tensor,
    k_in: Tensor,
    v_in: Tensor,
    attention: SavedAttention,
    out_proj: SavedLinear,
    post_in: Tensor,
    post_out: Tensor,
}

impl Resampler {
    /// The resampler with names below `{prefix}`.
    pub(super) fn new(store: &Store, config: &VisualConfig, prefix: &str) -> Result<Self> {
        let pool = format!("{prefix}.attn_pool");
        let pos_embed = store.id(&format!("{pool}.pos_embed"));
        let grid = config.n_queries.isqrt();
        let norm = |name: &str| LayerNorm::new(store, name);
        Ok(Resampler {
            heads: config.resampler_heads(),
            kv_proj: config.has_kv_proj().then(|| Linear::new(store, &format!("{pool}.kv_proj"))),
            ln_q: norm(&format!("{pool}.ln_q")),
            ln_kv: norm(&format!("{pool}.ln_kv")),
            query: store.id(&format!("{pool}.query")),
            query_positions: PositionTable::new(pos_embed, grid, grid, store)?,
            key_positions: PositionTable::new(pos_embed, grid, config.grid(), store)?,
            in_proj_weight: store.id(&format!("{pool}.attn.in_proj_weight")),
            in_proj_bias: store.id(&format!("{pool}.attn.in_proj_bias")),
            out_proj: Linear::new(store, &format!("{pool}.attn.out_proj")),
            ln_post: norm(&format!("{prefix}.ln_post")),
            proj: store.id(&format!("{prefix}.proj")),
        })
    }

    /// (N·P, W) -> (N, Q, D).
    pub(super) fn forward(
        &self,
        store: &Store,
        x_TW: &Tensor,
        pictures: usize,
    ) -> Result<(Tensor, SavedResampler)> {
        // 1. Keys and values: project, normalise; only the keys get positions.
        let (kv_in, kv_proj) = match &self.kv_proj {
            Some(layer) => {
                let (y, saved) = layer.forward(store, x_TW, None)?;
                (y, Some(saved))
            }
            None => (x_TW.clone(), None),
        };
        let v_in = self.ln_kv.forward(store, &kv_in)?;
        let (tokens, width) = v_in.dims2()?;
        let positions = self.key_positions.table(store)?.flatten_all()?;
        let k_in = v_in.copy()?.reshape((pictures, tokens / pictures * width))?;
        let k_in = bias::add_bias(k_in, &positions)?.reshape((tokens, width))?;
        // 2. Queries: the same for every picture.
        let q_in = (self.ln_q.forward(store, store.get(self.query))?
            + self.query_positions.table(store)?)?;
        let q_QD = self.project(store, &q_in, 0)?;
        let channels = width / self.heads;
        let scaled = Heads { divisor: (channels as f64).sqrt(), ..self.as_heads(1) };
        let [q_1HQK] = scaled.split(&q_QD)?;
        let (_one, heads, queries, _channels) = q_1HQK.dims4()?;
        let q_NHQK = q_1HQK.broadcast_as((pictures, heads, queries, channels))?.contiguous()?;
        let each = self.as_heads(pictures);
        let [k_NHPK] = each.split(&self.project(store, &k_in, 1)?)?;
        let [v_NHPK] = each.split(&self.project(store, &v_in, 2)?)?;
        // 3. Attention, output, norm and the last projection (x @ proj, not transposed).
        let (o_NHQK, attention) = attend(q_NHQK, k_NHPK, v_NHPK, None)?;
        let (post_in, out_proj) = self.out_proj.forward(store, &each.merge([&o_NHQK])?, None)?;
        let post_out = self.ln_post.forward(store, &post_in)?;
        let features =
            post_out.matmul(store.get(self.proj))?.reshape((pictures, queries, width))?;
        let saved = SavedResampler {
            kv_proj,
            kv_in,
            q_in,
            k_in,
            v_in,
            attention,
            out_proj,
            post_in,
            post_out,
        };
        Ok((features, saved))
    }

    fn as_heads(&self, rows: usize) -> Heads<'static> {
        Heads { rows, heads: self.heads, order: Order::Parts, angles: None, divisor: 1.0 }
    }

    /// Row block `part` (0 q, 1 k, 2 v) of `in_proj`.
    fn project(&self, store: &Store, x_TD: &Tensor, part: usize) -> Result<Tensor> {
        let width = x_TD.dim(1)?;
        let weight = store.get(self.in_proj_weight).narrow(0, part * width, width)?;
        let bias = store.get(self.in_proj_bias).narrow(0, part * width, width)?;
        bias::add_bias(x_TD.matmul(&weight.t()?)?, &bias)
    }

    /// Gradient (N, Q, D) of the features -> gradient (N·P, W) of the patches.
    pub(super) fn backward(
        &self,
        store: &Store,
        saved: &SavedResampler,
        dy_NQD: &Tensor,
        grads: &mut Gradients,
    ) -> Result<Tensor> {
        let pictures = dy_NQD.dim(0)?;
        // 3.
        let dy_TD = dy_NQD.flatten(0, 1)?;
        grads.add(store, self.proj, || saved.post_out.t()?.matmul(&dy_TD))?;
        let dpost = dy_TD.matmul(&store.get(self.proj).t()?)?;
        let dpost = self.ln_post.backward(store, &saved.post_in, &dpost, grads)?;
        let do_TD = self.out_proj.backward(store, &saved.out_proj, &dpost, grads)?;
        let each = self.as_heads(pictures);
        let [do_NHQK] = each.split(&do_TD)?;
        let d = attend_backward(&saved.attention, &do_NHQK)?;
        // 2.
        let channels = d.q_BHLK.dim(3)?;
        let scaled = Heads { divisor: (channels as f64).sqrt(), ..self.as_heads(1) };
        let parts = [
            scaled.merge([&d.q_BHLK.sum_keepdim(0)?])?,
            each.merge([&d.k_BHMK])?,
            each.merge([&d.v_BHMK])?,
        ];
        let inputs = [&saved.q_in, &saved.k_in, &saved.v_in];
        grads.add(store, self.in_proj_weight, || {
            let weights: Vec<Tensor> =
                parts.iter().zip(inputs).map(|(d, x)| d.t()?.matmul(x)).collect::<Result<_>>()?;
            Tensor::cat(&weights, 0)
        })?;
        grads.add(store, self.in_proj_bias, || {
            let biases: Vec<Tensor> = parts.iter().map(bias::sum_rows).collect::<Result<_>>()?;
            Tensor::cat(&biases, 0)
        })?;
        let dinput = |part: usize| {
            let width = parts[part].dim(1)?;
            parts[part].matmul(&store.get(self.in_proj_weight).narrow(0, part * width, width)?)
        };
        let (dq_in, dk_in, dv_in) = (dinput(0)?, dinput(1)?, dinput(2)?);
        self.query_positions.backward(store, &dq_in, grads)?;
        let dquery = self.ln_q.backward(store, store.get(self.query), &dq_in, grads)?;
        grads.add(store, self.query, || Ok(dquery))?;
        // 1.
        let (tokens, width) = dk_in.dims2()?;
        let dpositions = bias::sum_rows(&dk_in.reshape((pictures, tokens / pictures * width))?)?;
        let dpositions = dpositions.reshape((tokens / pictures, width))?;
        self.key_positions.backward(store, &dpositions, grads)?;
        let dkv = self.ln_kv.backward(store, &saved.kv_in, &bias::add(dv_in, &dk_in)?, grads)?;
        match (&self.kv_proj, &saved.kv_proj) {
            (Some(layer), Some(saved)) => layer.backward(store, saved, &dkv, grads),
            _ => Ok(dkv),
        }
    }
}
