//! A canary: a short text whose logits, with and without the adapter, are stored beside it.
//!
//! Whoever loads the adapter replays the text and knows that the adapter sits on the right base
//! and really changes its output. The text holds no picture, so no file has to travel along.

use std::path::Path;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{
    adapter::AdapterError,
    batch::UnitBatch,
    model::{Mode, ModelError, QwenVl},
};

/// Logits that are compared; spread over the vocabulary.
const PROBES: usize = 32;
/// Longest canary in tokens.
const LENGTH: usize = 48;

/// The stored text and its logits at the last position, with and without the adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Canary {
    /// Token ids of the text.
    pub ids: Vec<u32>,
    /// Vocabulary entries that are compared.
    pub probes: Vec<u32>,
    /// Their logits from the base alone.
    pub base: Vec<f32>,
    /// Their logits from base and adapter.
    pub adapted: Vec<f32>,
}

impl Canary {
    /// Records both answers of a model whose adapter is in place. `ids` is any text, normally
    /// that of a training sample; slots of images must not be in it.
    pub fn record(model: &mut QwenVl, ids: &[u32]) -> Result<Canary, ModelError> {
        let ids: Vec<u32> = ids.iter().copied().take(LENGTH).collect();
        let vocabulary = model.config().vocab_size;
        let probes: Vec<u32> = (0..PROBES)
            .map(|i| u32::try_from(i * vocabulary / PROBES).expect("a vocabulary fits u32"))
            .collect();
        let mut canary = Canary { ids, probes, base: Vec::new(), adapted: Vec::new() };
        canary.adapted = canary.answer(model)?;
        canary.base = without_adapter(model, |model| canary.answer(model))?;
        Ok(canary)
    }

    /// Replays the canary on a model whose adapter is in place.
    pub fn verify(&self, model: &mut QwenVl, folder: &Path) -> Result<(), VerifyError> {
        let folder = folder.to_owned();
        let adapted = self.answer(model)?;
        let base = without_adapter(model, |model| self.answer(model))?;
        let scale = self.base.iter().fold(0.0_f64, |max, x| max.max(f64::from(x.abs())));
        // Number formats of the base may differ between training and use: bf16 keeps 8 bits.
        let tolerance = 0.02 * scale.max(1e-3);
        let difference = distance(&base, &self.base);
        if tolerance < difference {
            return Err(AdapterError::WrongBase { folder, difference }.into());
        }
        if distance(&adapted, &base) == 0.0 {
            return Err(AdapterError::NoEffect { folder }.into());
        }
        let effect = distance(&self.adapted, &self.base);
        let difference = distance(&adapted, &self.adapted);
        if tolerance.min(0.25 * effect).max(1e-4 * scale) < difference {
            return Err(AdapterError::OtherEffect { folder, difference }.into());
        }
        Ok(())
    }

    fn answer(&self, model: &QwenVl) -> Result<Vec<f32>, ModelError> {
        let unit = UnitBatch {
            rows: 1,
            length: self.ids.len(),
            ids: self.ids.clone(),
            lengths: vec![self.ids.len()],
            labels: Vec::new(),
            images: Vec::new(),
            samples: vec![0],
        };
        let logits = model.logits(&unit, Mode::Eval)?;
        let last = logits.get(0)?.get(self.ids.len() - 1)?.to_vec1::<f32>()?;
        Ok(self.probes.iter().filter_map(|probe| last.get(*probe as usize).copied()).collect())
    }
}

/// Why a replay failed: the adapter is wrong, or the model could not compute.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error("failed to compute the canary's logits")]
    Model(#[from] ModelError),
}

/// Runs `with` on the base alone: all `lora_B` are zero meanwhile.
fn without_adapter<T>(
    model: &mut QwenVl,
    with: impl FnOnce(&QwenVl) -> Result<T, ModelError>,
) -> Result<T, ModelError> {
    let b: Vec<(usize, Tensor)> = model
        .parameters()
        .iter()
        .enumerate()
        .filter(|(_i, parameter)| parameter.name.ends_with(".lora_B.weight"))
        .map(|(i, parameter)| (i, parameter.value.clone()))
        .collect();
    for (i, value) in &b {
        model.set_parameter(*i, value.zeros_like()?)?;
    }
    let result = with(model);
    for (i, value) in b {
        model.set_parameter(i, value)?;
    }
    result
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    a.iter().zip(b).fold(0.0, |max, (a, b)| max.max(f64::from((a - b).abs())))
}
