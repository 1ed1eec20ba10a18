//! Interfaces, default route, RDMA ports, the port of rank 0.

use std::{collections::BTreeMap, fs, net::TcpListener, path::Path};

use super::{OTHER_ROOT, Options, files, host, names, rdma, text};
use crate::facts::{Fact, Interface, InterfaceCounters, NetworkFacts, PortState};

pub(super) fn network(
    options: &Options,
    variables: Option<&BTreeMap<String, String>>,
    hostname: Option<&String>,
) -> NetworkFacts {
    NetworkFacts {
        interfaces: interfaces(options),
        default_route: host::parsed(options, "/proc/net/route", "routes", |text| {
            Some(text::default_route(text))
        }),
        rdma_ports: rdma::ports(options),
        master_port: port(variables),
        master_address: names::master(variables),
        own_name: names::own(options, hostname),
        reach: names::reach(&options.reach),
    }
}

fn port(variables: Option<&BTreeMap<String, String>>) -> Fact<PortState> {
    let from = "bind MASTER_PORT";
    let Some(text) = variables.and_then(|variables| variables.get("MASTER_PORT")) else {
        return Fact::unread("MASTER_PORT is not set", from);
    };
    let Ok(port) = text.parse::<u16>() else {
        return Fact::unread(format!("MASTER_PORT={text} is not a port"), from);
    };
    let state = match TcpListener::bind(("0.0.0.0", port)) {
        Ok(_listener) => PortState::Free { port },
        Err(error) => PortState::Taken { port, message: error.to_string() },
    };
    Fact::known(state, from)
}

/// Interfaces by index, which is the order in which NCCL looks at them.
fn interfaces(options: &Options) -> Fact<Vec<Interface>> {
    const FROM: &str = "/sys/class/net, getifaddrs";
    if !options.is_live() {
        return Fact::unread(OTHER_ROOT, FROM);
    }
    let addresses = match addresses() {
        Ok(addresses) => addresses,
        Err(error) => return Fact::unread(error.to_string(), FROM),
    };
    let entries = match fs::read_dir("/sys/class/net") {
        Ok(entries) => entries,
        Err(error) => return Fact::unread(error.to_string(), FROM),
    };
    let mut found: Vec<(u32, Interface)> = entries
        .flatten()
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let number =
                |file: &str| -> Option<u32> { read(&entry.path().join(file))?.parse().ok() };
            let flags = read(&entry.path().join("flags"))
                .and_then(|text| u32::from_str_radix(text.trim_start_matches("0x"), 16).ok())
                .unwrap_or(0);
            let interface = Interface {
                addresses: addresses.get(&name).cloned().unwrap_or_default(),
                // IFF_UP and IFF_LOOPBACK of if.h.
                up: flags & 0x1 != 0,
                loopback: flags & 0x8 != 0,
                is_virtual: Path::new("/sys/devices/virtual/net").join(&name).exists(),
                mtu_bytes: number("mtu"),
                speed_mbps: number("speed").filter(|speed| (1..10_000_000).contains(speed)),
                counters: counters(&entry.path()),
                name,
            };
            (number("ifindex").unwrap_or(u32::MAX), interface)
        })
        .collect();
    found.sort_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
    Fact::known(found.into_iter().map(|(_index, interface)| interface).collect(), FROM)
}

fn counters(folder: &Path) -> Option<InterfaceCounters> {
    let number = |file: &str| -> Option<u64> { read(&folder.join(file))?.parse().ok() };
    Some(InterfaceCounters {
        packets: number("statistics/rx_packets")?.saturating_add(number("statistics/tx_packets")?),
        errors: number("statistics/rx_errors")?.saturating_add(number("statistics/tx_errors")?),
        carrier_changes: number("carrier_changes").unwrap_or(0),
    })
}

pub(super) fn read(path: &Path) -> Option<String> {
    files::word(path)
}

fn addresses() -> nix::Result<BTreeMap<String, Vec<String>>> {
    let mut addresses: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for entry in nix::ifaddrs::getifaddrs()? {
        let Some(address) = entry.address else { continue };
        let text = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => {
                let mask = entry.netmask.as_ref().and_then(|mask| mask.as_sockaddr_in().copied());
                let bits = mask.map_or(32, |mask| u32::from(mask.ip()).count_ones());
                format!("{}/{bits}", v4.ip())
            }
            (None, Some(v6)) => v6.ip().to_string(),
            (None, None) => continue,
        };
        addresses.entry(entry.interface_name).or_default().push(text);
    }
    Ok(addresses)
}
