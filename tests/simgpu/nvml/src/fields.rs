//! `nvmlDeviceGetFieldValues`.

use std::ffi::c_int;

use crate::{
    answer::{Code, INVALID_ARGUMENT, NOT_SUPPORTED, SUCCESS, This},
    calls::gpu_calls,
    device::power_limit_mw,
    layout::FieldValue,
};

/// `nvmlValueType_t` of an unsigned 32-bit number.
const UNSIGNED: u32 = 1;

/// Driver that introduced the recovery action.
const RECOVERY_ACTION_SINCE: u32 = 565;

/// Value of one field.
fn field(this: &This, field: u32, scope: u32) -> Result<u32, Code> {
    let (gpu, profile) = (this.gpu(), this.profile());
    let when = |is: bool, value: u32| is.then_some(value).ok_or(NOT_SUPPORTED);
    let (links, speed, link_version) = profile.nvlink;
    let remaps = profile.remap_banks != 0;
    match field {
        29 | 92 => when(profile.retires_pages, gpu.retired[0]),
        30 | 93 => when(profile.retires_pages, gpu.retired[1]),
        31 => when(profile.retires_pages, gpu.retired[2]),
        90 => when(links != 0, speed),
        91 => Ok(links),
        94 => Ok(gpu.pcie_replays),
        95 => Ok(0),
        142..=145 => when(remaps, gpu.remap[(field - 142) as usize]),
        164 => when(scope < links, speed),
        165 => when(scope < links, u32::from(this.now.scenario.nvlink_active(this.index, scope))),
        166 => when(scope < links, link_version),
        187 => Ok(profile.power_w.0 * 1000),
        188 | 189 => Ok(profile.power_w.1 * 1000),
        190 | 192 => Ok(power_limit_mw(this)),
        230 => when(RECOVERY_ACTION_SINCE <= this.now.scenario.driver_major(), gpu.recovery_action),
        _ => Err(NOT_SUPPORTED),
    }
}

fn fill(this: &This, value: &mut FieldValue) {
    value.timestamp = 0;
    value.latency_us = 0;
    match field(this, value.field, value.scope) {
        Ok(number) => {
            value.value_type = UNSIGNED;
            value.value = u64::from(number);
            value.code = SUCCESS;
        }
        Err(code) => value.code = code,
    }
}

gpu_calls! {
    fn nvmlDeviceGetFieldValues(this, count: c_int, values: *mut FieldValue) {
        if values.is_null() || count < 0 {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: NVML's contract: `count` elements that the caller has initialised.
        let values = unsafe { std::slice::from_raw_parts_mut(values, count as usize) };
        for value in values {
            fill(this, value);
        }
        Ok(())
    }
}
