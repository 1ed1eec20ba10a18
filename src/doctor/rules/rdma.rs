//! RDMA: `rdma-port-down`, `rdma-rate-low`, `rdma-errors`, `nic-firmware-skew`, `gid-mismatch`,
//! `gpudirect-missing`, `rdma-selector-empty`, `net-plugin-missing`.

use std::collections::{BTreeMap, BTreeSet};

use super::interfaces::selects;
use crate::{
    doctor::{
        Agreement, Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Rule, Severity,
        Stop, table,
    },
    facts::{NodeFacts, RdmaPort, Snapshot},
};

pub(super) static RDMA_PORT_DOWN: Rule = Rule {
    id: "rdma-port-down",
    summary: "all RDMA ports that are switched on are active",
    area: Area::Network,
    severity: Severity::Warn,
    applies: Applies::GpuNodes,
    source: "AMD-AGI/Primus; leptonai/gpud infiniband",
    docs: "NCCL spreads traffic over all cards. With one port down its GPUs use a card farther \
           away or TCP, and all ranks wait for them. A port that somebody disabled is not judged.",
    reads: "state, phys_state in /sys/class/infiniband/*/ports/*",
    fix: "check cable and transceiver; ibstat; or exclude the card with NCCL_IB_HCA=^<card>",
    check: Check::Node(down),
};

pub(super) static RDMA_RATE_LOW: Rule = Rule {
    id: "rdma-rate-low",
    summary: "all RDMA ports have the rate of the fastest",
    area: Area::Network,
    severity: Severity::Warn,
    applies: Applies::GpuNodes,
    source: "leptonai/gpud (expected rates); the fastest port of the fleet is the measure",
    docs: "A port that agreed on a lower rate with its switch has a bad cable or the wrong \
           setting. All ranks wait for the slowest port at every step.",
    reads: "rate in /sys/class/infiniband/*/ports/* on all nodes",
    fix: "change the cable or transceiver; set the port of the switch to the full rate",
    check: Check::Fleet(rate),
};

pub(super) static RDMA_ERRORS: Rule = Rule {
    id: "rdma-errors",
    summary: "RDMA ports counted no errors of the link",
    area: Area::Network,
    severity: Severity::Warn,
    applies: Applies::GpuNodes,
    source: "NVIDIA/NVSentinel (counters and which are fatal); nvidia-resiliency-ext (link_downed)",
    docs: "Links that went down, were trained again or lost data since boot. Traffic goes on \
           after a pause, until it does not: NCCL then ends the job with a completion error.",
    reads: "counters and hw_counters in /sys/class/infiniband/*/ports/*",
    fix: "change the cable or transceiver; clear the counters and look again",
    check: Check::Node(errors),
};

pub(super) static NIC_FIRMWARE_SKEW: Rule = Rule {
    id: "nic-firmware-skew",
    summary: "RDMA cards of one board run one firmware",
    area: Area::Network,
    severity: Severity::Warn,
    applies: Applies::GpuNodes,
    source: "AMD-AGI/Primus preflight, drift table; imbue-ai/cluster-health",
    docs: "Firmware decides about congestion control and adaptive routing. A difference breaks \
           nothing by itself; it is the first thing to look at when one node is slow.",
    reads: "fw_ver, board_id in /sys/class/infiniband/* on all nodes",
    fix: "bring the outliers to the firmware of the majority (mlxfwmanager)",
    check: Check::Agree(Agreement {
        what: "firmware of RDMA cards",
        read: |node, _demand| {
            let ports = node.network.rdma_ports.get()?;
            let versions: BTreeSet<&str> =
                ports.iter().filter_map(|port| port.firmware.as_deref()).collect();
            if versions.is_empty() {
                return Err(Stop::skip("no RDMA card tells its firmware"));
            }
            Ok(versions.into_iter().collect::<Vec<_>>().join(", "))
        },
        impact: "a node may be slower than the others for no reason that logs show",
        fix: "bring the outliers to the firmware of the majority (mlxfwmanager)",
        see: "cat /sys/class/infiniband/*/fw_ver",
    }),
};

pub(super) static GID_MISMATCH: Rule = Rule {
    id: "gid-mismatch",
    summary: "the address index of RoCE is a routable one on all nodes",
    area: Area::Network,
    severity: Severity::Block,
    applies: Applies::GpuNodes,
    source: "NCCL user guide, NCCL_IB_GID_INDEX; AMD-AGI/Primus (GIDs)",
    docs: "RoCE cards have a table of addresses, and NCCL_IB_GID_INDEX names the entry. Entries of \
           version 1 are not routed, and an index may be empty on one node or of another version \
           there: the ranks then fail to connect.",
    reads: "gids and gid_attrs/types in /sys/class/infiniband/*/ports/*, NCCL_IB_GID_INDEX",
    fix: "unset NCCL_IB_GID_INDEX (NCCL from 2.21 on finds the entry itself), or name one of RoCE v2 on all nodes",
    check: Check::Fleet(gids),
};

pub(super) static GPUDIRECT_MISSING: Rule = Rule {
    id: "gpudirect-missing",
    summary: "RDMA cards may reach the GPU's memory",
    area: Area::Network,
    severity: Severity::Warn,
    applies: Applies::GpuNodes,
    source: "NCCL user guide, GPUDirect RDMA; NVIDIA gpu-operator validator (nvidia-peermem)",
    docs: "GPUDirect needs the module nvidia_peermem, or the open kernel module of the driver \
           with kernel 5.12 or newer (DMA-BUF). Without either NCCL copies through the host's \
           memory and says so only at debug level INFO.",
    reads: "/proc/modules, /proc/driver/nvidia/version, /proc/sys/kernel/osrelease",
    fix: "modprobe nvidia-peermem, or install the open kernel module",
    check: Check::Node(gpudirect),
};

pub(super) static RDMA_SELECTOR_EMPTY: Rule = Rule {
    id: "rdma-selector-empty",
    summary: "NCCL_IB_HCA names a card that is active",
    area: Area::Network,
    severity: Severity::Warn,
    applies: Applies::GpuNodes,
    source: "NCCL user guide, NCCL_IB_HCA",
    docs: "A selection from another machine type selects nothing here. NCCL then goes over TCP \
           without an error, many times slower.",
    reads: "NCCL_IB_HCA, state in /sys/class/infiniband/*/ports/*",
    fix: "unset NCCL_IB_HCA, or name cards of this machine",
    check: Check::Node(selector),
};

pub(super) static NET_PLUGIN_MISSING: Rule = Rule {
    id: "net-plugin-missing",
    summary: "NCCL's plugin for the network is there",
    area: Area::Network,
    severity: Severity::Warn,
    applies: Applies::GpuNodes,
    source: "aws-ofi-nccl; awslabs hyperpod-nccl; NCCL user guide, NCCL_NET_PLUGIN",
    docs: "EFA and other cards of clouds need a plugin, libnccl-net.so, in the image. Without it \
           NCCL takes TCP and does not complain.",
    reads: "driver of /sys/class/infiniband/*, libnccl-net*.so in the loader's folders, NCCL_NET_PLUGIN",
    fix: "install the plugin in the image (aws-ofi-nccl), and its folder into LD_LIBRARY_PATH",
    check: Check::Node(plugin),
};

fn ports(node: &NodeFacts) -> Result<&[RdmaPort], Stop> {
    let ports = node.network.rdma_ports.get()?;
    if ports.is_empty() {
        return Err(Stop::skip("there is no RDMA hardware"));
    }
    Ok(ports)
}

fn down(node: &NodeFacts, demand: &Demand) -> Outcome {
    let ports = ports(node)?;
    let off = ["Disabled", "Sleep"];
    let wanted =
        ports.iter().filter(|port| !port.physical.as_deref().is_some_and(|p| off.contains(&p)));
    let down: Vec<String> = wanted
        .filter(|port| port.state != "ACTIVE")
        .map(|port| format!("{} port {} ({})", port.device, port.port, port.state))
        .collect();
    let problem = (!down.is_empty()).then(|| {
        RDMA_PORT_DOWN.problem(
            format!("not active: {}", down.join(", ")),
            format!(
                "ranks of {} on this node use slower paths, and all wait for them",
                demand.name()
            ),
            "ibstat; grep . /sys/class/infiniband/*/ports/*/state",
        )
    });
    Judgement::of(&node.network.rdma_ports, down, "none", problem)
}

fn rate(snapshot: &Snapshot, demand: &Demand) -> Outcome {
    let mut judgement = Judgement::default();
    let mut rates: Vec<(u32, String)> = Vec::new();
    for (name, node) in &snapshot.nodes {
        match node.network.rdma_ports.get() {
            Ok(ports) => rates.extend(
                ports.iter().filter(|port| port.state == "ACTIVE").filter_map(|port| {
                    Some((port.rate_gbps?, format!("{name} {} port {}", port.device, port.port)))
                }),
            ),
            Err(unread) => judgement.unknown.push(unread),
        }
    }
    let Some(fastest) = rates.iter().map(|(rate, _port)| *rate).max() else {
        return match judgement.unknown.into_iter().next() {
            Some(unread) => Err(unread.into()),
            None => Err(Stop::skip("no RDMA port is active")),
        };
    };
    let slow: Vec<String> = rates
        .iter()
        .filter(|(rate, _port)| *rate < fastest)
        .map(|(rate, port)| format!("{port} {rate} Gbit/s"))
        .collect();
    judgement.evidence.push(Evidence::new(
        "rate of RDMA ports",
        format!("{} ports at most {fastest} Gbit/s", rates.len()),
        format!("{fastest} Gbit/s"),
    ));
    if !slow.is_empty() {
        judgement.problems.push(RDMA_RATE_LOW.problem(
            format!("slower than {fastest} Gbit/s: {}", slow.join(", ")),
            format!("all ranks of {} wait for the slowest port", demand.name()),
            "grep . /sys/class/infiniband/*/ports/*/rate",
        ));
    }
    Ok(judgement)
}

fn errors(node: &NodeFacts, demand: &Demand) -> Outcome {
    /// Counters that may have small values on a healthy port, and how small.
    const TOLERATED: [(&str, u64); 2] = [("symbol_error", 1000), ("roce_slow_restart", 100_000)];
    let ports = ports(node)?;
    let mut found = Vec::new();
    for port in ports {
        for (name, count) in &port.errors {
            let limit = TOLERATED.iter().find(|(known, _)| known == name).map_or(0, |(_, n)| *n);
            if limit < *count {
                found.push(format!("{} {name} {count}", port.device));
            }
        }
    }
    let problem = (!found.is_empty()).then(|| {
        RDMA_ERRORS.problem(
            format!("errors since boot: {}", found.join(", ")),
            format!("the exchange of {} may stop or fail", demand.name()),
            "grep . /sys/class/infiniband/*/ports/*/counters/*",
        )
    });
    Judgement::of(&node.network.rdma_ports, found, "none", problem)
}

fn gids(snapshot: &Snapshot, demand: &Demand) -> Outcome {
    let mut judgement = Judgement::default();
    let mut kinds: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut wanted = None;
    for (name, node) in &snapshot.nodes {
        let (ports, variables) = match (node.network.rdma_ports.get(), node.env.variables.get()) {
            (Ok(ports), Ok(variables)) => (ports, variables),
            (Err(unread), _) | (_, Err(unread)) => {
                judgement.unknown.push(unread);
                continue;
            }
        };
        let Some(index) = variables.get("NCCL_IB_GID_INDEX") else { continue };
        wanted = Some(index.clone());
        for port in ports.iter().filter(|p| p.link_layer == "Ethernet" && p.state == "ACTIVE") {
            let gid = port.gids.iter().find(|gid| gid.index.to_string() == *index);
            let kind = gid.map_or("empty", |gid| gid.kind.as_str()).to_owned();
            kinds.entry(kind).or_default().push(format!("{name} {}", port.device));
        }
    }
    if judgement.unknown.is_empty() && (wanted.is_none() || kinds.is_empty()) {
        return Err(Stop::skip("NCCL_IB_GID_INDEX is not set, or no RoCE port is active"));
    }
    let found: Vec<String> = kinds.keys().cloned().collect();
    judgement.evidence.push(Evidence::new(GID_MISMATCH.reads, found, "RoCE v2 on all nodes"));
    let wrong = kinds.iter().find(|(kind, _ports)| !kind.contains("v2"));
    if let Some(((kind, ports), index)) = wrong.zip(wanted) {
        judgement.problems.push(GID_MISMATCH.problem(
            format!("entry {index} is {kind} on {}", ports.join(", ")),
            format!("ranks of {} cannot connect over RoCE", demand.name()),
            "show_gids; echo $NCCL_IB_GID_INDEX",
        ));
    }
    Ok(judgement)
}

fn gpudirect(node: &NodeFacts, demand: &Demand) -> Outcome {
    ports(node)?;
    let fact = &node.driver.modules;
    let peermem = fact.get()?.contains("nvidia_peermem");
    let open = node.driver.kernel_module.get()?.as_ref().is_some_and(|module| module.open);
    let kernel = table::version(node.kernel.release.get()?);
    let dma_buf = open && vec![5, 12] <= kernel;
    let text = format!("nvidia_peermem {peermem}, open module {open}");
    let problem = (!peermem && !dma_buf).then(|| {
        GPUDIRECT_MISSING.problem(
            "neither nvidia_peermem nor DMA-BUF is there",
            format!("{} exchanges gradients through the host's memory", demand.name()),
            "lsmod | grep peermem; cat /proc/driver/nvidia/version; uname -r",
        )
    });
    Judgement::of(fact, text, "nvidia_peermem, or the open module and kernel 5.12", problem)
}

fn selector(node: &NodeFacts, demand: &Demand) -> Outcome {
    let ports = ports(node)?;
    let Some(selector) = node.env.variables.get()?.get("NCCL_IB_HCA") else {
        return Err(Stop::skip("NCCL_IB_HCA is not set"));
    };
    // `mlx5_0:1` names a port of a card.
    let cards = selector.split(',').map(|part| part.split(':').next().unwrap_or(part));
    let cards = cards.collect::<Vec<_>>().join(",");
    let hit = |port: &&RdmaPort| port.state == "ACTIVE" && selects(&cards, &port.device);
    let chosen: Vec<String> = ports.iter().filter(hit).map(|port| port.device.clone()).collect();
    let problem = chosen.is_empty().then(|| {
        RDMA_SELECTOR_EMPTY.problem(
            format!("NCCL_IB_HCA={selector} selects no active card"),
            format!("{} exchanges gradients over TCP, many times slower", demand.name()),
            "echo $NCCL_IB_HCA; ls /sys/class/infiniband",
        )
    });
    Judgement::of(&node.network.rdma_ports, chosen, "at least one", problem)
}

fn plugin(node: &NodeFacts, demand: &Demand) -> Outcome {
    let needs = ports(node)?.iter().find(|port| port.driver.as_deref() == Some("efa"));
    let named = node.env.variables.get()?.get("NCCL_NET_PLUGIN").filter(|name| *name != "none");
    if needs.is_none() && named.is_none() {
        return Err(Stop::skip("the cards need no plugin"));
    }
    let fact = &node.trainer.net_plugins;
    let found = fact.get()?;
    let file = named.map(|name| format!("libnccl-net-{name}.so"));
    let fits = |plugin: &String| match (&file, named) {
        (Some(file), Some(name)) => plugin.starts_with(file.as_str()) || plugin == name,
        (_, _) => true,
    };
    let problem = (!found.iter().any(fits)).then(|| {
        let for_what = named.map_or("EFA".to_owned(), |name| format!("NCCL_NET_PLUGIN={name}"));
        NET_PLUGIN_MISSING.problem(
            format!("no plugin for {for_what} in the loader's folders"),
            format!("{} exchanges gradients over TCP, many times slower", demand.name()),
            "ldconfig -p | grep nccl-net; echo $LD_LIBRARY_PATH",
        )
    });
    Judgement::of(fact, found.clone(), "the plugin of the card", problem)
}
