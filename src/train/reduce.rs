//! The fixed order in which the gradients of a batch are summed.
//!
//! A global batch consists of units, numbered from 0 in global order. Their gradients are added
//! along one binary tree that depends on the number of units alone: a node splits at the largest
//! power of two below its length. Floating-point addition is not associative, but every addition
//! of the tree has the same two operands in the same order wherever it runs, so any number of
//! ranks gets the same bits.
//!
//! A rank owns a contiguous range of units ([`Tree::share`]). It folds them on the fly into the
//! maximal subtrees inside its range ([`TreeSum`]) and so holds O(log units) gradients at a time.
//! A [`Collective`](super::collective::Collective) adds the rest of the tree across ranks.

use std::fmt;
use std::ops::Range;

use candle_core::{DType, Device, Shape, Tensor};

/// The tree over the units `0..units`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tree {
    units: usize,
}

/// A node of a [`Tree`]: the sum of the units `start..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// First unit.
    pub start: usize,
    /// One past the last unit.
    pub end: usize,
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

impl Node {
    /// The two operands of this node's addition; `None` for a single unit.
    fn children(self) -> Option<(Node, Node)> {
        let length = self.end - self.start;
        if length < 2 {
            return None;
        }
        let middle = self.start + length.next_power_of_two() / 2;
        Some((Node { start: self.start, end: middle }, Node { start: middle, end: self.end }))
    }
}

impl Tree {
    /// The tree over `units` units; a batch without units counts as one.
    pub fn new(units: usize) -> Self {
        Tree { units: units.max(1) }
    }

    /// Number of units.
    pub fn units(self) -> usize {
        self.units
    }

    /// The sum of all units.
    pub fn root(self) -> Node {
        Node { start: 0, end: self.units }
    }

    /// The units that `rank` of `world` computes. The ranges of all ranks follow each other and
    /// differ by at most one unit in length; with more ranks than units some are empty.
    pub fn share(self, rank: usize, world: usize) -> Range<usize> {
        rank * self.units / world..(rank + 1) * self.units / world
    }

    /// The maximal nodes inside `range`, from left to right.
    pub fn cover(self, range: &Range<usize>) -> Vec<Node> {
        let mut found = Vec::new();
        let mut open = vec![self.root()];
        while let Some(node) = open.pop() {
            if node.end <= range.start || range.end <= node.start {
                continue;
            }
            if range.start <= node.start && node.end <= range.end {
                found.push(node);
            } else if let Some((left, right)) = node.children() {
                open.extend([right, left]);
            }
        }
        found
    }

    /// The node whose operands are `left` and `right`, if there is one.
    fn parent(self, left: Node, right: Node) -> Option<Node> {
        let mut node = self.root();
        loop {
            let children = node.children()?;
            if children == (left, right) {
                return Some(node);
            }
            node = if right.end <= children.0.end { children.0 } else { children.1 };
            if left.start < node.start {
                return None;
            }
        }
    }
}

/// Adds values of nodes that arrive from left to right, as far as the tree allows.
#[derive(Clone, Debug)]
pub struct Fold<T> {
    tree: Tree,
    stack: Vec<(Node, T)>,
}

impl<T> Fold<T> {
    /// An empty sum along `tree`.
    pub fn new(tree: Tree) -> Self {
        Fold { tree, stack: Vec::new() }
    }

    /// Takes the value of the next node; `add(node, left, right)` makes the value of `node`.
    pub fn push<E>(
        &mut self,
        node: Node,
        value: T,
        mut add: impl FnMut(Node, T, T) -> Result<T, E>,
    ) -> Result<(), E> {
        let (mut node, mut value) = (node, value);
        while let Some((left, operand)) = self.stack.pop() {
            let Some(parent) = self.tree.parent(left, node) else {
                self.stack.push((left, operand));
                break;
            };
            value = add(parent, operand, value)?;
            node = parent;
        }
        self.stack.push((node, value));
        Ok(())
    }

    /// The nodes that could not be added any further, from left to right.
    pub fn into_nodes(self) -> Vec<(Node, T)> {
        self.stack
    }

    /// The sum of all units, if all arrived.
    pub fn into_root(mut self) -> Option<T> {
        let (node, value) = self.stack.pop()?;
        (node == self.tree.root()).then_some(value)
    }
}

/// What is summed: gradients, and numbers such as loss sums and token counts.
#[derive(Clone, Debug)]
pub struct Sum {
    /// Gradients in the order of the parameters, f32.
    pub tensors: Vec<Tensor>,
    /// Further numbers, in the order that the caller chose.
    pub scalars: Vec<f64>,
}

/// The form that every [`Sum`] of a run has, on all ranks.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Shapes of the gradients.
    pub shapes: Vec<Shape>,
    /// Count of the further numbers.
    pub scalars: usize,
    /// Where the gradients are.
    pub device: Device,
}

impl Layout {
    /// The layout of the gradients of `parameters`.
    pub fn of(parameters: &[Tensor], scalars: usize, device: &Device) -> Self {
        let shapes = parameters.iter().map(|tensor| tensor.shape().clone()).collect();
        Layout { shapes, scalars, device: device.clone() }
    }

    /// Count of the numbers in all gradients.
    pub fn elements(&self) -> usize {
        self.shapes.iter().map(Shape::elem_count).sum()
    }

    fn check(&self, unit: usize, sum: &Sum) -> Result<(), ReduceError> {
        let counts = |tensors, scalars| format!("{tensors} gradients and {scalars} numbers");
        let (found, expected) =
            (counts(sum.tensors.len(), sum.scalars.len()), counts(self.shapes.len(), self.scalars));
        if found != expected {
            return Err(ReduceError::Layout { unit, what: "it".to_owned(), found, expected });
        }
        for (index, (tensor, shape)) in sum.tensors.iter().zip(&self.shapes).enumerate() {
            if tensor.dtype() != DType::F32 || tensor.shape() != shape {
                return Err(ReduceError::Layout {
                    unit,
                    what: format!("gradient {index}"),
                    found: format!("{:?} {:?}", tensor.dtype(), tensor.dims()),
                    expected: format!("F32 {:?}", shape.dims()),
                });
            }
        }
        Ok(())
    }
}

/// Why gradients could not be summed. All of these are bugs of the caller or failures of the
/// device; none depends on a peer.
#[derive(Debug, thiserror::Error)]
pub enum ReduceError {
    /// Units must come in order, each once.
    #[error("unit {unit} was added to the gradient sum where unit {expected} was expected")]
    Order { unit: usize, expected: usize },
    /// The sum was taken before all units of the range were added.
    #[error("the gradient sum of units {range:?} was taken before unit {next} was added")]
    Incomplete { range: Range<usize>, next: usize },
    /// A gradient does not have the form of its parameter.
    #[error("unit {unit}: {what} has {found}, expected {expected}")]
    Layout { unit: usize, what: String, found: String, expected: String },
    /// The device failed at an addition.
    #[error("failed to add the gradients of units {node}")]
    Add { node: Node, source: candle_core::Error },
}

/// Sums the units of one rank along the tree while they are computed.
#[derive(Clone, Debug)]
pub struct TreeSum {
    fold: Fold<Sum>,
    layout: Layout,
    range: Range<usize>,
    next: usize,
}

impl TreeSum {
    /// An empty sum of the units that `rank` of `world` owns.
    pub fn new(tree: Tree, rank: usize, world: usize, layout: Layout) -> Self {
        let range = tree.share(rank, world);
        TreeSum { fold: Fold::new(tree), layout, next: range.start, range }
    }

    /// The units of this rank.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Adds the gradients (in the order of the layout) and the numbers of the next unit.
    pub fn push(
        &mut self,
        unit: usize,
        tensors: &[Tensor],
        scalars: &[f64],
    ) -> Result<(), ReduceError> {
        if unit != self.next || !self.range.contains(&unit) {
            return Err(ReduceError::Order { unit, expected: self.next });
        }
        // A gradient may still hold the graph that made it, and with it a step's activations.
        let tensors = tensors.iter().map(Tensor::detach).collect();
        let sum = Sum { tensors, scalars: scalars.to_vec() };
        self.layout.check(unit, &sum)?;
        self.next += 1;
        self.fold.push(Node { start: unit, end: unit + 1 }, sum, add_sums)
    }

    /// What this rank contributes to the sum of all ranks.
    pub fn finish(self) -> Result<Partials, ReduceError> {
        if self.next != self.range.end {
            return Err(ReduceError::Incomplete { range: self.range, next: self.next });
        }
        let tree = self.fold.tree;
        Ok(Partials { tree, layout: self.layout, nodes: self.fold.into_nodes() })
    }
}

/// The maximal subtrees of one rank: what is left to be added across ranks.
#[derive(Clone, Debug)]
pub struct Partials {
    /// The tree over all units of the batch.
    pub tree: Tree,
    /// Form of every sum.
    pub layout: Layout,
    /// Nodes inside the rank's range with their sums, from left to right.
    pub nodes: Vec<(Node, Sum)>,
}

/// Adds the sums of two nodes element by element; the left one is the left operand.
pub(super) fn add_sums(node: Node, left: Sum, right: Sum) -> Result<Sum, ReduceError> {
    let pairs = left.tensors.into_iter().zip(right.tensors);
    // Consuming the operands frees each pair before the next one is added.
    let tensors = pairs
        .map(|(a, b)| a + b)
        .collect::<Result<_, _>>()
        .map_err(|source| ReduceError::Add { node, source })?;
    Ok(Sum { tensors, scalars: add_scalars(left.scalars, &right.scalars) })
}

/// Adds the numbers of two nodes.
pub(super) fn add_scalars(mut left: Vec<f64>, right: &[f64]) -> Vec<f64> {
    left.iter_mut().zip(right).for_each(|(a, b)| *a += b);
    left
}

/// Adds two pieces of flattened gradients.
pub(super) fn add_floats(mut left: Vec<f32>, right: &[f32]) -> Vec<f32> {
    left.iter_mut().zip(right).for_each(|(a, b)| *a += b);
    left
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    /// Folds the units of each range alone, then the rest across the ranges.
    fn sum_in_ranges(values: &[f32], cuts: &[usize]) -> u32 {
        let tree = Tree::new(values.len());
        let add = |_node, a: f32, b: f32| Ok::<_, Infallible>(a + b);
        let mut whole = Fold::new(tree);
        let mut start = 0;
        for &end in cuts.iter().chain([&values.len()]) {
            let mut part = Fold::new(tree);
            for (unit, &value) in values.iter().enumerate().take(end).skip(start) {
                part.push(Node { start: unit, end: unit + 1 }, value, add).unwrap();
            }
            let nodes = part.into_nodes();
            let names: Vec<_> = nodes.iter().map(|(node, _)| *node).collect();
            assert_eq!(names, tree.cover(&(start..end)), "maximal subtrees of {start}..{end}");
            for (node, value) in nodes {
                whole.push(node, value, add).unwrap();
            }
            start = end;
        }
        whole.into_root().expect("all units arrived").to_bits()
    }

    fn reference(values: &[f32], node: Node) -> f32 {
        match node.children() {
            None => values[node.start],
            Some((left, right)) => reference(values, left) + reference(values, right),
        }
    }

    proptest! {
        #[test]
        fn any_split_gives_the_bits_of_one_range(
            values in prop::collection::vec(-1e6f32..1e6, 1..70),
            cuts in prop::collection::vec(0usize..70, 0..6),
        ) {
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(values.len())).collect();
            cuts.sort_unstable();
            let expected = reference(&values, Tree::new(values.len()).root()).to_bits();
            prop_assert_eq!(sum_in_ranges(&values, &cuts), expected);
        }

        #[test]
        fn shares_follow_each_other(units in 1usize..300, world in 1usize..40) {
            let tree = Tree::new(units);
            let shares: Vec<_> = (0..world).map(|rank| tree.share(rank, world)).collect();
            let flat: Vec<usize> = shares.iter().cloned().flatten().collect();
            prop_assert_eq!(flat, (0..units).collect::<Vec<_>>());
            let longest = shares.iter().map(Range::len).max();
            let shortest = shares.iter().map(Range::len).min();
            prop_assert!(longest.unwrap() - shortest.unwrap() <= 1);
        }
    }

    #[test]
    fn the_tree_splits_at_powers_of_two() {
        let node = |start, end| Node { start, end };
        assert_eq!(Tree::new(7).root().children(), Some((node(0, 4), node(4, 7))));
        assert_eq!(Tree::new(8).root().children(), Some((node(0, 4), node(4, 8))));
        assert_eq!(Tree::new(7).cover(&(1..7)), [node(1, 2), node(2, 4), node(4, 7)]);
        assert_eq!(Tree::new(16).cover(&Tree::new(16).share(3, 4)), [node(12, 16)]);
        assert_eq!(Tree::new(2).cover(&(1..1)), []);
    }

    #[test]
    fn the_order_of_additions_matters_for_these_values() {
        // Otherwise the property above would hold for any order and prove nothing.
        let values = [1e8f32, 1.0, -1e8, 1.0, 3.0];
        let in_a_row: f32 = values.iter().sum();
        assert_ne!(in_a_row.to_bits(), sum_in_ranges(&values, &[2]));
    }

    fn layout() -> Layout {
        Layout { shapes: vec![Shape::from((2, 2))], scalars: 1, device: Device::Cpu }
    }

    #[test]
    fn a_rank_holds_few_sums_and_names_wrong_units() {
        let grad = Tensor::ones((2, 2), DType::F32, &Device::Cpu).unwrap();
        let mut sum = TreeSum::new(Tree::new(1000), 1, 3, layout());
        assert_eq!(sum.range(), 333..666);
        let error = sum.push(332, std::slice::from_ref(&grad), &[1.0]).unwrap_err();
        assert!(matches!(error, ReduceError::Order { unit: 332, expected: 333 }), "{error}");
        let early = sum.clone().finish().unwrap_err();
        assert!(matches!(early, ReduceError::Incomplete { next: 333, .. }), "{early}");
        for unit in sum.range() {
            sum.push(unit, std::slice::from_ref(&grad), &[1.0]).unwrap();
            assert!(sum.fold.stack.len() <= 16, "{} sums at unit {unit}", sum.fold.stack.len());
        }
        let partials = sum.finish().unwrap();
        let total: f64 = partials.nodes.iter().map(|(_, sum)| sum.scalars[0]).sum();
        assert!((total - 333.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_gradient_of_another_shape_is_named() {
        let grad = Tensor::ones((4,), DType::F32, &Device::Cpu).unwrap();
        let mut sum = TreeSum::new(Tree::new(1), 0, 1, layout());
        let error = sum.push(0, &[grad], &[1.0]).unwrap_err().to_string();
        assert_eq!(error, "unit 0: gradient 0 has F32 [4], expected F32 [2, 2]");
        let error = sum.push(0, &[], &[1.0]).unwrap_err().to_string();
        assert_eq!(
            error,
            "unit 0: it has 0 gradients and 1 numbers, expected 1 gradients and 1 numbers"
        );
    }
}
