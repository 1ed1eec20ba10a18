//! The file that describes the nodes: `nodes.yaml`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::error::{At, Error};

/// The file as shipped: two nodes with two GPUs each.
pub const DEFAULT: &str = include_str!("../nodes.yaml");

/// All nodes, and what the control plane serves beyond its defaults.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Topology {
    /// One entry per node.
    pub nodes: Vec<Node>,
    /// Feature gates of all components, `GenericWorkload: true`.
    #[serde(default)]
    pub feature_gates: BTreeMap<String, bool>,
    /// API groups that the API server serves beyond its defaults, `scheduling.k8s.io/v1beta1`.
    #[serde(default)]
    pub apis: Vec<String>,
    /// Calls a second that controllers and scheduler may make; Kubernetes' own limits, 20 and 50,
    /// if absent. With it, simulated nodes hardly ever say that they live, and none is missed.
    #[serde(default)]
    pub calls_per_second: Option<u32>,
}

/// One node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Node {
    /// Name in Kubernetes and host name: at most 10 lower-case letters, digits and dashes.
    pub name: String,
    /// Simulated GPUs; with none the node has no driver.
    #[serde(default)]
    pub gpus: usize,
    /// Their product, a profile of the simulated driver.
    #[serde(default = "h100")]
    pub profile: String,
    /// Version of the simulated driver.
    #[serde(default = "driver")]
    pub driver: String,
    /// CUDA version of the simulated driver, `major * 1000 + minor * 10`.
    #[serde(default = "cuda")]
    pub cuda: u32,
    /// A scenario file instead of `gpus`, `profile`, `driver` and `cuda`; relative to this file.
    #[serde(default)]
    pub scenario: Option<PathBuf>,
    /// Size of the node's `/dev/shm` in MiB.
    #[serde(default = "shm")]
    pub shm_mib: u64,
    /// Memory that pods may use, in MiB; all of the machine's if absent.
    #[serde(default)]
    pub memory_mib: Option<u64>,
    /// MTU of `eth0`.
    #[serde(default = "mtu")]
    pub mtu: u32,
    /// More network interfaces, without an address.
    #[serde(default)]
    pub nics: Vec<String>,
    /// Labels of the node, beside those that NVIDIA's feature discovery would set.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

fn h100() -> String {
    "h100-sxm-80g".to_owned()
}

fn driver() -> String {
    "570.124.06".to_owned()
}

fn cuda() -> u32 {
    12080
}

fn shm() -> u64 {
    1024
}

fn mtu() -> u32 {
    1500
}

impl Default for Topology {
    fn default() -> Self {
        Topology::parse(DEFAULT, Path::new("nodes.yaml")).expect("the file as shipped is tested")
    }
}

impl Topology {
    /// Whether more happens in it than Kubernetes' own limits allow.
    pub(crate) fn is_driven_hard(&self) -> bool {
        self.calls_per_second.is_some()
    }

    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Topology, Error> {
        let text = fs::read_to_string(path).at("read", path)?;
        Topology::parse(&text, path)
    }

    /// `path` is named in errors, and relative scenarios are relative to it.
    pub fn parse(text: &str, path: &Path) -> Result<Topology, Error> {
        let bad = |reason| Error::Topology { path: path.to_owned(), reason };
        let mut topology: Topology =
            serde_saphyr::from_str(text).map_err(|error| bad(error.to_string()))?;
        topology.check().map_err(bad)?;
        for node in &mut topology.nodes {
            if let (Some(scenario), Some(folder)) = (&mut node.scenario, path.parent()) {
                *scenario = folder.join(&*scenario);
            }
        }
        Ok(topology)
    }

    fn check(&self) -> Result<(), String> {
        if self.nodes.is_empty() || 100 < self.nodes.len() {
            return Err(format!("{} nodes; expected 1 to 100", self.nodes.len()));
        }
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        for (index, node) in self.nodes.iter().enumerate() {
            let name = &node.name;
            let fits = (1..=10).contains(&name.len()) && name != "cp";
            if !fits || !name.chars().all(good) || name.starts_with('-') || name.ends_with('-') {
                return Err(format!(
                    "the name `{name}`; expected up to 10 lower-case letters, digits and dashes, \
                     and not `cp`"
                ));
            }
            if self.nodes[..index].iter().any(|other| other.name == *name) {
                return Err(format!("two nodes are called `{name}`"));
            }
        }
        Ok(())
    }

    /// A node and its number, which is part of its addresses.
    pub fn find(&self, name: &str) -> Option<(usize, &Node)> {
        self.nodes.iter().enumerate().find(|(_index, node)| node.name == name)
    }
}

/// Address of node number `index` on the bridge.
pub fn address(index: usize) -> String {
    format!("10.240.0.{}", index + 11)
}

/// Addresses of the pods of node number `index`.
pub fn pods(index: usize) -> String {
    format!("10.244.{}.0/24", index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(text: &str, reason: &str) {
        let error = Topology::parse(text, Path::new("x.yaml")).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
        assert!(error.hint().is_some());
    }

    #[test]
    fn the_file_as_shipped_has_two_nodes_with_two_gpus() {
        let topology = Topology::default();
        assert_eq!(topology.nodes.iter().map(|node| node.gpus).collect::<Vec<_>>(), [2, 2]);
        assert_eq!(
            topology.find("n2").map(|(index, _node)| address(index)).unwrap(),
            "10.240.0.12"
        );
    }

    #[test]
    fn mistakes_are_named() {
        refused("nodes: []", "0 nodes");
        refused("nodes: [{name: a}, {name: a}]", "two nodes are called `a`");
        refused("nodes: [{name: Big}]", "the name `Big`");
        refused("nodes: [{name: cp}]", "the name `cp`");
        refused("nodes: [{name: a, gpu: 2}]", "gpu");
    }
}
