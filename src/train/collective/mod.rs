//! Work that all ranks of a job do together: summing gradients and exchanging small control data.
//!
//! | group | ranks are | transport |
//! |---|---|---|
//! | [`Solo`] | one process | none |
//! | [`Threads`] | threads of one process | shared memory |
//! | [`Tcp`] | processes | framed TCP between all pairs |
//! | `Nccl` (feature `nccl`) | processes with a GPU each | NCCL, and TCP for control |
//!
//! All of them add gradients along the fixed tree of [`reduce`](super::reduce), so they give the
//! same bits for any number of ranks. Every rank calls the same operations in the same order.

mod error;
#[cfg(feature = "nccl")]
mod nccl;
mod solo;
mod tcp;
mod threads;

#[cfg(test)]
mod tests;

pub use error::{Cause, CollectiveError};
#[cfg(feature = "nccl")]
pub use nccl::Nccl;
pub use solo::Solo;
pub use tcp::{Tcp, TcpConfig};
pub use threads::Threads;

use super::reduce::{Partials, Sum};

/// A group of ranks.
///
/// Let a [`Collective::barrier`] be the last operation: a rank that leaves while another still
/// waits for it counts as lost. After any error the group is over; drop it.
pub trait Collective: Send {
    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn world(&self) -> usize;

    /// The sum of all units of the batch, with the same bits on every rank. Each rank passes the
    /// partial sums of its own units: `TreeSum::new(tree, rank, world, layout)`.
    fn reduce_tree(&mut self, partials: Partials) -> Result<Sum, CollectiveError>;

    /// The `bytes` of all ranks, by rank. For small data: at most 64 MiB from each.
    fn all_gather_bytes(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError>;

    /// Returns when all ranks have come here.
    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.all_gather_bytes(&[]).map(|_| ())
    }

    /// The `bytes` of rank `root`; what the others pass is ignored.
    fn broadcast_bytes(&mut self, root: usize, bytes: &[u8]) -> Result<Vec<u8>, CollectiveError> {
        let mine = if self.rank() == root { bytes } else { &[] };
        let mut all = self.all_gather_bytes(mine)?;
        Ok(all.swap_remove(root))
    }

    /// Fails on every rank, and names the ranks, unless all pass the same `bytes` for `what`.
    fn agree(&mut self, what: &str, bytes: &[u8]) -> Result<(), CollectiveError> {
        let all = self.all_gather_bytes(bytes)?;
        let different: Vec<usize> =
            (0..all.len()).filter(|&rank| all.get(rank) != all.first()).collect();
        if different.is_empty() {
            return Ok(());
        }
        Err(CollectiveError::Disagree { what: what.to_owned(), different })
    }
}

/// Refuses partial sums that are not those of `rank`.
fn check_share(partials: &Partials, rank: usize, world: usize) -> Result<(), CollectiveError> {
    let expected = partials.tree.cover(&partials.tree.share(rank, world));
    let same = partials.nodes.iter().map(|(node, _)| *node).eq(expected);
    same.then_some(()).ok_or(CollectiveError::Share { rank, world })
}
