//! The vision transformer: picture -> patches -> pre-norm blocks.
//!
//! Shapes: N pictures, P patches, T = N·P, C = 3·patch² values of a patch, W width, H heads,
//! K channels of a head.

use candle_core::{Result, Tensor};

use super::{
    attention::{SavedAttention, attend, attend_backward},
    config::VisualConfig,
    layers::{LayerNorm, Linear, SavedLinear},
    position::PositionTable,
    store::{Gradients, Id, Store},
};
use crate::train::ops::{
    bias, gelu,
    heads::{Heads, Order},
};

/// Patch embedding, positions, `ln_pre` and the blocks. There is no class token and no norm at
/// the end.
#[derive(Clone, Debug)]
pub(super) struct VisionTransformer {
    config: VisualConfig,
    conv1: Id,
    positions: PositionTable,
    ln_pre: LayerNorm,
    blocks: Vec<Block>,
}

/// What the backward pass needs.
pub(super) struct SavedVision {
    patches_TC: Tensor,
    embedded_TW: Tensor,
    blocks: Vec<SavedBlock>,
}

impl VisionTransformer {
    /// The tower with names below `{prefix}`.
    pub(super) fn new(store: &Store, config: &VisualConfig, prefix: &str) -> Result<Self> {
        let positional = store.id(&format!("{prefix}.positional_embedding"));
        let grid = store.get(positional).dim(0)?.isqrt();
        Ok(VisionTransformer {
            config: config.clone(),
            conv1: store.id(&format!("{prefix}.conv1.weight")),
            positions: PositionTable::new(positional, grid, config.grid(), store)?,
            ln_pre: LayerNorm::new(store, &format!("{prefix}.ln_pre")),
            blocks: (0..config.layers)
                .map(|j| {
                    Block::new(store, config.heads, &format!("{prefix}.transformer.resblocks.{j}"))
                })
                .collect(),
        })
    }

    /// Pixels (N, 3, S, S) -> (N·P, W). Without `keep` there is nothing for a backward pass, and
    /// no more than one block's numbers at a time.
    pub(super) fn forward(
        &self,
        store: &Store,
        pixels: &Tensor,
        keep: bool,
    ) -> Result<(Tensor, SavedVision)> {
        let pictures = pixels.dim(0)?;
        let patches_TC = self.patches(pixels)?;
        let kernel_WC = store.get(self.conv1).flatten_from(1)?;
        let x_TW = patches_TC.matmul(&kernel_WC.t()?)?;
        let width = self.config.width;
        let x_NPW = x_TW.reshape((pictures, self.config.patches(), width))?;
        let embedded_TW = x_NPW
            .broadcast_add(&self.positions.table(store)?)?
            .reshape((pictures * self.config.patches(), width))?;
        let mut x_TW = self.ln_pre.forward(store, &embedded_TW)?;
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let (y_TW, saved) = block.forward(store, x_TW, pictures)?;
            x_TW = y_TW;
            if keep {
                blocks.push(saved);
            }
        }
        Ok((x_TW, SavedVision { patches_TC, embedded_TW, blocks }))
    }

    /// A convolution whose stride is its kernel is a matrix product over patches.
    fn patches(&self, pixels: &Tensor) -> Result<Tensor> {
        let (grid, patch) = (self.config.grid(), self.config.patch_size);
        let pictures = pixels.dim(0)?;
        // (N, 3, g, p, g, p) -> (N, g, g, 3, p, p), the order of conv1.weight.
        pixels
            .reshape(vec![pictures, 3, grid, patch, grid, patch])?
            .permute(vec![0, 2, 4, 1, 3, 5])?
            .contiguous()?
            .reshape((pictures * grid * grid, 3 * patch * patch))
    }

    /// Gradient (N·P, W) of the output; the pixels get none.
    pub(super) fn backward(
        &self,
        store: &Store,
        saved: &SavedVision,
        dy_TW: Tensor,
        grads: &mut Gradients,
    ) -> Result<()> {
        let mut dx_TW = dy_TW;
        for (block, saved) in self.blocks.iter().zip(&saved.blocks).rev() {
            dx_TW = block.backward(store, saved, &dx_TW, grads)?;
        }
        let dx_TW = self.ln_pre.backward(store, &saved.embedded_TW, &dx_TW, grads)?;
        let patches = self.config.patches();
        let dx_NPW = dx_TW.reshape((dx_TW.dim(0)? / patches, patches, self.config.width))?;
        let all = patches * self.config.width;
        let dpositions = bias::sum_rows(&dx_NPW.reshape((dx_NPW.dim(0)?, all))?)?;
        self.positions.backward(
            store,
            &dpositions.reshape((patches, self.config.width))?,
            grads,
        )?;
        grads.add(store, self.conv1, || dx_TW.t()?.matmul(&saved.patches_TC))
    }
}

#[derive(Clone, Debug)]
struct Block {
    heads: usize,
    ln_1: LayerNorm,
    in_proj: Linear,
    out_proj: Linear,
    ln_2: LayerNorm,
    c_fc: Linear,
    c_proj: Linear,
}

struct SavedBlock {
    x_TW: Tensor,
    in_proj: SavedLinear,
    attention: SavedAttention,
    out_proj: SavedLinear,
    middle_TW: Tensor,
    c_fc: SavedLinear,
    gelu_in: Tensor,
    c_proj: SavedLinear,
}

impl Block {
    fn new(store: &Store, heads: usize, prefix: &str) -> Self {
        let linear = |name: &str| Linear::new(store, &format!("{prefix}.{name}"));
        let norm = |name: &str| LayerNorm::new(store, &format!("{prefix}.{name}"));
        Block {
            heads,
            ln_1: norm("ln_1"),
            in_proj: linear("attn.in_proj"),
            out_proj: linear("attn.out_proj"),
            ln_2: norm("ln_2"),
            c_fc: linear("mlp.c_fc"),
            c_proj: linear("mlp.c_proj"),
        }
    }

    fn forward(
        &self,
        store: &Store,
        x_TW: Tensor,
        pictures: usize,
    ) -> Result<(Tensor, SavedBlock)> {
        // 1. x += out_proj(attention(ln_1(x)))
        let n_TW = self.ln_1.forward(store, &x_TW)?;
        let (qkv, in_proj) = self.in_proj.forward(store, &n_TW, None)?;
        let [q, k, v] = self.packed(pictures, qkv.dim(1)?).split(&qkv)?;
        let (o_NHPK, attention) = attend(q, k, v, None)?;
        let (y_TW, out_proj) =
            self.out_proj.forward(store, &self.plain(pictures).merge([&o_NHPK])?, None)?;
        let middle_TW = bias::add(y_TW, &x_TW)?;
        // 2. x += c_proj(gelu(c_fc(ln_2(x))))
        let n_TW = self.ln_2.forward(store, &middle_TW)?;
        let (gelu_in, c_fc) = self.c_fc.forward(store, &n_TW, None)?;
        let (y_TW, c_proj) = self.c_proj.forward(store, &gelu::forward(&gelu_in)?, None)?;
        let out_TW = bias::add(y_TW, &middle_TW)?;
        let saved =
            SavedBlock { x_TW, in_proj, attention, out_proj, middle_TW, c_fc, gelu_in, c_proj };
        Ok((out_TW, saved))
    }

    /// q, k and v are interleaved per head: the output of `in_proj` is (T, H, 3·K).
    fn packed(&self, pictures: usize, columns: usize) -> Heads<'static> {
        let channels = columns / self.heads / 3;
        Heads { divisor: (channels as f64).sqrt(), ..self.plain(pictures) }
    }

    fn plain(&self, pictures: usize) -> Heads<'static> {
        Heads { rows: pictures, heads: self.heads, order: Order::Heads, angles: None, divisor: 1.0 }
    }

    fn backward(
        &self,
        store: &Store,
        saved: &SavedBlock,
        dy_TW: &Tensor,
        grads: &mut Gradients,
    ) -> Result<Tensor> {
        // 2.
        let dg = self.c_proj.backward(store, &saved.c_proj, dy_TW, grads)?;
        let dg = gelu::backward(&saved.gelu_in, &dg)?;
        let dn_TW = self.c_fc.backward(store, &saved.c_fc, &dg, grads)?;
        let dx_TW = self.ln_2.backward(store, &saved.middle_TW, &dn_TW, grads)?;
        let dmiddle_TW = bias::add(dx_TW, dy_TW)?;
        // 1.
        let do_TW = self.out_proj.backward(store, &saved.out_proj, &dmiddle_TW, grads)?;
        let pictures = saved.attention.rows()?;
        let [do_NHPK] = self.plain(pictures).split(&do_TW)?;
        let d = attend_backward(&saved.attention, &do_NHPK)?;
        let packed = self.packed(pictures, 3 * do_TW.dim(1)?);
        let dqkv = packed.merge([&d.q_BHLK, &d.k_BHMK, &d.v_BHMK])?;
        let dn_TW = self.in_proj.backward(store, &saved.in_proj, &dqkv, grads)?;
        let dx_TW = self.ln_1.backward(store, &saved.x_TW, &dn_TW, grads)?;
        bias::add(dx_TW, &dmiddle_TW)
    }
}
