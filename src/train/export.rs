//! The result of a job: an adapter that PEFT loads, or a whole model.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use candle_core::{DType, Tensor};

use super::{
    adapter,
    canary::Canary,
    failure::Failure,
    model::{QwenVl, write_folder},
};
use crate::{
    job::{FineTuneJob, Method},
    wire::{Event, TrainerExit},
};

/// Small files that belong to a model folder besides configuration and weights.
const SIDE_FILES: [&str; 4] =
    ["qwen.tiktoken", "tokenizer_config.json", "generation_config.json", "LICENSE"];

/// Writes `OUTPUT/adapter` or `OUTPUT/model` and tells what it was.
pub fn write(
    model: &mut QwenVl,
    job: &FineTuneJob,
    base: &Path,
    output: &Path,
    canary: &[u32],
) -> Result<Event, Failure> {
    match &job.spec.method {
        Method::Lora(lora) => {
            let folder = output.join("adapter");
            let canary = Canary::record(model, canary)?;
            let tensors: Vec<(String, Tensor)> =
                model.parameters().iter().map(|p| (p.name.clone(), p.value.clone())).collect();
            let name = base.canonicalize().unwrap_or_else(|_error| base.to_owned());
            adapter::save(&folder, lora, &name.display().to_string(), &tensors, &canary)?;
            Ok(exported(&folder, "adapter"))
        }
        Method::Full(_) => {
            let folder = output.join("model");
            let tensors: BTreeMap<String, Tensor> = model.tensors().into_iter().collect();
            write_folder(&folder, model.config(), &tensors, DType::F32)?;
            copy_side_files(base, &folder)?;
            Ok(exported(&folder, "model"))
        }
    }
}

fn exported(folder: &Path, kind: &str) -> Event {
    Event::Exported { path: folder.display().to_string(), kind: kind.to_owned() }
}

/// A model without its vocabulary cannot be loaded again, so the small files go along.
pub fn copy_side_files(from: &Path, to: &Path) -> Result<(), Failure> {
    for name in SIDE_FILES {
        let source: PathBuf = from.join(name);
        if source.exists() {
            fs::copy(&source, to.join(name)).map_err(|error| {
                let what = format!("failed to copy `{}`", source.display());
                Failure::of(TrainerExit::CheckpointIo, anyhow::Error::new(error).context(what))
            })?;
        }
    }
    Ok(())
}
