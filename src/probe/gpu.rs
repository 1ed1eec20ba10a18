//! One GPU as NVML shows it.

use nvml_wrapper::{
    Device,
    enum_wrappers::device::{
        ComputeMode as NvmlComputeMode, EccCounter, MemoryError, RetirementCause,
        TemperatureSensor, TemperatureThreshold,
    },
    enums::device::{SampleValue, UsedGpuMemory},
    error::NvmlError,
    struct_wrappers::device::ProcessInfo,
    structs::device::FieldId,
};

use super::{
    calls::{Calls, unread},
    native, nvlink,
};
use crate::facts::{
    ComputeMode, EccMode, Fact, GpuFacts, GpuHandle, GpuProcess, MigMode, PcieLink, RetiredPages,
};

/// `NVML_FI_DEV_GET_GPU_RECOVERY_ACTION`.
const RECOVERY_ACTION: u32 = 230;
/// First driver that knows it.
const RECOVERY_ACTION_SINCE: u32 = 565;

/// Everything about one GPU, but for its peers and the samples of its clocks. `major` is the
/// driver's branch.
pub(super) fn read(
    index: u32,
    device: &Device<'_>,
    major: Option<u32>,
    calls: &mut Calls<'_>,
) -> GpuFacts {
    let facts = GpuFacts::unread(index, GpuHandle::Ready, "not asked");
    let facts = identity(facts, device, calls);
    let facts = memory(facts, device, calls);
    let facts = memory_health(facts, device, calls);
    let facts = use_and_modes(facts, device, calls);
    let facts = power_and_links(facts, device, calls);
    let facts = odds(facts, device, calls);
    GpuFacts { recovery_action: recovery_action(device, major, calls), ..facts }
}

/// What few GPUs have, or few drivers tell.
fn odds(facts: GpuFacts, device: &Device<'_>, calls: &mut Calls<'_>) -> GpuFacts {
    GpuFacts {
        nvlink_errors: nvlink::errors(facts.nvlinks.value(), device, calls),
        sram_threshold_exceeded: calls
            .optional("nvmlDeviceGetSramEccErrorStatus", || native::sram_threshold_exceeded(device))
            .map(Option::flatten),
        virtualization: calls.if_known("nvmlDeviceGetVirtualizationMode", || {
            Ok(device.virtualization_mode()?.as_c())
        }),
        display_active: calls.if_known("nvmlDeviceGetDisplayActive", || device.is_display_active()),
        bar1_bytes: calls
            .if_known("nvmlDeviceGetBAR1MemoryInfo", || Ok(device.bar1_memory_info()?.total)),
        ..facts
    }
}

fn identity(facts: GpuFacts, device: &Device<'_>, calls: &mut Calls<'_>) -> GpuFacts {
    GpuFacts {
        name: calls.fact("nvmlDeviceGetName", || device.name()),
        uuid: calls.fact("nvmlDeviceGetUUID", || device.uuid()),
        pci_address: calls
            .fact("nvmlDeviceGetPciInfo_v3", || Ok(sysfs_address(&device.pci_info()?.bus_id))),
        minor_number: calls.fact("nvmlDeviceGetMinorNumber", || device.minor_number()),
        compute_capability: calls.fact("nvmlDeviceGetCudaComputeCapability", || {
            let capability = device.cuda_compute_capability()?;
            u32::try_from(capability.major * 10 + capability.minor)
                .map_err(|_negative| NvmlError::Unknown)
        }),
        vbios: calls.optional("nvmlDeviceGetVbiosVersion", || device.vbios_version()),
        serial: calls.optional("nvmlDeviceGetSerial", || device.serial()),
        gsp_firmware: calls
            .optional("nvmlDeviceGetGspFirmwareVersion", || device.gsp_firmware_version()),
        numa_node: calls.optional("nvmlDeviceGetNumaNodeId", || device.numa_node_id()),
        ..facts
    }
}

/// Total, reserved, used. Drivers before 510 have only the call that counts the reserved memory
/// as used.
fn memory(facts: GpuFacts, device: &Device<'_>, calls: &mut Calls<'_>) -> GpuFacts {
    let v2 = calls.make("nvmlDeviceGetMemoryInfo_v2", || device.memory_info());
    let memory = match v2 {
        Ok(info) => {
            Fact::known((info.total, Some(info.reserved), info.used), "nvmlDeviceGetMemoryInfo_v2")
        }
        Err(NvmlError::FailedToLoadSymbol(_) | NvmlError::FunctionNotFound) => {
            let v1 = calls.fact("nvmlDeviceGetMemoryInfo", || native::memory(device));
            v1.map(|info| (info.total, None, info.used))
        }
        Err(error) => unread(error, "nvmlDeviceGetMemoryInfo_v2"),
    };
    GpuFacts {
        memory_total_bytes: memory.clone().map(|(total, _, _)| total),
        memory_reserved_bytes: memory.clone().map(|(_, reserved, _)| reserved),
        memory_used_bytes: memory.map(|(_, _, used)| used),
        ..facts
    }
}

fn memory_health(facts: GpuFacts, device: &Device<'_>, calls: &mut Calls<'_>) -> GpuFacts {
    let errors = "nvmlDeviceGetTotalEccErrors";
    GpuFacts {
        ecc: calls.optional("nvmlDeviceGetEccMode", || {
            let state = device.is_ecc_enabled()?;
            Ok(EccMode { current: state.currently_enabled, pending: state.pending_enabled })
        }),
        ecc_uncorrected_volatile: calls.optional(errors, || {
            device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile)
        }),
        ecc_corrected_volatile: calls.optional(errors, || {
            device.total_ecc_errors(MemoryError::Corrected, EccCounter::Volatile)
        }),
        remapped_rows: calls
            .optional("nvmlDeviceGetRemappedRows", || native::remapped_rows(device)),
        retired_pages: calls.optional("nvmlDeviceGetRetiredPages_v2", || retired_pages(device)),
        ..facts
    }
}

fn use_and_modes(facts: GpuFacts, device: &Device<'_>, calls: &mut Calls<'_>) -> GpuFacts {
    GpuFacts {
        processes: calls.fact("nvmlDeviceGetComputeRunningProcesses_v3", || {
            Ok(device.running_compute_processes()?.iter().map(process).collect())
        }),
        utilization_percent: calls
            .optional("nvmlDeviceGetUtilizationRates", || Ok(device.utilization_rates()?.gpu)),
        compute_mode: calls
            .fact("nvmlDeviceGetComputeMode", || Ok(compute_mode(device.compute_mode()?))),
        persistence: calls.fact("nvmlDeviceGetPersistenceMode", || device.is_in_persistent_mode()),
        mig: calls.optional("nvmlDeviceGetMigMode", || {
            let mode = device.mig_mode()?;
            Ok(MigMode { current: mode.current != 0, pending: mode.pending != 0 })
        }),
        ..facts
    }
}

fn power_and_links(facts: GpuFacts, device: &Device<'_>, calls: &mut Calls<'_>) -> GpuFacts {
    GpuFacts {
        temperature_c: calls
            .fact("nvmlDeviceGetTemperature", || device.temperature(TemperatureSensor::Gpu)),
        slowdown_temperature_c: calls.optional("nvmlDeviceGetTemperatureThreshold", || {
            device.temperature_threshold(TemperatureThreshold::Slowdown)
        }),
        power_limit_mw: calls.optional("nvmlDeviceGetEnforcedPowerLimit", || {
            Ok(u64::from(device.enforced_power_limit()?))
        }),
        power_limit_default_mw: calls.optional("nvmlDeviceGetPowerManagementDefaultLimit", || {
            Ok(u64::from(device.power_management_limit_default()?))
        }),
        pcie_width: calls.optional("nvmlDeviceGetCurrPcieLinkWidth", || {
            let current = device.current_pcie_link_width()?;
            Ok(PcieLink { current, max: device.max_pcie_link_width()? })
        }),
        pcie_generation: calls.optional("nvmlDeviceGetCurrPcieLinkGeneration", || {
            let current = device.current_pcie_link_gen()?;
            Ok(PcieLink { current, max: device.max_pcie_link_gen()? })
        }),
        pcie_replays: calls
            .optional("nvmlDeviceGetPcieReplayCounter", || device.pcie_replay_counter()),
        nvlinks: nvlink::links(device, calls),
        fabric: calls
            .optional("nvmlDeviceGetGpuFabricInfoV", || native::fabric(device))
            .map(Option::flatten),
        ..facts
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

fn compute_mode(mode: NvmlComputeMode) -> ComputeMode {
    match mode {
        NvmlComputeMode::Default => ComputeMode::Default,
        NvmlComputeMode::ExclusiveThread => ComputeMode::ExclusiveThread,
        NvmlComputeMode::Prohibited => ComputeMode::Prohibited,
        NvmlComputeMode::ExclusiveProcess => ComputeMode::ExclusiveProcess,
    }
}

fn process(process: &ProcessInfo) -> GpuProcess {
    let used_bytes = match process.used_gpu_memory {
        UsedGpuMemory::Used(bytes) => Some(bytes),
        UsedGpuMemory::Unavailable => None,
    };
    GpuProcess { pid: process.pid, used_bytes }
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

fn recovery_action(
    device: &Device<'_>,
    major: Option<u32>,
    calls: &mut Calls<'_>,
) -> Fact<Option<u32>> {
    let name = "nvmlDeviceGetFieldValues 230";
    if major.is_some_and(|major| major < RECOVERY_ACTION_SINCE) {
        return Fact::known(None, name);
    }
    calls.optional(name, || {
        let values = device.field_values_for(&[FieldId(RECOVERY_ACTION)])?;
        match values.into_iter().next().ok_or(NvmlError::NoData)??.value? {
            SampleValue::U32(action) => Ok(action),
            SampleValue::U64(action) => u32::try_from(action).map_err(|_large| NvmlError::Unknown),
            SampleValue::F64(_) | SampleValue::I64(_) => Err(NvmlError::Unknown),
        }
    })
}

#[cfg(test)]
mod tests {
    use simgpu::Host;

    use super::*;
    use crate::{
        facts::{Fabric, NvmlFacts, Peer, RemappedRows},
        probe::{Progress, nvml},
    };

    fn facts(scenario: &str) -> NvmlFacts {
        let host = Host::named(scenario);
        nvml::read(host.nvml().as_os_str(), &Progress::default())
    }

    fn gpus(scenario: &str) -> Vec<GpuFacts> {
        facts(scenario).gpus.get().unwrap().clone()
    }

    #[test]
    fn addresses_are_those_of_sysfs() {
        assert_eq!(sysfs_address("00000000:3B:00.0"), "0000:3b:00.0");
        assert_eq!(sysfs_address("0000:3b:00.0"), "0000:3b:00.0");
    }

    /// Values of the dumps that the profile was made from.
    #[test]
    fn a_healthy_h100_is_read_whole() {
        let facts = facts("healthy-8xh100-580");
        assert_eq!(facts.driver_version.get().unwrap(), "580.95.05");
        assert_eq!(facts.nvml_version.get().unwrap(), "13.580.95.05");
        assert_eq!(*facts.cuda_version.get().unwrap(), 13000);
        let gpus = facts.gpus.get().unwrap();
        assert_eq!(gpus.len(), 8);
        let gpu = &gpus[2];
        assert_eq!(gpu.name.get().unwrap(), "NVIDIA H100 80GB HBM3");
        assert_eq!(gpu.pci_address.get().unwrap(), "0000:52:00.0");
        assert_eq!(*gpu.compute_capability.get().unwrap(), 90);
        assert_eq!(*gpu.memory_total_bytes.get().unwrap(), 81559 << 20);
        assert_eq!(*gpu.memory_reserved_bytes.get().unwrap(), Some(551 << 20));
        assert_eq!(*gpu.memory_used_bytes.get().unwrap(), 0);
        let on = EccMode { current: true, pending: true };
        assert_eq!(*gpu.ecc.get().unwrap(), Some(on));
        assert_eq!(*gpu.retired_pages.get().unwrap(), None);
        let none = RemappedRows { correctable: 0, uncorrectable: 0, pending: false, failed: false };
        assert_eq!(*gpu.remapped_rows.get().unwrap(), Some(none));
        assert_eq!(*gpu.power_limit_mw.get().unwrap(), Some(700_000));
        assert_eq!(gpu.nvlinks.get().unwrap().len(), 18);
        let fabric = Fabric { state: 3, status: 0, health_mask: 0 };
        assert_eq!(*gpu.fabric.get().unwrap(), Some(fabric));
        assert_eq!(*gpu.recovery_action.get().unwrap(), Some(0));
        assert_eq!(gpu.peers.get().unwrap()[0], Peer { index: 0, p2p_read: 0, path: 40 });
        assert_eq!(gpu.peers.get().unwrap()[6], Peer { index: 7, p2p_read: 0, path: 50 });
    }

    #[test]
    fn a_broken_gpu_shows_all_its_faults() {
        let gpus = gpus("broken-host");
        let (broken, cut) = (&gpus[2], &gpus[3]);
        let narrow = PcieLink { current: 8, max: 16 };
        assert_eq!(*broken.pcie_width.get().unwrap(), Some(narrow));
        assert_eq!(*broken.pcie_generation.get().unwrap(), Some(PcieLink { current: 3, max: 5 }));
        assert_eq!(broken.clock_event_reasons.get().unwrap(), &[72, 72]);
        assert_eq!(*broken.temperature_c.get().unwrap(), 88);
        assert_eq!(*broken.ecc_uncorrected_volatile.get().unwrap(), Some(3));
        assert_eq!(*broken.recovery_action.get().unwrap(), Some(1));
        let rows = RemappedRows { correctable: 0, uncorrectable: 1, pending: true, failed: true };
        assert_eq!(*broken.remapped_rows.get().unwrap(), Some(rows));
        let python = GpuProcess { pid: 4242, used_bytes: Some(5120 << 20) };
        assert_eq!(broken.processes.get().unwrap(), &[python]);
        let down: Vec<u32> =
            cut.nvlinks.get().unwrap().iter().filter(|l| !l.active).map(|l| l.link).collect();
        assert_eq!(down, [5]);
        assert_eq!(gpus[0].peers.get().unwrap()[0].p2p_read, 2);
    }

    #[test]
    fn what_a_gpu_does_not_have_is_absent() {
        let geforce = &gpus("healthy-8x4090-idle")[0];
        assert_eq!(*geforce.mig.get().unwrap(), None);
        assert_eq!(*geforce.ecc_uncorrected_volatile.get().unwrap(), None);
        assert_eq!(*geforce.serial.get().unwrap(), None);
        assert_eq!(*geforce.fabric.get().unwrap(), None);
        assert_eq!(*geforce.recovery_action.get().unwrap(), None);
        assert!(geforce.nvlinks.get().unwrap().is_empty());
        let idle = PcieLink { current: 1, max: 4 };
        assert_eq!(*geforce.pcie_generation.get().unwrap(), Some(idle));
        let volta = &gpus("retired-pages")[0];
        assert_eq!(*volta.remapped_rows.get().unwrap(), None);
        let pages = RetiredPages { single_bit: 3, double_bit: 2, pending: true };
        assert_eq!(*volta.retired_pages.get().unwrap(), Some(pages));
    }

    #[test]
    fn what_a_driver_does_not_know_is_unread_and_never_healthy() {
        for gpu in gpus("missing-symbols-535") {
            for (unread, symbol) in [
                (gpu.remapped_rows.get().err(), "nvmlDeviceGetRemappedRows"),
                (gpu.ecc.get().err(), "nvmlDeviceGetEccMode"),
                (gpu.numa_node.get().err(), "nvmlDeviceGetNumaNodeId"),
            ] {
                let unread = unread.unwrap();
                assert!(unread.why.contains("symbol"), "{unread}");
                assert_eq!(unread.from, symbol);
            }
        }
    }

    #[test]
    fn an_old_driver_tells_memory_without_the_reserve() {
        let gpu = &gpus("old-driver")[0];
        assert_eq!(*gpu.memory_total_bytes.get().unwrap(), 81920 << 20);
        assert_eq!(*gpu.memory_reserved_bytes.get().unwrap(), None);
        assert_eq!(*gpu.memory_used_bytes.get().unwrap(), 869 << 20);
        assert_eq!(gpu.memory_total_bytes.from(), "nvmlDeviceGetMemoryInfo");
        assert!(gpu.fabric.get().is_err() && gpu.gsp_firmware.get().is_err());
    }

    #[test]
    fn a_busy_gpu_names_who_computes_on_it() {
        let gpu = &gpus("busy")[0];
        // The X server draws; it does not compute.
        assert_eq!(gpu.processes.get().unwrap().len(), 1);
        assert_eq!(*gpu.utilization_percent.get().unwrap(), Some(97));
        assert_eq!(*gpu.compute_mode.get().unwrap(), ComputeMode::ExclusiveProcess);
        assert!(!gpu.persistence.get().unwrap());
        assert_eq!(*gpu.power_limit_mw.get().unwrap(), Some(300_000));
        assert_eq!(*gpu.power_limit_default_mw.get().unwrap(), Some(500_000));
    }
}
