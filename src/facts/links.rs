//! `NVLink`, peers and the `NVSwitch` fabric.

use serde::{Deserialize, Serialize};

/// One `NVLink`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvLink {
    /// Number of the link.
    pub link: u32,
    /// Whether it is up.
    pub active: bool,
}

/// Errors of all `NVLinks` of a GPU since the driver was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvLinkErrors {
    /// Packets that had to be sent again.
    pub replays: u64,
    /// Links that had to be trained again.
    pub recoveries: u64,
    /// Packets with a wrong checksum.
    pub crc: u64,
}

/// Another GPU of the machine, as seen from one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// NVML index of the other.
    pub index: u32,
    /// `nvmlGpuP2PStatus_t` of reading its memory: 0 works, 1 the chipset cannot, 2 the GPU
    /// cannot, 3 the topology forbids it, 4 switched off in the driver, 5 not supported,
    /// 6 unknown.
    pub p2p_read: u32,
    /// `nvmlGpuTopologyLevel_t` of the nearest common ancestor: 0 one board, 10 one PCIe switch,
    /// 20 several, 30 one host bridge, 40 one NUMA node, 50 across NUMA nodes.
    pub path: u32,
}

/// Registration at the `NVSwitch` fabric.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fabric {
    /// 1 not started, 2 in progress, 3 completed.
    pub state: u32,
    /// `nvmlReturn_t` of the registration; counts only when completed.
    pub status: u32,
    /// Two bits per condition, 1 = true: bandwidth degraded @0, route recovery @2, route
    /// unhealthy @4, access timeout recovery @6, incorrect configuration @8 (a number).
    pub health_mask: u32,
}
