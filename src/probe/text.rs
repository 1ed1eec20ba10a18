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
        last.checked_sub(first)?.checked_add(1)?.checked_add(sum)
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

/// Name and state of a process in its `stat`: `7 (name) S 1 ...`. The name may have brackets.
pub(super) fn process(stat: &str) -> Option<(&str, char)> {
    let (_pid, rest) = stat.split_once('(')?;
    let (name, rest) = rest.rsplit_once(')')?;
    Some((name, rest.trim_start().chars().next()?))
}

/// `avg10` of a line of `/proc/pressure`, which begins with `some` or `full`.
pub(super) fn pressure(text: &str, kind: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(kind))?;
    line.split(' ').find_map(|field| field.strip_prefix("avg10="))?.parse().ok()
}

/// Addresses that a hosts file gives to a name.
pub(super) fn hosts(text: &str, name: &str) -> Vec<String> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or(""));
    let has = |line: &str| line.split_whitespace().skip(1).any(|word| word == name);
    let address = |line: &str| line.split_whitespace().next().map(str::to_owned);
    lines.filter(|line| has(line)).filter_map(address).collect()
}

/// Variables of `/proc/self/environ` that CUDA, NCCL, OpenMP or a rank read.
pub(super) fn variables(text: &str) -> BTreeMap<String, String> {
    const PREFIXES: [&str; 12] = [
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
        "GLOO_",
        "TORCH_NCCL_",
    ];
    const NAMES: [&str; 5] =
        ["RANK", "WORLD_SIZE", "LD_LIBRARY_PATH", "KUBERNETES_SERVICE_HOST", "DS_SKIP_CUDA_CHECK"];
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
        assert_eq!(cpu_list("0-4294967295"), None);
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
    fn processes_pressure_and_names_are_read() {
        assert_eq!(process("7 (a (b) c) D 1 7"), Some(("a (b) c", 'D')));
        assert_eq!(process("7"), None);
        let text = "some avg10=1.50 avg60=0.00\nfull avg10=0.25 avg60=0.00 total=1\n";
        assert_eq!(pressure(text, "full"), Some(0.25));
        let text = "127.0.0.1 localhost\n127.0.1.1 node-1.lan node-1 # own\n10.0.0.1 node-1\n";
        assert_eq!(hosts(text, "node-1"), ["127.0.1.1", "10.0.0.1"]);
        assert!(hosts(text, "own").is_empty());
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
