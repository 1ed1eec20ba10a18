//! Interfaces and RDMA.

use super::{BASE, Key, Label, Matters, NONE, Scope, agreed, joined, optional};
use crate::{
    doctor::{Demand, Stop, rules::tcp},
    facts::{NodeFacts, RdmaPort},
};

/// A key of the network that a rank sees.
const OF_RANK: Key = Key { scope: Scope::Rank, matters: Matters::Always, ..BASE };

pub(super) static INTERFACE: Key = Key {
    name: "interface of the job",
    rules: &["bootstrap-interface", "gloo-interface"],
    reason: "names may differ as long as NCCL finds one on each node; NCCL_SOCKET_IFNAME must then \
             fit all of them",
    source: "NCCL user guide, NCCL_SOCKET_IFNAME",
    read: |node, _demand| Ok(tcp::chosen(node)?.name.clone()),
    ..OF_RANK
};

pub(super) static MTU: Key = Key {
    name: "MTU of the job's interface",
    rules: &["mtu-mismatch"],
    otherwise: Label::Fatal,
    reason: "small messages pass and large ones are lost: ranks meet, then hang",
    source: "RFC 4821 (black holes); awslabs hyperpod-nccl",
    read: |node, demand| agreed("mtu-mismatch", node, demand),
    ..OF_RANK
};

pub(super) static SPEED: Key = Key {
    name: "speed of the job's interface",
    otherwise: Label::Slow,
    reason: "the exchange of gradients takes as long as the slowest interface needs",
    source: "/sys/class/net/*/speed",
    read: |node, _demand| {
        let speed = tcp::chosen(node)?.speed_mbps;
        speed.map(|mbps| format!("{mbps} Mbit/s")).ok_or_else(|| Stop::skip("it does not tell"))
    },
    ..OF_RANK
};

pub(super) static DEFAULT_ROUTE: Key = Key {
    name: "interface of the default route",
    rules: &["bootstrap-interface"],
    reason: "ranks reach each other over the job's interface, which is compared by itself",
    source: "/proc/net/route",
    read: |node, _demand| optional(&node.network.default_route),
    ..OF_RANK
};

pub(super) static RDMA_DEVICES: Key = Key {
    name: "RDMA ports that are up",
    rules: &["rdma-selector-empty"],
    otherwise: Label::Slow,
    reason: "a node with fewer ports exchanges more slowly; one without any falls back to sockets, \
             and so does every rank that talks to it",
    source: "NCCL user guide, NCCL_IB_HCA; AMD-AGI/Primus",
    read: |node, _demand| {
        let up = active(node)?.into_iter();
        let names: Vec<String> = up.map(|port| format!("{}:{}", port.device, port.port)).collect();
        Ok(joined(names.iter().map(String::as_str)))
    },
    ..BASE
};

pub(super) static RDMA_RATE: Key = Key {
    name: "RDMA rate",
    otherwise: Label::Slow,
    reason: "all ranks wait for the slowest port at every step",
    source: "leptonai/gpud (expected rates)",
    read: |node, _demand| {
        let rates = distinct(node, |port| Some(format!("{} Gbit/s", port.rate_gbps?)))?;
        Ok(joined(rates.iter().map(String::as_str)))
    },
    ..BASE
};

pub(super) static RDMA_LAYER: Key = Key {
    name: "RDMA link layer",
    otherwise: Label::Fatal,
    reason: "InfiniBand and Ethernet ports do not reach each other",
    source: "NCCL user guide, troubleshooting (InfiniBand and RoCE)",
    read: |node, _demand| {
        let layers = distinct(node, |port| Some(port.link_layer.clone()))?;
        if layers.is_empty() {
            return Err(Stop::skip("no RDMA port is up: the ports are compared by themselves"));
        }
        Ok(joined(layers.iter().map(String::as_str)))
    },
    ..BASE
};

pub(super) static RDMA_FIRMWARE: Key = Key {
    name: "firmware of RDMA cards",
    reason: "it breaks nothing by itself; look at it first when one node is slow",
    source: "AMD-AGI/Primus preflight, drift table; imbue-ai/cluster-health",
    read: |node, demand| agreed("nic-firmware-skew", node, demand),
    ..BASE
};

pub(super) static RDMA_DRIVER: Key = Key {
    name: "kernel driver of RDMA cards",
    otherwise: Label::Slow,
    reason: "cards of different makers agree on few features, and the slowest sets the pace",
    source: "AMD-AGI/Primus preflight (HCA type)",
    read: |node, _demand| {
        let drivers = distinct(node, |port| port.driver.clone())?;
        Ok(joined(drivers.iter().map(String::as_str)))
    },
    ..BASE
};

pub(super) static GIDS: Key = Key {
    name: "kinds of RoCE addresses",
    rules: &["gid-mismatch"],
    otherwise: Label::Slow,
    reason: "NCCL chooses an address that both sides have; entries of version 1 are not routed",
    source: "NCCL user guide, NCCL_IB_GID_INDEX; AMD-AGI/Primus (GIDs)",
    read: |node, _demand| {
        let ports = active(node)?;
        let roce = ports.iter().filter(|port| port.link_layer == "Ethernet");
        let kinds: Vec<&str> =
            roce.flat_map(|port| &port.gids).map(|gid| gid.kind.as_str()).collect();
        if kinds.is_empty() {
            return Err(Stop::skip("no RoCE port is active"));
        }
        Ok(joined(kinds))
    },
    ..BASE
};

pub(super) static RDMA_SELECTOR: Key = Key {
    name: "NCCL_IB_HCA",
    scope: Scope::Rank,
    rules: &["rdma-selector-empty"],
    otherwise: Label::Slow,
    reason: "ranks use other cards, and a rail that only one side uses costs a hop",
    source: "NCCL user guide, NCCL_IB_HCA",
    read: selector,
    ..BASE
};

fn selector(node: &NodeFacts, _demand: &Demand) -> Result<String, Stop> {
    let variables = node.env.variables.get()?;
    Ok(variables.get("NCCL_IB_HCA").map_or(NONE, String::as_str).to_owned())
}

fn active(node: &NodeFacts) -> Result<Vec<&RdmaPort>, Stop> {
    let ports = node.network.rdma_ports.get()?;
    Ok(ports.iter().filter(|port| port.state == "ACTIVE").collect())
}

fn distinct(
    node: &NodeFacts,
    read: impl Fn(&RdmaPort) -> Option<String>,
) -> Result<Vec<String>, Stop> {
    Ok(active(node)?.into_iter().filter_map(read).collect())
}
