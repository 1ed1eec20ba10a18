//! `storage-unwritable` and `disk-short`.

use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Problem, Rule, Severity, Stop,
        Value, table,
    },
    facts::{NodeFacts, Place, Storage},
};

pub(super) static STORAGE_UNWRITABLE: Rule = Rule {
    id: "storage-unwritable",
    summary: "folders of the job can be read and written",
    area: Area::Storage,
    severity: Severity::Block,
    applies: Applies::Always,
    source: "leptonai/gpud disk component",
    docs: "The output folder and TMPDIR must be writable, the model and data readable, by the user \
           that runs the ranks. Otherwise the job trains until its first save, and fails.",
    reads: "access(2) of the job's folders",
    fix: "mount the folder, or change its owner or mode",
    check: Check::Node(unwritable),
};

pub(super) static DISK_SHORT: Rule = Rule {
    id: "disk-short",
    summary: "checkpoints fit on the disk",
    area: Area::Storage,
    severity: Severity::Block,
    applies: Applies::Always,
    source: "leptonai/gpud (under 500 MB free); checkpoints are those of the job",
    docs: "A checkpoint is written beside the old ones before one of them is removed, so one more \
           than spec.checkpoint.keep must fit.",
    reads: "statvfs of the job's folders",
    fix: "free space, name another spec.output, or keep fewer checkpoints",
    check: Check::Node(short),
};

const LEAST_FREE: u64 = 500_000_000;

fn unwritable(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.storage;
    let mut judgement = Judgement::default();
    for folder in fact.get()? {
        let write = matches!(folder.place, Place::Output | Place::Temporary);
        let fine = if write { folder.writable } else { folder.readable };
        let verb = if write { "written" } else { "read" };
        let evidence = Evidence::of(fact, fine, format!("can be {verb}"));
        judgement.evidence.push(evidence.about(folder.path.as_str()));
        if fine {
            continue;
        }
        let is_missing = !write && folder.nearest != folder.path;
        judgement.problems.push(Problem {
            severity: Severity::Block,
            what: if is_missing {
                format!("`{}` ({}) does not exist", folder.path, place(folder))
            } else {
                format!("`{}` ({}) cannot be {verb} by this user", folder.path, place(folder))
            },
            impact: format!("{} fails when it opens or saves a file there", demand.name()),
            fix: if is_missing {
                "correct the path in the job file, or put the file there".to_owned()
            } else {
                format!("give this user access to `{}`, or name another folder", folder.nearest)
            },
            see: format!("ls -ld '{}'; id", folder.nearest),
        });
    }
    if judgement.evidence.is_empty() {
        return Err(Stop::skip("no folder was looked at"));
    }
    Ok(judgement)
}

fn place(folder: &Storage) -> &'static str {
    match folder.place {
        Place::Output => "output",
        Place::Temporary => "temporary files",
        Place::Model => "model",
        Place::Data => "data",
    }
}

fn short(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.storage;
    let mut judgement = Judgement::default();
    for folder in fact.get()? {
        let (need, how) = match (folder.place, demand.checkpoints) {
            (Place::Output, Some(checkpoints)) => {
                let bytes = checkpoints.bytes * checkpoints.kept + LEAST_FREE;
                let each = table::bytes(checkpoints.bytes);
                (bytes, format!("{} checkpoints of {each} and 500 MB", checkpoints.kept))
            }
            (Place::Output | Place::Temporary, _) => (LEAST_FREE, "500 MB".to_owned()),
            (Place::Model | Place::Data, _) => continue,
        };
        let free = folder.mount.free_bytes;
        let evidence = Evidence::of(fact, Value::Bytes(free), format!("at least {how}"));
        judgement.evidence.push(evidence.about(folder.path.as_str()));
        let no_inodes = folder.free_inodes == Some(0) && 0 < folder.mount.total_bytes;
        if need <= free && !no_inodes {
            continue;
        }
        judgement.problems.push(Problem {
            severity: if folder.place == Place::Output { Severity::Block } else { Severity::Warn },
            what: format!(
                "`{}` has {} free{} ({how} needed)",
                folder.path,
                table::bytes(free),
                if no_inodes { " and no inode" } else { "" }
            ),
            impact: format!("{} cannot save its checkpoints", demand.name()),
            fix: "free space, name another spec.output, or lower spec.checkpoint.keep".to_owned(),
            see: format!("df -h '{0}'; df -i '{0}'", folder.nearest),
        });
    }
    if judgement.evidence.is_empty() {
        return Err(Stop::skip("no folder was looked at"));
    }
    Ok(judgement)
}
