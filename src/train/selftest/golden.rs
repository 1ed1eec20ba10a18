//! Replays a golden file: weights, inputs and what the official model code computed from them.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};

use super::Layer;
use crate::{
    data::image::{self, ImageError},
    job,
    train::{
        batch::{ImageContent, ImageInput, Label, UnitBatch},
        model::{Mode, ModelConfig, ModelError, QwenVl, Trainable},
        optim::{self, AdamW},
    },
};

/// Tolerances for f32 on a CPU.
const VISUAL: f64 = 5e-6;
const LOGITS: f64 = 2e-6;
const LOSS: f64 = 2e-6;
const GRADIENT: f64 = 1e-5;
const TRAJECTORY: f64 = 1e-5;

/// Why a golden file cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    #[error("failed to read golden `{}`", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("golden `{name}` is not a safetensors file with the expected metadata: {what}")]
    Format { name: String, what: String },
    #[error("golden `{name}` lacks tensor `{tensor}`")]
    Missing { name: String, tensor: String },
    #[error("golden `{name}` names {expected} pictures, {given} were given")]
    Images { name: String, expected: usize, given: usize },
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("the tensor computation failed")]
    Compute(#[from] candle_core::Error),
}

/// A golden file in memory.
#[derive(Debug)]
pub struct Golden {
    name: String,
    config: ModelConfig,
    metadata: HashMap<String, String>,
    tensors: HashMap<String, Tensor>,
    images: Vec<PathBuf>,
}

impl Golden {
    /// Reads a file. Pictures are looked for beside it, unless they are given.
    pub fn read(path: &Path, images: &[PathBuf]) -> Result<Golden, GoldenError> {
        let bytes = std::fs::read(path)
            .map_err(|source| GoldenError::Read { path: path.to_owned(), source })?;
        let mut golden = Self::parse(&bytes, &path.display().to_string(), images)?;
        if images.is_empty() {
            let folder = path.parent().unwrap_or(Path::new("."));
            golden.images = golden.images.iter().map(|image| folder.join(image)).collect();
        }
        Ok(golden)
    }

    /// Parses the bytes of a file.
    pub fn parse(bytes: &[u8], name: &str, images: &[PathBuf]) -> Result<Golden, GoldenError> {
        let format = |what: String| GoldenError::Format { name: name.to_owned(), what };
        let (_size, header) =
            SafeTensors::read_metadata(bytes).map_err(|error| format(error.to_string()))?;
        let metadata = header.metadata().clone().ok_or_else(|| format("no metadata".to_owned()))?;
        let config = metadata.get("config").ok_or_else(|| format("no `config`".to_owned()))?;
        let config = serde_json::from_str(config).map_err(|error| format(error.to_string()))?;
        let named: Vec<PathBuf> = match metadata.get("images") {
            Some(text) => serde_json::from_str(text).map_err(|error| format(error.to_string()))?,
            None => Vec::new(),
        };
        let images = if images.is_empty() { named.clone() } else { images.to_vec() };
        if images.len() != named.len() {
            return Err(GoldenError::Images {
                name: name.to_owned(),
                expected: named.len(),
                given: images.len(),
            });
        }
        let tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu)?;
        Ok(Golden { name: name.to_owned(), config, metadata, tensors, images })
    }

    /// Every layer that the file has data for.
    pub fn replay(&self) -> Result<Vec<Layer>, GoldenError> {
        let mut layers = Vec::new();
        let unit = self.unit(&mut layers)?;
        let model = self.model(&Trainable::Everything)?;
        if let Some(expected) = self.tensors.get("visual") {
            let features = self.features(&model, &unit)?;
            layers.push(layer("visual", &features, expected, VISUAL)?);
        }
        for (key, mode) in [("logits", Mode::Train), ("eval_logits", Mode::Eval)] {
            if let Some(expected) = self.tensors.get(key) {
                layers.push(layer(key, &model.logits(&unit, mode)?, expected, LOGITS)?);
            }
        }
        self.replay_gradients(&model, &unit, &mut layers)?;
        if self.tensors.contains_key("lora_losses") {
            self.replay_lora(&unit, &mut layers)?;
        }
        Ok(layers)
    }

    fn tensor(&self, key: &str) -> Result<&Tensor, GoldenError> {
        self.tensors
            .get(key)
            .ok_or_else(|| GoldenError::Missing { name: self.name.clone(), tensor: key.to_owned() })
    }

    fn model(&self, trainable: &Trainable) -> Result<QwenVl, GoldenError> {
        let weights: BTreeMap<String, Tensor> = self
            .tensors
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix("w.")?.to_owned(), value.clone())))
            .collect();
        Ok(QwenVl::from_tensors(self.config.clone(), weights, &Device::Cpu, trainable)?)
    }

    /// The input; labels of weight 1/n, so that the weighted sum is the mean.
    fn unit(&self, layers: &mut Vec<Layer>) -> Result<UnitBatch, GoldenError> {
        let (rows, length) = self.tensor("input_ids")?.dims2()?;
        let read = |key: &str| -> Result<Vec<i64>, GoldenError> {
            Ok(self.tensor(key)?.to_dtype(DType::I64)?.flatten_all()?.to_vec1()?)
        };
        let (ids, labels, mask) = (read("input_ids")?, read("labels")?, read("attention_mask")?);
        let ids: Vec<u32> = ids.into_iter().map(|id| u32::try_from(id).unwrap_or(0)).collect();
        let counted = |position: &usize| !position.is_multiple_of(length) && 0 <= labels[*position];
        let count = (0..labels.len()).filter(counted).count();
        #[expect(clippy::cast_possible_truncation, reason = "a share of the labels")]
        let weight = (1.0 / count.max(1) as f64) as f32;
        let labels = (0..labels.len()).filter(counted).map(|at| Label {
            row: at / length,
            position: at % length - 1,
            target: u32::try_from(labels[at]).unwrap_or(0),
            weight,
        });
        let lengths = mask.chunks(length).map(|row| row.iter().filter(|m| **m != 0).count());
        Ok(UnitBatch {
            rows,
            length,
            labels: labels.collect(),
            lengths: lengths.collect(),
            images: self.image_inputs(&ids, length, layers)?,
            samples: (0..rows as u64).collect(),
            ids,
        })
    }

    /// The pictures, in the order of their `<img>` tokens.
    fn image_inputs(
        &self,
        ids: &[u32],
        length: usize,
        layers: &mut Vec<Layer>,
    ) -> Result<Vec<ImageInput>, GoldenError> {
        let start = self.config.visual.image_start_id;
        let places: Vec<usize> = (0..ids.len()).filter(|at| ids[*at] == start).collect();
        let pictures = self.pictures(layers)?;
        if pictures.len() != places.len() {
            return Err(GoldenError::Images {
                name: self.name.clone(),
                expected: places.len(),
                given: pictures.len(),
            });
        }
        let place = |(at, pixels): (usize, std::sync::Arc<[f32]>)| ImageInput {
            row: at / length,
            start: at % length + 1,
            content: ImageContent::Pixels(pixels),
        };
        Ok(places.into_iter().zip(pictures).map(place).collect())
    }

    fn pictures(&self, layers: &mut Vec<Layer>) -> Result<Vec<std::sync::Arc<[f32]>>, GoldenError> {
        if let Some(pixels) = self.tensors.get("pixels") {
            let pictures = (0..pixels.dim(0)?).map(|i| {
                let picture = pixels.get(i)?.flatten_all()?.to_vec1::<f32>()?;
                Ok(picture.into())
            });
            return pictures.collect();
        }
        let size = self.config.visual.image_size;
        let mut pictures = Vec::new();
        let mut hash = Sha256::new();
        for path in &self.images {
            let pixels = image::pixels(&image::open(path)?, size);
            pixels.iter().for_each(|value| hash.update(value.to_le_bytes()));
            pictures.push(pixels);
        }
        if let Some(expected) = self.metadata.get("pixels_sha256_f32_le") {
            let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            layers.push(Layer {
                name: "pixels (sha256)".to_owned(),
                difference: if &found == expected { 0.0 } else { 1.0 },
                tolerance: 0.0,
                at: format!("{} pictures", pictures.len()),
            });
        }
        Ok(pictures)
    }

    fn features(&self, model: &QwenVl, unit: &UnitBatch) -> Result<Tensor, GoldenError> {
        let side = self.config.visual.image_size;
        let pictures = unit.images.iter().map(|image| match &image.content {
            ImageContent::Pixels(pixels) => {
                model.visual(&Tensor::from_slice(pixels, (1, 3, side, side), &Device::Cpu)?)
            }
            ImageContent::Features(features) => Ok(features.unsqueeze(0)?),
        });
        Ok(Tensor::cat(&pictures.collect::<Result<Vec<_>, ModelError>>()?, 0)?)
    }

    fn replay_gradients(
        &self,
        model: &QwenVl,
        unit: &UnitBatch,
        layers: &mut Vec<Layer>,
    ) -> Result<(), GoldenError> {
        let (losses, grads) = model.forward_backward(unit, None)?;
        layers.push(self.loss_layer("loss", "loss", 0, mean(&losses))?);
        let named = model.parameters().iter().map(|parameter| format!("g.{}", parameter.name));
        layers.push(self.worst("gradients", named.zip(&grads), Scale::Relative)?);
        let frugal = model.clone().with_recompute(true);
        let (again, _grads) = frugal.forward_backward(unit, None)?;
        layers.push(Layer {
            name: "recompute".to_owned(),
            difference: (mean(&again) - mean(&losses)).abs(),
            tolerance: 0.0,
            at: "loss".to_owned(),
        });
        Ok(())
    }

    /// Steps of AdamW on adapters, with the hyper-parameters named in the metadata.
    fn replay_lora(&self, unit: &UnitBatch, layers: &mut Vec<Layer>) -> Result<(), GoldenError> {
        let lora = job::Lora {
            r: self.rank()?,
            alpha: self.number("lora", "alpha", 16.0),
            dropout: 0.0,
            targets: job::Lora::default().targets,
        };
        let mut model = self.model(&Trainable::Lora { lora: &lora, seed: 0 })?;
        let names: Vec<String> = model.parameters().iter().map(|p| peft_name(&p.name)).collect();
        for (i, name) in names.iter().enumerate() {
            model.set_parameter(i, self.tensor(&format!("lora0.{name}"))?.clone())?;
        }
        let config = job::Optimizer {
            weight_decay: self.number("adamw", "weight_decay", 0.1),
            ..job::Optimizer::default()
        };
        let learning_rate = self.number("adamw", "lr", 1e-2);
        let values = |model: &QwenVl| -> Vec<Tensor> {
            model.parameters().iter().map(|p| p.value.clone()).collect()
        };
        let decays = vec![true; names.len()];
        let mut optimizer = AdamW::new(&config, &values(&model))?;
        for step in 0..self.tensor("lora_losses")?.elem_count() {
            let (losses, mut grads) = model.forward_backward(unit, None)?;
            let norm = optim::global_norm(&grads)?;
            if step == 0 {
                let keys = names.iter().map(|name| format!("lorag.{name}"));
                layers.push(self.worst(
                    "lora gradients, step 1",
                    keys.zip(&grads),
                    Scale::Relative,
                )?);
            }
            layers.push(self.loss_layer(
                &format!("lora loss, step {}", step + 1),
                "lora_losses",
                step,
                mean(&losses),
            )?);
            layers.push(self.loss_layer(
                &format!("lora norm, step {}", step + 1),
                "lora_grad_norms",
                step,
                norm,
            )?);
            optim::clip(&mut grads, norm, self.number("adamw", "clip", 1.0))?;
            let new = optimizer.update(&values(&model), &grads, &decays, learning_rate)?;
            for (i, value) in new.into_iter().enumerate() {
                model.set_parameter(i, value)?;
            }
        }
        let keys = names.iter().map(|name| format!("lora8.{name}"));
        let values = values(&model);
        layers.push(self.worst("lora weights at the end", keys.zip(&values), Scale::Absolute)?);
        Ok(())
    }

    /// Rank of the adapters, from the first of them.
    fn rank(&self) -> Result<u32, GoldenError> {
        let a = self
            .tensors
            .iter()
            .find(|(key, _value)| key.starts_with("lora0.") && key.contains(".lora_A."));
        let rank = a.map_or(Ok(0), |(_key, value)| value.dim(0))?;
        Ok(u32::try_from(rank).unwrap_or(u32::MAX))
    }

    /// `key=value` within a metadata string, for example `r=4 alpha=16`.
    fn number(&self, metadata: &str, key: &str, default: f64) -> f64 {
        let text = self.metadata.get(metadata).map_or("", String::as_str);
        let prefix = format!("{key}=");
        let found = text.split_whitespace().find_map(|word| word.strip_prefix(&prefix));
        found.and_then(|value| value.parse().ok()).unwrap_or(default)
    }

    fn loss_layer(
        &self,
        name: &str,
        key: &str,
        index: usize,
        found: f64,
    ) -> Result<Layer, GoldenError> {
        let expected = self.tensor(key)?.flatten_all()?.to_vec1::<f32>()?;
        let expected = f64::from(expected.get(index).copied().unwrap_or(f32::NAN));
        Ok(Layer {
            name: name.to_owned(),
            difference: (found - expected).abs(),
            tolerance: LOSS,
            at: format!("{found:.7}"),
        })
    }

    fn worst<'a>(
        &self,
        name: &str,
        tensors: impl Iterator<Item = (String, &'a Tensor)>,
        scale: Scale,
    ) -> Result<Layer, GoldenError> {
        let tolerance = match scale {
            Scale::Relative => GRADIENT,
            Scale::Absolute => TRAJECTORY,
        };
        let mut worst =
            Layer { name: name.to_owned(), difference: 0.0, tolerance, at: String::new() };
        for (key, found) in tensors {
            let expected = self.tensor(&key)?;
            let size = absmax(expected)?;
            let difference = absmax(&(found - expected)?)?;
            // A gradient that is exactly zero in the golden must be zero here.
            let difference = match scale {
                Scale::Relative if 0.0 < size => difference / size,
                Scale::Relative | Scale::Absolute => difference,
            };
            if worst.difference <= difference || difference.is_nan() {
                worst.difference = difference;
                worst.at = key;
            }
        }
        Ok(worst)
    }
}

#[derive(Clone, Copy)]
enum Scale {
    /// Differences as a share of the tensor's largest value.
    Relative,
    Absolute,
}

fn peft_name(name: &str) -> String {
    format!("base_model.model.{}", name.replace(".weight", ".default.weight"))
}

fn layer(
    name: &str,
    found: &Tensor,
    expected: &Tensor,
    tolerance: f64,
) -> Result<Layer, GoldenError> {
    let difference = absmax(&(found - expected)?)?;
    let at = format!("of at most {:.3}", absmax(expected)?);
    Ok(Layer { name: name.to_owned(), difference, tolerance, at })
}

/// Largest absolute value; NaN if any value is NaN.
fn absmax(tensor: &Tensor) -> Result<f64, GoldenError> {
    let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let max = values.iter().fold(0.0_f64, |max, value| {
        if value.is_nan() || max.is_nan() { f64::NAN } else { max.max(f64::from(value.abs())) }
    });
    Ok(max)
}

fn mean(losses: &[f32]) -> f64 {
    losses.iter().map(|loss| f64::from(*loss)).sum::<f64>() / losses.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of the official model code; `tests/goldens/README.md` says how they were made.
    #[test]
    fn golden_a_is_reproduced() {
        let path = Path::new("tests/goldens/qwen_vl_tiny_a.safetensors");
        let layers = Golden::read(path, &[]).unwrap().replay().unwrap();
        let broken: Vec<&Layer> = layers.iter().filter(|layer| !layer.holds()).collect();
        assert!(broken.is_empty(), "{broken:#?}");
        assert_eq!(layers.len(), 1 + 1 + 2 + 3 + 2 * 8 + 2);
    }
}
