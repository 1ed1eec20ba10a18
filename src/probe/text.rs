//! Pure parsers of the kernel's text files.

use std::collections::{BTreeMap, BTreeSet};

use crate::facts::KernelModule;

/// A line `Name:   123 kB` of `/proc/meminfo`, in bytes.
pub(super) fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Soft and hard limit of a line of `/proc/self/limits`; `None` = unlimited.
pub(super) fn limit(text: &str, name: &str) -> Option<(Option<u64>, Option<u64>)> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let mut columns = line.split_whitespace();
    let mut number = || match columns.next()? {
        "unlimited" => Some(None),
        digits => digits.parse().ok().map(Some),
    };
    Some((number()?, number()?))
}

/// A field of `/proc/self/status`.
pub(super) fn status<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

/// Number of processors in a list such as `0-3,8`.
pub(super) fn cpu_list(text: &str) -> Option<u32> {
    text.trim().split(',').try_fold(0, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        Some(sum + last.checked_sub(first)? + 1)
    })
}

/// Names of the modules in `/proc/modules`.
pub(super) fn modules(text: &str) -> BTreeSet<String> {
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

/// The module in `/proc/driver/nvidia/version`.
pub(super) fn nvidia_version(text: &str) -> Option<KernelModule> {
    let line = text.lines().find(|line| line.starts_with("NVRM version"))?;
    let is_version =
        |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    let version = line.split_whitespace().find(is_version)?.to_owned();
    Some(KernelModule { version, open: line.contains("Open Kernel Module") })
}

/// `PRETTY_NAME` of os-release.
pub(super) fn pretty_name(text: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches('"').to_owned())
}

/// Variables of `/proc/self/environ` that CUDA, NCCL, OpenMP or a rank read.
pub(super) fn variables(text: &str) -> BTreeMap<String, String> {
    const PREFIXES: [&str; 10] = [
        "CUDA_",
        "NCCL_",
        "OMP_",
        "MASTER_",
        "NVIDIA_",
        "LOCAL_",
        "COMPUTE_PROFILE",
        "OPENCL_PROFILE",
        "NSYS_",
        "QVL_THREADS",
    ];
    const NAMES: [&str; 4] = ["RANK", "WORLD_SIZE", "LD_LIBRARY_PATH", "KUBERNETES_SERVICE_HOST"];
    let wanted = |name: &str| {
        NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    };
    text.split('\0')
        .filter_map(|entry| entry.split_once('='))
        .filter(|(name, _value)| wanted(name))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// Interface of the default route in `/proc/net/route`.
pub(super) fn default_route(text: &str) -> Option<String> {
    text.lines().skip(1).find_map(|line| {
        let mut columns = line.split_whitespace();
        let (name, destination) = (columns.next()?, columns.next()?);
        (destination == "00000000").then(|| name.to_owned())
    })
}

/// A limit file of a control group: a number, or `max`.
pub(super) fn cgroup_number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// `cpu.max`: quota and period in microseconds.
pub(super) fn cpu_max(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (0.0 < period).then_some(quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_numbers_or_none() {
        let text = "Limit      Soft Limit  Hard Limit Units\nMax open files            1024                 524288               files     \nMax locked memory         unlimited            unlimited            bytes\n";
        assert_eq!(limit(text, "Max open files"), Some((Some(1024), Some(524_288))));
        assert_eq!(limit(text, "Max locked memory"), Some((None, None)));
        assert_eq!(limit(text, "Max processes"), None);
    }

    #[test]
    fn memory_is_in_bytes() {
        assert_eq!(meminfo("MemTotal:  16 kB\nMemAvailable: 8 kB\n", "MemAvailable"), Some(8192));
        assert_eq!(meminfo("MemTotal:  x kB\n", "MemTotal"), None);
    }

    #[test]
    fn processors_are_counted() {
        assert_eq!(cpu_list("0-3,8"), Some(5));
        assert_eq!(cpu_list("3-0"), None);
    }

    #[test]
    fn both_kernel_modules_are_known() {
        let open =
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n";
        let module = nvidia_version(open).unwrap();
        assert_eq!((module.version.as_str(), module.open), ("580.65.06", true));
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue Jun  6\n";
        assert!(!nvidia_version(closed).unwrap().open);
    }

    #[test]
    fn only_relevant_variables_are_kept() {
        let found = variables("NCCL_DEBUG=INFO\0AWS_SECRET=x\0RANK=3\0HOME=/h\0");
        assert_eq!(found.keys().collect::<Vec<_>>(), ["NCCL_DEBUG", "RANK"]);
    }

    #[test]
    fn control_groups_say_max_or_a_number() {
        assert_eq!(cpu_max("150000 100000\n"), Some(1.5));
        assert_eq!(cpu_max("max 100000\n"), None);
        assert_eq!(cgroup_number("max\n"), None);
    }
}
