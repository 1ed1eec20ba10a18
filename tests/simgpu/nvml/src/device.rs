//! Identity, modes, PCIe, temperature, power and clocks of one GPU.

use std::ffi::{c_char, c_int};

use crate::{
    answer::{
        Code, INVALID_ARGUMENT, NO_PERMISSION, NOT_SUPPORTED, Now, This, put, put_text,
        put_versioned, text_array,
    },
    calls::gpu_calls,
    layout::{PciInfo, PciInfoExt, TemperatureV1, Utilization, Violation, version},
};

/// Serial number, if the product has one.
pub(crate) fn serial(now: &Now, index: usize) -> Result<String, Code> {
    if !now.gpu(index).profile().serial {
        return Err(NOT_SUPPORTED);
    }
    let (domain, bus, _device) = now.scenario.pci(index);
    Ok(format!("16512230{:05}", (domain << 8 | bus) * 7))
}

/// As NVML writes it.
pub(crate) fn bus_id((domain, bus, device): (u32, u32, u32)) -> String {
    format!("{domain:08X}:{bus:02X}:{device:02X}.0")
}

pub(crate) fn pci_info(this: &This) -> PciInfo {
    let (domain, bus, device) = this.now.scenario.pci(this.index);
    PciInfo {
        bus_id_legacy: text_array(&format!("{domain:04X}:{bus:02X}:{device:02X}.0")),
        domain,
        bus,
        device,
        pci_device_id: this.profile().pci_device_id,
        pci_subsystem_id: this.profile().pci_subsystem_id,
        bus_id: text_array(&bus_id((domain, bus, device))),
    }
}

/// Watts in force, in milliwatts.
pub(crate) fn power_limit_mw(this: &This) -> u32 {
    this.gpu().power_limit_w.unwrap_or(this.profile().power_w.1) * 1000
}

/// Draw in milliwatts.
pub(crate) fn power_mw(this: &This) -> u32 {
    let idle = this.profile().power_idle_w * 1000;
    idle + power_limit_mw(this).saturating_sub(idle) / 100 * this.gpu().utilization
}

fn temperature(this: &This) -> u32 {
    this.gpu().temperature.unwrap_or(this.profile().temperature_c)
}

fn reasons(this: &This) -> u64 {
    this.gpu().throttle.unwrap_or(1)
}

fn pstate(this: &This) -> u32 {
    if this.gpu().utilization == 0 { this.profile().idle_pstate } else { 0 }
}

/// Kind of clock: 0 graphics, 1 multiprocessors, 2 memory, 3 video.
fn max_clock(this: &This, kind: u32) -> Result<u32, Code> {
    match kind {
        0 | 1 | 3 => Ok(this.profile().clocks_mhz.0),
        2 => Ok(this.profile().clocks_mhz.1),
        _ => Err(INVALID_ARGUMENT),
    }
}

/// An idle multiprocessor runs at 345 MHz; memory of data-centre GPUs does not slow down.
fn clock(this: &This, kind: u32) -> Result<u32, Code> {
    let max = max_clock(this, kind)?;
    let idle = this.gpu().utilization == 0;
    Ok(if idle && (kind != 2 || this.profile().idle_pstate != 0) { 345.min(max) } else { max })
}

fn supported<T>(is: bool, value: T) -> Result<T, Code> {
    is.then_some(value).ok_or(NOT_SUPPORTED)
}

gpu_calls! {
    fn nvmlDeviceGetName(this, name: *mut c_char, length: u32) {
        put_text(name, length, this.profile().name)
    }
    fn nvmlDeviceGetUUID(this, uuid: *mut c_char, length: u32) {
        put_text(uuid, length, &this.now.scenario.uuid(this.index))
    }
    fn nvmlDeviceGetSerial(this, text: *mut c_char, length: u32) {
        put_text(text, length, &serial(&this.now, this.index)?)
    }
    fn nvmlDeviceGetIndex(this, index: *mut u32) {
        let visible = this.now.visible();
        let position = visible.iter().position(|index| *index == this.index);
        put(index, position.ok_or(INVALID_ARGUMENT)? as u32)
    }
    fn nvmlDeviceGetMinorNumber(this, minor: *mut u32) { put(minor, this.index as u32) }
    fn nvmlDeviceGetModuleId(this, module: *mut u32) { put(module, this.index as u32 + 1) }
    fn nvmlDeviceGetPciInfo(this, info: *mut PciInfo) { put(info, pci_info(this)) }
    fn nvmlDeviceGetPciInfo_v2(this, info: *mut PciInfo) { put(info, pci_info(this)) }
    fn nvmlDeviceGetPciInfo_v3(this, info: *mut PciInfo) { put(info, pci_info(this)) }
    fn nvmlDeviceGetPciInfoExt(this, info: *mut PciInfoExt) {
        let pci = pci_info(this);
        let version = version::<PciInfoExt>(1);
        put_versioned(info, version, PciInfoExt {
            version,
            domain: pci.domain,
            bus: pci.bus,
            device: pci.device,
            pci_device_id: pci.pci_device_id,
            pci_subsystem_id: pci.pci_subsystem_id,
            base_class: 3,
            sub_class: 2,
            bus_id: pci.bus_id,
        })
    }
    fn nvmlDeviceGetArchitecture(this, architecture: *mut u32) {
        put(architecture, this.profile().architecture)
    }
    fn nvmlDeviceGetBrand(this, brand: *mut u32) { put(brand, this.profile().brand) }
    fn nvmlDeviceGetCudaComputeCapability(this, major: *mut c_int, minor: *mut c_int) {
        put(major, this.profile().compute_capability.0)?;
        put(minor, this.profile().compute_capability.1)
    }
    fn nvmlDeviceGetNumaNodeId(this, node: *mut u32) {
        put(node, this.now.scenario.numa(this.index))
    }
    fn nvmlDeviceGetVbiosVersion(this, vbios: *mut c_char, length: u32) {
        let own = this.gpu().vbios.as_deref();
        put_text(vbios, length, own.unwrap_or(this.profile().vbios))
    }
    fn nvmlDeviceGetGspFirmwareVersion(this, firmware: *mut c_char) {
        let driver = supported(this.profile().gsp, &this.now.scenario.driver)?;
        put_text(firmware, 64, driver)
    }
    fn nvmlDeviceGetGspFirmwareMode(this, enabled: *mut u32, default: *mut u32) {
        let on = u32::from(this.profile().gsp);
        put(enabled, on)?;
        put(default, on)
    }
    fn nvmlDeviceGetVirtualizationMode(_this, mode: *mut u32) { put(mode, 0) }

    fn nvmlDeviceGetPersistenceMode(this, mode: *mut u32) {
        put(mode, u32::from(this.gpu().persistence.unwrap_or(true)))
    }
    fn nvmlDeviceSetPersistenceMode(this, mode: u32) {
        // SAFETY: geteuid has no argument and cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            return Err(NO_PERMISSION);
        }
        this.now.keep(this.index, "persistence", &(mode != 0).into())
    }
    fn nvmlDeviceGetComputeMode(this, mode: *mut u32) { put(mode, this.gpu().compute_mode) }
    fn nvmlDeviceGetMigMode(this, current: *mut u32, pending: *mut u32) {
        let on = supported(this.profile().mig, this.gpu().mig)?;
        put(current, u32::from(on))?;
        put(pending, u32::from(this.gpu().mig_pending.unwrap_or(on)))
    }
    fn nvmlDeviceIsMigDeviceHandle(_this, is: *mut u32) { put(is, 0) }
    fn nvmlDeviceGetMaxMigDeviceCount(this, count: *mut u32) {
        put(count, if this.profile().mig { 7 } else { 0 })
    }
    fn nvmlDeviceGetDisplayMode(_this, display: *mut u32) { put(display, 0) }
    fn nvmlDeviceGetDisplayActive(_this, display: *mut u32) { put(display, 0) }

    fn nvmlDeviceGetCurrPcieLinkGeneration(this, link: *mut u32) { put(link, this.gpu().pcie().r#gen) }
    fn nvmlDeviceGetCurrPcieLinkWidth(this, width: *mut u32) { put(width, this.gpu().pcie().width) }
    fn nvmlDeviceGetMaxPcieLinkGeneration(this, link: *mut u32) { put(link, this.profile().pcie.0) }
    fn nvmlDeviceGetGpuMaxPcieLinkGeneration(this, link: *mut u32) {
        put(link, this.profile().pcie.0)
    }
    fn nvmlDeviceGetMaxPcieLinkWidth(this, width: *mut u32) { put(width, this.profile().pcie.1) }
    fn nvmlDeviceGetPcieReplayCounter(this, count: *mut u32) { put(count, this.gpu().pcie_replays) }
    fn nvmlDeviceGetPcieThroughput(_this, _counter: u32, rate: *mut u32) { put(rate, 0) }

    fn nvmlDeviceGetTemperature(this, sensor: u32, celsius: *mut u32) {
        if sensor != 0 { return Err(INVALID_ARGUMENT) }
        put(celsius, temperature(this))
    }
    fn nvmlDeviceGetTemperatureV(this, celsius: *mut TemperatureV1) {
        let version = version::<TemperatureV1>(1);
        let temperature = temperature(this).cast_signed();
        put_versioned(celsius, version, TemperatureV1 { version, sensor: 0, temperature })
    }
    fn nvmlDeviceGetTemperatureThreshold(this, kind: u32, celsius: *mut u32) {
        let (shutdown, slowdown) = this.profile().thresholds_c;
        match kind {
            0 => put(celsius, shutdown),
            1 => put(celsius, slowdown),
            _ => Err(NOT_SUPPORTED),
        }
    }
    fn nvmlDeviceGetPowerUsage(this, milliwatts: *mut u32) { put(milliwatts, power_mw(this)) }
    fn nvmlDeviceGetPowerManagementMode(_this, mode: *mut u32) { put(mode, 1) }
    fn nvmlDeviceGetPowerManagementLimit(this, milliwatts: *mut u32) {
        put(milliwatts, power_limit_mw(this))
    }
    fn nvmlDeviceGetEnforcedPowerLimit(this, milliwatts: *mut u32) {
        put(milliwatts, power_limit_mw(this))
    }
    fn nvmlDeviceGetPowerManagementDefaultLimit(this, milliwatts: *mut u32) {
        put(milliwatts, this.profile().power_w.1 * 1000)
    }
    fn nvmlDeviceGetPowerManagementLimitConstraints(this, least: *mut u32, most: *mut u32) {
        put(least, this.profile().power_w.0 * 1000)?;
        put(most, this.profile().power_w.1 * 1000)
    }
    fn nvmlDeviceGetPerformanceState(this, state: *mut u32) { put(state, pstate(this)) }
    fn nvmlDeviceGetPowerState(this, state: *mut u32) { put(state, pstate(this)) }
    fn nvmlDeviceGetUtilizationRates(this, rates: *mut Utilization) {
        put(rates, Utilization { gpu: this.gpu().utilization, memory: this.gpu().utilization / 2 })
    }
    fn nvmlDeviceGetClockInfo(this, kind: u32, mhz: *mut u32) { put(mhz, clock(this, kind)?) }
    fn nvmlDeviceGetMaxClockInfo(this, kind: u32, mhz: *mut u32) { put(mhz, max_clock(this, kind)?) }
    fn nvmlDeviceGetCurrentClocksThrottleReasons(this, bits: *mut u64) { put(bits, reasons(this)) }
    fn nvmlDeviceGetCurrentClocksEventReasons(this, bits: *mut u64) { put(bits, reasons(this)) }
    fn nvmlDeviceGetSupportedClocksThrottleReasons(_this, bits: *mut u64) { put(bits, 0x1ff) }
    fn nvmlDeviceGetSupportedClocksEventReasons(_this, bits: *mut u64) { put(bits, 0x1ff) }
    fn nvmlDeviceGetViolationStatus(_this, _policy: u32, time: *mut Violation) {
        put(time, Violation { reference_time: 0, violation_time: 0 })
    }
}
