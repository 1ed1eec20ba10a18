//! What allocating, copying and computing tell about GPUs: `memory-not-allocatable`,
//! `gpu-memory-wrong`, `p2p-copy-wrong`, `copy-bandwidth`, `sdc-vote`.

use std::collections::BTreeMap;

use super::active::{facts, rate};
use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Problem, Rule, Severity, Stop,
        table,
    },
    facts::{Ended, Fact, NodeFacts, Unread},
    wire::gputest::{Copied, DeviceTest, GpuTests, Outcome as CallOutcome, Tested},
};

pub(super) static MEMORY_NOT_ALLOCATABLE: Rule = Rule {
    id: "memory-not-allocatable",
    summary: "each GPU gives the memory that a rank needs",
    area: Area::GpuMemory,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "AMD-AGI/Primus node_smoke (256 MB without a job); cuMemAlloc",
    docs: "What NVML calls free need not be given: another program may take it, MIG or MPS may \
           limit it. The estimate of a rank, or 256 MiB without a job, is allocated on each GPU \
           and freed at once. It needs --active.",
    reads: "cuMemAlloc_v2 of the estimate on each GPU",
    fix: "nvidia-smi shows who holds the memory; end that process, or plan for less",
    check: Check::Node(allocatable),
};

pub(super) static GPU_MEMORY_WRONG: Rule = Rule {
    id: "gpu-memory-wrong",
    summary: "bytes come back from each GPU as they went there",
    area: Area::GpuMemory,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "DCGM diagnostics (memory, PCIe); cuMemcpyHtoD",
    docs: "Patterns are copied to the GPU and back and compared. A difference means a broken link \
           or broken memory: training there gives wrong numbers. A copy that does not come back \
           means that the driver hangs, and blocks, too. 64 MiB are no proof of the whole memory. \
           It needs --active.",
    reads: "cuMemcpyHtoD_v2 and cuMemcpyDtoH_v2 of 64 MiB with three patterns on each GPU",
    fix: "leave the GPU out, look for XIDs, and run dcgmi diag -r 3 on the node",
    check: Check::Node(memory),
};

pub(super) static P2P_COPY_WRONG: Rule = Rule {
    id: "p2p-copy-wrong",
    summary: "bytes arrive as they were sent from GPU to GPU",
    area: Area::Links,
    severity: Severity::Block,
    applies: Applies::GpuGroup,
    source: "NCCL user guide, troubleshooting (PCI ACS, IOMMU); NVIDIA/nccl-tests#117",
    docs: "With ACS or an IOMMU in the way, peer copies may arrive wrong or never, although the \
           driver says that peers can reach each other: jobs hang or lose precision. Each ordered \
           pair copies 64 MiB, which are read back from the target and compared. It needs --active.",
    reads: "cuDeviceCanAccessPeer, cuCtxEnablePeerAccess and cuMemcpyPeer of each pair of GPUs",
    fix: "NCCL_P2P_DISABLE=1 on this node until ACS is off and the IOMMU in passthrough (iommu=pt)",
    check: Check::Node(peers),
};

pub(super) static COPY_BANDWIDTH: Rule = Rule {
    id: "copy-bandwidth",
    summary: "copies between host and GPU run at the speed of the link",
    area: Area::Links,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "80 % of PCIe's rate: 12.5, 25, 50 GB/s for x16 of generation 3, 4, 5; Azure NHC has \
             23, 52, 55; below 50 % blocks",
    docs: "A link that trained to a lower speed under load, or crosses sockets, feeds the GPU \
           slowly. The limit comes from the link of this GPU, not from a constant for a product. \
           It needs --active.",
    reads: "the best of five copies of 64 MiB of pinned memory each way; max_link_speed, \
            current_link_width",
    fix: "reseat the card or riser; pin ranks to the GPU's NUMA node; leave the GPU out",
    check: Check::Node(bandwidth),
};

pub(super) static SDC_VOTE: Rule = Rule {
    id: "sdc-vote",
    summary: "equal GPUs compute equal bits",
    area: Area::Gpu,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "Dixit et al., Silent data corruptions at scale, arXiv:2102.11245; vote among GPUs of \
             one product",
    docs: "The trainer's own matrix product runs several times with the same numbers on each GPU. \
           Two runs on one GPU, or GPUs of one product, that differ by a bit mean that one of them \
           computes wrong; the majority names it, and half against half is a tie. It needs --active \
           and a qvl-train with CUDA.",
    reads: "CRC-32C of the products of qvl-train on each GPU, three runs",
    fix: "leave the GPU out and have it replaced; dcgmi diag -r 4 may confirm it",
    check: Check::Node(vote),
};

type GpuFact = Fact<Ended<GpuTests>>;

/// The results of GPUs. Without a driver nothing is known, and that is no pass.
fn tested(node: &NodeFacts) -> Result<(&GpuFact, &Tested), Stop> {
    let fact = &facts(node)?.gpus;
    let unknown = |from: &str, why: String| Stop::Unknown(Unread { why, from: from.to_owned() });
    match super::active::done(fact)? {
        GpuTests::Tested(tested) if tested.devices.is_empty() => {
            Err(unknown(fact.from(), "CUDA shows no GPU".to_owned()))
        }
        GpuTests::Tested(tested) => Ok((fact, tested)),
        GpuTests::Unavailable { call, why } => Err(unknown(call, why.clone())),
    }
}

/// How the job takes a fault of a GPU that it does not use.
fn severity(node: &NodeFacts, demand: &Demand, ordinals: &[u32]) -> Severity {
    let ranks = demand.ranks_on(node);
    if ordinals.iter().all(|ordinal| *ordinal < ranks) { Severity::Block } else { Severity::Warn }
}

/// `GPU 3 (0000:5d:00.0)`: the number is CUDA's.
fn name(device: &DeviceTest) -> String {
    match &device.pci_address {
        Some(address) => format!("GPU {} ({address})", device.ordinal),
        None => format!("GPU {}", device.ordinal),
    }
}

fn allocatable(node: &NodeFacts, demand: &Demand) -> Outcome {
    let (fact, tested) = tested(node)?;
    let asked = table::bytes(tested.asked_bytes);
    let mut judgement = Judgement::default();
    for device in &tested.devices {
        let (text, what) = match &device.allocated {
            CallOutcome::Done => (format!("{asked} given"), None),
            CallOutcome::Failed { call, code, message } => {
                let text = format!("{call} of {asked}: error {code} ({message})");
                (text.clone(), Some(text))
            }
        };
        let evidence = Evidence::of(fact, text, format!("{asked} can be allocated"));
        judgement.evidence.push(evidence.about(name(device)));
        judgement.problems.extend(what.map(|what| Problem {
            severity: severity(node, demand, &[device.ordinal]),
            what: format!("{}: {what}", name(device)),
            impact: format!("a rank of {} there ends with out of memory", demand.name()),
            fix: MEMORY_NOT_ALLOCATABLE.fix.to_owned(),
            see: "nvidia-smi --query-gpu=index,memory.used,memory.free --format=csv".to_owned(),
        }));
    }
    Ok(judgement)
}

/// What a copy says: for evidence, and as a problem if it is one.
fn told(copied: &Copied, bytes: u64) -> (String, Option<String>) {
    match copied {
        Copied::Right => (format!("{} right", table::bytes(bytes)), None),
        Copied::Wrong { bytes: wrong, first } => {
            let text =
                format!("{wrong} of {bytes} bytes came back different, from byte {first} on");
            (text.clone(), Some(text))
        }
        Copied::Failed { call, code, message } => {
            let text = format!("{call}: error {code} ({message})");
            (text.clone(), Some(text))
        }
    }
}

fn memory(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &facts(node)?.gpus;
    if let Ok(Ended::Hung { step, after_ms }) = fact.get() {
        let what = format!("{step} did not come back within {} s", after_ms / 1000);
        let problem = Problem {
            severity: Severity::Block,
            what: what.clone(),
            impact: format!("ranks of {} hang in the same call", demand.name()),
            fix: "nvidia-smi --gpu-reset, or reboot the node; look for XIDs".to_owned(),
            see: "dmesg | grep -i xid; nvidia-smi".to_owned(),
        };
        return Judgement::of(fact, what, "every call comes back", Some(problem));
    }
    let (fact, tested) = tested(node)?;
    let mut judgement = Judgement::default();
    for device in &tested.devices {
        let (text, what) = told(&device.copied, tested.copy_bytes);
        let evidence = Evidence::of(fact, text, "every byte, with every pattern");
        judgement.evidence.push(evidence.about(name(device)));
        judgement.problems.extend(what.map(|what| Problem {
            severity: severity(node, demand, &[device.ordinal]),
            what: format!("{}: {what}", name(device)),
            impact: format!("a rank of {} there trains on wrong numbers, or fails", demand.name()),
            fix: GPU_MEMORY_WRONG.fix.to_owned(),
            see: "dcgmi diag -r 3; dmesg | grep -i xid".to_owned(),
        }));
    }
    Ok(judgement)
}

fn peers(node: &NodeFacts, demand: &Demand) -> Outcome {
    let (fact, tested) = tested(node)?;
    if tested.devices.len() < 2 {
        return Err(Stop::skip("there is one GPU"));
    }
    let mut judgement = Judgement::default();
    let mut wrong = Vec::new();
    let sound = |ordinal: u32| {
        let device = tested.devices.iter().find(|device| device.ordinal == ordinal);
        device.is_some_and(|device| device.copied == Copied::Right)
    };
    // What is read back of a GPU whose own copies are wrong says nothing about the way between two.
    for peer in tested.peers.iter().filter(|peer| sound(peer.from) && sound(peer.to)) {
        let (text, what) = told(&peer.copied, tested.copy_bytes);
        let path = match peer.can_access {
            Some(true) => "directly",
            Some(false) => "through the host",
            None => "on an unknown path",
        };
        let evidence = Evidence::of(fact, format!("{text}, {path}"), "every byte");
        let subject = format!("GPU {} to {}", peer.from, peer.to);
        judgement.evidence.push(evidence.about(subject.clone()));
        wrong.extend(what.map(|what| (peer, format!("{subject}: {what}"))));
    }
    if judgement.evidence.is_empty() {
        return Err(Stop::skip("no two GPUs copy right to themselves: see gpu-memory-wrong"));
    }
    if let Some((first, what)) = wrong.first() {
        let more = match wrong.len() {
            1 => String::new(),
            count => format!(", and {} pairs more", count - 1),
        };
        judgement.problems.push(Problem {
            severity: wrong
                .iter()
                .map(|(peer, _what)| severity(node, demand, &[peer.from, peer.to]))
                .max()
                .unwrap_or(Severity::Warn),
            what: format!("{what}{more}"),
            impact: format!("gradients of {} are wrong, or NCCL hangs", demand.name()),
            fix: if first.can_access == Some(true) {
                P2P_COPY_WRONG.fix.to_owned()
            } else {
                "the copy goes through the host's memory: look at gpu-memory-wrong, then reset the \
                 GPUs"
                    .to_owned()
            },
            see: "nvidia-smi topo -p2p r; setpci -v -d '*:*' ECAP_ACS+0x6.w".to_owned(),
        });
    }
    Ok(judgement)
}

/// Bytes per second that a PCIe link carries, and what it is: lanes of so many MT/s, each with 128
/// bits in 130 (8 in 10 up to generation 2).
fn link(node: &NodeFacts, address: &str) -> Result<(f64, String), Stop> {
    let skip = |what: &str| Stop::skip(format!("{what} of {address} is not told"));
    let states = node.driver.pci_states.get()?;
    let gpus = node.driver.pci_gpus.get()?;
    let state = states.iter().find(|state| state.address == address);
    let (own, port) = state.and_then(|state| state.max_speed).ok_or_else(|| skip("the speed"))?;
    let gpu = gpus.iter().find(|gpu| gpu.address == address);
    let lanes = gpu.and_then(|gpu| gpu.width).ok_or_else(|| skip("the width"))?.current;
    let speed = own.min(port);
    let coding = if speed <= 5000 { 0.8 } else { 128.0 / 130.0 };
    let bytes = f64::from(speed) * 1e6 * f64::from(lanes) * coding / 8.0;
    Ok((bytes, format!("x{lanes} at {:.1} GT/s", f64::from(speed) / 1000.0)))
}

fn bandwidth(node: &NodeFacts, demand: &Demand) -> Outcome {
    let (fact, tested) = tested(node)?;
    let mut judgement = Judgement::default();
    let mut skipped = None;
    for device in &tested.devices {
        let address = device.pci_address.as_deref().unwrap_or("?");
        let (full, link) = match link(node, address) {
            Ok(link) => link,
            Err(Stop::Unknown(unread)) => {
                judgement.unknown.push(unread);
                continue;
            }
            Err(stop @ Stop::Skip(_)) => {
                skipped = Some(stop);
                continue;
            }
        };
        let (Some(to), Some(from)) = (device.to_device, device.to_host) else {
            let why = format!("{}: a copy failed, see gpu-memory-wrong", name(device));
            judgement.unknown.push(Unread { why, from: fact.from().to_owned() });
            continue;
        };
        let least = to.min(from);
        let required = format!("at least {} ({link})", rate(0.8 * full));
        let text = format!("{} to the GPU, {} from it", rate(to), rate(from));
        let evidence = Evidence::of(fact, text.clone(), required.clone());
        judgement.evidence.push(evidence.about(name(device)));
        if least < 0.8 * full {
            let used = severity(node, demand, &[device.ordinal]);
            judgement.problems.push(Problem {
                severity: if least < 0.5 * full { used } else { Severity::Warn },
                what: format!("{}: {text} ({required})", name(device)),
                impact: format!("a rank of {} there waits for its data", demand.name()),
                fix: COPY_BANDWIDTH.fix.to_owned(),
                see: format!("lspci -vv -s {address} | grep LnkSta; nvidia-smi topo -m"),
            });
        }
    }
    match skipped {
        Some(stop) if judgement == Judgement::default() => Err(stop),
        _ => Ok(judgement),
    }
}

fn vote(node: &NodeFacts, demand: &Demand) -> Outcome {
    let (fact, tested) = tested(node)?;
    let mut judgement = Judgement::default();
    let mut votes: BTreeMap<&str, BTreeMap<u32, Vec<&DeviceTest>>> = BTreeMap::new();
    let mut odd: Vec<(&DeviceTest, String)> = Vec::new();
    for device in &tested.devices {
        let Some(runs) = device.kernels.as_ref().filter(|runs| !runs.is_empty()) else {
            let why = format!("{}: this qvl-train computes on no GPU", name(device));
            judgement.unknown.push(Unread { why, from: fact.from().to_owned() });
            continue;
        };
        let text: Vec<String> = runs.iter().map(|crc| format!("{crc:08x}")).collect();
        let evidence = Evidence::of(fact, text.clone(), "the same bits in every run and GPU");
        judgement.evidence.push(evidence.about(name(device)));
        if runs.iter().any(|crc| crc != &runs[0]) {
            odd.push((device, format!("its runs differ: {}", text.join(", "))));
        } else {
            votes.entry(&device.name).or_default().entry(runs[0]).or_default().push(device);
        }
    }
    let mut ties = Vec::new();
    for (product, by_bits) in votes.iter().filter(|(_product, by_bits)| 1 < by_bits.len()) {
        let most = by_bits.values().map(Vec::len).max().unwrap_or(0);
        if by_bits.values().filter(|devices| devices.len() == most).count() != 1 {
            ties.push((*product, by_bits.values().flatten().copied().collect::<Vec<_>>()));
            continue;
        }
        let losers = by_bits.values().filter(|devices| devices.len() < most).flatten();
        odd.extend(losers.map(|device| (*device, format!("differs from {most} others"))));
    }
    let problem = |ordinals: &[u32], what: String| Problem {
        severity: severity(node, demand, ordinals),
        what,
        impact: format!("{} computes wrong gradients, and nothing says so", demand.name()),
        fix: SDC_VOTE.fix.to_owned(),
        see: "qvl-train gputest; dcgmi diag -r 4".to_owned(),
    };
    for (device, what) in odd {
        judgement.problems.push(problem(&[device.ordinal], format!("{}: {what}", name(device))));
    }
    for (product, devices) in ties {
        let names: Vec<String> = devices.iter().map(|device| name(device)).collect();
        let what = format!("{} ({product}) differ, a tie without a majority", names.join(", "));
        judgement.problems.push(problem(&[], what));
    }
    Ok(judgement)
}

#[cfg(test)]
mod tests;
