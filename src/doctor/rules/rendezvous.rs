//! Where ranks meet: `master-addr`, `master-not-local`, `dns-unresolved`, `tcp-unreachable`,
//! `hostname-loopback`, `port-ephemeral`, `nccl-hostid-clash`, `machine-id-clash`.

use core::net::IpAddr;
use std::collections::BTreeMap;

use crate::{
    doctor::{
        Applies, Area, Check, Conflict, Demand, Evidence, Judgement, Outcome, Problem, Rule,
        Severity, Stop,
    },
    facts::{MasterAddress, NodeFacts, NodeName, Reached, Snapshot, Unread},
};

pub(super) static MASTER_ADDR: Rule = Rule {
    id: "master-addr",
    summary: "MASTER_ADDR means another machine",
    area: Area::Ranks,
    severity: Severity::Block,
    applies: Applies::Nodes,
    source: "https://pytorch.org/docs/stable/elastic/run.html (MASTER_ADDR)",
    docs: "Scripts for one machine set MASTER_ADDR=localhost. On several machines every node then \
           waits for ranks that meet somewhere else, until the time limit.",
    reads: "MASTER_ADDR",
    fix: "set MASTER_ADDR to the name of the node of rank 0, or unset it: the launcher sets it",
    check: Check::Node(loopback),
};

pub(super) static MASTER_NOT_LOCAL: Rule = Rule {
    id: "master-not-local",
    summary: "rank 0 runs where MASTER_ADDR leads",
    area: Area::Ranks,
    severity: Severity::Block,
    applies: Applies::Nodes,
    source: "https://pytorch.org/docs/stable/distributed.html#environment-variable-initialization",
    docs: "Rank 0 listens on its own machine. When MASTER_ADDR is the address of another one, as \
           after a pod got a new address, all ranks knock at a door that nobody opens.",
    reads: "RANK, MASTER_ADDR, getifaddrs",
    fix: "set MASTER_ADDR to an address of this node, or start rank 0 on the other one",
    check: Check::Node(not_local),
};

pub(super) static DNS_UNRESOLVED: Rule = Rule {
    id: "dns-unresolved",
    summary: "MASTER_ADDR has an address",
    area: Area::Network,
    severity: Severity::Block,
    applies: Applies::Always,
    source: "awslabs hyperpod-nccl; Kubernetes, headless services (publishNotReadyAddresses)",
    docs: "A name that does not resolve keeps all ranks from meeting. In Kubernetes the name of a \
           pod resolves through a headless service, and before the pod is ready only with \
           publishNotReadyAddresses.",
    reads: "getaddrinfo of MASTER_ADDR",
    fix: "correct the name; in Kubernetes, a headless service with publishNotReadyAddresses: true",
    check: Check::Node(unresolved),
};

pub(super) static TCP_UNREACHABLE: Rule = Rule {
    id: "tcp-unreachable",
    summary: "the ports that --reach names answer",
    area: Area::Network,
    severity: Severity::Block,
    applies: Applies::Always,
    source: "awslabs hyperpod-nccl (ports 29400-29500); connect(2)",
    docs: "A firewall, a network policy or a sidecar of a service mesh drops connections between \
           ranks, and NCCL waits for minutes. An answer that nothing listens is fine: the way is \
           free. Only asked for with --reach HOST:PORT.",
    reads: "connect(2) to each --reach, a second at most",
    fix: "open the ports between the nodes; in Kubernetes, a NetworkPolicy for the job's pods, and sidecar.istio.io/inject: \"false\"",
    check: Check::Node(unreachable),
};

pub(super) static HOSTNAME_LOOPBACK: Rule = Rule {
    id: "hostname-loopback",
    summary: "the node's own name is not a loopback address",
    area: Area::Network,
    severity: Severity::Warn,
    applies: Applies::Nodes,
    source: "pytorch/pytorch (Gloo binds to the address of the host name); Debian's 127.0.1.1",
    docs: "Installers write the host name beside 127.0.1.1 into /etc/hosts. Programs that look up \
           their own name to tell others where they are, as Gloo does, then tell an address that \
           leads every node to itself.",
    reads: "/etc/hosts, /proc/sys/kernel/hostname",
    fix: "replace 127.0.1.1 by the node's address in /etc/hosts, or set GLOO_SOCKET_IFNAME",
    check: Check::Node(hostname),
};

pub(super) static PORT_EPHEMERAL: Rule = Rule {
    id: "port-ephemeral",
    summary: "the port of rank 0 is not one that others may get by chance",
    area: Area::Network,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "https://docs.kernel.org/networking/ip-sysctl.html (ip_local_port_range)",
    docs: "The kernel gives outgoing connections ports from a range. When rank 0 listens inside \
           of it, now and then another program has the port already, and the job fails once in \
           many starts.",
    reads: "MASTER_PORT, /proc/sys/net/ipv4/ip_local_port_range",
    fix: "choose a MASTER_PORT below the range, such as 29500",
    check: Check::Node(ephemeral),
};

pub(super) static NCCL_HOSTID_CLASH: Rule = Rule {
    id: "nccl-hostid-clash",
    summary: "NCCL_HOSTID is different on all nodes",
    area: Area::Fleet,
    severity: Severity::Block,
    applies: Applies::GpuNodes,
    source: "NCCL user guide, NCCL_HOSTID",
    docs: "The variable says which ranks are on one machine. One value for all nodes, as from an \
           image or a job template, makes NCCL use shared memory between machines.",
    reads: "NCCL_HOSTID on all nodes",
    fix: "unset NCCL_HOSTID, or set it to the host name",
    check: Check::Fleet(hostid),
};

pub(super) static MACHINE_ID_CLASH: Rule = Rule {
    id: "machine-id-clash",
    summary: "no two nodes are clones that were not told apart",
    area: Area::Fleet,
    severity: Severity::Warn,
    applies: Applies::Nodes,
    source: "machine-id(5)",
    docs: "A machine that was copied with its machine-id gets the same address from DHCP, mixes \
           its journal with its twin's, and shares what programs derive from the id. Containers \
           of one image are not judged.",
    reads: "/etc/machine-id on all nodes",
    fix: "rm /etc/machine-id && systemd-machine-id-setup on the clone, then reboot",
    check: Check::Fleet(machine_id),
};

fn address(node: &NodeFacts) -> Result<&MasterAddress, Stop> {
    let address = node.network.master_address.get()?.as_ref();
    address.ok_or_else(|| Stop::skip("MASTER_ADDR is not set: the launcher sets it"))
}

fn is_loopback(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified())
}

fn loopback(node: &NodeFacts, demand: &Demand) -> Outcome {
    let master = address(node)?;
    let local = master.name == "localhost" || master.addresses.iter().any(|ip| is_loopback(ip));
    let problem = local.then(|| {
        MASTER_ADDR.problem(
            format!("MASTER_ADDR={} is this machine on every node", master.name),
            format!("ranks of {} wait for each other in vain", demand.name()),
            "echo $MASTER_ADDR; getent hosts $MASTER_ADDR",
        )
    });
    Judgement::of(&node.network.master_address, master.name.as_str(), "not a loopback", problem)
}

fn not_local(node: &NodeFacts, demand: &Demand) -> Outcome {
    let master = address(node)?;
    let rank = node.env.variables.get()?.get("RANK");
    if rank.map(String::as_str) != Some("0") {
        return Err(Stop::skip("this is not the node of rank 0, as far as RANK says"));
    }
    if master.addresses.is_empty() || master.addresses.iter().any(|ip| is_loopback(ip)) {
        return Err(Stop::skip("another check explains MASTER_ADDR"));
    }
    let own: Vec<&str> = node
        .network
        .interfaces
        .get()?
        .iter()
        .flat_map(|interface| &interface.addresses)
        .map(|address| address.split('/').next().unwrap_or(address))
        .collect();
    let here = master.addresses.iter().any(|ip| own.contains(&ip.as_str()));
    let problem = (!here).then(|| {
        MASTER_NOT_LOCAL.problem(
            format!(
                "RANK=0 is here, but MASTER_ADDR={} is {}",
                master.name,
                master.addresses.join(", ")
            ),
            format!("no rank of {} reaches rank 0", demand.name()),
            "ip -br addr; getent hosts $MASTER_ADDR",
        )
    });
    let list = master.addresses.clone();
    Judgement::of(&node.network.master_address, list, "an address of this node", problem)
}

fn unresolved(node: &NodeFacts, demand: &Demand) -> Outcome {
    let master = address(node)?;
    let problem = master.addresses.is_empty().then(|| {
        let error = master.error.as_deref().unwrap_or("no address");
        DNS_UNRESOLVED.problem(
            format!("MASTER_ADDR={} does not resolve: {error}", master.name),
            format!("ranks of {} cannot meet", demand.name()),
            "getent hosts $MASTER_ADDR",
        )
    });
    let list = master.addresses.clone();
    Judgement::of(&node.network.master_address, list, "at least one address", problem)
}

fn unreachable(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.network.reach;
    let tries = fact.get()?;
    if tries.is_empty() {
        return Err(Stop::skip("no port was named (--reach HOST:PORT)"));
    }
    let mut judgement = Judgement::default();
    for reach in tries {
        let (text, failed) = match &reach.result {
            Reached::Connected => ("connected".to_owned(), false),
            Reached::Refused => ("nothing listens, the way is free".to_owned(), false),
            Reached::Failed { message } => (message.clone(), true),
        };
        let evidence = Evidence::of(fact, text.as_str(), "an answer");
        judgement.evidence.push(evidence.about(reach.target.as_str()));
        if failed {
            let host = reach.target.split(':').next().unwrap_or(&reach.target);
            judgement.problems.push(TCP_UNREACHABLE.problem(
                format!("{}: {text}", reach.target),
                format!("ranks of {} cannot connect, and wait for minutes", demand.name()),
                format!("nc -vz {} ; traceroute {host}", reach.target.replace(':', " ")),
            ));
        }
    }
    Ok(judgement)
}

fn hostname(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.network.own_name;
    let addresses = fact.get()?;
    let bad = !addresses.is_empty() && addresses.iter().all(|ip| is_loopback(ip));
    let problem = bad.then(|| {
        HOSTNAME_LOOPBACK.problem(
            format!("/etc/hosts gives the own name {}", addresses.join(", ")),
            format!("other nodes of {} may be told to connect to themselves", demand.name()),
            "getent hosts $(hostname)",
        )
    });
    Judgement::of(fact, addresses.clone(), "no loopback address", problem)
}

fn ephemeral(node: &NodeFacts, demand: &Demand) -> Outcome {
    let Some(port) = node.env.variables.get()?.get("MASTER_PORT") else {
        return Err(Stop::skip("MASTER_PORT is not set: the launcher chooses a free port"));
    };
    let range = super::setting_text(node, "net.ipv4.ip_local_port_range")?;
    let mut ends = range.split_whitespace().map_while(|end| end.parse::<u32>().ok());
    let (Some(low), Some(high), Ok(number)) = (ends.next(), ends.next(), port.parse::<u32>())
    else {
        return Err(Stop::skip("the port or the range is not a number"));
    };
    let inside = (low..=high).contains(&number);
    let problem = inside.then(|| {
        PORT_EPHEMERAL.problem(
            format!("MASTER_PORT={port} is in the range {low}-{high} of outgoing connections"),
            format!("now and then the start of {} fails because the port is taken", demand.name()),
            "sysctl net.ipv4.ip_local_port_range; echo $MASTER_PORT",
        )
    });
    Judgement::of(&node.system.sysctl, number, format!("not in {low}-{high}"), problem)
}

/// Nodes that share a value that must be theirs alone.
fn shared(
    snapshot: &Snapshot,
    read: impl Fn(&NodeFacts) -> Result<Option<String>, Unread>,
    problem: impl Fn(&str, &str) -> Problem,
    what: &str,
) -> Outcome {
    let mut judgement = Judgement::default();
    let mut nodes_by_value: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (name, node) in &snapshot.nodes {
        match read(node) {
            Ok(Some(value)) => nodes_by_value.entry(value).or_default().push(&name.0),
            Ok(None) => {}
            Err(unread) => judgement.unknown.push(unread),
        }
    }
    if nodes_by_value.is_empty() && judgement.unknown.is_empty() {
        return Err(Stop::skip(format!("no node has {what}")));
    }
    judgement.evidence.push(Evidence::new(what, nodes_by_value.len(), "each once"));
    for (value, nodes) in nodes_by_value.iter().filter(|(_value, nodes)| 1 < nodes.len()) {
        judgement.problems.push(problem(value, &nodes.join(", ")));
        let twins = nodes.iter().map(|name| NodeName((*name).to_owned()));
        judgement.conflicts.push(Conflict::of_twins(twins));
    }
    Ok(judgement)
}

fn hostid(snapshot: &Snapshot, demand: &Demand) -> Outcome {
    let read = |node: &NodeFacts| Ok(node.env.variables.get()?.get("NCCL_HOSTID").cloned());
    let problem = |value: &str, nodes: &str| {
        NCCL_HOSTID_CLASH.problem(
            format!("NCCL_HOSTID={value} on {nodes}"),
            format!("NCCL takes them for one machine; ranks of {} hang or fail", demand.name()),
            "echo $NCCL_HOSTID",
        )
    };
    shared(snapshot, read, problem, "NCCL_HOSTID")
}

fn machine_id(snapshot: &Snapshot, demand: &Demand) -> Outcome {
    let read = |node: &NodeFacts| {
        let id = node.identity.machine_id.get()?;
        let in_container = node.container.kind.get()?.is_some();
        Ok((!in_container && !id.is_empty()).then(|| id.clone()))
    };
    let problem = |value: &str, nodes: &str| {
        MACHINE_ID_CLASH.problem(
            format!("{nodes} have the machine-id {value}"),
            format!("addresses and journals of nodes of {} are mixed up", demand.name()),
            "cat /etc/machine-id",
        )
    };
    shared(snapshot, read, problem, "a machine-id")
}
