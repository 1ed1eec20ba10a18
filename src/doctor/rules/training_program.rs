//! The program that the official stack's script starts: `device-map-auto`, `shared-output`,
//! `sampler-not-sharded`.

use super::launch_script::script;
use crate::{
    doctor::{Applies, Area, Check, Demand, Judgement, Outcome, Rule, Severity, Stop},
    facts::{CodeMark, LaunchScript, NodeFacts},
};

pub(super) static DEVICE_MAP_AUTO: Rule = Rule {
    id: "device-map-auto",
    summary: "each rank keeps the model on its own GPU",
    area: Area::Ranks,
    severity: Severity::Block,
    applies: Applies::GpuGroup,
    source: "hiyouga/LLaMA-Factory#140, #504; modelscope/ms-swift#1022",
    docs: "device_map=\"auto\" spreads one copy of the model over all GPUs, and DataParallel \
           copies it to all of them from one process. Under a launcher every rank does so, and \
           they get in each other's way: out of memory, or tensors on different devices.",
    reads: "the training program that the launch script names",
    fix: "remove device_map and DataParallel: the launcher starts one process for each GPU",
    check: Check::Node(device_map),
};

pub(super) static SHARED_OUTPUT: Rule = Rule {
    id: "shared-output",
    summary: "one rank writes the checkpoint",
    area: Area::Ranks,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "https://pytorch.org/tutorials/intermediate/ddp_tutorial.html (save on rank 0)",
    docs: "A program that saves without asking for its rank does so in every rank, to one path: \
           the files are mixed from several writers, and sometimes cannot be read.",
    reads: "the training program that the launch script names",
    fix: "save where the rank is 0, or with the Trainer",
    check: Check::Node(shared_output),
};

pub(super) static SAMPLER_NOT_SHARDED: Rule = Rule {
    id: "sampler-not-sharded",
    summary: "each rank trains on its own share of the data",
    area: Area::Ranks,
    severity: Severity::Block,
    applies: Applies::GpuGroup,
    source: "https://pytorch.org/docs/stable/data.html#torch.utils.data.distributed.DistributedSampler",
    docs: "A DataLoader without a sampler for ranks gives every rank the same samples in the same \
           order: eight GPUs then compute what one would, eight times.",
    reads: "the training program that the launch script names",
    fix: "DataLoader(sampler=DistributedSampler(...)), or the Trainer",
    check: Check::Node(sampler),
};

/// Judges what stands in the training program.
fn code(
    node: &NodeFacts,
    demand: &Demand,
    judge: impl Fn(&LaunchScript) -> bool,
    problem: impl Fn(&str) -> crate::doctor::Problem,
) -> Outcome {
    let script = script(node, demand)?;
    if script.program.is_empty() {
        return Err(Stop::skip("the training program was not found beside the script"));
    }
    let marks: Vec<String> = script.program.iter().map(|mark| format!("{mark:?}")).collect();
    let problem = judge(script).then(|| problem(&script.path));
    Judgement::of(&node.official.script, marks, "nothing that several ranks cannot do", problem)
}

fn device_map(node: &NodeFacts, demand: &Demand) -> Outcome {
    let bad = |script: &LaunchScript| {
        let has = |mark| script.program.contains(&mark);
        has(CodeMark::DeviceMapAuto) || has(CodeMark::DataParallel)
    };
    code(node, demand, bad, |path| {
        DEVICE_MAP_AUTO.problem(
            "the program has device_map=\"auto\" or DataParallel",
            format!("ranks of {} run out of memory or mix devices", demand.name()),
            format!("grep -n 'device_map\\|DataParallel' the program of {path}"),
        )
    })
}

fn shared_output(node: &NodeFacts, demand: &Demand) -> Outcome {
    let bad = |script: &LaunchScript| {
        let has = |mark| script.program.contains(&mark);
        has(CodeMark::Saves) && !has(CodeMark::AsksForRank)
    };
    code(node, demand, bad, |path| {
        SHARED_OUTPUT.problem(
            "the program saves and never asks for its rank",
            format!("all ranks of {} write one path", demand.name()),
            format!("grep -n 'save\\|rank' the program of {path}"),
        )
    })
}

fn sampler(node: &NodeFacts, demand: &Demand) -> Outcome {
    let bad = |script: &LaunchScript| {
        let has = |mark| script.program.contains(&mark);
        has(CodeMark::DataLoader) && !has(CodeMark::ShardedSampler)
    };
    code(node, demand, bad, |path| {
        SAMPLER_NOT_SHARDED.problem(
            "the program has a DataLoader and no sampler for ranks",
            format!("all ranks of {} train on the same samples", demand.name()),
            format!("grep -n 'DataLoader\\|Sampler' the program of {path}"),
        )
    })
}
