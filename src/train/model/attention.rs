//! Scaled dot-product attention with an explicit backward pass.
//!
//! Shapes: B rows, H heads, L queries, M keys, K channels of a head.

use candle_core::{D, DType, Result, Tensor};
use candle_nn::ops;

/// What the backward pass needs.
pub(super) struct SavedAttention {
    q_BHLK: Tensor,
    k_BHMK: Tensor,
    v_BHMK: Tensor,
    p_BHLM: Tensor,
}

/// Gradients of the three inputs.
pub(super) struct AttentionGradients {
    pub q_BHLK: Tensor,
    pub k_BHMK: Tensor,
    pub v_BHMK: Tensor,
}

/// `softmax(q kᵀ + mask) v`; the caller has scaled q. `mask` is added and broadcast over heads;
/// a forbidden pair has −∞, and no row forbids all. The softmax is computed in f32: candle's CPU
/// kernel adds up in the tensor's own format, and in bf16 such a sum stops at 256 terms of 1.
pub(super) fn attend(
    q_BHLK: Tensor,
    k_BHMK: Tensor,
    v_BHMK: Tensor,
    mask: Option<&Tensor>,
) -> Result<(Tensor, SavedAttention)> {
    let mut s_BHLM = q_BHLK.matmul(&k_BHMK.t()?)?;
    if let Some(mask) = mask {
        s_BHLM = s_BHLM.broadcast_add(mask)?;
    }
    let p_BHLM = ops::softmax_last_dim(&s_BHLM.to_dtype(DType::F32)?)?.to_dtype(v_BHMK.dtype())?;
    let o_BHLK = p_BHLM.matmul(&v_BHMK)?;
    Ok((o_BHLK, SavedAttention { q_BHLK, k_BHMK, v_BHMK, p_BHLM }))
}

/// dV = Pᵀg; dS = P·(gVᵀ − Σ P·gVᵀ); dQ = dS K; dK = dSᵀQ.
pub(super) fn attend_backward(
    saved: &SavedAttention,
    do_BHLK: &Tensor,
) -> Result<AttentionGradients> {
    let v_BHMK = saved.p_BHLM.t()?.matmul(do_BHLK)?;
    let dp_BHLM = do_BHLK.matmul(&saved.v_BHMK.t()?)?;
    let p_BHLM = saved.p_BHLM.to_dtype(DType::F32)?;
    let weighted_BHLM = (&p_BHLM * dp_BHLM.to_dtype(DType::F32)?)?;
    let sum_BHL1 = weighted_BHLM.sum_keepdim(D::Minus1)?;
    let ds_BHLM = (weighted_BHLM - p_BHLM.broadcast_mul(&sum_BHL1)?)?;
    let ds_BHLM = ds_BHLM.to_dtype(saved.q_BHLK.dtype())?;
    Ok(AttentionGradients {
        q_BHLK: ds_BHLM.matmul(&saved.k_BHMK)?,
        k_BHMK: ds_BHLM.t()?.matmul(&saved.q_BHLK)?,
        v_BHMK,
    })
}

/// (B·L, H·K) -> (B, H, L, K), contiguous.
pub(super) fn split_heads(x_TD: &Tensor, rows: usize, heads: usize) -> Result<Tensor> {
    let (tokens, width) = x_TD.dims2()?;
    x_TD.reshape((rows, tokens / rows, heads, width / heads))?.transpose(1, 2)?.contiguous()
}

/// (B, H, L, K) -> (B·L, H·K), contiguous.
pub(super) fn merge_heads(x_BHLK: &Tensor) -> Result<Tensor> {
    let (rows, heads, length, channels) = x_BHLK.dims4()?;
    x_BHLK.transpose(1, 2)?.contiguous()?.reshape((rows * length, heads * channels))
}

impl SavedAttention {
    /// B.
    pub(super) fn rows(&self) -> Result<usize> {
        self.q_BHLK.dim(0)
    }
}
