//! The values that are compared over nodes, by area.

mod gpu;
mod host;
mod network;
mod setting;
mod software;

use std::collections::{BTreeMap, BTreeSet};

use super::{Key, Label, Matters, Scope};
use crate::{
    doctor::{Check, Demand, Stop, gpus, human_bytes, rule},
    facts::{Fact, GpuFacts, NodeFacts, Unread},
};

/// All keys, in the order of a report.
pub static KEYS: &[&Key] = &[
    &software::DRIVER,
    &software::KERNEL_MODULE,
    &software::MODULE_KIND,
    &software::NVML_LIBRARY,
    &software::CUDA_OF_DRIVER,
    &software::LIBCUDA_PATH,
    &software::LIBCUDA_LOADED,
    &software::PTX_FLOOR,
    &software::TRAINER,
    &software::NCCL_VERSION,
    &software::NCCL_FILE,
    &software::NCCL_PATH,
    &software::NET_PLUGINS,
    &software::LIBRARY_PATH,
    &software::MODEL,
    &software::DATA,
    &gpu::COUNT,
    &gpu::CUDA_COUNT,
    &gpu::OFFERED,
    &gpu::MODEL,
    &gpu::MEMORY,
    &gpu::CAPABILITY,
    &gpu::VBIOS,
    &gpu::GSP,
    &gpu::ECC,
    &gpu::MIG,
    &gpu::COMPUTE_MODE,
    &gpu::PERSISTENCE,
    &gpu::POWER_LIMIT,
    &gpu::CLOCKS_HELD,
    &gpu::PCIE_WIDTH,
    &gpu::PCIE_GENERATION,
    &gpu::NVLINKS,
    &gpu::PEERS,
    &gpu::FABRIC,
    &gpu::BAR1,
    &gpu::VIRTUALIZATION,
    &gpu::DISPLAY,
    &gpu::NVSWITCHES,
    &gpu::IMEX,
    &gpu::IOMMU,
    &host::KERNEL,
    &host::OS,
    &host::GLIBC,
    &host::ARCHITECTURE,
    &host::CPU_FEATURES,
    &host::PROCESSORS,
    &host::GOVERNOR,
    &host::NUMA_NODES,
    &host::CLOCK,
    &host::CLOCKSOURCE,
    &host::TIME_DAEMON,
    &host::VIRTUAL_MACHINE,
    &host::MEMORY,
    &host::SWAP,
    &host::HUGE_PAGES,
    &host::GPU_MODULES,
    &host::DAEMONS,
    &host::REMOVE_IPC,
    &setting::CGROUP_VERSION,
    &setting::CGROUP_MEMORY,
    &setting::CGROUP_CPU,
    &setting::SHM,
    &setting::MEMLOCK,
    &setting::OPEN_FILES,
    &setting::PROCESSES,
    &setting::CONTAINER,
    &setting::USER,
    &setting::ENVIRONMENT,
    &setting::VISIBLE_DEVICES,
    &setting::OVERCOMMIT,
    &setting::MAP_COUNT,
    &setting::NUMA_BALANCING,
    &setting::SOMAXCONN,
    &setting::RP_FILTER,
    &setting::CONNTRACK,
    &setting::OUTPUT_KIND,
    &network::INTERFACE,
    &network::MTU,
    &network::SPEED,
    &network::DEFAULT_ROUTE,
    &network::RDMA_DEVICES,
    &network::RDMA_RATE,
    &network::RDMA_LAYER,
    &network::RDMA_FIRMWARE,
    &network::RDMA_DRIVER,
    &network::GIDS,
    &network::RDMA_SELECTOR,
];

/// A key with the usual parts; the others are set with `..BASE`.
const BASE: Key = Key {
    name: "",
    scope: Scope::Node,
    matters: Matters::Gpus,
    rules: &[],
    otherwise: Label::Benign,
    reason: "",
    source: "",
    read: |_node, _demand| Err(Stop::Skip(String::new())),
};

/// What a node has none of.
const NONE: &str = "none";

fn text<T: ToString>(fact: &Fact<T>) -> Result<String, Stop> {
    Ok(fact.get()?.to_string())
}

fn optional<T: ToString>(fact: &Fact<Option<T>>) -> Result<String, Stop> {
    Ok(fact.get()?.as_ref().map_or_else(|| NONE.to_owned(), ToString::to_string))
}

fn yes(flag: bool) -> String {
    if flag { "yes" } else { "no" }.to_owned()
}

fn limit(value: Option<u64>) -> String {
    value.map_or_else(|| "unlimited".to_owned(), |value| value.to_string())
}

fn byte_limit(value: Option<u64>) -> String {
    value.map_or_else(|| "unlimited".to_owned(), human_bytes)
}

/// Bytes to the next quarter of a power of two: kernels of one image differ by some megabytes.
fn rough_bytes(bytes: u64) -> String {
    let step = (bytes.max(1).next_power_of_two() / 32).max(1);
    human_bytes((bytes + step / 2) / step * step)
}

/// Names in one text, `none` if there are none.
fn joined<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: BTreeSet<&str> = names.into_iter().collect();
    if names.is_empty() {
        return NONE.to_owned();
    }
    names.into_iter().collect::<Vec<_>>().join(" ")
}

/// What a check that compares nodes reads.
fn agreed(id: &str, node: &NodeFacts, demand: &Demand) -> Result<String, Stop> {
    match rule(id).map(|rule| &rule.check) {
        Some(Check::Agree(agreement)) => (agreement.read)(node, demand),
        Some(Check::Node(_) | Check::Fleet(_) | Check::Job(_)) | None => {
            Err(Stop::skip(format!("{id} does not compare nodes")))
        }
    }
}

/// One text for the GPUs that the job uses: one value if they are alike, else each with its GPUs.
fn of_gpus(
    node: &NodeFacts,
    demand: &Demand,
    read: impl Fn(&GpuFacts) -> Result<String, Unread>,
) -> Result<String, Stop> {
    let used = gpus::used(node, demand);
    let mut values: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for gpu in node.nvml.gpus.get()?.iter().filter(|gpu| used.contains(&gpu.index)) {
        values.entry(read(gpu)?).or_default().push(gpu.index);
    }
    if values.len() < 2 {
        return values.into_keys().next().ok_or_else(|| Stop::skip("no GPU"));
    }
    let parts = values.iter().map(|(value, of)| format!("{value} (GPU {})", gpus::list(of)));
    Ok(parts.collect::<Vec<_>>().join(", "))
}

/// A value that not every GPU has.
fn optional_of_gpu<T>(
    fact: &Fact<Option<T>>,
    text: impl Fn(&T) -> String,
) -> Result<String, Unread> {
    Ok(fact.get()?.as_ref().map_or_else(|| "not supported".to_owned(), text))
}
