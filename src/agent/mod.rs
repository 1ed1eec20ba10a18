//! What runs on a node: the supervisor of the ranks of a pod, and the reporter of the node.

pub mod node;
pub mod rank;
