//! `processors-short`, `cpu-governor`, `cpu-throttled`, `cpu-steal`, `cpu-pressure`,
//! `cpu-without-avx2`, `cgroup-cpu-throttled`, `clocksource-slow`.

use crate::{
    doctor::{Applies, Area, Check, Demand, Judgement, Outcome, Rule, Severity, Stop},
    facts::NodeFacts,
    job::Compute,
};

pub(super) static PROCESSORS_SHORT: Rule = Rule {
    id: "processors-short",
    summary: "every rank has a processor of its own",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "this project: a rank has one thread that drives its GPU, and one that reads data",
    docs: "A process may run on the processors of its affinity mask only; a container or a batch \
           system often gives few. Ranks that share one take turns, and all wait for the slowest.",
    reads: "Cpus_allowed_list of /proc/self/status",
    fix: "give the container or the batch job more processors, or start fewer ranks",
    check: Check::Node(processors),
};

pub(super) static CPU_GOVERNOR: Rule = Rule {
    id: "cpu-governor",
    summary: "processors are not held at their lowest frequency",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "https://docs.kernel.org/admin-guide/pm/cpufreq.html (powersave)",
    docs: "The governor `powersave` of most drivers holds the lowest frequency for ever. (That of \
           intel_pstate and amd-pstate has the same name, but follows the load, and is fine.) Data \
           loading and the start of kernels then take two or three times longer.",
    reads: "scaling_governor and scaling_driver in /sys/devices/system/cpu/cpufreq",
    fix: "cpupower frequency-set -g performance",
    check: Check::Node(governor),
};

pub(super) static CPU_THROTTLED: Rule = Rule {
    id: "cpu-throttled",
    summary: "processors do not overheat",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "https://docs.kernel.org/arch/x86/topology.html; the limit of 1000 is our own",
    docs: "The package lowers its clocks when it is too hot. A few events are normal; thousands \
           mean a fan or a heat sink that does not do its work, and GPUs nearby are hot as well.",
    reads: "package_throttle_count of processor 0 in /sys",
    fix: "check fans, heat sinks and air flow of the node",
    check: Check::Node(throttled),
};

pub(super) static CPU_STEAL: Rule = Rule {
    id: "cpu-steal",
    summary: "the hypervisor gives the processors to this machine",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "proc_stat(5), column steal; the limit of 5 % is our own",
    docs: "Time in which this virtual machine wanted a processor and another one had it. Ranks \
           stop for moments that no log shows, and the others wait for them.",
    reads: "/proc/stat",
    fix: "move to a machine type with processors of its own, or to another host",
    check: Check::Node(steal),
};

pub(super) static CPU_PRESSURE: Rule = Rule {
    id: "cpu-pressure",
    summary: "no other load waits for the processors",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "https://docs.kernel.org/accounting/psi.html; the limit of 60 % is our own",
    docs: "Before the job begins the machine should be idle. When tasks already wait for \
           processors, the ranks will wait too.",
    reads: "avg10 of /proc/pressure/cpu",
    fix: "end the other load, or choose another node",
    check: Check::Node(pressure),
};

pub(super) static CPU_WITHOUT_AVX2: Rule = Rule {
    id: "cpu-without-avx2",
    summary: "the processors have the instructions of the fast kernels",
    area: Area::Software,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "this project: kernels for AVX2 and FMA, and plain ones",
    docs: "On CPUs the trainer uses AVX2 and FMA if they are there, and plain code otherwise, \
           which is several times slower. Virtual machines often hide the instructions.",
    reads: "/proc/cpuinfo",
    fix: "let the virtual machine show the host's processor (cpu mode host-passthrough)",
    check: Check::Node(avx2),
};

pub(super) static CGROUP_CPU_THROTTLED: Rule = Rule {
    id: "cgroup-cpu-throttled",
    summary: "the processor limit of the control group does not stop it",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.stat); the 10 % are our own",
    docs: "With a limit for processor time the kernel stops all threads of the group for the rest \
           of each period once it is used up. Ranks then stand still for tens of milliseconds at a \
           time.",
    reads: "cpu.stat of the control group",
    fix: "raise or remove the processor limit (resources.limits.cpu, docker run --cpus)",
    check: Check::Node(group_throttled),
};

pub(super) static CLOCKSOURCE_SLOW: Rule = Rule {
    id: "clocksource-slow",
    summary: "reading the clock costs no system call",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "https://docs.kernel.org/timers/timekeeping.html",
    docs: "When the kernel does not trust the processor's counter it reads the time from a timer \
           on the board, which takes a microsecond and a system call. Programs that measure every \
           step, as NCCL and CUDA do, feel it.",
    reads: "current_clocksource in /sys/devices/system/clocksource",
    fix: "look for `Marking clocksource 'tsc' as unstable` in the kernel log; boot with tsc=reliable",
    check: Check::Node(clocksource),
};

fn processors(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.memory.cpus;
    let (have, ranks) = (*fact.get()?, demand.ranks_on(node));
    let problem = (have < ranks).then(|| {
        PROCESSORS_SHORT.problem(
            format!("{have} processors for {ranks} ranks"),
            format!("ranks of {} take turns, so every step takes longer", demand.name()),
            "nproc; grep Cpus_allowed_list /proc/self/status",
        )
    });
    Judgement::of(fact, have, format!("at least {ranks}"), problem)
}

fn governor(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.system.governor;
    let Some(governor) = fact.get()? else {
        return Err(Stop::skip("the kernel does not choose the frequency"));
    };
    let names: Vec<String> = governor.names.iter().cloned().collect();
    let follows_load = governor.driver.contains("pstate");
    let slow = governor.names.contains("powersave") && !follows_load;
    let problem = slow.then(|| {
        CPU_GOVERNOR.problem(
            format!("governor powersave with driver {}: the lowest frequency", governor.driver),
            format!("data loading of {} may be too slow for its GPUs", demand.name()),
            "cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
        )
    });
    Judgement::of(fact, names, "not powersave", problem)
}

const MANY_THROTTLES: u64 = 1000;

fn throttled(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.system.cpu_throttles;
    let Some(count) = *fact.get()? else {
        return Err(Stop::skip("the processors do not count it"));
    };
    let problem = (MANY_THROTTLES <= count).then(|| {
        CPU_THROTTLED.problem(
            format!("slowed down for heat {count} times since boot"),
            format!("ranks of {} on this node are slower than the others", demand.name()),
            "cat /sys/devices/system/cpu/cpu*/thermal_throttle/package_throttle_count",
        )
    });
    Judgement::of(fact, count, format!("under {MANY_THROTTLES}"), problem)
}

const MUCH_STEAL: f64 = 5.0;

fn steal(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.system.steal_percent;
    let percent = *fact.get()?;
    let problem = (MUCH_STEAL < percent).then(|| {
        CPU_STEAL.problem(
            format!("{percent} % of the processor time went to other virtual machines"),
            format!("ranks of {} stop for moments, and the others wait", demand.name()),
            "vmstat 1 3 (column st)",
        )
    });
    Judgement::of(fact, percent, format!("at most {MUCH_STEAL} %"), problem)
}

const MUCH_PRESSURE: f64 = 60.0;

fn pressure(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.system.pressure;
    let Some(pressure) = fact.get()? else {
        return Err(Stop::skip("the kernel does not measure pressure"));
    };
    let percent = pressure.cpu_some;
    let problem = (MUCH_PRESSURE < percent).then(|| {
        CPU_PRESSURE.problem(
            format!("tasks waited for a processor {percent} % of the last ten seconds"),
            format!("another load slows {} down", demand.name()),
            "cat /proc/pressure/cpu; top",
        )
    });
    Judgement::of(fact, percent, format!("at most {MUCH_PRESSURE} %"), problem)
}

fn avx2(node: &NodeFacts, demand: &Demand) -> Outcome {
    if demand.compute != Compute::Cpu {
        return Err(Stop::skip("the job computes on GPUs"));
    }
    let fact = &node.system.cpu;
    let cpu = fact.get()?;
    if cpu.architecture != "x86_64" {
        return Err(Stop::skip("only x86 processors have AVX2"));
    }
    let missing: Vec<&str> =
        ["avx2", "fma"].into_iter().filter(|name| !cpu.features.contains(*name)).collect();
    let problem = (!missing.is_empty()).then(|| {
        CPU_WITHOUT_AVX2.problem(
            format!("the processors do not show {}", missing.join(" and ")),
            format!("{} computes several times slower", demand.name()),
            "grep -m1 flags /proc/cpuinfo",
        )
    });
    let have: Vec<String> = cpu.features.iter().cloned().collect();
    Judgement::of(fact, have, "avx2 and fma", problem)
}

fn group_throttled(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.system.cgroup_events;
    let events = fact.get()?;
    let percent = (events.throttled * 100).checked_div(events.periods).unwrap_or(0);
    // A handful of periods says nothing.
    let problem = (10 < percent && 100 <= events.periods).then(|| {
        CGROUP_CPU_THROTTLED.problem(
            format!("the group was stopped in {percent} % of its periods"),
            format!("ranks of {} stand still for parts of every step", demand.name()),
            "cat /sys/fs/cgroup/cpu.stat /sys/fs/cgroup/cpu.max",
        )
    });
    Judgement::of(fact, percent, "at most 10 %", problem)
}

fn clocksource(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.system.clocksource;
    let source = fact.get()?;
    let slow = ["hpet", "acpi_pm", "jiffies", "refined-jiffies", "xen"].contains(&source.as_str());
    let problem = slow.then(|| {
        CLOCKSOURCE_SLOW.problem(
            format!("the clock is read from {source}"),
            format!("every time measurement in ranks of {} costs a system call", demand.name()),
            "cat /sys/devices/system/clocksource/clocksource0/current_clocksource",
        )
    });
    Judgement::of(fact, source.as_str(), "tsc, kvm-clock, arch_sys_counter or the like", problem)
}
