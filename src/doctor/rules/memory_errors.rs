//! `ecc-mode`, `ecc-uncorrected`, `row-remap-pending`, `row-remap-failed`, `retired-pages`.

use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Outcome, Rule, Severity, Value,
        gpus::{GpuVerdict, Texts, each_gpu},
        table,
    },
    facts::{EccMode, NodeFacts},
};

const ECC_SEE: &str = "nvidia-smi -q -d ECC";
const ROWS_SEE: &str = "nvidia-smi -q -d ROW_REMAPPER";

pub(super) static ECC_MODE: Rule = Rule {
    id: "ecc-mode",
    summary: "error correction is on",
    area: Area::GpuMemory,
    severity: Severity::Warn,
    applies: Applies::Gpus,
    source: "https://docs.nvidia.com/deploy/gpu-debug-guidelines/",
    docs: "Without error correction a flipped bit changes weights without a trace. A mode that \
           differs between GPUs also changes how much memory they have. GPUs without ECC, and \
           consumer GPUs, are not judged.",
    reads: "nvmlDeviceGetEccMode",
    fix: "nvidia-smi -e 1, then a reset",
    check: Check::Node(ecc_mode),
};

pub(super) static ECC_UNCORRECTED: Rule = Rule {
    id: "ecc-uncorrected",
    summary: "no uncorrected memory error since the driver was loaded",
    area: Area::GpuMemory,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "facebookresearch/gcm, Azure NHC, Google CHS (limit 0)",
    docs: "An uncorrected error kills the program that touches the page, and the page stays bad \
           until the GPU is reset and the row replaced.",
    reads: "nvmlDeviceGetTotalEccErrors",
    fix: "reset the GPU; if errors come back, have it replaced",
    check: Check::Node(ecc_uncorrected),
};

pub(super) static ROW_REMAP_PENDING: Rule = Rule {
    id: "row-remap-pending",
    summary: "no replacement of a memory row waits for a reset",
    area: Area::GpuMemory,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "https://docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt/; NVSentinel#1826",
    docs: "The driver has decided to replace a bad row, but does so only at the next reset. Until \
           then the job computes on memory that is known to be bad.",
    reads: "nvmlDeviceGetRemappedRows",
    fix: "reset the GPU",
    check: Check::Node(row_pending),
};

pub(super) static ROW_REMAP_FAILED: Rule = Rule {
    id: "row-remap-failed",
    summary: "no replacement of a memory row failed",
    area: Area::GpuMemory,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "https://docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt/",
    docs: "The bank has no spare rows left. NVIDIA's rule for this state is to replace the GPU.",
    reads: "nvmlDeviceGetRemappedRows",
    fix: "leave the GPU out and have it replaced",
    check: Check::Node(row_failed),
};

pub(super) static RETIRED_PAGES: Rule = Rule {
    id: "retired-pages",
    summary: "few pages of memory are retired",
    area: Area::GpuMemory,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "DCGM (63 pages, soft limit 15 after double-bit errors)",
    docs: "GPUs before Ampere retire bad pages instead of replacing rows. 64 is all that the \
           driver can note, so 63 is the end; a pending retirement needs a reset first.",
    reads: "nvmlDeviceGetRetiredPages_v2",
    fix: "reset the GPU; have it replaced at the limit",
    check: Check::Node(retired_pages),
};

fn ecc_mode(node: &NodeFacts, demand: &Demand) -> Outcome {
    let texts = Texts {
        impact: "a flipped bit changes the weights unnoticed, or usable memory differs between ranks",
        fix: "nvidia-smi -e 1 -i <GPU>, then reset the GPU",
        see: ECC_SEE,
    };
    each_gpu(node, demand, texts, |gpu| {
        let fact = &gpu.ecc;
        let Some(EccMode { current, pending }) = *fact.get()? else {
            return Ok(GpuVerdict::Exempt("the GPUs have no ECC"));
        };
        if !table::is_data_center(gpu.name.get()?) {
            return Ok(GpuVerdict::Exempt("consumer GPUs run without ECC by default"));
        }
        let evidence = Evidence::of(fact, format!("now {current}, after reset {pending}"), "on");
        if !current {
            return Ok(GpuVerdict::Bad(
                Severity::Warn,
                "ECC is off (on required)".into(),
                evidence,
            ));
        }
        if !pending {
            let what = "ECC will be off after the next reset".to_owned();
            return Ok(GpuVerdict::Bad(Severity::Warn, what, evidence));
        }
        Ok(GpuVerdict::Fine(evidence))
    })
}

fn ecc_uncorrected(node: &NodeFacts, demand: &Demand) -> Outcome {
    let texts = Texts {
        impact: "the rank dies when it touches the page, or has computed with wrong numbers",
        fix: "nvidia-smi --gpu-reset -i <GPU>; if errors come back, have the GPU replaced",
        see: ECC_SEE,
    };
    each_gpu(node, demand, texts, |gpu| {
        let fact = &gpu.ecc_uncorrected_volatile;
        let Some(errors) = *fact.get()? else {
            return Ok(GpuVerdict::Exempt("the GPUs have no ECC, or it is off"));
        };
        let evidence = Evidence::of(fact, errors, "0");
        if errors == 0 {
            return Ok(GpuVerdict::Fine(evidence));
        }
        let what =
            format!("{errors} uncorrected memory errors since the driver was loaded (0 allowed)");
        Ok(GpuVerdict::Bad(Severity::Block, what, evidence))
    })
}

fn row_pending(node: &NodeFacts, demand: &Demand) -> Outcome {
    let texts = Texts {
        impact: "the job computes on memory that is known to be bad",
        fix: "nvidia-smi --gpu-reset -i <GPU>",
        see: ROWS_SEE,
    };
    each_gpu(node, demand, texts, |gpu| {
        let fact = &gpu.remapped_rows;
        let Some(rows) = *fact.get()? else {
            return Ok(GpuVerdict::Exempt("GPUs before Ampere do not replace rows"));
        };
        let evidence = Evidence::of(fact, rows.pending, "no");
        if rows.pending {
            let what = "a memory row waits for its replacement".to_owned();
            return Ok(GpuVerdict::Bad(Severity::Block, what, evidence));
        }
        Ok(GpuVerdict::Fine(evidence))
    })
}

fn row_failed(node: &NodeFacts, demand: &Demand) -> Outcome {
    let texts = Texts {
        impact: "uncorrected errors will come back and kill the rank",
        fix: "leave the GPU out and have it replaced",
        see: ROWS_SEE,
    };
    each_gpu(node, demand, texts, |gpu| {
        let fact = &gpu.remapped_rows;
        let Some(rows) = *fact.get()? else {
            return Ok(GpuVerdict::Exempt("GPUs before Ampere do not replace rows"));
        };
        let evidence = Evidence::of(fact, rows.failed, "no");
        if rows.failed {
            let what = format!(
                "the replacement of a memory row failed ({} were replaced after uncorrected errors)",
                rows.uncorrectable
            );
            return Ok(GpuVerdict::Bad(Severity::Block, what, evidence));
        }
        Ok(GpuVerdict::Fine(evidence))
    })
}

/// Both causes count together.
const MOST_PAGES: u32 = 63;
const MOST_DOUBLE_BIT: u32 = 15;

fn retired_pages(node: &NodeFacts, demand: &Demand) -> Outcome {
    let texts = Texts {
        impact: "memory errors will kill the rank, now or soon",
        fix: "reset the GPU for a pending retirement; have it replaced when the limit is reached",
        see: "nvidia-smi -q -d PAGE_RETIREMENT",
    };
    each_gpu(node, demand, texts, |gpu| {
        let fact = &gpu.retired_pages;
        let Some(pages) = *fact.get()? else {
            return Ok(GpuVerdict::Exempt("GPUs from Ampere on replace rows instead"));
        };
        let total = pages.single_bit + pages.double_bit;
        let evidence =
            Evidence::of(fact, Value::Number(u64::from(total)), "under 63, none pending");
        let (severity, what) = if pages.pending {
            (Severity::Block, "a page retirement waits for a reset".to_owned())
        } else if MOST_PAGES <= total {
            (Severity::Block, format!("{total} retired pages (under {MOST_PAGES} required)"))
        } else if MOST_DOUBLE_BIT <= pages.double_bit {
            let double = pages.double_bit;
            (
                Severity::Warn,
                format!("{double} pages retired after double-bit errors (under 15 wanted)"),
            )
        } else {
            return Ok(GpuVerdict::Fine(evidence));
        };
        Ok(GpuVerdict::Bad(severity, what, evidence))
    })
}
