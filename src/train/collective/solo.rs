//! A group of one.

use super::{Collective, CollectiveError, check_share};
use crate::train::reduce::{Partials, Sum};

/// The only rank of its job.
#[derive(Clone, Copy, Debug, Default)]
pub struct Solo;

impl Collective for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn reduce_tree(&mut self, mut partials: Partials) -> Result<Sum, CollectiveError> {
        check_share(&partials, 0, 1)?;
        // The share of the only rank is the whole tree, so its root is the only node.
        let (_, sum) = partials.nodes.pop().ok_or(CollectiveError::Share { rank: 0, world: 1 })?;
        Ok(sum)
    }

    fn all_gather_bytes(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        Ok(vec![bytes.to_vec()])
    }
}
