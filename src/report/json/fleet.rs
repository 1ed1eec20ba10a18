//! Drift and the smallest change, for a program.

use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    doctor::{self, Remedy},
    facts::NodeName,
};

/// Which GPUs a rank fits into.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Memory<'r> {
    /// What a GPU must have, in bytes: tensors, CUDA context, reserve.
    need_bytes: u64,
    /// The most ranks that fit, as many on each node.
    ranks: u32,
    /// Nodes of these ranks.
    nodes: u32,
    /// GPUs by product.
    products: Vec<Product<'r>>,
}

/// GPUs of one product.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Product<'r> {
    name: &'r str,
    /// GPUs whose usable memory is known.
    gpus: u32,
    /// Of these, GPUs that a rank fits into.
    fits: u32,
    /// Divided GPUs, whose parts have a size that is not known.
    divided: u32,
    /// GPUs that did not tell their memory.
    unread: u32,
    /// Usable bytes of the fullest GPU.
    usable_bytes_least: u64,
    /// Usable bytes of the emptiest GPU.
    usable_bytes_most: u64,
    /// Largest `batch.unit` for the fullest GPU; absent if not even 1 fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    largest_unit: Option<u64>,
    /// Most tokens of a sample for the fullest GPU; absent if not even 1 fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    most_tokens: Option<u64>,
}

/// What differs between nodes.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Drift<'r> {
    /// Nodes that were compared.
    nodes: usize,
    /// Keys that at least two nodes told.
    compared: usize,
    /// Keys that differ, the worst first.
    differing: Vec<Difference<'r>>,
    /// Keys that some nodes did not tell.
    unread: Vec<UnreadKey<'r>>,
}

/// A key that differs.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Difference<'r> {
    /// Name of the key.
    key: &'r str,
    /// What it does to this job.
    label: Label,
    /// Why.
    reason: &'r str,
    /// Where that is known from.
    source: &'r str,
    /// The check that says so; absent if none fails because of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    check: Option<&'r str>,
    /// The value of most nodes; absent in a tie.
    #[serde(skip_serializing_if = "Option::is_none")]
    majority: Option<&'r str>,
    /// All values, the most frequent first.
    values: Vec<Group<'r>>,
}

/// What a difference does to a job.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Label {
    /// Nothing.
    Benign,
    /// All ranks wait for the slower side.
    Slow,
    /// A check that would tell could not be evaluated.
    Unknown,
    /// Ranks fail, hang or train something else.
    Fatal,
}

/// Nodes with one value.
#[derive(Serialize, JsonSchema)]
struct Group<'r> {
    value: &'r str,
    nodes: Vec<&'r str>,
}

/// A key that some nodes did not tell.
#[derive(Serialize, JsonSchema)]
struct UnreadKey<'r> {
    key: &'r str,
    nodes: Vec<&'r str>,
}

/// What makes the job launchable.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct SmallestChange<'r> {
    /// Whether a change of the nodes launches all ranks.
    feasible: bool,
    /// Whether all ways were tried.
    proven: bool,
    /// Ranks after the change: fewer than the job asks for if it is not feasible.
    ranks: u32,
    /// Nodes that the job takes.
    nodes: u32,
    /// Ranks on each of them.
    ranks_per_node: u32,
    /// Cost in quarters of leaving a node out.
    cost: u64,
    /// No change costs less than this.
    bound: u64,
    /// Equally cheap changes; one of them is enough.
    options: Vec<Choice<'r>>,
    /// Whether there are more that cost the same.
    more: bool,
    /// Checks that no change of nodes changes.
    remaining: Vec<&'r str>,
    /// Checks that keep nodes out for good.
    hindrances: Vec<Hindrance<'r>>,
}

/// One change.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Choice<'r> {
    /// Nodes to leave out (`spec.cluster.excludeNodes`).
    exclude: Vec<Excluded<'r>>,
    /// What to repair.
    repair: Vec<Repair<'r>>,
    /// Nodes that are left.
    nodes_left: usize,
    /// GPUs of theirs that ranks may use; absent on CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    gpus_left: Option<usize>,
}

/// A node to leave out.
#[derive(Serialize, JsonSchema)]
struct Excluded<'r> {
    node: &'r str,
    checks: Vec<&'r str>,
    why: &'r str,
}

/// A repair on nodes.
#[derive(Serialize, JsonSchema)]
struct Repair<'r> {
    check: &'r str,
    nodes: Vec<&'r str>,
    what: &'r str,
    fix: &'r str,
    /// Whether the check is not known: after it is, it may still block.
    unknown: bool,
}

/// A check that keeps nodes out for good.
#[derive(Serialize, JsonSchema)]
struct Hindrance<'r> {
    check: &'r str,
    nodes: Vec<&'r str>,
    what: &'r str,
    fix: &'r str,
}

fn names(nodes: &[NodeName]) -> Vec<&str> {
    nodes.iter().map(|node| node.0.as_str()).collect()
}

pub(super) fn memory(fit: &doctor::MemoryFit) -> Memory<'_> {
    Memory {
        need_bytes: fit.need,
        ranks: fit.ranks.map_or(0, doctor::Shape::ranks),
        nodes: fit.ranks.map_or(0, |shape| shape.nodes),
        products: fit.products.iter().map(of_product).collect(),
    }
}

fn of_product(product: &doctor::ProductFit) -> Product<'_> {
    Product {
        name: &product.name,
        gpus: product.gpus,
        fits: product.fits,
        divided: product.divided,
        unread: product.unread,
        usable_bytes_least: product.usable.0,
        usable_bytes_most: product.usable.1,
        largest_unit: product.samples,
        most_tokens: product.tokens,
    }
}

pub(super) fn drift(drift: &doctor::Drift) -> Drift<'_> {
    let unread = drift.unread.iter();
    Drift {
        nodes: drift.nodes,
        compared: drift.compared,
        differing: drift.differing.iter().map(difference).collect(),
        unread: unread.map(|(key, nodes)| UnreadKey { key, nodes: names(nodes) }).collect(),
    }
}

fn difference(difference: &doctor::Difference) -> Difference<'_> {
    Difference {
        key: difference.key,
        label: match difference.label {
            doctor::Label::Benign => Label::Benign,
            doctor::Label::Slow => Label::Slow,
            doctor::Label::Unknown => Label::Unknown,
            doctor::Label::Fatal => Label::Fatal,
        },
        reason: &difference.reason,
        source: difference.source,
        check: difference.rule,
        majority: difference.majority().map(|group| group.value.as_str()),
        values: difference
            .groups
            .iter()
            .map(|group| Group { value: &group.value, nodes: names(&group.nodes) })
            .collect(),
    }
}

pub(super) fn smallest_change(remedy: &Remedy) -> SmallestChange<'_> {
    match remedy {
        Remedy::Change(change) => {
            let proven = change.bound == change.cost;
            SmallestChange { feasible: true, proven, ..of_change(change) }
        }
        Remedy::TooFew { largest, hindrances, proven, .. } => {
            let hindrances = hindrances.iter().map(hindrance).collect();
            let found = largest.as_ref().map_or_else(nothing, of_change);
            SmallestChange { proven: *proven, hindrances, ..found }
        }
    }
}

const fn nothing<'r>() -> SmallestChange<'r> {
    SmallestChange {
        feasible: false,
        proven: true,
        ranks: 0,
        nodes: 0,
        ranks_per_node: 0,
        cost: 0,
        bound: 0,
        options: Vec::new(),
        more: false,
        remaining: Vec::new(),
        hindrances: Vec::new(),
    }
}

fn of_change(change: &doctor::Change) -> SmallestChange<'_> {
    SmallestChange {
        ranks: change.shape.ranks(),
        nodes: change.shape.nodes,
        ranks_per_node: change.shape.per_node,
        cost: change.cost,
        bound: change.bound,
        options: change.options.iter().map(choice).collect(),
        more: change.more,
        remaining: change.remaining.clone(),
        ..nothing()
    }
}

fn choice(choice: &doctor::Choice) -> Choice<'_> {
    let (mut exclude, mut repair) = (Vec::new(), Vec::new());
    for action in &choice.actions {
        match action {
            doctor::Action::Exclude(out) => exclude.extend(out.iter().map(|out| Excluded {
                node: &out.node.0,
                checks: out.rules.clone(),
                why: &out.why,
            })),
            doctor::Action::Repair { rule, nodes, what, fix, unknown } => {
                let (nodes, unknown) = (names(nodes), *unknown);
                repair.push(Repair { check: rule, nodes, what, fix, unknown });
            }
        }
    }
    Choice { exclude, repair, nodes_left: choice.nodes_left, gpus_left: choice.gpus_left }
}

fn hindrance(hindrance: &doctor::Hindrance) -> Hindrance<'_> {
    Hindrance {
        check: hindrance.rule,
        nodes: names(&hindrance.nodes),
        what: &hindrance.what,
        fix: &hindrance.fix,
    }
}
