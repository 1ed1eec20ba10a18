//! What the supervisor in a pod and the operator's broker say to each other: one request, sent
//! every second, and one answer. All state of the broker can be rebuilt from requests, and a pod
//! that gets no answer goes on with what it does.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    StepMetrics, TrainerExit,
    pairs::{Door, PairReport, Peer},
};

/// Path of the broker for a job: `POST /v1/namespaces/{namespace}/jobs/{job}/sync`, with the pod's
/// projected token (audience `qvl.dev/{namespace}/{job}`) as bearer.
pub const SYNC_PATH: &str = "/v1/namespaces/{namespace}/jobs/{job}/sync";
/// Largest body of a request.
pub const SYNC_LIMIT: usize = 64 * 1024;

/// What a pod says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SyncRequest {
    /// Version of this format: 1.
    pub v: u32,
    /// Attempt of the Job that the pod belongs to.
    pub attempt: u32,
    /// Completion index of the pod, from 0.
    pub index: u32,
    /// UID of the pod: a replacement of a pod is another one.
    pub pod_uid: String,
    pub node: String,
    /// Address of the pod for other pods.
    pub address: String,
    /// A port that rank 0 can meet the others at; only that of index 0 counts.
    pub port: u16,
    /// Grows with every request of a pod, also when its supervisor was started anew, so that a
    /// request that comes late is known. 0 if it is not counted.
    #[serde(default)]
    pub sequence: u64,
    pub phase: PodPhase,
    /// Newest epoch that this pod has had, also when its trainers are gone: no epoch comes twice.
    #[serde(default)]
    pub last_epoch: u32,
    /// All ranks of this pod have met the others in this epoch.
    #[serde(default)]
    pub ready: bool,
    /// The pod was asked to end (a drain, a deletion) and will not join again.
    #[serde(default)]
    pub leaving: bool,
    /// A step takes far longer than usual: seconds so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_seconds: Option<f64>,
    /// The last step of this pod's first rank, in this epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<StepMetrics>,
    /// Step of the newest complete checkpoint that this pod wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_step: Option<u64>,
    /// Where other pods can test their way to this one; it wants to test its own to them. Without
    /// it the network is not tested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub door: Option<Door>,
    /// What the test of the ways to other pods found, until the first epoch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pairs: Vec<PairReport>,
    /// What else was found before the first epoch and stops nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What a pod is doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "phase", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum PodPhase {
    /// Tests the machine.
    Preflight,
    /// Passed its test and has no trainers; waits for a start.
    Joining,
    /// Its trainers of this epoch run.
    Running { epoch: u32 },
    /// Some trainer of this epoch has ended badly; all of this pod are gone.
    Ended { epoch: u32, ends: Vec<RankReport> },
    /// All trainers of this epoch have ended well.
    Done { epoch: u32 },
    /// The test before the start found a problem.
    Refused {
        what: String,
        checks: Vec<String>,
        /// The code that the pod ends with: one that a restart cannot help if the job is wrong,
        /// `preflight`, also if it is not given, if the machine is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit: Option<TrainerExit>,
    },
}

/// How a rank has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RankReport {
    /// Global rank.
    pub rank: u32,
    pub exit: Option<TrainerExit>,
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// Rank that this one lost, if it is a victim.
    pub peer: Option<u32>,
    /// It was killed by its supervisor because another rank had ended or was silent.
    pub swept: bool,
    /// It was killed because it made no step for so many seconds.
    pub stalled_seconds: Option<f64>,
    /// It was stopped (SIGSTOP, a debugger) when it was killed.
    #[serde(default)]
    pub stopped: bool,
    /// Whether the kernel killed it for want of memory.
    pub memory_kill: bool,
    /// What it said last: message and hint.
    pub message: Option<String>,
    pub hint: Option<String>,
    /// Last lines of its log, at most 2 KiB.
    pub tail: String,
    /// Last step that was done.
    pub step: u64,
    /// Milliseconds before this request that the first sign of the failure was seen.
    pub age_ms: u64,
}

/// What a pod is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "do", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum SyncReply {
    /// Go on.
    Continue,
    /// All pods are there: test the ways to these. Only for a pod that has a door.
    Meet { peers: Vec<Peer> },
    /// Start the trainers of this epoch.
    Start {
        epoch: u32,
        /// Where rank 0 listens.
        master_address: String,
        master_port: u16,
        /// What the ranks show each other.
        token: String,
    },
    /// Another pod's ranks have ended: kill the trainers and say `ended`; a pod whose trainers
    /// are gone says `joining` again.
    Rejoin,
    /// Ask the trainers to save and stop.
    Stop,
    /// Exit: 0 if `success`.
    Exit { success: bool, code: u8 },
}
