//! Kernel, memory, limits, container, environment.

use std::{collections::BTreeMap, path::Path};

use super::{Options, kmsg, text};
use crate::facts::{CgroupFacts, Fact, KernelFacts, LimitFacts, MemoryFacts, ProcessTable};

/// The first line of a file.
pub(super) fn line(options: &Options, path: &str) -> Fact<String> {
    Fact::from_result(options.text(path).map(|text| text.trim().to_owned()), path)
}

/// A value that `parse` finds in a file.
pub(super) fn parsed<T>(
    options: &Options,
    path: &str,
    what: &str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Fact<T> {
    let value = options.text(path).and_then(|text| {
        parse(&text).ok_or_else(|| format!("`{what}` is not there, or not as expected"))
    });
    Fact::from_result(value, path)
}

pub(super) fn variables(options: &Options) -> Fact<BTreeMap<String, String>> {
    parsed(options, "/proc/self/environ", "variables", |text| Some(text::variables(text)))
}

pub(super) fn kernel(options: &Options, processes: &Fact<ProcessTable>) -> KernelFacts {
    KernelFacts {
        release: line(options, "/proc/sys/kernel/osrelease"),
        os: parsed(options, "/etc/os-release", "PRETTY_NAME", text::pretty_name),
        log: options.kernel_log.clone().unwrap_or_else(|| kmsg::log(options)),
        time_daemons: time_daemons(processes),
    }
}

fn time_daemons(processes: &Fact<ProcessTable>) -> Fact<Vec<String>> {
    const DAEMONS: [&str; 4] = ["chronyd", "systemd-timesyn", "ntpd", "ptp4l"];
    processes.clone().map(|table| {
        table.daemons.into_iter().filter(|name| DAEMONS.contains(&name.as_str())).collect()
    })
}

pub(super) fn memory(options: &Options) -> MemoryFacts {
    let field = |name: &'static str| {
        parsed(options, "/proc/meminfo", name, move |text| text::meminfo(text, name))
    };
    MemoryFacts {
        total_bytes: field("MemTotal"),
        available_bytes: field("MemAvailable"),
        cpus: parsed(options, "/proc/self/status", "Cpus_allowed_list", |text| {
            text::cpu_list(text::status(text, "Cpus_allowed_list")?)
        }),
        cgroup: cgroup(options),
    }
}

/// Limits of the control group and its parents; the smallest counts.
fn cgroup(options: &Options) -> Fact<CgroupFacts> {
    const FROM: &str = "/proc/self/cgroup";
    let list = match options.text(FROM) {
        Ok(list) => list,
        Err(why) => return Fact::unread(why, FROM),
    };
    let unified = options.at("/sys/fs/cgroup/cgroup.controllers").exists();
    if unified && let Some(group) = list.lines().find_map(|line| line.strip_prefix("0::")) {
        return Fact::known(unified_limits(options, group), "/sys/fs/cgroup");
    }
    let read = |path: &str| text::cgroup_number(&options.text(path).ok()?);
    let of = |name: &str| {
        list.lines().find_map(|line| {
            let (_id, rest) = line.split_once(':')?;
            let (controllers, group) = rest.split_once(':')?;
            controllers.split(',').any(|controller| controller == name).then_some(group)
        })
    };
    // A container sees its own group at the top of the mount.
    let memory = |file: &str| {
        let group = of("memory").unwrap_or("/").trim_end_matches('/');
        read(&format!("/sys/fs/cgroup/memory{group}/{file}"))
            .or_else(|| read(&format!("/sys/fs/cgroup/memory/{file}")))
    };
    let quota = read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
    let period = read("/sys/fs/cgroup/cpu/cpu.cfs_period_us").filter(|period| 0 < *period);
    let limits = CgroupFacts {
        version: u32::from(of("memory").is_some()),
        // The kernel writes about 2^63 for no limit.
        memory_max_bytes: memory("memory.limit_in_bytes").filter(|bytes| *bytes < 1 << 60),
        memory_used_bytes: memory("memory.usage_in_bytes"),
        cpu_quota: quota.zip(period).map(|(quota, period)| quota as f64 / period as f64),
        pids_max: read("/sys/fs/cgroup/pids/pids.max"),
    };
    Fact::known(limits, "/sys/fs/cgroup")
}

fn unified_limits(options: &Options, group: &str) -> CgroupFacts {
    let mut limits = CgroupFacts { version: 2, ..CgroupFacts::default() };
    let mut tightest = u64::MAX;
    for folder in Path::new(group).ancestors() {
        let folder = format!("/sys/fs/cgroup{}", folder.display());
        let read = |file: &str| options.text(&format!("{folder}/{file}")).ok();
        let number = |file: &str| text::cgroup_number(&read(file)?);
        if let Some(max) = number("memory.max").filter(|max| *max < tightest) {
            tightest = max;
            limits.memory_max_bytes = Some(max);
            // Pages of files can be dropped.
            let cached = read("memory.stat").and_then(|text| {
                text.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse().ok())
            });
            limits.memory_used_bytes =
                number("memory.current").map(|used| used.saturating_sub(cached.unwrap_or(0)));
        }
        let quota = read("cpu.max").and_then(|text| text::cpu_max(&text));
        limits.cpu_quota = match (limits.cpu_quota, quota) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        limits.pids_max = match (limits.pids_max, number("pids.max")) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
    limits
}

pub(super) fn limits(options: &Options) -> LimitFacts {
    /// Bit of CAP_IPC_LOCK (capability.h).
    const CAP_IPC_LOCK: u64 = 1 << 14;
    let both = |name: &'static str| {
        parsed(options, "/proc/self/limits", name, move |text| text::limit(text, name))
    };
    LimitFacts {
        memlock_bytes: both("Max locked memory").map(|(soft, _hard)| soft),
        open_files: both("Max open files").map(|(soft, _hard)| soft),
        open_files_hard: both("Max open files").map(|(_soft, hard)| hard),
        processes: both("Max processes").map(|(soft, _hard)| soft),
        cap_ipc_lock: parsed(options, "/proc/self/status", "CapEff", |text| {
            let bits = u64::from_str_radix(text::status(text, "CapEff")?, 16).ok()?;
            Some(bits & CAP_IPC_LOCK != 0)
        }),
        file_size_bytes: both("Max file size").map(|(soft, _hard)| soft),
        address_space_bytes: both("Max address space").map(|(soft, _hard)| soft),
        core_bytes: both("Max core file size").map(|(soft, _hard)| soft),
    }
}

pub(super) fn container(
    options: &Options,
    variables: Option<&BTreeMap<String, String>>,
) -> Fact<Option<String>> {
    let groups = options.text("/proc/1/cgroup").unwrap_or_default();
    let kubernetes = variables.is_some_and(|v| v.contains_key("KUBERNETES_SERVICE_HOST"))
        || groups.contains("kubepods");
    let kind = if kubernetes {
        Some("kubernetes")
    } else if options.at("/.dockerenv").exists() || groups.contains("/docker") {
        Some("docker")
    } else if options.at("/run/.containerenv").exists() {
        Some("podman")
    } else {
        None
    };
    Fact::known(kind.map(str::to_owned), "/.dockerenv, /run/.containerenv, /proc/1/cgroup")
}
