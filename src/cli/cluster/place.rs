//! Decides what the job asks for and where it may run. Pure.

use std::{collections::BTreeMap, io::Write};

use super::{
    observe::World,
    plan::{self, Ask, Fit, Need, NodeRoom, Placement, Shape, describe},
    quantity, rooms,
};
use crate::{
    cli::CliError,
    job::{self, Compute, FineTuneJob},
    wire::ExitStatus,
};

/// What was decided, for the user and for the gate.
#[derive(Debug)]
pub(crate) struct Demanded {
    pub ranks: u32,
    /// `None` if nodes and pods may not be looked at.
    pub fit: Option<Fit>,
    /// One line for each node.
    pub nodes: Vec<String>,
    /// What this user may not see.
    pub blind: Option<String>,
    /// Why the ranks compute on what they compute on, if the job left it open.
    pub compute: Option<String>,
    /// Nodes that the job will not use because of what their agents say, with the reason.
    pub left_out: Vec<(String, String)>,
}

impl Demanded {
    /// The nodes that the doctor is asked about.
    pub(crate) fn placement(&self) -> Option<&Placement> {
        match self.fit.as_ref()? {
            Fit::Now(placement) | Fit::Later { placement, .. } => Some(placement),
            Fit::Never { .. } => None,
        }
    }
}

/// Fills in what the job leaves open: GPU or CPU, the resource, the ranks of a pod, the nodes that
/// are `unfit` for so many ranks.
pub(crate) fn decide(
    world: &World,
    job: &mut FineTuneJob,
    shape: Option<Shape>,
    unfit: impl Fn(&FineTuneJob, Option<u32>) -> BTreeMap<String, String>,
) -> Result<Demanded, CliError> {
    let ranks = job.spec.world.gpus;
    let compute = choose_compute(world, job);
    let gpu = resource(job);
    // A shape of the command line replaces what the file says, in what would fit instead too.
    let given = job.spec.cluster.gpus_per_node.filter(|_| shape.is_none());
    let per_node = shape.map(|shape| shape.per_node).or(given);
    if let Some(per_node) = per_node.filter(|g| *g == 0 || !ranks.is_multiple_of(*g)) {
        let what = format!("{ranks} ranks cannot be shared evenly by pods of {per_node}");
        return Err(CliError::new(ExitStatus::Usage, what)
            .hint("spec.cluster.gpusPerNode must divide the number of ranks; -j NxG replaces it"));
    }
    let need = need(job, gpu.is_some())?;
    let Some(nodes) = &world.nodes else {
        job.spec.cluster.gpus_per_node = Some(per_node.unwrap_or(ranks));
        let blind = world.blind.clone();
        let left_out = Vec::new();
        return Ok(Demanded { ranks, fit: None, nodes: Vec::new(), blind, compute, left_out });
    };
    let (selector, excluded) = (&job.spec.cluster.node_selector, &job.spec.cluster.exclude_nodes);
    let rooms = rooms::of(nodes, &world.pods, gpu.as_deref(), selector, excluded);
    let ask = Ask { ranks, shape, per_node: given, need };
    let (rooms, fit, left_out) = healthy(rooms, &ask, |each| unfit(job, each));
    let demanded = Demanded {
        ranks,
        nodes: describe(&rooms, need),
        blind: world.blind.clone(),
        compute,
        fit: Some(fit),
        left_out,
    };
    let chosen = demanded.placement().map(|placement| placement.shape.per_node);
    let cluster = &mut job.spec.cluster;
    cluster.gpus_per_node = chosen.or(per_node);
    // The scheduler knows nothing of the reports.
    let unwanted = demanded.left_out.iter().map(|(name, _why)| name.clone());
    let room = job::EXCLUDED_NODES.saturating_sub(cluster.exclude_nodes.len());
    cluster.exclude_nodes.extend(unwanted.take(room));
    Ok(demanded)
}

/// Places the job on nodes that nothing is known against. If it fits only with the others, they
/// stay: the doctor then tells what is wrong with them, in full.
fn healthy(
    rooms: Vec<NodeRoom>,
    ask: &Ask,
    unfit: impl Fn(Option<u32>) -> BTreeMap<String, String>,
) -> (Vec<NodeRoom>, Fit, Vec<(String, String)>) {
    let any = plan::place(&rooms, ask);
    let each = match &any {
        Fit::Now(placement) | Fit::Later { placement, .. } => Some(placement.shape.per_node),
        Fit::Never { .. } => None,
    };
    let unfit = unfit(each);
    let mut good = rooms.clone();
    let mut left_out = Vec::new();
    for room in good.iter_mut().filter(|room| room.unusable.is_none()) {
        if let Some(why) = unfit.get(&room.name) {
            room.unusable = Some(why.clone());
            left_out.push((room.name.clone(), why.clone()));
        }
    }
    let fit = plan::place(&good, ask);
    if each.is_some() && matches!(fit, Fit::Never { .. }) {
        return (rooms, any, Vec::new());
    }
    (good, fit, left_out)
}

/// A job that leaves it open computes on GPUs where there are some.
fn choose_compute(world: &World, job: &mut FineTuneJob) -> Option<String> {
    if job.spec.world.compute != Compute::Auto {
        return None;
    }
    let nodes = world.nodes.as_ref()?;
    let resource = job.spec.cluster.gpu_resource.clone().unwrap_or_else(|| rooms::GPU.to_owned());
    let found = rooms::any_has(nodes, &resource);
    job.spec.world.compute = if found { Compute::Cuda } else { Compute::Cpu };
    Some(if found {
        format!("GPUs, because nodes offer {resource}")
    } else {
        format!("CPUs, because no node offers {resource}")
    })
}

/// The extended resource that each rank asks for.
fn resource(job: &FineTuneJob) -> Option<String> {
    let given = job.spec.cluster.gpu_resource.clone().filter(|name| !name.is_empty());
    let usual = || (job.spec.world.compute != Compute::Cpu).then(|| rooms::GPU.to_owned());
    given.or_else(usual)
}

fn need(job: &FineTuneJob, gpu: bool) -> Result<Need, CliError> {
    let resources = &job.spec.cluster.resources;
    let read = |name: &str, text: &str| match text {
        "" => Ok(0),
        text => quantity::milli(text).ok_or_else(|| {
            let what = format!("spec.cluster.resources.{name}: `{text}` is no amount");
            CliError::new(ExitStatus::Usage, what).hint("as in Kubernetes: 4, 500m, 32Gi")
        }),
    };
    Ok(Need {
        gpus: u64::from(gpu),
        cpu_milli: read("cpu", &resources.cpu)?,
        memory_bytes: read("memory", &resources.memory)?.div_ceil(1000),
    })
}

/// The plan for a person.
pub(crate) fn print(
    decided: &Demanded,
    job: &FineTuneJob,
    out: &mut impl Write,
) -> std::io::Result<()> {
    if let Some(why) = &decided.compute {
        writeln!(out, "compute {why}")?;
    }
    let unit = resource(job).map_or("ranks on CPUs".to_owned(), |name| name);
    if let Some(placement) = decided.placement() {
        let Shape { nodes, per_node } = placement.shape;
        let names: Vec<&str> = placement.nodes.iter().map(|(name, _free)| name.as_str()).collect();
        let pods = crate::cli::view::count(nodes, "pod");
        writeln!(
            out,
            "plan    {} ranks: {pods} of {per_node} {unit}, for example on {}",
            decided.ranks,
            some(&names)
        )?;
        if !placement.products.is_empty() {
            let products = placement.products.join(" and ");
            writeln!(out, "        the nodes have different GPUs: {products}")?;
        }
    }
    for (name, why) in decided.left_out.iter().take(FEW) {
        writeln!(out, "        not on {name}: {why}")?;
    }
    if let Some(more) = decided.left_out.len().checked_sub(FEW).filter(|more| 0 < *more) {
        writeln!(out, "        nor on {more} others: `qvl doctor --cluster` shows them")?;
    }
    if let Some(Fit::Later { now, .. }) = &decided.fit {
        let now = now.map_or("nothing".to_owned(), |shape| format!("only {shape}"));
        writeln!(out, "        not free now ({now} is)")?;
        decided.nodes.iter().try_for_each(|line| writeln!(out, "        {line}"))?;
    }
    if let Some(queue) = &job.spec.cluster.queue {
        writeln!(out, "queue   {queue}")?;
    }
    if let Some(blind) = &decided.blind {
        writeln!(out, "plan    free GPUs are not known: {blind}")?;
        let per_node = job.spec.cluster.gpus_per_node.unwrap_or(decided.ranks);
        writeln!(
            out,
            "        {} ranks in pods of {per_node}; -j NxG chooses another shape",
            decided.ranks
        )?;
    }
    Ok(())
}

/// More names than this are counted.
const FEW: usize = 6;

/// The first few names.
fn some(names: &[&str]) -> String {
    let more = names.len().saturating_sub(FEW);
    let list = names.iter().take(FEW).copied().collect::<Vec<_>>().join(", ");
    if more == 0 { list } else { format!("{list} and {more} more") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::cluster::health::tests::{job, node};

    fn decided(ranks: u32, bad: &[&str]) -> (FineTuneJob, String) {
        let nodes = ["n1", "n2", "n3"].map(|name| node(name, serde_json::json!({}), 2));
        let world = World { nodes: Some(nodes.to_vec()), ..World::default() };
        let mut job = job(ranks);
        let bad = bad.iter().map(|name| ((*name).to_owned(), "xid-seen: Xid 79".to_owned()));
        let bad: BTreeMap<String, String> = bad.collect();
        let decided = decide(&world, &mut job, None, |_job, _each| bad.clone()).unwrap();
        let mut out = Vec::new();
        print(&decided, &job, &mut out).unwrap();
        (job, String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_node_with_a_fault_is_left_out_by_launcher_and_scheduler() {
        let (job, told) = decided(4, &["n1"]);
        assert_eq!(
            told,
            "plan    4 ranks: 2 pods of 2 nvidia.com/gpu, for example on n2, n3\n        \
             not on n1: xid-seen: Xid 79\n"
        );
        assert_eq!(job.spec.cluster.exclude_nodes, ["n1"]);
    }

    #[test]
    fn a_job_that_needs_the_faulty_node_goes_to_the_doctor_with_it() {
        let (job, told) = decided(6, &["n1"]);
        assert_eq!(
            told,
            "plan    6 ranks: 3 pods of 2 nvidia.com/gpu, for example on n1, n2, n3\n"
        );
        assert!(job.spec.cluster.exclude_nodes.is_empty());
    }
}
