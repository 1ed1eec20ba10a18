//! Which driver it is: `driver-denied`, `driver-end-of-life`, `closed-kernel-module`,
//! `open-kernel-module-unsupported`, `cuda-unavailable`, `cuda-count-mismatch`,
//! `cuda-driver-mismatch`.

use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Rule, Severity, Stop, table,
    },
    facts::{CudaState, NodeFacts},
};

pub(super) static DRIVER_DENIED: Rule = Rule {
    id: "driver-denied",
    summary: "the driver is not known to break jobs of several GPUs",
    area: Area::Driver,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "src/doctor/data/denied_drivers.tsv, each line with its report",
    docs: "Some drivers hang or copy wrongly between GPUs of some products, and a newer driver \
           repairs it. Jobs on one GPU never show it.",
    reads: "nvmlSystemGetDriverVersion, nvmlDeviceGetName",
    fix: "upgrade the driver; until then, NCCL_P2P_DISABLE=1",
    check: Check::Node(denied),
};

pub(super) static DRIVER_END_OF_LIFE: Rule = Rule {
    id: "driver-end-of-life",
    summary: "the driver branch still gets repairs",
    area: Area::Driver,
    severity: Severity::Warn,
    applies: Applies::Gpus,
    source: "https://docs.nvidia.com/datacenter/tesla/drivers/ (support matrix), read 2026-10",
    docs: "Branches before 535 get no repairs any more, neither for hangs nor for security holes, \
           and no NCCL or CUDA of today is tested with them.",
    reads: "nvmlSystemGetDriverVersion",
    fix: "upgrade to a branch that is supported, 535 or newer",
    check: Check::Node(end_of_life),
};

pub(super) static CLOSED_KERNEL_MODULE: Rule = Rule {
    id: "closed-kernel-module",
    summary: "Blackwell GPUs have the open kernel module",
    area: Area::Driver,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "NVIDIA driver installation guide, open kernel modules; PCI ids of Blackwell",
    docs: "GPUs from Blackwell on are driven by the open kernel module only. With the closed one \
           the bus shows the GPU, and NVML does not.",
    reads: "/proc/driver/nvidia/version, ids of the GPUs in /sys/bus/pci/devices",
    fix: "install the open kernel module (nvidia-driver-...-open) and reboot",
    check: Check::Node(closed),
};

pub(super) static OPEN_KERNEL_MODULE_UNSUPPORTED: Rule = Rule {
    id: "open-kernel-module-unsupported",
    summary: "GPUs before Turing have the closed kernel module",
    area: Area::Driver,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "NVIDIA/open-gpu-kernel-modules README (Turing and later)",
    docs: "The open kernel module needs the system processor that GPUs have from Turing on. It \
           does not drive Pascal and Volta (P100, V100): the bus shows the GPU, and NVML does not.",
    reads: "/proc/driver/nvidia/version, ids of the GPUs in /sys/bus/pci/devices",
    fix: "install the closed kernel module of the same version and reboot",
    check: Check::Node(open),
};

pub(super) static CUDA_UNAVAILABLE: Rule = Rule {
    id: "cuda-unavailable",
    summary: "CUDA starts",
    area: Area::Driver,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "CUDA driver API, cuInit and CUresult",
    docs: "NVML and CUDA are two libraries: nvidia-smi may work while no program can compute. The \
           code of cuInit says why: 100 no device that this process may see, 999 unknown, often a \
           missing nvidia_uvm, or a driver that must be loaded again.",
    reads: "dlopen libcuda.so.1, cuInit, in a process of its own",
    fix: "look at the code; load nvidia_uvm, unset CUDA_VISIBLE_DEVICES, or reboot the node",
    check: Check::Node(unavailable),
};

pub(super) static CUDA_COUNT_MISMATCH: Rule = Rule {
    id: "cuda-count-mismatch",
    summary: "CUDA sees the GPUs that NVML and CUDA_VISIBLE_DEVICES promise",
    area: Area::Gpu,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "CUDA driver API, cuDeviceGetCount; aicr#1858 (7 of 8 GPUs)",
    docs: "Ranks count GPUs with CUDA. It leaves out a GPU that does not start, one in compute \
           mode prohibited, and everything after a wrong entry of CUDA_VISIBLE_DEVICES; NVML still \
           lists them.",
    reads: "cuDeviceGetCount, nvmlDeviceGetCount_v2, CUDA_VISIBLE_DEVICES",
    fix: "reset the GPU that CUDA leaves out, or start fewer ranks",
    check: Check::Node(count),
};

pub(super) static CUDA_DRIVER_MISMATCH: Rule = Rule {
    id: "cuda-driver-mismatch",
    summary: "libcuda and NVML are of one driver",
    area: Area::Driver,
    severity: Severity::Warn,
    applies: Applies::Gpus,
    source: "cuDriverGetVersion, nvmlSystemGetCudaDriverVersion_v2",
    docs: "Both libraries come with the driver and tell the highest CUDA that it knows. When they \
           differ, one of them is of another driver: left over from an upgrade, copied into an \
           image, or the compatibility package.",
    reads: "cuDriverGetVersion, nvmlSystemGetCudaDriverVersion_v2",
    fix: "remove copies of libcuda from the image and from LD_LIBRARY_PATH",
    check: Check::Node(mismatch),
};

fn denied(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.nvml.driver_version;
    let driver = fact.get()?;
    let products = super::peers::products(node, demand)?;
    let found = products.iter().find_map(|name| Some((name, table::denied_driver(name, driver)?)));
    let problem = found.map(|(name, [trouble, repaired, source])| {
        DRIVER_DENIED.problem(
            format!("driver {driver} with {name}: {trouble} ({source}; repaired in {repaired})"),
            format!("ranks of {} may hang without a message", demand.name()),
            "nvidia-smi --query-gpu=driver_version,name --format=csv",
        )
    });
    Judgement::of(fact, driver.as_str(), "not on the list", problem)
}

fn end_of_life(node: &NodeFacts, demand: &Demand) -> Outcome {
    const OLDEST: u32 = 535;
    let fact = &node.nvml.driver_version;
    let driver = fact.get()?;
    let branch = table::version(driver).first().copied().unwrap_or(0);
    let problem = (branch < OLDEST).then(|| {
        DRIVER_END_OF_LIFE.problem(
            format!("driver {driver} (branch {OLDEST} or newer wanted)"),
            format!("faults that {} hits will not be repaired", demand.name()),
            "nvidia-smi --query-gpu=driver_version --format=csv,noheader",
        )
    });
    Judgement::of(fact, driver.as_str(), format!("branch {OLDEST} or newer"), problem)
}

/// First two digits of device ids, which tell the architecture.
const BLACKWELL: [&str; 6] = ["10de:29", "10de:2b", "10de:2c", "10de:2d", "10de:2f", "10de:31"];
/// Pascal and Volta.
const BEFORE_TURING: [&str; 4] = ["10de:15", "10de:1b", "10de:1c", "10de:1d"];

/// The kernel module against GPUs on the bus that it does not drive.
fn kind(node: &NodeFacts, demand: &Demand, rule: &Rule, ids: &[&str], wants_open: bool) -> Outcome {
    let fact = &node.driver.kernel_module;
    let Some(module) = fact.get()? else {
        return Err(Stop::skip("the nvidia module is not loaded: see kernel-module-missing"));
    };
    let name = |open: bool| if open { "the open module" } else { "the closed module" };
    let gpus = node.driver.pci_gpus.get()?;
    let hit = gpus.iter().find(|gpu| ids.iter().any(|id| gpu.id.starts_with(id)));
    let hit = hit.filter(|_| module.open != wants_open);
    let problem = hit.map(|gpu| {
        rule.problem(
            format!(
                "{} is loaded, which does not drive GPU {} ({})",
                name(module.open),
                gpu.address,
                gpu.id
            ),
            format!("{} cannot use this GPU", demand.name()),
            "cat /proc/driver/nvidia/version; lspci -nn -d 10de:",
        )
    });
    Judgement::of(fact, name(module.open), "a module that drives all GPUs", problem)
}

fn closed(node: &NodeFacts, demand: &Demand) -> Outcome {
    kind(node, demand, &CLOSED_KERNEL_MODULE, &BLACKWELL, true)
}

fn open(node: &NodeFacts, demand: &Demand) -> Outcome {
    kind(node, demand, &OPEN_KERNEL_MODULE_UNSUPPORTED, &BEFORE_TURING, false)
}

fn unavailable(node: &NodeFacts, demand: &Demand) -> Outcome {
    /// Codes that other checks explain: stub, fabric, compatibility.
    const OF_OTHERS: [u32; 4] = [34, 802, 803, 804];
    let fact = &node.cuda.state;
    let what = match fact.get()? {
        CudaState::Ready => None,
        CudaState::Failed { code, .. } if OF_OTHERS.contains(code) => {
            return Err(Stop::skip(format!(
                "cuInit returned {code}, which another check explains"
            )));
        }
        CudaState::Failed { code, message } => Some(format!("cuInit returned {code}: {message}")),
        CudaState::LibraryMissing { message } => Some(format!("libcuda does not load: {message}")),
        CudaState::Hung { call, after_ms } => {
            Some(format!("{call} did not come back within {after_ms} ms"))
        }
        CudaState::Crashed { message } => {
            Some(format!("the process that starts CUDA died: {message}"))
        }
    };
    let text = what.clone().unwrap_or_else(|| "ready".to_owned());
    let problem = what.map(|what| {
        CUDA_UNAVAILABLE.problem(
            what,
            format!("no rank of {} can start", demand.name()),
            "nvidia-smi; lsmod | grep nvidia_uvm; echo $CUDA_VISIBLE_DEVICES",
        )
    });
    Judgement::of(fact, text, "ready", problem)
}

fn count(node: &NodeFacts, demand: &Demand) -> Outcome {
    if node.cuda.state.get()? != &CudaState::Ready {
        return Err(Stop::skip("CUDA does not start: see cuda-unavailable"));
    }
    let fact = &node.cuda.device_count;
    let cuda = *fact.get()?;
    node.nvml.gpus.get()?;
    node.env.variables.get()?;
    let promised = super::visible::indices(node).len();
    // An instance of a divided GPU counts as a device of its own.
    let divided = node
        .nvml
        .gpus
        .value()
        .into_iter()
        .flatten()
        .any(|gpu| gpu.mig.value().copied().flatten().is_some_and(|mig| mig.current));
    if divided {
        return Err(Stop::skip("a GPU is divided: see mig-enabled"));
    }
    let enough = demand.ranks_per_node().is_some_and(|ranks| ranks <= cuda);
    let problem = (promised != cuda as usize).then(|| {
        let problem = CUDA_COUNT_MISMATCH.problem(
            format!("CUDA sees {cuda} GPUs, NVML and CUDA_VISIBLE_DEVICES promise {promised}"),
            format!("ranks of {} may get no GPU, or another one", demand.name()),
            "nvidia-smi -L; echo $CUDA_VISIBLE_DEVICES",
        );
        if enough { problem.at(Severity::Warn) } else { problem }
    });
    Judgement::of(fact, cuda, promised.to_string(), problem)
}

fn mismatch(node: &NodeFacts, demand: &Demand) -> Outcome {
    let (fact, nvml) = (&node.cuda.driver_version, *node.nvml.cuda_version.get()?);
    let cuda = *fact.get()?;
    let text = |version: u32| format!("{}.{}", version / 1000, version % 1000 / 10);
    let evidence = Evidence::of(fact, text(cuda), text(nvml));
    let problem = (cuda != nvml).then(|| {
        CUDA_DRIVER_MISMATCH.problem(
            format!("libcuda knows CUDA {}, NVML's driver CUDA {}", text(cuda), text(nvml)),
            format!("CUDA may refuse to start ranks of {} with 803", demand.name()),
            "ldconfig -p | grep -E 'libcuda|libnvidia-ml'; echo $LD_LIBRARY_PATH",
        )
    });
    Ok(Judgement::from_option(problem, evidence))
}
