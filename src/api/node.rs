//! The kind `NodeReport`: what a node's agent found on it.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Facts of one node, written by its agent on change and every five minutes. One object for each
/// node, of the same name.
#[expect(clippy::duplicated_attributes, reason = "each column names a type")]
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "qvl.dev",
    version = "v1alpha1",
    kind = "NodeReport",
    plural = "nodereports",
    shortname = "nr",
    category = "qvl",
    printcolumn(name = "GPUs", type_ = "integer", json_path = ".spec.summary.gpus"),
    printcolumn(name = "Product", type_ = "string", json_path = ".spec.summary.product"),
    printcolumn(name = "Driver", type_ = "string", json_path = ".spec.summary.driver"),
    printcolumn(name = "CUDA", type_ = "string", json_path = ".spec.summary.cuda"),
    printcolumn(name = "Problems", type_ = "string", json_path = ".spec.summary.problems"),
    printcolumn(name = "Observed", type_ = "date", json_path = ".spec.observedAt")
)]
#[serde(rename_all = "camelCase")]
pub struct NodeReportSpec {
    /// When the facts were read, RFC 3339.
    pub observed_at: String,
    pub summary: NodeSummary,
    /// The facts as `qvl doctor --save-facts` writes them, as JSON text.
    pub facts: String,
}

/// What `kubectl get nodereports` shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSummary {
    pub gpus: u32,
    pub product: String,
    pub driver: String,
    /// Newest CUDA version that the driver supports.
    pub cuda: String,
    /// Ids of checks of this node alone that fail, or `none`.
    pub problems: String,
}
