//! `compute-mode-exclusive`, `mig-enabled`, `persistence-off`.

use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Outcome, Rule, Severity,
        gpus::{GpuVerdict, Texts, each_gpu},
    },
    facts::{ComputeMode, MigMode, NodeFacts},
};

pub(super) static COMPUTE_MODE_EXCLUSIVE: Rule = Rule {
    id: "compute-mode-exclusive",
    summary: "the compute mode lets ranks in",
    area: Area::Gpu,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "https://docs.nvidia.com/cuda/cuda-c-programming-guide/#compute-modes",
    docs: "In mode prohibited no program may compute. In mode exclusive one process may: a rank \
           works, but a leaked process or a tool that looks at the GPU locks the next rank out.",
    reads: "nvmlDeviceGetComputeMode",
    fix: "nvidia-smi -c DEFAULT",
    check: Check::Node(compute_mode),
};

pub(super) static MIG_ENABLED: Rule = Rule {
    id: "mig-enabled",
    summary: "GPUs are not divided",
    area: Area::Gpu,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "https://docs.nvidia.com/datacenter/tesla/mig-user-guide/ (no P2P between instances)",
    docs: "Ranks on slices of a divided GPU cannot reach each other: no peer access and no NCCL \
           between instances. One rank on one slice works. A mode that changes at the next reset \
           is only a warning.",
    reads: "nvmlDeviceGetMigMode",
    fix: "nvidia-smi -mig 0 and a reset, or one rank",
    check: Check::Node(mig),
};

pub(super) static PERSISTENCE_OFF: Rule = Rule {
    id: "persistence-off",
    summary: "the driver stays loaded between programs",
    area: Area::Gpu,
    severity: Severity::Warn,
    applies: Applies::Gpus,
    source: "https://docs.nvidia.com/deploy/driver-persistence/",
    docs: "Without persistence the driver unloads the GPU's state when the last program ends, and \
           loads it again for the next: seconds at every start, and clock and power settings lost.",
    reads: "nvmlDeviceGetPersistenceMode",
    fix: "nvidia-smi -pm 1",
    check: Check::Node(persistence),
};

fn compute_mode(node: &NodeFacts, demand: &Demand) -> Outcome {
    let texts = Texts {
        impact: "a rank may be refused with `all CUDA-capable devices are busy or unavailable`",
        fix: "nvidia-smi -c DEFAULT -i <GPU>",
        see: "nvidia-smi --query-gpu=index,compute_mode --format=csv",
    };
    each_gpu(node, demand, texts, |gpu| {
        let fact = &gpu.compute_mode;
        let (severity, name) = match fact.get()? {
            ComputeMode::Default => {
                return Ok(GpuVerdict::Fine(Evidence::of(fact, "default", "default")));
            }
            ComputeMode::Prohibited => (Severity::Block, "prohibited"),
            ComputeMode::ExclusiveProcess => (Severity::Warn, "exclusive process"),
            ComputeMode::ExclusiveThread => (Severity::Warn, "exclusive thread"),
        };
        let what = format!("compute mode is {name} (default required)");
        Ok(GpuVerdict::Bad(severity, what, Evidence::of(fact, name, "default")))
    })
}

fn mig(node: &NodeFacts, demand: &Demand) -> Outcome {
    let texts = Texts {
        impact: "NCCL cannot connect ranks on slices, so a job of several ranks does not start",
        fix: "nvidia-smi -mig 0 -i <GPU> and reset it, or run one rank (--gpus 1)",
        see: "nvidia-smi --query-gpu=index,mig.mode.current,mig.mode.pending --format=csv",
    };
    let many = demand.ranks != Some(1);
    each_gpu(node, demand, texts, |gpu| {
        let fact = &gpu.mig;
        let Some(MigMode { current, pending }) = *fact.get()? else {
            return Ok(GpuVerdict::Fine(Evidence::of(fact, "cannot be divided", "off")));
        };
        let evidence = Evidence::of(fact, format!("now {current}, after reset {pending}"), "off");
        if current {
            let severity = if many { Severity::Block } else { Severity::Warn };
            return Ok(GpuVerdict::Bad(severity, "MIG is on (off required)".to_owned(), evidence));
        }
        if pending {
            let what = "MIG will be on after the next reset".to_owned();
            return Ok(GpuVerdict::Bad(Severity::Warn, what, evidence));
        }
        Ok(GpuVerdict::Fine(evidence))
    })
}

fn persistence(node: &NodeFacts, demand: &Demand) -> Outcome {
    let texts = Texts {
        impact: "every start of a rank waits seconds for the driver, and clock settings are lost",
        fix: "nvidia-smi -pm 1, or enable the service nvidia-persistenced",
        see: "nvidia-smi --query-gpu=index,persistence_mode --format=csv",
    };
    each_gpu(node, demand, texts, |gpu| {
        let fact = &gpu.persistence;
        let on = *fact.get()?;
        let evidence = Evidence::of(fact, on, "on");
        if on {
            return Ok(GpuVerdict::Fine(evidence));
        }
        Ok(GpuVerdict::Bad(Severity::Warn, "persistence mode is off".to_owned(), evidence))
    })
}
