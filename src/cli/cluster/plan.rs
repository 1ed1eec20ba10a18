//! Which nodes a job fits on, and in which shape. Pure.

use std::collections::BTreeSet;

/// What a node can still give, or could if it were empty. Unlimited = `u64::MAX`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Room {
    pub gpus: u64,
    pub cpu_milli: u64,
    pub memory_bytes: u64,
    pub pods: u64,
}

/// A node as the launcher sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeRoom {
    pub name: String,
    /// Label `nvidia.com/gpu.product`.
    pub product: Option<String>,
    /// Why no pod of the job can run there.
    pub unusable: Option<String>,
    /// What the node has for pods.
    pub whole: Room,
    /// What no pod has asked for.
    pub free: Room,
}

/// What each rank asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Need {
    /// 1 if ranks ask for a GPU each, else 0.
    pub gpus: u64,
    pub cpu_milli: u64,
    pub memory_bytes: u64,
}

/// So many nodes with so many ranks each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub nodes: u32,
    pub per_node: u32,
}

impl Shape {
    pub(crate) const fn ranks(self) -> u32 {
        self.nodes * self.per_node
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.nodes, self.per_node)
    }
}

/// What the user wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    pub ranks: u32,
    /// `-j NxG`.
    pub shape: Option<Shape>,
    /// `spec.cluster.gpusPerNode`.
    pub per_node: Option<u32>,
    pub need: Need,
}

/// A shape and the nodes that are expected to take it; the scheduler has the last word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    pub shape: Shape,
    /// Names, with the ranks that fit there.
    pub nodes: Vec<(String, u64)>,
    /// GPU products, if they are several.
    pub products: Vec<String>,
}

/// Whether the job fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    /// Now.
    Now(Placement),
    /// When others have given back what they use; so much fits now.
    Later { placement: Placement, now: Option<Shape> },
    /// Not even if the cluster were empty; so much would fit on an empty one.
    Never { largest: Option<Shape> },
}

/// Finds the fewest nodes that take the job, of one GPU product if possible.
pub(crate) fn place(nodes: &[NodeRoom], ask: &Ask) -> Fit {
    let free = |node: &NodeRoom| node.free;
    let whole = |node: &NodeRoom| node.whole;
    let shapes = shapes(ask, ask.ranks);
    if let Some(placement) = first(nodes, &shapes, ask.need, free) {
        return Fit::Now(placement);
    }
    match first(nodes, &shapes, ask.need, whole) {
        Some(placement) => Fit::Later { placement, now: largest(nodes, ask, free) },
        None => Fit::Never { largest: largest(nodes, ask, whole) },
    }
}

/// Shapes of so many ranks, fewest nodes first.
fn shapes(ask: &Ask, ranks: u32) -> Vec<Shape> {
    if let Some(shape) = ask.shape.filter(|shape| shape.ranks() == ranks) {
        return vec![shape];
    }
    let per_node: Vec<u32> = match ask.per_node {
        Some(per_node) => vec![per_node],
        None => (1..=ranks).rev().collect(),
    };
    let whole = per_node.into_iter().filter(|g| 0 < *g && ranks.is_multiple_of(*g));
    whole.map(|per_node| Shape { nodes: ranks / per_node, per_node }).collect()
}

/// The largest number of ranks that fits, in any shape.
fn largest(nodes: &[NodeRoom], ask: &Ask, room: impl Fn(&NodeRoom) -> Room) -> Option<Shape> {
    let total: u64 = nodes
        .iter()
        .filter(|node| node.unusable.is_none())
        .map(|node| fitting(room(node), ask.need).min(u64::from(ask.ranks)))
        .sum();
    let most = u32::try_from(total).unwrap_or(u32::MAX).min(ask.ranks);
    let free = Ask { shape: None, ..*ask };
    (1..=most)
        .rev()
        .find_map(|ranks| first(nodes, &shapes(&free, ranks), ask.need, &room))
        .map(|placement| placement.shape)
}

fn first(
    nodes: &[NodeRoom],
    shapes: &[Shape],
    need: Need,
    room: impl Fn(&NodeRoom) -> Room,
) -> Option<Placement> {
    let usable: Vec<&NodeRoom> = nodes.iter().filter(|node| node.unusable.is_none()).collect();
    let products: BTreeSet<Option<&str>> =
        usable.iter().map(|node| node.product.as_deref()).collect();
    let alike = |product: Option<&str>| -> Vec<&NodeRoom> {
        usable.iter().filter(|node| node.product.as_deref() == product).copied().collect()
    };
    let mut groups: Vec<Vec<&NodeRoom>> = products.into_iter().map(alike).collect();
    if 1 < groups.len() {
        let same = groups.clone();
        let fit = shapes
            .iter()
            .find_map(|shape| same.iter().find_map(|group| take(group, *shape, need, &room)));
        if fit.is_some() {
            return fit;
        }
        groups = vec![usable];
    }
    shapes.iter().find_map(|shape| groups.iter().find_map(|group| take(group, *shape, need, &room)))
}

/// Takes the nodes with the least room to spare, so that large gaps stay for others.
fn take(
    group: &[&NodeRoom],
    shape: Shape,
    need: Need,
    room: impl Fn(&NodeRoom) -> Room,
) -> Option<Placement> {
    let mut fit: Vec<(u64, &NodeRoom)> = group
        .iter()
        .map(|node| (fitting(room(node), need), *node))
        .filter(|(ranks, _node)| u64::from(shape.per_node) <= *ranks)
        .collect();
    fit.sort_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
    fit.truncate(usize::try_from(shape.nodes).unwrap_or(usize::MAX));
    if fit.len() < usize::try_from(shape.nodes).unwrap_or(usize::MAX) {
        return None;
    }
    fit.sort_by(|a, b| a.1.name.cmp(&b.1.name));
    let products: BTreeSet<String> =
        fit.iter().filter_map(|(_ranks, node)| node.product.clone()).collect();
    Some(Placement {
        shape,
        nodes: fit.iter().map(|(ranks, node)| (node.name.clone(), *ranks)).collect(),
        products: if products.len() < 2 { Vec::new() } else { products.into_iter().collect() },
    })
}

/// Ranks that fit into a room.
fn fitting(room: Room, need: Need) -> u64 {
    let share = |have: u64, each: u64| have.checked_div(each).unwrap_or(u64::MAX);
    if room.pods == 0 {
        return 0;
    }
    share(room.gpus, need.gpus)
        .min(share(room.cpu_milli, need.cpu_milli))
        .min(share(room.memory_bytes, need.memory_bytes))
}

/// One line for each node: what it has, what is free, or why it is no use.
pub(crate) fn describe(nodes: &[NodeRoom], need: Need) -> Vec<String> {
    let width = nodes.iter().map(|node| node.name.chars().count()).max().unwrap_or(0);
    nodes
        .iter()
        .map(|node| {
            let what = match &node.unusable {
                Some(why) => why.clone(),
                None if need.gpus == 0 => match fitting(node.free, need) {
                    u64::MAX => "room for any number of ranks".to_owned(),
                    ranks => format!("room for {ranks} ranks"),
                },
                None => gpus_of(node, need),
            };
            format!("{:<width$}  {what}", node.name)
        })
        .collect()
}

fn gpus_of(node: &NodeRoom, need: Need) -> String {
    let (free, whole) = (node.free.gpus, node.whole.gpus);
    let product = node.product.as_ref().map_or(String::new(), |product| format!(", {product}"));
    let ranks = fitting(node.free, need);
    let short = if ranks < free {
        let scarce = if node.free.pods == 0 {
            "pods"
        } else if node.free.cpu_milli / need.cpu_milli.max(1) <= ranks && need.cpu_milli != 0 {
            "CPU"
        } else {
            "memory"
        };
        format!(", but {scarce} for {ranks} ranks only")
    } else {
        String::new()
    };
    format!("{free} of {whole} GPUs free{product}{short}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANY: u64 = u64::MAX;

    fn node(name: &str, free: u64, whole: u64) -> NodeRoom {
        let room = |gpus| Room { gpus, cpu_milli: MANY, memory_bytes: MANY, pods: 100 };
        NodeRoom {
            name: name.to_owned(),
            whole: room(whole),
            free: room(free),
            ..Default::default()
        }
    }

    fn ask(ranks: u32) -> Ask {
        let need = Need { gpus: 1, cpu_milli: 0, memory_bytes: 0 };
        Ask { ranks, shape: None, per_node: None, need }
    }

    fn told(nodes: &[NodeRoom], ask: &Ask) -> String {
        let names = |placement: &Placement| {
            let names: Vec<&str> = placement.nodes.iter().map(|(name, _)| name.as_str()).collect();
            format!("{} on {}", placement.shape, names.join(","))
        };
        let size = |shape: Option<Shape>| shape.map_or("nothing".to_owned(), |s| s.to_string());
        match place(nodes, ask) {
            Fit::Now(placement) => names(&placement),
            Fit::Later { placement, now } => {
                format!("later {}, now {}", names(&placement), size(now))
            }
            Fit::Never { largest } => format!("never, at most {}", size(largest)),
        }
    }

    #[test]
    fn the_fewest_nodes_with_the_least_to_spare_take_the_job() {
        let two = [node("n1", 2, 2), node("n2", 2, 2)];
        assert_eq!(told(&two, &ask(4)), "2x2 on n1,n2");
        assert_eq!(told(&two, &ask(2)), "1x2 on n1");
        assert_eq!(told(&two, &ask(1)), "1x1 on n1");
        let uneven = [node("n1", 8, 8), node("n2", 4, 4), node("n3", 1, 4)];
        assert_eq!(told(&uneven, &ask(4)), "1x4 on n2");
        assert_eq!(told(&uneven, &ask(12)), "later 3x4 on n1,n2,n3, now 1x8");
    }

    #[test]
    fn what_does_not_fit_names_the_largest_that_does() {
        let two = [node("n1", 2, 2), node("n2", 2, 2)];
        assert_eq!(told(&two, &ask(5)), "never, at most 2x2");
        assert_eq!(told(&two, &ask(6)), "never, at most 2x2");
        let busy = [node("n1", 0, 2), node("n2", 1, 2)];
        assert_eq!(told(&busy, &ask(4)), "later 2x2 on n1,n2, now 1x1");
        assert_eq!(told(&[], &ask(1)), "never, at most nothing");
        // Three ranks cannot be shared evenly by two nodes, but by one.
        let three = [node("n1", 3, 3), node("n2", 2, 2)];
        assert_eq!(told(&three, &ask(5)), "never, at most 2x2");
    }

    #[test]
    fn a_given_shape_is_kept() {
        let nodes = [node("n1", 4, 4), node("n2", 4, 4)];
        let shape = Some(Shape { nodes: 2, per_node: 2 });
        assert_eq!(told(&nodes, &Ask { shape, ..ask(4) }), "2x2 on n1,n2");
        assert_eq!(told(&nodes, &Ask { per_node: Some(2), ..ask(4) }), "2x2 on n1,n2");
        assert_eq!(told(&nodes, &Ask { per_node: Some(3), ..ask(4) }), "never, at most 1x3");
        // Another shape of as many ranks is worth telling.
        let shape = Some(Shape { nodes: 1, per_node: 8 });
        assert_eq!(told(&nodes, &Ask { shape, ..ask(8) }), "never, at most 2x4");
    }

    #[test]
    fn nodes_of_one_product_go_before_fewer_nodes() {
        let of =
            |product: &str, node: NodeRoom| NodeRoom { product: Some(product.to_owned()), ..node };
        let mixed = [
            of("A100", node("n1", 2, 2)),
            of("H100", node("n2", 1, 1)),
            of("H100", node("n3", 1, 1)),
            of("H100", node("n4", 1, 1)),
        ];
        assert_eq!(told(&mixed, &ask(3)), "3x1 on n2,n3,n4");
        assert_eq!(told(&mixed, &ask(4)), "4x1 on n1,n2,n3,n4");
        let Fit::Now(placement) = place(&mixed, &ask(4)) else { panic!("it fits") };
        assert_eq!(placement.products, ["A100", "H100"]);
    }

    #[test]
    fn cpu_and_memory_limit_the_ranks_of_a_node() {
        let mut small = node("n1", 4, 4);
        small.free.cpu_milli = 2500;
        let need = Need { gpus: 1, cpu_milli: 1000, memory_bytes: 1 };
        assert_eq!(told(&[small.clone()], &Ask { need, ..ask(4) }), "later 1x4 on n1, now 1x2");
        assert_eq!(describe(&[small], need), ["n1  4 of 4 GPUs free, but CPU for 2 ranks only"]);
        let cpu_only = Need { gpus: 0, cpu_milli: 0, memory_bytes: 0 };
        assert_eq!(told(&[node("n1", 0, 0)], &Ask { need: cpu_only, ..ask(4) }), "1x4 on n1");
    }

    #[test]
    fn an_unusable_node_takes_nothing_and_says_why() {
        let gone = NodeRoom { unusable: Some("not ready".to_owned()), ..node("n10", 4, 4) };
        let nodes = [node("n1", 1, 2), gone];
        assert_eq!(told(&nodes, &ask(2)), "later 1x2 on n1, now 1x1");
        assert_eq!(describe(&nodes, ask(1).need), ["n1   1 of 2 GPUs free", "n10  not ready"]);
    }
}
