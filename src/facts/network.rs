//! Interfaces, ports and RDMA devices.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Fact;

/// How this machine reaches others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkFacts {
    /// Interfaces in the kernel's order.
    pub interfaces: Fact<Vec<Interface>>,
    /// Interface of the default route; `None` if there is no default route.
    pub default_route: Fact<Option<String>>,
    /// RDMA ports; empty without RDMA hardware.
    pub rdma_ports: Fact<Vec<RdmaPort>>,
    /// The port on which rank 0 will listen.
    pub master_port: Fact<PortState>,
    /// What MASTER_ADDR means here; `None` if it is not set.
    #[serde(default = "Fact::not_recorded")]
    pub master_address: Fact<Option<MasterAddress>>,
    /// Addresses that `/etc/hosts` gives to this machine's own name; empty if it has no line.
    #[serde(default = "Fact::not_recorded")]
    pub own_name: Fact<Vec<String>>,
    /// Connections that were tried because the doctor was asked to (`--reach`).
    #[serde(default = "Fact::not_recorded")]
    pub reach: Fact<Vec<Reach>>,
}

/// The address of rank 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasterAddress {
    /// As it is set.
    pub name: String,
    /// What it resolves to; empty if it does not.
    pub addresses: Vec<String>,
    /// What the resolver said, when it gave no address.
    pub error: Option<String>,
}

/// A TCP connection that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// `host:port`.
    pub target: String,
    /// How it ended.
    pub result: Reached,
}

/// How a TCP connection ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reached {
    /// Something listens.
    Connected,
    /// The machine answered that nothing listens: the way is free.
    Refused,
    /// No answer, or an answer that the way is closed.
    Failed {
        /// The error.
        message: String,
    },
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Addresses with prefix length, `10.0.0.7/24`.
    pub addresses: Vec<String>,
    /// Whether it is up.
    pub up: bool,
    /// Whether it is the loopback.
    pub loopback: bool,
    /// Whether no hardware is behind it: bridge, veth, tunnel.
    pub is_virtual: bool,
    /// Largest packet in bytes.
    pub mtu_bytes: Option<u32>,
    /// Speed in Mbit/s; `None` if the interface does not tell.
    #[serde(default)]
    pub speed_mbps: Option<u32>,
    /// What it counted since boot; `None` if not recorded.
    #[serde(default)]
    pub counters: Option<InterfaceCounters>,
}

/// Counters of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceCounters {
    /// Packets, both ways.
    pub packets: u64,
    /// Packets with errors, both ways.
    pub errors: u64,
    /// How often the link went up or down.
    pub carrier_changes: u64,
}

/// One port of an RDMA device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RdmaPort {
    /// Device, `mlx5_0`.
    pub device: String,
    /// Number of the port.
    pub port: u32,
    /// `ACTIVE`, `DOWN`, ...
    pub state: String,
    /// `InfiniBand` or `Ethernet`.
    pub link_layer: String,
    /// Rate in Gbit/s.
    pub rate_gbps: Option<u32>,
    /// `LinkUp`, `Disabled`, `Polling`, ...
    #[serde(default)]
    pub physical: Option<String>,
    /// Firmware and board of the device, `28.39.1002 MT_0000000838`.
    #[serde(default)]
    pub firmware: Option<String>,
    /// Kernel driver of the device, `mlx5_core`.
    #[serde(default)]
    pub driver: Option<String>,
    /// NUMA node of the device, -1 if the firmware does not say.
    #[serde(default)]
    pub numa_node: Option<i32>,
    /// Error counters that are not zero, by name.
    #[serde(default)]
    pub errors: BTreeMap<String, u64>,
    /// Addresses that are set, by index.
    #[serde(default)]
    pub gids: Vec<Gid>,
}

/// An address of an RDMA port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gid {
    /// Index in the port's table.
    pub index: u32,
    /// `IB/RoCE v1` or `RoCE v2`.
    pub kind: String,
}

/// Result of binding a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortState {
    /// It can be bound.
    Free {
        /// The port.
        port: u16,
    },
    /// It cannot.
    Taken {
        /// The port.
        port: u16,
        /// The error of the bind.
        message: String,
    },
}
