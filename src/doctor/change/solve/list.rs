//! Answers that cost the same: a tie is told as one.

use std::collections::BTreeSet;

use super::{Choice, Decision, LISTED, Search};

impl Search<'_> {
    /// Adds the answers of a decision that cost so much, up to one more than are listed.
    pub(super) fn list(&self, decision: &Decision, cost: u64, found: &mut BTreeSet<Choice>) {
        let left = cost - self.beginnings(decision);
        self.extend(decision, 0, left, 0, &Choice::default(), found);
    }

    /// Goes through the kinds: from all nodes of a kind kept to none, as long as the rest can be
    /// paid and enough nodes can be left.
    fn extend(
        &self,
        decision: &Decision,
        at: usize,
        left: u64,
        kept: usize,
        choice: &Choice,
        found: &mut BTreeSet<Choice>,
    ) {
        if LISTED < found.len() {
            return;
        }
        let Some(kind) = self.kinds.get(at) else {
            if left == 0 && self.instance.need <= kept {
                found.insert(choice.clone());
            }
            return;
        };
        let (size, exclude) = (kind.nodes.len(), u64::from(self.instance.exclude));
        let keep = self.keep(kind, decision);
        for stay in (0..=size).rev() {
            let Some(each) = keep.or((stay == 0).then_some(0)) else { continue };
            let price = each * stay as u64 + exclude * (size - stay) as u64;
            let kept = kept + if kind.counts { stay } else { 0 };
            if left < price || !self.payable(decision, at + 1, left - price, kept) {
                continue;
            }
            // Nodes of a kind are alike: any of them may be the ones that go.
            for gone in subsets(&kind.nodes, size - stay, LISTED + 1) {
                let mut next = choice.clone();
                for &node in &kind.nodes {
                    if gone.contains(&node) {
                        next.excluded.insert(node);
                        continue;
                    }
                    for fault in self.repairs(kind, decision) {
                        next.repaired.entry(fault).or_default().insert(node);
                    }
                }
                self.extend(decision, at + 1, left - price, kept, &next, found);
            }
        }
    }

    /// Whether the kinds from `at` on can cost no more than `left`, and leave enough nodes.
    fn payable(&self, decision: &Decision, at: usize, left: u64, kept: usize) -> bool {
        let exclude = u64::from(self.instance.exclude);
        let (mut least, mut most) = (0, kept);
        for kind in &self.kinds[at..] {
            let keep = self.keep(kind, decision);
            least += keep.unwrap_or(exclude).min(exclude) * kind.nodes.len() as u64;
            most += if kind.counts && keep.is_some() { kind.nodes.len() } else { 0 };
        }
        least <= left && self.instance.need <= most
    }
}

/// The first few of all subsets of so many nodes.
fn subsets(of: &[usize], size: usize, limit: usize) -> Vec<BTreeSet<usize>> {
    let Some(rest) = size.checked_sub(1) else { return vec![BTreeSet::new()] };
    let mut found = Vec::new();
    for (i, first) in of.iter().enumerate() {
        for mut subset in subsets(&of[i + 1..], rest, limit - found.len()) {
            subset.insert(*first);
            found.push(subset);
        }
        if limit <= found.len() || of.len() <= i + size {
            break;
        }
    }
    found
}
