//! `memory-too-small` and `memory-skew`.

use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Problem, Rule, Severity, Stop,
        Value,
        gpus::{self, GpuVerdict, Texts, each_gpu},
        table,
    },
    facts::{NodeFacts, Snapshot},
};

pub(super) static MEMORY_TOO_SMALL: Rule = Rule {
    id: "memory-too-small",
    summary: "the job fits into the smallest GPU",
    area: Area::GpuMemory,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "Qwen-VL README (LoRA 23-27 GB, Q-LoRA 17-19 GB on one A100); QwenLM/Qwen-VL#100",
    docs: "Every rank holds the whole model, so the smallest GPU decides. The estimate is that of \
           `qvl plan` with 1 GiB for the CUDA context and libraries; the driver's own share of the \
           memory does not count as usable. Less than 5 % to spare is a warning.",
    reads: "nvmlDeviceGetMemoryInfo_v2, the plan's estimate",
    fix: "lower data.maxLength or batch.unit, or leave the small GPU out",
    check: Check::Node(too_small),
};

pub(super) static MEMORY_SKEW: Rule = Rule {
    id: "memory-skew",
    summary: "all GPUs have the same memory",
    area: Area::GpuMemory,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "AMD-AGI/Primus (1 %)",
    docs: "A GPU with less memory than the others is another model, or one with ECC set \
           differently: the job runs out of memory on that rank only.",
    reads: "nvmlDeviceGetMemoryInfo_v2 on all nodes",
    fix: "leave the odd GPUs out, or choose nodes of one product",
    check: Check::Fleet(skew),
};

/// What a CUDA context, cuBLAS and NCCL take besides the tensors. A proposal.
const CONTEXT_BYTES: u64 = 1 << 30;

fn too_small(node: &NodeFacts, demand: &Demand) -> Outcome {
    let Some(estimate) = demand.rank_memory_bytes else {
        return Err(Stop::skip("no job was given (--job FILE)"));
    };
    let need = estimate + CONTEXT_BYTES;
    let texts = Texts {
        impact: "the rank runs out of memory in the first steps, and the others wait for it",
        fix: "lower data.maxLength or batch.unit, train LoRA with a smaller r, or leave the small GPU out",
        see: "qvl plan shows the estimate by component; nvidia-smi --query-gpu=index,memory.total --format=csv",
    };
    each_gpu(node, demand, texts, |gpu| {
        let total = *gpu.memory_total_bytes.get()?;
        let usable = total - gpu.memory_reserved_bytes.get()?.unwrap_or(0).min(total);
        let required = format!("at least {}", table::bytes(need));
        let evidence = Evidence::of(&gpu.memory_total_bytes, Value::Bytes(usable), required);
        let (usable_text, need_text) = (table::bytes(usable), table::bytes(need));
        if usable < need {
            let what = format!("{usable_text} usable, a rank needs {need_text}");
            return Ok(GpuVerdict::Bad(Severity::Block, what, evidence));
        }
        if usable - need < usable / 20 {
            let what =
                format!("{usable_text} usable, a rank needs {need_text}: under 5 % to spare");
            return Ok(GpuVerdict::Bad(Severity::Warn, what, evidence));
        }
        Ok(GpuVerdict::Fine(evidence))
    })
}

fn skew(snapshot: &Snapshot, demand: &Demand) -> Outcome {
    let mut judgement = Judgement::default();
    let mut sizes = Vec::new();
    for (name, node) in &snapshot.nodes {
        let used = gpus::used(node, demand);
        for gpu in node.nvml.gpus.get()?.iter().filter(|gpu| used.contains(&gpu.index)) {
            match gpu.memory_total_bytes.get() {
                Ok(bytes) => sizes.push((*bytes, format!("{name} GPU {}", gpu.index))),
                Err(unread) => judgement.unknown.push(unread),
            }
        }
    }
    if sizes.len() < 2 {
        return Err(Stop::skip("there is one GPU, so nothing to compare"));
    }
    sizes.sort();
    let (smallest, largest) = (sizes[0].0, sizes[sizes.len() - 1].0);
    judgement.evidence.push(Evidence::new(
        "nvmlDeviceGetMemoryInfo_v2",
        format!("{} to {}", table::bytes(smallest), table::bytes(largest)),
        "within 1 %",
    ));
    if largest / 100 < largest - smallest {
        let small = sizes.iter().filter(|(bytes, _gpu)| largest / 100 < largest - bytes);
        let small: Vec<String> =
            small.map(|(bytes, gpu)| format!("{gpu} {}", table::bytes(*bytes))).collect();
        judgement.problems.push(Problem {
            severity: Severity::Warn,
            what: format!("memory differs: {} at most, but {}", table::bytes(largest), small.join(", ")),
            impact: format!("{} must be planned for the smallest GPU", demand.name()),
            fix: "leave the small GPUs out, or give the job nodes of one product (nodeSelector nvidia.com/gpu.product)"
                .to_owned(),
            see: "nvidia-smi --query-gpu=index,name,memory.total,ecc.mode.current --format=csv".to_owned(),
        });
    }
    Ok(judgement)
}
