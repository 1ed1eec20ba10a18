//! Puts an adapter on a model, and proves that it acts.

use std::path::Path;

use super::{adapter, failure::Failure, model::QwenVl};

/// Loads the adapter in `folder` into `model`, which must have been loaded with adapters of the
/// same rank and targets. Loading one that changes nothing is an error.
pub fn adapter(model: &mut QwenVl, folder: &Path) -> Result<(), Failure> {
    let adapter = adapter::load(folder)?;
    let wanted: Vec<(String, Vec<usize>)> = model
        .parameters()
        .iter()
        .map(|parameter| (parameter.name.clone(), parameter.value.dims().to_vec()))
        .collect();
    let tensors = adapter.matched(&wanted)?;
    for (i, tensor) in tensors.into_iter().enumerate() {
        let value = tensor.to_device(model.device())?;
        model.set_parameter(i, value)?;
    }
    if let Some(canary) = &adapter.canary {
        canary.verify(model, folder)?;
    }
    Ok(())
}
