//! The test in a rank pod before the start: what `qvl doctor` says about this container, and
//! whether the machine or the job is to blame for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{ErrorKind, Write},
    path::Path,
};

use super::{
    CliError,
    plan::{self, Depth},
};
use crate::{
    agent::rank::{Pod, Refused},
    doctor::{self, CheckResult, Demand},
    facts::{Place, Snapshot, Storage},
    job::{Cluster, FineTuneJob},
    probe, report,
    wire::TrainerExit,
};

/// Judges what this container sees, for the ranks of this pod. All pods see the same data, so the
/// first one reads all of it; the others read what decides their memory.
pub(super) fn test(pod: &Pod, job: &FineTuneJob) -> Result<(), Refused> {
    let folder = pod.job_file.parent().unwrap_or(Path::new("/"));
    let depth = if pod.index == 0 { Depth::All } else { Depth::Lengths };
    let planned = plan::make_to(job.clone(), folder, depth).map_err(|error| Refused {
        what: error.line(),
        checks: vec!["plan".to_owned()],
        exit: exit_of_plan(&error),
    })?;
    gate(pod, &planned, folder, &mut anstream::stdout())
}

/// A file that is missing, or that nobody may read, is so on every node; a disk that does not
/// answer is this node's.
fn exit_of_plan(error: &CliError) -> TrainerExit {
    match error.io_kind() {
        None | Some(ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => TrainerExit::Data,
        Some(
            ErrorKind::NotFound
            | ErrorKind::PermissionDenied
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory,
        ) => TrainerExit::InputMissing,
        Some(_other) => TrainerExit::Preflight,
    }
}

fn gate(
    pod: &Pod,
    planned: &plan::Plan,
    folder: &Path,
    out: &mut impl Write,
) -> Result<(), Refused> {
    let cluster = &planned.job.spec.cluster;
    let broken = |what: String, exit| Refused { what, checks: vec!["doctor".to_owned()], exit };
    let allowed = super::doctor::allowed(&cluster.allow_unknown)
        .map_err(|error| broken(error.line(), TrainerExit::Config))?;
    let program = std::env::current_exe()
        .map_err(|error| broken(error.to_string(), TrainerExit::Preflight))?;
    let options = probe::Options {
        program: Some(program),
        trainer: Some(pod.trainer.clone()),
        folders: super::doctor::folders(&planned.job, folder),
        ..probe::Options::default()
    };
    let mut facts = probe::node(&options);
    // Of the whole job, this machine has the ranks of this pod.
    let demand = Demand::of(&planned.job, super::doctor::sizes(planned, folder));
    let demand = Demand { ranks: Some(pod.ranks), ..demand };
    if cluster.active_tests {
        let trainer = Some(pod.trainer.as_path());
        let active = super::doctor::active_options(&facts, &options.folders, &demand, trainer)
            .map_err(|error| broken(error.line(), TrainerExit::Preflight))?;
        facts.active = Some(Box::new(super::doctor::active_tests(&facts, &active)));
    }
    let storage = facts.storage.value().cloned().unwrap_or_default();
    let nodes = BTreeMap::from([(probe::name(&facts), facts)]);
    let snapshot = Snapshot { nodes, expected: BTreeSet::new() };
    let report = doctor::diagnose(&snapshot, &demand);
    // If nobody reads what it says, the verdict counts all the same.
    let _written = report::problems(&report, &super::doctor::view(&allowed), out)
        .and_then(|()| writeln!(out, "{}", report::summary(&report)));
    if report.overall(false, &allowed) == doctor::Overall::Ready {
        return Ok(());
    }
    Err(refused(&report, &allowed, |result| blame(result, &storage, cluster)))
}

/// The problem to tell: one of the job's comes before those of the machine, because another
/// machine would not help.
fn refused(
    report: &doctor::Report,
    allowed: &BTreeSet<String>,
    blame: impl Fn(&CheckResult) -> TrainerExit,
) -> Refused {
    let stops = |result: &&CheckResult| {
        let unknown = result.is_needed_unknown() && !allowed.contains(result.rule.id);
        result.verdict == doctor::Verdict::Fail || unknown
    };
    let stopped: Vec<(&CheckResult, TrainerExit)> =
        report.results.iter().filter(stops).map(|result| (result, blame(result))).collect();
    let causes = [TrainerExit::InputMissing, TrainerExit::Data, TrainerExit::CheckpointIo];
    let found = |cause: &TrainerExit| stopped.iter().any(|(_result, exit)| exit == cause);
    let exit = causes.into_iter().find(found).unwrap_or(TrainerExit::Preflight);
    let told: Vec<&CheckResult> = stopped
        .iter()
        .filter(|(_result, own)| *own == exit)
        .map(|(result, _exit)| *result)
        .collect();
    let what = told.first().map(|result| match (result.problems.first(), result.unknown.first()) {
        (Some(problem), _) => problem.what.clone(),
        (None, Some(unread)) => format!("`{}` is unknown: {}", result.rule.id, unread.why),
        (None, None) => result.rule.summary.to_owned(),
    });
    let checks = told.iter().map(|result| result.rule.id.to_owned()).collect();
    Refused { what: what.unwrap_or_else(|| report::summary(report)), checks, exit }
}

/// What a failed check says about the job: the code that it would end with on any machine, or
/// `Preflight` if it is about this one.
fn blame(result: &CheckResult, storage: &[Storage], cluster: &Cluster) -> TrainerExit {
    if result.verdict != doctor::Verdict::Fail {
        return TrainerExit::Preflight;
    }
    match result.rule.id {
        "data-unusable" | "weights-are-pointers" => TrainerExit::Data,
        "weights-missing" => TrainerExit::InputMissing,
        "storage-unwritable" if storage.iter().any(is_missing) => TrainerExit::InputMissing,
        "storage-unwritable" | "disk-short" => {
            let at = |place| storage.iter().find(move |folder| folder.place == place);
            let shared = at(Place::Output).is_some_and(|output| is_shared(&output.path, cluster));
            let own = at(Place::Temporary).is_some_and(|folder| !folder.writable);
            if shared && !own { TrainerExit::CheckpointIo } else { TrainerExit::Preflight }
        }
        _other => TrainerExit::Preflight,
    }
}

/// An input that this user cannot read.
fn is_missing(folder: &Storage) -> bool {
    matches!(folder.place, Place::Model | Place::Data) && !folder.readable
}

/// Whether a path lies on a claim, which all nodes see alike.
fn is_shared(path: &str, cluster: &Cluster) -> bool {
    let holds = |mount: &str| Path::new(path).starts_with(mount);
    let volumes = cluster.volumes.iter().filter(|volume| holds(&volume.mount_path));
    let nearest = volumes.max_by_key(|volume| volume.mount_path.len());
    nearest.is_some_and(|volume| volume.persistent_volume_claim.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{facts::Mount, job::Volume};

    fn folder(place: Place, path: &str, works: bool) -> Storage {
        Storage {
            place,
            path: path.to_owned(),
            nearest: if works { path } else { "/" }.to_owned(),
            mount: Mount { total_bytes: 1, free_bytes: 0 },
            free_inodes: None,
            readable: works,
            writable: works,
            kind: None,
            bytes: None,
            fingerprint: None,
            weights: None,
        }
    }

    fn failed(id: &str) -> CheckResult {
        let rule = doctor::rule(id).unwrap();
        CheckResult {
            rule,
            subject: doctor::Subject::All,
            verdict: doctor::Verdict::Fail,
            problems: doctor::Few::default(),
            unknown: doctor::Few::default(),
            evidence: [].into(),
            conflicts: doctor::Few::default(),
            skipped: None,
        }
    }

    #[test]
    fn what_is_wrong_on_every_node_is_the_jobs() {
        let volume = |claim: bool| Volume {
            name: "data".to_owned(),
            mount_path: "/data".to_owned(),
            persistent_volume_claim: claim.then(|| "data".to_owned()),
            host_path: (!claim).then(|| "/srv".to_owned()),
            read_only: false,
        };
        let cluster = |claim| Cluster { volumes: vec![volume(claim)], ..Cluster::default() };
        let output = folder(Place::Output, "/data/out", false);
        let model = folder(Place::Model, "/data/base", false);
        let fine = folder(Place::Model, "/data/base", true);
        let temporary = folder(Place::Temporary, "/tmp", false);
        let cases = [
            ("data-unusable", vec![fine.clone()], true, TrainerExit::Data),
            ("storage-unwritable", vec![model, output.clone()], true, TrainerExit::InputMissing),
            (
                "storage-unwritable",
                vec![fine.clone(), output.clone()],
                true,
                TrainerExit::CheckpointIo,
            ),
            (
                "storage-unwritable",
                vec![fine.clone(), output.clone()],
                false,
                TrainerExit::Preflight,
            ),
            ("storage-unwritable", vec![output.clone(), temporary], true, TrainerExit::Preflight),
            ("disk-short", vec![output.clone()], true, TrainerExit::CheckpointIo),
            ("disk-short", vec![output], false, TrainerExit::Preflight),
            ("weights-missing", vec![fine.clone()], true, TrainerExit::InputMissing),
            ("weights-are-pointers", vec![fine.clone()], true, TrainerExit::Data),
            ("gpu-lost", vec![fine], true, TrainerExit::Preflight),
        ];
        for (id, storage, claim, expected) in cases {
            assert_eq!(blame(&failed(id), &storage, &cluster(claim)), expected, "{id} {claim}");
        }
    }

    #[test]
    fn a_file_that_is_missing_is_told_from_one_that_is_broken_and_from_a_dead_disk() {
        use std::io;
        let of = |kind: ErrorKind| {
            let error = anyhow::Error::new(io::Error::from(kind)).context("failed to read `a`");
            exit_of_plan(&CliError::of(crate::wire::ExitStatus::Usage, error))
        };
        assert_eq!(of(ErrorKind::NotFound), TrainerExit::InputMissing);
        assert_eq!(of(ErrorKind::PermissionDenied), TrainerExit::InputMissing);
        assert_eq!(of(ErrorKind::StaleNetworkFileHandle), TrainerExit::Preflight);
        let words = CliError::new(crate::wire::ExitStatus::Usage, "`hidden_size` is missing");
        assert_eq!(exit_of_plan(&words), TrainerExit::Data);
    }
}
