//! Names and shapes of all tensors, and which of them a job trains.

use std::collections::BTreeMap;

use super::{ModelConfig, Trainable};
use crate::job::Part;

/// Prefix of vision tower and resampler.
pub(super) const VISUAL: &str = "transformer.visual";

/// Name and shape of every tensor that a checkpoint of this configuration holds.
pub fn expected_tensors(config: &ModelConfig) -> BTreeMap<String, Vec<usize>> {
    let mut shapes = BTreeMap::new();
    let mut put = |name: String, shape: &[usize]| {
        shapes.insert(name, shape.to_vec());
    };
    let (d, v) = (config.hidden_size, config.vocab_size);
    put("transformer.wte.weight".to_owned(), &[v, d]);
    put("lm_head.weight".to_owned(), &[v, d]);
    put("transformer.ln_f.weight".to_owned(), &[d]);
    let half = config.intermediate_size / 2;
    for i in 0..config.num_hidden_layers {
        let h = format!("transformer.h.{i}");
        put(format!("{h}.ln_1.weight"), &[d]);
        put(format!("{h}.ln_2.weight"), &[d]);
        put(format!("{h}.attn.c_attn.weight"), &[3 * d, d]);
        put(format!("{h}.attn.c_attn.bias"), &[3 * d]);
        put(format!("{h}.attn.c_proj.weight"), &[d, d]);
        put(format!("{h}.mlp.w1.weight"), &[half, d]);
        put(format!("{h}.mlp.w2.weight"), &[half, d]);
        put(format!("{h}.mlp.c_proj.weight"), &[d, half]);
    }
    visual_tensors(config, &mut put);
    shapes
}

fn visual_tensors(config: &ModelConfig, put: &mut impl FnMut(String, &[usize])) {
    let visual = &config.visual;
    let (w, d, p) = (visual.width, visual.output_dim, visual.patch_size);
    let pair = |put: &mut dyn FnMut(String, &[usize]), name: String, shape: &[usize]| {
        put(format!("{name}.weight"), shape);
        put(format!("{name}.bias"), &shape[..1]);
    };
    put(format!("{VISUAL}.conv1.weight"), &[w, 3, p, p]);
    // The table of the official tower has 16x16 places, as many as there are queries.
    put(format!("{VISUAL}.positional_embedding"), &[visual.n_queries, w]);
    pair(put, format!("{VISUAL}.ln_pre"), &[w]);
    for j in 0..visual.layers {
        let block = format!("{VISUAL}.transformer.resblocks.{j}");
        let mlp = visual.mlp_width();
        pair(put, format!("{block}.ln_1"), &[w]);
        pair(put, format!("{block}.ln_2"), &[w]);
        pair(put, format!("{block}.attn.in_proj"), &[3 * w, w]);
        pair(put, format!("{block}.attn.out_proj"), &[w, w]);
        pair(put, format!("{block}.mlp.c_fc"), &[mlp, w]);
        pair(put, format!("{block}.mlp.c_proj"), &[w, mlp]);
    }
    let pool = format!("{VISUAL}.attn_pool");
    put(format!("{pool}.query"), &[visual.n_queries, d]);
    put(format!("{pool}.pos_embed"), &[visual.n_queries, d]);
    if visual.has_kv_proj() {
        put(format!("{pool}.kv_proj.weight"), &[d, w]);
    }
    put(format!("{pool}.attn.in_proj_weight"), &[3 * d, d]);
    put(format!("{pool}.attn.in_proj_bias"), &[3 * d]);
    pair(put, format!("{pool}.attn.out_proj"), &[d, d]);
    pair(put, format!("{pool}.ln_q"), &[d]);
    pair(put, format!("{pool}.ln_kv"), &[d]);
    pair(put, format!("{VISUAL}.ln_post"), &[d]);
    put(format!("{VISUAL}.proj"), &[d, d]);
}

/// Whether a job trains the tensor `name`.
pub(super) fn is_trained(name: &str, trainable: &Trainable) -> bool {
    match trainable {
        Trainable::Nothing => false,
        Trainable::Lora { .. } => name.contains(".lora_"),
        Trainable::Everything => true,
        Trainable::Full(parts) => parts.contains(&part_of(name)),
    }
}

fn part_of(name: &str) -> Part {
    if !name.starts_with("transformer.visual.") {
        Part::Lm
    } else if name.contains(".attn_pool.") {
        Part::Resampler
    } else {
        Part::Vit
    }
}
