//! `xid-seen`: errors that the NVIDIA driver wrote into the kernel log.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Problem, Rule, Severity,
        table::{self, XidAction},
    },
    facts::{KernelLog, NodeFacts, XidEvent},
};

pub(super) static RULE: Rule = Rule {
    id: "xid-seen",
    summary: "the driver reported no GPU fault since it was loaded",
    area: Area::Gpu,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "NVIDIA Xid catalog; policies of gpud, Azure NHC, gcm and k8s-device-plugin compared",
    docs: "The driver writes `NVRM: Xid` lines into the kernel log. Codes that want a reset or a \
           replacement block; errors of one program do not, unless three processes hit them on one \
           GPU. Only lines of this boot and after the last load of the driver count. Reading the \
           log needs CAP_SYSLOG; without it the check is unknown, but does not stop a launch, \
           because NVML shows the lasting ones of these faults too.",
    reads: "/dev/kmsg",
    fix: "the action of NVIDIA's catalog for the code, then run the doctor again",
    check: Check::Node(check),
};

fn check(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.kernel.log;
    let log = fact.get()?;
    let events = current(log);
    let mut by_code: BTreeMap<(String, u32), Vec<&XidEvent>> = BTreeMap::new();
    for event in &events {
        by_code.entry((event.pci_address.clone(), event.xid)).or_default().push(event);
    }
    let seen: Vec<String> =
        by_code.iter().map(|((gpu, xid), e)| format!("{xid} x{} on {gpu}", e.len())).collect();
    let mut judgement = Judgement::pass(Evidence::of(fact, seen, "no code that wants a reset"));
    for ((gpu, xid), events) in &by_code {
        if let Some(severity) = severity(node, *xid, gpu, events, &by_code) {
            let more = if 0 < log.forgotten { " or more" } else { "" };
            judgement.problems.push(problem(severity, *xid, gpu, events, more, demand));
        }
    }
    Ok(judgement)
}

/// Events that still matter: after the last load of the driver, and after the last message that
/// says that nothing has to be done.
fn current(log: &KernelLog) -> Vec<&XidEvent> {
    let loaded = log.module_loaded_us.unwrap_or(0);
    let cleared = |event: &XidEvent| {
        log.xids.iter().any(|later| {
            later.xid == 154
                && later.pci_address == event.pci_address
                && event.time_us <= later.time_us
                && asks_for_nothing(&later.text)
        })
    };
    log.xids.iter().filter(|event| loaded <= event.time_us && !cleared(event)).collect()
}

/// Whether an XID 154 ends at the action `None`: it names the action before, too.
fn asks_for_nothing(text: &str) -> bool {
    text.rsplit(" to ").next().is_some_and(|now| now.contains("None"))
}

fn severity(
    node: &NodeFacts,
    xid: u32,
    gpu: &str,
    events: &[&XidEvent],
    all: &BTreeMap<(String, u32), Vec<&XidEvent>>,
) -> Option<Severity> {
    let Some(line) = table::xid(xid) else { return Some(Severity::Warn) };
    match line.action {
        XidAction::Block => Some(Severity::Block),
        XidAction::BlockUnlessDecoded => {
            let nonfatal = events.iter().all(|event| event.text.contains("Nonfatal"));
            Some(if nonfatal { Severity::Warn } else { Severity::Block })
        }
        XidAction::FollowAction => Some(Severity::Block),
        XidAction::Warn | XidAction::WarnUnused => Some(Severity::Warn),
        XidAction::WarnIfRemapPending => {
            let gpus = node.nvml.gpus.value().into_iter().flatten();
            let mut of_gpu = gpus.filter(|g| g.pci_address.value().is_some_and(|a| a == gpu));
            of_gpu
                .any(|g| {
                    g.remapped_rows.value().is_some_and(|rows| rows.is_some_and(|r| r.pending))
                })
                .then_some(Severity::Warn)
        }
        XidAction::InfoIfSympathetic => {
            let alone = !all.keys().any(|(other, code)| other == gpu && *code != xid);
            alone.then_some(Severity::Warn)
        }
        XidAction::InfoWarnIfThreeProcesses => {
            let processes: BTreeSet<u32> = events.iter().filter_map(|event| event.pid).collect();
            (3 <= processes.len()).then_some(Severity::Warn)
        }
        XidAction::Info => None,
    }
}

fn problem(
    severity: Severity,
    xid: u32,
    gpu: &str,
    events: &[&XidEvent],
    more: &str,
    demand: &Demand,
) -> Problem {
    let line = table::xid(xid);
    let description = line.map_or("not in the catalog", |line| line.description);
    let action = line.map_or("-", |line| line.nvidia_action);
    let last = events.last().map_or("", |event| event.text.as_str());
    Problem {
        severity,
        what: format!(
            "GPU {gpu}: Xid {xid} ({description}), {} times{more}; last: {last}",
            events.len()
        ),
        impact: match severity {
            Severity::Block => format!(
                "the GPU is in doubt: ranks of {} on it fail or compute wrong numbers",
                demand.name()
            ),
            Severity::Warn | Severity::Info => format!("{} may hit the same fault", demand.name()),
        },
        fix: if action == "-" {
            "reset the GPU (nvidia-smi --gpu-reset); if it comes back, leave the GPU out".to_owned()
        } else {
            format!(
                "NVIDIA's immediate action is {action}; reset the GPU, then run the doctor again"
            )
        },
        see: "dmesg -T | grep 'NVRM: Xid'".to_owned(),
    }
}
