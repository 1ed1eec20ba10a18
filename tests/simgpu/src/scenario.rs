//! The scenario file: a host's driver and GPUs, and everything that is wrong with them.
//!
//! Numbers of errors are NVML's `nvmlReturn_t` (9 driver not loaded, 15 GPU is lost, ...), in
//! [`Cuda`] they are CUDA's `CUresult`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::profile::{self, Profile};

/// One host.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Name of the host: two hosts with equal GPUs differ in their UUIDs.
    #[serde(default)]
    pub node: String,
    /// Driver version, `550.163.01`.
    pub driver: String,
    /// CUDA version as NVML tells it, `major * 1000 + minor * 10`.
    pub cuda_driver: u32,
    /// What every way to initialise NVML returns.
    #[serde(default)]
    pub init_error: Option<u32>,
    /// What calls without a GPU return, by name of the call.
    #[serde(default)]
    pub errors: BTreeMap<String, u32>,
    /// How many milliseconds calls without a GPU take, by name of the call.
    #[serde(default)]
    pub delays_ms: BTreeMap<String, u64>,
    /// Symbols that the library does not have, as older drivers have not. Applied when
    /// [`crate::Host`] copies the library.
    #[serde(default)]
    pub missing_symbols: Vec<String>,
    /// The GPUs in NVML's order. In the file `"count": 8` repeats one.
    pub gpus: Vec<Gpu>,
    /// Links that are down: GPU, link.
    #[serde(default)]
    pub nvlink_down: Vec<(u32, u32)>,
    /// Peer access by pair `0-1`, and `default`.
    #[serde(default)]
    pub p2p: BTreeMap<String, P2p>,
    /// Nearest common ancestor by pair `0-1`, and `default`.
    #[serde(default)]
    pub topology: BTreeMap<String, Topology>,
    /// Where the CUDA driver library sees something else.
    #[serde(default)]
    pub cuda: Cuda,
    /// What happens later.
    #[serde(default)]
    pub events: Vec<Event>,
}

/// One GPU: a product and how this piece differs from a healthy, idle one.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// Product, see [`profile::PROFILES`].
    pub profile: String,
    /// Made from node and index if absent.
    pub uuid: Option<String>,
    /// PCI address as sysfs writes it; the product's usual one if absent.
    pub pci: Option<String>,
    /// NUMA node; lower half of the GPUs on 0, the others on 1, if absent.
    pub numa: Option<u32>,
    /// PCIe link now.
    pub pcie: Option<Pcie>,
    /// Replays of PCIe packets.
    #[serde(default)]
    pub pcie_replays: u32,
    /// Error correction now.
    pub ecc: Option<bool>,
    /// Error correction after the next reset; as now if absent.
    pub ecc_pending: Option<bool>,
    /// Uncorrected memory errors since the driver was loaded.
    #[serde(default)]
    pub ecc_unc: u64,
    /// Corrected ones.
    #[serde(default)]
    pub ecc_corrected: u64,
    /// Remapped rows: correctable, uncorrectable, pending, failed.
    #[serde(default)]
    pub remap: [u32; 4],
    /// Retired pages: single-bit, double-bit, pending.
    #[serde(default)]
    pub retired: [u32; 3],
    /// Bits of clock event reasons; 1 (idle) if absent.
    pub throttle: Option<u64>,
    /// Temperature in degrees Celsius.
    pub temperature: Option<u32>,
    /// Power limit in watts; as shipped if absent.
    pub power_limit_w: Option<u32>,
    /// Memory in use; the sum of the processes if absent.
    pub used_mib: Option<u64>,
    /// Share of time in which a kernel ran, in percent.
    #[serde(default)]
    pub utilization: u32,
    /// Multi-instance mode now.
    #[serde(default)]
    pub mig: bool,
    /// Multi-instance mode after the next reset; as now if absent.
    pub mig_pending: Option<bool>,
    /// Whether the driver stays loaded without clients; it does if absent.
    pub persistence: Option<bool>,
    /// `nvmlComputeMode_t`.
    #[serde(default)]
    pub compute_mode: u32,
    /// Registration at the fabric; completed if absent and the product has one.
    pub fabric: Option<Fabric>,
    /// What the driver recommends: 0 nothing.
    #[serde(default)]
    pub recovery_action: u32,
    /// Video BIOS.
    pub vbios: Option<String>,
    /// The device fell off the bus: every call fails.
    #[serde(default)]
    pub lost: bool,
    /// What calls on this GPU return, by name of the call; `*` means all of them.
    #[serde(default)]
    pub errors: BTreeMap<String, u32>,
    /// How many milliseconds calls on this GPU take, by name of the call.
    #[serde(default)]
    pub delays_ms: BTreeMap<String, u64>,
    /// Processes on it.
    #[serde(default)]
    pub processes: Vec<Process>,
}

/// A PCIe link.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pcie {
    /// Generation.
    pub r#gen: u32,
    /// Lanes.
    pub width: u32,
}

/// Registration at the fabric.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fabric {
    /// 0 not supported, 1 not started, 2 in progress, 3 completed.
    pub state: u8,
    /// `nvmlReturn_t` of the registration.
    pub status: u32,
    /// Two bits per condition.
    pub health_mask: u32,
}

/// A process on a GPU.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Name.
    pub name: String,
    /// Memory in use.
    pub mem_mib: u64,
    /// What it does there; computes if absent.
    #[serde(default)]
    pub kind: ProcessKind,
}

/// What a process does on a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessKind {
    /// It computes.
    #[default]
    C,
    /// It draws.
    G,
}

/// Peer access between two GPUs, in the letters of `nvidia-smi topo -p2p`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum P2p {
    /// Works.
    Ok = 0,
    /// Chipset not supported.
    Cns = 1,
    /// GPU not supported.
    Gns = 2,
    /// Topology not supported.
    Tns = 3,
    /// Disabled by a registry key.
    Dr = 4,
    /// Not supported.
    Ns = 5,
    /// Unknown.
    U = 6,
}

/// Nearest common ancestor, in the letters of `nvidia-smi topo -m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Topology {
    /// One board.
    Internal = 0,
    /// One PCIe switch.
    Pix = 10,
    /// Several PCIe switches.
    Pxb = 20,
    /// One host bridge.
    Phb = 30,
    /// One NUMA node.
    Node = 40,
    /// Across NUMA nodes.
    Sys = 50,
}

/// Where the CUDA driver library sees something else than NVML.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cuda {
    /// `cuDriverGetVersion`, if it differs from [`Scenario::cuda_driver`].
    pub driver: Option<u32>,
    /// What `cuInit` returns.
    pub init_error: Option<u32>,
    /// Number of devices, if it differs.
    pub count: Option<u32>,
    /// What calls return, by name.
    #[serde(default)]
    pub errors: BTreeMap<String, u32>,
    /// How many milliseconds calls take, by name.
    #[serde(default)]
    pub delays_ms: BTreeMap<String, u64>,
    /// Copies that bring other bytes.
    #[serde(default)]
    pub corrupt: Vec<Corruption>,
}

/// A copy whose bytes do not arrive as they were sent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Corruption {
    /// `cuMemcpyHtoD_v2`, `cuMemcpyDtoH_v2` or `cuMemcpyPeer`.
    pub call: String,
    /// The GPU that is copied to; of `cuMemcpyDtoH_v2` the one that is copied from.
    pub gpu: usize,
    /// Of `cuMemcpyPeer`: the GPU that is copied from; any, if absent.
    pub from: Option<usize>,
    /// Which byte of the copy.
    pub byte: usize,
    /// Bits of it that turn.
    pub xor: u8,
}

/// Something that happens after the client loaded the scenario.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// When.
    pub after_ms: u64,
    /// Where.
    pub gpu: usize,
    /// An XID is reported.
    pub xid: Option<u64>,
    /// Fields of [`Gpu`] take these values.
    #[serde(default)]
    pub set: serde_json::Map<String, Value>,
}

impl Scenario {
    /// Reads a file's text; a GPU's `count` becomes that many GPUs.
    pub fn parse(text: &str) -> Result<Scenario, String> {
        let mut value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        expand(&mut value);
        Scenario::from_value(value)
    }

    pub(crate) fn from_value(value: Value) -> Result<Scenario, String> {
        let scenario: Scenario =
            serde_json::from_value(value).map_err(|error| error.to_string())?;
        for gpu in &scenario.gpus {
            if profile::find(&gpu.profile).is_none() {
                return Err(format!("no profile is called `{}`", gpu.profile));
            }
        }
        match scenario.events.iter().find(|event| scenario.gpus.len() <= event.gpu) {
            Some(event) => Err(format!("an event happens to GPU {}, which is none", event.gpu)),
            None => Ok(scenario),
        }
    }

    /// First number of the driver version.
    pub fn driver_major(&self) -> u32 {
        self.driver.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0)
    }

    /// Identity of GPU `index`.
    pub fn uuid(&self, index: usize) -> String {
        self.gpus[index].uuid.clone().unwrap_or_else(|| {
            // FNV-1a: stable, and different for every node and index.
            let seed = format!("{}/{}/{index}", self.node, self.gpus[index].profile);
            let hash = seed.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
            let (high, low) = (hash >> 32, hash & 0xffff_ffff);
            format!(
                "GPU-{high:08x}-{:04x}-4{:03x}-8{:03x}-{low:08x}{index:04x}",
                low >> 16,
                low & 0xfff,
                high & 0xfff
            )
        })
    }

    /// PCI address of GPU `index`: domain, bus, device.
    pub fn pci(&self, index: usize) -> (u32, u32, u32) {
        let gpu = &self.gpus[index];
        let given = gpu.pci.as_deref().and_then(parse_address);
        given.unwrap_or_else(|| {
            let domain = index / 8;
            (domain as u32, gpu.profile().buses[index % 8], 0)
        })
    }

    /// NUMA node of GPU `index`.
    pub fn numa(&self, index: usize) -> u32 {
        self.gpus[index].numa.unwrap_or(u32::from(self.gpus.len().div_ceil(2) <= index))
    }

    /// Whether a link is up.
    pub fn nvlink_active(&self, index: usize, link: u32) -> bool {
        !self.nvlink_down.contains(&(index as u32, link))
    }

    /// Peer access between two GPUs.
    pub fn peer(&self, a: usize, b: usize) -> P2p {
        *pair(&self.p2p, a, b).unwrap_or(&P2p::Ok)
    }

    /// Nearest common ancestor of two GPUs.
    pub fn ancestor(&self, a: usize, b: usize) -> Topology {
        let by_numa = if self.numa(a) == self.numa(b) { Topology::Node } else { Topology::Sys };
        if a == b { Topology::Internal } else { *pair(&self.topology, a, b).unwrap_or(&by_numa) }
    }

    /// Indices of the GPUs that `list` (`NVIDIA_VISIBLE_DEVICES`, `CUDA_VISIBLE_DEVICES`) leaves
    /// visible among `among`: all without a list; by position in `among` or by UUID.
    pub fn visible(&self, among: &[usize], list: Option<&str>) -> Vec<usize> {
        match list {
            None | Some("all") => among.to_vec(),
            Some(list) => {
                list.split(',').filter_map(|item| self.find(among, item.trim())).collect()
            }
        }
    }

    fn find(&self, among: &[usize], item: &str) -> Option<usize> {
        if let Ok(position) = item.parse::<usize>() {
            return among.get(position).copied();
        }
        let is_named = |index: &&usize| !item.is_empty() && self.uuid(**index).starts_with(item);
        among.iter().find(is_named).copied()
    }
}

impl Gpu {
    /// Its product. [`Scenario::parse`] has checked that there is one.
    pub fn profile(&self) -> &'static Profile {
        profile::find(&self.profile).expect("checked when the scenario was read")
    }

    /// Memory in use.
    pub fn used_mib(&self) -> u64 {
        self.used_mib.unwrap_or_else(|| self.processes.iter().map(|process| process.mem_mib).sum())
    }

    /// PCIe link now.
    pub fn pcie(&self) -> Pcie {
        let profile = self.profile();
        self.pcie.unwrap_or(Pcie { r#gen: profile.pcie_idle_gen, width: profile.pcie.1 })
    }
}

fn pair<T>(pairs: &BTreeMap<String, T>, a: usize, b: usize) -> Option<&T> {
    let key = format!("{}-{}", a.min(b), a.max(b));
    pairs.get(&key).or_else(|| pairs.get("default"))
}

/// `0000:3b:00.0` in numbers.
pub fn parse_address(address: &str) -> Option<(u32, u32, u32)> {
    let (domain, rest) = address.split_once(':')?;
    let (bus, device) = rest.split_once(':')?;
    let device = device.split('.').next()?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    Some((number(domain)?, number(bus)?, number(device)?))
}

pub(crate) fn expand(value: &mut Value) {
    let Some(gpus) = value.get_mut("gpus").and_then(Value::as_array_mut) else { return };
    let expanded = gpus.drain(..).flat_map(|mut gpu| {
        let count = gpu.as_object_mut().and_then(|gpu| gpu.remove("count"));
        let count = count.and_then(|count| count.as_u64()).unwrap_or(1);
        vec![gpu; usize::try_from(count).unwrap_or(0)]
    });
    *gpus = expanded.collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    const EIGHT: &str = r#"{"driver": "550.163.01", "cuda_driver": 12040,
        "gpus": [{"profile": "h100-sxm-80g", "count": 2}, {"profile": "rtx-4090", "lost": true}]}"#;

    #[test]
    fn count_repeats_a_gpu() {
        let scenario = Scenario::parse(EIGHT).unwrap();
        assert_eq!(scenario.gpus.len(), 3);
        assert!(!scenario.gpus[1].lost && scenario.gpus[2].lost);
        assert_ne!(scenario.uuid(0), scenario.uuid(1));
        assert_eq!(scenario.uuid(0).len(), 40);
    }

    #[test]
    fn a_mistake_in_a_scenario_is_an_error() {
        for (from, to) in [
            ("\"lost\"", "\"lots\""),
            ("rtx-4090", "rtx-4091"),
            ("\"gpus\"", "\"events\": [{\"after_ms\": 1, \"gpu\": 3}], \"gpus\""),
        ] {
            let error = Scenario::parse(&EIGHT.replace(from, to)).unwrap_err();
            assert!(!error.is_empty());
        }
    }

    #[test]
    fn pairs_have_no_direction_and_a_default() {
        let text =
            EIGHT.replace("\"gpus\"", "\"p2p\": {\"default\": \"OK\", \"0-1\": \"GNS\"}, \"gpus\"");
        let scenario = Scenario::parse(&text).unwrap();
        assert_eq!(scenario.peer(1, 0), P2p::Gns);
        assert_eq!(scenario.peer(2, 0), P2p::Ok);
        assert_eq!(scenario.ancestor(0, 1), Topology::Node);
        assert_eq!(scenario.ancestor(0, 2), Topology::Sys);
    }

    #[test]
    fn visible_devices_are_chosen_by_position_and_uuid() {
        let scenario = Scenario::parse(EIGHT).unwrap();
        let all = [0, 1, 2];
        assert_eq!(scenario.visible(&all, None), all);
        assert_eq!(scenario.visible(&all, Some("2,0")), [2, 0]);
        assert_eq!(scenario.visible(&all, Some(&scenario.uuid(1))), [1]);
        assert!(scenario.visible(&all, Some("none")).is_empty());
        assert!(scenario.visible(&all, Some("")).is_empty());
    }
}
