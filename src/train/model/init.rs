//! Fresh weights: of adapters, and of whole small models.

use std::{collections::BTreeMap, fs, path::Path};

use candle_core::{DType, Device, Result, Tensor};

use super::{ModelConfig, ModelError, expected_tensors, position::sine_table};
use crate::{job, train::rng::Stream};

/// Standard deviation of fresh tables, as the official `initializer_range`.
const DEVIATION: f64 = 0.02;

/// Adapters as PEFT begins: A uniform in ±1/√inputs (kaiming with a = √5), B zero.
pub(super) fn lora_tensors(
    config: &ModelConfig,
    lora: &job::Lora,
    seed: u64,
    device: &Device,
) -> Result<BTreeMap<String, Tensor>> {
    let shapes = expected_tensors(config);
    let mut tensors = BTreeMap::new();
    for i in 0..config.num_hidden_layers {
        for target in &lora.targets {
            let name = format!("transformer.h.{i}.{}", target.path());
            let shape = &shapes[&format!("{name}.weight")];
            let (outputs, inputs) = (shape[0], shape[1]);
            let rank = lora.r as usize;
            let bound = 1.0 / (inputs as f64).sqrt();
            let a = format!("{name}.lora_A.weight");
            let stream = Stream::new(seed).named(&a);
            #[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
            let values: Vec<f32> = (0..(rank * inputs) as u64)
                .map(|j| ((2.0 * stream.uniform(j) - 1.0) * bound) as f32)
                .collect();
            tensors.insert(a, Tensor::from_vec(values, (rank, inputs), device)?);
            let b = Tensor::zeros((outputs, rank), DType::F32, device)?;
            tensors.insert(format!("{name}.lora_B.weight"), b);
        }
    }
    Ok(tensors)
}

/// Fresh weights of a whole model, f32 on the CPU; a function of (seed, name, place) alone.
///
/// | tensor | begins as |
/// |---|---|
/// | norms | weight 1, bias 0; `ln_q` weight 0.1 |
/// | biases | 0 |
/// | `positional_embedding`, `attn_pool.pos_embed` | the 2-D sine table |
/// | query and key rows of `attn_pool.attn.in_proj_weight` | equal, normal, 1.5/√inputs |
/// | embedding, query | normal, 0.02 |
/// | projections back into the residual stream | normal, 0.6/√inputs/√(2·layers) |
/// | other matrices | normal, 0.6/√inputs, as torch's uniform default |
///
/// With equal rows for query and key, and little of the query itself, a query of the resampler
/// first looks at its own place, and the sine table gives the patches a place that the values
/// carry along: what follows then learns where things are in minutes.
pub fn init_random(config: &ModelConfig, seed: u64) -> Result<BTreeMap<String, Tensor>> {
    let shapes = expected_tensors(config);
    let fresh = shapes.into_iter().map(|(name, shape)| {
        let values = fresh_values(config, seed, &name, &shape);
        Ok((name, Tensor::from_vec(values, shape, &Device::Cpu)?))
    });
    fresh.collect()
}

fn fresh_values(config: &ModelConfig, seed: u64, name: &str, shape: &[usize]) -> Vec<f32> {
    let count: usize = shape.iter().product();
    let grid = config.visual.n_queries.isqrt();
    if name.ends_with("attn_pool.pos_embed") {
        return sine_table(grid, config.visual.output_dim);
    }
    if name.ends_with("visual.positional_embedding") {
        return sine_table(grid, config.visual.width);
    }
    if name.contains("ln_") && name.ends_with("weight") {
        return vec![if name.ends_with("ln_q.weight") { 0.1 } else { 1.0 }; count];
    }
    if name.ends_with("bias") {
        return vec![0.0; count];
    }
    let (stream, deviation) = (Stream::new(seed).named(name), deviation(config, name, shape));
    let pooled = name.ends_with("attn_pool.attn.in_proj_weight");
    let block = (count / 3) as u64;
    #[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
    (0..count as u64)
        .map(|i| {
            let shared = pooled && i < 2 * block;
            let (i, factor) = if shared { (i % block, 2.5) } else { (i, 1.0) };
            (stream.normal(i) * factor * deviation) as f32
        })
        .collect()
}

fn deviation(config: &ModelConfig, name: &str, shape: &[usize]) -> f64 {
    let inputs: usize = shape[1..].iter().product();
    let uniform = 0.6 / (inputs as f64).sqrt();
    let layers =
        if name.contains(".visual.") { config.visual.layers } else { config.num_hidden_layers };
    if name.ends_with("wte.weight") || name.ends_with("query") {
        DEVIATION
    } else if name.ends_with("c_proj.weight")
        || name.contains("resblocks") && name.ends_with("out_proj.weight")
    {
        uniform / (2.0 * layers as f64).sqrt()
    } else {
        uniform
    }
}

/// Writes `config.json` and `model.safetensors`; tensors are cast to `dtype`.
pub fn write_folder(
    folder: &Path,
    config: &ModelConfig,
    tensors: &BTreeMap<String, Tensor>,
    dtype: DType,
) -> std::result::Result<(), ModelError> {
    let write = |path: &Path| {
        let path = path.to_owned();
        move |source| ModelError::WriteFile { path, source }
    };
    fs::create_dir_all(folder).map_err(write(folder))?;
    let text = serde_json::to_string_pretty(config).expect("plain data");
    let path = folder.join("config.json");
    fs::write(&path, text + "\n").map_err(write(&path))?;
    let cast: std::result::Result<Vec<(String, Tensor)>, candle_core::Error> = tensors
        .iter()
        .map(|(name, tensor)| Ok((name.clone(), tensor.to_dtype(dtype)?.contiguous()?)))
        .collect();
    let path = folder.join("model.safetensors");
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    // One tensor after the other: all bytes at once would be the model once more.
    safetensors::serialize_to_file(cast?, metadata, &path)
        .map_err(|error| write(&path)(std::io::Error::other(error.to_string())))
}
