//! A rule: metadata and a pure function.

use super::{Demand, Outcome, Problem, Stop};
use crate::{
    facts::{NodeFacts, Snapshot},
    job::Compute,
};

/// One check.
#[derive(Debug)]
pub struct Rule {
    /// Kebab-case, names the problem, never reused.
    pub id: &'static str,
    /// What is checked, in a few words.
    pub summary: &'static str,
    /// Group in reports.
    pub area: Area,
    /// The worst that the rule may find. A job needs the rules that may block: when one of them
    /// is unknown, the launch stops.
    pub severity: Severity,
    /// When the rule makes sense.
    pub applies: Applies,
    /// Where the threshold comes from: a URL, or `repository#issue`.
    pub source: &'static str,
    /// What it is, why it is bad, what happens if it is ignored.
    pub docs: &'static str,
    /// What is read to judge it: calls and files.
    pub reads: &'static str,
    /// What to do about a problem, in general.
    pub fix: &'static str,
    /// How it judges.
    pub check: Check,
}

/// Rules that may block, but whose facts need rights that a launch does not need. Not knowing
/// them is reported and does not stop a launch.
const UNPRIVILEGED: [&str; 1] = ["xid-seen"];

impl Rule {
    /// Whether a launch needs to know what this rule says.
    pub fn is_needed(&self) -> bool {
        self.severity == Severity::Block && !UNPRIVILEGED.contains(&self.id)
    }

    /// A problem of this rule's severity, with its general fix.
    pub(super) fn problem(
        &self,
        what: impl Into<String>,
        impact: impl Into<String>,
        see: impl Into<String>,
    ) -> Problem {
        Problem {
            severity: self.severity,
            what: what.into(),
            impact: impact.into(),
            fix: self.fix.to_owned(),
            see: see.into(),
        }
    }
}

/// How a rule judges.
#[derive(Debug)]
pub enum Check {
    /// One node at a time.
    Node(fn(&NodeFacts, &Demand) -> Outcome),
    /// All nodes must show the same value.
    Agree(Agreement),
    /// All nodes together.
    Fleet(fn(&Snapshot, &Demand) -> Outcome),
    /// The job alone.
    Job(fn(&Demand) -> Outcome),
}

/// A value that must be the same on all nodes, and what happens if it is not.
#[derive(Debug)]
pub struct Agreement {
    /// Name of the value.
    pub what: &'static str,
    /// The value of one node.
    pub read: fn(&NodeFacts, &Demand) -> Result<String, Stop>,
    /// What a difference does to the job.
    pub impact: &'static str,
    /// What to do.
    pub fix: &'static str,
    /// Command that shows it.
    pub see: &'static str,
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Good to know.
    Info,
    /// The job runs, but slower, or with a risk.
    Warn,
    /// The job fails, or gives a wrong result.
    Block,
}

/// Group of rules in reports, in the order of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Area {
    /// Who reported.
    Fleet,
    /// Driver, kernel modules, device files.
    Driver,
    /// State of the GPUs.
    Gpu,
    /// Memory of GPUs: errors and size.
    GpuMemory,
    /// PCIe, `NVLink`, fabric.
    Links,
    /// Trainer, CUDA, NCCL.
    Software,
    /// Kernel, memory, limits, container.
    Host,
    /// Folders and disks.
    Storage,
    /// Interfaces and ports.
    Network,
    /// Environment of the ranks.
    Ranks,
    /// The job itself.
    Job,
}

impl Area {
    /// Heading in a report.
    pub const fn name(self) -> &'static str {
        match self {
            Area::Fleet => "fleet",
            Area::Driver => "driver",
            Area::Gpu => "GPUs",
            Area::GpuMemory => "GPU memory",
            Area::Links => "links",
            Area::Software => "software",
            Area::Host => "host",
            Area::Storage => "storage",
            Area::Network => "network",
            Area::Ranks => "ranks",
            Area::Job => "job",
        }
    }
}

/// When a rule makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applies {
    /// Always.
    Always,
    /// When ranks compute on GPUs.
    Gpus,
    /// When more than one rank computes on GPUs.
    GpuGroup,
    /// When there is more than one node.
    Nodes,
    /// When ranks compute on GPUs of more than one node.
    GpuNodes,
}

impl Applies {
    /// Why the rule does not apply; `None` if it does.
    pub(super) fn skip_reason(self, demand: &Demand) -> Option<&'static str> {
        let gpus = demand.compute != Compute::Cpu;
        let many_nodes = 1 < demand.nodes;
        let group = many_nodes || demand.ranks != Some(1);
        let need_gpus = matches!(self, Applies::Gpus | Applies::GpuGroup | Applies::GpuNodes);
        if need_gpus && !gpus {
            return Some("the job computes on CPUs");
        }
        if matches!(self, Applies::Nodes | Applies::GpuNodes) && !many_nodes {
            return Some("there is one node, so nothing to compare or to reach");
        }
        if self == Applies::GpuGroup && !group {
            return Some("the job has one rank");
        }
        None
    }
}
