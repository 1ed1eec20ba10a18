//! What a rank's shell or pod is given: limits, control group, environment, kernel settings.

use super::{
    BASE, Key, Label, Matters, NONE, Scope, agreed, byte_limit, limit, optional, rough_bytes, text,
};
use crate::{
    doctor::Stop,
    facts::{NodeFacts, Place},
};

/// A key of the ranks' own surroundings.
const OF_RANK: Key = Key { scope: Scope::Rank, matters: Matters::Always, ..BASE };
/// A key of the node that every job may feel.
const OF_NODE: Key = Key { matters: Matters::Always, ..BASE };

pub(super) static CGROUP_VERSION: Key = Key {
    name: "version of control groups",
    reason: "limits are read from either",
    source: "docs.kernel.org, cgroup-v2",
    read: |node, _demand| Ok(node.memory.cgroup.get()?.version.to_string()),
    ..OF_RANK
};

pub(super) static CGROUP_MEMORY: Key = Key {
    name: "memory limit",
    rules: &["host-memory-short", "cgroup-limits"],
    reason: "the ranks fit into the smallest limit as far as is known",
    source: "memory.max",
    read: |node, _demand| Ok(byte_limit(node.memory.cgroup.get()?.memory_max_bytes)),
    ..OF_RANK
};

pub(super) static CGROUP_CPU: Key = Key {
    name: "processor limit",
    rules: &["cgroup-limits", "processors-short"],
    otherwise: Label::Slow,
    reason: "a rank that is stopped at its limit makes all others wait",
    source: "cpu.max",
    read: |node, _demand| {
        let quota = node.memory.cgroup.get()?.cpu_quota;
        Ok(quota.map_or_else(|| "unlimited".to_owned(), |cpus| format!("{cpus:.1}")))
    },
    ..OF_RANK
};

pub(super) static SHM: Key = Key {
    name: "size of /dev/shm",
    rules: &["shm-small", "shm-full"],
    reason: "each is large enough for the node's ranks as far as is known",
    source: "NCCL user guide, shared memory",
    read: |node, _demand| Ok(rough_bytes(node.shm.mount.get()?.total_bytes)),
    ..OF_RANK
};

pub(super) static MEMLOCK: Key = Key {
    name: "memory that may be locked",
    rules: &["memlock-low"],
    reason: "each is enough for the RDMA buffers of the node's ranks as far as is known",
    source: "NCCL user guide, troubleshooting (memlock)",
    read: |node, _demand| Ok(byte_limit(*node.limits.memlock_bytes.get()?)),
    ..OF_RANK
};

pub(super) static OPEN_FILES: Key = Key {
    name: "open files",
    rules: &["fd-limit"],
    reason: "each is enough for the sockets of the node's ranks as far as is known",
    source: "getrlimit(2), RLIMIT_NOFILE",
    read: |node, _demand| Ok(limit(*node.limits.open_files.get()?)),
    ..OF_RANK
};

pub(super) static PROCESSES: Key = Key {
    name: "processes of the user",
    rules: &["process-limit"],
    reason: "each is enough for the threads of the node's ranks as far as is known",
    source: "getrlimit(2), RLIMIT_NPROC",
    read: |node, _demand| Ok(limit(*node.limits.processes.get()?)),
    ..OF_RANK
};

pub(super) static CONTAINER: Key = Key {
    name: "container",
    rules: &["container-runtime"],
    reason: "what a container takes away is checked by itself: devices, limits, shared memory",
    source: "/run/.containerenv, /.dockerenv, /proc/1/environ",
    read: |node, _demand| optional(&node.container.kind),
    ..OF_RANK
};

pub(super) static USER: Key = Key {
    name: "user",
    rules: &["storage-unwritable"],
    reason: "the folders of the job may be read and written by each as far as is known",
    source: "getuid(2)",
    read: |node, _demand| text(&node.system.uid),
    ..OF_RANK
};

pub(super) static ENVIRONMENT: Key = Key {
    name: "NCCL, CUDA and OpenMP variables",
    rules: &["gid-mismatch", "gloo-interface", "bootstrap-interface", "mps-inconsistent"],
    otherwise: Label::Slow,
    reason: "ranks that read different settings choose different paths; the slowest counts, and \
             some pairs of settings hang",
    source: "NCCL user guide, environment variables; Google cluster-health-scanner configcheck",
    read: |node, demand| agreed("env-skew", node, demand),
    ..OF_RANK
};

pub(super) static VISIBLE_DEVICES: Key = Key {
    name: "CUDA_VISIBLE_DEVICES",
    rules: &["visible-devices-stale", "gpu-count-mismatch", "rank-gpu-clash"],
    reason: "each list leaves the ranks the GPUs that they need",
    source: "CUDA programming guide, CUDA_VISIBLE_DEVICES",
    read: |node, _demand| {
        let variables = node.env.variables.get()?;
        Ok(variables.get("CUDA_VISIBLE_DEVICES").map_or("not set", String::as_str).to_owned())
    },
    matters: Matters::Gpus,
    ..OF_RANK
};

pub(super) static OVERCOMMIT: Key = Key {
    name: "vm.overcommit_memory",
    reason: "mode 2 refuses large reservations; whether a node is near its limit is checked by itself",
    source: "docs.kernel.org, overcommit-accounting",
    read: |node, _demand| sysctl(node, "vm.overcommit_memory"),
    ..OF_NODE
};

pub(super) static MAP_COUNT: Key = Key {
    name: "vm.max_map_count",
    reason: "the trainer maps some thousand regions at most",
    source: "docs.kernel.org, sysctl/vm",
    read: |node, _demand| sysctl(node, "vm.max_map_count"),
    ..OF_NODE
};

pub(super) static NUMA_BALANCING: Key = Key {
    name: "kernel.numa_balancing",
    otherwise: Label::Slow,
    reason: "the kernel moves pages under the ranks and stops them for it",
    source: "docs.kernel.org, sysctl/kernel; NVIDIA tuning guides",
    read: |node, _demand| sysctl(node, "kernel.numa_balancing"),
    ..OF_NODE
};

pub(super) static SOMAXCONN: Key = Key {
    name: "net.core.somaxconn",
    reason: "only the node of rank 0 needs it: its peers try again after seconds",
    source: "listen(2)",
    read: |node, _demand| sysctl(node, "net.core.somaxconn"),
    ..OF_RANK
};

pub(super) static RP_FILTER: Key = Key {
    name: "net.ipv4.conf.all.rp_filter",
    reason: "it matters with several interfaces in one network, which is checked by itself",
    source: "docs.kernel.org, ip-sysctl (rp_filter)",
    read: |node, _demand| sysctl(node, "net.ipv4.conf.all.rp_filter"),
    ..OF_RANK
};

pub(super) static CONNTRACK: Key = Key {
    name: "net.netfilter.nf_conntrack_max",
    reason: "a full table drops connections; how full it is, is checked by itself",
    source: "docs.kernel.org, nf_conntrack-sysctl",
    read: |node, _demand| sysctl(node, "net.netfilter.nf_conntrack_max"),
    ..OF_NODE
};

pub(super) static OUTPUT_KIND: Key = Key {
    name: "file system of the output",
    rules: &["storage-unwritable", "disk-short"],
    otherwise: Label::Slow,
    reason: "after a restart on other nodes the job begins anew: its checkpoints are not there",
    source: "this project: checkpoints are read by all ranks",
    read: |node, _demand| {
        let output = node.storage.get()?.iter().find(|folder| folder.place == Place::Output);
        let output = output.ok_or_else(|| Stop::skip("no job was given (--job FILE)"))?;
        Ok(output.kind.as_deref().unwrap_or(NONE).to_owned())
    },
    ..OF_RANK
};

fn sysctl(node: &NodeFacts, name: &str) -> Result<String, Stop> {
    let settings = node.system.sysctl.get()?;
    Ok(settings
        .get(name)
        .map_or(NONE, String::as_str)
        .split_whitespace()
        .collect::<Vec<_>>()
        .join("-"))
}
