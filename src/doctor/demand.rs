//! What a job needs from the machines, in numbers.

use std::borrow::Cow;

use crate::{
    facts::{EnvFacts, Fact, NodeFacts, NvmlState, Snapshot},
    job::{Compute, Dtype, FineTuneJob, RankEnv, quantity},
};

/// Host memory that the official loader needs for each rank: the f32 build of Qwen-VL.
const OFFICIAL_HOST_BYTES_PER_RANK: u64 = 38_600_000_000;
/// Host memory of one rank on a GPU besides the mapped weights: CUDA context, pinned buffers,
/// decoded pictures. A proposal, on the safe side.
const HOST_BYTES_PER_GPU_RANK: u64 = 2 << 30;

/// Whose trainer will run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stack {
    /// `qvl-train`.
    #[default]
    Own,
    /// The official finetune.py with `DeepSpeed`.
    Official,
}

/// What a job needs. A number that nobody knows is `None`: the checks on it are then skipped,
/// with that reason.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Demand {
    /// Name of the job; `None` if the doctor was asked about the machine alone.
    pub job: Option<String>,
    /// Whose trainer will run.
    pub stack: Stack,
    /// What the ranks compute on.
    pub compute: Compute,
    /// Ranks of the whole job; `None` = one for each GPU.
    pub ranks: Option<u32>,
    /// Machines that share the ranks; filled from the snapshot.
    pub nodes: u32,
    /// Ranks of one machine, if that is decided; else they are shared evenly.
    pub ranks_each: Option<u32>,
    /// Number format of the base weights.
    pub dtype: Dtype,
    /// Estimated memory of one rank, in bytes.
    pub rank_memory_bytes: Option<u64>,
    /// Size of the weight files, in bytes.
    pub model_file_bytes: Option<u64>,
    /// Disk for checkpoints.
    pub checkpoints: Option<CheckpointNeed>,
    /// Port of rank 0; `None` if the launcher will choose a free one.
    pub master_port: Option<u16>,
    /// What the data lint said.
    pub data: Option<DataVerdict>,
    /// Samples and learning rate of a step.
    pub batch: Option<BatchNeed>,
    /// Variables that the job gives to its ranks, or keeps from them.
    pub env: RankEnv,
    /// Size of `/dev/shm` in a pod of the job, in bytes; `None` if it will not run in pods.
    pub pod_shm_bytes: Option<u64>,
}

/// Disk for checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointNeed {
    /// Bytes of one checkpoint.
    pub bytes: u64,
    /// Checkpoints on disk at the same time, the one being written included.
    pub kept: u64,
}

/// What the data lint said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataVerdict {
    /// Findings that make the training pointless or impossible.
    pub blocking: u64,
    /// Findings that a person should read.
    pub warnings: u64,
    /// The worst finding, with file and sample.
    pub worst: Option<String>,
}

/// Samples and learning rate of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNeed {
    /// Samples of one optimizer step over all ranks.
    pub global: u32,
    /// Samples that are computed together.
    pub unit: u32,
    /// Peak learning rate.
    pub learning_rate: f64,
}

/// Numbers about a job that need files: the model's and the data's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sizes {
    /// Estimated memory of one rank, in bytes.
    pub rank_memory_bytes: Option<u64>,
    /// Size of the weight files, in bytes.
    pub model_file_bytes: Option<u64>,
    /// Parameters that are trained.
    pub trained_parameters: Option<u64>,
    /// What the data lint said.
    pub data: Option<DataVerdict>,
}

impl Demand {
    /// What `job` needs.
    pub fn of(job: &FineTuneJob, sizes: Sizes) -> Self {
        let spec = &job.spec;
        Demand {
            job: Some(job.metadata.name.clone()),
            stack: Stack::Own,
            compute: spec.world.compute,
            ranks: Some(spec.world.gpus),
            nodes: 1,
            ranks_each: None,
            dtype: spec.model.dtype,
            rank_memory_bytes: sizes.rank_memory_bytes,
            model_file_bytes: sizes.model_file_bytes,
            checkpoints: sizes.trained_parameters.map(|trained| CheckpointNeed {
                // Weights and two moments in f32; everything else is small.
                bytes: trained * 12 + (1 << 20),
                // The newest, the best, and the one being written.
                kept: u64::from(spec.checkpoint.keep) + 2,
            }),
            master_port: None,
            data: sizes.data,
            batch: Some(BatchNeed {
                global: spec.batch.global,
                unit: spec.batch.unit,
                learning_rate: spec.optimizer.learning_rate,
            }),
            env: spec.env.clone(),
            pod_shm_bytes: None,
        }
    }

    /// The same demand of a job whose ranks run in pods.
    #[must_use]
    pub fn in_pods(self, job: &FineTuneJob) -> Self {
        Demand { pod_shm_bytes: bytes_of(&job.spec.cluster.shm), ..self }
    }

    /// The facts as the ranks will see them: with the variables of the job. The official scripts
    /// are not started by this launcher, so they get none of them.
    pub(super) fn seen<'s>(&self, snapshot: &'s Snapshot) -> Cow<'s, Snapshot> {
        if self.env.is_empty() || self.stack == Stack::Official {
            return Cow::Borrowed(snapshot);
        }
        let mut seen = snapshot.clone();
        seen.nodes.values_mut().for_each(|node| self.dress(node));
        Cow::Owned(seen)
    }

    fn dress(&self, node: &mut NodeFacts) {
        let Fact::Known { value, from } = &node.env.variables else { return };
        let mut variables = value.clone();
        variables.extend(self.env.set.clone());
        self.env.unset.iter().for_each(|name| {
            variables.remove(name);
        });
        let from = format!("{}, spec.env of the job", from.as_str());
        node.env = EnvFacts { variables: Fact::known(variables, from.as_str()) };
        if self.env.unset.iter().any(|name| name == "MASTER_ADDR") {
            node.network.master_address = Fact::known(None, from.as_str());
        }
    }

    /// The same demand with `compute` decided and `nodes` counted.
    pub(super) fn resolved(&self, snapshot: &Snapshot) -> Self {
        let nodes = snapshot.nodes.len() + snapshot.missing().count();
        let compute = match (self.stack, self.compute) {
            // The official scripts start DeepSpeed, which they do not offer on CPUs.
            (Stack::Official, _) => Compute::Cuda,
            (Stack::Own, Compute::Auto) => chosen(snapshot),
            (Stack::Own, Compute::Cuda | Compute::Cpu) => self.compute,
        };
        let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
        Demand { compute, nodes, ..self.clone() }
    }

    /// Ranks on the fullest node; `None` = one for each GPU.
    pub fn ranks_per_node(&self) -> Option<u32> {
        self.ranks_each.or_else(|| self.ranks.map(|ranks| ranks.div_ceil(self.nodes.max(1))))
    }

    /// Ranks on a node that has so many GPUs.
    pub fn ranks_on(&self, node: &NodeFacts) -> u32 {
        self.ranks_per_node().unwrap_or_else(|| {
            let gpus = node.nvml.gpus.value().map_or(1, Vec::len);
            u32::try_from(gpus).unwrap_or(u32::MAX)
        })
    }

    /// Host memory that the ranks of `node` need, in bytes, and how the number comes about.
    pub fn host_memory_bytes(&self, node: &NodeFacts) -> Option<(u64, String)> {
        let ranks = u64::from(self.ranks_on(node));
        if self.stack == Stack::Official {
            let bytes = ranks * OFFICIAL_HOST_BYTES_PER_RANK;
            return Some((bytes, format!("{ranks} ranks x 38.6 GB, the loader's f32 copy")));
        }
        if self.compute == Compute::Cpu {
            let each = self.rank_memory_bytes?;
            return Some((ranks * each, format!("{ranks} ranks x {}", super::table::bytes(each))));
        }
        let files = self.model_file_bytes?;
        let how = format!(
            "{} of weights, mapped once, and {ranks} ranks x 2 GiB",
            super::table::bytes(files)
        );
        Some((files + ranks * HOST_BYTES_PER_GPU_RANK, how))
    }

    /// Name for sentences.
    pub fn name(&self) -> String {
        self.job.as_ref().map_or_else(|| "a job".to_owned(), |job| format!("`{job}`"))
    }
}

/// A quantity of Kubernetes, such as `8Gi`, in bytes.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an amount is positive, and a float that is too large becomes the largest number"
)]
fn bytes_of(text: &str) -> Option<u64> {
    Some(quantity::value(text)? as u64)
}

/// GPUs, if any node shows a trace of one; a broken driver must not turn a GPU job silently into
/// one on CPUs.
pub(super) fn chosen(snapshot: &Snapshot) -> Compute {
    let any = snapshot.nodes.values().any(|node| {
        let has_failed = node.kernel.log.value().is_some_and(|log| !log.xids.is_empty());
        has_nvidia_hardware(node) || has_failed || has_driver_library(node)
    });
    if any { Compute::Cuda } else { Compute::Cpu }
}

/// A library that is there and cannot be loaded is a broken driver, not a machine without one.
fn has_driver_library(node: &NodeFacts) -> bool {
    let state = node.nvml.state.value();
    state.is_some_and(|state| !matches!(state, NvmlState::LibraryMissing { .. }))
}

pub(super) fn has_nvidia_hardware(node: &NodeFacts) -> bool {
    let pci = node.driver.pci_gpus.value().is_some_and(|gpus| !gpus.is_empty());
    let nodes = node.driver.device_nodes.value().is_some_and(|nodes| !nodes.is_empty());
    pci || nodes
}
