//! Interfaces and TCP: `mtu-mismatch`, `gloo-interface`, `subnet-disjoint`, `address-clash`,
//! `somaxconn-low`, `rp-filter-strict`, `conntrack-full`.

use core::net::Ipv4Addr;
use std::collections::{BTreeMap, BTreeSet};

use super::interfaces::{selects, usable};
use crate::{
    doctor::{
        Agreement, Applies, Area, Check, Conflict, Demand, Evidence, Judgement, Outcome, Rule,
        Severity, Stop,
    },
    facts::{Interface, NodeFacts, NodeName, Snapshot},
};

pub(super) static MTU_MISMATCH: Rule = Rule {
    id: "mtu-mismatch",
    summary: "the interface of the job has one MTU on all nodes",
    area: Area::Network,
    severity: Severity::Block,
    applies: Applies::Nodes,
    source: "awslabs hyperpod-nccl; RFC 4821 (black holes)",
    docs: "A node that sends large packets to one that takes only small ones loses them, if the \
           way in between does not say so. Small messages pass, so ranks meet, and the first \
           large exchange hangs.",
    reads: "mtu of the interface that NCCL would choose, on all nodes",
    fix: "ip link set dev <interface> mtu <value of the majority>",
    check: Check::Agree(Agreement {
        what: "MTU of the job's interface",
        read: |node, _demand| {
            let interface = chosen(node)?;
            let Some(mtu) = interface.mtu_bytes else {
                return Err(Stop::skip("the interface does not tell its MTU"));
            };
            Ok(mtu.to_string())
        },
        impact: "small messages pass and large ones are lost: ranks meet, then hang",
        fix: "set one MTU on all nodes: ip link set dev <interface> mtu <value>",
        see: "ip -br link; ping -M do -s 8972 <other node>",
    }),
};

pub(super) static GLOO_INTERFACE: Rule = Rule {
    id: "gloo-interface",
    summary: "GLOO_SOCKET_IFNAME names an interface that is there",
    area: Area::Network,
    severity: Severity::Block,
    applies: Applies::Nodes,
    source: "https://pytorch.org/docs/stable/distributed.html#common-environment-variables",
    docs: "PyTorch's rendezvous and barriers use Gloo, which reads a variable of its own. A name \
           from another machine type ends every rank at start.",
    reads: "GLOO_SOCKET_IFNAME, /sys/class/net",
    fix: "set it to the interface of NCCL_SOCKET_IFNAME, or unset it",
    check: Check::Node(gloo),
};

pub(super) static SUBNET_DISJOINT: Rule = Rule {
    id: "subnet-disjoint",
    summary: "the nodes have a subnet in common",
    area: Area::Network,
    severity: Severity::Warn,
    applies: Applies::Nodes,
    source: "AMD-AGI/Primus (mutually routable subnet)",
    docs: "When no subnet is on all nodes, ranks reach each other only if routers pass the \
           traffic. That may be meant. Often it means that NCCL would choose the interface for \
           management on one node and the fast one on another.",
    reads: "getifaddrs, NCCL_SOCKET_IFNAME on all nodes",
    fix: "name the interface of the common network with NCCL_SOCKET_IFNAME",
    check: Check::Fleet(subnets),
};

pub(super) static ADDRESS_CLASH: Rule = Rule {
    id: "address-clash",
    summary: "no two nodes have the same address",
    area: Area::Network,
    severity: Severity::Block,
    applies: Applies::Nodes,
    source: "RFC 5227 (address conflicts)",
    docs: "Two machines with one address answer in turns, so ranks reach the wrong one. Cloned \
           machines and a bridge of containers with the same range on every host do that; bridges \
           are not judged.",
    reads: "getifaddrs on all nodes",
    fix: "give the cloned machine an address of its own",
    check: Check::Fleet(address_clash),
};

pub(super) static SOMAXCONN_LOW: Rule = Rule {
    id: "somaxconn-low",
    summary: "all ranks may knock at rank 0 at the same time",
    area: Area::Network,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "listen(2), net.core.somaxconn",
    docs: "All ranks connect to rank 0 in the same moment. Connections beyond this number are \
           dropped and tried again after seconds.",
    reads: "/proc/sys/net/core/somaxconn",
    fix: "sysctl net.core.somaxconn=4096",
    check: Check::Node(somaxconn),
};

pub(super) static RP_FILTER_STRICT: Rule = Rule {
    id: "rp-filter-strict",
    summary: "packets may come back on another interface",
    area: Area::Network,
    severity: Severity::Warn,
    applies: Applies::Nodes,
    source: "https://docs.kernel.org/networking/ip-sysctl.html (rp_filter)",
    docs: "With several interfaces in one network NCCL uses them all. In strict mode the kernel \
           drops packets that come in on another interface than the one it would answer on.",
    reads: "/proc/sys/net/ipv4/conf/all/rp_filter, getifaddrs",
    fix: "sysctl net.ipv4.conf.all.rp_filter=2",
    check: Check::Node(rp_filter),
};

pub(super) static CONNTRACK_FULL: Rule = Rule {
    id: "conntrack-full",
    summary: "the firewall has room for more connections",
    area: Area::Network,
    severity: Severity::Warn,
    applies: Applies::Nodes,
    source: "https://docs.kernel.org/networking/nf_conntrack-sysctl.html",
    docs: "The kernel keeps a table of all connections. When it is full, new ones are dropped \
           without an answer, and ranks wait at start.",
    reads: "/proc/sys/net/netfilter/nf_conntrack_count, nf_conntrack_max",
    fix: "sysctl net.netfilter.nf_conntrack_max=1048576",
    check: Check::Node(conntrack),
};

/// The interface that NCCL would choose.
pub(in crate::doctor) fn chosen(node: &NodeFacts) -> Result<&Interface, Stop> {
    let interfaces = node.network.interfaces.get()?;
    let selector = node.env.variables.get()?.get("NCCL_SOCKET_IFNAME");
    let fits = |interface: &&Interface| {
        usable(interface)
            && selector.map_or(!interface.name.starts_with("docker"), |selector| {
                selects(selector, &interface.name)
            })
    };
    let none = || Stop::skip("no interface can be used: see bootstrap-interface");
    interfaces.iter().find(fits).ok_or_else(none)
}

fn gloo(node: &NodeFacts, demand: &Demand) -> Outcome {
    let Some(name) = node.env.variables.get()?.get("GLOO_SOCKET_IFNAME") else {
        return Err(Stop::skip("GLOO_SOCKET_IFNAME is not set"));
    };
    let fact = &node.network.interfaces;
    let interfaces = fact.get()?;
    // Gloo takes exact names.
    let found = name.split(',').all(|one| interfaces.iter().any(|i| i.name == one && usable(i)));
    let names: Vec<String> = interfaces.iter().map(|interface| interface.name.clone()).collect();
    let problem = (!found).then(|| {
        GLOO_INTERFACE.problem(
            format!("GLOO_SOCKET_IFNAME={name}, but there are {}", names.join(", ")),
            format!("ranks of {} end at start", demand.name()),
            "ip -br addr; echo $GLOO_SOCKET_IFNAME",
        )
    });
    Judgement::of(fact, names.clone(), name.as_str(), problem)
}

/// `10.0.0.7/24` is in `10.0.0.0/24`; only version 4 addresses have a length here.
fn subnet(address: &str) -> Option<String> {
    let (ip, bits) = address.split_once('/')?;
    let (ip, bits): (Ipv4Addr, u32) = (ip.parse().ok()?, bits.parse().ok()?);
    let mask = if bits == 0 { 0 } else { u32::MAX.checked_shl(32_u32.checked_sub(bits)?)? };
    Some(format!("{}/{bits}", Ipv4Addr::from(u32::from(ip) & mask)))
}

/// Interfaces whose addresses other nodes can mean.
fn outward(node: &NodeFacts) -> Result<Vec<&Interface>, Stop> {
    let selector = node.env.variables.get()?.get("NCCL_SOCKET_IFNAME");
    let in_container = node.container.kind.get()?.is_some();
    let interfaces = node.network.interfaces.get()?.iter();
    Ok(interfaces
        .filter(|interface| usable(interface) && (in_container || !interface.is_virtual))
        .filter(|interface| selector.is_none_or(|selector| selects(selector, &interface.name)))
        .collect())
}

fn subnets(snapshot: &Snapshot, demand: &Demand) -> Outcome {
    let mut judgement = Judgement::default();
    let mut common: Option<BTreeSet<String>> = None;
    let mut text = Vec::new();
    for (name, node) in &snapshot.nodes {
        let own: BTreeSet<String> = match outward(node) {
            Ok(interfaces) => {
                interfaces.iter().flat_map(|i| &i.addresses).filter_map(|a| subnet(a)).collect()
            }
            Err(Stop::Unknown(unread)) => {
                judgement.unknown.push(unread);
                continue;
            }
            Err(stop @ Stop::Skip(_)) => return Err(stop),
        };
        // Pods of one network have addresses of a single host each.
        if own.is_empty() || own.iter().all(|subnet| subnet.ends_with("/32")) {
            return Err(Stop::skip("a node has no address with a subnet"));
        }
        text.push(format!("{name}: {}", own.iter().cloned().collect::<Vec<_>>().join(" ")));
        common = Some(match common {
            Some(common) => common.intersection(&own).cloned().collect(),
            None => own,
        });
    }
    let none = common.as_ref().is_some_and(BTreeSet::is_empty);
    let shared: Vec<String> = common.into_iter().flatten().collect();
    judgement.evidence.push(Evidence::new("getifaddrs", shared, "at least one on all nodes"));
    if none {
        judgement.problems.push(SUBNET_DISJOINT.problem(
            format!("no subnet is on all nodes: {}", text.join("; ")),
            format!("ranks of {} reach each other only through routers, if at all", demand.name()),
            "ip -br addr; ip route get <other node>",
        ));
    }
    Ok(judgement)
}

#[expect(clippy::unnecessary_wraps, reason = "every check has this type")]
fn address_clash(snapshot: &Snapshot, demand: &Demand) -> Outcome {
    let mut judgement = Judgement::default();
    let mut nodes_by_address: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, node) in &snapshot.nodes {
        let interfaces = match node.network.interfaces.get() {
            Ok(interfaces) => interfaces,
            Err(unread) => {
                judgement.unknown.push(unread);
                continue;
            }
        };
        for interface in interfaces.iter().filter(|i| !i.is_virtual && !i.loopback) {
            for address in interface.addresses.iter().filter(|a| !a.starts_with("fe80:")) {
                let ip = address.split('/').next().unwrap_or(address);
                nodes_by_address.entry(ip).or_default().push(&name.0);
            }
        }
    }
    for nodes in nodes_by_address.values().filter(|nodes| 1 < nodes.len()) {
        // One node may have an address twice.
        let nodes: BTreeSet<&str> = nodes.iter().copied().collect();
        let nodes = nodes.into_iter().map(|name| NodeName(name.to_owned()));
        judgement.conflicts.push(Conflict::of_twins(nodes));
    }
    let clash = nodes_by_address.iter().find(|(_ip, nodes)| 1 < nodes.len());
    if let Some((ip, nodes)) = clash {
        judgement.problems.push(ADDRESS_CLASH.problem(
            format!("{ip} is an address of {}", nodes.join(" and ")),
            format!("ranks of {} reach the wrong machine", demand.name()),
            "ip -br addr; arping -D -I <interface> <address>",
        ));
    }
    judgement.evidence.push(Evidence::new("getifaddrs", nodes_by_address.len(), "each once"));
    Ok(judgement)
}

fn somaxconn(node: &NodeFacts, demand: &Demand) -> Outcome {
    let (fact, limit) = super::setting(node, "net.core.somaxconn")?;
    let ranks = u64::from(demand.ranks.unwrap_or_else(|| demand.ranks_on(node) * demand.nodes));
    let problem = (limit < ranks).then(|| {
        SOMAXCONN_LOW.problem(
            format!("{limit} connections may wait, {ranks} ranks will connect"),
            format!("the start of {} takes longer, or fails at its time limit", demand.name()),
            "sysctl net.core.somaxconn",
        )
    });
    Judgement::of(fact, limit, format!("at least {ranks}"), problem)
}

fn rp_filter(node: &NodeFacts, demand: &Demand) -> Outcome {
    let (fact, mode) = super::setting(node, "net.ipv4.conf.all.rp_filter")?;
    let mut seen = BTreeMap::new();
    for interface in outward(node)? {
        for subnet in interface.addresses.iter().filter_map(|address| subnet(address)) {
            *seen.entry(subnet).or_insert(0) += 1;
        }
    }
    if seen.values().all(|count| *count < 2) {
        return Err(Stop::skip("no two interfaces are in one network"));
    }
    let problem = (mode == 1).then(|| {
        RP_FILTER_STRICT.problem(
            "several interfaces are in one network, and rp_filter is strict (1)",
            format!("some connections of {} hang at start", demand.name()),
            "sysctl net.ipv4.conf.all.rp_filter; ip -br addr",
        )
    });
    Judgement::of(fact, mode, "0 or 2", problem)
}

fn conntrack(node: &NodeFacts, demand: &Demand) -> Outcome {
    let (fact, count) = super::setting(node, "net.netfilter.nf_conntrack_count")?;
    let (_fact, max) = super::setting(node, "net.netfilter.nf_conntrack_max")?;
    let problem = (0 < max && max / 5 * 4 < count).then(|| {
        CONNTRACK_FULL.problem(
            format!("{count} of {max} connections are in the table"),
            format!("connections of {} may be dropped at start", demand.name()),
            "sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_max",
        )
    });
    Judgement::of(fact, count, format!("at most 80 % of {max}"), problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_its_subnet() {
        assert_eq!(subnet("10.0.5.7/22").as_deref(), Some("10.0.4.0/22"));
        assert_eq!(subnet("10.0.5.7/0").as_deref(), Some("0.0.0.0/0"));
        assert_eq!(subnet("10.0.5.7/33"), None);
        assert_eq!(subnet("fe80::1"), None);
    }
}
