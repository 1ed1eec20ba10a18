//! `dtype-unsupported`: the job's number format against the GPUs.

use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Outcome, Rule, Severity,
        gpus::{GpuVerdict, Texts, each_gpu},
    },
    facts::NodeFacts,
    job::Dtype,
};

pub(super) static RULE: Rule = Rule {
    id: "dtype-unsupported",
    summary: "the GPUs compute in the number format of the job",
    area: Area::Software,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "CUDA programming guide, compute capabilities (bf16 from 8.0)",
    docs: "bf16 arithmetic exists from compute capability 8.0 (Ampere) on. On older GPUs kernels \
           for it are missing or emulated.",
    reads: "nvmlDeviceGetCudaComputeCapability, spec.model.dtype",
    fix: "choose f16 or f32, or other GPUs",
    check: Check::Node(check),
};

fn check(node: &NodeFacts, demand: &Demand) -> Outcome {
    let texts = Texts {
        impact: "bf16 kernels are missing on this GPU, so its rank fails at the first step",
        fix: "set spec.model.dtype to auto (f16 there), or use GPUs of compute capability 8.0 or newer",
        see: "nvidia-smi --query-gpu=index,name,compute_cap --format=csv",
    };
    let bf16 = match demand.dtype {
        Dtype::Bf16 => true,
        // `auto` takes f16 where bf16 is missing.
        Dtype::Auto | Dtype::F32 | Dtype::F16 => false,
    };
    each_gpu(node, demand, texts, |gpu| {
        let have = *gpu.compute_capability.get()?;
        if !bf16 {
            return Ok(GpuVerdict::Exempt("the job does not insist on bf16"));
        }
        let evidence = Evidence::of(&gpu.compute_capability, have, "at least 80 (8.0) for bf16");
        if 80 <= have {
            return Ok(GpuVerdict::Fine(evidence));
        }
        let what = format!("compute capability {}.{}, bf16 needs 8.0", have / 10, have % 10);
        Ok(GpuVerdict::Bad(Severity::Block, what, evidence))
    })
}
