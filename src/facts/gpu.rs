//! The NVIDIA driver and its GPUs: kernel module, PCI bus, NVML.
//!
//! `Fact<Option<T>>` has three states: a value; `None`, when the driver says that this GPU does
//! not have the feature (`NVML_ERROR_NOT_SUPPORTED`); unread, when nothing is known.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{DeviceNode, Fabric, Fact, NvLink, NvLinkErrors, PciState, Peer};

/// Kernel side of the driver, read from files only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DriverFacts {
    /// The loaded `nvidia` module; `None` if it is not loaded.
    pub kernel_module: Fact<Option<KernelModule>>,
    /// Names of all loaded kernel modules, from `/proc/modules`.
    pub modules: Fact<BTreeSet<String>>,
    /// NVIDIA display and 3D controllers on the PCI bus.
    pub pci_gpus: Fact<Vec<PciGpu>>,
    /// `/dev/nvidia*` by path; empty if there is none.
    pub device_nodes: Fact<BTreeMap<String, DeviceNode>>,
    /// Full path of the `libcuda.so.1` that the loader takes, links resolved; `None` if there is
    /// none.
    pub libcuda_path: Fact<Option<String>>,
    /// The GPUs' state on the bus.
    #[serde(default = "Fact::not_recorded")]
    pub pci_states: Fact<Vec<PciState>>,
    /// NVSwitches on the PCI bus.
    #[serde(default = "Fact::not_recorded")]
    pub nvswitches: Fact<u32>,
    /// Channels for memory of other nodes, in `/dev/nvidia-caps-imex-channels`.
    #[serde(default = "Fact::not_recorded")]
    pub imex_channels: Fact<u32>,
}

/// The loaded `nvidia` kernel module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelModule {
    /// Version, such as `580.65.06`.
    pub version: String,
    /// Whether it is the open kernel module.
    pub open: bool,
}

/// An NVIDIA GPU as sysfs shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciGpu {
    /// PCI address, `0000:3b:00.0`.
    pub address: String,
    /// Vendor and device, `10de:20b2`.
    pub id: String,
    /// Whether the configuration space reads all ones: the device fell off the bus.
    pub config_all_ones: bool,
    /// Lanes in use and lanes that the device has, from `current_link_width`, `max_link_width`.
    pub width: Option<PcieLink>,
    /// The same of the port above, which may have fewer lanes.
    pub upstream_width: Option<PcieLink>,
    /// NUMA node, -1 if the firmware does not say.
    pub numa_node: Option<i32>,
}

/// Lanes or generation of a PCIe link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PcieLink {
    /// Now.
    pub current: u32,
    /// At most.
    pub max: u32,
}

/// What NVML says about the driver and its GPUs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NvmlFacts {
    /// Result of loading and initialising NVML.
    pub state: Fact<NvmlState>,
    /// `nvmlSystemGetDriverVersion`, such as `580.65.06`.
    pub driver_version: Fact<String>,
    /// `nvmlSystemGetNVMLVersion`, such as `13.580.65.06`.
    #[serde(default = "Fact::not_recorded")]
    pub nvml_version: Fact<String>,
    /// `nvmlSystemGetCudaDriverVersion_v2`: highest CUDA, as `major * 1000 + minor * 10`.
    pub cuda_version: Fact<u32>,
    /// All GPUs that NVML counts, by index.
    pub gpus: Fact<Vec<GpuFacts>>,
    /// Milliseconds of the slowest single call, and its name.
    pub slowest_call: Fact<(String, u64)>,
}

impl NvmlFacts {
    /// NVML that gave nothing but its state.
    pub fn without_gpus(state: Fact<NvmlState>, why: &str) -> Self {
        NvmlFacts {
            state,
            driver_version: Fact::unread(why, "nvmlSystemGetDriverVersion"),
            nvml_version: Fact::unread(why, "nvmlSystemGetNVMLVersion"),
            cuda_version: Fact::unread(why, "nvmlSystemGetCudaDriverVersion_v2"),
            gpus: Fact::unread(why, "nvmlDeviceGetCount_v2"),
            slowest_call: Fact::unread(why, "NVML"),
        }
    }
}

/// Result of loading and initialising NVML.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NvmlState {
    /// NVML answers.
    Ready,
    /// There is no `libnvidia-ml.so.1`.
    LibraryMissing {
        /// What the loader said.
        message: String,
    },
    /// `libnvidia-ml.so.1` is there, and the loader refuses it or does not find what it needs.
    LibraryBroken {
        /// What the loader said.
        message: String,
    },
    /// `nvmlInit_v2` failed.
    Failed {
        /// `nvmlReturn_t`.
        code: u32,
        /// Text for the code.
        message: String,
    },
    /// A call did not come back in time; the process that made it was killed.
    Hung {
        /// The call.
        call: String,
        /// How long it was waited for.
        after_ms: u64,
    },
    /// The process that talks to the driver died.
    Crashed {
        /// How it ended: signal or exit code.
        message: String,
    },
}

/// One GPU as NVML shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GpuFacts {
    /// NVML index.
    pub index: u32,
    /// Whether a handle could be had.
    pub handle: GpuHandle,
    /// Product name, `NVIDIA A100-SXM4-80GB`.
    pub name: Fact<String>,
    /// `GPU-xxxxxxxx-...`.
    pub uuid: Fact<String>,
    /// PCI address in sysfs form, `0000:3b:00.0`.
    pub pci_address: Fact<String>,
    /// Number of the device file: `/dev/nvidia<minor>`.
    pub minor_number: Fact<u32>,
    /// Compute capability as `major * 10 + minor`.
    pub compute_capability: Fact<u32>,
    /// All memory of the GPU, in bytes (`nvmlDeviceGetMemoryInfo_v2`, total).
    pub memory_total_bytes: Fact<u64>,
    /// Memory that the driver keeps for itself, in bytes; `None` before driver 510.
    pub memory_reserved_bytes: Fact<Option<u64>>,
    /// Memory that programs use now, in bytes.
    pub memory_used_bytes: Fact<u64>,
    /// Processes that compute on the GPU. Those of other containers may be hidden.
    pub processes: Fact<Vec<GpuProcess>>,
    /// Share of time in which a kernel ran, in percent.
    pub utilization_percent: Fact<Option<u32>>,
    /// Who may compute.
    pub compute_mode: Fact<ComputeMode>,
    /// Multi-instance mode; `None` if the GPU cannot be divided.
    pub mig: Fact<Option<MigMode>>,
    /// Whether the driver stays loaded without clients.
    pub persistence: Fact<bool>,
    /// Error correction; `None` if the GPU has none.
    pub ecc: Fact<Option<EccMode>>,
    /// Uncorrected memory errors since the driver was loaded.
    pub ecc_uncorrected_volatile: Fact<Option<u64>>,
    /// Rows of memory that were replaced; `None` before Ampere.
    pub remapped_rows: Fact<Option<RemappedRows>>,
    /// Pages that were retired; `None` from Ampere on.
    pub retired_pages: Fact<Option<RetiredPages>>,
    /// `nvmlClocksEventReasons` bits of at least two samples.
    pub clock_event_reasons: Fact<Vec<u64>>,
    /// Temperature of the GPU in degrees Celsius.
    pub temperature_c: Fact<u32>,
    /// Temperature at which the GPU slows down, in degrees Celsius.
    pub slowdown_temperature_c: Fact<Option<u32>>,
    /// Power limit in force, in milliwatts.
    pub power_limit_mw: Fact<Option<u64>>,
    /// Power limit as shipped, in milliwatts.
    pub power_limit_default_mw: Fact<Option<u64>>,
    /// PCIe lanes as NVML shows them.
    pub pcie_width: Fact<Option<PcieLink>>,
    /// All `NVLinks` that the GPU reports; empty for GPUs without `NVLink`.
    pub nvlinks: Fact<Vec<NvLink>>,
    /// State of the `NVSwitch` fabric; `None` if the GPU is not on one.
    pub fabric: Fact<Option<Fabric>>,
    /// `GET_GPU_RECOVERY_ACTION`: 0 none, 1 reset, 2 reboot, 3 drain P2P, 4 drain and reset;
    /// `None` before driver 565.
    pub recovery_action: Fact<Option<u32>>,
    /// Version of the video BIOS.
    pub vbios: Fact<Option<String>>,
    /// Corrected memory errors since the driver was loaded.
    #[serde(default = "Fact::not_recorded")]
    pub ecc_corrected_volatile: Fact<Option<u64>>,
    /// PCIe generations as NVML shows them. An idle GPU may run a lower one than it can.
    #[serde(default = "Fact::not_recorded")]
    pub pcie_generation: Fact<Option<PcieLink>>,
    /// Packets that the PCIe link had to send again since the driver was loaded.
    #[serde(default = "Fact::not_recorded")]
    pub pcie_replays: Fact<Option<u32>>,
    /// Serial number of the board.
    #[serde(default = "Fact::not_recorded")]
    pub serial: Fact<Option<String>>,
    /// Version of the firmware of the GPU's system processor.
    #[serde(default = "Fact::not_recorded")]
    pub gsp_firmware: Fact<Option<String>>,
    /// NUMA node as NVML shows it; unread before driver 550.
    #[serde(default = "Fact::not_recorded")]
    pub numa_node: Fact<Option<u32>>,
    /// How this GPU reaches the others of the machine.
    #[serde(default = "Fact::not_recorded")]
    pub peers: Fact<Vec<Peer>>,
    /// Errors that the `NVLinks` counted, over all links; `None` for GPUs without `NVLink`.
    #[serde(default = "Fact::not_recorded")]
    pub nvlink_errors: Fact<Option<NvLinkErrors>>,
    /// Whether errors of the GPU's caches passed NVIDIA's limit for a replacement; `None` if the
    /// driver or the GPU does not tell.
    #[serde(default = "Fact::not_recorded")]
    pub sram_threshold_exceeded: Fact<Option<bool>>,
    /// 0 none, 1 passed through to a virtual machine, 2 virtual GPU, 3 host of virtual GPUs;
    /// `None` if the driver does not tell.
    #[serde(default = "Fact::not_recorded")]
    pub virtualization: Fact<Option<u32>>,
    /// Whether a screen is driven by it.
    #[serde(default = "Fact::not_recorded")]
    pub display_active: Fact<Option<bool>>,
    /// Memory window of the PCIe bus, in bytes.
    #[serde(default = "Fact::not_recorded")]
    pub bar1_bytes: Fact<Option<u64>>,
}

impl GpuFacts {
    /// A GPU of which nothing but the index is known.
    pub fn unread(index: u32, handle: GpuHandle, why: &str) -> Self {
        GpuFacts {
            index,
            handle,
            name: Fact::unread(why, "nvmlDeviceGetName"),
            uuid: Fact::unread(why, "nvmlDeviceGetUUID"),
            pci_address: Fact::unread(why, "nvmlDeviceGetPciInfo_v3"),
            minor_number: Fact::unread(why, "nvmlDeviceGetMinorNumber"),
            compute_capability: Fact::unread(why, "nvmlDeviceGetCudaComputeCapability"),
            memory_total_bytes: Fact::unread(why, "nvmlDeviceGetMemoryInfo_v2"),
            memory_reserved_bytes: Fact::unread(why, "nvmlDeviceGetMemoryInfo_v2"),
            memory_used_bytes: Fact::unread(why, "nvmlDeviceGetMemoryInfo_v2"),
            processes: Fact::unread(why, "nvmlDeviceGetComputeRunningProcesses_v3"),
            utilization_percent: Fact::unread(why, "nvmlDeviceGetUtilizationRates"),
            compute_mode: Fact::unread(why, "nvmlDeviceGetComputeMode"),
            mig: Fact::unread(why, "nvmlDeviceGetMigMode"),
            persistence: Fact::unread(why, "nvmlDeviceGetPersistenceMode"),
            ecc: Fact::unread(why, "nvmlDeviceGetEccMode"),
            ecc_uncorrected_volatile: Fact::unread(why, "nvmlDeviceGetTotalEccErrors"),
            remapped_rows: Fact::unread(why, "nvmlDeviceGetRemappedRows"),
            retired_pages: Fact::unread(why, "nvmlDeviceGetRetiredPages_v2"),
            clock_event_reasons: Fact::unread(why, "nvmlDeviceGetCurrentClocksThrottleReasons"),
            temperature_c: Fact::unread(why, "nvmlDeviceGetTemperature"),
            slowdown_temperature_c: Fact::unread(why, "nvmlDeviceGetTemperatureThreshold"),
            power_limit_mw: Fact::unread(why, "nvmlDeviceGetEnforcedPowerLimit"),
            power_limit_default_mw: Fact::unread(why, "nvmlDeviceGetPowerManagementDefaultLimit"),
            pcie_width: Fact::unread(why, "nvmlDeviceGetCurrPcieLinkWidth"),
            nvlinks: Fact::unread(why, "nvmlDeviceGetNvLinkState"),
            fabric: Fact::unread(why, "nvmlDeviceGetGpuFabricInfoV"),
            recovery_action: Fact::unread(why, "nvmlDeviceGetFieldValues 230"),
            vbios: Fact::unread(why, "nvmlDeviceGetVbiosVersion"),
            ecc_corrected_volatile: Fact::unread(why, "nvmlDeviceGetTotalEccErrors"),
            pcie_generation: Fact::unread(why, "nvmlDeviceGetCurrPcieLinkGeneration"),
            pcie_replays: Fact::unread(why, "nvmlDeviceGetPcieReplayCounter"),
            serial: Fact::unread(why, "nvmlDeviceGetSerial"),
            gsp_firmware: Fact::unread(why, "nvmlDeviceGetGspFirmwareVersion"),
            numa_node: Fact::unread(why, "nvmlDeviceGetNumaNodeId"),
            peers: Fact::unread(why, "nvmlDeviceGetP2PStatus"),
            nvlink_errors: Fact::unread(why, "nvmlDeviceGetNvLinkErrorCounter"),
            sram_threshold_exceeded: Fact::unread(why, "nvmlDeviceGetSramEccErrorStatus"),
            virtualization: Fact::unread(why, "nvmlDeviceGetVirtualizationMode"),
            display_active: Fact::unread(why, "nvmlDeviceGetDisplayActive"),
            bar1_bytes: Fact::unread(why, "nvmlDeviceGetBAR1MemoryInfo"),
        }
    }
}

/// Whether NVML gives a handle for a GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GpuHandle {
    /// It does.
    Ready,
    /// `NVML_ERROR_GPU_IS_LOST`.
    Lost,
    /// Another error.
    Failed {
        /// `nvmlReturn_t`, if the binding tells it.
        code: Option<u32>,
        /// Text for the code.
        message: String,
    },
}

/// A process that computes on a GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuProcess {
    /// Process id in the host's namespace.
    pub pid: u32,
    /// Memory that it uses, in bytes; `None` if the driver does not say.
    pub used_bytes: Option<u64>,
}

/// Who may compute on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ComputeMode {
    /// Any number of processes.
    Default,
    /// One thread of one process (old).
    ExclusiveThread,
    /// Nobody.
    Prohibited,
    /// One process.
    ExclusiveProcess,
}

/// Multi-instance mode, now and after the next reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigMode {
    /// Now.
    pub current: bool,
    /// After the next reset.
    pub pending: bool,
}

/// Error correction, now and after the next reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EccMode {
    /// Now.
    pub current: bool,
    /// After the next reset.
    pub pending: bool,
}

/// Rows of memory that were replaced by spare ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemappedRows {
    /// After correctable errors.
    pub correctable: u32,
    /// After uncorrectable errors.
    pub uncorrectable: u32,
    /// A replacement waits for a reset.
    pub pending: bool,
    /// A replacement failed.
    pub failed: bool,
}

/// Pages of memory that are no longer used (before Ampere).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetiredPages {
    /// After many single-bit errors.
    pub single_bit: u32,
    /// After a double-bit error.
    pub double_bit: u32,
    /// A retirement waits for a reset.
    pub pending: bool,
}
