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
    printcolumn(name = "Verdict", type_ = "string", json_path = ".spec.summary.verdict"),
    printcolumn(name = "GPUs", type_ = "integer", json_path = ".spec.summary.gpus"),
    printcolumn(name = "Product", type_ = "string", json_path = ".spec.summary.product"),
    printcolumn(name = "Driver", type_ = "string", json_path = ".spec.summary.driver"),
    printcolumn(name = "Problems", type_ = "string", json_path = ".spec.summary.problems"),
    printcolumn(name = "Observed", type_ = "date", json_path = ".spec.observedAt"),
    printcolumn(
        name = "Memory",
        type_ = "string",
        json_path = ".spec.summary.memory",
        priority = 1
    ),
    printcolumn(name = "CUDA", type_ = "string", json_path = ".spec.summary.cuda", priority = 1),
    printcolumn(name = "Xids", type_ = "string", json_path = ".spec.summary.xids", priority = 1),
    printcolumn(
        name = "Warnings",
        type_ = "string",
        json_path = ".spec.summary.warnings",
        priority = 1
    ),
    printcolumn(name = "Agent", type_ = "string", json_path = ".spec.summary.agent", priority = 1)
)]
#[serde(rename_all = "camelCase")]
pub struct NodeReportSpec {
    /// When the facts were read, RFC 3339.
    pub observed_at: String,
    pub summary: NodeSummary,
    /// The facts as `qvl doctor --save-facts` writes them, as JSON text.
    pub facts: String,
}

/// What `kubectl get nodereports` shows: the node alone, as it was when it was observed. What a job
/// needs beyond that is judged by `qvl doctor --cluster --job`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSummary {
    /// `ok`, `warning`, `bad`, or `unknown` if a check that jobs need could not be made.
    pub verdict: String,
    pub gpus: u32,
    /// Product of the GPUs; several are separated by ` + `.
    pub product: String,
    /// Memory of the smallest GPU.
    pub memory: String,
    pub driver: String,
    /// Newest CUDA version that the driver supports.
    pub cuda: String,
    /// Codes of the Xids since boot; `-` without any, `unknown` if the kernel log is not readable.
    pub xids: String,
    /// Ids of checks that fail; if none does, those that are unknown; else `none`.
    pub problems: String,
    /// Ids of checks that warn, or `none`.
    pub warnings: String,
    /// Version of the agent.
    pub agent: String,
}
