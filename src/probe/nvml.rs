//! Everything that NVML says. A call that a driver does not know is unread; one that a GPU does
//! not support is absent.

use std::{
    ffi::OsStr,
    sync::mpsc::RecvTimeoutError,
    thread,
    time::{Duration, Instant},
};

use nvml_wrapper::{
    Device, Nvml,
    enum_wrappers::device::{
        ComputeMode as NvmlComputeMode, EccCounter, MemoryError, RetirementCause,
        TemperatureSensor, TemperatureThreshold,
    },
    enums::device::{SampleValue, UsedGpuMemory},
    error::NvmlError,
    structs::device::FieldId,
};

use super::native;
use crate::facts::{
    ComputeMode, EccMode, Fact, GpuFacts, GpuHandle, GpuProcess, MigMode, NvLink, NvmlFacts,
    NvmlState, PcieLink, RetiredPages,
};

const LIBRARY: &str = "libnvidia-ml.so.1";
/// `NVML_FI_DEV_GET_GPU_RECOVERY_ACTION` (nvml.h of driver 570).
const RECOVERY_ACTION: u32 = 230;
/// `NVML_NVLINK_MAX_LINKS`.
const MAX_LINKS: u32 = 18;
/// Time between two samples of the clock event reasons.
const SAMPLE: Duration = Duration::from_millis(20);

/// NVML that was not asked.
pub(super) fn unread(why: &str) -> NvmlFacts {
    NvmlFacts::without_gpus(Fact::unread(why, LIBRARY), why)
}

/// NVML that gave no answer.
pub(super) fn silent(error: RecvTimeoutError, waited: Duration) -> NvmlFacts {
    let after_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
    let state = match error {
        RecvTimeoutError::Timeout => NvmlState::Hung { call: "NVML".to_owned(), after_ms },
        RecvTimeoutError::Disconnected => {
            NvmlState::Crashed { message: "the thread that asked NVML panicked".to_owned() }
        }
    };
    NvmlFacts::without_gpus(Fact::known(state, LIBRARY), "NVML gave no answer")
}

/// Asks NVML for everything.
pub(super) fn read() -> NvmlFacts {
    let begin = Instant::now();
    let nvml = match Nvml::builder().lib_path(OsStr::new(LIBRARY)).init() {
        Ok(nvml) => nvml,
        Err(error) => {
            let state = Fact::known(init_state(&error), "nvmlInit_v2");
            return NvmlFacts::without_gpus(state, "NVML is not available");
        }
    };
    let mut slowest = ("nvmlInit_v2".to_owned(), millis(begin));
    let gpus = match nvml.device_count() {
        Ok(count) => Fact::known(gpus(&nvml, count, &mut slowest), "nvmlDeviceGetCount_v2"),
        Err(error) => Fact::unread(error.to_string(), "nvmlDeviceGetCount_v2"),
    };
    NvmlFacts {
        state: Fact::known(NvmlState::Ready, "nvmlInit_v2"),
        driver_version: Fact::from_result(nvml.sys_driver_version(), "nvmlSystemGetDriverVersion"),
        cuda_version: Fact::from_result(
            nvml.sys_cuda_driver_version().map(|version| u32::try_from(version).unwrap_or(0)),
            "nvmlSystemGetCudaDriverVersion_v2",
        ),
        gpus,
        slowest_call: Fact::known(slowest, "clock around NVML calls"),
    }
}

fn millis(begin: Instant) -> u64 {
    u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the binding may name more errors than the doctor tells apart"
)]
fn init_state(error: &NvmlError) -> NvmlState {
    let failed = |code| NvmlState::Failed { code, message: error.to_string() };
    // The codes of nvml.h; the binding tells the name only.
    match error {
        NvmlError::LibloadingError(cause) => {
            NvmlState::LibraryMissing { message: cause.to_string() }
        }
        NvmlError::NoPermission => failed(4),
        NvmlError::DriverNotLoaded => failed(9),
        NvmlError::LibraryNotFound => failed(12),
        NvmlError::GpuLost => failed(15),
        NvmlError::OperatingSystem => failed(17),
        NvmlError::LibRmVersionMismatch => failed(18),
        NvmlError::InsufficientMemory => failed(20),
        _ => failed(999),
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the binding may name more errors than the doctor tells apart"
)]
fn gpus(nvml: &Nvml, count: u32, slowest: &mut (String, u64)) -> Vec<GpuFacts> {
    let mut devices = Vec::new();
    let mut gpus = Vec::new();
    for index in 0..count {
        let begin = Instant::now();
        match nvml.device_by_index(index) {
            Ok(device) => {
                gpus.push(gpu(index, &device));
                devices.push(device);
            }
            Err(error) => {
                let handle = match error {
                    NvmlError::GpuLost => GpuHandle::Lost,
                    _ => GpuHandle::Failed { code: None, message: error.to_string() },
                };
                gpus.push(GpuFacts::unread(index, handle, "NVML gives no handle for this GPU"));
            }
        }
        let took = millis(begin);
        if slowest.1 < took {
            *slowest = (format!("all queries of GPU {index}"), took);
        }
    }
    let first = reasons(&devices);
    thread::sleep(SAMPLE);
    let second = reasons(&devices);
    let ready = gpus.iter_mut().filter(|gpu| gpu.handle == GpuHandle::Ready);
    for ((gpu, first), second) in ready.zip(first).zip(second) {
        let both = first.and_then(|first| Ok(vec![first, second?]));
        gpu.clock_event_reasons =
            Fact::from_result(both, "nvmlDeviceGetCurrentClocksThrottleReasons");
    }
    gpus
}

fn reasons(devices: &[Device<'_>]) -> Vec<Result<u64, NvmlError>> {
    let bits = |device: &Device<'_>| Ok(device.current_throttle_reasons()?.bits());
    devices.iter().map(bits).collect()
}

/// A feature that a GPU may not have.
fn optional<T>(result: Result<T, NvmlError>, from: &str) -> Fact<Option<T>> {
    match result {
        Ok(value) => Fact::known(Some(value), from),
        Err(NvmlError::NotSupported) => Fact::known(None, from),
        Err(error) => Fact::unread(error.to_string(), from),
    }
}

fn gpu(index: u32, device: &Device<'_>) -> GpuFacts {
    let memory = device.memory_info();
    let memory_part =
        |part: fn(&nvml_wrapper::struct_wrappers::device::MemoryInfo) -> u64| match &memory {
            Ok(info) => Fact::known(part(info), "nvmlDeviceGetMemoryInfo_v2"),
            Err(error) => Fact::unread(error.to_string(), "nvmlDeviceGetMemoryInfo_v2"),
        };
    let known = GpuFacts::unread(index, GpuHandle::Ready, "not asked");
    GpuFacts {
        name: Fact::from_result(device.name(), "nvmlDeviceGetName"),
        uuid: Fact::from_result(device.uuid(), "nvmlDeviceGetUUID"),
        pci_address: Fact::from_result(
            device.pci_info().map(|pci| sysfs_address(&pci.bus_id)),
            "nvmlDeviceGetPciInfo_v3",
        ),
        minor_number: Fact::from_result(device.minor_number(), "nvmlDeviceGetMinorNumber"),
        compute_capability: Fact::from_result(
            device
                .cuda_compute_capability()
                .map(|c| u32::try_from(c.major * 10 + c.minor).unwrap_or(0)),
            "nvmlDeviceGetCudaComputeCapability",
        ),
        memory_total_bytes: memory_part(|info| info.total),
        memory_reserved_bytes: memory_part(|info| info.reserved).map(Some),
        memory_used_bytes: memory_part(|info| info.used),
        processes: processes(device),
        utilization_percent: optional(
            device.utilization_rates().map(|rates| rates.gpu),
            "nvmlDeviceGetUtilizationRates",
        ),
        compute_mode: Fact::from_result(
            device.compute_mode().map(mode),
            "nvmlDeviceGetComputeMode",
        ),
        persistence: Fact::from_result(
            device.is_in_persistent_mode(),
            "nvmlDeviceGetPersistenceMode",
        ),
        vbios: optional(device.vbios_version(), "nvmlDeviceGetVbiosVersion"),
        temperature_c: Fact::from_result(
            device.temperature(TemperatureSensor::Gpu),
            "nvmlDeviceGetTemperature",
        ),
        slowdown_temperature_c: optional(
            device.temperature_threshold(TemperatureThreshold::Slowdown),
            "nvmlDeviceGetTemperatureThreshold",
        ),
        power_limit_mw: optional(
            device.enforced_power_limit().map(u64::from),
            "nvmlDeviceGetEnforcedPowerLimit",
        ),
        power_limit_default_mw: optional(
            device.power_management_limit_default().map(u64::from),
            "nvmlDeviceGetPowerManagementDefaultLimit",
        ),
        ..with_health(known, device)
    }
}

/// Modes, memory errors and links.
fn with_health(known: GpuFacts, device: &Device<'_>) -> GpuFacts {
    let width = device
        .current_pcie_link_width()
        .and_then(|current| Ok(PcieLink { current, max: device.max_pcie_link_width()? }));
    GpuFacts {
        mig: optional(
            device
                .mig_mode()
                .map(|mode| MigMode { current: mode.current != 0, pending: mode.pending != 0 }),
            "nvmlDeviceGetMigMode",
        ),
        ecc: optional(
            device.is_ecc_enabled().map(|state| EccMode {
                current: state.currently_enabled,
                pending: state.pending_enabled,
            }),
            "nvmlDeviceGetEccMode",
        ),
        ecc_uncorrected_volatile: optional(
            device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile),
            "nvmlDeviceGetTotalEccErrors",
        ),
        remapped_rows: optional(native::remapped_rows(device), "nvmlDeviceGetRemappedRows"),
        retired_pages: optional(retired_pages(device), "nvmlDeviceGetRetiredPages_v2"),
        pcie_width: optional(width, "nvmlDeviceGetCurrPcieLinkWidth"),
        nvlinks: links(device),
        fabric: optional(native::fabric(device), "nvmlDeviceGetGpuFabricInfoV")
            .map(Option::flatten),
        recovery_action: recovery_action(device),
        ..known
    }
}

/// NVML writes `00000000:3B:00.0`, sysfs `0000:3b:00.0`.
fn sysfs_address(bus_id: &str) -> String {
    let lower = bus_id.to_lowercase();
    match lower.split_once(':') {
        Some((domain, rest)) if domain.len() == 8 => format!("{}:{rest}", &domain[4..]),
        Some(_) | None => lower,
    }
}

fn mode(mode: NvmlComputeMode) -> ComputeMode {
    match mode {
        NvmlComputeMode::Default => ComputeMode::Default,
        NvmlComputeMode::ExclusiveThread => ComputeMode::ExclusiveThread,
        NvmlComputeMode::Prohibited => ComputeMode::Prohibited,
        NvmlComputeMode::ExclusiveProcess => ComputeMode::ExclusiveProcess,
    }
}

fn processes(device: &Device<'_>) -> Fact<Vec<GpuProcess>> {
    let list = device.running_compute_processes().map(|processes| {
        let used = |used| match used {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        };
        processes
            .into_iter()
            .map(|process| GpuProcess {
                pid: process.pid,
                used_bytes: used(process.used_gpu_memory),
            })
            .collect()
    });
    Fact::from_result(list, "nvmlDeviceGetComputeRunningProcesses_v3")
}

fn retired_pages(device: &Device<'_>) -> Result<RetiredPages, NvmlError> {
    let count = |cause| -> Result<u32, NvmlError> {
        Ok(u32::try_from(device.retired_pages(cause)?.len()).unwrap_or(u32::MAX))
    };
    Ok(RetiredPages {
        single_bit: count(RetirementCause::MultipleSingleBitEccErrors)?,
        double_bit: count(RetirementCause::DoubleBitEccError)?,
        pending: device.are_pages_pending_retired()?,
    })
}

/// Links until the first that the GPU does not have.
fn links(device: &Device<'_>) -> Fact<Vec<NvLink>> {
    const FROM: &str = "nvmlDeviceGetNvLinkState";
    let mut links = Vec::new();
    for link in 0..MAX_LINKS {
        match device.link_wrapper_for(link).is_active() {
            Ok(active) => links.push(NvLink { link, active }),
            Err(NvmlError::NotSupported | NvmlError::InvalidArg) => break,
            Err(error) => return Fact::unread(format!("link {link}: {error}"), FROM),
        }
    }
    Fact::known(links, FROM)
}

fn recovery_action(device: &Device<'_>) -> Fact<Option<u32>> {
    const FROM: &str = "nvmlDeviceGetFieldValues 230";
    let sample = device
        .field_values_for(&[FieldId(RECOVERY_ACTION)])
        .and_then(|values| values.into_iter().next().ok_or(NvmlError::NoData)?)
        .and_then(|sample| sample.value);
    match sample {
        Ok(SampleValue::U32(action)) => Fact::known(Some(action), FROM),
        Ok(SampleValue::U64(action)) => Fact::known(u32::try_from(action).ok(), FROM),
        Ok(SampleValue::F64(_) | SampleValue::I64(_)) => {
            Fact::unread("the driver gives a number of another type", FROM)
        }
        // A driver before 565 does not know the field.
        Err(NvmlError::NotSupported | NvmlError::InvalidArg) => Fact::known(None, FROM),
        Err(error) => Fact::unread(error.to_string(), FROM),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_sysfs() {
        assert_eq!(sysfs_address("00000000:3B:00.0"), "0000:3b:00.0");
        assert_eq!(sysfs_address("0000:3b:00.0"), "0000:3b:00.0");
    }

    #[test]
    fn a_missing_driver_is_never_healthy() {
        let facts = read();
        if facts.state.value() != Some(&NvmlState::Ready) {
            assert!(facts.gpus.get().is_err());
        }
    }
}
