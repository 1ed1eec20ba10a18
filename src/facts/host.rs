//! The machine around the GPUs: kernel, memory, limits, storage, container, identity.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Fact, KernelLog};

/// Kernel and operating system.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelFacts {
    /// `6.8.0-45-generic`.
    pub release: Fact<String>,
    /// `PRETTY_NAME` of os-release.
    pub os: Fact<String>,
    /// Messages of the kernel since boot that concern GPUs, memory or storage.
    pub log: Fact<KernelLog>,
    /// Running daemons that set the clock: `chronyd`, `systemd-timesyncd`, `ntpd`, `ptp4l`.
    pub time_daemons: Fact<Vec<String>>,
}

/// Memory and processors that this process may use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryFacts {
    /// `MemTotal` in bytes.
    pub total_bytes: Fact<u64>,
    /// `MemAvailable` in bytes.
    pub available_bytes: Fact<u64>,
    /// Processors in this process's affinity mask.
    pub cpus: Fact<u32>,
    /// Limits of the control group.
    pub cgroup: Fact<CgroupFacts>,
}

/// Limits of the control group and its parents: the smallest counts. `None` = no limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CgroupFacts {
    /// 1 or 2; 0 if the process is in no control group that can be seen.
    pub version: u32,
    /// `memory.max` in bytes.
    pub memory_max_bytes: Option<u64>,
    /// Memory in use that the kernel cannot drop, in bytes.
    pub memory_used_bytes: Option<u64>,
    /// `cpu.max` as a number of processors.
    pub cpu_quota: Option<f64>,
    /// `pids.max`.
    pub pids_max: Option<u64>,
}

/// Resource limits (soft). `None` = unlimited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitFacts {
    /// Memory that may be locked, in bytes.
    pub memlock_bytes: Fact<Option<u64>>,
    /// Open files.
    pub open_files: Fact<Option<u64>>,
    /// Open files that the process may raise the limit to.
    pub open_files_hard: Fact<Option<u64>>,
    /// Processes of this user.
    pub processes: Fact<Option<u64>>,
    /// Whether the process has `CAP_IPC_LOCK` and so ignores `memlock_bytes`.
    pub cap_ipc_lock: Fact<bool>,
    /// Largest file that may be written, in bytes.
    #[serde(default = "Fact::not_recorded")]
    pub file_size_bytes: Fact<Option<u64>>,
    /// Address space of a process, in bytes.
    #[serde(default = "Fact::not_recorded")]
    pub address_space_bytes: Fact<Option<u64>>,
    /// Largest core dump, in bytes.
    #[serde(default = "Fact::not_recorded")]
    pub core_bytes: Fact<Option<u64>>,
}

/// Shared memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShmFacts {
    /// The file system at `/dev/shm`.
    pub mount: Fact<Mount>,
    /// Files that NCCL or PyTorch left there.
    #[serde(default = "Fact::not_recorded")]
    pub files: Fact<Vec<ShmFile>>,
}

/// A file in shared memory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ShmFile {
    /// Name.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Seconds since it was written.
    pub age_s: u64,
}

/// Size of a file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// All bytes.
    pub total_bytes: u64,
    /// Bytes that this user may still write.
    pub free_bytes: u64,
}

/// A folder that the job reads or writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storage {
    /// What it is for.
    pub place: Place,
    /// The folder as given.
    pub path: String,
    /// The nearest folder that exists, if the folder itself does not yet.
    pub nearest: String,
    /// Size of the file system.
    pub mount: Mount,
    /// Free inodes; `None` if the file system does not count them.
    pub free_inodes: Option<u64>,
    /// Whether this user may read there.
    pub readable: bool,
    /// Whether this user may write there.
    pub writable: bool,
    /// Kind of the file system: `ext4`, `nfs`, `tmpfs`, ...; `None` if it is not known.
    #[serde(default)]
    pub kind: Option<String>,
    /// Bytes of the file, or of the files in the folder; `None` for folders that are written.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// Hash over names and sizes, and over the content of small files; `None` for folders that
    /// are written.
    #[serde(default)]
    pub fingerprint: Option<String>,
    /// Weight files of a model; `None` for other places.
    #[serde(default)]
    pub weights: Option<Weights>,
}

/// Weight files in a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weights {
    /// Files that are there, and their bytes.
    pub files: BTreeMap<String, u64>,
    /// Files that the index names and that are not there.
    pub missing: Vec<String>,
    /// Files that are a pointer of Git LFS and no weights.
    pub pointers: Vec<String>,
}

/// What a folder is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// Checkpoints, logs and the result.
    Output,
    /// `TMPDIR`.
    Temporary,
    /// The base model.
    Model,
    /// A training or evaluation set.
    Data,
}

/// A device file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceNode {
    /// It can be opened for reading and writing.
    Opens,
    /// The file exists, but the kernel or the control group refuses: the error text.
    Denied {
        /// `EPERM`, `EACCES`, `ENXIO`, ...
        errno: String,
    },
}

/// Environment variables with a prefix that CUDA, NCCL, OpenMP or a rank read, and no others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvFacts {
    /// By name.
    pub variables: Fact<BTreeMap<String, String>>,
}

/// Whether this is a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerFacts {
    /// `docker`, `kubernetes`, `podman`, ...; `None` outside of a container.
    pub kind: Fact<Option<String>>,
}

/// What tells one machine from another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityFacts {
    /// Host name.
    pub hostname: Fact<String>,
    /// Random id of this boot.
    pub boot_id: Fact<String>,
    /// Id written at installation.
    pub machine_id: Fact<String>,
}
