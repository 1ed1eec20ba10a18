//! `node-missing` and `host-identity-clash`.

use std::collections::BTreeMap;

use crate::{
    doctor::{
        Applies, Area, Check, Conflict, Demand, Evidence, Judgement, Outcome, Problem, Rule,
        Severity,
    },
    facts::{NodeName, Snapshot, Unread},
};

pub(super) static NODE_MISSING: Rule = Rule {
    id: "node-missing",
    summary: "all expected nodes reported",
    area: Area::Fleet,
    severity: Severity::Block,
    applies: Applies::Always,
    source: "AMD-AGI/Primus (a node that never reports fails)",
    docs: "A node of which nothing is known is unknown. It is never left out of the count.",
    reads: "--expect-nodes, reports of the agents",
    fix: "start the agent or the doctor on the node that did not report, or leave the node out",
    check: Check::Fleet(missing),
};

pub(super) static HOST_IDENTITY_CLASH: Rule = Rule {
    id: "host-identity-clash",
    summary: "no two nodes look like one machine",
    area: Area::Fleet,
    severity: Severity::Block,
    applies: Applies::Nodes,
    source: "NVIDIA/nccl src/misc/utils.cc (host hash of host name and boot id)",
    docs: "NCCL takes ranks with equal host name and boot id for ranks of one machine, and tries \
           shared memory between them. Cloned machines and containers with one name can clash.",
    reads: "/proc/sys/kernel/hostname, /proc/sys/kernel/random/boot_id",
    fix: "give each node its own NCCL_HOSTID or host name",
    check: Check::Fleet(clash),
};

#[expect(clippy::unnecessary_wraps, reason = "every check has this type")]
fn missing(snapshot: &Snapshot, _demand: &Demand) -> Outcome {
    let evidence = Evidence::new("reports", snapshot.nodes.len(), "all expected nodes");
    let mut judgement = Judgement::pass(evidence);
    judgement.unknown = snapshot
        .missing()
        .map(|name| Unread {
            why: format!("node {name} is expected, but sent no facts"),
            from: "--expect-nodes".to_owned(),
        })
        .collect();
    Ok(judgement)
}

#[expect(clippy::unnecessary_wraps, reason = "every check has this type")]
fn clash(snapshot: &Snapshot, demand: &Demand) -> Outcome {
    let mut judgement = Judgement::default();
    let mut nodes_by_identity: BTreeMap<String, Vec<&NodeName>> = BTreeMap::new();
    for (name, node) in &snapshot.nodes {
        let identity = &node.identity;
        match (identity.hostname.get(), identity.boot_id.get()) {
            (Ok(host), Ok(boot)) => {
                nodes_by_identity.entry(format!("{host} / {boot}")).or_default().push(name);
            }
            (Err(unread), _) | (_, Err(unread)) => judgement.unknown.push(unread),
        }
    }
    judgement.evidence.push(Evidence::new(
        "host name and boot id",
        nodes_by_identity.len(),
        "different on all nodes",
    ));
    for (identity, nodes) in nodes_by_identity.iter().filter(|(_identity, nodes)| 1 < nodes.len()) {
        let names: Vec<&str> = nodes.iter().map(|name| name.0.as_str()).collect();
        judgement.conflicts.push(Conflict::of_twins(nodes.iter().copied().cloned()));
        judgement.problems.push(Problem {
            severity: Severity::Block,
            what: format!("{} have the same host name and boot id: {identity}", names.join(", ")),
            impact: format!("NCCL takes them for one machine; ranks of {} hang or fail", demand.name()),
            fix: "give each node its own NCCL_HOSTID or host name; check that facts were not saved twice".to_owned(),
            see: "hostname; cat /proc/sys/kernel/random/boot_id".to_owned(),
        });
    }
    Ok(judgement)
}
