//! GPUs and bridges as the PCI bus shows them.

use serde::{Deserialize, Serialize};

/// State of an NVIDIA GPU on the bus, beside [`PciGpu`](super::PciGpu).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciState {
    /// PCI address, `0000:3b:00.0`.
    pub address: String,
    /// Kernel driver that has the device: `nvidia`, `vfio-pci`, ...; `None` if none has it.
    pub driver: Option<String>,
    /// Errors that the device reported since boot; `None` if the kernel does not count them.
    pub errors: Option<AerCounts>,
    /// Type of its IOMMU group: `identity`, `DMA`, `DMA-FQ`; `None` if there is no IOMMU.
    pub iommu: Option<String>,
    /// Highest speed of the device and of the port above it, in MT/s; `None` if not told.
    pub max_speed: Option<(u32, u32)>,
    /// Size of the largest memory window, in bytes; `None` if not told.
    pub largest_window: Option<u64>,
    /// Processors beside the device, as ranges, both ends included; empty if not told.
    pub local_cpus: Vec<(u32, u32)>,
    /// Bridges between the device and the root, the nearest first.
    pub bridges: Vec<Bridge>,
}

/// Errors that a PCIe device reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AerCounts {
    /// Corrected by the link.
    pub corrected: u64,
    /// Not corrected, the link works.
    pub nonfatal: u64,
    /// Not corrected, the link had to be reset.
    pub fatal: u64,
}

/// A PCIe bridge.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Bridge {
    /// PCI address.
    pub address: String,
    /// Access control.
    pub acs: Acs,
}

/// Access control services of a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Acs {
    /// The bridge has none.
    None,
    /// The control register.
    Control(u16),
    /// The kernel shows the extended configuration to root only.
    Hidden,
}
