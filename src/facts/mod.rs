//! What was observed on machines, as plain serialisable data. No I/O, no judgement.
//!
//! A [`Fact`] that could not be read is data too: collection never fails, so a rule can tell
//! "healthy" from "unknown". Every fact says where it comes from, and that becomes evidence.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod active;
mod cuda;
mod edit;
mod fact;
mod gpu;
mod host;
mod kernel_log;
mod links;
mod network;
mod official;
mod pci;
mod read;
mod source;
mod system;
mod trainer;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use active::{
    ActiveFacts, ComputeTest, CoreTest, Ended, MemoryTest, NetworkTest, NumaBandwidth, PairTest,
    StorageResult, StorageTest,
};
pub use cuda::{CudaFacts, CudaState};
pub use edit::{Difference, EditError, differences, edited};
pub use fact::{Fact, Unread};
pub use gpu::{
    ComputeMode, DriverFacts, EccMode, GpuFacts, GpuHandle, GpuProcess, KernelModule, MigMode,
    NvmlFacts, NvmlState, PciGpu, PcieLink, RemappedRows, RetiredPages,
};
pub use host::{
    CgroupFacts, ContainerFacts, DeviceNode, EnvFacts, IdentityFacts, KernelFacts, LimitFacts,
    MemoryFacts, Mount, Place, ShmFacts, ShmFile, Storage, Weights,
};
pub use kernel_log::{FaultKind, KernelFault, KernelLog, XidEvent};
pub use links::{Fabric, NvLink, NvLinkErrors, Peer};
pub use network::{
    Gid, Interface, InterfaceCounters, MasterAddress, NetworkFacts, PortState, RdmaPort, Reach,
    Reached,
};
pub use official::{CodeMark, DeepSpeedConfig, LaunchScript, Launcher, OfficialFacts};
pub use pci::{Acs, AerCounts, Bridge, PciState};
pub use read::{ReadError, read};
pub use source::Source;
pub use system::{
    CgroupEvents, ClockState, Cpu, Governor, MemoryDetail, MemoryErrors, Pressure, ProcessTable,
    SystemFacts,
};
pub use trainer::{Library, Needed, PtxModule, Sass, TrainerFacts, TrainerFile};

/// Name of a machine: the node name in a cluster, else the host name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeName(pub String);

impl std::fmt::Display for NodeName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Everything the rules may look at: one node or many, the type is the same.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The nodes that reported.
    pub nodes: BTreeMap<NodeName, NodeFacts>,
    /// The nodes that should have reported. One that is missing is unknown, never left out.
    #[serde(default)]
    pub expected: BTreeSet<NodeName>,
}

impl Snapshot {
    /// Expected nodes without facts.
    pub fn missing(&self) -> impl Iterator<Item = &NodeName> {
        self.expected.iter().filter(|name| !self.nodes.contains_key(name))
    }
}

/// The file that `qvl doctor --save-facts` writes and `--facts` reads: one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FactsFile {
    /// Version of this format, [`FactsFile::VERSION`].
    pub format: u32,
    /// Where the facts come from, for a reader: a real machine, or a simulated driver.
    pub origin: String,
    /// Name of the machine.
    pub node: NodeName,
    /// What was observed there.
    pub facts: NodeFacts,
}

impl FactsFile {
    /// The version written by this build.
    pub const VERSION: u32 = 1;
}

/// Everything observed on one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// Kernel side of the NVIDIA driver, and what the PCI bus shows.
    pub driver: DriverFacts,
    /// What NVML says.
    pub nvml: NvmlFacts,
    /// What the CUDA driver library says.
    pub cuda: CudaFacts,
    /// Kernel and operating system.
    pub kernel: KernelFacts,
    /// Memory of the host and limits of the control group.
    pub memory: MemoryFacts,
    /// Resource limits of this process, which ranks inherit.
    pub limits: LimitFacts,
    /// Shared memory.
    pub shm: ShmFacts,
    /// Interfaces, ports, RDMA.
    pub network: NetworkFacts,
    /// Environment variables that CUDA, NCCL or a rank read.
    pub env: EnvFacts,
    /// Folders that the job reads or writes.
    pub storage: Fact<Vec<Storage>>,
    /// The trainer that will run.
    pub trainer: TrainerFacts,
    /// Whether this is a container, and which.
    pub container: ContainerFacts,
    /// What tells this machine from others.
    pub identity: IdentityFacts,
    /// Processors, settings and counters of the kernel.
    #[serde(default)]
    pub system: SystemFacts,
    /// The official stack, when the doctor was asked about it.
    #[serde(default)]
    pub official: OfficialFacts,
    /// GPUs that a cluster's scheduler may give away here; `None` outside of a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offered_gpus: Option<u64>,
    /// What active tests found; `None` if they were not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<Box<ActiveFacts>>,
}
