//! Every repair on the one broken thing of its check: the plan is made, and on the facts as they
//! are after it the check has nothing to say.

use std::collections::BTreeSet;

use super::{change, mutations::mutations};
use crate::{
    doctor::{
        Demand, Subject, Verdict, diagnose,
        fix::{Draft, Goal, Kind, REPAIRS, Scene, Target, drafts as plan},
        rule,
        testing::{demand, fleet},
    },
    facts::{Fact, NodeFacts, NodeName, Snapshot},
    job::{edit::edited, parse},
};

const JOB: &str = "apiVersion: qvl.dev/v1alpha1
kind: FineTuneJob
metadata: {name: a}
spec:
  model: {path: m}
  data: {train: [{name: t, path: t.json, task: grounding}]}
  stages: [{name: s, steps: 10}]
  output: out
";

fn scene() -> Scene {
    let session = Some(crate::doctor::fix::Process { pid: 7, started: 9 });
    let here = Some(NodeName("n1".to_owned()));
    Scene { here, root: true, session, job_file: Some("/job.yaml".to_owned()) }
}

/// The drafts for one check on the fleet with its one broken thing.
fn broken(id: &str) -> (Snapshot, Demand, Vec<Draft>) {
    let (_id, mutate) = *mutations().iter().find(|(known, _)| *known == id).unwrap();
    let (mut snapshot, mut demand) = (fleet(3), demand());
    mutate(&mut snapshot, &mut demand);
    let report = diagnose(&snapshot, &demand);
    let (drafts, _left) = plan(&report, &snapshot, &demand, &scene(), &[id.to_owned()]);
    (snapshot, demand, drafts)
}

/// The facts of a node after a change of the machine.
fn after(node: &mut NodeFacts, target: &Target, goal: &Goal) {
    let old = match target {
        Target::Limit { .. } => Some("1 1"),
        Target::SharedMemory => Some("4096"),
        Target::Persistence { .. }
        | Target::Module { .. }
        | Target::Sysctl { .. }
        | Target::LimitFile { .. }
        | Target::JobFile { .. } => None,
    };
    if target.kind() == Kind::JobFile {
        return;
    }
    let new = goal.next(old).unwrap().unwrap();
    match target {
        Target::Persistence { .. } => change(&mut node.nvml.gpus, |gpus| {
            gpus.iter_mut().for_each(|gpu| gpu.persistence = Fact::known(true, "test"));
        }),
        Target::SharedMemory => {
            change(&mut node.shm.mount, |mount| mount.total_bytes = new.parse().unwrap());
        }
        Target::Limit { resource, .. } => {
            let soft = Fact::known(new.split(' ').next().unwrap().parse().ok(), "test");
            match resource.name() {
                "memlock" => node.limits.memlock_bytes = soft,
                "nofile" => node.limits.open_files = soft,
                "nproc" => node.limits.processes = soft,
                "fsize" => node.limits.file_size_bytes = soft,
                "as" => node.limits.address_space_bytes = soft,
                _ => node.limits.core_bytes = soft,
            }
        }
        Target::Module { name } => change(&mut node.driver.modules, |modules| {
            modules.insert(name.clone());
        }),
        Target::Sysctl { name } => change(&mut node.system.sysctl, |settings| {
            settings.insert(name.clone(), new.clone());
        }),
        Target::LimitFile { .. } | Target::JobFile { .. } => {}
    }
}

#[test]
fn every_repair_silences_its_check() {
    let mut wrong = Vec::new();
    for repair in REPAIRS {
        let (mut snapshot, mut demand, drafts) = broken(repair.rule);
        if drafts.is_empty() {
            wrong.push(format!("{}: no draft", repair.rule));
        }
        let mut kinds = BTreeSet::new();
        for step in drafts.iter().flat_map(|draft| &draft.steps) {
            kinds.insert(step.target.kind());
            if let Goal::Edits(edits) = &step.goal {
                let text = edited(JOB, edits).unwrap();
                let job = parse(&text, "job").unwrap();
                demand.env = job.spec.env.clone();
                demand.pod_shm_bytes =
                    demand.pod_shm_bytes.and(Demand::default().in_pods(&job).pod_shm_bytes);
            }
            snapshot.nodes.values_mut().for_each(|node| after(node, &step.target, &step.goal));
        }
        if kinds != repair.kinds.iter().copied().collect() {
            wrong.push(format!("{}: changes {kinds:?}", repair.rule));
        }
        let report = diagnose(&snapshot, &demand);
        let bad = |verdict| matches!(verdict, Verdict::Warn | Verdict::Fail | Verdict::Unknown);
        let results = report.results.iter().filter(|result| result.rule.id == repair.rule);
        if results.into_iter().any(|result| bad(result.verdict)) {
            wrong.push(format!("{}: the check still complains", repair.rule));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_kind_has_a_check_and_every_repair_a_rule() {
    let kinds: BTreeSet<Kind> = REPAIRS.iter().flat_map(|repair| repair.kinds).copied().collect();
    assert_eq!(kinds, BTreeSet::from(Kind::ALL));
    let rules: BTreeSet<&str> = REPAIRS.iter().map(|repair| repair.rule).collect();
    assert_eq!(rules.len(), REPAIRS.len());
    assert!(rules.into_iter().all(|id| rule(id).is_some()));
}

#[test]
fn what_cannot_be_made_here_says_where_and_how() {
    let (snapshot, demand, drafts) = broken("persistence-off");
    assert_eq!(drafts.len(), 1);
    let other = Scene { here: Some(NodeName("n9".to_owned())), ..scene() };
    let report = diagnose(&snapshot, &demand);
    let (elsewhere, _left) = plan(&report, &snapshot, &demand, &other, &[]);
    let repair = elsewhere[0].clone().resolved(&other, |_target| panic!("it is not read"));
    assert!(repair.obstacle.unwrap().contains("on n1"));
    assert!(repair.commands[0].starts_with("nvidia-smi -i GPU-"), "{:?}", repair.commands);
    // Without rights the changes are known, and the commands are shown.
    let user = Scene { root: false, ..scene() };
    let repair = drafts[0].clone().resolved(&user, |_target| Ok(Some("off".to_owned())));
    assert_eq!(repair.obstacle.as_deref(), Some("it needs root"));
    assert!(!repair.changes.is_empty());
    // Without a job file there is no place for variables.
    let (snapshot, demand, _drafts) = broken("nccl-algorithm-forced");
    let shell = Scene { job_file: None, ..scene() };
    let report = diagnose(&snapshot, &demand);
    let (in_shell, _left) = plan(&report, &snapshot, &demand, &shell, &[]);
    assert!(in_shell[0].obstacle.as_ref().unwrap().contains("--job FILE"));
    assert!(in_shell[0].commands[0].starts_with("unset NCCL_"), "{:?}", in_shell[0].commands);
}

#[test]
fn findings_on_several_nodes_change_the_job_once() {
    let (mut snapshot, demand) = (fleet(3), demand());
    for (number, node) in snapshot.nodes.values_mut().enumerate() {
        change(&mut node.env.variables, |variables| {
            let name = ["NCCL_ALGO", "NCCL_PROTO", "NCCL_ALGO"][number];
            variables.insert(name.to_owned(), "Ring".to_owned());
        });
    }
    let report = diagnose(&snapshot, &demand);
    let only = ["nccl-algorithm-forced".to_owned()];
    let (drafts, left) = plan(&report, &snapshot, &demand, &scene(), &only);
    assert!(left.is_empty());
    assert_eq!(drafts.len(), 1);
    assert_eq!(drafts[0].subject, Subject::All);
    assert_eq!(drafts[0].commands, ["unset NCCL_ALGO", "unset NCCL_PROTO"]);
}

#[test]
fn what_has_no_repair_is_left_with_its_fix() {
    let (_id, mutate) = *mutations().iter().find(|(id, _)| *id == "row-remap-failed").unwrap();
    let (mut snapshot, mut demand) = (fleet(3), demand());
    mutate(&mut snapshot, &mut demand);
    let report = diagnose(&snapshot, &demand);
    let (drafts, left) = plan(&report, &snapshot, &demand, &scene(), &[]);
    assert!(drafts.is_empty());
    assert_eq!(left.iter().map(|left| left.rule).collect::<Vec<_>>(), ["row-remap-failed"]);
}
