//! A real Kubernetes on one machine, without Docker, for tests and for use by hand.
//!
//! etcd, kube-apiserver, kube-controller-manager, kube-scheduler and CoreDNS run in one network
//! namespace; each node has a network, a mount and a UTS namespace of its own with containerd,
//! kubelet, kube-proxy and NVIDIA's device plugin over a simulated driver. README.md beside this
//! crate says what is simulated.
//!
//! | module | holds |
//! |---|---|
//! | [`cluster`] | [`Cluster`]: up, down, kubectl; everything else hangs on it |
//! | [`claims`] | volumes with files |
//! | [`faults`] | what tests break: nodes, the API server, the driver |
//! | [`topology`] | the file that describes the nodes |
//! | [`tools`] | programs built from Go modules |
//! | [`image`], [`images`] | container images without Docker |
//! | [`peers`] | KWOK nodes and Kueue |
//! | [`testing`] | a cluster that ends with its test |
//! | [`runtime`] | the container runtime that gives containers their GPUs |

pub mod claims;
pub mod cluster;
pub mod error;
pub mod faults;
pub mod image;
pub mod images;
pub mod peers;
pub mod places;
pub mod runtime;
pub mod testing;
pub mod tools;
pub mod topology;

mod cgroup;
mod control_plane;
mod daemon;
mod device_folder;
mod driver;
mod forward;
mod lock;
mod module;
mod namespace;
mod network;
mod node;
mod node_files;
mod objects;
mod packages;
mod pki;
mod teardown;

pub use cluster::{Cluster, Options};
pub use error::Error;
pub use forward::serve as serve_forwarder;
pub use topology::Topology;
