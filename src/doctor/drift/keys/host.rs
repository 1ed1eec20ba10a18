//! The machine: kernel, processors, clock, memory.

use super::{BASE, Key, Label, Matters, NONE, joined, optional, rough_bytes, text, yes};
use crate::facts::NodeFacts;

/// A key that matters to every job on several nodes.
const ANY: Key = Key { matters: Matters::Always, ..BASE };

pub(super) static KERNEL: Key = Key {
    name: "kernel",
    reason: "ranks do not depend on the kernel's version; look at it when one node is slow or \
             fails alone",
    source: "AMD-AGI/Primus preflight, drift table",
    read: |node, _demand| text(&node.kernel.release),
    ..ANY
};

pub(super) static OS: Key = Key {
    name: "operating system",
    reason: "the trainer needs the C library alone, which is compared by itself",
    source: "AMD-AGI/Primus preflight, drift table",
    read: |node, _demand| text(&node.kernel.os),
    ..ANY
};

pub(super) static GLIBC: Key = Key {
    name: "C library",
    rules: &["glibc-too-old"],
    reason: "each is new enough for the trainer as far as is known",
    source: "ELF symbol versions of the trainer",
    read: |node, _demand| optional(&node.system.glibc),
    ..ANY
};

pub(super) static ARCHITECTURE: Key = Key {
    name: "processor architecture",
    rules: &["trainer-wrong-machine"],
    otherwise: Label::Fatal,
    reason: "one trainer's file runs on one architecture",
    source: "ELF e_machine",
    read: |node, _demand| Ok(node.system.cpu.get()?.architecture.clone()),
    ..ANY
};

pub(super) static CPU_FEATURES: Key = Key {
    name: "processor features",
    otherwise: Label::Slow,
    reason: "kernels for the processor fall back to slower ones; results do not differ",
    source: "this project: kernels are chosen at run time",
    read: |node, _demand| Ok(joined(node.system.cpu.get()?.features.iter().map(String::as_str))),
    matters: Matters::Cpus,
    ..ANY
};

pub(super) static PROCESSORS: Key = Key {
    name: "processors",
    rules: &["processors-short"],
    otherwise: Label::Slow,
    reason: "fewer processors decode pictures, and on CPUs compute, more slowly",
    source: "sched_getaffinity",
    read: |node, _demand| text(&node.memory.cpus),
    ..ANY
};

pub(super) static GOVERNOR: Key = Key {
    name: "processor frequency",
    otherwise: Label::Slow,
    reason: "a processor that saves power starts kernels and copies later",
    source: "docs.kernel.org, cpufreq governors",
    read: |node, _demand| {
        let governor = node.system.governor.get()?.as_ref();
        Ok(governor.map_or_else(
            || NONE.to_owned(),
            |governor| joined(governor.names.iter().map(String::as_str)),
        ))
    },
    ..ANY
};

pub(super) static NUMA_NODES: Key = Key {
    name: "NUMA nodes",
    otherwise: Label::Slow,
    reason: "another division of the memory puts other GPUs far from their ranks' processors",
    source: "sysfs, devices/system/node",
    read: |node, _demand| text(&node.system.numa_nodes),
    ..ANY
};

pub(super) static CLOCK: Key = Key {
    name: "clock is set",
    rules: &["clock-skew"],
    reason: "the clocks agree well enough now; logs of this node may drift out of order",
    source: "adjtimex(2)",
    read: |node, _demand| Ok(yes(node.system.clock.get()?.synchronised)),
    ..ANY
};

pub(super) static CLOCKSOURCE: Key = Key {
    name: "clock source",
    otherwise: Label::Slow,
    reason: "reading the time costs a call of the kernel there, many times a step",
    source: "docs.kernel.org, clocksource; vdso(7)",
    read: |node, _demand| text(&node.system.clocksource),
    ..ANY
};

pub(super) static TIME_DAEMON: Key = Key {
    name: "time daemon",
    reason: "any of them sets the clock",
    source: "leptonai/gpud",
    read: |node, _demand| Ok(joined(node.kernel.time_daemons.get()?.iter().map(String::as_str))),
    ..ANY
};

pub(super) static VIRTUAL_MACHINE: Key = Key {
    name: "virtual machine",
    otherwise: Label::Slow,
    reason: "a hypervisor costs time at copies and interrupts, and hides the topology",
    source: "/proc/cpuinfo, flag hypervisor",
    read: |node, _demand| Ok(yes(*node.system.virtual_machine.get()?)),
    ..ANY
};

pub(super) static MEMORY: Key = Key {
    name: "host memory",
    rules: &["host-memory-short"],
    reason: "the ranks fit into the smallest as far as is known; the rest caches files",
    source: "/proc/meminfo, MemTotal",
    read: |node, _demand| Ok(rough_bytes(*node.memory.total_bytes.get()?)),
    ..ANY
};

pub(super) static SWAP: Key = Key {
    name: "swap",
    rules: &["host-memory-short"],
    reason: "ranks that fit into the memory do not use it",
    source: "/proc/meminfo, SwapTotal",
    read: |node, _demand| Ok(rough_bytes(node.system.memory.get()?.swap_total)),
    ..ANY
};

pub(super) static HUGE_PAGES: Key = Key {
    name: "memory kept for huge pages",
    rules: &["host-memory-short"],
    reason: "it is not there for the ranks, which fit beside it as far as is known",
    source: "/proc/meminfo, HugePages_Total",
    read: |node, _demand| Ok(rough_bytes(node.system.memory.get()?.huge_total)),
    ..ANY
};

pub(super) static GPU_MODULES: Key = Key {
    name: "kernel modules for GPUs and RDMA",
    rules: &["kernel-module-missing"],
    otherwise: Label::Slow,
    reason: "without nvidia_peermem or gdrdrv NCCL may copy through the host's memory",
    source: "NCCL user guide, GPUDirect RDMA; NVIDIA gpu-operator validator",
    read: |node, _demand| Ok(joined(modules(node)?)),
    ..BASE
};

pub(super) static DAEMONS: Key = Key {
    name: "daemons of the driver",
    rules: &["fabric-manager", "fabric-not-ready", "mps-inconsistent"],
    reason: "each node has what its board needs as far as is known",
    source: "NVIDIA fabric manager guide; MPS documentation",
    read: |node, _demand| {
        let daemons = &node.system.processes.get()?.daemons;
        Ok(joined(daemons.iter().map(String::as_str).filter(|name| name.starts_with("nv"))))
    },
    ..BASE
};

pub(super) static REMOVE_IPC: Key = Key {
    name: "shared memory is removed at logout",
    reason: "it ends ranks that were started in a login shell, when the user logs out",
    source: "logind.conf(5), RemoveIPC",
    read: |node, _demand| Ok(node.system.remove_ipc.get()?.map_or_else(|| NONE.to_owned(), yes)),
    ..ANY
};

fn modules(node: &NodeFacts) -> Result<Vec<&str>, crate::doctor::Stop> {
    let of_gpus = |name: &&str| {
        ["nvidia", "nouveau", "gdrdrv", "nv_peer_mem"].iter().any(|start| name.starts_with(start))
    };
    Ok(node.driver.modules.get()?.iter().map(String::as_str).filter(of_gpus).collect())
}
