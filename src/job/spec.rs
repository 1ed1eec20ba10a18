//! The types of a job file. Their doc comments are the text of `qvl explain job`, and their
//! defaults are the only place where a default is written.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A fine-tuning job. The same text is read by `qvl plan`, `qvl doctor --job`, `qvl launch` and,
/// in a cluster, by the operator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FineTuneJob {
    /// Always `qvl.dev/v1alpha1`.
    pub api_version: JobVersion,
    /// Always `FineTuneJob`.
    pub kind: JobKind,
    /// Name of the job.
    pub metadata: Metadata,
    /// What to train, on what, and how.
    pub spec: JobSpec,
}

/// Version of the job format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum JobVersion {
    /// The only version so far.
    #[serde(rename = "qvl.dev/v1alpha1")]
    V1Alpha1,
}

/// Kind of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum JobKind {
    /// The only kind of a job file.
    FineTuneJob,
}

/// Identity of the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// Lower-case letters, digits and `-`; begins with a letter; at most 40 characters (a DNS-1035
    /// label with room for the suffixes of a cluster).
    pub name: String,
}

/// What to train, on what, and how. Paths are relative to the folder of the job file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JobSpec {
    /// The base model.
    pub model: ModelSource,
    /// Training and evaluation data.
    pub data: Data,
    /// Which parameters are trained.
    #[serde(default)]
    pub method: Method,
    /// AdamW and gradient clipping.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// Learning rate over time.
    #[serde(default)]
    pub schedule: Schedule,
    /// How many samples make one optimizer step.
    #[serde(default)]
    pub batch: Batch,
    /// The stages, run one after another. Each begins with the weights of the one before.
    pub stages: Vec<Stage>,
    /// Ranks and what they compute on.
    #[serde(default)]
    pub world: World,
    /// Seed of data order, initialisation and dropout.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// When to save the state for a resume.
    #[serde(default)]
    pub checkpoint: Checkpoint,
    /// When to measure the evaluation sets.
    #[serde(default)]
    pub evaluation: Evaluation,
    /// What happens when a rank fails.
    #[serde(default)]
    pub failure: Failure,
    /// Environment variables of the ranks. All others come from the launcher's environment, or in
    /// a cluster from the pod's.
    #[serde(default, skip_serializing_if = "RankEnv::is_empty")]
    pub env: RankEnv,
    /// Folder for checkpoints, logs, metrics and the result. It is created if missing.
    pub output: String,
    /// What a cluster needs to know beside.
    #[serde(default)]
    pub cluster: Cluster,
    /// In a cluster: save a checkpoint, stop, and give the GPUs back until this is false again.
    #[serde(default)]
    pub suspend: bool,
}

/// The base model: a folder in the layout of the official release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelSource {
    /// Folder with `config.json`, `qwen.tiktoken` and the weights (`*.safetensors` or `*.bin`).
    pub path: String,
    /// Number format of the frozen base weights.
    #[serde(default)]
    pub dtype: Dtype,
    /// Folder of an adapter to continue from; its rank and targets must equal `method.lora`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
}

/// Number format of the base weights. What is trained is always kept in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Dtype {
    /// bf16 on GPUs of compute capability 8.0 and more, f16 on older GPUs, f32 on CPUs.
    #[default]
    Auto,
    /// 32-bit float.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

/// Training and evaluation data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Data {
    /// Training sets; one epoch goes through all of them once, mixed.
    pub train: Vec<TrainSet>,
    /// Evaluation sets. Give at least one from another distribution than the training data.
    #[serde(default)]
    pub eval: Vec<EvalSet>,
    /// Longest sample in tokens, images included.
    #[serde(default = "default_max_length")]
    pub max_length: u32,
    /// What happens to a sample that is longer.
    #[serde(default)]
    pub on_overlong: OnOverlong,
    /// Which tokens carry a loss.
    #[serde(default)]
    pub mask: Mask,
}

/// One training set: a file in the official JSON format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrainSet {
    /// Name for reports; unique within the job.
    pub name: String,
    /// JSON file: a list of `{id, conversations: [{from, value}]}`.
    pub path: String,
    /// What the answers are.
    pub task: Task,
    /// Loss weight of each labelled token of this set.
    #[serde(default = "default_weight")]
    pub weight: f64,
}

/// One evaluation set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EvalSet {
    /// Name for reports; unique within the job.
    pub name: String,
    /// JSON file in the same format as for training.
    pub path: String,
    /// What the answers are; decides the metrics.
    pub task: Task,
    /// Measure only the first so many samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// What the answers of a data set are.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Boxes: `<box>(x1,y1),(x2,y2)</box>`; measured by intersection over union.
    Grounding,
    /// Free text about the picture; measured by exact match.
    Caption,
    /// An answer to a question; measured by exact match.
    Vqa,
    /// Text without a picture.
    Text,
}

impl Task {
    /// Name as in the job file.
    pub const fn name(self) -> &'static str {
        match self {
            Task::Grounding => "grounding",
            Task::Caption => "caption",
            Task::Vqa => "vqa",
            Task::Text => "text",
        }
    }
}

/// What happens to a sample that does not fit into `maxLength`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnOverlong {
    /// The job stops before the first step and names the sample.
    #[default]
    Error,
    /// The sample is left out, and counted.
    Drop,
}

/// Which tokens carry a loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mask {
    /// As the official finetune.py: answers, and the template tokens of every turn.
    #[default]
    Reference,
    /// Only the answers and their `<|im_end|>`.
    AnswerOnly,
}

/// Which parameters are trained: exactly one of `lora` and `full`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Method {
    /// Low-rank adapters in the language model; everything else is frozen.
    Lora(Lora),
    /// The weights themselves.
    Full(Full),
}

impl Default for Method {
    fn default() -> Self {
        Method::Lora(Lora::default())
    }
}

/// Low-rank adapters. The defaults are those of the official finetune.py.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Lora {
    /// Rank.
    pub r: u32,
    /// The adapter's output is scaled by `alpha / r`.
    pub alpha: f64,
    /// Dropout probability on the adapter's input.
    pub dropout: f64,
    /// Linear layers of the language model that get an adapter.
    pub targets: Vec<LoraTarget>,
}

impl Default for Lora {
    fn default() -> Self {
        Lora {
            r: 64,
            alpha: 16.0,
            dropout: 0.05,
            targets: vec![LoraTarget::CAttn, LoraTarget::AttnCProj, LoraTarget::W1, LoraTarget::W2],
        }
    }
}

/// A linear layer of the language model.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum LoraTarget {
    /// Query, key and value in one: `attn.c_attn`.
    #[serde(rename = "c_attn")]
    CAttn,
    /// Output of the attention.
    #[serde(rename = "attn.c_proj")]
    AttnCProj,
    /// Value half of the `SwiGLU`.
    #[serde(rename = "w1")]
    W1,
    /// Gate half of the `SwiGLU`.
    #[serde(rename = "w2")]
    W2,
    /// Output of the MLP (not an official target).
    #[serde(rename = "mlp.c_proj")]
    MlpCProj,
}

impl LoraTarget {
    /// Path within a block, as in tensor names: `attn.c_attn`.
    pub const fn path(self) -> &'static str {
        match self {
            LoraTarget::CAttn => "attn.c_attn",
            LoraTarget::AttnCProj => "attn.c_proj",
            LoraTarget::W1 => "mlp.w1",
            LoraTarget::W2 => "mlp.w2",
            LoraTarget::MlpCProj => "mlp.c_proj",
        }
    }
}

/// Training of the weights themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Full {
    /// Parts that are trained; the rest is frozen. The default is the official `fix_vit`.
    pub train: Vec<Part>,
}

impl Default for Full {
    fn default() -> Self {
        Full { train: vec![Part::Lm, Part::Resampler] }
    }
}

/// A part of the model.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Language model with embedding and head.
    Lm,
    /// `transformer.visual.attn_pool`, with its position table, as the official `fix_vit` does.
    Resampler,
    /// The vision transformer with `ln_post` and `proj`.
    Vit,
}

/// AdamW with decoupled weight decay. The defaults are those of the official finetune.py, but
/// for the learning rate, which is ten times its `1e-5` (too low for adapters).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Optimizer {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decay of weights, as a rate per unit of learning rate.
    pub weight_decay: f64,
    /// Gradients are scaled down so that their global L2 norm is at most this; 0 turns it off.
    pub max_grad_norm: f64,
}

impl Default for Optimizer {
    fn default() -> Self {
        Optimizer {
            learning_rate: 1e-4,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            max_grad_norm: 1.0,
        }
    }
}

/// Learning rate over the steps of one stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Schedule {
    /// Form of the curve.
    pub kind: ScheduleKind,
    /// Share of the stage's steps spent on the warm-up; ignored if `warmupSteps` is given.
    pub warmup_ratio: f64,
    /// Steps of the warm-up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u64>,
    /// The curve ends at this share of the peak.
    pub final_ratio: f64,
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule {
            kind: ScheduleKind::Cosine,
            warmup_ratio: 0.01,
            warmup_steps: None,
            final_ratio: 0.0,
        }
    }
}

/// Form of the learning-rate curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleKind {
    /// Half a cosine from the peak to the end.
    Cosine,
    /// A straight line from the peak to the end.
    Linear,
    /// The peak, after the warm-up.
    Constant,
    /// What the official `DeepSpeed` configurations really do: a logarithmic warm-up, then constant,
    /// with `DeepSpeed`'s order of scheduler and optimizer.
    WarmupLrLog,
}

/// How many samples make one optimizer step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Batch {
    /// Samples of one optimizer step, over all ranks. It does not change with the number of ranks.
    pub global: u32,
    /// Samples that are computed together on one rank. The gradient sum follows a fixed tree over
    /// these units, so that the result is the same on any number of ranks.
    pub unit: u32,
    /// How the losses of a batch become one number.
    pub normalisation: Normalisation,
}

impl Default for Batch {
    fn default() -> Self {
        Batch { global: 16, unit: 1, normalisation: Normalisation::Tokens }
    }
}

/// How the losses of a batch become one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Normalisation {
    /// Weighted sum over all labelled tokens of the global batch, divided by their weights.
    #[default]
    Tokens,
    /// As the official trainer: the mean over units of each unit's mean.
    Reference,
}

/// One stage of the training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stage {
    /// Name for reports; unique within the job.
    pub name: String,
    /// Passes over the stage's training sets. Exactly one of `epochs` and `steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Optimizer steps. Exactly one of `epochs` and `steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Names of the training sets of this stage; all if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sets: Option<Vec<String>>,
    /// Peak learning rate of this stage instead of the optimizer's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Schedule of this stage instead of the job's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// Begin with fresh optimizer moments.
    #[serde(default)]
    pub reset_optimizer: bool,
}

/// Ranks and what they compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct World {
    /// Number of ranks: GPUs, or processes when the job runs on CPUs.
    pub gpus: u32,
    /// What a rank computes on.
    pub compute: Compute,
    /// CPU threads of each rank; 0 shares the cores evenly.
    pub threads: u32,
    /// Seconds a rank waits for a peer before it reports the peer as lost.
    pub peer_timeout_seconds: u32,
}

impl Default for World {
    fn default() -> Self {
        World { gpus: 1, compute: Compute::Auto, threads: 0, peer_timeout_seconds: 60 }
    }
}

/// What a rank computes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Compute {
    /// GPUs if this machine and the trainer have them, else CPUs.
    #[default]
    Auto,
    /// GPUs only.
    Cuda,
    /// CPUs only.
    Cpu,
}

/// When to save the state for a resume. A checkpoint holds everything, the optimizer included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Checkpoint {
    /// Steps between two checkpoints; 0 saves only at the end of each stage.
    pub every_steps: u64,
    /// Newest checkpoints that are kept; the best one is kept besides.
    pub keep: u32,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Checkpoint { every_steps: 100, keep: 3 }
    }
}

/// When to measure the evaluation sets. They are always measured at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Evaluation {
    /// Steps between two measurements; 0 measures only at the end.
    pub every_steps: u64,
    /// Measure also before the first step, so that the gain is known.
    pub at_start: bool,
    /// Longest answer in tokens.
    pub max_new_tokens: u32,
    /// Name of the evaluation set whose metric decides which checkpoint is the best; the first
    /// set if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_by: Option<String>,
}

impl Default for Evaluation {
    fn default() -> Self {
        Evaluation { every_steps: 0, at_start: false, max_new_tokens: 64, best_by: None }
    }
}

/// What happens when a rank fails.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Failure {
    /// Restarts from the newest checkpoint before the job counts as failed.
    pub max_restarts: u32,
    /// A rank is stalled when no step ends within this multiple of the median step time, but not
    /// before 30 seconds.
    pub stall_multiplier: f64,
    /// Longest time for loading and the first step.
    pub startup_seconds: u32,
}

impl Default for Failure {
    fn default() -> Self {
        Failure { max_restarts: 3, stall_multiplier: 10.0, startup_seconds: 1200 }
    }
}

/// Environment variables that the ranks get or lose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RankEnv {
    /// Variables with their values, for example `NCCL_DEBUG: WARN`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub set: BTreeMap<String, String>,
    /// Names of variables that the ranks must not see.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unset: Vec<String>,
}

impl RankEnv {
    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.unset.is_empty()
    }
}

/// What a cluster needs to know beside; `qvl launch --local` ignores it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Cluster {
    /// Image with `qvl` and `qvl-train`; the operator's default if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Ranks of one pod, and so of one node; chosen by the launcher, or all ranks in one pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpus_per_node: Option<u32>,
    /// Extended resource that a pod asks for once for each of its ranks: `nvidia.com/gpu` if the
    /// ranks compute on GPUs, none if they compute on CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_resource: Option<String>,
    /// What each rank asks for beside.
    pub resources: RankResources,
    /// Size of `/dev/shm` in a pod, for example `8Gi`.
    pub shm: String,
    /// Volumes of every pod. Model, data and output must lie on them.
    pub volumes: Vec<Volume>,
    /// Folder in the pod that relative paths of this job are relative to; the mount path of the
    /// first volume if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub work_dir: Option<String>,
    /// Only nodes with these labels.
    pub node_selector: BTreeMap<String, String>,
    /// Names of nodes that must not be used. The launcher adds those with problems.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude_nodes: Vec<String>,
    /// Local queue of Kueue; without one the job does not wait in a queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// Priority class of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority_class: Option<String>,
    /// Names of secrets for pulling the image.
    pub image_pull_secrets: Vec<String>,
    /// Seconds until all pods must run; then the job gives its GPUs back and tries again later.
    pub start_timeout_seconds: u32,
    /// Ids of checks that may be unknown in the pod's own test before the start.
    pub allow_unknown: Vec<String>,
    /// Test the network between the pods before the first step; takes about two seconds.
    pub test_network: bool,
    /// Before the first step each pod also writes to the output folder and computes on its
    /// processors and GPUs; takes about ten seconds.
    pub active_tests: bool,
    /// Seconds after the end until the pods are deleted; their logs stay.
    pub ttl_seconds: u32,
}

/// At most so many nodes are excluded by name.
pub const EXCLUDED_NODES: usize = 256;

impl Default for Cluster {
    fn default() -> Self {
        Cluster {
            image: None,
            gpus_per_node: None,
            gpu_resource: None,
            resources: RankResources::default(),
            shm: "1Gi".to_owned(),
            volumes: Vec::new(),
            work_dir: None,
            node_selector: BTreeMap::new(),
            exclude_nodes: Vec::new(),
            queue: None,
            priority_class: None,
            image_pull_secrets: Vec::new(),
            start_timeout_seconds: 600,
            allow_unknown: Vec::new(),
            test_network: true,
            active_tests: false,
            ttl_seconds: 86_400,
        }
    }
}

/// What each rank of a pod asks for, in the notation of Kubernetes; empty = nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RankResources {
    /// CPU cores, for example `4` or `500m`.
    pub cpu: String,
    /// Host memory, for example `32Gi`; it is the limit too.
    pub memory: String,
}

/// A volume of every pod of a job: exactly one of `persistentVolumeClaim` and `hostPath`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Volume {
    /// Name, unique within the job.
    pub name: String,
    /// Where it appears in the pod.
    pub mount_path: String,
    /// Name of a claim in the job's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<String>,
    /// Folder of the node. Many clusters forbid it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_path: Option<String>,
    /// Whether pods may only read it.
    #[serde(default)]
    pub read_only: bool,
}

fn default_seed() -> u64 {
    42
}

fn default_max_length() -> u32 {
    2048
}

fn default_weight() -> f64 {
    1.0
}
