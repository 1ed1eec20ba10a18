//! `nccl-duplicate` and `nccl-skew`.

use std::collections::BTreeSet;

use crate::{
    doctor::{
        Agreement, Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Problem, Rule,
        Severity, Stop,
    },
    facts::NodeFacts,
};

pub(super) static NCCL_DUPLICATE: Rule = Rule {
    id: "nccl-duplicate",
    summary: "there is one NCCL in the loader's path",
    area: Area::Software,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "awslabs hyperpod-nccl (wheels and system packages side by side)",
    docs: "With several NCCL files the order of the path decides which one a rank takes, and it \
           may differ between a login shell and a launcher.",
    reads: "libnccl.so.2 in the loader's folders",
    fix: "leave one in LD_LIBRARY_PATH and ld.so.conf.d",
    check: Check::Node(duplicate),
};

pub(super) static NCCL_SKEW: Rule = Rule {
    id: "nccl-skew",
    summary: "all nodes load the same NCCL",
    area: Area::Software,
    severity: Severity::Block,
    applies: Applies::GpuNodes,
    source: "NVIDIA/nccl: ranks of one communicator must have one version",
    docs: "Ranks with different NCCL versions fail at start, or hang in the first collective.",
    reads: "libnccl.so.2 in the loader's folders, on all nodes",
    fix: "install the version of the majority, or pin the image by digest",
    check: Check::Agree(Agreement {
        what: "NCCL",
        read: |node, _demand| match node.trainer.nccl.get()?.first() {
            Some(library) => Ok(match (&library.version, &library.sha256) {
                (Some(version), _) => version.clone(),
                (None, Some(hash)) => hash.chars().take(12).collect(),
                (None, None) => format!("{} bytes", library.bytes),
            }),
            None => Err(Stop::skip("the loader finds no NCCL")),
        },
        impact: "the ranks hang in, or fail at, the first collective",
        fix: "install the version of the majority on the outliers, or pin the image by digest",
        see: "ldconfig -p | grep libnccl",
    }),
};

fn duplicate(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.trainer.nccl;
    let found = fact.get()?;
    if found.is_empty() {
        return Err(Stop::skip("the loader finds no NCCL"));
    }
    let versions: BTreeSet<u64> = found.iter().map(|library| library.bytes).collect();
    let paths: Vec<String> = found
        .iter()
        .map(|nccl| format!("{} ({})", nccl.path, nccl.version.as_deref().unwrap_or("?")))
        .collect();
    let evidence = Evidence::of(fact, paths.clone(), "one file");
    let problem = (1 < versions.len()).then(|| Problem {
        severity: Severity::Warn,
        what: format!("{} different NCCL files: {}", versions.len(), paths.join(", ")),
        impact: format!("ranks of {} may load different ones and hang", demand.name()),
        fix: "leave one in LD_LIBRARY_PATH and ld.so.conf.d".to_owned(),
        see: "ldconfig -p | grep libnccl; echo $LD_LIBRARY_PATH".to_owned(),
    });
    Ok(Judgement::from_option(problem, evidence))
}
