//! The test of the network between pods before the first epoch: where a pod listens for it, and
//! what it found on its ways to others.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a pod listens while the network is tested.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Door {
    pub port: u16,
    /// Who does not show it is not let in: 32 hexadecimal digits, made by the pod.
    pub secret: String,
}

/// Without the secret.
impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Door {{ port: {} }}", self.port)
    }
}

/// A pod to test the way to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Its completion index.
    pub index: u32,
    pub node: String,
    pub address: String,
    pub door: Door,
}

/// What was found on the way to another pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PairReport {
    /// Completion index of the other pod.
    pub peer: u32,
    #[serde(flatten)]
    pub way: Way,
}

/// A way between two pods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "way", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Way {
    /// It works.
    Open {
        /// Shortest round trip of a small message, in microseconds.
        round_trip_us: u64,
        /// To the other pod, and from it, in megabits per second.
        sent_mbit: f64,
        received_mbit: f64,
        /// How far the other pod's clock is ahead, and by how much this may be wrong, in
        /// milliseconds.
        clock_ahead_ms: f64,
        clock_error_ms: f64,
    },
    /// No connection came about.
    Closed { what: String },
    /// It was connected, and there was no answer.
    Mute { what: String },
    /// Small messages arrive, large ones do not.
    Narrow { what: String },
}
