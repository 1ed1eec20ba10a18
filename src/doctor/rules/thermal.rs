//! `hw-throttle`, `temperature-margin`, `power-cap`.

use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Outcome, Rule, Severity,
        gpus::{GpuVerdict, Texts, each_gpu},
    },
    facts::NodeFacts,
};

pub(super) static HW_THROTTLE: Rule = Rule {
    id: "hw-throttle",
    summary: "the hardware does not slow the GPU down",
    area: Area::Gpu,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "NVML nvmlClocksEventReasons; leptonai/gpud hw-slowdown",
    docs: "Slowdown by the hardware means heat, a power brake or a bad cable. The reasons are bits \
           of one number, so several may be set at once; idle (0x1) and the software power cap \
           (0x4) are normal. A bit counts when every sample has it.",
    reads: "nvmlDeviceGetCurrentClocksEventReasons, two samples",
    fix: "check cooling, power cables and power supplies",
    check: Check::Node(throttle),
};

pub(super) static TEMPERATURE_MARGIN: Rule = Rule {
    id: "temperature-margin",
    summary: "the GPU is far from its slowdown temperature",
    area: Area::Gpu,
    severity: Severity::Warn,
    applies: Applies::Gpus,
    source: "leptonai/gpud temperature (margin)",
    docs: "A GPU that is hot before the job begins will slow down under load, and all ranks wait \
           for the slowest at every step.",
    reads: "nvmlDeviceGetTemperature, nvmlDeviceGetTemperatureThreshold",
    fix: "check fans, filters and air flow",
    check: Check::Node(margin),
};

pub(super) static POWER_CAP: Rule = Rule {
    id: "power-cap",
    summary: "the power limit is as shipped",
    area: Area::Gpu,
    severity: Severity::Warn,
    applies: Applies::Gpus,
    source: "NVIDIA Health Validation gpu_power_limit",
    docs: "A limit well below the default makes one GPU slower than its peers, and with \
           synchronous training the slowest sets the pace.",
    reads: "nvmlDeviceGetEnforcedPowerLimit, nvmlDeviceGetPowerManagementDefaultLimit",
    fix: "nvidia-smi -pl <default watts>",
    check: Check::Node(power_cap),
};

const HARDWARE: [(u64, &str); 3] =
    [(0x8, "hardware slowdown"), (0x40, "hardware thermal slowdown"), (0x80, "power brake")];
const SOFTWARE_THERMAL: u64 = 0x20;

fn throttle(node: &NodeFacts, demand: &Demand) -> Outcome {
    let texts = Texts {
        impact: "all ranks wait for this GPU at every step, at a fraction of its speed",
        fix: "check cooling and air flow, power cables and power supplies of the node",
        see: "nvidia-smi -q -d PERFORMANCE",
    };
    each_gpu(node, demand, texts, |gpu| {
        let fact = &gpu.clock_event_reasons;
        let samples = fact.get()?;
        // A bit that only one sample has is a moment, not a state.
        let lasting =
            samples.iter().fold(if samples.is_empty() { 0 } else { u64::MAX }, |a, b| a & b);
        let text: Vec<String> = samples.iter().map(|bits| format!("{bits:#x}")).collect();
        let evidence = Evidence::of(fact, text, "no bit of 0xe8 in all samples");
        let set: Vec<&str> = HARDWARE
            .iter()
            .filter(|(bit, _name)| lasting & bit != 0)
            .map(|(_bit, name)| *name)
            .collect();
        if !set.is_empty() {
            let what = format!("{} (clock event reasons {lasting:#x})", set.join(", "));
            return Ok(GpuVerdict::Bad(Severity::Block, what, evidence));
        }
        if lasting & SOFTWARE_THERMAL != 0 {
            let what =
                format!("the driver lowers clocks for heat (clock event reasons {lasting:#x})");
            return Ok(GpuVerdict::Bad(Severity::Warn, what, evidence));
        }
        Ok(GpuVerdict::Fine(evidence))
    })
}

const MARGIN_C: u32 = 5;

fn margin(node: &NodeFacts, demand: &Demand) -> Outcome {
    let texts = Texts {
        impact: "the GPU will slow down under load, and all ranks wait for it",
        fix: "check fans, filters and air flow; let the node cool down",
        see: "nvidia-smi -q -d TEMPERATURE",
    };
    each_gpu(node, demand, texts, |gpu| {
        let Some(slowdown) = *gpu.slowdown_temperature_c.get()? else {
            return Ok(GpuVerdict::Exempt("the GPUs do not tell their slowdown temperature"));
        };
        let now = *gpu.temperature_c.get()?;
        let required = format!("at most {} C", slowdown.saturating_sub(MARGIN_C));
        let evidence = Evidence::of(&gpu.temperature_c, now, required);
        if slowdown < now + MARGIN_C {
            let what = format!(
                "{now} C before the job begins, slowdown at {slowdown} C ({MARGIN_C} C of margin wanted)"
            );
            return Ok(GpuVerdict::Bad(Severity::Warn, what, evidence));
        }
        Ok(GpuVerdict::Fine(evidence))
    })
}

fn power_cap(node: &NodeFacts, demand: &Demand) -> Outcome {
    let texts = Texts {
        impact: "this GPU runs slower than the design, and all ranks wait for the slowest",
        fix: "nvidia-smi -pl <default watts> -i <GPU>",
        see: "nvidia-smi -q -d POWER",
    };
    each_gpu(node, demand, texts, |gpu| {
        let fact = &gpu.power_limit_mw;
        let (Some(limit), Some(default)) = (*fact.get()?, *gpu.power_limit_default_mw.get()?)
        else {
            return Ok(GpuVerdict::Exempt("the GPUs do not tell their power limits"));
        };
        let (limit_w, default_w) = (limit / 1000, default / 1000);
        let evidence = Evidence::of(fact, limit_w, format!("at least 90 % of {default_w} W"));
        if limit < default / 10 * 9 {
            let what = format!("power limit {limit_w} W, default {default_w} W");
            return Ok(GpuVerdict::Bad(Severity::Warn, what, evidence));
        }
        Ok(GpuVerdict::Fine(evidence))
    })
}
