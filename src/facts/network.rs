//! Interfaces, ports and RDMA devices.

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
