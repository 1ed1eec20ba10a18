//! `gpu-busy`: does somebody else use the GPU?

use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Outcome, Rule, Severity,
        gpus::{GpuVerdict, Texts, each_gpu},
        table,
    },
    facts::NodeFacts,
};

pub(super) static RULE: Rule = Rule {
    id: "gpu-busy",
    summary: "no other program uses the GPU",
    area: Area::Gpu,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "AMD-AGI/Primus node_smoke (2 GiB before first touch, 20 % activity); go-dcgm#52",
    docs: "Memory that another program or a leaked process holds is missing to the job, and its \
           kernels slow the job down. With a job, memory blocks when the rest is less than its \
           estimate. Processes of other containers may be hidden while their memory is not.",
    reads: "nvmlDeviceGetComputeRunningProcesses_v3, nvmlDeviceGetMemoryInfo_v2",
    fix: "end the process, or wait for it",
    check: Check::Node(check),
};

/// Memory in use before the job's first touch that counts as somebody's.
const IDLE_BYTES: u64 = 2 << 30;
const BUSY_PERCENT: u32 = 20;

/// Who uses a GPU of this machine, if anybody does: active tests would disturb him, and what they
/// measured would be nobody's.
pub fn occupied(node: &NodeFacts) -> Option<String> {
    let gpus = node.nvml.gpus.value()?;
    gpus.iter().find_map(|gpu| {
        let pids: Vec<String> = gpu.processes.value().map_or(Vec::new(), |processes| {
            processes.iter().map(|process| process.pid.to_string()).collect()
        });
        let used = gpu.memory_used_bytes.value().copied().unwrap_or(0);
        let percent = gpu.utilization_percent.value().copied().flatten().unwrap_or(0);
        if pids.is_empty() && used <= IDLE_BYTES && percent <= BUSY_PERCENT {
            return None;
        }
        let by = if pids.is_empty() {
            "by a process that is not shown here".to_owned()
        } else {
            format!("by process {}", pids.join(", "))
        };
        let used = table::bytes(used);
        Some(format!("GPU {} is in use {by}: {used} of memory, activity {percent} %", gpu.index))
    })
}

fn check(node: &NodeFacts, demand: &Demand) -> Outcome {
    let texts = Texts {
        impact: "the job may run out of memory, or share the GPU and run at half its speed",
        fix: "stop the process (kill its PID), or choose another GPU with CUDA_VISIBLE_DEVICES",
        see: "nvidia-smi --query-compute-apps=gpu_uuid,pid,used_memory,name --format=csv",
    };
    each_gpu(node, demand, texts, |gpu| {
        let used = *gpu.memory_used_bytes.get()?;
        let processes = gpu.processes.get()?;
        let percent = gpu.utilization_percent.get()?.unwrap_or(0);
        let total = *gpu.memory_total_bytes.get()?;
        let evidence = Evidence::of(
            &gpu.memory_used_bytes,
            crate::doctor::Value::Bytes(used),
            "under 2 GiB, no process, activity at most 20 %",
        );
        let pids: Vec<String> = processes.iter().map(|process| process.pid.to_string()).collect();
        let by = if pids.is_empty() {
            String::new()
        } else {
            format!(" by process {}", pids.join(", "))
        };
        let short =
            demand.rank_memory_bytes.is_some_and(|need| total < need + used && need <= total);
        if IDLE_BYTES < used || short {
            let severity = if short || demand.rank_memory_bytes.is_none() {
                Severity::Block
            } else {
                Severity::Warn
            };
            let what = format!("{} in use{by} (2 GiB allowed)", table::bytes(used));
            return Ok(GpuVerdict::Bad(severity, what, evidence));
        }
        if BUSY_PERCENT < percent || !pids.is_empty() {
            let what = format!("in use{by}, activity {percent} % (at most {BUSY_PERCENT} %)");
            return Ok(GpuVerdict::Bad(Severity::Warn, what, evidence));
        }
        Ok(GpuVerdict::Fine(evidence))
    })
}
