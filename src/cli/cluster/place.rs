//! Decides what the job asks for and where it may run. Pure.

use std::io::Write;

use super::{
    observe::World,
    plan::{self, Ask, Fit, Need, Placement, Shape, describe},
    quantity, rooms,
};
use crate::{
    cli::CliError,
    job::{Compute, FineTuneJob},
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

/// Fills in what the job leaves open: GPU or CPU, the resource, the ranks of a pod.
pub(crate) fn decide(
    world: &World,
    job: &mut FineTuneJob,
    shape: Option<Shape>,
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
        return Ok(Demanded { ranks, fit: None, nodes: Vec::new(), blind, compute });
    };
    let selector = &job.spec.cluster.node_selector;
    let rooms = rooms::of(nodes, &world.pods, gpu.as_deref(), selector);
    let fit = plan::place(&rooms, &Ask { ranks, shape, per_node: given, need });
    let demanded = Demanded {
        ranks,
        nodes: describe(&rooms, need),
        blind: world.blind.clone(),
        compute,
        fit: Some(fit),
    };
    let chosen = demanded.placement().map(|placement| placement.shape.per_node);
    job.spec.cluster.gpus_per_node = chosen.or(per_node);
    Ok(demanded)
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

/// The first few names.
fn some(names: &[&str]) -> String {
    const FEW: usize = 6;
    let more = names.len().saturating_sub(FEW);
    let list = names.iter().take(FEW).copied().collect::<Vec<_>>().join(", ");
    if more == 0 { list } else { format!("{list} and {more} more") }
}
