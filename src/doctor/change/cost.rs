//! What it costs to repair what a check finds. The unit is the quarter of leaving a node out; the
//! numbers are proposals that order the ways out of a trouble, not minutes of work.

use super::solve::Cost;

/// Cost of leaving one node out: one name in `cluster.excludeNodes`, and its GPUs are lost.
pub(super) const EXCLUDE: u32 = 4;

/// A setting of a node, a shell or a pod: one place to change, then each node takes it up.
const SETTING: Cost = Cost { once: 1, each: 1 };
/// Files that are copied or built: trainer, libraries, model, data.
const SOFTWARE: Cost = Cost { once: 2, each: 3 };
/// A reset of GPUs or a reboot: the node is drained first.
const RESTART: Cost = Cost { once: 0, each: 5 };
/// Another driver: drained, installed, rebooted.
const DRIVER: Cost = Cost { once: 2, each: 8 };
/// Finding out what is not known. It may turn out to be bad.
pub(super) const FIND_OUT: Cost = Cost { once: 1, each: 1 };

const SETTINGS: &[&str] = &[
    "address-clash",
    "address-space-limit",
    "bootstrap-interface",
    "cgroup-device-denied",
    "cgroup-limits",
    "clock-offset",
    "clock-skew",
    "compute-mode-exclusive",
    "container-runtime",
    "device-node-missing",
    "disk-short",
    "dns-unresolved",
    "fd-limit",
    "file-size-limit",
    "forward-compat-shadow",
    "gid-mismatch",
    "gloo-interface",
    "gpu-busy",
    "host-identity-clash",
    "kernel-module-missing",
    "launcher-count-mismatch",
    "local-rank-mismatch",
    "master-addr",
    "master-not-local",
    "memlock-low",
    "memory-not-allocatable",
    "mps-inconsistent",
    "mtu-black-hole",
    "mtu-mismatch",
    "nccl-hostid-clash",
    "p2p-copy-wrong",
    "port-in-use",
    "rank-env-missing",
    "rank-gpu-clash",
    "script-dtype-unsupported",
    "shm-full",
    "shm-small",
    "storage-unwritable",
    "trainer-not-executable",
    "visible-devices-stale",
    "world-size-mismatch",
];

const FILES: &[&str] = &[
    "arch-not-covered",
    "binary-skew",
    "cuda-major-mixed",
    "data-skew",
    "deepspeed-incompatible",
    "deepspeed-python",
    "device-map-auto",
    "glibc-too-old",
    "interpreter-missing",
    "library-missing",
    "model-skew",
    "nccl-skew",
    "nccl-wheels-clash",
    "quantised-zero3",
    "sampler-not-sharded",
    "step-count-unequal",
    "stub-libcuda",
    "torch-arch-missing",
    "torch-pair-invalid",
    "trainer-without-cuda",
    "trainer-wrong-machine",
    "unused-parameters",
    "weights-are-pointers",
    "weights-missing",
];

const RESTARTS: &[&str] = &[
    "cuda-count-mismatch",
    "cuda-unavailable",
    "driver-hang",
    "driver-module-mismatch",
    "ecc-uncorrected",
    "fabric-not-ready",
    "gpu-driver-not-bound",
    "gpu-lost",
    "mig-enabled",
    "nvml-unavailable",
    "recovery-action-pending",
    "row-remap-pending",
    "xid-seen",
];

const DRIVERS: &[&str] = &[
    "closed-kernel-module",
    "cuda-too-new",
    "open-kernel-module-unsupported",
    "ptx-too-new",
    "torch-driver-too-old",
];

/// What it costs to repair what a check finds on nodes; `None` if only leaving them out helps.
pub(super) fn of(rule: &str) -> Option<Cost> {
    let kinds = [(SETTINGS, SETTING), (FILES, SOFTWARE), (RESTARTS, RESTART), (DRIVERS, DRIVER)];
    kinds.into_iter().find(|(ids, _cost)| ids.contains(&rule)).map(|(_ids, cost)| cost)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::doctor::{RULES, Severity};

    /// Hardware, capacity, or a way through the network: no action on the node makes it fit.
    const BEYOND: &[&str] = &[
        "copy-bandwidth",
        "cpu-miscomputes",
        "dtype-unsupported",
        "gpu-count-mismatch",
        "gpu-duplicate",
        "gpu-memory-wrong",
        "host-memory-short",
        "hw-throttle",
        "memory-too-small",
        "nvlink-inactive",
        "p2p-broken",
        "pcie-aer",
        "pcie-width",
        "peer-unreachable",
        "retired-pages",
        "row-remap-failed",
        "sdc-vote",
        "sram-ecc-threshold",
        "storage-broken",
        "tcp-unreachable",
    ];

    /// A new check that may block must be given a place here; these two are no matter of one node.
    #[test]
    fn every_check_that_may_block_has_one_cost() {
        let mut known: Vec<&str> = [SETTINGS, FILES, RESTARTS, DRIVERS, BEYOND].concat();
        known.extend(["node-missing", "data-unusable"]);
        let unique: BTreeSet<&str> = known.iter().copied().collect();
        assert_eq!(known.len(), unique.len());
        let blocking = RULES.iter().filter(|rule| rule.severity == Severity::Block);
        assert_eq!(unique, blocking.map(|rule| rule.id).collect());
    }
}
