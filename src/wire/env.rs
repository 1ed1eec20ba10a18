//! Names of the environment variables by which a rank learns its place.
//!
//! The first five are torchrun's names, so that scripts and people already know them.

/// Global rank of this process, from 0.
pub const RANK: &str = "RANK";
/// Rank within this node, from 0; also the index of the GPU that the rank uses.
pub const LOCAL_RANK: &str = "LOCAL_RANK";
/// Number of ranks of the job.
pub const WORLD_SIZE: &str = "WORLD_SIZE";
/// Host name or address of rank 0.
pub const MASTER_ADDR: &str = "MASTER_ADDR";
/// TCP port on which rank 0 listens.
pub const MASTER_PORT: &str = "MASTER_PORT";
/// Attempt epoch of this run: grows by one at every restart; fences checkpoints.
pub const ATTEMPT: &str = "QVL_ATTEMPT";
/// Random token that the ranks of one attempt share; a peer without it is refused.
pub const TOKEN: &str = "QVL_TOKEN";
/// Seconds a collective waits for a peer before it names it dead.
pub const PEER_TIMEOUT: &str = "QVL_PEER_TIMEOUT_SECONDS";
/// Number of CPU threads of one rank.
pub const THREADS: &str = "QVL_THREADS";
