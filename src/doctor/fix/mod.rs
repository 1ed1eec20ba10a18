//! Repairs: from what the doctor found to changes that can be taken back. Pure: reading and
//! writing the machine is the module `repair`.
//!
//! A rule has a repair only if the old state can be restored, or is worthless: persistence mode,
//! limits, the size of `/dev/shm`, kernel modules, kernel settings, and the job file. Driver
//! versions, PCI, firmware, resets, other people's processes and their files are left to people.

mod diff;
mod env;
mod goal;
mod host;
mod kind;
mod table;

pub use diff::unified;
pub use goal::Goal;
pub use kind::{Kind, Process, Resource, Target};
pub use table::{REPAIRS, Repairable, repairable};

use serde::{Deserialize, Serialize};

use super::{CheckResult, Demand, Report, Severity, Subject};
use crate::facts::{NodeFacts, NodeName, Snapshot};

/// Where repairs would be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scene {
    /// The machine that can be changed: the one that the facts were read from just now. `None` if
    /// they come from files or from a cluster.
    pub here: Option<NodeName>,
    /// Whether this process is root.
    pub root: bool,
    /// The shell, or another program, that will start the job: its limits are those of the ranks.
    pub session: Option<Process>,
    /// The job file.
    pub job_file: Option<String>,
}

/// What should be changed because of one finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// Id of the check.
    pub rule: &'static str,
    /// What the check judged: a node, all of them, or the job.
    pub subject: Subject,
    /// What is wrong, in the check's words.
    pub what: String,
    /// Changes, in order.
    pub steps: Vec<Step>,
    /// Why it cannot be made here, if so.
    pub obstacle: Option<String>,
    /// What a person can do instead, or what does the same.
    pub commands: Vec<String>,
}

/// One change that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What is changed.
    pub target: Target,
    /// What it should become.
    pub goal: Goal,
}

/// One change, with the state before and after. `None` = it is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What is changed.
    pub target: Target,
    /// State before.
    pub old: Option<String>,
    /// State after.
    pub new: Option<String>,
}

/// A repair that is ready to be made, or says why it is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// Id of the check.
    pub rule: &'static str,
    /// What the check judged.
    pub subject: Subject,
    /// What is wrong.
    pub what: String,
    /// Changes, in order. Empty if their present state is not known.
    pub changes: Vec<Change>,
    /// Why it cannot be made here, if so.
    pub obstacle: Option<String>,
    /// Commands that do the same by hand; a change of a file has a diff instead.
    pub commands: Vec<String>,
}

/// A finding without a repair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Id of the check.
    pub rule: &'static str,
    /// What the check judged.
    pub subject: Subject,
    /// What is wrong.
    pub what: String,
    /// What a person can do.
    pub fix: String,
}

/// What a rule's repair is made from.
struct Finding<'f> {
    rule: &'static str,
    result: &'f CheckResult,
    nodes: Vec<&'f NodeFacts>,
    demand: &'f Demand,
    scene: &'f Scene,
}

/// Repairs of everything that is wrong in a report, in its order, and what is left to people. With
/// `only`, the other checks are not looked at.
pub fn drafts(
    report: &Report,
    snapshot: &Snapshot,
    demand: &Demand,
    scene: &Scene,
    only: &[String],
) -> (Vec<Draft>, Vec<Left>) {
    let demand = &demand.resolved(snapshot);
    let seen = demand.seen(snapshot);
    let (mut drafts, mut left): (Vec<Draft>, Vec<Left>) = (Vec::new(), Vec::new());
    let wanted = |rule: &str| only.is_empty() || only.iter().any(|id| id == rule);
    for result in report.results.iter().filter(|result| wanted(result.rule.id)) {
        let Some(problem) = result.problems.iter().find(|p| Severity::Info < p.severity) else {
            continue;
        };
        let nodes = match &result.subject {
            Subject::Node(name) => seen.nodes.get(name).into_iter().collect(),
            Subject::Job | Subject::All => seen.nodes.values().collect(),
        };
        let rule = result.rule.id;
        let finding = Finding { rule, result, nodes, demand, scene };
        match repairable(rule).and_then(|known| (known.plan)(&finding)) {
            Some(draft) => add(&mut drafts, draft),
            None => left.push(Left {
                rule,
                subject: result.subject.clone(),
                what: problem.what.clone(),
                fix: problem.fix.clone(),
            }),
        }
    }
    (drafts, left)
}

/// A job file is changed once for all nodes of a finding.
fn add(drafts: &mut Vec<Draft>, draft: Draft) {
    let is_job = |step: &Step| matches!(step.goal, Goal::Edits(_));
    let same = |known: &&mut Draft| {
        known.rule == draft.rule && known.steps.iter().chain(&draft.steps).all(is_job)
    };
    let Some(known) = drafts.iter_mut().find(same) else { return drafts.push(draft) };
    for (step, more) in known.steps.iter_mut().zip(draft.steps) {
        step.goal.join(more.goal);
    }
    for command in draft.commands {
        if !known.commands.contains(&command) {
            known.commands.push(command);
        }
    }
    known.subject = Subject::All;
}

impl Draft {
    /// The repair, given the present state of each of its targets.
    pub fn resolved(
        self,
        scene: &Scene,
        mut present: impl FnMut(&Target) -> Result<Option<String>, String>,
    ) -> Repair {
        let (mut changes, mut obstacle) = (Vec::new(), self.obstacle);
        let mut commands = self.commands;
        for Step { target, goal } in self.steps {
            if obstacle.is_some() {
                break;
            }
            let next = present(&target).and_then(|old| Ok((goal.next(old.as_deref())?, old)));
            match next {
                Ok((new, old)) if new == old => {}
                Ok((new, old)) => changes.push(Change { target, old, new }),
                Err(why) => obstacle = Some(why),
            }
        }
        if !changes.is_empty() {
            commands = changes.iter().filter_map(Change::command).collect();
        }
        if obstacle.is_none() && changes.is_empty() {
            obstacle = Some("everything that it would change is so already".to_owned());
        }
        if obstacle.is_none() && !scene.root && changes.iter().any(Change::needs_root) {
            obstacle = Some("it needs root".to_owned());
        }
        let (rule, subject, what) = (self.rule, self.subject, self.what);
        Repair { rule, subject, what, changes, obstacle, commands }
    }
}

impl Repair {
    /// Whether it can be made here and now.
    pub fn is_ready(&self) -> bool {
        self.obstacle.is_none()
    }
}

impl Change {
    /// The command that makes it; `None` for files, which have a diff.
    pub fn command(&self) -> Option<String> {
        self.target.command(self.new.as_deref())
    }

    /// The command that takes it back.
    pub fn undo_command(&self) -> Option<String> {
        self.target.command(self.old.as_deref())
    }

    /// The change of a file as a unified diff; `None` for everything else.
    pub fn diff(&self) -> Option<String> {
        let path = self.target.path()?;
        Some(unified(path, self.old.as_deref(), self.new.as_deref()))
    }

    /// Whether only root may make it.
    pub fn needs_root(&self) -> bool {
        match self.target.kind() {
            Kind::JobFile => false,
            Kind::Limit => goal::raises_hard(self.old.as_deref(), self.new.as_deref()),
            Kind::Persistence
            | Kind::SharedMemory
            | Kind::LimitFile
            | Kind::Module
            | Kind::Sysctl => true,
        }
    }
}

impl Finding<'_> {
    /// The draft with these steps; `None` if there is nothing to change.
    fn draft(&self, steps: Vec<Step>, obstacle: Option<String>) -> Option<Draft> {
        let commands: Vec<String> = steps
            .iter()
            .filter_map(|step| step.target.command(step.goal.shown().as_deref()))
            .collect();
        self.draft_with(steps, obstacle, commands)
    }

    fn draft_with(
        &self,
        steps: Vec<Step>,
        obstacle: Option<String>,
        commands: Vec<String>,
    ) -> Option<Draft> {
        if steps.is_empty() {
            return None;
        }
        let what: Vec<&str> = self.result.problems.iter().map(|p| p.what.as_str()).collect();
        Some(Draft {
            rule: self.rule,
            subject: self.result.subject.clone(),
            what: what.join("; "),
            steps,
            obstacle,
            commands,
        })
    }

    /// The one node that the finding is about.
    fn node(&self) -> Option<&NodeFacts> {
        match self.nodes[..] {
            [node] => Some(node),
            _ => None,
        }
    }

    /// Why the machine itself cannot be changed from here.
    fn elsewhere(&self) -> Option<String> {
        match (&self.result.subject, &self.scene.here) {
            (Subject::Node(name), Some(here)) if name == here => None,
            (Subject::Node(name), _) => Some(format!(
                "it is made on the node: run `qvl doctor --fix --apply` as root on {name}"
            )),
            (Subject::Job | Subject::All, _) => Some("it concerns several machines".to_owned()),
        }
    }

    /// The same for what a container shares with its host.
    fn on_host(&self) -> Option<String> {
        let kind = self.node()?.container.kind.value().cloned().flatten();
        let inside = |kind: String| {
            format!("this is a container ({kind}); its host has to be changed, as root there")
        };
        self.elsewhere().or_else(|| kind.map(inside))
    }
}
