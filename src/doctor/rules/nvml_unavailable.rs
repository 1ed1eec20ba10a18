//! `nvml-unavailable` and `driver-hang`: does the driver answer at all?

use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Problem, Rule, Severity, Stop,
    },
    facts::{CudaState, NodeFacts, NvmlState},
};

pub(super) static NVML_UNAVAILABLE: Rule = Rule {
    id: "nvml-unavailable",
    summary: "the driver's management library answers",
    area: Area::Driver,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceEnumvs.html",
    docs: "NVML is how every program asks the driver about GPUs. It cannot be loaded in a \
           container that was started without the NVIDIA runtime, and refuses to work when the \
           kernel module is not loaded or is of another version than the library. No GPU rank can \
           start then. A missing library is a failure here, never a healthy machine without GPUs.",
    reads: "dlopen libnvidia-ml.so.1, nvmlInit_v2",
    fix: "install or load the driver; in a container, run it with the NVIDIA runtime",
    check: Check::Node(unavailable),
};

pub(super) static DRIVER_HANG: Rule = Rule {
    id: "driver-hang",
    summary: "driver calls come back in time",
    area: Area::Driver,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "AMD-AGI/Primus node_smoke, latency canary (5 s)",
    docs: "A driver that wedges answers queries late or never. The doctor asks the driver in a \
           process of its own and kills it after 5 seconds, so that it can report the call that \
           hangs. A rank on such a node would hang in its first CUDA call, without a message.",
    reads: "time of each driver call, in a process of its own",
    fix: "reset the GPU or reboot the node",
    check: Check::Node(hang),
};

/// Longest time of a single management query, in milliseconds.
const SLOWEST_MS: u64 = 5000;

fn unavailable(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.nvml.state;
    let (what, fix) = match fact.get()? {
        NvmlState::Ready => {
            return Ok(Judgement::pass(Evidence::of(fact, "ready", "success")));
        }
        NvmlState::Hung { .. } => return Err(Stop::skip("a driver call hangs: see driver-hang")),
        NvmlState::LibraryBroken { message } => (
            format!("libnvidia-ml.so.1 cannot be loaded ({message})"),
            "reinstall the driver, so that its libraries are whole and of one version",
        ),
        NvmlState::LibraryMissing { message } => (
            format!("there is no libnvidia-ml.so.1 ({message})"),
            if node.container.kind.value().is_some_and(Option::is_some) {
                "start the container with the NVIDIA runtime: docker run --gpus all, or runtimeClassName: nvidia"
            } else {
                "install the NVIDIA driver"
            },
        ),
        NvmlState::Failed { code, message } => {
            (format!("nvmlInit_v2 returned {code} ({message})"), fix_for(*code))
        }
        NvmlState::Crashed { message } => (
            format!("the process that asked the driver died: {message}"),
            "reinstall the driver so that library and kernel module are of one version",
        ),
    };
    let problem = Problem {
        severity: Severity::Block,
        what: format!("the NVIDIA driver cannot be asked: {what}"),
        impact: format!("no rank of {} can use a GPU on this node", demand.name()),
        fix: fix.to_owned(),
        see: "nvidia-smi".to_owned(),
    };
    Ok(Judgement::problem(problem, Evidence::of(fact, what, "success")))
}

fn fix_for(code: u32) -> &'static str {
    match code {
        4 => "give this user access to /dev/nvidia* (group `video`, or the device plugin's mounts)",
        9 => "load the driver: modprobe nvidia nvidia_uvm; install it if there is no such module",
        18 => {
            "the driver was upgraded while the old module stayed loaded: reload the modules or reboot"
        }
        27 => "the driver is still starting: wait and run the doctor again",
        _ => "look at the kernel log (dmesg | grep NVRM), then reload the modules or reboot",
    }
}

fn hang(node: &NodeFacts, demand: &Demand) -> Outcome {
    let hung = match (node.nvml.state.value(), node.cuda.state.value()) {
        (Some(NvmlState::Hung { call, after_ms }), _)
        | (_, Some(CudaState::Hung { call, after_ms })) => Some((call.clone(), *after_ms)),
        (
            Some(
                NvmlState::LibraryMissing { .. }
                | NvmlState::LibraryBroken { .. }
                | NvmlState::Failed { .. },
            ),
            _,
        ) => return Err(Stop::skip("there is no driver to ask: see nvml-unavailable")),
        _ => None,
    };
    let (call, ms) = match hung {
        Some(hung) => hung,
        None => node.nvml.slowest_call.get()?.clone(),
    };
    let evidence =
        Evidence::of(&node.nvml.slowest_call, format!("{call}: {ms} ms"), "at most 5000 ms");
    let problem = (SLOWEST_MS <= ms).then(|| Problem {
        severity: Severity::Block,
        what: format!("{call} took {ms} ms or never came back (at most {SLOWEST_MS} ms)"),
        impact: format!("ranks of {} would hang in their first driver call", demand.name()),
        fix: "reset the GPU (nvidia-smi --gpu-reset) or reboot the node".to_owned(),
        see: "time nvidia-smi; ps -eo pid,stat,wchan:30,comm | awk '$2 ~ /D/'".to_owned(),
    });
    Ok(Judgement::from_option(problem, evidence))
}
