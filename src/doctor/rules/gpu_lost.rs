//! `gpu-lost` and `recovery-action-pending`.

use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Problem, Rule, Severity, Stop,
        gpus::{GpuVerdict, Texts, each_gpu},
    },
    facts::{GpuHandle, NodeFacts},
};

pub(super) static GPU_LOST: Rule = Rule {
    id: "gpu-lost",
    summary: "every GPU answers",
    area: Area::Gpu,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "https://docs.nvidia.com/deploy/xid-errors/ (XID 79); NVML_ERROR_GPU_IS_LOST",
    docs: "A GPU that fell off the bus still counts, but every call on it fails, and its \
           configuration space reads all ones. Only a reboot or a power cycle brings it back. One \
           lost GPU often makes driver calls on the others slow.",
    reads: "nvmlDeviceGetHandleByIndex_v2, PCI configuration space",
    fix: "reboot the node; if the GPU is lost again, leave it out",
    check: Check::Node(lost),
};

pub(super) static RECOVERY_ACTION_PENDING: Rule = Rule {
    id: "recovery-action-pending",
    summary: "the driver asks for no reset",
    area: Area::Gpu,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "NVML field 230, GET_GPU_RECOVERY_ACTION (driver 565 and newer)",
    docs: "From driver 565 on the driver says itself what a GPU needs after an error: a reset, a \
           reboot, or that peers stop using it. Work started before that fails or is wrong.",
    reads: "nvmlDeviceGetFieldValues 230",
    fix: "do what the action says: reset, reboot or drain",
    check: Check::Node(recovery),
};

fn lost(node: &NodeFacts, demand: &Demand) -> Outcome {
    let gpus = node.nvml.gpus.get()?;
    let mut bad: Vec<String> = gpus
        .iter()
        .filter_map(|gpu| match &gpu.handle {
            GpuHandle::Ready => None,
            GpuHandle::Lost => Some(format!("GPU {} is lost", gpu.index)),
            GpuHandle::Failed { message, .. } => {
                Some(format!("GPU {} gives no handle ({message})", gpu.index))
            }
        })
        .collect();
    let pci = node.driver.pci_gpus.get()?;
    bad.extend(
        pci.iter()
            .filter(|gpu| gpu.config_all_ones)
            .map(|gpu| format!("{} fell off the PCI bus (reads all ones)", gpu.address)),
    );
    if gpus.is_empty() && bad.is_empty() {
        return Err(Stop::skip("NVML shows no GPU on this node"));
    }
    let evidence = Evidence::of(&node.nvml.gpus, bad.clone(), "every GPU gives a handle");
    let problem = (!bad.is_empty()).then(|| Problem {
        severity: Severity::Block,
        what: bad.join("; "),
        impact: format!(
            "a rank of {} on it fails, and driver calls on the others may hang",
            demand.name()
        ),
        fix: "reboot the node; if it comes back, have the GPU, riser and power checked".to_owned(),
        see: "nvidia-smi; dmesg | grep -i 'fallen off the bus'".to_owned(),
    });
    Ok(Judgement::from_option(problem, evidence))
}

fn recovery(node: &NodeFacts, demand: &Demand) -> Outcome {
    let texts = Texts {
        impact: "kernels on this GPU fail or give wrong results until that is done",
        fix: "do it: nvidia-smi --gpu-reset -i <GPU> for a reset, else drain and reboot the node",
        see: "nvidia-smi -q | grep -A2 'GPU Recovery Action'",
    };
    each_gpu(node, demand, texts, |gpu| {
        let fact = &gpu.recovery_action;
        let Some(action) = *fact.get()? else {
            return Ok(GpuVerdict::Exempt("the driver is older than 565 and does not say"));
        };
        let evidence = Evidence::of(fact, action, "0 (none)");
        let name = match action {
            0 => return Ok(GpuVerdict::Fine(evidence)),
            1 => "a GPU reset",
            2 => "a reboot of the node",
            3 => "that peers are drained",
            4 => "a drain and a reset",
            _ => "an action that this version does not know",
        };
        let what = format!("the driver asks for {name} (recovery action {action}, 0 required)");
        Ok(GpuVerdict::Bad(Severity::Block, what, evidence))
    })
}
