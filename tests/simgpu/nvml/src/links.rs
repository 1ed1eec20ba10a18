//! `NVLinks`, the fabric, and how two GPUs reach each other.

use std::ffi::c_void;

use simgpu::scenario::Fabric;

use crate::{
    answer::{
        self, ARGUMENT_VERSION_MISMATCH, Answer, Code, INVALID_ARGUMENT, NOT_SUPPORTED, This,
        asked_version, put,
    },
    calls::gpu_calls,
    device::pci_info,
    layout::{Device, FabricV1, FabricV2, FabricV3, PciInfo, version},
};

/// NVML's largest number of links.
const MAX_LINKS: u32 = 18;

fn link(this: &This, link: u32) -> Answer {
    match link {
        MAX_LINKS.. => Err(INVALID_ARGUMENT),
        link if this.profile().nvlink.0 <= link => Err(NOT_SUPPORTED),
        _ => Ok(()),
    }
}

/// Registration at the fabric; state 0 if the product has none.
fn fabric(this: &This) -> Fabric {
    let completed = Fabric { state: 3, status: 0, health_mask: 0 };
    let none = Fabric { state: 0, status: 0, health_mask: 0 };
    this.gpu().fabric.unwrap_or(if this.profile().fabric { completed } else { none })
}

fn fabric_v2(fabric: Fabric) -> FabricV2 {
    FabricV2 {
        version: version::<FabricV2>(2),
        cluster: [0; 16],
        status: fabric.status,
        clique: 0,
        state: fabric.state,
        health_mask: fabric.health_mask,
    }
}

/// The caller's version word says which struct it has room for.
fn put_fabric(this: &This, place: *mut c_void) -> Answer {
    let v2 = fabric_v2(fabric(this));
    match asked_version(place)? {
        asked if asked == version::<FabricV2>(2) => put(place.cast(), v2),
        asked if asked == version::<FabricV3>(3) => {
            let v2 = FabricV2 { version: asked, ..v2 };
            put(place.cast(), FabricV3 { v2, health_summary: 0 })
        }
        _ => Err(ARGUMENT_VERSION_MISMATCH),
    }
}

/// A call about two GPUs.
fn of_two(call: &str, a: Device, b: Device, answer: impl FnOnce(&This, usize) -> Answer) -> Code {
    answer::of_gpu(call, a, |this| {
        let other = this.now.index(b)?;
        answer::check_gpu(&this.now, other, call)?;
        answer(this, other)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetTopologyCommonAncestor(a: Device, b: Device, level: *mut u32) -> Code {
    of_two("nvmlDeviceGetTopologyCommonAncestor", a, b, |this, other| {
        put(level, this.now.scenario.ancestor(this.index, other) as u32)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetP2PStatus(a: Device, b: Device, caps: u32, status: *mut u32) -> Code {
    of_two("nvmlDeviceGetP2PStatus", a, b, |this, other| {
        if 5 < caps || this.index == other {
            return Err(INVALID_ARGUMENT);
        }
        put(status, this.now.scenario.peer(this.index, other) as u32)
    })
}

gpu_calls! {
    fn nvmlDeviceGetNvLinkState(this, number: u32, active: *mut u32) {
        link(this, number)?;
        put(active, u32::from(this.now.scenario.nvlink_active(this.index, number)))
    }
    fn nvmlDeviceGetNvLinkVersion(this, number: u32, version: *mut u32) {
        link(this, number)?;
        put(version, this.profile().nvlink.2)
    }
    fn nvmlDeviceGetNvLinkCapability(this, number: u32, capability: u32, result: *mut u32) {
        link(this, number)?;
        if 5 < capability { return Err(INVALID_ARGUMENT) }
        put(result, 1)
    }
    fn nvmlDeviceGetNvLinkErrorCounter(this, number: u32, _counter: u32, count: *mut u64) {
        link(this, number)?;
        put(count, 0)
    }
    fn nvmlDeviceGetNvLinkRemotePciInfo(this, number: u32, info: *mut PciInfo) {
        remote(this, number, info)
    }
    fn nvmlDeviceGetNvLinkRemotePciInfo_v2(this, number: u32, info: *mut PciInfo) {
        remote(this, number, info)
    }
    fn nvmlDeviceGetGpuFabricInfo(this, info: *mut FabricV1) {
        let fabric = fabric(this);
        put(info, FabricV1 {
            cluster: [0; 16], status: fabric.status, clique: 0, state: fabric.state,
        })
    }
    fn nvmlDeviceGetGpuFabricInfoV(this, info: *mut c_void) { put_fabric(this, info) }
}

/// The other end is a GPU of the host, in turn: enough for clients that count peers.
fn remote(this: &This, number: u32, info: *mut PciInfo) -> Answer {
    link(this, number)?;
    let others: Vec<usize> =
        (0..this.now.scenario.gpus.len()).filter(|index| *index != this.index).collect();
    let other = *others.get(number as usize % others.len().max(1)).ok_or(NOT_SUPPORTED)?;
    let now = answer::Now { scenario: this.now.scenario.clone() };
    put(info, pci_info(&This { now, index: other }))
}
