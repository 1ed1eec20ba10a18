//! C structs of NVML on 64-bit Linux, and their sizes. Versioned ones start with
//! `size | version << 24`, which the caller sets.

use std::ffi::{c_char, c_void};

/// An opaque handle: index of the GPU in the scenario, plus [`crate::answer::FIRST_HANDLE`].
pub(crate) type Device = *mut c_void;

#[repr(C)]
pub(crate) struct PciInfo {
    pub(crate) bus_id_legacy: [c_char; 16],
    pub(crate) domain: u32,
    pub(crate) bus: u32,
    pub(crate) device: u32,
    pub(crate) pci_device_id: u32,
    pub(crate) pci_subsystem_id: u32,
    pub(crate) bus_id: [c_char; 32],
}

#[repr(C)]
pub(crate) struct PciInfoExt {
    pub(crate) version: u32,
    pub(crate) domain: u32,
    pub(crate) bus: u32,
    pub(crate) device: u32,
    pub(crate) pci_device_id: u32,
    pub(crate) pci_subsystem_id: u32,
    pub(crate) base_class: u32,
    pub(crate) sub_class: u32,
    pub(crate) bus_id: [c_char; 32],
}

/// Memory (version 1) and the PCI window.
#[repr(C)]
pub(crate) struct Memory {
    pub(crate) total: u64,
    pub(crate) free: u64,
    pub(crate) used: u64,
}

#[repr(C)]
pub(crate) struct MemoryV2 {
    pub(crate) version: u32,
    pub(crate) total: u64,
    pub(crate) reserved: u64,
    pub(crate) free: u64,
    pub(crate) used: u64,
}

#[repr(C)]
pub(crate) struct Utilization {
    pub(crate) gpu: u32,
    pub(crate) memory: u32,
}

#[repr(C)]
pub(crate) struct ProcessV1 {
    pub(crate) pid: u32,
    pub(crate) used_memory: u64,
}

#[repr(C)]
pub(crate) struct ProcessV2 {
    pub(crate) pid: u32,
    pub(crate) used_memory: u64,
    pub(crate) gpu_instance: u32,
    pub(crate) compute_instance: u32,
}

/// A process in the private interface of `nvidia-smi`.
#[repr(C)]
pub(crate) struct ProcessPrivate {
    pub(crate) pid: u32,
    pub(crate) used_memory: u64,
    pub(crate) gpu_instance: u32,
    pub(crate) compute_instance: u32,
    pub(crate) _unused: [u8; 8],
    pub(crate) name: [c_char; 4096],
}

#[repr(C)]
pub(crate) struct EccCounts {
    pub(crate) l1: u64,
    pub(crate) l2: u64,
    pub(crate) device_memory: u64,
    pub(crate) registers: u64,
}

#[repr(C)]
pub(crate) struct Violation {
    pub(crate) reference_time: u64,
    pub(crate) violation_time: u64,
}

#[repr(C)]
pub(crate) struct FieldValue {
    pub(crate) field: u32,
    pub(crate) scope: u32,
    pub(crate) timestamp: i64,
    pub(crate) latency_us: i64,
    pub(crate) value_type: u32,
    pub(crate) code: u32,
    /// A union: smaller values lie at its start.
    pub(crate) value: u64,
}

#[repr(C)]
pub(crate) struct EventData {
    pub(crate) device: Device,
    pub(crate) event_type: u64,
    pub(crate) event_data: u64,
    pub(crate) gpu_instance: u32,
    pub(crate) compute_instance: u32,
}

#[repr(C)]
pub(crate) struct RemapHistogram {
    pub(crate) max: u32,
    pub(crate) high: u32,
    pub(crate) partial: u32,
    pub(crate) low: u32,
    pub(crate) none: u32,
}

#[repr(C)]
pub(crate) struct FabricV1 {
    pub(crate) cluster: [u8; 16],
    pub(crate) status: u32,
    pub(crate) clique: u32,
    pub(crate) state: u8,
}

#[repr(C)]
pub(crate) struct FabricV2 {
    pub(crate) version: u32,
    pub(crate) cluster: [u8; 16],
    pub(crate) status: u32,
    pub(crate) clique: u32,
    pub(crate) state: u8,
    pub(crate) health_mask: u32,
}

#[repr(C)]
pub(crate) struct FabricV3 {
    pub(crate) v2: FabricV2,
    pub(crate) health_summary: u8,
}

#[repr(C)]
pub(crate) struct SramErrors {
    pub(crate) version: u32,
    pub(crate) aggregate: [u64; 3],
    pub(crate) volatile: [u64; 3],
    pub(crate) buckets: [u64; 5],
    pub(crate) threshold_exceeded: u32,
}

#[repr(C)]
pub(crate) struct TemperatureV1 {
    pub(crate) version: u32,
    pub(crate) sensor: u32,
    pub(crate) temperature: i32,
}

const _: () = {
    assert!(size_of::<PciInfo>() == 68);
    assert!(std::mem::offset_of!(PciInfo, bus_id) == 36);
    assert!(size_of::<PciInfoExt>() == 64);
    assert!(size_of::<Memory>() == 24);
    assert!(size_of::<MemoryV2>() == 40);
    assert!(std::mem::offset_of!(MemoryV2, used) == 32);
    assert!(size_of::<Utilization>() == 8);
    assert!(size_of::<ProcessV1>() == 16);
    assert!(size_of::<ProcessV2>() == 24);
    assert!(size_of::<ProcessPrivate>() == 4128);
    assert!(std::mem::offset_of!(ProcessPrivate, name) == 32);
    assert!(size_of::<EccCounts>() == 32);
    assert!(size_of::<Violation>() == 16);
    assert!(size_of::<FieldValue>() == 40);
    assert!(std::mem::offset_of!(FieldValue, value) == 32);
    assert!(size_of::<EventData>() == 32);
    assert!(size_of::<RemapHistogram>() == 20);
    assert!(size_of::<FabricV1>() == 28);
    assert!(size_of::<FabricV2>() == 36);
    assert!(std::mem::offset_of!(FabricV2, health_mask) == 32);
    assert!(size_of::<FabricV3>() == 40);
    assert!(std::mem::offset_of!(FabricV3, health_summary) == 36);
    assert!(size_of::<SramErrors>() == 104);
    assert!(std::mem::offset_of!(SramErrors, threshold_exceeded) == 96);
    assert!(size_of::<TemperatureV1>() == 12);
};

/// Version word of struct `T`.
pub(crate) const fn version<T>(version: u32) -> u32 {
    size_of::<T>() as u32 | version << 24
}
