//! The decoder: RMS norm, rotary attention, `SwiGLU`.
//!
//! Shapes: B rows, L positions, T = B·L, D width, H heads, K channels of a head.

use candle_core::{Device, Result, Tensor};

use super::{
    Mode,
    attention::{SavedAttention, attend, attend_backward},
    config::ModelConfig,
    layers::{Dropout, Linear, RmsNorm, SavedLinear},
    lora,
    store::{Gradients, Store},
};
use crate::{
    job,
    train::ops::{
        bias,
        heads::{Angles, Heads, Order},
        softmax::CausalMask,
        swiglu,
    },
};

/// One decoder block.
#[derive(Clone, Debug)]
pub(super) struct Block {
    heads: usize,
    channels: usize,
    ln_1: RmsNorm,
    c_attn: Linear,
    attn_c_proj: Linear,
    ln_2: RmsNorm,
    w1: Linear,
    w2: Linear,
    mlp_c_proj: Linear,
}

/// What the backward pass needs.
pub(super) struct SavedBlock {
    x_TD: Tensor,
    c_attn: SavedLinear,
    attention: SavedAttention,
    attn_c_proj: SavedLinear,
    middle_TD: Tensor,
    w1: SavedLinear,
    w2: SavedLinear,
    a: Tensor,
    b: Tensor,
    mlp_c_proj: SavedLinear,
}

/// What all blocks of one pass share.
pub(super) struct Pass<'a> {
    pub rows: usize,
    pub angles: Angles,
    /// None while tokens are decoded one by one: the last one may look at all.
    pub mask: Option<CausalMask>,
    pub dropout: Dropout<'a>,
}

/// Keys and values of the positions seen so far, (B, H, M, K) each.
#[derive(Clone, Debug, Default)]
pub(super) struct Cache(Option<(Tensor, Tensor)>);

/// Angles of the positions `first..first + length`, and the log-n factors of their queries if
/// one of them is beyond the training length. `total` is the length of the input that was read at
/// once: NTK stretches the base by it, and only in [`Mode::Eval`]. This is a pure function of its
/// arguments; the official code keeps the last stretch and uses it in training too.
pub(super) fn angles(
    config: &ModelConfig,
    mode: Mode,
    (first, length, total): (usize, usize, usize),
    device: &Device,
) -> Result<Angles> {
    let base = config.rotary_emb_base * ntk_factor(config, mode, total);
    let half = config.kv_channels / 2;
    // The official code computes the angles in f32.
    #[expect(clippy::cast_possible_truncation, reason = "angles are f32")]
    let frequencies: Vec<f32> = (0..half)
        .map(|i| (1.0 / base.powf(2.0 * i as f64 / config.kv_channels as f64)) as f32)
        .collect();
    let angles: Vec<f32> = (first..first + length)
        .flat_map(|position| frequencies.iter().map(move |f| position as f32 * f))
        .collect();
    let angles = Tensor::from_vec(angles, (length, half), device)?;
    let factors = log_n_factors(config, mode, first, length);
    let factors = factors.map(|f| Tensor::from_vec(f, length, device)).transpose()?;
    Ok(Angles { cos_LK: angles.cos()?, sin_LK: angles.sin()?, query_scale_L: factors })
}

/// max(2^⌈log₂(L/s) + 1⌉ − 1, 1)^(K/(K−2)) for inputs beyond the training length s.
fn ntk_factor(config: &ModelConfig, mode: Mode, total: usize) -> f64 {
    if mode == Mode::Train || !config.use_dynamic_ntk || total <= config.seq_length {
        return 1.0;
    }
    let doublings = (total as f64 / config.seq_length as f64).log2() + 1.0;
    let alpha = (2_f64.powf(doublings.ceil()) - 1.0).max(1.0);
    let channels = config.kv_channels as f64;
    alpha.powf(channels / (channels - 2.0))
}

/// log_s(i) for positions i > s, counted from 1, else 1.
fn log_n_factors(
    config: &ModelConfig,
    mode: Mode,
    first: usize,
    length: usize,
) -> Option<Vec<f32>> {
    if mode == Mode::Train || !config.use_logn_attn || first + length <= config.seq_length {
        return None;
    }
    let factor = |i: usize| {
        if i <= config.seq_length { 1.0 } else { (i as f64).ln() / (config.seq_length as f64).ln() }
    };
    #[expect(clippy::cast_possible_truncation, reason = "a factor near 1")]
    Some((first + 1..=first + length).map(|i| factor(i) as f32).collect())
}

impl Block {
    /// Block `i`; adapters count through all blocks.
    pub(super) fn new(
        store: &Store,
        config: &ModelConfig,
        i: usize,
        lora: Option<&job::Lora>,
    ) -> Self {
        let prefix = format!("transformer.h.{i}");
        let linear = |path: &str| {
            let name = format!("{prefix}.{path}");
            let mut linear = Linear::new(store, &name);
            if let (Some(lora), Some(a)) = (lora, store.find(&format!("{name}.lora_A.weight"))) {
                linear.adapter = Some(lora::Adapter {
                    a,
                    b: store.id(&format!("{name}.lora_B.weight")),
                    scale: lora.alpha / f64::from(lora.r),
                    index: adapter_index(i, path),
                });
            }
            linear
        };
        let norm = |name: &str| RmsNorm {
            weight: store.id(&format!("{prefix}.{name}.weight")),
            epsilon: config.layer_norm_epsilon,
        };
        Block {
            heads: config.num_attention_heads,
            channels: config.kv_channels,
            ln_1: norm("ln_1"),
            c_attn: linear("attn.c_attn"),
            attn_c_proj: linear("attn.c_proj"),
            ln_2: norm("ln_2"),
            w1: linear("mlp.w1"),
            w2: linear("mlp.w2"),
            mlp_c_proj: linear("mlp.c_proj"),
        }
    }

    /// (T, D) -> (T, D). With a cache, keys and values of earlier positions come first.
    pub(super) fn forward(
        &self,
        store: &Store,
        x_TD: Tensor,
        pass: &Pass,
        cache: Option<&mut Cache>,
    ) -> Result<(Tensor, SavedBlock)> {
        // 1. x += c_proj(attention(ln_1 x))
        let n_TD = self.ln_1.forward(store, &x_TD)?;
        let (qkv, c_attn) = self.c_attn.forward(store, &n_TD, pass.dropout)?;
        let [q, mut k, mut v] = self.packed(pass).split(&qkv)?;
        if let Some(cache) = cache {
            if let Some((old_k, old_v)) = &cache.0 {
                (k, v) = (Tensor::cat(&[old_k, &k], 2)?, Tensor::cat(&[old_v, &v], 2)?);
            }
            cache.0 = Some((k.clone(), v.clone()));
        }
        let (o_BHLK, attention) = attend(q, k, v, pass.mask.as_ref())?;
        let (y_TD, attn_c_proj) =
            self.attn_c_proj.forward(store, &self.plain(pass).merge([&o_BHLK])?, pass.dropout)?;
        let middle_TD = bias::add(y_TD, &x_TD)?;
        // 2. x += c_proj(w1(n) · silu(w2(n))) with n = ln_2 x
        let n_TD = self.ln_2.forward(store, &middle_TD)?;
        let (a, w1) = self.w1.forward(store, &n_TD, pass.dropout)?;
        let (b, w2) = self.w2.forward(store, &n_TD, pass.dropout)?;
        let (y_TD, mlp_c_proj) =
            self.mlp_c_proj.forward(store, &swiglu::forward(&a, &b)?, pass.dropout)?;
        let out_TD = bias::add(y_TD, &middle_TD)?;
        let saved = SavedBlock {
            x_TD,
            c_attn,
            attention,
            attn_c_proj,
            middle_TD,
            w1,
            w2,
            a,
            b,
            mlp_c_proj,
        };
        Ok((out_TD, saved))
    }

    /// q, k and v are three blocks of columns; q and k are turned, q is scaled.
    fn packed<'a>(&self, pass: &'a Pass) -> Heads<'a> {
        Heads {
            rows: pass.rows,
            heads: self.heads,
            order: Order::Parts,
            angles: Some(&pass.angles),
            divisor: (self.channels as f64).sqrt(),
        }
    }

    /// The output of the attention as heads.
    fn plain<'a>(&self, pass: &'a Pass) -> Heads<'a> {
        Heads { angles: None, divisor: 1.0, ..self.packed(pass) }
    }

    /// Gradient of the output -> gradient of the input.
    pub(super) fn backward(
        &self,
        store: &Store,
        saved: &SavedBlock,
        dy_TD: &Tensor,
        pass: &Pass,
        grads: &mut Gradients,
    ) -> Result<Tensor> {
        // 2.
        let du = self.mlp_c_proj.backward(store, &saved.mlp_c_proj, dy_TD, grads)?;
        let (da, db) = swiglu::backward(&saved.a, &saved.b, &du)?;
        let dn_TD = self.w1.backward(store, &saved.w1, &da, grads)?;
        let dn_TD = bias::add(dn_TD, &self.w2.backward(store, &saved.w2, &db, grads)?)?;
        let dx_TD = self.ln_2.backward(store, &saved.middle_TD, &dn_TD, grads)?;
        let dmiddle_TD = bias::add(dx_TD, dy_TD)?;
        // 1.
        let do_TD = self.attn_c_proj.backward(store, &saved.attn_c_proj, &dmiddle_TD, grads)?;
        let [do_BHLK] = self.plain(pass).split(&do_TD)?;
        let d = attend_backward(&saved.attention, &do_BHLK)?;
        let dqkv = self.packed(pass).merge([&d.q_BHLK, &d.k_BHMK, &d.v_BHMK])?;
        let dn_TD = self.c_attn.backward(store, &saved.c_attn, &dqkv, grads)?;
        let dx_TD = self.ln_1.backward(store, &saved.x_TD, &dn_TD, grads)?;
        bias::add(dx_TD, &dmiddle_TD)
    }
}

/// A number for each adapter of the model; dropout masks depend on it.
fn adapter_index(block: usize, path: &str) -> u64 {
    const PATHS: [&str; 5] = ["attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj"];
    let within = PATHS.iter().position(|known| *known == path).unwrap_or(PATHS.len());
    (block * (PATHS.len() + 1) + within) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ModelConfig {
        let visual = serde_json::json!({"image_size": 28, "patch_size": 14, "width": 8, "layers": 1,
            "heads": 2, "mlp_ratio": 2.0, "output_dim": 8, "image_start_id": 260, "n_queries": 4});
        serde_json::from_value(serde_json::json!({"vocab_size": 320, "hidden_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 2, "kv_channels": 4,
            "intermediate_size": 16, "seq_length": 64, "visual": visual}))
        .unwrap()
    }

    #[test]
    fn ntk_acts_only_outside_of_training_and_beyond_the_training_length() {
        let config = config();
        let factor = |mode, total| ntk_factor(&config, mode, total);
        assert_eq!(factor(Mode::Train, 1000), 1.0);
        assert_eq!(factor(Mode::Eval, 64), 1.0);
        // 65 and 128 tokens: alpha = 2^ceil(log2(L/64) + 1) - 1 = 3.
        assert_eq!(factor(Mode::Eval, 65), 3_f64.powf(2.0));
        assert_eq!(factor(Mode::Eval, 128), 3_f64.powf(2.0));
        assert_eq!(factor(Mode::Eval, 129), 7_f64.powf(2.0));
    }

    #[test]
    fn log_n_scales_only_late_queries() {
        let factors = log_n_factors(&config(), Mode::Eval, 62, 4).unwrap();
        assert_eq!(factors[..2], [1.0, 1.0]);
        assert!((f64::from(factors[2]) - 65_f64.ln() / 64_f64.ln()).abs() < 1e-7);
        assert_eq!(log_n_factors(&config(), Mode::Train, 62, 4), None);
        assert_eq!(log_n_factors(&config(), Mode::Eval, 0, 64), None);
    }
}
