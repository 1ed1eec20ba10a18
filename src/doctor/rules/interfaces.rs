//! `bootstrap-interface`, `virtual-interface-first`, `ib-disabled-leftover`.

use crate::{
    doctor::{Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Problem, Rule, Severity},
    facts::{Interface, NodeFacts},
};

pub(super) static BOOTSTRAP_INTERFACE: Rule = Rule {
    id: "bootstrap-interface",
    summary: "NCCL_SOCKET_IFNAME names an interface that reaches other nodes",
    area: Area::Network,
    severity: Severity::Block,
    applies: Applies::Nodes,
    source: "NCCL user guide, NCCL_SOCKET_IFNAME; AMD-AGI/Primus",
    docs: "Ranks first meet over TCP. An interface that does not exist, is down or has no address \
           on one of the nodes makes all ranks wait.",
    reads: "/sys/class/net, getifaddrs, NCCL_SOCKET_IFNAME",
    fix: "set NCCL_SOCKET_IFNAME to an interface of all nodes, or unset it",
    check: Check::Node(bootstrap),
};

pub(super) static VIRTUAL_INTERFACE_FIRST: Rule = Rule {
    id: "virtual-interface-first",
    summary: "NCCL does not choose a bridge between containers",
    area: Area::Network,
    severity: Severity::Warn,
    applies: Applies::GpuNodes,
    source: "awslabs hyperpod-nccl (^lo,docker,efa,veth,virbr)",
    docs: "Without NCCL_SOCKET_IFNAME NCCL takes the first interface that is up and is not lo or \
           docker. A bridge or tunnel that comes first has an address that other nodes cannot reach.",
    reads: "/sys/class/net, getifaddrs",
    fix: "export NCCL_SOCKET_IFNAME=^lo,docker,veth,virbr,cni",
    check: Check::Node(virtual_first),
};

pub(super) static IB_DISABLED_LEFTOVER: Rule = Rule {
    id: "ib-disabled-leftover",
    summary: "NCCL may use the InfiniBand that is there",
    area: Area::Network,
    severity: Severity::Warn,
    applies: Applies::GpuNodes,
    source: "NCCL user guide, NCCL_IB_DISABLE",
    docs: "NCCL_IB_DISABLE=1 is often set while looking for a fault, and stays. Then everything \
           goes over TCP, ten times slower; set on some nodes only, the ranks fail to connect.",
    reads: "NCCL_IB_DISABLE, /sys/class/infiniband",
    fix: "unset NCCL_IB_DISABLE on all nodes",
    check: Check::Node(ib_disabled),
};

/// Whether NCCL's selector takes this interface: prefixes, `^` excludes, `=` exact.
pub(in crate::doctor) fn selects(selector: &str, name: &str) -> bool {
    let (exclude, rest) = match selector.strip_prefix('^') {
        Some(rest) => (true, rest),
        None => (false, selector),
    };
    let (exact, rest) = match rest.strip_prefix('=') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let hit = rest
        .split(',')
        .filter(|prefix| !prefix.is_empty())
        .any(|prefix| if exact { name == prefix } else { name.starts_with(prefix) });
    hit != exclude
}

pub(super) fn usable(interface: &Interface) -> bool {
    interface.up && !interface.loopback && !interface.addresses.is_empty()
}

fn names(interfaces: &[Interface]) -> Vec<String> {
    interfaces.iter().map(|interface| interface.name.clone()).collect()
}

fn bootstrap(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.network.interfaces;
    let interfaces = fact.get()?;
    let selector = node.env.variables.get()?.get("NCCL_SOCKET_IFNAME");
    let chosen = |interface: &&Interface| {
        usable(interface) && selector.is_none_or(|selector| selects(selector, &interface.name))
    };
    let first = interfaces.iter().find(chosen).map(|interface| interface.name.as_str());
    let evidence = Evidence::of(fact, first, "an interface that is up and has an address");
    let problem = first.is_none().then(|| Problem {
        severity: Severity::Block,
        what: match selector {
            Some(selector) => format!(
                "NCCL_SOCKET_IFNAME={selector} selects no usable interface of {}",
                names(interfaces).join(", ")
            ),
            None => "no interface besides the loopback is up and has an address".to_owned(),
        },
        impact: format!("ranks of {} on this node cannot reach the others", demand.name()),
        fix: "set NCCL_SOCKET_IFNAME to an interface that exists on all nodes, or unset it"
            .to_owned(),
        see: "ip -br addr; echo $NCCL_SOCKET_IFNAME".to_owned(),
    });
    Ok(Judgement::from_option(problem, evidence))
}

fn virtual_first(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.network.interfaces;
    let interfaces = fact.get()?;
    let selector = node.env.variables.get()?.get("NCCL_SOCKET_IFNAME");
    let first = interfaces
        .iter()
        .filter(|interface| usable(interface) && !interface.name.starts_with("docker"))
        .find(|interface| selector.is_none_or(|selector| selects(selector, &interface.name)));
    let evidence = Evidence::of(
        fact,
        first.map(|interface| interface.name.as_str()),
        "not a bridge or tunnel",
    );
    // In a container the only interface is virtual, and reaches others through the host.
    let in_container = node.container.kind.value().is_some_and(Option::is_some);
    let problem = first.filter(|first| first.is_virtual && !in_container).map(|first| Problem {
        severity: Severity::Warn,
        what: format!("NCCL would choose `{}`, which has no hardware behind it", first.name),
        impact: format!("ranks of {} on other nodes may not reach this address", demand.name()),
        fix: "export NCCL_SOCKET_IFNAME=^lo,docker,veth,virbr,cni on all nodes".to_owned(),
        see: "ip -br addr".to_owned(),
    });
    Ok(Judgement::from_option(problem, evidence))
}

fn ib_disabled(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.network.rdma_ports;
    let active = fact.get()?.iter().filter(|port| port.state == "ACTIVE").count();
    let value = node.env.variables.get()?.get("NCCL_IB_DISABLE").map_or("0", String::as_str);
    let evidence = Evidence::of(
        fact,
        format!("{active} active ports, NCCL_IB_DISABLE={value}"),
        "not disabled",
    );
    let problem = (value == "1" && 0 < active).then(|| Problem {
        severity: Severity::Warn,
        what: format!("NCCL_IB_DISABLE=1, although {active} RDMA ports are active"),
        impact: format!("{} exchanges gradients over TCP, many times slower", demand.name()),
        fix: "unset NCCL_IB_DISABLE on all nodes".to_owned(),
        see: "echo $NCCL_IB_DISABLE; cat /sys/class/infiniband/*/ports/*/state".to_owned(),
    });
    Ok(Judgement::from_option(problem, evidence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_means_what_it_means_to_nccl() {
        assert!(selects("eth", "eth0") && !selects("=eth", "eth0"));
        assert!(!selects("^docker,lo", "docker0") && selects("^docker,lo", "ens5"));
    }
}
