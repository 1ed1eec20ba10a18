//! Why a group of ranks could not work together.

use std::fmt;
use std::io;

use crate::train::reduce::ReduceError;
use crate::wire::TrainerExit;

/// Why a collective operation failed.
#[derive(Debug, thiserror::Error)]
pub enum CollectiveError {
    /// Another process listens where rank 0 should.
    #[error("rank 0 cannot listen on {address}: the port is taken by another process")]
    PortTaken { address: String },
    /// Rank 0 (or a peer, for its own listener) cannot listen.
    #[error("cannot listen on {address}")]
    Listen { address: String, source: io::Error },
    /// The name of the master is not known, or nothing answers there.
    #[error("rank {rank} did not reach rank 0 at {address} within {seconds} s")]
    NoMaster { rank: usize, address: String, seconds: f64, source: io::Error },
    /// Ranks that did not join in time.
    #[error("{} did not join at {address} within {seconds} s{}", ranks(missing), refusals(refused))]
    NeverCame { missing: Vec<usize>, address: String, seconds: f64, refused: Vec<String> },
    /// This rank was asked to end while it waited for the others.
    #[error("rank {rank} was asked to stop while it waited for the others at {address}")]
    Interrupted { rank: usize, address: String },
    /// A member of the group refused this rank.
    #[error("the rank at {address} refused rank {rank}: {reason}")]
    Refused { rank: usize, address: String, reason: String },
    /// A peer went away; the same one is named on every surviving rank.
    #[error("lost rank {rank} ({address}) in {operation}: {cause}")]
    PeerLost { rank: usize, address: String, operation: &'static str, cause: Cause },
    /// The other ranks gave this rank up.
    #[error("the group gave up rank {rank} (this one) in {operation}: {cause}")]
    Expelled { rank: usize, operation: &'static str, cause: Cause },
    /// Two ranks do not run the same program.
    #[error("rank {rank} is out of step: it sent {found}, expected {expected}")]
    OutOfStep { rank: usize, found: String, expected: String },
    /// The ranks hold different values of something that must be equal.
    #[error("{what} differs between the ranks: {} not as on rank 0", ranks(different))]
    Disagree { what: String, different: Vec<usize> },
    /// A message of control data is too large.
    #[error("a control message of {bytes} bytes is over the limit of {limit} bytes")]
    TooLarge { bytes: usize, limit: usize },
    /// The partial sums are not those of this rank.
    #[error("rank {rank} of {world} passed partial sums of other units than its own")]
    Share { rank: usize, world: usize },
    /// An addition failed on this rank.
    #[error("failed to sum gradients")]
    Reduce(#[from] ReduceError),
    /// Gradients could not be moved between device and transport.
    #[error("failed to move gradients from or to the device")]
    Device { source: candle_core::Error },
    /// NCCL failed on this rank.
    #[cfg(feature = "nccl")]
    #[error("NCCL failed in {operation}: {message}")]
    Nccl { operation: &'static str, message: String },
}

/// How a peer was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The connection ended without a farewell: the process or its machine died.
    Closed(String),
    /// Not even a heartbeat for so many milliseconds.
    Silent { milliseconds: u128 },
    /// It sent something that is not a valid frame.
    Garbled(String),
    /// It left the group in order, though it was still needed: it failed on its own.
    Left,
    /// Another rank reported the loss, and what it saw.
    Reported { by: usize, what: String },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Closed(how) => write!(f, "its process died ({how})"),
            Cause::Silent { milliseconds } => {
                let seconds = *milliseconds as f64 / 1000.0;
                write!(f, "it was silent for {seconds:.1} s, heartbeats included")
            }
            Cause::Garbled(what) => write!(f, "it sent {what}"),
            Cause::Left => write!(f, "it left the group while it was still needed"),
            Cause::Reported { by, what } => write!(f, "{what} (reported by rank {by})"),
        }
    }
}

impl CollectiveError {
    /// The rank that went away first, if that is the reason.
    pub fn lost_peer(&self) -> Option<usize> {
        if let CollectiveError::PeerLost { rank, .. } = self {
            return Some(*rank);
        }
        if let CollectiveError::NeverCame { missing, .. } = self {
            return missing.first().copied();
        }
        if matches!(self, CollectiveError::NoMaster { .. }) {
            return Some(0);
        }
        None
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            CollectiveError::PortTaken { .. } => {
                "choose another MASTER_PORT, or end the process that listens there (`ss -ltnp`)"
            }
            CollectiveError::Listen { .. } => {
                "MASTER_ADDR must be an address of the machine that runs rank 0"
            }
            CollectiveError::NoMaster { .. } => {
                "check that rank 0 runs, and that MASTER_ADDR and MASTER_PORT lead to it"
            }
            CollectiveError::NeverCame { missing, .. } => {
                let rank = missing.first().copied().unwrap_or_default();
                return Some(format!("read the log of rank {rank}: it did not come this far"));
            }
            CollectiveError::Interrupted { .. } => {
                "no step was made since the last checkpoint: nothing is lost"
            }
            CollectiveError::Refused { .. } => {
                "all ranks need the same job file, WORLD_SIZE, QVL_ATTEMPT and QVL_TOKEN"
            }
            CollectiveError::PeerLost { rank, .. } => {
                return Some(format!("read the log of rank {rank}: it failed first"));
            }
            CollectiveError::Expelled { .. } => {
                "this rank was too slow to answer, or the network between the ranks broke"
            }
            CollectiveError::OutOfStep { .. } | CollectiveError::Disagree { .. } => {
                "run the same qvl-train, job file and input files on all ranks"
            }
            CollectiveError::TooLarge { .. }
            | CollectiveError::Share { .. }
            | CollectiveError::Reduce(_)
            | CollectiveError::Device { .. } => return None,
            #[cfg(feature = "nccl")]
            CollectiveError::Nccl { .. } => "set NCCL_DEBUG=INFO and read the log of each rank",
        };
        Some(hint.to_owned())
    }

    /// The exit code of a trainer that ends with this error.
    pub fn exit(&self) -> TrainerExit {
        match self {
            // A rank that did not find the others is no more to blame than one that lost them.
            CollectiveError::PeerLost { .. }
            | CollectiveError::NeverCame { .. }
            | CollectiveError::NoMaster { .. } => TrainerExit::PeerLost,
            CollectiveError::Interrupted { .. } => TrainerExit::Preempted,
            CollectiveError::PortTaken { .. } | CollectiveError::Listen { .. } => {
                TrainerExit::Transient
            }
            CollectiveError::Refused { .. } | CollectiveError::Disagree { .. } => {
                TrainerExit::Config
            }
            CollectiveError::Expelled { .. } => TrainerExit::Stalled,
            CollectiveError::OutOfStep { .. }
            | CollectiveError::TooLarge { .. }
            | CollectiveError::Share { .. }
            | CollectiveError::Reduce(_)
            | CollectiveError::Device { .. } => TrainerExit::Internal,
            #[cfg(feature = "nccl")]
            CollectiveError::Nccl { .. } => TrainerExit::GpuFault,
        }
    }
}

/// `rank 1` or `ranks 1, 2`.
fn ranks(list: &[usize]) -> String {
    let numbers: Vec<_> = list.iter().map(usize::to_string).collect();
    format!("rank{} {}", if list.len() == 1 { "" } else { "s" }, numbers.join(", "))
}

fn refusals(refused: &[String]) -> String {
    if refused.is_empty() {
        return String::new();
    }
    format!("; refused connections: {}", refused.join("; "))
}
