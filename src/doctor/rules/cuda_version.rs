//! `cuda-too-new`, `ptx-too-new`, `arch-not-covered`: the trainer's file against the driver.

use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Problem, Rule, Severity, Stop,
        gpus::{GpuVerdict, Texts, each_gpu},
        table,
    },
    facts::{NodeFacts, PtxModule, Unread},
};

pub(super) static CUDA_TOO_NEW: Rule = Rule {
    id: "cuda-too-new",
    summary: "the driver is new enough for the CUDA major version of the trainer",
    area: Area::Software,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "CUDA release notes, minimum driver by major version (11: 450.80.02, 12: 525.60.13, 13: 580.65.06)",
    docs: "Programs of one CUDA major version run on every driver from a minimum on. The major \
           version is that of the CUDA libraries in the trainer's file. An older driver refuses to \
           initialise, with error 35.",
    reads: "DT_NEEDED of the trainer, nvmlSystemGetDriverVersion",
    fix: "upgrade the driver, or build the trainer with an older CUDA",
    check: Check::Node(cuda_too_new),
};

pub(super) static PTX_TOO_NEW: Rule = Rule {
    id: "ptx-too-new",
    summary: "the driver compiles the PTX in the trainer",
    area: Area::Software,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "PTX ISA release history; huggingface/candle#1846, #2237, #2498 (error 222)",
    docs: "Kernels that are stored as PTX are compiled by the driver when the trainer starts, and \
           this is outside of CUDA's minor-version compatibility: the driver branch must know the \
           PTX version of the nvcc that built the trainer, else error 222.",
    reads: "PTX in .rodata and .nv_fatbin of the trainer, nvmlSystemGetDriverVersion",
    fix: "upgrade the driver, or build the trainer with an older nvcc",
    check: Check::Node(ptx_too_new),
};

pub(super) static ARCH_NOT_COVERED: Rule = Rule {
    id: "arch-not-covered",
    summary: "the trainer has code for every GPU",
    area: Area::Software,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "CUDA programming guide, binary and PTX compatibility",
    docs: "Machine code runs on the same major architecture from its minor version on; PTX runs on \
           its target and everything newer. A target that ends in `a` runs on that architecture \
           alone. Without any, kernels fail with error 209.",
    reads: "PTX and machine code in the trainer, nvmlDeviceGetCudaComputeCapability",
    fix: "build with CUDA_COMPUTE_CAP of the oldest GPU, or leave the GPU out",
    check: Check::Node(arch_not_covered),
};

/// CUDA major version of the trainer, by the names of the libraries that it needs.
fn cuda_major(needed: &[crate::facts::Needed]) -> Option<(u32, &str)> {
    let mut names = needed.iter().map(|library| library.name.as_str());
    names.find_map(|name| Some((crate::doctor::cuda_major(name)?, name)))
}

fn cuda_too_new(node: &NodeFacts, demand: &Demand) -> Outcome {
    let needed = node.trainer.needed.get()?;
    let Some((major, library)) = cuda_major(needed) else {
        return Err(Stop::skip("the trainer needs no versioned CUDA library"));
    };
    let Some(minimum) = table::minimum_driver(major) else {
        return Err(Unread {
            why: format!("no minimum driver is known for CUDA {major}"),
            from: library.to_owned(),
        }
        .into());
    };
    let driver = node.nvml.driver_version.get()?;
    let evidence =
        Evidence::of(&node.nvml.driver_version, driver.as_str(), format!("at least {minimum}"));
    let problem = (table::version(driver) < table::version(minimum)).then(|| Problem {
        severity: Severity::Block,
        what: format!("driver {driver}; the trainer needs {library}, so at least {minimum}"),
        impact: format!("CUDA refuses to start, so no rank of {} can", demand.name()),
        fix: format!(
            "upgrade the driver to {minimum} or newer, or build the trainer with an older CUDA"
        ),
        see: "nvidia-smi; readelf -d qvl-train | grep NEEDED".to_owned(),
    });
    Ok(Judgement::from_option(problem, evidence))
}

/// PTX that the driver will have to compile: all that stands alone, and that beside machine code
/// if a GPU of the node has none for it.
fn compiled(node: &NodeFacts) -> Result<Vec<&PtxModule>, Stop> {
    let mut modules: Vec<&PtxModule> = node.trainer.ptx.get()?.iter().collect();
    let fat = node.trainer.fat_ptx.get()?;
    if !fat.is_empty() {
        let sass = node.trainer.sass.get()?;
        let has_code = |have: u32| sass.iter().any(|s| s.arch / 10 == have / 10 && s.arch <= have);
        for gpu in node.nvml.gpus.get()? {
            if !has_code(*gpu.compute_capability.get()?) {
                modules.extend(fat);
                break;
            }
        }
    }
    Ok(modules)
}

fn ptx_too_new(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.trainer.ptx;
    let Some(newest) = compiled(node)?.into_iter().max_by_key(|ptx| ptx.version) else {
        return Err(Stop::skip("the trainer has no PTX that the driver must compile"));
    };
    let name = format!("{}.{}", newest.version / 10, newest.version % 10);
    let Some((cuda, branch)) = table::ptx(newest.version) else {
        return Err(Unread {
            why: format!("no minimum driver is known for PTX {name}"),
            from: fact.from().to_owned(),
        }
        .into());
    };
    let shipped = table::full_driver(cuda).unwrap_or("a newer one");
    let driver = node.nvml.driver_version.get()?;
    let have = table::version(driver).first().copied().unwrap_or(0);
    let evidence =
        Evidence::of(fact, format!("PTX {name}"), format!("driver branch {branch} or newer"));
    let problem = (have < branch).then(|| Problem {
        severity: Severity::Block,
        what: format!("the trainer has PTX {name} (nvcc {cuda}), which needs driver {branch}; here is {driver}"),
        impact: format!("every kernel of {} fails to load with CUDA error 222", demand.name()),
        fix: format!(
            "upgrade the driver to branch {branch} (CUDA {cuda} came with {shipped}), or build the trainer with an older nvcc"
        ),
        see: "qvl doctor binary qvl-train; nvidia-smi".to_owned(),
    });
    Ok(Judgement::from_option(problem, evidence))
}

fn arch_not_covered(node: &NodeFacts, demand: &Demand) -> Outcome {
    let (alone, sass) = (node.trainer.ptx.get()?, node.trainer.sass.value());
    // Programs beside machine code count when there are no others.
    let ptx = match node.trainer.fat_ptx.value() {
        Some(fat) if alone.is_empty() => fat,
        Some(_) | None => alone,
    };
    if ptx.is_empty() && sass.is_none_or(Vec::is_empty) {
        return Err(Stop::skip("the trainer has no GPU code in it: see trainer-without-cuda"));
    }
    let texts = Texts {
        impact: "kernels fail to load on this GPU, with CUDA error 209 or 222",
        fix: "build the trainer with CUDA_COMPUTE_CAP of the oldest GPU, or leave this GPU out",
        see: "nvidia-smi --query-gpu=index,compute_cap --format=csv; strings qvl-train | grep '^.target'",
    };
    let mut offered: Vec<String> = ptx.iter().map(|ptx| format!("PTX {}", ptx.target)).collect();
    offered.extend(sass.into_iter().flatten().map(|sass| format!("code sm_{}", sass.arch)));
    each_gpu(node, demand, texts, |gpu| {
        let have = *gpu.compute_capability.get()?;
        let by_ptx = ptx.iter().any(|ptx| runs_on(&ptx.target, have));
        // Objects of machine code cover one library, not all kernels; PTX is what counts here.
        let by_code = alone.is_empty()
            && sass.into_iter().flatten().any(|s| s.arch / 10 == have / 10 && s.arch <= have);
        let evidence =
            Evidence::of(&node.trainer.ptx, offered.clone(), format!("one that runs on sm_{have}"));
        if by_ptx || by_code {
            return Ok(GpuVerdict::Fine(evidence));
        }
        let what = format!("is sm_{have}; the trainer has {}", offered.join(", "));
        Ok(GpuVerdict::Bad(Severity::Block, what, evidence))
    })
}

/// Whether PTX for `target` runs on a GPU of compute capability `have`.
fn runs_on(target: &str, have: u32) -> bool {
    let Some(arch) = target.strip_prefix("sm_") else { return false };
    if let Some(exact) = arch.strip_suffix('a') {
        return exact.parse() == Ok(have);
    }
    if let Some(family) = arch.strip_suffix('f') {
        return family.parse::<u32>().is_ok_and(|arch| arch / 10 == have / 10 && arch <= have);
    }
    arch.parse::<u32>().is_ok_and(|arch| arch <= have)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ptx_runs_on_newer_gpus_only() {
        assert!(runs_on("sm_80", 90) && runs_on("sm_80", 80));
        assert!(!runs_on("sm_90", 80));
        assert!(runs_on("sm_90a", 90) && !runs_on("sm_90a", 100));
        assert!(runs_on("sm_100f", 103) && !runs_on("sm_100f", 120));
    }
}
