//! The official stack: PyTorch, `DeepSpeed`, transformers, and the script that starts them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Fact;

/// What is installed, and what the launch script says. Read from files; Python is not started.
/// `None` where the doctor was not told where to look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OfficialFacts {
    /// Installed distributions by normalised name, such as `torch` to `2.3.0+cu121`.
    pub distributions: Fact<Option<BTreeMap<String, String>>>,
    /// Version of Python whose packages these are, `3.10`.
    pub python: Fact<Option<String>>,
    /// CUDA version of `nvcc`, `12.1`; `None` if there is no toolkit.
    pub nvcc: Fact<Option<String>>,
    /// The launch script.
    pub script: Fact<Option<LaunchScript>>,
}

impl Default for OfficialFacts {
    fn default() -> Self {
        OfficialFacts {
            distributions: Fact::not_recorded(),
            python: Fact::not_recorded(),
            nvcc: Fact::not_recorded(),
            script: Fact::not_recorded(),
        }
    }
}

/// What a launch script will run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchScript {
    /// The file.
    pub path: String,
    /// Program that starts the ranks.
    pub launcher: Launcher,
    /// Options of the launcher by name without dashes, variables resolved.
    pub launcher_options: BTreeMap<String, String>,
    /// Options of the training program by name without dashes.
    pub options: BTreeMap<String, String>,
    /// The `DeepSpeed` file that the options name; `None` if they name none.
    pub deepspeed: Option<DeepSpeedConfig>,
    /// What stands in the training program.
    pub program: BTreeSet<CodeMark>,
    /// Samples in the training set; `None` if it was not counted.
    pub samples: Option<u64>,
}

/// Program that starts the ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Launcher {
    /// `python finetune.py`.
    #[default]
    Python,
    /// `torchrun` or `python -m torch.distributed.run`.
    Torchrun,
    /// `deepspeed`.
    DeepSpeed,
    /// `accelerate launch`.
    Accelerate,
}

/// Parts of a `DeepSpeed` file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeepSpeedConfig {
    /// `zero_optimization.stage`.
    pub zero_stage: u32,
    /// `fp16.enabled` is `true`.
    pub fp16: bool,
    /// `bf16.enabled` is `true`.
    pub bf16: bool,
    /// `zero_optimization.offload_optimizer.device` or `offload_param.device` is `cpu`.
    pub offload: bool,
}

/// Something that stands in a training program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CodeMark {
    /// `device_map="auto"`.
    DeviceMapAuto,
    /// `DataParallel(`.
    DataParallel,
    /// A `DataLoader(`.
    DataLoader,
    /// A sampler that gives each rank its share, or the `Trainer` that makes one.
    ShardedSampler,
    /// `torch.save(` or `save_pretrained(`.
    Saves,
    /// A question about the rank.
    AsksForRank,
}
