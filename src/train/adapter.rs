//! Adapters in the folder layout of PEFT: `adapter_config.json` and
//! `adapter_model.safetensors` (or `.bin`), plus our own `qvl_canary.json`.
//!
//! PEFT loads a file whose keys have a wrong prefix without a word and leaves every `lora_B` at
//! zero: "the adapter loaded but nothing changed". Here each way to change nothing is an error
//! that says which one it is.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::canary::Canary;
use crate::{job, wire::TrainerExit};

/// What PEFT puts before every tensor name.
const PREFIX: &str = "base_model.model.";
const CONFIG: &str = "adapter_config.json";
const SAFETENSORS: &str = "adapter_model.safetensors";
const PICKLE: &str = "adapter_model.bin";
const CANARY: &str = "qvl_canary.json";

/// An adapter as read from a folder; nothing of it has met a base yet.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// The folder, for messages.
    pub folder: PathBuf,
    /// Rank, scale and targets.
    pub lora: job::Lora,
    /// Tensors by model name, without PEFT's prefix: `transformer.h.0.attn.c_attn.lora_A.weight`.
    pub tensors: BTreeMap<String, Tensor>,
    /// Proof of effect, if the adapter was written by qvl.
    pub canary: Option<Canary>,
}

/// Why an adapter cannot be read, written or applied.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    #[error("failed to read `{}`", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("failed to write `{}`", .path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("`{}` has neither {SAFETENSORS} nor {PICKLE}", .folder.display())]
    NoWeights { folder: PathBuf },
    #[error("`{}` is not a PEFT adapter configuration", .path.display())]
    Config { path: PathBuf, source: serde_json::Error },
    #[error("`{}`: {what}", .path.display())]
    Unsupported { path: PathBuf, what: String },
    #[error("failed to read the tensors of `{}`", .path.display())]
    Tensors { path: PathBuf, source: candle_core::Error },
    #[error("`{}` would change nothing: {} of its {total} tensors name no layer of the model, for example `{}`", .folder.display(), .unknown.len(), .unknown[0])]
    UnknownKeys { folder: PathBuf, unknown: Vec<String>, total: usize },
    #[error("`{}` lacks {} tensors, for example `{}`", .folder.display(), .missing.len(), .missing[0])]
    MissingKeys { folder: PathBuf, missing: Vec<String> },
    #[error("`{}` was made for another base: `{name}` has shape {found:?}, this model needs {expected:?}", .folder.display())]
    WrongShape { folder: PathBuf, name: String, found: Vec<usize>, expected: Vec<usize> },
    #[error("`{}` would change nothing: every lora_B in it is zero", .folder.display())]
    ZeroB { folder: PathBuf },
    #[error("`{}` was trained on another base: logits of the canary differ by {difference:.3e}", .folder.display())]
    WrongBase { folder: PathBuf, difference: f64 },
    #[error("`{}` has no effect on this model: the canary's logits do not move", .folder.display())]
    NoEffect { folder: PathBuf },
    #[error("`{}` acts differently from when it was saved: logits of the canary differ by {difference:.3e}", .folder.display())]
    OtherEffect { folder: PathBuf, difference: f64 },
}

impl AdapterError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            AdapterError::Read { .. } | AdapterError::NoWeights { .. } => {
                "give the folder that holds adapter_config.json"
            }
            AdapterError::Write { .. } => "check free space and permissions of the output folder",
            AdapterError::Config { .. } | AdapterError::Unsupported { .. } => {
                "qvl reads LoRA adapters of PEFT with bias `none` and without modules_to_save"
            }
            AdapterError::Tensors { .. } => "the file may be truncated; copy it again",
            AdapterError::UnknownKeys { .. } => {
                "keys must begin with `base_model.model.transformer.h.`; saving under another wrapper \
                 changes this prefix"
            }
            AdapterError::MissingKeys { .. } => {
                "the file does not match its adapter_config.json; save the adapter again"
            }
            AdapterError::WrongShape { .. } | AdapterError::WrongBase { .. } => {
                "load the base that adapter_config.json names in base_model_name_or_path"
            }
            AdapterError::ZeroB { .. } | AdapterError::NoEffect { .. } => {
                "it was saved before the first step, or its weights did not load; use a later checkpoint"
            }
            AdapterError::OtherEffect { .. } => {
                "its tensors changed since the training; check the copy, or the number format of the base"
            }
        }
    }

    /// The trainer's exit code for it.
    pub fn exit(&self) -> TrainerExit {
        match self {
            AdapterError::Write { .. } => TrainerExit::CheckpointIo,
            AdapterError::Read { .. } | AdapterError::NoWeights { .. } => TrainerExit::InputMissing,
            AdapterError::Config { .. }
            | AdapterError::Unsupported { .. }
            | AdapterError::Tensors { .. }
            | AdapterError::UnknownKeys { .. }
            | AdapterError::MissingKeys { .. }
            | AdapterError::WrongShape { .. }
            | AdapterError::ZeroB { .. }
            | AdapterError::WrongBase { .. }
            | AdapterError::NoEffect { .. }
            | AdapterError::OtherEffect { .. } => TrainerExit::Data,
        }
    }
}

/// `adapter_config.json`: the keys that PEFT 0.5.0 writes. Newer versions write more, which
/// are ignored unless they change the arithmetic.
#[derive(Debug, Serialize, Deserialize)]
struct PeftConfig {
    #[serde(default)]
    auto_mapping: Option<serde_json::Value>,
    base_model_name_or_path: Option<String>,
    #[serde(default)]
    bias: Option<String>,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    inference_mode: bool,
    #[serde(default)]
    init_lora_weights: Option<serde_json::Value>,
    #[serde(default)]
    layers_pattern: Option<serde_json::Value>,
    #[serde(default)]
    layers_to_transform: Option<serde_json::Value>,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    #[serde(default)]
    modules_to_save: Option<Vec<String>>,
    peft_type: String,
    r: u32,
    #[serde(default)]
    revision: Option<String>,
    target_modules: Vec<String>,
    #[serde(default)]
    task_type: Option<String>,
}

/// Settings of PEFT (0.21) under which an adapter means more than `alpha/r · B A x`, acts on other
/// modules, or goes with changed base weights. Each must be absent, null, false or empty.
const UNSUPPORTED: [&str; 18] = [
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "layers_to_transform",
    "lora_bias",
    "lora_ga_config",
    "monteclora_config",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "use_rslora",
    "velora_config",
];

/// Ways of initialisation that change the base weights too.
const CHANGED_BASE: [&str; 5] = ["corda", "loftq", "lora_ga", "olora", "pissa"];

/// Writes an adapter. The folder appears whole or not at all; an older one of that name is
/// replaced only when the new one is complete on disk.
pub fn save(
    folder: &Path,
    lora: &job::Lora,
    base: &str,
    tensors: &[(String, Tensor)],
    canary: &Canary,
) -> Result<(), AdapterError> {
    let parent = folder.parent().unwrap_or(Path::new("."));
    let write = |path: &Path| {
        let path = path.to_owned();
        move |source| AdapterError::Write { path, source }
    };
    fs::create_dir_all(parent).map_err(write(parent))?;
    let staged =
        tempfile::Builder::new().prefix(".adapter-").tempdir_in(parent).map_err(write(parent))?;
    let config = serde_json::to_vec_pretty(&peft_config(lora, base, tensors)).expect("plain data");
    write_synced(&staged.path().join(CONFIG), &config)?;
    let canary = serde_json::to_vec_pretty(canary).expect("plain data");
    write_synced(&staged.path().join(CANARY), &canary)?;
    let named: Vec<(String, Tensor)> =
        tensors.iter().map(|(name, value)| (format!("{PREFIX}{name}"), value.clone())).collect();
    let path = staged.path().join(SAFETENSORS);
    let bytes = safetensors::serialize(named, None)
        .map_err(|error| write(&path)(io::Error::other(error.to_string())))?;
    write_synced(&path, &bytes)?;
    replace_folder(staged, folder).map_err(write(folder))
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), AdapterError> {
    let write = || {
        let mut file = fs::File::create(path)?;
        io::Write::write_all(&mut file, bytes)?;
        file.sync_all()
    };
    write().map_err(|source| AdapterError::Write { path: path.to_owned(), source })
}

fn replace_folder(staged: tempfile::TempDir, folder: &Path) -> io::Result<()> {
    let old = folder.with_extension("old");
    if folder.exists() {
        if old.exists() {
            fs::remove_dir_all(&old)?;
        }
        fs::rename(folder, &old)?;
    }
    fs::rename(staged.keep(), folder)?;
    // A temporary folder is private to its owner; a result is not.
    fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    if old.exists() {
        fs::remove_dir_all(&old)?;
    }
    Ok(())
}

fn peft_config(lora: &job::Lora, base: &str, tensors: &[(String, Tensor)]) -> PeftConfig {
    PeftConfig {
        auto_mapping: None,
        base_model_name_or_path: Some(base.to_owned()),
        bias: Some("none".to_owned()),
        fan_in_fan_out: false,
        inference_mode: true,
        init_lora_weights: Some(true.into()),
        layers_pattern: None,
        layers_to_transform: None,
        lora_alpha: lora.alpha,
        lora_dropout: lora.dropout,
        modules_to_save: None,
        peft_type: "LORA".to_owned(),
        r: lora.r,
        revision: None,
        target_modules: peft_targets(lora, tensors),
        task_type: Some("CAUSAL_LM".to_owned()),
    }
}

/// The names in `target_modules`. PEFT matches by suffix, and `mlp.c_proj` would also hit the
/// vision tower, so that layer is written with its full path, once per block.
fn peft_targets(lora: &job::Lora, tensors: &[(String, Tensor)]) -> Vec<String> {
    let mut names = Vec::new();
    for target in &lora.targets {
        match target {
            job::LoraTarget::CAttn => names.push("c_attn".to_owned()),
            job::LoraTarget::AttnCProj => names.push("attn.c_proj".to_owned()),
            job::LoraTarget::W1 => names.push("w1".to_owned()),
            job::LoraTarget::W2 => names.push("w2".to_owned()),
            job::LoraTarget::MlpCProj => names.extend(
                tensors
                    .iter()
                    .filter_map(|(name, _value)| name.strip_suffix(".lora_A.weight"))
                    .filter(|module| module.ends_with(".mlp.c_proj"))
                    .map(str::to_owned),
            ),
        }
    }
    names
}

/// Reads an adapter folder, ours or PEFT's. Tensors come as f32 on the CPU.
pub fn load(folder: &Path) -> Result<Adapter, AdapterError> {
    let lora = load_config(&folder.join(CONFIG))?;
    let tensors = load_tensors(folder)?
        .into_iter()
        .map(|(name, value)| (name.strip_prefix(PREFIX).unwrap_or(&name).to_owned(), value))
        .collect();
    let path = folder.join(CANARY);
    let canary = if path.exists() {
        let text =
            fs::read(&path).map_err(|source| AdapterError::Read { path: path.clone(), source })?;
        let canary = serde_json::from_slice(&text)
            .map_err(|source| AdapterError::Config { path, source })?;
        Some(canary)
    } else {
        None
    };
    Ok(Adapter { folder: folder.to_owned(), lora, tensors, canary })
}

fn load_config(path: &Path) -> Result<job::Lora, AdapterError> {
    let text =
        fs::read(path).map_err(|source| AdapterError::Read { path: path.to_owned(), source })?;
    let invalid = |source| AdapterError::Config { path: path.to_owned(), source };
    let raw: serde_json::Value = serde_json::from_slice(&text).map_err(invalid)?;
    let unsupported = |what: String| AdapterError::Unsupported { path: path.to_owned(), what };
    let config: PeftConfig = serde_json::from_value(raw.clone()).map_err(invalid)?;
    if config.peft_type != "LORA" {
        return Err(unsupported(format!("peft_type is `{}`, expected `LORA`", config.peft_type)));
    }
    if let Some(key) = UNSUPPORTED.into_iter().find(|key| is_set(&raw[*key])) {
        return Err(unsupported(format!("it uses `{key}`: {}", raw[key])));
    }
    let init = raw["init_lora_weights"].as_str().unwrap_or_default();
    if CHANGED_BASE.into_iter().any(|name| init.starts_with(name)) {
        return Err(unsupported(format!("`{init}` changed the base weights too")));
    }
    if config.bias.as_deref().is_some_and(|bias| bias != "none") {
        return Err(unsupported("bias is trained".to_owned()));
    }
    if config.modules_to_save.is_some_and(|modules| !modules.is_empty()) {
        return Err(unsupported("modules_to_save is not empty".to_owned()));
    }
    let mut targets = config
        .target_modules
        .iter()
        .map(|name| {
            parse_target(name).ok_or_else(|| {
                unsupported(format!("target `{name}` is not a linear layer of the language model"))
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    targets.sort_unstable();
    targets.dedup();
    Ok(job::Lora { r: config.r, alpha: config.lora_alpha, dropout: config.lora_dropout, targets })
}

fn is_set(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::Null | serde_json::Value::Bool(false) => false,
        serde_json::Value::Object(map) => !map.is_empty(),
        serde_json::Value::Array(list) => !list.is_empty(),
        serde_json::Value::Bool(true)
        | serde_json::Value::Number(_)
        | serde_json::Value::String(_) => true,
    }
}

fn parse_target(name: &str) -> Option<job::LoraTarget> {
    use job::LoraTarget::{AttnCProj, CAttn, MlpCProj, W1, W2};
    // As PEFT matches: whole components from the end; `attn` is not `c_attn`.
    let ends = |long: &str, short: &str| long == short || long.ends_with(&format!(".{short}"));
    let is = |path: &str| ends(path, name) || ends(name, path);
    // `c_proj` alone is the suffix of two layers, so it is refused.
    [CAttn, AttnCProj, W1, W2, MlpCProj]
        .into_iter()
        .find(|target| name != "c_proj" && is(target.path()))
}

fn load_tensors(folder: &Path) -> Result<BTreeMap<String, Tensor>, AdapterError> {
    let (safetensors, pickle) = (folder.join(SAFETENSORS), folder.join(PICKLE));
    let read = |path: &Path, tensors: candle_core::Result<Vec<(String, Tensor)>>| {
        tensors
            .and_then(|tensors| {
                tensors.into_iter().map(|(n, t)| Ok((n, t.to_dtype(DType::F32)?))).collect()
            })
            .map_err(|source| AdapterError::Tensors { path: path.to_owned(), source })
    };
    if safetensors.exists() {
        let tensors = candle_core::safetensors::load(&safetensors, &Device::Cpu);
        return read(&safetensors, tensors.map(|map| map.into_iter().collect()));
    }
    if pickle.exists() {
        return read(&pickle, candle_core::pickle::read_all(&pickle));
    }
    Err(AdapterError::NoWeights { folder: folder.to_owned() })
}

impl Adapter {
    /// Orders the tensors as the model's parameters and refuses what would change nothing:
    /// unknown keys, missing keys, shapes of another base, zero `lora_B`.
    pub fn matched(
        &self,
        parameters: &[(String, Vec<usize>)],
    ) -> Result<Vec<Tensor>, AdapterError> {
        let known = |name: &str| parameters.iter().any(|(parameter, _shape)| parameter == name);
        let unknown: Vec<String> =
            self.tensors.keys().filter(|name| !known(name)).cloned().collect();
        if !unknown.is_empty() {
            let total = self.tensors.len();
            return Err(AdapterError::UnknownKeys { folder: self.folder.clone(), unknown, total });
        }
        let missing: Vec<String> = parameters
            .iter()
            .map(|(name, _shape)| name.clone())
            .filter(|name| !self.tensors.contains_key(name))
            .collect();
        if !missing.is_empty() {
            return Err(AdapterError::MissingKeys { folder: self.folder.clone(), missing });
        }
        for (name, expected) in parameters {
            let found = self.tensors[name].dims();
            if found != expected {
                return Err(AdapterError::WrongShape {
                    folder: self.folder.clone(),
                    name: name.clone(),
                    found: found.to_vec(),
                    expected: expected.clone(),
                });
            }
        }
        self.refuse_zero_b()?;
        Ok(parameters.iter().map(|(name, _shape)| self.tensors[name].clone()).collect())
    }

    fn refuse_zero_b(&self) -> Result<(), AdapterError> {
        let mut total = 0.0;
        for (name, tensor) in &self.tensors {
            if name.ends_with(".lora_B.weight") {
                let sum = tensor.sqr().and_then(|t| t.sum_all()).and_then(|t| t.to_scalar::<f32>());
                total += f64::from(sum.map_err(|source| AdapterError::Tensors {
                    path: self.folder.clone(),
                    source,
                })?);
            }
        }
        if total == 0.0 {
            return Err(AdapterError::ZeroB { folder: self.folder.clone() });
        }
        Ok(())
    }
}
