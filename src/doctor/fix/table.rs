//! Which checks have a repair.

use super::{Draft, Finding, Kind, env, host};

/// A check with a repair.
pub struct Repairable {
    /// Id of the check.
    pub rule: &'static str,
    /// What the repair changes.
    pub kinds: &'static [Kind],
    /// What it does, in a few words.
    pub what: &'static str,
    pub(super) plan: fn(&Finding<'_>) -> Option<Draft>,
}

impl std::fmt::Debug for Repairable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.rule)
    }
}

const LIMITS: &[Kind] = &[Kind::Limit, Kind::LimitFile];

const fn limit(rule: &'static str, what: &'static str) -> Repairable {
    Repairable { rule, kinds: LIMITS, what, plan: host::limit }
}

const fn sysctl(rule: &'static str, what: &'static str) -> Repairable {
    Repairable { rule, kinds: &[Kind::Sysctl], what, plan: host::sysctl }
}

const fn variables(rule: &'static str, what: &'static str) -> Repairable {
    Repairable { rule, kinds: &[Kind::JobFile], what, plan: env::variables }
}

const fn module(rule: &'static str, what: &'static str) -> Repairable {
    Repairable { rule, kinds: &[Kind::Module], what, plan: host::module }
}

/// All checks with a repair.
pub static REPAIRS: &[Repairable] = &[
    Repairable {
        rule: "persistence-off",
        kinds: &[Kind::Persistence],
        what: "persistence mode on, for each GPU without it",
        plan: host::persistence,
    },
    Repairable {
        rule: "shm-small",
        kinds: &[Kind::SharedMemory],
        what: "/dev/shm of 16 GiB, or 8 GiB on a machine with less than 32 GiB",
        plan: host::shm,
    },
    Repairable {
        rule: "pod-shm-small",
        kinds: &[Kind::JobFile],
        what: "spec.cluster.shm: 16Gi",
        plan: env::pod_shm,
    },
    module("kernel-module-missing", "loads nvidia_uvm; not where nouveau is loaded"),
    module("gpudirect-missing", "loads nvidia_peermem"),
    limit("memlock-low", "unlimited locked memory"),
    limit("fd-limit", "65536 open files"),
    limit("process-limit", "unlimited processes"),
    limit("file-size-limit", "unlimited file size"),
    limit("address-space-limit", "unlimited address space"),
    limit("core-dumps-on", "no core dumps (soft limit 0)"),
    sysctl("overcommit-strict", "vm.overcommit_memory=0"),
    sysctl("max-map-count-low", "vm.max_map_count=65530"),
    sysctl("numa-balancing", "kernel.numa_balancing=0"),
    sysctl("pid-max-low", "kernel.pid_max=4194304"),
    sysctl("somaxconn-low", "net.core.somaxconn=4096"),
    sysctl("rp-filter-strict", "net.ipv4.conf.all.rp_filter=2"),
    sysctl("conntrack-full", "net.netfilter.nf_conntrack_max=1048576"),
    variables("virtual-interface-first", "NCCL_SOCKET_IFNAME without bridges and tunnels"),
    variables("bootstrap-interface", "no NCCL_SOCKET_IFNAME"),
    variables("gloo-interface", "no GLOO_SOCKET_IFNAME"),
    variables("ib-disabled-leftover", "no NCCL_IB_DISABLE"),
    variables("rdma-selector-empty", "no NCCL_IB_HCA"),
    variables("gid-mismatch", "no NCCL_IB_GID_INDEX"),
    variables("nccl-hostid-clash", "no NCCL_HOSTID"),
    variables("nccl-debug-verbose", "NCCL_DEBUG=WARN, no NCCL_DEBUG_SUBSYS"),
    variables("nccl-p2p-disabled", "no NCCL_P2P_DISABLE, no NCCL_P2P_LEVEL"),
    variables("nccl-shm-disabled", "no NCCL_SHM_DISABLE"),
    variables("nccl-algorithm-forced", "no NCCL_ALGO, no NCCL_PROTO"),
    variables("nccl-net-forced", "no NCCL_NET"),
    variables("nccl-errors-ignored", "none of the variables that turn error handling off"),
    variables("bad-cuda-env", "none of the variables for debugging and profiling"),
    variables("visible-devices-stale", "no CUDA_VISIBLE_DEVICES"),
    variables("cuda-device-order", "CUDA_DEVICE_ORDER=PCI_BUS_ID"),
    variables("cuda-eager-loading", "no CUDA_MODULE_LOADING"),
    variables("jit-cache-off", "no CUDA_CACHE_DISABLE, no CUDA_CACHE_MAXSIZE"),
    variables("omp-threads", "OMP_NUM_THREADS = processors / ranks of the node"),
    variables("world-size-mismatch", "no RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
    variables("rank-env-partial", "the same"),
    variables("local-rank-mismatch", "no LOCAL_RANK, no LOCAL_WORLD_SIZE"),
    variables("port-in-use", "no MASTER_PORT: the launcher chooses a free port"),
    variables("port-ephemeral", "the same"),
    variables("master-addr", "no MASTER_ADDR: the launcher sets it"),
    variables("master-not-local", "the same"),
    variables("dns-unresolved", "the same"),
];

/// The repair of a check, if it has one.
pub fn repairable(rule: &str) -> Option<&'static Repairable> {
    REPAIRS.iter().find(|known| known.rule == rule)
}
