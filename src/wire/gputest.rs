//! What `qvl-train gputest` tells the doctor that started it.
//!
//! Each call of the driver is said before it is made, as a line `call NAME`; the last line is
//! `answer` and one [`GpuTests`] as JSON. So a call that hangs has a name.

use serde::{Deserialize, Serialize};

/// Before the name of the step that follows.
pub const CALL: &str = "call ";
/// Before the answer.
pub const ANSWER: &str = "answer ";

/// What the tests of all GPUs found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GpuTests {
    /// The driver was reached, and its GPUs were tested.
    Tested(Tested),
    /// There is no driver, or it does not start: nothing is known about any GPU.
    Unavailable {
        /// The call that failed.
        call: String,
        /// Why.
        why: String,
    },
}

/// Results by GPU and by pair.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tested {
    /// In the order of CUDA.
    pub devices: Vec<DeviceTest>,
    /// Every ordered pair of two GPUs.
    pub peers: Vec<PeerTest>,
    /// Bytes that each rank of the job needs, and that were asked for on each GPU.
    pub asked_bytes: u64,
    /// Bytes of one copy.
    pub copy_bytes: u64,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceTest {
    /// CUDA ordinal, among the visible GPUs.
    pub ordinal: u32,
    /// Product name.
    pub name: String,
    /// PCI address as sysfs writes it.
    pub pci_address: Option<String>,
    /// Memory of the estimate was given and freed again; else the driver's words.
    pub allocated: Outcome,
    /// What came back of the bytes that were copied there.
    pub copied: Copied,
    /// Host to device and back, in bytes per second, the best of some copies; `None` if a copy
    /// failed.
    pub to_device: Option<f64>,
    /// See `to_device`.
    pub to_host: Option<f64>,
    /// CRC-32C of what the trainer's kernels made of fixed numbers, one for each run; `None` in a
    /// build without CUDA.
    #[serde(default)]
    pub kernels: Option<Vec<u32>>,
}

/// A copy from one GPU to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerTest {
    /// Ordinal of the source.
    pub from: u32,
    /// Ordinal of the target.
    pub to: u32,
    /// `cuDeviceCanAccessPeer`; `None` if the call failed.
    pub can_access: Option<bool>,
    /// What arrived, read back from the target.
    pub copied: Copied,
}

/// Whether a call worked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It did.
    Done,
    /// It did not.
    Failed {
        /// The call.
        call: String,
        /// `CUresult`.
        code: u32,
        /// The driver's words.
        message: String,
    },
}

/// What a copy brought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Copied {
    /// All bytes, for every pattern.
    Right,
    /// Other bytes.
    Wrong {
        /// How many, of the worst pattern.
        bytes: u64,
        /// Where the first one is.
        first: u64,
    },
    /// A call failed.
    Failed {
        /// The call.
        call: String,
        /// `CUresult`.
        code: u32,
        /// The driver's words.
        message: String,
    },
}
