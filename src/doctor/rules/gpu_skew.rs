//! GPUs of the job that differ: `gpu-model-skew`, `vbios-skew`, `gsp-firmware-skew`, `ecc-skew`,
//! `power-cap-skew`, `temperature-skew`, `gpu-duplicate`.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    doctor::{
        Applies, Area, Check, Conflict, Demand, Evidence, Judgement, Outcome, Problem, Rule,
        Severity, Stop, gpus,
    },
    facts::{GpuFacts, NodeName, Snapshot, Unread},
};

pub(super) static GPU_MODEL_SKEW: Rule = Rule {
    id: "gpu-model-skew",
    summary: "all ranks use GPUs of one product",
    area: Area::Gpu,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "AMD-AGI/Primus preflight, drift table",
    docs: "Ranks wait for each other at every step, so the slowest product sets the pace. \
           Products may also differ in memory, number formats and rounding of their kernels.",
    reads: "nvmlDeviceGetName of the GPUs of the job",
    fix: "choose nodes of one product (nodeSelector nvidia.com/gpu.product)",
    check: Check::Fleet(model),
};

pub(super) static VBIOS_SKEW: Rule = Rule {
    id: "vbios-skew",
    summary: "GPUs of one product have one video BIOS",
    area: Area::Gpu,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "facebookresearch/gcm; imbue-ai/cluster-health",
    docs: "The BIOS sets clocks, power and fixes of the board. A difference breaks nothing by \
           itself; it is the first thing to look at when one GPU is slower or fails alone.",
    reads: "nvmlDeviceGetVbiosVersion of the GPUs of the job",
    fix: "have the vendor bring the odd boards to the version of the others",
    check: Check::Fleet(vbios),
};

pub(super) static GSP_FIRMWARE_SKEW: Rule = Rule {
    id: "gsp-firmware-skew",
    summary: "GPUs of one product run one system firmware",
    area: Area::Gpu,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "nvmlDeviceGetGspFirmwareVersion",
    docs: "The firmware of the GPU's own processor comes with the driver. Versions that differ, \
           or a GPU that runs without it, mean a driver that was not loaded again after an upgrade.",
    reads: "nvmlDeviceGetGspFirmwareVersion of the GPUs of the job",
    fix: "load the driver again on the odd node, or reboot it",
    check: Check::Fleet(gsp),
};

pub(super) static ECC_SKEW: Rule = Rule {
    id: "ecc-skew",
    summary: "error correction is on for all GPUs of the job, or for none",
    area: Area::GpuMemory,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "leptonai/gpud ecc; NVML user guide",
    docs: "On cards whose memory has no bits of its own for error correction it takes a \
           sixteenth of the memory, so the job runs out of memory on those ranks only.",
    reads: "nvmlDeviceGetEccMode of the GPUs of the job",
    fix: "nvidia-smi -e 1 on the odd GPUs, then a reset",
    check: Check::Fleet(ecc),
};

pub(super) static POWER_CAP_SKEW: Rule = Rule {
    id: "power-cap-skew",
    summary: "GPUs of one product have one power limit",
    area: Area::Gpu,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "NVIDIA Health Validation gpu_power_limit",
    docs: "All ranks wait for the slowest GPU, and a lower limit makes one slower, even when each \
           limit by itself is within reason.",
    reads: "nvmlDeviceGetEnforcedPowerLimit of the GPUs of the job",
    fix: "nvidia-smi -pl <watts> with one value on all nodes",
    check: Check::Fleet(power),
};

pub(super) static TEMPERATURE_SKEW: Rule = Rule {
    id: "temperature-skew",
    summary: "no GPU is much hotter than its neighbours",
    area: Area::Gpu,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "this project: 25 C above the coolest GPU of the job, before the job",
    docs: "GPUs that do nothing have about the same temperature. One that is much hotter has a \
           fan, a heat sink or air flow that does not work, or computes for somebody else.",
    reads: "nvmlDeviceGetTemperature of the GPUs of the job",
    fix: "check fans and heat sink of the hot GPU; look for other programs on it",
    check: Check::Fleet(temperature),
};

pub(super) static GPU_DUPLICATE: Rule = Rule {
    id: "gpu-duplicate",
    summary: "no GPU is counted twice",
    area: Area::Ranks,
    severity: Severity::Block,
    applies: Applies::GpuNodes,
    source: "NVIDIA/nccl#231, #418 (`Duplicate GPU detected`)",
    docs: "Two pods on one machine can be given the same GPU by time slicing, MPS or a wrong \
           device list. They look like two nodes, but their ranks share one GPU, which NCCL \
           refuses.",
    reads: "nvmlDeviceGetUUID on all nodes",
    fix: "give each pod GPUs of its own: no time slicing for training jobs",
    check: Check::Fleet(duplicate),
};

/// Values of the GPUs that the ranks use, with their names; `None` leaves a GPU out.
fn values(
    snapshot: &Snapshot,
    demand: &Demand,
    read: impl Fn(&GpuFacts) -> Result<Option<String>, Unread>,
) -> (BTreeMap<String, Vec<String>>, Vec<Unread>) {
    let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut unknown = Vec::new();
    for (name, node) in &snapshot.nodes {
        let used = gpus::used(node, demand);
        match node.nvml.gpus.get() {
            Ok(gpus) => {
                for gpu in gpus.iter().filter(|gpu| used.contains(&gpu.index)) {
                    match read(gpu) {
                        Ok(Some(value)) => {
                            values
                                .entry(value)
                                .or_default()
                                .push(format!("{name} GPU {}", gpu.index));
                        }
                        Ok(None) => {}
                        Err(unread) => unknown.push(unread),
                    }
                }
            }
            Err(unread) => unknown.push(unread),
        }
    }
    (values, unknown)
}

/// A problem when the values differ: the rarest is named.
fn differ(
    rule: &Rule,
    (values, unknown): (BTreeMap<String, Vec<String>>, Vec<Unread>),
    what: &str,
    impact: String,
    see: &str,
) -> Outcome {
    if values.is_empty() && unknown.is_empty() {
        return Err(Stop::skip("no GPU of the job tells it"));
    }
    let found: Vec<String> = values.keys().cloned().collect();
    let evidence = Evidence::new(rule.reads, found, "equal");
    let odd = values.iter().min_by_key(|(_value, gpus)| gpus.len()).filter(|_| 1 < values.len());
    let usual = values.iter().max_by_key(|(_value, gpus)| gpus.len());
    let problem: Option<Problem> = odd.zip(usual).map(|((value, gpus), (usual, most))| {
        let text = format!(
            "{what} differs: {usual} on {} GPUs, but {value} on {}",
            most.len(),
            gpus.iter().take(8).cloned().collect::<Vec<_>>().join(", ")
        );
        rule.problem(text, impact, see)
    });
    Ok(Judgement { unknown, ..Judgement::from_option(problem, evidence) })
}

fn model(snapshot: &Snapshot, demand: &Demand) -> Outcome {
    let values = values(snapshot, demand, |gpu| Ok(Some(gpu.name.get()?.clone())));
    let impact = format!("all ranks of {} wait for the slowest product", demand.name());
    differ(&GPU_MODEL_SKEW, values, "the product", impact, "nvidia-smi -L")
}

fn vbios(snapshot: &Snapshot, demand: &Demand) -> Outcome {
    // Products have BIOS versions of their own.
    let mut all: BTreeMap<String, BTreeMap<String, Vec<String>>> = BTreeMap::new();
    let (values, unknown) = values(snapshot, demand, |gpu| {
        let Some(vbios) = gpu.vbios.get()? else { return Ok(None) };
        Ok(Some(format!("{}\t{vbios}", gpu.name.get()?)))
    });
    for (key, gpus) in values {
        let (product, version) = key.split_once('\t').unwrap_or(("", &key));
        all.entry(product.to_owned()).or_default().insert(version.to_owned(), gpus);
    }
    let mixed = all.into_values().max_by_key(BTreeMap::len).unwrap_or_default();
    let impact = format!("a GPU of {} may be slower than its peers, or fail alone", demand.name());
    let see = "nvidia-smi --query-gpu=index,name,vbios_version --format=csv";
    differ(&VBIOS_SKEW, (mixed, unknown), "the video BIOS", impact, see)
}

fn gsp(snapshot: &Snapshot, demand: &Demand) -> Outcome {
    let values = values(snapshot, demand, |gpu| gpu.gsp_firmware.get().cloned());
    let impact = format!("the odd GPUs of {} may fail alone", demand.name());
    differ(&GSP_FIRMWARE_SKEW, values, "the system firmware", impact, "nvidia-smi -q | grep GSP")
}

fn ecc(snapshot: &Snapshot, demand: &Demand) -> Outcome {
    let values = values(snapshot, demand, |gpu| {
        let mode = *gpu.ecc.get()?;
        Ok(mode.map(|mode| if mode.current { "on" } else { "off" }.to_owned()))
    });
    let impact =
        format!("usable memory differs: {} must be planned for the smallest", demand.name());
    let see = "nvidia-smi --query-gpu=index,ecc.mode.current,memory.total --format=csv";
    differ(&ECC_SKEW, values, "error correction", impact, see)
}

fn power(snapshot: &Snapshot, demand: &Demand) -> Outcome {
    let values = values(snapshot, demand, |gpu| {
        let limit = *gpu.power_limit_mw.get()?;
        let default = *gpu.power_limit_default_mw.get()?;
        // Products have limits of their own, so the share of the default counts.
        Ok(limit
            .zip(default)
            .filter(|(_, default)| 0 < *default)
            .map(|(limit, default)| format!("{} % of the default", limit * 100 / default)))
    });
    let impact = format!("all ranks of {} wait for the GPU with the lowest limit", demand.name());
    let see = "nvidia-smi --query-gpu=index,enforced.power.limit --format=csv";
    differ(&POWER_CAP_SKEW, values, "the power limit", impact, see)
}

fn temperature(snapshot: &Snapshot, demand: &Demand) -> Outcome {
    const SPREAD_C: u32 = 25;
    let (values, unknown) =
        values(snapshot, demand, |gpu| Ok(Some(format!("{:03}", gpu.temperature_c.get()?))));
    let number = |text: &String| text.parse::<u32>().unwrap_or(0);
    let (coolest, hottest) = (values.iter().next(), values.iter().next_back());
    let Some(((low, _), (high, gpus))) = coolest.zip(hottest) else {
        return match unknown.into_iter().next() {
            Some(unread) => Err(unread.into()),
            None => Err(Stop::skip("no GPU of the job tells it")),
        };
    };
    let (low, high) = (number(low), number(high));
    let required = format!("at most {SPREAD_C} C above the coolest");
    let evidence = Evidence::new(TEMPERATURE_SKEW.reads, format!("{low} to {high} C"), required);
    let problem = (low + SPREAD_C < high).then(|| {
        TEMPERATURE_SKEW.problem(
            format!("{} has {high} C, the coolest GPU {low} C", gpus.join(", ")),
            format!("it will slow down under {}, and all ranks wait", demand.name()),
            "nvidia-smi --query-gpu=index,temperature.gpu --format=csv",
        )
    });
    Ok(Judgement { unknown, ..Judgement::from_option(problem, evidence) })
}

#[expect(clippy::unnecessary_wraps, reason = "every check has this type")]
fn duplicate(snapshot: &Snapshot, demand: &Demand) -> Outcome {
    let (values, unknown) = values(snapshot, demand, |gpu| Ok(Some(gpu.uuid.get()?.clone())));
    let evidence = Evidence::new("nvmlDeviceGetUUID", values.len(), "each once");
    let twice = values.iter().find(|(_uuid, gpus)| 1 < gpus.len());
    let twins = values.values().filter(|gpus| 1 < gpus.len()).map(|gpus| {
        let of = |gpu: &String| gpu.rsplit_once(" GPU ").map(|(node, _)| NodeName(node.to_owned()));
        Conflict::of_twins(gpus.iter().filter_map(of).collect::<BTreeSet<_>>())
    });
    let conflicts = twins.collect();
    let problem = twice.map(|(uuid, gpus)| {
        GPU_DUPLICATE.problem(
            format!("{uuid} is {}", gpus.join(" and ")),
            format!("NCCL refuses {} with `Duplicate GPU detected`", demand.name()),
            "nvidia-smi -L on both nodes",
        )
    });
    Ok(Judgement { unknown, conflicts, ..Judgement::from_option(problem, evidence) })
}
