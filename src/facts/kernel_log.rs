//! What the kernel said since boot, as far as a training job cares.

use serde::{Deserialize, Serialize};

/// Messages of the current boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelLog {
    /// Errors that the NVIDIA driver reported, oldest first.
    pub xids: Vec<XidEvent>,
    /// Other faults, oldest first.
    pub faults: Vec<KernelFault>,
    /// Microseconds since boot at which the NVIDIA module was loaded last; older XIDs are gone
    /// with the state that they were about.
    pub module_loaded_us: Option<u64>,
    /// Older messages that were left out: of one kind only the newest are kept.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub forgotten: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// One `NVRM: Xid` message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct XidEvent {
    /// Code.
    pub xid: u32,
    /// PCI address, `0000:3b:00.0`.
    pub pci_address: String,
    /// Process that was hit, if the message names one.
    pub pid: Option<u32>,
    /// Microseconds since boot.
    pub time_us: u64,
    /// The message after the code.
    pub text: String,
}

/// A message about trouble outside of the NVIDIA driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelFault {
    /// What kind of trouble.
    pub kind: FaultKind,
    /// Microseconds since boot.
    pub time_us: u64,
    /// The message.
    pub text: String,
}

/// Kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// A process was killed because memory ran out.
    OutOfMemory,
    /// A task did not move for two minutes.
    HungTask,
    /// A processor did not schedule.
    Lockup,
    /// The hardware reported a machine check.
    MachineCheck,
    /// A file system or disk failed.
    Io,
    /// A PCIe device reported an error that was not corrected.
    Pcie,
}

impl FaultKind {
    /// Text for reports.
    pub const fn name(self) -> &'static str {
        match self {
            FaultKind::OutOfMemory => "out of memory",
            FaultKind::HungTask => "hung task",
            FaultKind::Lockup => "lockup",
            FaultKind::MachineCheck => "machine check",
            FaultKind::Io => "disk or file system error",
            FaultKind::Pcie => "PCIe error",
        }
    }
}
