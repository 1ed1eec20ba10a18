//! What only the pod of a rank can judge.

use super::Report;

/// Checks about what only the pod of a rank sees: its trainer, limits, folders and environment.
/// The pod makes them itself before the start, so facts that the agent of a node took must not
/// decide them.
const OF_THE_POD: [&str; 95] = [
    "gpu-busy",
    "cuda-too-new",
    "ptx-too-new",
    "arch-not-covered",
    "trainer-missing",
    "trainer-without-cuda",
    "library-missing",
    "binary-skew",
    "forward-compat-shadow",
    "stub-libcuda",
    "nccl-duplicate",
    "nccl-skew",
    "shm-small",
    "memlock-low",
    "fd-limit",
    "cgroup-limits",
    "cgroup-device-denied",
    "storage-unwritable",
    "disk-short",
    "port-in-use",
    "bootstrap-interface",
    "virtual-interface-first",
    "rank-gpu-clash",
    "visible-devices-stale",
    "bad-cuda-env",
    "env-skew",
    "cgroup-cpu-throttled",
    "cgroup-oom-killed",
    "container-runtime",
    "core-dumps-on",
    "cuda-count-mismatch",
    "cuda-device-order",
    "cuda-driver-mismatch",
    "cuda-eager-loading",
    "cuda-major-mixed",
    "cuda-unavailable",
    "address-space-limit",
    "data-skew",
    "dns-unresolved",
    "file-size-limit",
    "fabric-manager",
    "glibc-too-old",
    "gloo-interface",
    "gpu-duplicate",
    "gpu-far-from-cpus",
    "gid-mismatch",
    "hostname-loopback",
    "imex-not-ready",
    "inodes-short",
    "interface-errors",
    "interface-slow",
    "interpreter-missing",
    "jit-cache-off",
    "link-flap",
    "local-rank-mismatch",
    "machine-id-clash",
    "master-addr",
    "master-not-local",
    "mnnvl-denied",
    "model-remote",
    "model-skew",
    "mps-inconsistent",
    "mps-running",
    "mtu-mismatch",
    "nccl-algorithm-forced",
    "nccl-debug-verbose",
    "nccl-errors-ignored",
    "nccl-hostid-clash",
    "nccl-net-forced",
    "nccl-p2p-disabled",
    "nccl-shm-disabled",
    "nccl-too-old",
    "net-plugin-missing",
    "omp-threads",
    "output-not-shared",
    "output-volatile",
    "port-ephemeral",
    "process-limit",
    "processors-short",
    "rank-env-partial",
    "rdma-selector-empty",
    "remove-ipc",
    "rp-filter-strict",
    "shm-counts-as-memory",
    "shm-full",
    "shm-stale",
    "somaxconn-low",
    "step-count-unequal",
    "subnet-disjoint",
    "address-clash",
    "tcp-unreachable",
    "trainer-not-executable",
    "trainer-wrong-machine",
    "weights-are-pointers",
    "weights-missing",
];

/// Those that need the driver of the node and the file of the trainer, wherever that lies.
const OF_THE_TRAINER: [&str; 3] = ["cuda-too-new", "ptx-too-new", "arch-not-covered"];

impl Report {
    /// Removes what the pods judge themselves. `trainer`: the facts hold the file of the trainer
    /// that will run, so what it needs from the driver stays. Says how many checks were left.
    pub fn leave_to_pods(&mut self, trainer: bool) -> usize {
        let left =
            |id: &str| OF_THE_POD.contains(&id) && !(trainer && OF_THE_TRAINER.contains(&id));
        self.results.retain(|result| !left(result.rule.id));
        OF_THE_POD.iter().filter(|id| left(id)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Demand, diagnose, rule, testing};

    #[test]
    fn every_check_of_the_pod_exists() {
        for id in OF_THE_POD.iter().chain(&OF_THE_TRAINER) {
            assert!(rule(id).is_some(), "{id}");
        }
    }

    #[test]
    fn the_trainer_s_checks_stay_if_it_is_known() {
        let has = |trainer, id: &str| {
            let mut report = diagnose(&testing::fleet(2), &Demand::default());
            report.leave_to_pods(trainer);
            report.results.iter().any(|result| result.rule.id == id)
        };
        assert!(has(true, "ptx-too-new") && !has(false, "ptx-too-new"));
        assert!(!has(true, "shm-small") && has(false, "xid-seen"));
    }
}
