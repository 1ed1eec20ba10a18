//! `kernel-old`, `os-skew`, `kernel-faults`, `time-daemon`.

use crate::{
    doctor::{
        Agreement, Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Problem, Rule,
        Severity, table,
    },
    facts::NodeFacts,
};

pub(super) static KERNEL_OLD: Rule = Rule {
    id: "kernel-old",
    summary: "the kernel is 5.5 or newer",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "huggingface/accelerate (minimum 5.5); huggingface/peft#1745",
    docs: "Hangs of multi-GPU jobs were reported on older kernels.",
    reads: "/proc/sys/kernel/osrelease",
    fix: "upgrade the kernel, or leave the node out",
    check: Check::Node(old),
};

pub(super) static OS_SKEW: Rule = Rule {
    id: "os-skew",
    summary: "all nodes run one kernel and system",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::Nodes,
    source: "AMD-AGI/Primus preflight, drift table",
    docs: "A difference alone breaks nothing; it is the first thing to look at when one node is \
           slower or fails alone.",
    reads: "/proc/sys/kernel/osrelease, /etc/os-release on all nodes",
    fix: "upgrade the outliers, or leave them out",
    check: Check::Agree(Agreement {
        what: "kernel and system",
        read: |node, _demand| {
            Ok(format!("{} ({})", node.kernel.release.get()?, node.kernel.os.get()?))
        },
        impact: "nothing by itself; faults that show on some nodes only are harder to explain",
        fix: "upgrade the outliers, or leave them out",
        see: "uname -r; grep PRETTY_NAME /etc/os-release",
    }),
};

pub(super) static KERNEL_FAULTS: Rule = Rule {
    id: "kernel-faults",
    summary: "the kernel reports no faults since boot",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "node-problem-detector; AMD-AGI/Primus (kernel log patterns)",
    docs: "Out of memory, hung tasks, machine checks and disk errors since boot. They are about the \
           past, so they warn and do not block.",
    reads: "/dev/kmsg",
    fix: "find the cause in the kernel log before a long run",
    check: Check::Node(faults),
};

pub(super) static TIME_DAEMON: Rule = Rule {
    id: "time-daemon",
    summary: "a daemon sets the clock",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::Nodes,
    source: "AMD-AGI/Primus (none active fails)",
    docs: "Clocks that drift apart make logs of several nodes impossible to merge, and TLS fail.",
    reads: "/proc/*/stat",
    fix: "enable chronyd or systemd-timesyncd",
    check: Check::Node(time_daemon),
};

fn old(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.kernel.release;
    let release = fact.get()?;
    let evidence = Evidence::of(fact, release.as_str(), "at least 5.5");
    let problem = (table::version(release) < vec![5, 5]).then(|| Problem {
        severity: Severity::Warn,
        what: format!("kernel {release} (5.5 or newer wanted)"),
        impact: format!("ranks of {} may hang without a message", demand.name()),
        fix: "upgrade the kernel, or leave the node out".to_owned(),
        see: "uname -r".to_owned(),
    });
    Ok(Judgement::from_option(problem, evidence))
}

fn faults(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.kernel.log;
    let log = fact.get()?;
    let evidence = Evidence::of(fact, log.faults.len(), "0");
    let problem = log.faults.last().map(|last| Problem {
        severity: Severity::Warn,
        what: format!(
            "{} faults since boot, the last: {}: {}",
            log.faults.len(),
            last.kind.name(),
            last.text
        ),
        impact: format!("the same may hit {}", demand.name()),
        fix: "find the cause in the kernel log before a long run".to_owned(),
        see: "dmesg -T --level=emerg,alert,crit,err".to_owned(),
    });
    Ok(Judgement::from_option(problem, evidence))
}

fn time_daemon(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.kernel.time_daemons;
    let daemons = fact.get()?.clone();
    let evidence = Evidence::of(fact, daemons.clone(), "chronyd, systemd-timesyncd, ntpd or ptp4l");
    let in_container = node.container.kind.value().is_some_and(Option::is_some);
    let problem = (daemons.is_empty() && !in_container).then(|| Problem {
        severity: Severity::Warn,
        what: "no daemon sets the clock".to_owned(),
        impact: format!("logs of {} from several nodes cannot be merged by time", demand.name()),
        fix: "enable chronyd or systemd-timesyncd".to_owned(),
        see: "timedatectl".to_owned(),
    });
    Ok(Judgement::from_option(problem, evidence))
}
