//! `fabric-not-ready`: registration at the `NVSwitch` fabric.

use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Outcome, Rule, Severity,
        gpus::{GpuVerdict, Texts, each_gpu},
    },
    facts::{CudaState, Fabric, NodeFacts},
};

pub(super) static RULE: Rule = Rule {
    id: "fabric-not-ready",
    summary: "GPUs are registered at the NVSwitch fabric",
    area: Area::Links,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "Azure/azhpc-images#506 (completed with a bad status passed); NVIDIA/nccl#1231 (error 802)",
    docs: "On NVSwitch machines the Fabric Manager must have registered every GPU before CUDA \
           starts: cuInit returns 802 otherwise, for one GPU as for many. Registration that is \
           completed with an error, or with a degraded or wrong route, fails too.",
    reads: "nvmlDeviceGetGpuFabricInfoV, cuInit",
    fix: "start the Fabric Manager of the driver's version",
    check: Check::Node(check),
};

/// Two bits per condition; 1 means that it holds.
const CONDITIONS: [(u32, &str); 4] = [
    (0, "degraded bandwidth"),
    (2, "route recovery in progress"),
    (4, "unhealthy route"),
    (6, "access timeout recovery in progress"),
];
const SYSTEM_NOT_READY: u32 = 802;

fn check(node: &NodeFacts, demand: &Demand) -> Outcome {
    let texts = Texts {
        impact: "cuInit returns 802 or NCCL hangs at start, even with one GPU",
        fix: "start the Fabric Manager of the driver's version: systemctl restart nvidia-fabricmanager",
        see: "nvidia-smi -q | grep -A4 Fabric; systemctl status nvidia-fabricmanager",
    };
    let not_ready =
        matches!(node.cuda.state.value(), Some(CudaState::Failed { code: SYSTEM_NOT_READY, .. }));
    each_gpu(node, demand, texts, |gpu| {
        let fact = &gpu.fabric;
        let Some(fabric) = fact.get()? else {
            if not_ready {
                let evidence = Evidence::of(&node.cuda.state, SYSTEM_NOT_READY, "0");
                let what = "cuInit returned 802 (system not ready)".to_owned();
                return Ok(GpuVerdict::Bad(Severity::Block, what, evidence));
            }
            return Ok(GpuVerdict::Exempt("the GPUs are not on an NVSwitch fabric"));
        };
        let text = format!(
            "state {}, status {}, health {:#x}",
            fabric.state, fabric.status, fabric.health_mask
        );
        let evidence = Evidence::of(fact, text, "state 3, status 0, no condition");
        Ok(match fault(fabric) {
            Some(what) => GpuVerdict::Bad(Severity::Block, what, evidence),
            None => GpuVerdict::Fine(evidence),
        })
    })
}

fn fault(fabric: &Fabric) -> Option<String> {
    match fabric.state {
        3 => {}
        1 => return Some("fabric registration has not started (state 1, 3 required)".to_owned()),
        2 => return Some("fabric registration is in progress (state 2, 3 required)".to_owned()),
        other => return Some(format!("fabric registration is in state {other} (3 required)")),
    }
    if fabric.status != 0 {
        return Some(format!(
            "fabric registration completed with error {} (0 required)",
            fabric.status
        ));
    }
    let holds = |shift: &u32| (fabric.health_mask >> shift) & 0b11 == 1;
    let mut found: Vec<&str> = CONDITIONS
        .iter()
        .filter(|(shift, _name)| holds(shift))
        .map(|(_shift, name)| *name)
        .collect();
    // 0 is "not supported" and 1 is "none" in the four bits of the configuration.
    if 1 < (fabric.health_mask >> 8) & 0xf {
        found.push("incorrect configuration");
    }
    (!found.is_empty()).then(|| format!("the fabric reports {}", found.join(", ")))
}
