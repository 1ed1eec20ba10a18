//! The machine as the kernel counts it: processors, pressure, processes, settings.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Fact;

/// Processors, settings and counters of the kernel. Everything is a small file in `/proc` or
/// `/sys`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SystemFacts {
    /// State of the clock.
    pub clock: Fact<ClockState>,
    /// The counter behind the clock: `tsc`, `kvm-clock`, `hpet`, ...
    pub clocksource: Fact<String>,
    /// Whether a hypervisor runs below this kernel.
    pub virtual_machine: Fact<bool>,
    /// Processors.
    pub cpu: Fact<Cpu>,
    /// How the frequency of processors is chosen; `None` if the kernel does not choose it.
    pub governor: Fact<Option<Governor>>,
    /// NUMA nodes with memory.
    pub numa_nodes: Fact<u32>,
    /// Processors in this process's affinity mask, as ranges, both ends included.
    pub allowed_cpus: Fact<Vec<(u32, u32)>>,
    /// How often a processor package was slowed down for heat since boot; `None` if it does not
    /// count.
    pub cpu_throttles: Fact<Option<u64>>,
    /// Share of processor time since boot that the hypervisor gave to others, in percent.
    pub steal_percent: Fact<f64>,
    /// Errors of the host's memory since boot; `None` without a driver that counts them.
    pub memory_errors: Fact<Option<MemoryErrors>>,
    /// Swap and huge pages.
    pub memory: Fact<MemoryDetail>,
    /// Share of time in which tasks waited, over ten seconds; `None` if the kernel does not
    /// measure it.
    pub pressure: Fact<Option<Pressure>>,
    /// Processes of this machine that this process may see.
    pub processes: Fact<ProcessTable>,
    /// What happened in the control group.
    pub cgroup_events: Fact<CgroupEvents>,
    /// Settings of the kernel by name, such as `vm.overcommit_memory`. A setting that the kernel
    /// does not have is not in it.
    pub sysctl: Fact<BTreeMap<String, String>>,
    /// Whether `systemd-logind` removes shared memory when a user logs out; `None` without it.
    pub remove_ipc: Fact<Option<bool>>,
    /// Newest version of the C library's symbols, `2.36`; `None` if it is another C library.
    pub glibc: Fact<Option<String>>,
    /// User of this process.
    pub uid: Fact<u32>,
}

impl Default for SystemFacts {
    /// What an older file of facts has: nothing.
    fn default() -> Self {
        SystemFacts {
            clock: Fact::not_recorded(),
            clocksource: Fact::not_recorded(),
            virtual_machine: Fact::not_recorded(),
            cpu: Fact::not_recorded(),
            governor: Fact::not_recorded(),
            numa_nodes: Fact::not_recorded(),
            allowed_cpus: Fact::not_recorded(),
            cpu_throttles: Fact::not_recorded(),
            steal_percent: Fact::not_recorded(),
            memory_errors: Fact::not_recorded(),
            memory: Fact::not_recorded(),
            pressure: Fact::not_recorded(),
            processes: Fact::not_recorded(),
            cgroup_events: Fact::not_recorded(),
            sysctl: Fact::not_recorded(),
            remove_ipc: Fact::not_recorded(),
            glibc: Fact::not_recorded(),
            uid: Fact::not_recorded(),
        }
    }
}

/// What `adjtimex` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockState {
    /// Whether something sets the clock and agrees with it.
    pub synchronised: bool,
    /// The largest error that the clock may have, in microseconds.
    pub max_error_us: u64,
    /// The error that is expected, in microseconds.
    pub estimated_error_us: u64,
}

/// Processors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// `x86_64` or `aarch64`.
    pub architecture: String,
    /// Which of `avx2`, `fma`, `f16c`, `avx512f` every processor has.
    pub features: BTreeSet<String>,
}

/// How the frequency of processors is chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Governor {
    /// `acpi-cpufreq`, `intel_pstate`, ...
    pub driver: String,
    /// Governors in use: `performance`, `powersave`, ...
    pub names: BTreeSet<String>,
}

/// Errors that the memory controllers counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryErrors {
    /// Corrected.
    pub corrected: u64,
    /// Not corrected.
    pub uncorrected: u64,
}

/// Swap and huge pages, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryDetail {
    /// All swap.
    pub swap_total: u64,
    /// Swap that is free.
    pub swap_free: u64,
    /// Memory that is reserved for huge pages.
    pub huge_total: u64,
    /// Reserved memory that nobody uses.
    pub huge_free: u64,
}

/// Share of the last ten seconds, in percent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pressure {
    /// Some task waited for a processor.
    pub cpu_some: f64,
    /// All tasks waited for memory.
    pub memory_full: f64,
    /// All tasks waited for a disk.
    pub io_full: f64,
}

/// Processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessTable {
    /// All.
    pub total: u32,
    /// Ended, but nobody asked for the result.
    pub zombies: u32,
    /// In an uninterruptible wait.
    pub blocked: u32,
    /// Daemons that matter to a job, by the first 15 characters of their names.
    pub daemons: BTreeSet<String>,
}

/// Counters of the control group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupEvents {
    /// Processes that the kernel killed at the memory limit.
    pub oom_kills: u64,
    /// Periods in which the processor limit counted.
    pub periods: u64,
    /// Periods in which it stopped the group.
    pub throttled: u64,
}
