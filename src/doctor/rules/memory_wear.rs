//! Wear of the GPU's memory: `ecc-corrected-high`, `row-remap-count`, `sram-ecc-threshold`.

use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Outcome, Rule, Severity,
        gpus::{GpuVerdict, Texts, each_gpu},
    },
    facts::NodeFacts,
};

pub(super) static ECC_CORRECTED_HIGH: Rule = Rule {
    id: "ecc-corrected-high",
    summary: "few memory errors had to be corrected",
    area: Area::GpuMemory,
    severity: Severity::Warn,
    applies: Applies::Gpus,
    source: "Azure NHC (20 million); facebookresearch/gcm (50 million)",
    docs: "Corrected errors cost nothing by themselves. Tens of millions since the driver was \
           loaded mean cells that fail, and uncorrected errors come next.",
    reads: "nvmlDeviceGetTotalEccErrors",
    fix: "watch the GPU; have it replaced when uncorrected errors follow",
    check: Check::Node(corrected),
};

pub(super) static ROW_REMAP_COUNT: Rule = Rule {
    id: "row-remap-count",
    summary: "few memory rows were replaced after uncorrected errors",
    area: Area::GpuMemory,
    severity: Severity::Warn,
    applies: Applies::Gpus,
    source: "DCGM and Azure NHC (512 rows)",
    docs: "Each replacement was an uncorrected error that killed a program. A GPU has 512 spare \
           rows for it.",
    reads: "nvmlDeviceGetRemappedRows",
    fix: "plan a replacement of the GPU",
    check: Check::Node(rows),
};

pub(super) static SRAM_ECC_THRESHOLD: Rule = Rule {
    id: "sram-ecc-threshold",
    summary: "the GPU's caches are below the limit for a replacement",
    area: Area::GpuMemory,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "nvmlDeviceGetSramEccErrorStatus; DCGM (SRAM threshold)",
    docs: "The driver counts uncorrected errors of caches and registers over the life of the GPU, \
           and says when NVIDIA's limit for a replacement is passed. Such errors kill the rank \
           that hits them.",
    reads: "nvmlDeviceGetSramEccErrorStatus",
    fix: "leave the GPU out and have it replaced",
    check: Check::Node(sram),
};

fn corrected(node: &NodeFacts, demand: &Demand) -> Outcome {
    const MANY: u64 = 20_000_000;
    let texts = Texts {
        impact: "uncorrected errors may follow and kill the rank",
        fix: ECC_CORRECTED_HIGH.fix,
        see: "nvidia-smi -q -d ECC",
    };
    each_gpu(node, demand, texts, |gpu| {
        let fact = &gpu.ecc_corrected_volatile;
        let Some(errors) = *fact.get()? else {
            return Ok(GpuVerdict::Exempt("the GPUs have no ECC, or it is off"));
        };
        let evidence = Evidence::of(fact, errors, format!("under {MANY}"));
        if errors < MANY {
            return Ok(GpuVerdict::Fine(evidence));
        }
        let what = format!("{errors} corrected memory errors since the driver was loaded");
        Ok(GpuVerdict::Bad(Severity::Warn, what, evidence))
    })
}

fn rows(node: &NodeFacts, demand: &Demand) -> Outcome {
    const SPARE: u32 = 512;
    let texts = Texts {
        impact: "the next uncorrected error may find no spare row and kill the rank",
        fix: ROW_REMAP_COUNT.fix,
        see: "nvidia-smi -q -d ROW_REMAPPER",
    };
    each_gpu(node, demand, texts, |gpu| {
        let fact = &gpu.remapped_rows;
        let Some(rows) = *fact.get()? else {
            return Ok(GpuVerdict::Exempt("GPUs before Ampere do not replace rows"));
        };
        let evidence = Evidence::of(fact, rows.uncorrectable, format!("under {SPARE}"));
        if rows.uncorrectable < SPARE {
            return Ok(GpuVerdict::Fine(evidence));
        }
        let what = format!("{} rows were replaced after uncorrected errors", rows.uncorrectable);
        Ok(GpuVerdict::Bad(Severity::Warn, what, evidence))
    })
}

fn sram(node: &NodeFacts, demand: &Demand) -> Outcome {
    let texts = Texts {
        impact: "errors in the caches kill the rank, or have done so",
        fix: SRAM_ECC_THRESHOLD.fix,
        see: "nvidia-smi -q -d ECC | grep -A2 SRAM",
    };
    each_gpu(node, demand, texts, |gpu| {
        let fact = &gpu.sram_threshold_exceeded;
        let Some(exceeded) = *fact.get()? else {
            return Ok(GpuVerdict::Exempt("the GPU or its driver does not tell it"));
        };
        let evidence = Evidence::of(fact, exceeded, "no");
        if !exceeded {
            return Ok(GpuVerdict::Fine(evidence));
        }
        let what = "errors of the caches passed the limit for a replacement".to_owned();
        Ok(GpuVerdict::Bad(Severity::Block, what, evidence))
    })
}
