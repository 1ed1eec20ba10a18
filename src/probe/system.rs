//! Processors, settings and counters of the kernel.

use std::collections::{BTreeMap, BTreeSet};

use super::{Options, elf, files, host, libraries::Search, native, ranges, text};
use crate::facts::{
    CgroupEvents, Cpu, Fact, Governor, MemoryDetail, MemoryErrors, Pressure, ProcessTable,
    SystemFacts,
};

/// Settings that a rule judges.
const SYSCTLS: [&str; 13] = [
    "fs.file-nr",
    "kernel.core_pattern",
    "kernel.numa_balancing",
    "kernel.pid_max",
    "kernel.tainted",
    "kernel.threads-max",
    "net.core.somaxconn",
    "net.ipv4.conf.all.rp_filter",
    "net.ipv4.ip_local_port_range",
    "net.netfilter.nf_conntrack_count",
    "net.netfilter.nf_conntrack_max",
    "vm.max_map_count",
    "vm.overcommit_memory",
];

/// Names of daemons that a rule asks for, as the kernel cuts them: 15 characters.
const DAEMONS: [&str; 8] = [
    "chronyd",
    "systemd-timesyn",
    "ntpd",
    "ptp4l",
    "nv-fabricmanage",
    "nvidia-cuda-mps",
    "nvidia-imex",
    "systemd-logind",
];

pub(super) fn system(
    options: &Options,
    search: &Search,
    processes: Fact<ProcessTable>,
) -> SystemFacts {
    SystemFacts {
        clock: native::clock(),
        clocksource: host::line(
            options,
            "/sys/devices/system/clocksource/clocksource0/current_clocksource",
        ),
        virtual_machine: virtual_machine(options),
        cpu: cpu(options),
        governor: governor(options),
        numa_nodes: host::parsed(options, "/sys/devices/system/node/has_memory", "nodes", |text| {
            text::cpu_list(text)
        }),
        allowed_cpus: host::parsed(options, "/proc/self/status", "Cpus_allowed_list", |text| {
            ranges::parse(text::status(text, "Cpus_allowed_list")?)
        }),
        cpu_throttles: throttles(options),
        steal_percent: host::parsed(options, "/proc/stat", "cpu", steal),
        memory_errors: memory_errors(options),
        memory: host::parsed(options, "/proc/meminfo", "HugePages_Total", memory),
        pressure: pressure(options),
        remove_ipc: remove_ipc(options, processes.value()),
        processes,
        cgroup_events: cgroup_events(options),
        sysctl: sysctl(options),
        glibc: elf::host_glibc(search),
        uid: host::parsed(options, "/proc/self/status", "Uid", |text| {
            text::status(text, "Uid")?.split_whitespace().next()?.parse().ok()
        }),
    }
}

/// One look at every process: its name and state.
pub(super) fn processes(options: &Options) -> Fact<ProcessTable> {
    const FROM: &str = "/proc/*/stat";
    let entries = match std::fs::read_dir(options.at("/proc")) {
        Ok(entries) => entries,
        Err(error) => return Fact::unread(error.to_string(), FROM),
    };
    let mut table = ProcessTable { total: 0, zombies: 0, blocked: 0, daemons: BTreeSet::new() };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !name.to_string_lossy().starts_with(|c: char| c.is_ascii_digit()) {
            continue;
        }
        // A process may have ended meanwhile.
        let Ok(stat) = files::text(&entry.path().join("stat")) else { continue };
        let Some((name, state)) = text::process(&stat) else { continue };
        table.total += 1;
        table.zombies += u32::from(state == 'Z');
        table.blocked += u32::from(state == 'D');
        if DAEMONS.contains(&name) {
            table.daemons.insert(name.to_owned());
        }
    }
    Fact::known(table, FROM)
}

fn virtual_machine(options: &Options) -> Fact<bool> {
    const FROM: &str = "/proc/cpuinfo, /sys/hypervisor/type";
    let hypervisor = options.at("/sys/hypervisor/type").exists();
    let flags = options.text("/proc/cpuinfo").map(|text| {
        let flags = text.lines().find(|line| line.starts_with("flags"));
        hypervisor || flags.is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor"))
    });
    Fact::from_result(flags, FROM)
}

fn cpu(options: &Options) -> Fact<Cpu> {
    const FEATURES: [&str; 4] = ["avx2", "avx512f", "f16c", "fma"];
    host::parsed(options, "/proc/cpuinfo", "processors", |text| {
        let line = |name: &str| text.lines().find(|line| line.starts_with(name));
        // Arm writes `Features`, x86 `flags`.
        let x86 = line("flags");
        let list = x86.or_else(|| line("Features"))?;
        let has = |name: &&str| list.split([' ', '\t']).any(|flag| flag == *name);
        Some(Cpu {
            architecture: if x86.is_some() { "x86_64" } else { "aarch64" }.to_owned(),
            features: FEATURES.iter().filter(|name| has(name)).map(|f| (*f).to_owned()).collect(),
        })
    })
}

fn governor(options: &Options) -> Fact<Option<Governor>> {
    const FROM: &str = "/sys/devices/system/cpu/cpufreq";
    let Ok(entries) = std::fs::read_dir(options.at(FROM)) else {
        return Fact::known(None, FROM);
    };
    let read = files::word;
    let mut driver = None;
    let mut names = BTreeSet::new();
    for policy in entries.flatten().map(|entry| entry.path()) {
        names.extend(read(&policy.join("scaling_governor")));
        driver = driver.or_else(|| read(&policy.join("scaling_driver")));
    }
    let governor = driver.filter(|_| !names.is_empty()).map(|driver| Governor { driver, names });
    Fact::known(governor, FROM)
}

fn throttles(options: &Options) -> Fact<Option<u64>> {
    const FROM: &str = "/sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count";
    if !options.at(FROM).exists() {
        return Fact::known(None, FROM);
    }
    host::parsed(options, FROM, "count", |text| Some(Some(text.trim().parse().ok()?)))
}

/// Share of `steal` in the first line of `/proc/stat`, whose columns are user, nice, system,
/// idle, iowait, irq, softirq, steal.
fn steal(text: &str) -> Option<f64> {
    let columns = text.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<f64> = columns.split_whitespace().map_while(|tick| tick.parse().ok()).collect();
    let all: f64 = ticks.iter().take(8).sum();
    let stolen = *ticks.get(7)?;
    Some(if 0.0 < all { (stolen / all * 1e4).round() / 100.0 } else { 0.0 })
}

fn memory_errors(options: &Options) -> Fact<Option<MemoryErrors>> {
    const FROM: &str = "/sys/devices/system/edac/mc";
    let controllers = std::fs::read_dir(options.at(FROM)).into_iter().flatten().flatten();
    let mut errors = None;
    for controller in controllers.map(|entry| entry.path()) {
        let count = |file: &str| files::word(&controller.join(file))?.parse::<u64>().ok();
        if let (Some(corrected), Some(uncorrected)) = (count("ce_count"), count("ue_count")) {
            let sum = errors.get_or_insert(MemoryErrors { corrected: 0, uncorrected: 0 });
            sum.corrected = sum.corrected.saturating_add(corrected);
            sum.uncorrected = sum.uncorrected.saturating_add(uncorrected);
        }
    }
    Fact::known(errors, FROM)
}

fn memory(text: &str) -> Option<MemoryDetail> {
    let count = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().parse().ok()
    };
    let size = text::meminfo(text, "Hugepagesize").unwrap_or(0);
    Some(MemoryDetail {
        swap_total: text::meminfo(text, "SwapTotal")?,
        swap_free: text::meminfo(text, "SwapFree")?,
        huge_total: count("HugePages_Total").unwrap_or(0).checked_mul(size)?,
        huge_free: count("HugePages_Free").unwrap_or(0).checked_mul(size)?,
    })
}

fn pressure(options: &Options) -> Fact<Option<Pressure>> {
    const FROM: &str = "/proc/pressure";
    if !options.at(FROM).exists() {
        return Fact::known(None, FROM);
    }
    let read = |file: &str, kind: &str| {
        // The file is there, but cannot be read, when the kernel was started with psi=0.
        let text = options.text(&format!("{FROM}/{file}")).ok()?;
        text::pressure(&text, kind)
    };
    let all = (read("cpu", "some"), read("memory", "full"), read("io", "full"));
    let (Some(cpu_some), Some(memory_full), Some(io_full)) = all else {
        return Fact::known(None, FROM);
    };
    Fact::known(Some(Pressure { cpu_some, memory_full, io_full }), FROM)
}

fn cgroup_events(options: &Options) -> Fact<CgroupEvents> {
    const FROM: &str = "/sys/fs/cgroup";
    let group = options.text("/proc/self/cgroup").ok();
    let unified =
        group.as_deref().and_then(|list| list.lines().find_map(|l| l.strip_prefix("0::")));
    let folder = format!("{FROM}{}", unified.unwrap_or("").trim_end_matches('/'));
    let text = |file: &str| options.text(&format!("{folder}/{file}")).unwrap_or_default();
    let (events, stat) = (text("memory.events"), text("cpu.stat"));
    let number = |text: &str, name: &str| -> u64 {
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0)
    };
    let events = CgroupEvents {
        oom_kills: number(&events, "oom_kill "),
        periods: number(&stat, "nr_periods "),
        throttled: number(&stat, "nr_throttled "),
    };
    Fact::known(events, FROM)
}

fn sysctl(options: &Options) -> Fact<BTreeMap<String, String>> {
    const FROM: &str = "/proc/sys";
    if !options.at(FROM).exists() {
        return Fact::unread("there is no such folder", FROM);
    }
    let read = |name: &str| {
        // The dots of `net.ipv4` are folders.
        let path = format!("{FROM}/{}", name.replace('.', "/"));
        options.text(&path).ok().map(|text| (name.to_owned(), text.trim().to_owned()))
    };
    Fact::known(SYSCTLS.iter().filter_map(|name| read(name)).collect(), FROM)
}

/// `RemoveIPC` of logind, which is on unless a file says otherwise.
fn remove_ipc(options: &Options, processes: Option<&ProcessTable>) -> Fact<Option<bool>> {
    const FROM: &str = "/etc/systemd/logind.conf, logind.conf.d";
    let Some(processes) = processes else {
        return Fact::unread("whether systemd-logind runs is not known", FROM);
    };
    if !processes.daemons.contains("systemd-logind") {
        return Fact::known(None, FROM);
    }
    let mut files = vec![options.at("/etc/systemd/logind.conf")];
    for folder in ["/usr/lib/systemd/logind.conf.d", "/etc/systemd/logind.conf.d"] {
        let entries = std::fs::read_dir(options.at(folder)).into_iter().flatten().flatten();
        let mut more: Vec<_> = entries.map(|entry| entry.path()).collect();
        more.sort();
        files.extend(more);
    }
    let mut on = true;
    for text in files.iter().filter_map(|file| files::text(file).ok()) {
        for value in text.lines().filter_map(|line| line.trim().strip_prefix("RemoveIPC=")) {
            on = matches!(value.trim(), "yes" | "true" | "1" | "on");
        }
    }
    Fact::known(Some(on), FROM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_the_kernel_are_read() {
        assert_eq!(steal("cpu  90 0 0 5 0 0 0 5 0 0\ncpu0 1\n"), Some(5.0));
        assert_eq!(steal("intr 5\n"), None);
        let text = "SwapTotal: 8 kB\nSwapFree: 4 kB\nHugePages_Total: 3\nHugePages_Free: 1\nHugepagesize: 2048 kB\n";
        let found = memory(text).unwrap();
        assert_eq!((found.swap_total, found.swap_free), (8192, 4096));
        assert_eq!((found.huge_total, found.huge_free), (6 << 20, 2 << 20));
    }

    #[test]
    fn this_machine_shows_its_processes_and_clock() {
        let found = processes(&Options::default());
        assert!(0 < found.get().unwrap().total);
        let options = Options::default();
        let facts = system(&options, &Search::new(&options, None), found);
        assert!(facts.sysctl.get().unwrap().contains_key("kernel.pid_max"));
        assert!(facts.clock.get().is_ok(), "{:?}", facts.clock);
        assert!(facts.uid.get().is_ok());
    }
}
