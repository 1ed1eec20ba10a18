//! `NVLinks` of a GPU: which are up, and what went wrong on them.

use nvml_wrapper::{Device, enum_wrappers::nv_link::ErrorCounter, error::NvmlError};

use super::calls::{Calls, unread};
use crate::facts::{Fact, NvLink, NvLinkErrors};

/// `NVML_NVLINK_MAX_LINKS`.
const MAX_LINKS: u32 = 18;

/// Links until the first that the GPU does not have.
pub(super) fn links(device: &Device<'_>, calls: &mut Calls<'_>) -> Fact<Vec<NvLink>> {
    let name = "nvmlDeviceGetNvLinkState";
    let mut links = Vec::new();
    for link in 0..MAX_LINKS {
        match calls.make(name, || device.link_wrapper_for(link).is_active()) {
            Ok(active) => links.push(NvLink { link, active }),
            Err(NvmlError::NotSupported | NvmlError::InvalidArg) => break,
            Err(error) => return unread(error, name),
        }
    }
    Fact::known(links, name)
}

/// Errors over all links that are up.
pub(super) fn errors(
    links: Option<&Vec<NvLink>>,
    device: &Device<'_>,
    calls: &mut Calls<'_>,
) -> Fact<Option<NvLinkErrors>> {
    let name = "nvmlDeviceGetNvLinkErrorCounter";
    let Some(links) = links else { return Fact::unread("the links are not known", name) };
    let mut sum = NvLinkErrors::default();
    let active: Vec<u32> = links.iter().filter(|link| link.active).map(|link| link.link).collect();
    for &link in &active {
        let mut count =
            |counter| calls.make(name, || device.link_wrapper_for(link).error_counter(counter));
        let all = (
            count(ErrorCounter::DlReplay),
            count(ErrorCounter::DlRecovery),
            count(ErrorCounter::DlCrcFlit),
        );
        match all {
            (Ok(replays), Ok(recoveries), Ok(crc)) => {
                sum.replays += replays;
                sum.recoveries += recoveries;
                sum.crc += crc;
            }
            (Err(NvmlError::NotSupported), _, _) => return Fact::known(None, name),
            (Err(error), _, _) | (_, Err(error), _) | (_, _, Err(error)) => {
                return unread(error, name);
            }
        }
    }
    Fact::known((!active.is_empty()).then_some(sum), name)
}
