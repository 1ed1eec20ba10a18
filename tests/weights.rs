//! Models in the files that real PyTorch writes.
#![cfg(feature = "train")]
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]

mod python;

use std::{fs, path::Path};

use candle_core::{DType, Device};
use qvl::train::{
    model::{ModelConfig, ModelError, expected_tensors, init_random, write_folder},
    weights,
};

fn config() -> ModelConfig {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/digits/base.config.json");
    ModelConfig::read_file(&path).unwrap()
}

#[test]
fn shards_of_pytorch_hold_the_same_bits() {
    let cases = [
        (python::PEFTS[0], DType::F32),
        (python::NEWEST, DType::BF16),
        (python::NEWEST, DType::F16),
    ];
    for (environment, dtype) in cases {
        let folder = tempfile::tempdir().unwrap();
        let (config, expected) = (config(), expected_tensors(&config()));
        write_folder(folder.path(), &config, &init_random(&config, 1).unwrap(), dtype).unwrap();
        let load = || weights::load(folder.path(), &expected, DType::F32, &Device::Cpu);
        let written = load().unwrap();
        python::run(environment, "save_bin.py", &[folder.path()]);
        assert!(!folder.path().join("model.safetensors").exists());
        let read = load().unwrap();
        assert_eq!(read.len(), written.len());
        for (name, tensor) in &read {
            let difference = (tensor - &written[name]).unwrap().abs().unwrap();
            let worst = difference.max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(worst == 0.0, "{name} in {dtype:?}: {worst}");
        }
        cut_short(folder.path());
        assert!(matches!(load(), Err(ModelError::Damaged { .. })));
    }
}

fn cut_short(folder: &Path) {
    let path = folder.join("pytorch_model-00002-of-00002.bin");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
}
