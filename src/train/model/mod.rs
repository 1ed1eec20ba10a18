//! Qwen-VL: vision transformer, resampler and decoder, with explicit backward passes.
//!
//! Shapes: B rows, L positions, T = B·L, D width, V vocabulary, N pictures, Q queries, S side
//! of a picture.

mod attention;
mod config;
mod error;
mod generate;
mod init;
mod language;
mod layers;
mod lora;
mod names;
mod position;
mod resampler;
mod store;
#[cfg(test)]
mod tests;
mod vision;

pub use config::{ModelConfig, VisualConfig};
pub use error::ModelError;
pub use generate::Prompt;
pub use init::{init_random, write_folder};
pub use lora::DropoutKey;
pub use names::expected_tensors;
pub use store::Parameter;

use std::{collections::BTreeMap, path::Path};

use candle_core::{DType, Device, Tensor};

use self::{
    language::{Block, Pass, SavedBlock, angles},
    layers::RmsNorm,
    lora::DropoutMasks,
    resampler::{Resampler, SavedResampler},
    store::{Gradients, Id, Store},
    vision::{SavedVision, VisionTransformer},
};
use super::{
    batch::{ImageContent, Label, UnitBatch},
    ops::{cross_entropy, softmax::CausalMask, wide},
    weights,
};
use crate::job::{self, Part};

/// Largest block of logits that exists at a time, in numbers: 64 MiB of f32.
const LOGITS_AT_ONCE: usize = 16 << 20;

/// Whether NTK and log-n scaling may act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Neither acts, whatever the length.
    Train,
    /// Both act beyond the training length.
    Eval,
}

/// Which tensors are trained.
#[derive(Clone, Copy, Debug)]
pub enum Trainable<'a> {
    /// None.
    Nothing,
    /// Low-rank adapters on the language model, freshly initialised.
    Lora { lora: &'a job::Lora, seed: u64 },
    /// The weights of these parts.
    Full(&'a [Part]),
    /// Every tensor, the position table of the resampler too.
    Everything,
}

/// The model on one device.
#[derive(Clone, Debug)]
pub struct QwenVl {
    config: ModelConfig,
    store: Store,
    device: Device,
    dtype: DType,
    vision: VisionTransformer,
    resampler: Resampler,
    wte: Id,
    blocks: Vec<Block>,
    ln_f: RmsNorm,
    lm_head: Id,
    recompute: bool,
}

/// What a forward pass leaves for the backward pass.
struct Saved {
    vision: Option<(SavedVision, SavedResampler)>,
    /// Row of the table [embedding rows | features] that each position came from.
    sources: Tensor,
    inputs: Vec<Tensor>,
    blocks: Vec<SavedBlock>,
}

impl QwenVl {
    /// Loads a folder; every missing, unexpected or misshapen tensor is reported at once.
    pub fn load(
        folder: &Path,
        device: &Device,
        dtype: DType,
        trainable: &Trainable,
    ) -> Result<QwenVl, ModelError> {
        let config = ModelConfig::read(folder)?;
        let tensors = weights::load(folder, &expected_tensors(&config), dtype, device)?;
        Self::from_tensors(config, tensors, device, trainable)
    }

    /// A model of tensors that have their final number format and device.
    pub fn from_tensors(
        config: ModelConfig,
        mut tensors: BTreeMap<String, Tensor>,
        device: &Device,
        trainable: &Trainable,
    ) -> Result<QwenVl, ModelError> {
        let dtype = tensors.get("lm_head.weight").map_or(DType::F32, Tensor::dtype);
        let lora = match trainable {
            Trainable::Lora { lora, seed } => {
                tensors.extend(init::lora_tensors(&config, lora, *seed, device)?);
                Some(*lora)
            }
            Trainable::Nothing | Trainable::Full(_) | Trainable::Everything => None,
        };
        let mut store = Store::new(tensors);
        store.train(|name| names::is_trained(name, trainable))?;
        let blocks =
            (0..config.num_hidden_layers).map(|i| Block::new(&store, &config, i, lora)).collect();
        Ok(QwenVl {
            vision: VisionTransformer::new(&store, &config.visual, names::VISUAL)?,
            resampler: Resampler::new(&store, &config.visual, names::VISUAL)?,
            wte: store.id("transformer.wte.weight"),
            blocks,
            ln_f: RmsNorm {
                weight: store.id("transformer.ln_f.weight"),
                epsilon: config.layer_norm_epsilon,
            },
            lm_head: store.id("lm_head.weight"),
            device: device.clone(),
            dtype,
            recompute: false,
            store,
            config,
        })
    }

    /// Keep only the input of each block and compute the block again in the backward pass: less
    /// memory, the same bits.
    #[must_use]
    pub fn with_recompute(mut self, recompute: bool) -> Self {
        self.recompute = recompute;
        self
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Number format of the computation.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Trained tensors, sorted by name.
    pub fn parameters(&self) -> &[Parameter] {
        self.store.parameters()
    }

    /// All tensors by name; a trained one as its f32 master.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        self.store.tensors()
    }

    /// Numbers in all tensors.
    pub fn parameter_count(&self) -> u64 {
        self.tensors().iter().map(|(_name, tensor)| tensor.elem_count() as u64).sum()
    }

    /// Replaces a trained tensor; `value` is f32.
    pub fn set_parameter(&mut self, index: usize, value: Tensor) -> Result<(), ModelError> {
        Ok(self.store.set_parameter(index, value)?)
    }

    /// Whether anything of the vision tower or the resampler is trained. If not, features of a
    /// picture never change and may be kept.
    pub fn trains_vision(&self) -> bool {
        self.store.trains_below("transformer.visual.")
    }

    /// Cross-entropy of each label in nats, and the gradient of `Σ weight · cross-entropy` for
    /// every parameter, f32, in order.
    pub fn forward_backward(
        &self,
        unit: &UnitBatch,
        dropout: Option<DropoutKey>,
    ) -> Result<(Vec<f32>, Vec<Tensor>), ModelError> {
        let mut grads = Gradients::new(&self.store);
        let masks =
            dropout.map(|key| DropoutMasks { key, samples: &unit.samples, length: unit.length });
        let pass = self.pass(unit, Mode::Train, masks.as_ref())?;
        let (x_TD, saved) = self.hidden(unit, &pass, true)?;
        let (losses, mut dx_TD) = self.head_backward(unit, &x_TD, &mut grads)?;
        for (i, block) in self.blocks.iter().enumerate().rev() {
            let again;
            let saved_block = if let Some(block) = saved.blocks.get(i) {
                block
            } else {
                again = block.forward(&self.store, saved.inputs[i].clone(), &pass, None)?.1;
                &again
            };
            dx_TD = block.backward(&self.store, saved_block, &dx_TD, &pass, &mut grads)?;
        }
        self.embed_backward(unit, &saved, &dx_TD, &mut grads)?;
        Ok((losses, grads.into_tensors(&self.store)?))
    }

    /// Cross-entropy of each label in nats, without gradients. Runs in evaluation mode.
    pub fn losses(&self, unit: &UnitBatch) -> Result<Vec<f32>, ModelError> {
        let pass = self.pass(unit, Mode::Eval, None)?;
        let (x_TD, _saved) = self.hidden(unit, &pass, false)?;
        let mut losses = Vec::with_capacity(unit.labels.len());
        for labels in unit.labels.chunks(self.labels_at_once()) {
            let rows = self.label_rows(unit, labels)?;
            let h = self.ln_f.forward(&self.store, &x_TD.index_select(&rows, 0)?)?;
            let logits = self.project(&h)?;
            losses.extend(cross_entropy::losses(&logits, &targets(labels))?);
        }
        Ok(losses)
    }

    /// Logits (B, L, V), f32.
    pub fn logits(&self, unit: &UnitBatch, mode: Mode) -> Result<Tensor, ModelError> {
        let pass = self.pass(unit, mode, None)?;
        let (x_TD, _saved) = self.hidden(unit, &pass, false)?;
        let logits = self.project(&self.ln_f.forward(&self.store, &x_TD)?)?;
        Ok(logits.reshape((unit.rows, unit.length, self.config.vocab_size))?)
    }

    /// Features (N, Q, D) of pictures (N, 3, S, S), f32 pixels.
    pub fn visual(&self, pixels: &Tensor) -> Result<Tensor, ModelError> {
        let pixels_in = pixels.to_dtype(self.dtype)?;
        let (x_TW, _saved) = self.vision.forward(&self.store, &pixels_in, false)?;
        Ok(self.resampler.forward(&self.store, &x_TW, pixels.dim(0)?)?.0)
    }

    fn pass<'a>(
        &self,
        unit: &UnitBatch,
        mode: Mode,
        dropout: Option<&'a DropoutMasks<'a>>,
    ) -> Result<Pass<'a>, ModelError> {
        let length = unit.length;
        Ok(Pass {
            rows: unit.rows,
            angles: angles(&self.config, mode, (0, length, length), &self.device)?,
            mask: Some(CausalMask::new(&unit.lengths)),
            dropout,
        })
    }

    /// Output of the last block, (T, D).
    fn hidden(
        &self,
        unit: &UnitBatch,
        pass: &Pass,
        keep: bool,
    ) -> Result<(Tensor, Saved), ModelError> {
        let (mut x_TD, sources, vision) = self.embed(unit, keep)?;
        let mut saved = Saved { vision, sources, inputs: Vec::new(), blocks: Vec::new() };
        for block in &self.blocks {
            if keep && self.recompute {
                saved.inputs.push(x_TD.clone());
            }
            let (y_TD, saved_block) = block.forward(&self.store, x_TD, pass, None)?;
            if keep && !self.recompute {
                saved.blocks.push(saved_block);
            }
            x_TD = y_TD;
        }
        Ok((x_TD, saved))
    }

    /// Token embeddings with the features of the pictures in their slots, (T, D).
    #[expect(clippy::type_complexity, reason = "what only `hidden` takes apart")]
    fn embed(
        &self,
        unit: &UnitBatch,
        keep: bool,
    ) -> Result<(Tensor, Tensor, Option<(SavedVision, SavedResampler)>), ModelError> {
        let ids = Tensor::from_slice(&unit.ids, unit.ids.len(), &self.device)?;
        let tokens_TD = self.store.get(self.wte).index_select(&ids, 0)?;
        let sources = self.sources(unit)?;
        if unit.images.is_empty() {
            return Ok((tokens_TD, sources, None));
        }
        let (features, saved) = self.features(unit, keep && self.trains_vision())?;
        let table = Tensor::cat(&[tokens_TD, features.flatten(0, 1)?], 0)?;
        Ok((table.index_select(&sources, 0)?, sources, saved))
    }

    fn sources(&self, unit: &UnitBatch) -> Result<Tensor, ModelError> {
        let tokens = unit.ids.len();
        let queries = self.config.visual.n_queries;
        let mut sources: Vec<usize> = (0..tokens).collect();
        for (n, image) in unit.images.iter().enumerate() {
            let first = image.row * unit.length + image.start;
            if unit.lengths[image.row] < image.start + queries {
                return Err(ModelError::ImageOutside { row: image.row, start: image.start });
            }
            for q in 0..queries {
                sources[first + q] = tokens + n * queries + q;
            }
        }
        let sources: Vec<u32> = sources
            .into_iter()
            .map(|source| u32::try_from(source).expect("a unit has fewer than 2^32 rows"))
            .collect();
        Ok(Tensor::from_vec(sources, tokens, &self.device)?)
    }

    /// Features (N, Q, D) of the unit's pictures.
    fn features(
        &self,
        unit: &UnitBatch,
        keep: bool,
    ) -> Result<(Tensor, Option<(SavedVision, SavedResampler)>), ModelError> {
        let side = self.config.visual.image_size;
        if !keep {
            // Each picture by itself, so that its features do not depend on its neighbours and
            // may be kept from one step to the next.
            let each = unit.images.iter().map(|image| match &image.content {
                ImageContent::Features(features) => Ok(features.unsqueeze(0)?),
                ImageContent::Pixels(pixels) => {
                    self.visual(&Tensor::from_slice(pixels, (1, 3, side, side), &self.device)?)
                }
            });
            return Ok((Tensor::cat(&each.collect::<Result<Vec<_>, ModelError>>()?, 0)?, None));
        }
        let mut pixels = Vec::with_capacity(unit.images.len() * 3 * side * side);
        for image in &unit.images {
            match &image.content {
                ImageContent::Pixels(picture) => pixels.extend_from_slice(picture),
                ImageContent::Features(_) => return Err(ModelError::FeaturesWhileTraining),
            }
        }
        let pictures = unit.images.len();
        let pixels = Tensor::from_vec(pixels, (pictures, 3, side, side), &self.device)?;
        let pixels = pixels.to_dtype(self.dtype)?;
        let (x_TW, vision) = self.vision.forward(&self.store, &pixels, true)?;
        let (features, resampler) = self.resampler.forward(&self.store, &x_TW, pictures)?;
        Ok((features, Some((vision, resampler))))
    }

    fn embed_backward(
        &self,
        unit: &UnitBatch,
        saved: &Saved,
        dx_TD: &Tensor,
        grads: &mut Gradients,
    ) -> Result<(), ModelError> {
        if !self.store.trains(self.wte) && saved.vision.is_none() {
            return Ok(());
        }
        let (tokens, width) = dx_TD.dims2()?;
        let rows = tokens + unit.images.len() * self.config.visual.n_queries;
        let zeros = Tensor::zeros((rows, width), dx_TD.dtype(), &self.device)?;
        let dtable = zeros.index_add(&saved.sources, dx_TD, 0)?;
        grads.add(&self.store, self.wte, || {
            let ids = Tensor::from_slice(&unit.ids, tokens, &self.device)?;
            let dtype = wide(dtable.dtype());
            let zeros = self.store.get(self.wte).zeros_like()?.to_dtype(dtype)?;
            zeros.index_add(&ids, &dtable.narrow(0, 0, tokens)?.to_dtype(dtype)?, 0)
        })?;
        if let Some((vision, resampler)) = &saved.vision {
            let (pictures, queries) = (unit.images.len(), self.config.visual.n_queries);
            let dfeatures = dtable.narrow(0, tokens, pictures * queries)?;
            let dfeatures = dfeatures.reshape((pictures, queries, width))?;
            let dx_TW = self.resampler.backward(&self.store, resampler, &dfeatures, grads)?;
            self.vision.backward(&self.store, vision, dx_TW, grads)?;
        }
        Ok(())
    }

    /// (n, D) -> (n, V), f32 (or f64).
    fn project(&self, h: &Tensor) -> Result<Tensor, ModelError> {
        Ok(h.matmul(&self.store.get(self.lm_head).t()?)?.to_dtype(wide(self.dtype))?)
    }

    /// Labels whose logits fit into [`LOGITS_AT_ONCE`].
    fn labels_at_once(&self) -> usize {
        (LOGITS_AT_ONCE / self.config.vocab_size).max(1)
    }

    /// The labels' rows of (T, D).
    fn label_rows(&self, unit: &UnitBatch, labels: &[Label]) -> Result<Tensor, ModelError> {
        let row = |label: &Label| {
            u32::try_from(label.row * unit.length + label.position)
                .expect("a unit has fewer than 2^32 rows")
        };
        let rows: Vec<u32> = labels.iter().map(row).collect();
        Ok(Tensor::from_vec(rows, labels.len(), &self.device)?)
    }

    /// Losses of the labels and the gradient (T, D) of the last block's output. Only rows with
    /// a label meet the vocabulary, which is exact: the others do not enter the loss.
    fn head_backward(
        &self,
        unit: &UnitBatch,
        x_TD: &Tensor,
        grads: &mut Gradients,
    ) -> Result<(Vec<f32>, Tensor), ModelError> {
        let mut losses = Vec::with_capacity(unit.labels.len());
        let mut dx_TD = x_TD.zeros_like()?;
        for labels in unit.labels.chunks(self.labels_at_once()) {
            let rows = self.label_rows(unit, labels)?;
            let selected = x_TD.index_select(&rows, 0)?;
            let h = self.ln_f.forward(&self.store, &selected)?;
            let logits = self.project(&h)?;
            let weights: Vec<f32> = labels.iter().map(|label| label.weight).collect();
            let (nll, dlogits) = cross_entropy::with_gradient(&logits, &targets(labels), &weights)?;
            losses.extend(nll);
            let dlogits = dlogits.to_dtype(self.dtype)?;
            grads.add(&self.store, self.lm_head, || dlogits.t()?.matmul(&h))?;
            let dh = dlogits.matmul(self.store.get(self.lm_head))?;
            let dselected = self.ln_f.backward(&self.store, &selected, &dh, grads)?;
            dx_TD = dx_TD.index_add(&rows, &dselected, 0)?;
        }
        Ok((losses, dx_TD))
    }
}

fn targets(labels: &[Label]) -> Vec<u32> {
    labels.iter().map(|label| label.target).collect()
}
