//! Adapters travel between qvl and real PEFT, in both directions, without changing what they do.
#![cfg(feature = "train")]
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]

mod inputs;
mod python;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use candle_core::{DType, Device, Tensor};
use inputs::{Tensors, unit, values};
use qvl::{
    data::image,
    job,
    train::{
        adapter, apply,
        canary::Canary,
        model::{Mode, ModelConfig, QwenVl, Trainable},
        optim::AdamW,
    },
};

/// Largest difference between logits of about 1.
const TOLERANCE: f32 = 1e-5;
/// An adapter that moves the logits by less proves nothing.
const EFFECT: f32 = 0.05;

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
}

/// A base with an adapter on top, through the same calls as `qvl-train eval`.
fn adapted(base: &Path, folder: &Path) -> QwenVl {
    let lora = adapter::load(folder).unwrap().lora;
    let trainable = Trainable::Lora { lora: &lora, seed: 0 };
    let mut model = QwenVl::load(base, &Device::Cpu, DType::F32, &trainable).unwrap();
    apply::adapter(&mut model, folder).unwrap();
    model
}

/// What PEFT makes of a base and an adapter: logits `plain` and with it.
fn in_peft(environment: &str, base: &Path, adapter: &Path, inputs: &Path) -> Tensors {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.safetensors");
    let args = [Path::new("apply"), base, adapter, inputs, &out];
    python::run(environment, "peft_check.py", &args);
    read(&out)
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
    for environment in python::PEFTS {
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
            let found = workshop.logits(&adapted(&workshop.path(base), &folder));
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
        for environment in python::PEFTS {
            let (base, inputs) = (workshop.path("base"), workshop.path("inputs.safetensors"));
            let peft = in_peft(environment, &base, &folder, &inputs);
            let (plain, expected) = (values(&peft["plain"]), values(&peft["logits"]));
            let difference = largest(&found, &expected);
            println!("{environment} {name}: {difference:e}");
            assert!(difference < TOLERANCE, "{environment} {name}: {difference}");
            assert!(EFFECT < largest(&expected, &plain), "{environment} {name} does nothing");
        }
        // And here again, where the canary must agree.
        assert!(adapter::load(&folder).unwrap().canary.is_some());
        assert_eq!(workshop.logits(&adapted(&workshop.path("base"), &folder)), found);
    }
}

/// The same through the program itself: a fresh base, a job with pictures, its adapter in PEFT.
#[test]
fn the_adapter_of_a_job_works_in_peft() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = root.join("examples/digits/base.config.json");
    let (config, base) = (config.display().to_string(), path("base").display().to_string());
    qvl_train(&["init", "--config", &config, "--out", &base, "--seed", "5"]);
    fs::write(path("data.json"), job_data(&root.join("tests/goldens/a.png"))).unwrap();
    fs::write(path("job.yaml"), JOB).unwrap();
    qvl_train(&["run", "--job", &path("job.yaml").display().to_string()]);

    let model = QwenVl::load(&path("base"), &Device::Cpu, DType::F32, &Trainable::Nothing).unwrap();
    let inputs = picture_inputs(model.config(), &root.join("tests/goldens/a.png"));
    candle_core::safetensors::save(&inputs, path("inputs.safetensors")).unwrap();
    let adapter = path("run/adapter");
    let model = adapted(&path("base"), &adapter);
    let logits = model.logits(&unit(model.config(), &inputs), Mode::Eval).unwrap();
    for environment in python::PEFTS {
        let peft = in_peft(environment, &path("base"), &adapter, &path("inputs.safetensors"));
        let (plain, expected) = (values(&peft["plain"]), values(&peft["logits"]));
        let difference = largest(&values(&logits), &expected);
        println!("{environment} job: {difference:e}");
        assert!(difference < TOLERANCE, "{environment}: {difference}");
        assert!(EFFECT < largest(&expected, &plain), "{environment}: the adapter does nothing");
    }
}

const JOB: &str = "
apiVersion: qvl.dev/v1alpha1
kind: FineTuneJob
metadata: {name: peft}
spec:
  model: {path: base}
  data:
    maxLength: 256
    train: [{name: all, path: data.json, task: caption}]
  method: {lora: {r: 4, targets: [c_attn, attn.c_proj, w1, w2, mlp.c_proj]}}
  optimizer: {learningRate: 1.0e-2}
  batch: {global: 4, unit: 2}
  stages: [{name: one, steps: 10}]
  world: {gpus: 1, compute: cpu, threads: 1}
  output: run
";

fn job_data(picture: &Path) -> String {
    let sample = |i: usize| {
        let question = format!("Picture 1: <img>{}</img>\nWhat is it?", picture.display());
        serde_json::json!({"id": format!("s{i}"), "conversations": [
            {"from": "user", "value": question},
            {"from": "assistant", "value": format!("A picture, {i}.")},
        ]})
    };
    serde_json::to_string(&(0..8).map(sample).collect::<Vec<_>>()).unwrap()
}

fn qvl_train(args: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_qvl-train")).args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "qvl-train {args:?}: {}\n{out}{err}", output.status);
}

/// Text around one picture.
fn picture_inputs(config: &ModelConfig, picture: &Path) -> Tensors {
    let side = config.visual.image_size;
    let pixels = image::pixels(&image::open(picture).unwrap(), side);
    let start = i64::from(config.visual.image_start_id);
    let slots = vec![start + 2; config.visual.n_queries];
    let ids = [vec![65, 66, start], slots, vec![start + 1, 67, 10, 32, 33, 34]].concat();
    let row = |values: Vec<i64>| Tensor::from_vec(values, (1, ids.len()), &Device::Cpu).unwrap();
    Tensors::from([
        ("attention_mask".to_owned(), row(vec![1; ids.len()])),
        ("input_ids".to_owned(), row(ids.clone())),
        (
            "pixels".to_owned(),
            Tensor::from_slice(&pixels, (1, 3, side, side), &Device::Cpu).unwrap(),
        ),
    ])
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
