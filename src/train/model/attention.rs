//! Scaled dot-product attention with an explicit backward pass.
//!
//! Shapes: B rows, H heads, L queries, M keys, K channels of a head.

use candle_core::{Result, Tensor};

use crate::train::ops::softmax::{self, CausalMask};

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

/// `softmax(q kᵀ) v` over the keys that the mask leaves; the caller has scaled q.
pub(super) fn attend(
    q_BHLK: Tensor,
    k_BHMK: Tensor,
    v_BHMK: Tensor,
    mask: Option<&CausalMask>,
) -> Result<(Tensor, SavedAttention)> {
    let p_BHLM = softmax::forward(q_BHLK.matmul(&k_BHMK.t()?)?, mask)?;
    let o_BHLK = p_BHLM.matmul(&v_BHMK)?;
    Ok((o_BHLK, SavedAttention { q_BHLK, k_BHMK, v_BHMK, p_BHLM }))
}

/// dV = Pᵀg; dS = P·(gVᵀ − Σ P·gVᵀ); dQ = dS K; dK = dSᵀQ.
pub(super) fn attend_backward(
    saved: &SavedAttention,
    do_BHLK: &Tensor,
) -> Result<AttentionGradients> {
    let v_BHMK = saved.p_BHLM.t()?.matmul(do_BHLK)?;
    let ds_BHLM = softmax::backward(&saved.p_BHLM, do_BHLK.matmul(&saved.v_BHMK.t()?)?)?;
    Ok(AttentionGradients {
        q_BHLK: ds_BHLM.matmul(&saved.k_BHMK)?,
        k_BHMK: ds_BHLM.t()?.matmul(&saved.q_BHLK)?,
        v_BHMK,
    })
}

impl SavedAttention {
    /// B.
    pub(super) fn rows(&self) -> Result<usize> {
        self.q_BHLK.dim(0)
    }
}
