//! Adapters that would load and change nothing, or the wrong thing: each is an error that says
//! which. One good adapter, one thing broken per case.
#![cfg(feature = "train")]
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor};
use qvl::{
    job,
    train::{
        adapter::{self, Adapter, AdapterError},
        canary::{Canary, VerifyError},
        model::{ModelConfig, QwenVl, Trainable, init_random},
    },
};
use safetensors::SafeTensors;

const WEIGHTS: &str = "adapter_model.safetensors";
const CANARY: [u32; 6] = [1, 2, 5, 8, 13, 21];

fn config() -> ModelConfig {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/batch.safetensors");
    let bytes = fs::read(path).unwrap();
    let (_size, header) = SafeTensors::read_metadata(&bytes).unwrap();
    serde_json::from_str(&header.metadata().as_ref().unwrap()["config"]).unwrap()
}

fn base(config: &ModelConfig, seed: u64, lora: &job::Lora) -> QwenVl {
    let weights = init_random(config, seed).unwrap();
    let trainable = Trainable::Lora { lora, seed: 1 };
    QwenVl::from_tensors(config.clone(), weights, &Device::Cpu, &trainable).unwrap()
}

fn lora() -> job::Lora {
    job::Lora { r: 4, ..job::Lora::default() }
}

/// A saved adapter that works, and the model it was saved from.
struct Case {
    folder: tempfile::TempDir,
    model: QwenVl,
}

impl Case {
    fn new() -> Case {
        let mut model = base(&config(), 1, &lora());
        for i in 0..model.parameters().len() {
            let parameter = &model.parameters()[i];
            if parameter.name.ends_with("lora_B.weight") {
                let ones = Tensor::ones_like(&parameter.value).unwrap();
                model.set_parameter(i, (ones * 0.5).unwrap()).unwrap();
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let canary = Canary::record(&mut model, &CANARY).unwrap();
        let parameters = model.parameters().iter();
        let tensors: Vec<_> = parameters.map(|p| (p.name.clone(), p.value.clone())).collect();
        adapter::save(&folder.path().join("adapter"), &lora(), "base", &tensors, &canary).unwrap();
        Case { folder, model }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("adapter")
    }

    /// Rewrites the tensors, without the canary: as if another program had saved them.
    fn rewrite(&self, change: impl Fn(&str, &Tensor) -> Option<(String, Tensor)>) {
        let path = self.path().join(WEIGHTS);
        let old = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        let new: HashMap<String, Tensor> =
            old.iter().filter_map(|(name, value)| change(name, value)).collect();
        candle_core::safetensors::save(&new, &path).unwrap();
    }

    fn load(&self) -> Result<Adapter, AdapterError> {
        adapter::load(&self.path())
    }

    /// Loads the adapter into a model, as `qvl-train` does.
    #[expect(clippy::result_large_err, reason = "a test")]
    fn apply(&self, model: &mut QwenVl) -> Result<(), VerifyError> {
        let adapter = self.load()?;
        let parameters = model.parameters().iter();
        let shapes: Vec<_> =
            parameters.map(|p| (p.name.clone(), p.value.dims().to_vec())).collect();
        for (i, value) in adapter.matched(&shapes)?.into_iter().enumerate() {
            model.set_parameter(i, value)?;
        }
        adapter.canary.unwrap().verify(model, &adapter.folder)
    }

    fn error(&self, model: &mut QwenVl) -> AdapterError {
        match self.apply(model) {
            Err(VerifyError::Adapter(error)) => error,
            Err(VerifyError::Model(error)) => panic!("not an adapter error: {error}"),
            Ok(()) => panic!("it was accepted"),
        }
    }
}

/// The object, and what to do about it.
fn assert_helpful(error: &AdapterError, case: &Case) {
    let text = error.to_string();
    assert!(text.contains(&case.path().display().to_string()), "{text}");
    assert!(!error.hint().is_empty());
}

#[test]
fn the_unbroken_adapter_is_accepted() {
    let case = Case::new();
    case.apply(&mut base(&config(), 1, &lora())).unwrap();
}

/// PEFT loads this without a word and leaves every `lora_B` at zero.
#[test]
fn a_wrong_prefix_is_an_error() {
    let case = Case::new();
    case.rewrite(|name, value| {
        Some((name.replace("base_model.model.", "base_model.model.model."), value.clone()))
    });
    let error = case.error(&mut case.model.clone());
    assert!(
        matches!(&error, AdapterError::UnknownKeys { unknown, total, .. }
        if unknown.len() == *total),
        "{error}"
    );
    assert_helpful(&error, &case);
}

#[test]
fn zero_b_is_an_error() {
    let case = Case::new();
    case.rewrite(|name, value| {
        let zero = || value.zeros_like().unwrap();
        let value = if name.contains("lora_B") { zero() } else { value.clone() };
        Some((name.to_owned(), value))
    });
    let error = case.error(&mut case.model.clone());
    assert!(matches!(error, AdapterError::ZeroB { .. }), "{error}");
    assert_helpful(&error, &case);
}

#[test]
fn a_missing_layer_is_an_error() {
    let case = Case::new();
    case.rewrite(|name, value| {
        (!name.contains("h.1.mlp.w2")).then(|| (name.to_owned(), value.clone()))
    });
    let error = case.error(&mut case.model.clone());
    assert!(matches!(&error, AdapterError::MissingKeys { missing, .. } if missing.len() == 2));
    assert_helpful(&error, &case);
}

#[test]
fn another_base_of_the_same_shape_is_an_error() {
    let case = Case::new();
    let error = case.error(&mut base(&config(), 2, &lora()));
    assert!(matches!(error, AdapterError::WrongBase { .. }), "{error}");
    assert_helpful(&error, &case);
}

#[test]
fn a_base_of_another_width_is_an_error() {
    let case = Case::new();
    let wider = ModelConfig { intermediate_size: 96, ..config() };
    let error = case.error(&mut base(&wider, 1, &lora()));
    assert!(matches!(&error, AdapterError::WrongShape { name, .. } if name.contains("mlp.w")));
    assert_helpful(&error, &case);
}

/// Someone changed the weights after they were saved.
#[test]
fn another_effect_than_at_saving_is_an_error() {
    let case = Case::new();
    case.rewrite(|name, value| Some((name.to_owned(), (value * 3.0).unwrap())));
    let error = case.error(&mut case.model.clone());
    assert!(matches!(error, AdapterError::OtherEffect { .. }), "{error}");
    assert_helpful(&error, &case);
}

/// Sizes from nothing to all but one byte: never a panic, never an adapter.
#[test]
fn a_truncated_file_is_an_error() {
    let case = Case::new();
    let path = case.path().join(WEIGHTS);
    let whole = fs::read(&path).unwrap();
    for length in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let error = case.load().unwrap_err();
        assert!(matches!(error, AdapterError::Tensors { .. }), "{length} bytes: {error}");
        assert_helpful(&error, &case);
    }
}

#[test]
fn a_folder_that_is_no_adapter_is_an_error() {
    let case = Case::new();
    fs::remove_file(case.path().join(WEIGHTS)).unwrap();
    assert!(matches!(case.load().unwrap_err(), AdapterError::NoWeights { .. }));
    fs::write(case.path().join("adapter_config.json"), "{\"peft_type\": \"LORA\"").unwrap();
    assert!(matches!(case.load().unwrap_err(), AdapterError::Config { .. }));
    fs::remove_dir_all(case.path()).unwrap();
    let error = case.load().unwrap_err();
    assert!(matches!(error, AdapterError::Read { .. }));
    assert_helpful(&error, &case);
}

/// Names that PEFT would match with more than one layer, or with none of the language model.
#[test]
fn ambiguous_targets_are_errors() {
    let case = Case::new();
    let path = case.path().join("adapter_config.json");
    let text = fs::read_to_string(&path).unwrap();
    for target in ["c_proj", "attn", "in_proj", ""] {
        let mut config: BTreeMap<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
        config.insert("target_modules".to_owned(), vec![target].into());
        fs::write(&path, serde_json::to_string(&config).unwrap()).unwrap();
        let error = case.load().map(|adapter| adapter.lora).unwrap_err();
        assert!(matches!(error, AdapterError::Unsupported { .. }), "`{target}`: {error}");
    }
}
