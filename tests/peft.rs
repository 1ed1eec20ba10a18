//! Adapters travel between qvl and real PEFT, in both directions, without changing what they do.
#![cfg(feature = "train")]
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]

mod inputs;
mod python;

use std::{
    fs,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use inputs::{Tensors, unit, values};
use qvl::{
    job,
    train::{
        adapter,
        canary::Canary,
        model::{Mode, QwenVl, Trainable},
        optim::AdamW,
    },
};

/// Largest difference between logits of about 1.
const TOLERANCE: f32 = 1e-5;
/// An adapter that moves the logits by less proves nothing.
const EFFECT: f32 = 0.05;
const PEFTS: [&str; 2] = [python::OFFICIAL, python::NEWEST];

/// What `peft_check.py make` wrote.
struct Workshop {
    folder: tempfile::TempDir,
}

impl Workshop {
    fn new(environment: &str) -> Workshop {
        let folder = tempfile::tempdir().unwrap();
        python::run(environment, "peft_check.py", &[Path::new("make"), folder.path()]);
        Workshop { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn inputs(&self) -> Tensors {
        read(&self.path("inputs.safetensors"))
    }

    fn base(&self, name: &str, trainable: &Trainable) -> QwenVl {
        QwenVl::load(&self.path(name), &Device::Cpu, DType::F32, trainable).unwrap()
    }

    fn logits(&self, model: &QwenVl) -> Vec<f32> {
        values(&model.logits(&unit(model.config(), &self.inputs()), Mode::Eval).unwrap())
    }

    /// The base with an adapter folder on top, through the same calls as `qvl-train eval`.
    fn adapted(&self, base: &str, folder: &Path) -> QwenVl {
        let adapter = adapter::load(folder).unwrap();
        let mut model = self.base(base, &Trainable::Lora { lora: &adapter.lora, seed: 0 });
        let parameters = model.parameters().iter();
        let shapes: Vec<_> =
            parameters.map(|p| (p.name.clone(), p.value.dims().to_vec())).collect();
        for (i, value) in adapter.matched(&shapes).unwrap().into_iter().enumerate() {
            model.set_parameter(i, value).unwrap();
        }
        model
    }
}

fn read(path: &Path) -> Tensors {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn largest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Saved by PEFT as `.bin` and as `.safetensors`, on every layer too, by both versions; on a base
/// of safetensors and on one of bf16 `PyTorch` shards.
#[test]
fn adapters_saved_by_peft_work_here() {
    for environment in PEFTS {
        let workshop = Workshop::new(environment);
        for (base, name) in [
            ("base", "adapter-bin"),
            ("base-bin", "adapter-safetensors"),
            ("base", "adapter-every-layer"),
        ] {
            let folder = workshop.path(name);
            let expected = read(&folder.join("logits.safetensors"));
            let (plain, expected) = (values(&expected["plain"]), values(&expected["logits"]));
            let found = workshop.logits(&workshop.base(base, &Trainable::Nothing));
            let difference = largest(&found, &plain);
            assert!(difference < TOLERANCE, "{environment} {base}: {difference} without adapter");
            let found = workshop.logits(&workshop.adapted(base, &folder));
            let difference = largest(&found, &expected);
            println!("{environment} {name}: {difference:e}");
            assert!(difference < TOLERANCE, "{environment} {name}: {difference}");
            assert!(EFFECT < largest(&expected, &plain), "{environment} {name} does nothing");
        }
    }
}

/// Adapters whose settings mean more than plain `LoRA` would load and act wrongly: they are refused.
#[test]
fn adapters_beyond_plain_lora_are_refused() {
    let workshop = Workshop::new(python::NEWEST);
    for (name, expected) in [
        ("beyond-alpha", "alpha_pattern"),
        ("beyond-rank", "rank_pattern"),
        ("beyond-layers", "layers_to_transform"),
        ("beyond-rslora", "use_rslora"),
        ("beyond-pissa", "pissa"),
        ("beyond-bias", "bias"),
        ("beyond-modules", "modules_to_save"),
    ] {
        let error = adapter::load(&workshop.path(name)).unwrap_err();
        assert!(matches!(error, adapter::AdapterError::Unsupported { .. }), "{name}: {error}");
        assert!(error.to_string().contains(expected), "{name}: {error}");
    }
}

/// Trained here for a few steps and saved; loaded by both versions of PEFT.
#[test]
fn adapters_saved_here_work_in_peft() {
    let workshop = Workshop::new(python::NEWEST);
    let every = job::Lora {
        r: 8,
        alpha: 24.0,
        dropout: 0.0,
        targets: [job::Lora::default().targets, vec![job::LoraTarget::MlpCProj]].concat(),
    };
    let official = job::Lora { targets: job::Lora::default().targets, ..every.clone() };
    for (name, lora) in [("official", official), ("every", every)] {
        let folder = workshop.path(name);
        let model = train_and_save(&workshop, &lora, &folder);
        let found = workshop.logits(&model);
        for environment in PEFTS {
            let out = workshop.path("out.safetensors");
            python::run(
                environment,
                "peft_check.py",
                &[
                    Path::new("apply"),
                    &workshop.path("base"),
                    &folder,
                    &workshop.path("inputs.safetensors"),
                    &out,
                ],
            );
            let peft = read(&out);
            let (plain, expected) = (values(&peft["plain"]), values(&peft["logits"]));
            let difference = largest(&found, &expected);
            println!("{environment} {name}: {difference:e}");
            assert!(difference < TOLERANCE, "{environment} {name}: {difference}");
            assert!(EFFECT < largest(&expected, &plain), "{environment} {name} does nothing");
        }
        // And here again, where the canary must agree.
        let mut again = workshop.adapted("base", &folder);
        assert_eq!(workshop.logits(&again), found);
        adapter::load(&folder).unwrap().canary.unwrap().verify(&mut again, &folder).unwrap();
    }
}

fn train_and_save(workshop: &Workshop, lora: &job::Lora, folder: &Path) -> QwenVl {
    let mut model = workshop.base("base", &Trainable::Lora { lora, seed: 3 });
    let unit = unit(model.config(), &workshop.inputs());
    assert!(!unit.labels.is_empty());
    let values = |model: &QwenVl| -> Vec<Tensor> {
        model.parameters().iter().map(|p| p.value.clone()).collect()
    };
    let decays = vec![true; model.parameters().len()];
    let mut optimizer = AdamW::new(&job::Optimizer::default(), &values(&model)).unwrap();
    for _step in 0..6 {
        let (_losses, grads) = model.forward_backward(&unit, None).unwrap();
        let new = optimizer.update(&values(&model), &grads, &decays, 1e-2).unwrap();
        for (i, value) in new.into_iter().enumerate() {
            model.set_parameter(i, value).unwrap();
        }
    }
    let canary = Canary::record(&mut model, &[1, 2, 5, 6, 7, 10, 20]).unwrap();
    let parameters = model.parameters().iter();
    let tensors: Vec<_> = parameters.map(|p| (p.name.clone(), p.value.clone())).collect();
    let base = workshop.path("base");
    adapter::save(folder, lora, &base.display().to_string(), &tensors, &canary).unwrap();
    assert!(fs::metadata(folder.join("adapter_model.safetensors")).unwrap().is_file());
    model
}
