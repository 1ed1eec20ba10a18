//! `xid-seen`: errors that the NVIDIA driver wrote into the kernel log.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Problem, Rule, Severity,
        xid::{self, Stance, XidAction},
    },
    facts::{GpuFacts, KernelLog, NodeFacts, XidEvent},
};

/// Errors of one program become an error of the GPU when so many processes hit them in a day.
const PROCESSES: usize = 3;
const DAY_US: u64 = 24 * 60 * 60 * 1_000_000;

pub(super) static RULE: Rule = Rule {
    id: "xid-seen",
    summary: "the driver reported no GPU fault since it was loaded",
    area: Area::Gpu,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "NVIDIA Xid catalog; policies of gpud, Azure NHC, gcm and k8s-device-plugin compared",
    docs: "The driver writes `NVRM: Xid` lines into the kernel log. Codes that want a reset or a \
           replacement block; errors of one program do not, unless three processes hit them on one \
           GPU within a day. Only lines of this boot and after the last load of the driver count; \
           repeating the check changes nothing. Each problem names the GPU behind the PCI address, \
           the driver's own recovery action (NVML field 230, driver 565 and later), and which of \
           NVIDIA's catalog and four monitoring tools judge the code differently (docs/xid.md). \
           Reading the log needs CAP_SYSLOG; without it the check is unknown, but does not stop a \
           launch, because NVML shows the lasting ones of these faults too. `--kernel-log FILE` reads \
           a saved log instead.",
    reads: "/dev/kmsg, or --kernel-log: text of dmesg or syslog, journalctl -o export or -o json",
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
            judgement.problems.push(problem(node, severity, *xid, gpu, events, more, demand));
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
    let Some(line) = xid::find(xid) else { return Some(Severity::Warn) };
    match line.action {
        XidAction::Block => Some(Severity::Block),
        XidAction::BlockUnlessDecoded => {
            let nonfatal = events.iter().all(|event| event.text.contains("Nonfatal"));
            Some(if nonfatal { Severity::Warn } else { Severity::Block })
        }
        // The driver answers for now, the log for then: if it no longer asks, somebody may have acted.
        XidAction::FollowAction => Some(match recovery(node, gpu) {
            Some(0) => Severity::Warn,
            _ => Severity::Block,
        }),
        XidAction::Warn | XidAction::WarnUnused => Some(Severity::Warn),
        XidAction::WarnIfRemapPending => remap_pending(node, gpu).then_some(Severity::Warn),
        XidAction::InfoIfSympathetic => {
            let alone = !all.keys().any(|(other, code)| other == gpu && *code != xid);
            alone.then_some(Severity::Warn)
        }
        XidAction::InfoWarnIfThreeProcesses => {
            (PROCESSES <= processes_of_a_day(events)).then_some(Severity::Warn)
        }
        XidAction::Info => None,
    }
}

/// Most processes that were hit within one day.
fn processes_of_a_day(events: &[&XidEvent]) -> usize {
    let from = |first: &XidEvent| {
        let day = first.time_us..=first.time_us.saturating_add(DAY_US);
        let of_day = events.iter().filter(|event| day.contains(&event.time_us));
        of_day.filter_map(|event| event.pid).collect::<BTreeSet<u32>>().len()
    };
    events.iter().map(|event| from(event)).max().unwrap_or(0)
}

/// The GPU at a PCI address, if NVML lists it.
fn at<'n>(node: &'n NodeFacts, address: &str) -> Option<&'n GpuFacts> {
    let mut gpus = node.nvml.gpus.value().into_iter().flatten();
    gpus.find(|gpu| gpu.pci_address.value().is_some_and(|own| own == address))
}

fn remap_pending(node: &NodeFacts, address: &str) -> bool {
    let rows = at(node, address).and_then(|gpu| gpu.remapped_rows.value());
    rows.is_some_and(|rows| rows.is_some_and(|rows| rows.pending))
}

/// What the driver itself wants done now (NVML field 230).
fn recovery(node: &NodeFacts, address: &str) -> Option<u32> {
    at(node, address)?.recovery_action.value().copied().flatten()
}

const fn recovery_name(action: u32) -> &'static str {
    match action {
        0 => "nothing",
        1 => "a reset of the GPU",
        2 => "a reboot of the node",
        3 => "that peers are drained",
        4 => "that the node is drained and the GPU reset",
        _ => "something that qvl does not know",
    }
}

/// `GPU 2 (0000:3b:00.0, NVIDIA H100 80GB HBM3, serial 165)`, as far as it is known.
fn culprit(node: &NodeFacts, address: &str) -> String {
    let Some(gpu) = at(node, address) else {
        let listed = node.nvml.gpus.value().is_some();
        let more = if listed { ", which NVML does not list" } else { "" };
        return format!("GPU {address}{more}");
    };
    let name = gpu.name.value().map(|name| format!(", {name}")).unwrap_or_default();
    let serial = gpu.serial.value().cloned().flatten();
    let serial = serial.map(|serial| format!(", serial {serial}")).unwrap_or_default();
    format!("GPU {} ({address}{name}{serial})", gpu.index)
}

fn problem(
    node: &NodeFacts,
    severity: Severity,
    xid: u32,
    gpu: &str,
    events: &[&XidEvent],
    more: &str,
    demand: &Demand,
) -> Problem {
    let line = xid::find(xid);
    let description = line.as_ref().map_or("not in the catalog", |line| line.description);
    let last = events.last().map_or("", |event| event.text.as_str());
    let recovery = recovery(node, gpu);
    let driver =
        recovery.map(|action| format!("; the driver asks for {} now", recovery_name(action)));
    let stance = if severity == Severity::Block { Stance::Stop } else { Stance::Watch };
    let others = line.as_ref().map(|line| line.dissent(stance)).unwrap_or_default();
    let times = if events.len() == 1 { "once" } else { &format!("{} times", events.len()) };
    Problem {
        severity,
        what: format!(
            "{}: Xid {xid} ({description}), {times}{more}; last: {last}{}",
            culprit(node, gpu),
            driver.unwrap_or_default()
        ),
        impact: match severity {
            Severity::Block => format!(
                "the GPU is in doubt: ranks of {} on it fail or compute wrong numbers",
                demand.name()
            ),
            Severity::Warn | Severity::Info => format!("{} may hit the same fault", demand.name()),
        } + &if others.is_empty() { others } else { format!(" ({others})") },
        fix: fix(line.as_ref().map_or("-", |line| line.nvidia_action), recovery),
        see: "dmesg -T | grep 'NVRM: Xid'".to_owned(),
    }
}

fn fix(action: &str, recovery: Option<u32>) -> String {
    let again = "then run the doctor again";
    match (recovery, action) {
        (Some(action @ 1..), _) => {
            format!("do what the driver asks for, {}, {again}", recovery_name(action))
        }
        (_, "-" | "XID_154") => format!(
            "reset the GPU (nvidia-smi --gpu-reset), {again}; if it comes back, leave the GPU out"
        ),
        (_, "RESTART_BM" | "RESTART_VM") => {
            format!("restart the machine ({action} in NVIDIA's catalog), {again}")
        }
        (_, "RESTART_APP" | "IGNORE") => format!(
            "NVIDIA's catalog says {action}; if it comes back with another program, reset the GPU, {again}"
        ),
        (_, action) => format!("NVIDIA's immediate action is {action}; reset the GPU, {again}"),
    }
}
