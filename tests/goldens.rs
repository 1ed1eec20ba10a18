//! Golden files: numbers of the official code, and of the torch reference where that is silent.
#![cfg(feature = "train")]
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]

mod inputs;
mod python;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use inputs::{Tensors, unit, values};
use qvl::{
    data::image,
    train::{
        model::{Mode, ModelConfig, QwenVl, Trainable},
        selftest::{Golden, Layer},
    },
};
use safetensors::SafeTensors;

/// Made by the official model code.
const OFFICIAL: &str = "qwen_vl_tiny_a";
/// Made by `tests/python/make_golden.py`.
const OURS: [&str; 3] = ["batch", "long", "no_kv_proj"];

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(format!("{name}.safetensors"))
}

fn replay(path: &Path) -> Vec<Layer> {
    let layers = Golden::read(path, &[]).unwrap().replay().unwrap();
    let broken: Vec<&Layer> = layers.iter().filter(|layer| !layer.holds()).collect();
    assert!(broken.is_empty(), "{}: {broken:#?}", path.display());
    layers
}

/// Padding, two pictures in one sample, a sample without any; adapters on top.
#[test]
fn batches_are_reproduced() {
    assert!(replay(&path("batch")).iter().any(|layer| layer.name.contains("lora")));
}

/// NTK and log-n scaling, which act in evaluation beyond `seq_length` and never in training.
#[test]
fn long_inputs_are_reproduced() {
    replay(&path("long"));
}

/// As many patches as queries, and equal widths: nothing to stretch, nothing to project.
#[test]
fn a_tower_without_kv_proj_is_reproduced() {
    replay(&path("no_kv_proj"));
}

/// A golden made on the spot, because it is too large to keep.
#[test]
fn a_resampler_with_two_heads_is_reproduced() {
    let folder = tempfile::tempdir().unwrap();
    let args = [folder.path(), Path::new("two-heads")];
    python::run(python::NEWEST, "make_golden.py", &args);
    replay(&folder.path().join("two_heads.safetensors"));
}

/// In bf16 the normalised value is rounded before it meets the weight: every bit is compared.
#[test]
fn the_rms_norm_rounds_before_its_weight() {
    let (model, config, tensors) = bf16_model("rms_norm_bf16");
    let found = values(&model.logits(&unit(&config, &tensors), Mode::Eval).unwrap());
    assert_eq!(found, values(&tensors["logits"]));
    assert_ne!(found, values(&tensors["early"]), "the golden does not show the order");
}

/// Two programs in bf16 round in different places; ours may lose no more than torch does.
#[test]
fn bf16_models_lose_no_more_than_torch() {
    for name in OURS {
        let (model, config, tensors) = bf16_model(name);
        let found = values(&model.logits(&unit(&config, &tensors), Mode::Train).unwrap());
        let f32 = values(&tensors["logits"]);
        let (ours, torch) = (rms(&found, &f32), rms(&values(&tensors["bf16_logits"]), &f32));
        println!("{name}: {ours} here, {torch} in torch");
        assert!(ours < 1.2 * torch, "{name}: {ours} away from f32, torch is {torch} away");
    }
}

/// 1024 patches: a softmax or a mean that is summed up in bf16 stops growing at 256 terms of 1.
#[test]
fn a_long_bf16_tower_loses_no_more_than_torch() {
    /// Torch's own loss on its CPU kernels, for features of which the largest is 3.44.
    const TORCH: f32 = 6.3e-3;
    let (model, config, tensors) = bf16_model(OFFICIAL);
    let picture = image::open(&path(OFFICIAL).with_file_name("a.png")).unwrap();
    let side = config.visual.image_size;
    let pixels = image::pixels(&picture, side);
    let pixels = Tensor::from_slice(&pixels, (1, 3, side, side), &Device::Cpu).unwrap();
    let ours = rms(&values(&model.visual(&pixels).unwrap()), &values(&tensors["visual"]));
    println!("{ours} here, {TORCH} in torch");
    assert!(ours < 1.2 * TORCH, "{ours} away from f32, torch is {TORCH} away");
}

fn bf16_model(name: &str) -> (QwenVl, ModelConfig, Tensors) {
    let bytes = std::fs::read(path(name)).unwrap();
    let (_size, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().clone().unwrap();
    let config: ModelConfig = serde_json::from_str(&metadata["config"]).unwrap();
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
    let weights: BTreeMap<_, _> = tensors
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix("w.")?.to_owned(), value)))
        .map(|(name, value)| (name, value.to_dtype(DType::BF16).unwrap()))
        .collect();
    let nothing = Trainable::Nothing;
    let model = QwenVl::from_tensors(config.clone(), weights, &Device::Cpu, &nothing).unwrap();
    (model, config, tensors)
}

/// Root of the mean square of the differences.
fn rms(a: &[f32], b: &[f32]) -> f32 {
    let sum: f32 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    (sum / a.len() as f32).sqrt()
}

/// The reference itself is held to the official numbers, by its own arithmetic and real PEFT.
#[test]
fn the_reference_reproduces_all_goldens() {
    let paths: Vec<PathBuf> = OURS.iter().chain([&OFFICIAL]).map(|name| path(name)).collect();
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    for environment in python::PEFTS {
        let text = python::run(environment, "check_golden.py", &paths);
        assert_eq!(text.matches(r#""broken": []"#).count(), paths.len(), "{text}");
    }
}
