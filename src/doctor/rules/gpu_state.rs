//! State of GPUs that few jobs want: `application-clocks-set`, `gpu-drives-display`,
//! `gpu-virtualised`, `mps-running`, `mps-inconsistent`.

use crate::{
    doctor::{
        Agreement, Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Rule, Severity,
        gpus::{GpuVerdict, Texts, each_gpu},
    },
    facts::{NodeFacts, Unread},
};

pub(super) static APPLICATION_CLOCKS_SET: Rule = Rule {
    id: "application-clocks-set",
    summary: "nobody holds the clocks of a GPU down",
    area: Area::Gpu,
    severity: Severity::Warn,
    applies: Applies::Gpus,
    source: "NVML nvmlClocksEventReasonApplicationsClocksSetting (0x2)",
    docs: "Somebody set the clocks for a benchmark or to save power, and the setting stays until \
           the driver is loaded again. One such GPU makes all ranks wait.",
    reads: "nvmlDeviceGetCurrentClocksEventReasons, two samples",
    fix: "nvidia-smi -rac && nvidia-smi -rgc",
    check: Check::Node(application_clocks),
};

pub(super) static GPU_DRIVES_DISPLAY: Rule = Rule {
    id: "gpu-drives-display",
    summary: "no screen is driven by a GPU of the job",
    area: Area::Gpu,
    severity: Severity::Warn,
    applies: Applies::Gpus,
    source: "nvmlDeviceGetDisplayActive",
    docs: "A desktop takes memory that the plan does not know of, from hundreds of megabytes to \
           gigabytes, and the driver ends kernels that run for more than a few seconds.",
    reads: "nvmlDeviceGetDisplayActive",
    fix: "systemctl isolate multi-user.target, or leave this GPU out (CUDA_VISIBLE_DEVICES)",
    check: Check::Node(display),
};

pub(super) static GPU_VIRTUALISED: Rule = Rule {
    id: "gpu-virtualised",
    summary: "GPUs are whole devices",
    area: Area::Gpu,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "NVIDIA vGPU user guide (peer access); NVIDIA gpu-operator",
    docs: "A virtual GPU is a share of a real one. Most have no peer access, so NCCL copies \
           through the host's memory, and speed depends on the neighbours. A GPU that is passed \
           through whole is fine.",
    reads: "nvmlDeviceGetVirtualizationMode",
    fix: "use GPUs that are passed through whole, or expect the speed of shared memory",
    check: Check::Node(virtualised),
};

pub(super) static MPS_RUNNING: Rule = Rule {
    id: "mps-running",
    summary: "ranks do not go through the multi-process service",
    area: Area::Gpu,
    severity: Severity::Warn,
    applies: Applies::Gpus,
    source: "https://docs.nvidia.com/deploy/mps/ (limitations); CUDA error 805",
    docs: "MPS lets small programs share a GPU. Training has a GPU to itself and gains nothing; \
           in turn a fault of one client ends all, and limits on memory and threads apply.",
    reads: "/proc/*/stat, CUDA_MPS_PIPE_DIRECTORY",
    fix: "echo quit | nvidia-cuda-mps-control; unset CUDA_MPS_PIPE_DIRECTORY",
    check: Check::Node(mps_running),
};

pub(super) static MPS_INCONSISTENT: Rule = Rule {
    id: "mps-inconsistent",
    summary: "MPS is used on all nodes or on none",
    area: Area::Ranks,
    severity: Severity::Block,
    applies: Applies::GpuNodes,
    source: "https://docs.nvidia.com/deploy/mps/; NVIDIA/nccl#418",
    docs: "Ranks under MPS and ranks without it see GPUs by different handles: NCCL takes some of \
           them for duplicates or fails to open their memory.",
    reads: "/proc/*/stat, CUDA_MPS_PIPE_DIRECTORY on all nodes",
    fix: "stop MPS on all nodes",
    check: Check::Agree(Agreement {
        what: "use of MPS",
        read: |node, _demand| {
            Ok(if uses_mps(node)? { "ranks go through MPS" } else { "no MPS" }.to_owned())
        },
        impact: "NCCL refuses the ranks, or they fail to open each other's memory",
        fix: "stop MPS on all nodes: echo quit | nvidia-cuda-mps-control",
        see: "pgrep -a nvidia-cuda-mps; echo $CUDA_MPS_PIPE_DIRECTORY",
    }),
};

fn application_clocks(node: &NodeFacts, demand: &Demand) -> Outcome {
    const SETTING: u64 = 0x2;
    let texts = Texts {
        impact: "this GPU is slower than it can be, and all ranks wait for it",
        fix: APPLICATION_CLOCKS_SET.fix,
        see: "nvidia-smi -q -d PERFORMANCE,CLOCK",
    };
    each_gpu(node, demand, texts, |gpu| {
        let fact = &gpu.clock_event_reasons;
        let samples = fact.get()?;
        let lasting = !samples.is_empty() && samples.iter().all(|bits| bits & SETTING != 0);
        let text: Vec<String> = samples.iter().map(|bits| format!("{bits:#x}")).collect();
        let evidence = Evidence::of(fact, text, "bit 0x2 not in all samples");
        if !lasting {
            return Ok(GpuVerdict::Fine(evidence));
        }
        let what = "clocks are held at a value that somebody set".to_owned();
        Ok(GpuVerdict::Bad(Severity::Warn, what, evidence))
    })
}

fn display(node: &NodeFacts, demand: &Demand) -> Outcome {
    let texts = Texts {
        impact: "the desktop takes memory of the GPU, and long kernels are ended",
        fix: GPU_DRIVES_DISPLAY.fix,
        see: "nvidia-smi --query-gpu=index,display_active,memory.used --format=csv",
    };
    each_gpu(node, demand, texts, |gpu| {
        let fact = &gpu.display_active;
        let Some(active) = *fact.get()? else {
            return Ok(GpuVerdict::Exempt("the GPUs have no display"));
        };
        let evidence = Evidence::of(fact, active, "no");
        if !active {
            return Ok(GpuVerdict::Fine(evidence));
        }
        Ok(GpuVerdict::Bad(Severity::Warn, "a screen is driven by it".to_owned(), evidence))
    })
}

fn virtualised(node: &NodeFacts, demand: &Demand) -> Outcome {
    const VGPU: u32 = 2;
    let texts = Texts {
        impact: "NCCL copies through the host's memory, and speed depends on the neighbours",
        fix: GPU_VIRTUALISED.fix,
        see: "nvidia-smi -q | grep -A2 'GPU Virtualization Mode'",
    };
    each_gpu(node, demand, texts, |gpu| {
        let fact = &gpu.virtualization;
        let Some(mode) = *fact.get()? else {
            return Ok(GpuVerdict::Exempt("the driver does not tell it"));
        };
        let evidence = Evidence::of(fact, mode, "0 none or 1 passed through");
        if mode < VGPU {
            return Ok(GpuVerdict::Fine(evidence));
        }
        Ok(GpuVerdict::Bad(
            Severity::Warn,
            "is a virtual GPU, a share of a real one".to_owned(),
            evidence,
        ))
    })
}

/// Whether programs on this node go through MPS.
fn uses_mps(node: &NodeFacts) -> Result<bool, Unread> {
    let runs = node.system.processes.get()?.daemons.contains("nvidia-cuda-mps");
    let asked = node.env.variables.get()?.contains_key("CUDA_MPS_PIPE_DIRECTORY");
    Ok(runs || asked)
}

fn mps_running(node: &NodeFacts, demand: &Demand) -> Outcome {
    let uses = uses_mps(node)?;
    let problem = uses.then(|| {
        MPS_RUNNING.problem(
            "the multi-process service runs, or CUDA_MPS_PIPE_DIRECTORY is set",
            format!("a fault of one rank of {} ends all on the node", demand.name()),
            "pgrep -a nvidia-cuda-mps; echo $CUDA_MPS_PIPE_DIRECTORY",
        )
    });
    Judgement::of(&node.system.processes, uses, "no", problem)
}
