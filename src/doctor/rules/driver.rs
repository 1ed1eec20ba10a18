//! `driver-module-mismatch`, `driver-skew`, `kernel-module-missing`.

use crate::{
    doctor::{
        Agreement, Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Problem, Rule,
        Severity, Stop,
    },
    facts::NodeFacts,
};

pub(super) static DRIVER_MODULE_MISMATCH: Rule = Rule {
    id: "driver-module-mismatch",
    summary: "driver library and kernel module are of one version",
    area: Area::Driver,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "https://docs.nvidia.com/deploy/nvml-api/ (NVML_ERROR_LIB_RM_VERSION_MISMATCH)",
    docs: "A package upgrade replaces the libraries at once, but the kernel module only when it is \
           loaded again. Until then new processes fail to initialise CUDA, while old ones go on.",
    reads: "/proc/driver/nvidia/version, nvmlSystemGetDriverVersion",
    fix: "load the kernel module again, or reboot",
    check: Check::Node(module_mismatch),
};

pub(super) static DRIVER_SKEW: Rule = Rule {
    id: "driver-skew",
    summary: "all nodes run one driver version",
    area: Area::Driver,
    severity: Severity::Warn,
    applies: Applies::GpuNodes,
    source: "AMD-AGI/Primus preflight, drift table",
    docs: "Nodes of different driver versions may work together, but faults that show on some \
           nodes only are then hard to explain. Whether a version breaks this job is judged by \
           cuda-too-new and ptx-too-new, node by node.",
    reads: "nvmlSystemGetDriverVersion on all nodes",
    fix: "upgrade the outliers, or leave them out",
    check: Check::Agree(Agreement {
        what: "driver version",
        read: |node, _demand| Ok(node.nvml.driver_version.get()?.clone()),
        impact: "the job may run, but ranks on the odd nodes may be slower or fail alone",
        fix: "upgrade the outliers to the version of the majority, or leave them out",
        see: "nvidia-smi --query-gpu=driver_version --format=csv,noheader",
    }),
};

pub(super) static KERNEL_MODULE_MISSING: Rule = Rule {
    id: "kernel-module-missing",
    summary: "nvidia and nvidia_uvm are loaded, nouveau is not",
    area: Area::Driver,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "NVIDIA gpu-operator validator; DCGM deny list (nouveau)",
    docs: "CUDA needs the module nvidia_uvm besides nvidia; without it nvidia-smi works and cuInit \
           fails. The module nouveau drives the same hardware and keeps nvidia from loading.",
    reads: "/proc/modules",
    fix: "modprobe nvidia_uvm; blacklist nouveau",
    check: Check::Node(module_missing),
};

fn module_mismatch(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.driver.kernel_module;
    let Some(module) = fact.get()? else {
        return Err(Stop::skip("the nvidia module is not loaded: see kernel-module-missing"));
    };
    let library = node.nvml.driver_version.get()?;
    let evidence = Evidence::of(fact, module.version.as_str(), library.as_str()).about("module");
    let problem = (module.version != *library).then(|| Problem {
        severity: Severity::Block,
        what: format!("the kernel module is {}, the driver library is {library}", module.version),
        impact: format!("CUDA does not start, so no rank of {} can", demand.name()),
        fix:
            "stop all GPU programs, then: rmmod nvidia_uvm nvidia && modprobe nvidia_uvm; or reboot"
                .to_owned(),
        see: "cat /proc/driver/nvidia/version; nvidia-smi".to_owned(),
    });
    Ok(Judgement::from_option(problem, evidence))
}

fn module_missing(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.driver.modules;
    let loaded = fact.get()?;
    let wanted = ["nvidia", "nvidia_uvm"];
    let missing: Vec<&str> = wanted.into_iter().filter(|name| !loaded.contains(*name)).collect();
    let relevant: Vec<String> = loaded
        .iter()
        .filter(|name| name.starts_with("nvidia") || *name == "nouveau")
        .cloned()
        .collect();
    let evidence = Evidence::of(fact, relevant, "nvidia, nvidia_uvm; not nouveau");
    let (what, fix) = if loaded.contains("nouveau") {
        (
            "the kernel module nouveau is loaded; it must not be".to_owned(),
            "blacklist nouveau in /etc/modprobe.d, rebuild the initramfs and reboot".to_owned(),
        )
    } else if missing.is_empty() {
        return Ok(Judgement::pass(evidence));
    } else {
        (
            format!("kernel modules {} are not loaded", missing.join(" and ")),
            format!("modprobe {} on the host", missing.join(" ")),
        )
    };
    let impact = format!("cuInit fails, so no rank of {} can start", demand.name());
    let see = "grep -E '^(nvidia|nouveau)' /proc/modules".to_owned();
    let problem = Problem { severity: Severity::Block, what, impact, fix, see };
    Ok(Judgement::problem(problem, evidence))
}
