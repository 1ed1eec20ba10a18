//! `batch-lr-drift`: does the number of ranks change what is trained?

use crate::doctor::{
    Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Problem, Rule, Severity, Stack,
    Stop,
};

pub(super) static RULE: Rule = Rule {
    id: "batch-lr-drift",
    summary: "the batch of a step does not depend on the number of ranks",
    area: Area::Job,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "QwenLM/Qwen-VL finetune/finetune_lora_single_gpu.sh and finetune_lora_ds.sh",
    docs: "The official LoRA scripts take 1 sample x 8 accumulation steps on one GPU, and 2 x 8 on \
           each of several: 128 samples a step instead of 8 on eight GPUs, at the same learning \
           rate. That is 16 times fewer steps, and another result. qvl-train fixes the batch of \
           the whole job.",
    reads: "the job, or the official scripts",
    fix: "keep batch x accumulation x ranks, or scale the learning rate on purpose",
    check: Check::Job(check),
};

/// Samples of a step of the official LoRA script for one GPU: 1 x 8.
const OFFICIAL_ALONE: u32 = 8;
/// Samples of each rank in a step of the official LoRA script for several GPUs: 2 x 8.
const OFFICIAL_PER_RANK: u32 = 16;
/// Learning rate of the official LoRA scripts.
const OFFICIAL_RATE: f64 = 1e-5;

fn check(demand: &Demand) -> Outcome {
    if demand.stack == Stack::Official {
        let Some(ranks) = demand.ranks else {
            return Err(Stop::skip("no number of ranks was given (--job or --gpus)"));
        };
        let batch = if ranks == 1 { OFFICIAL_ALONE } else { OFFICIAL_PER_RANK * ranks };
        let evidence = Evidence::new("official scripts", batch, "8, as on one GPU");
        let problem = (1 < ranks).then(|| Problem {
            severity: Severity::Warn,
            what: format!("{batch} samples a step on {ranks} ranks, {OFFICIAL_ALONE} on one, both at learning rate {OFFICIAL_RATE:.0e}"),
            impact: format!(
                "{} times fewer steps: the result is not that of one GPU",
                batch / OFFICIAL_ALONE
            ),
            fix: "lower gradient_accumulation_steps so that batch x accumulation x ranks is 8, scale the learning rate on purpose, or use qvl-train"
                .to_owned(),
            see: "grep -E 'batch_size|accumulation|learning_rate' finetune/*.sh".to_owned(),
        });
        return Ok(Judgement::from_option(problem, evidence));
    }
    let Some(batch) = demand.batch else {
        return Err(Stop::skip("no job was given (--job FILE)"));
    };
    let text = format!("{} samples a step at {:.1e}", batch.global, batch.learning_rate);
    Ok(Judgement::pass(Evidence::new("spec.batch.global", text, "the same on any number of ranks")))
}
