//! `config.json` of a Qwen-VL folder.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ModelError;

/// The language model's numbers and, below `visual`, those of the vision tower. Keys that do
/// not change the arithmetic are ignored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Rows of embedding and head.
    pub vocab_size: usize,
    /// Width.
    pub hidden_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Attention heads; there are as many keys as queries.
    pub num_attention_heads: usize,
    /// Width of one head.
    pub kv_channels: usize,
    /// Twice the width of `w1` and `w2`.
    pub intermediate_size: usize,
    /// Epsilon of the RMS norms.
    #[serde(default = "default_epsilon")]
    pub layer_norm_epsilon: f64,
    /// Base of the rotary angles.
    #[serde(default = "default_rotary_base")]
    pub rotary_emb_base: f64,
    /// Length up to which neither NTK nor log-n scaling acts.
    #[serde(default = "default_seq_length")]
    pub seq_length: usize,
    /// Stretch the rotary base for longer inputs, outside of training only.
    #[serde(default = "yes")]
    pub use_dynamic_ntk: bool,
    /// Scale queries for longer inputs, outside of training only.
    #[serde(default = "yes")]
    pub use_logn_attn: bool,
    /// Vision tower and resampler.
    pub visual: VisualConfig,
}

/// Vision tower and resampler.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VisualConfig {
    /// Side of the input picture in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Width of the vision transformer.
    pub width: usize,
    /// Its blocks.
    pub layers: usize,
    /// Its attention heads.
    pub heads: usize,
    /// Width of its MLP, as a multiple of `width`, rounded down.
    pub mlp_ratio: f64,
    /// Width of the features, equal to `hidden_size`.
    pub output_dim: usize,
    /// Id of `<img>`; `</img>` and `<imgpad>` follow.
    pub image_start_id: u32,
    /// Features of one picture; a square number. The official code has 256 as a default.
    #[serde(default = "default_queries")]
    pub n_queries: usize,
}

impl ModelConfig {
    /// Reads and checks `config.json` in `folder`.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        Self::read_file(&folder.join("config.json"))
    }

    /// Reads and checks a configuration file.
    pub fn read_file(path: &Path) -> Result<Self, ModelError> {
        let path = path.to_owned();
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ModelError::ReadFile { path: path.clone(), source })?;
        let config: ModelConfig = serde_json::from_str(&text)
            .map_err(|source| ModelError::Config { path: path.clone(), source })?;
        match config.problem() {
            Some(what) => Err(ModelError::BadConfig { path, what }),
            None => Ok(config),
        }
    }

    /// What makes the numbers impossible, if anything.
    pub fn problem(&self) -> Option<String> {
        let visual = &self.visual;
        let grid = |n: usize| n.isqrt() * n.isqrt() == n && n != 0;
        let rules = [
            (
                self.num_attention_heads * self.kv_channels == self.hidden_size,
                "hidden_size must be num_attention_heads * kv_channels",
            ),
            (self.kv_channels.is_multiple_of(2), "kv_channels must be even"),
            (self.intermediate_size.is_multiple_of(2), "intermediate_size must be even"),
            (visual.output_dim == self.hidden_size, "visual.output_dim must be hidden_size"),
            (
                visual.heads != 0 && visual.width.is_multiple_of(visual.heads),
                "visual.heads must divide visual.width",
            ),
            (
                visual.patch_size != 0 && visual.image_size.is_multiple_of(visual.patch_size),
                "visual.patch_size must divide visual.image_size",
            ),
            (grid(visual.n_queries), "visual.n_queries must be a square number"),
            (visual.output_dim.is_multiple_of(4), "visual.output_dim must be divisible by 4"),
            (
                visual.output_dim.is_multiple_of(visual.resampler_heads()),
                "visual.output_dim must be below 128 or a multiple of it",
            ),
            (
                (visual.image_start_id as usize) + 2 < self.vocab_size,
                "visual.image_start_id and the two ids after it must lie below vocab_size",
            ),
        ];
        let broken = rules.iter().find(|(holds, _what)| !holds);
        broken.map(|(_holds, what)| (*what).to_owned())
    }
}

impl VisualConfig {
    /// Patches along one side.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Patches of a picture.
    pub fn patches(&self) -> usize {
        self.grid() * self.grid()
    }

    /// Width of the MLP.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the official code truncates: int(width * mlp_ratio)"
    )]
    pub fn mlp_width(&self) -> usize {
        (self.width as f64 * self.mlp_ratio) as usize
    }

    /// Heads of the resampler: 128 channels each, at least one.
    pub fn resampler_heads(&self) -> usize {
        (self.output_dim / 128).max(1)
    }

    /// `kv_proj` exists only where the widths differ.
    pub fn has_kv_proj(&self) -> bool {
        self.width != self.output_dim
    }
}

fn default_epsilon() -> f64 {
    1e-6
}

fn default_rotary_base() -> f64 {
    10_000.0
}

fn default_seq_length() -> usize {
    2048
}

fn default_queries() -> usize {
    256
}

fn yes() -> bool {
    true
}
