//! Quality of the interface of the job: `interface-slow`, `interface-errors`, `link-flap`.

use super::tcp::chosen;
use crate::{
    doctor::{Applies, Area, Check, Demand, Judgement, Outcome, Rule, Severity, Stop},
    facts::NodeFacts,
};

pub(super) static INTERFACE_SLOW: Rule = Rule {
    id: "interface-slow",
    summary: "the network carries the gradients in time",
    area: Area::Network,
    severity: Severity::Warn,
    applies: Applies::GpuNodes,
    source: "this project: 10 Gbit/s for gradients of a LoRA of 450 MB in under a second",
    docs: "Without RDMA the gradients of each step go over this interface. At 1 Gbit/s those of \
           the usual LoRA take four seconds, longer than the step.",
    reads: "speed in /sys/class/net/*, /sys/class/infiniband",
    fix: "name a faster interface with NCCL_SOCKET_IFNAME, or use RDMA",
    check: Check::Node(slow),
};

pub(super) static INTERFACE_ERRORS: Rule = Rule {
    id: "interface-errors",
    summary: "the interface of the job receives without errors",
    area: Area::Network,
    severity: Severity::Warn,
    applies: Applies::Nodes,
    source: "ip-link(8) statistics; the limit of one packet in 10,000 is our own",
    docs: "Damaged packets are lost, and TCP waits and sends again. One in ten thousand is enough \
           to halve the speed of a fast link. The cause is a cable, a transceiver or a port.",
    reads: "statistics in /sys/class/net/*",
    fix: "change the cable or transceiver",
    check: Check::Node(errors),
};

pub(super) static LINK_FLAP: Rule = Rule {
    id: "link-flap",
    summary: "the link of the job's interface stays up",
    area: Area::Network,
    severity: Severity::Warn,
    applies: Applies::Nodes,
    source: "Azure NHC (5 in 24 h); the limit of 20 since boot is our own",
    docs: "Every change of the carrier is a link that went down or came up. A few belong to the \
           boot; dozens are a link that fails and comes back, and each time ranks stop or break.",
    reads: "carrier_changes in /sys/class/net/*",
    fix: "change the cable or transceiver; look at the port of the switch",
    check: Check::Node(flap),
};

fn slow(node: &NodeFacts, demand: &Demand) -> Outcome {
    const WANTED_MBPS: u32 = 10_000;
    if node.network.rdma_ports.get()?.iter().any(|port| port.state == "ACTIVE") {
        return Err(Stop::skip("gradients go over RDMA"));
    }
    let interface = chosen(node)?;
    let Some(speed) = interface.speed_mbps else {
        return Err(Stop::skip("the interface does not tell its speed"));
    };
    let problem = (speed < WANTED_MBPS).then(|| {
        INTERFACE_SLOW.problem(
            format!("{} has {speed} Mbit/s ({WANTED_MBPS} wanted)", interface.name),
            format!("every step of {} waits for the exchange", demand.name()),
            format!("cat /sys/class/net/{}/speed", interface.name),
        )
    });
    let required = format!("at least {WANTED_MBPS} Mbit/s");
    Judgement::of(&node.network.interfaces, speed, required, problem)
}

fn errors(node: &NodeFacts, demand: &Demand) -> Outcome {
    let interface = chosen(node)?;
    let Some(counters) = interface.counters else {
        return Err(Stop::skip("the interface does not count packets"));
    };
    let problem =
        (counters.packets / 10_000 < counters.errors && 100 < counters.errors).then(|| {
            INTERFACE_ERRORS.problem(
                format!(
                    "{} damaged packets of {} on {}",
                    counters.errors, counters.packets, interface.name
                ),
                format!("the exchange of {} waits for packets that are sent again", demand.name()),
                format!("ip -s link show {}", interface.name),
            )
        });
    Judgement::of(&node.network.interfaces, counters.errors, "at most one in 10,000", problem)
}

fn flap(node: &NodeFacts, demand: &Demand) -> Outcome {
    const MANY: u64 = 20;
    let interface = chosen(node)?;
    let Some(counters) = interface.counters else {
        return Err(Stop::skip("the interface does not count changes"));
    };
    let changes = counters.carrier_changes;
    let problem = (MANY < changes).then(|| {
        LINK_FLAP.problem(
            format!("the link of {} changed {changes} times since boot", interface.name),
            format!("connections of {} may break", demand.name()),
            format!("cat /sys/class/net/{}/carrier_changes", interface.name),
        )
    });
    Judgement::of(&node.network.interfaces, changes, format!("at most {MANY}"), problem)
}
