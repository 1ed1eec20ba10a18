//! `pcie-width` and `nvlink-inactive`.

use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Outcome, Rule, Severity,
        gpus::{self, GpuVerdict, Texts, each_gpu},
        table,
    },
    facts::{GpuFacts, NodeFacts, PcieLink},
};

pub(super) static PCIE_WIDTH: Rule = Rule {
    id: "pcie-width",
    summary: "GPUs use all PCIe lanes",
    area: Area::Links,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "DCGM (width 16 per SKU); imbue-ai/cluster-health",
    docs: "A badly seated card or a bad riser drops lanes; the GPU works, but copies are slow. The \
           width is compared with what both the GPU and the port above can do. The PCIe generation \
           is not judged: an idle link lowers it to save power.",
    reads: "current_link_width and max_link_width in sysfs, nvmlDeviceGetCurrPcieLinkWidth",
    fix: "reseat the card and riser, or leave the GPU out",
    check: Check::Node(pcie_width),
};

pub(super) static NVLINK_INACTIVE: Rule = Rule {
    id: "nvlink-inactive",
    summary: "all NVLinks are up",
    area: Area::Links,
    severity: Severity::Block,
    applies: Applies::GpuGroup,
    source: "NVIDIA Health Validation nvlink_active; NVSentinel#1481 (false alarm on PCIe cards)",
    docs: "With a link down NCCL falls back to slower paths or fails at start. Only boards that \
           have NVLink by design are judged; bridges between PCIe cards are optional.",
    reads: "nvmlDeviceGetNvLinkState",
    fix: "reset all GPUs of the node; if the link stays down, leave the node out",
    check: Check::Node(nvlink),
};

fn pcie_width(node: &NodeFacts, demand: &Demand) -> Outcome {
    let texts = Texts {
        impact: "copies to and from this GPU, and NCCL over PCIe, run at a fraction of the speed",
        fix: "reseat the card and riser, or leave the GPU out",
        see: "nvidia-smi --query-gpu=index,pcie.link.width.current,pcie.link.width.max --format=csv",
    };
    each_gpu(node, demand, texts, |gpu| {
        let Some((PcieLink { current, .. }, possible, from)) = width(node, gpu)? else {
            return Ok(GpuVerdict::Exempt("neither sysfs nor NVML tells the PCIe width"));
        };
        let evidence = Evidence::new(from, format!("x{current}"), format!("x{possible}"));
        if possible <= current {
            return Ok(GpuVerdict::Fine(evidence));
        }
        let severity = if current * 2 < possible { Severity::Block } else { Severity::Warn };
        let what = format!("PCIe x{current}, x{possible} possible");
        Ok(GpuVerdict::Bad(severity, what, evidence))
    })
}

/// The link, the lanes that both ends have, and where that was read.
fn width<'n>(
    node: &'n NodeFacts,
    gpu: &'n GpuFacts,
) -> Result<Option<(PcieLink, u32, &'n str)>, crate::facts::Unread> {
    let address = gpu.pci_address.get()?;
    let pci = node.driver.pci_gpus.value().into_iter().flatten();
    let on_bus = pci.into_iter().find(|pci| pci.address.eq_ignore_ascii_case(address));
    if let Some(link) = on_bus.and_then(|pci| pci.width) {
        let upstream = on_bus.and_then(|pci| pci.upstream_width).map_or(link.max, |up| up.max);
        return Ok(Some((link, link.max.min(upstream), node.driver.pci_gpus.from())));
    }
    let link = *gpu.pcie_width.get()?;
    Ok(link.map(|link| (link, link.max, gpu.pcie_width.from())))
}

fn nvlink(node: &NodeFacts, demand: &Demand) -> Outcome {
    let texts = Texts {
        impact: "NCCL uses slower paths or fails at start: multi-GPU steps take many times longer",
        fix: "reset all GPUs of the node; if the link stays down, leave the node out and have it inspected",
        see: "nvidia-smi nvlink -s",
    };
    each_gpu(node, demand, texts, |gpu| {
        if !table::has_nvlink(gpu.name.get()?) {
            return Ok(GpuVerdict::Exempt("the GPUs are PCIe cards, where NVLink is optional"));
        }
        let fact = &gpu.nvlinks;
        let links = fact.get()?;
        let down: Vec<u32> =
            links.iter().filter(|link| !link.active).map(|link| link.link).collect();
        let up = links.len() - down.len();
        let evidence =
            Evidence::of(fact, format!("{up} of {} up", links.len()), "all up, at least 1");
        if links.is_empty() {
            let what = "no NVLink, on a board that has them by design".to_owned();
            return Ok(GpuVerdict::Bad(Severity::Block, what, evidence));
        }
        if down.is_empty() {
            return Ok(GpuVerdict::Fine(evidence));
        }
        let what = format!("NVLink {} down ({up} of {} up)", gpus::list(&down), links.len());
        Ok(GpuVerdict::Bad(Severity::Block, what, evidence))
    })
}
