//! RDMA devices as `/sys/class/infiniband` shows them.

use std::{collections::BTreeMap, fs, path::Path};

use super::{Options, network::read};
use crate::facts::{Fact, Gid, RdmaPort};

/// Counters that mean a bad cable, transceiver or switch port, and one of a bad setting.
const ERRORS: [&str; 7] = [
    "counters/symbol_error",
    "counters/link_downed",
    "counters/link_error_recovery",
    "counters/local_link_integrity_errors",
    "counters/excessive_buffer_overrun_errors",
    "hw_counters/rnr_nak_retry_err",
    "hw_counters/roce_slow_restart",
];
/// Tables are long and mostly empty; the addresses that are set stand at the front.
const GIDS: u32 = 16;

/// Ports of all RDMA devices; a machine without such devices has no folder for them.
pub(super) fn ports(options: &Options) -> Fact<Vec<RdmaPort>> {
    const FROM: &str = "/sys/class/infiniband";
    let folder = options.at(FROM);
    if !folder.exists() {
        return Fact::known(Vec::new(), FROM);
    }
    let devices = match fs::read_dir(&folder) {
        Ok(devices) => devices,
        Err(error) => return Fact::unread(error.to_string(), FROM),
    };
    let mut ports = Vec::new();
    for device in devices.flatten() {
        let name = device.file_name().to_string_lossy().into_owned();
        for entry in fs::read_dir(device.path().join("ports")).into_iter().flatten().flatten() {
            ports.push(port(&name, &device.path(), &entry.path()));
        }
    }
    ports.sort_by(|a, b| (&a.device, a.port).cmp(&(&b.device, b.port)));
    Fact::known(ports, FROM)
}

fn port(device: &str, folder: &Path, port: &Path) -> RdmaPort {
    let text = |file: &str| read(&port.join(file)).unwrap_or_default();
    // `4: ACTIVE`
    let state = |file: &str| text(file).split(": ").last().unwrap_or_default().to_owned();
    let physical = state("phys_state");
    let firmware = read(&folder.join("fw_ver"))
        .map(|version| format!("{version} {}", read(&folder.join("board_id")).unwrap_or_default()));
    let driver = fs::read_link(folder.join("device/driver")).ok();
    let count = |file: &&str| {
        let value = text(file).parse::<u64>().ok().filter(|count| 0 < *count)?;
        Some((file.rsplit('/').next()?.to_owned(), value))
    };
    RdmaPort {
        device: device.to_owned(),
        port: port.file_name().unwrap_or_default().to_string_lossy().parse().unwrap_or(0),
        state: state("state"),
        link_layer: text("link_layer"),
        rate_gbps: text("rate").split(' ').next().and_then(|rate| rate.parse().ok()),
        physical: (!physical.is_empty()).then_some(physical),
        firmware: firmware.map(|firmware| firmware.trim().to_owned()),
        driver: driver.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned())),
        numa_node: read(&folder.join("device/numa_node")).and_then(|text| text.parse().ok()),
        errors: ERRORS.iter().filter_map(count).collect::<BTreeMap<_, _>>(),
        gids: (0..GIDS).filter_map(|index| gid(port, index)).collect(),
    }
}

/// An address that is set: an empty one is all zeros.
fn gid(port: &Path, index: u32) -> Option<Gid> {
    let address = read(&port.join(format!("gids/{index}")))?;
    let is_set = address.chars().any(|c| c != '0' && c != ':');
    // The kernel refuses to tell the type of an empty entry.
    let kind = read(&port.join(format!("gid_attrs/types/{index}"))).filter(|_| is_set)?;
    Some(Gid { index, kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_read_from_its_folder() {
        let root = tempfile::tempdir().unwrap();
        let device = root.path().join("sys/class/infiniband/mlx5_0");
        for (file, text) in [
            ("fw_ver", "28.39.1002"),
            ("board_id", "MT_0000000838"),
            ("ports/1/state", "4: ACTIVE"),
            ("ports/1/phys_state", "5: LinkUp"),
            ("ports/1/link_layer", "Ethernet"),
            ("ports/1/rate", "400 Gb/sec (4X NDR)"),
            ("ports/1/counters/link_downed", "3"),
            ("ports/1/counters/symbol_error", "0"),
            ("ports/1/gids/0", "fe80:0000:0000:0000:0000:0000:0000:0001"),
            ("ports/1/gids/1", "0000:0000:0000:0000:0000:0000:0000:0000"),
            ("ports/1/gids/3", "0000:0000:0000:0000:0000:ffff:0a00:0001"),
            ("ports/1/gid_attrs/types/0", "IB/RoCE v1"),
            ("ports/1/gid_attrs/types/3", "RoCE v2"),
        ] {
            let path = device.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        let options = Options { root: root.path().to_owned(), ..Options::default() };
        let found = ports(&options);
        let port = &found.get().unwrap()[0];
        assert_eq!((port.state.as_str(), port.rate_gbps), ("ACTIVE", Some(400)));
        assert_eq!(port.physical.as_deref(), Some("LinkUp"));
        assert_eq!(port.firmware.as_deref(), Some("28.39.1002 MT_0000000838"));
        assert_eq!(port.errors, BTreeMap::from([("link_downed".to_owned(), 3)]));
        let kinds: Vec<_> = port.gids.iter().map(|gid| (gid.index, gid.kind.as_str())).collect();
        assert_eq!(kinds, [(0, "IB/RoCE v1"), (3, "RoCE v2")]);
    }
}
