//! What writing tells about a folder: `storage-broken`, `checkpoint-slow`, `fsync-slow`.

use super::active::{facts, rate, time};
use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Problem, Rule, Severity, Stop,
        table,
    },
    facts::{Ended, Fact, NodeFacts, Place, StorageResult, StorageTest, Unread},
};

pub(super) static STORAGE_BROKEN: Rule = Rule {
    id: "storage-broken",
    summary: "what is written to the output folder comes back",
    area: Area::Storage,
    severity: Severity::Block,
    applies: Applies::Always,
    source: "fsync(2), rename(2); Pillai et al., OSDI 2014 (what applications need of a file system)",
    docs: "A checkpoint is written, synced, renamed, and read back after a failure. A network file \
           system that has lost its server lets open(2) succeed and hangs in fsync(2); a disk that \
           dies gives an error there and nowhere else. This test writes at most 256 MiB and reads \
           them back; it needs --active.",
    reads: "write, fsync, read, rename and fsync of the folder, in a child that is killed after \
            30 s of silence",
    fix: "look at the kernel log and the server of the folder; name another spec.output",
    check: Check::Node(broken),
};

pub(super) static CHECKPOINT_SLOW: Rule = Rule {
    id: "checkpoint-slow",
    summary: "a checkpoint is written within the time that a pod has to end",
    area: Area::Storage,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "terminationGracePeriodSeconds of the job's pods (60 s); half of it is a proposal",
    docs: "All ranks wait while rank 0 writes a checkpoint. A job that is asked to leave saves \
           first, and has 60 seconds for it; what takes longer is lost at every preemption. The \
           time is that of this job's checkpoint at the speed that was measured; it needs \
           --active.",
    reads: "the time to write and sync up to 256 MiB in the output folder",
    fix: "a faster folder for spec.output, a smaller spec.method.rank, or checkpoints less often",
    check: Check::Node(slow),
};

pub(super) static FSYNC_SLOW: Rule = Rule {
    id: "fsync-slow",
    summary: "the output folder answers fsync quickly",
    area: Area::Storage,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "a proposal; etcd wants 10 ms (https://etcd.io/docs/v3.5/op-guide/hardware/)",
    docs: "Every file of a run that must survive a crash is synced. Half a second for each of \
           them is a disk that others keep busy, or one that is about to fail. It needs --active.",
    reads: "16 times 4 KiB and fsync in the output folder",
    fix: "find who else writes there (iostat -x 1), or name another spec.output",
    check: Check::Node(latency),
};

/// Half of the time that a pod has to end.
const CHECKPOINT_SECONDS: f64 = 30.0;
const FSYNC_US: u64 = 500_000;

/// Judges each folder that was written to.
fn each(
    node: &NodeFacts,
    mut judge: impl FnMut(&Fact<Vec<StorageTest>>, &StorageTest) -> Result<Judgement, Unread>,
) -> Outcome {
    let fact = &facts(node)?.storage;
    let mut all = Judgement::default();
    for folder in fact.get()? {
        match judge(fact, folder) {
            Ok(judgement) => {
                all.problems.extend(judgement.problems);
                all.evidence.extend(judgement.evidence);
            }
            Err(unread) => all.unknown.push(unread),
        }
    }
    if all == Judgement::default() {
        return Err(Stop::skip("no folder was written to (--job FILE or --active-path DIR)"));
    }
    Ok(all)
}

/// The numbers of a folder that works.
fn works(folder: &StorageTest) -> Result<&StorageResult, Unread> {
    let from = "write, fsync, read, rename".to_owned();
    match &folder.ended {
        Ended::Done(result) if result.error.is_none() => Ok(result),
        Ended::Done(_) | Ended::Hung { .. } => {
            let why = format!("`{}` does not work: see storage-broken", folder.path);
            Err(Unread { why, from })
        }
        Ended::Crashed { message } => {
            Err(Unread { why: format!("the test of `{}` died: {message}", folder.path), from })
        }
    }
}

fn broken(node: &NodeFacts, demand: &Demand) -> Outcome {
    each(node, |fact, folder| {
        let (value, what) = match &folder.ended {
            Ended::Done(result) => match (&result.error, result.wrong_bytes) {
                (Some(error), _) => (error.clone(), Some(error.clone())),
                (None, 0) => (fine(result), None),
                (None, wrong) => {
                    let what = format!("{wrong} of {} bytes came back different", result.bytes);
                    (what.clone(), Some(what))
                }
            },
            Ended::Hung { step, after_ms } => {
                let what = format!("no answer for {} s: {step}", after_ms / 1000);
                (what.clone(), Some(what))
            }
            Ended::Crashed { .. } => return Err(works(folder).expect_err("it died")),
        };
        let problem = what.map(|what| Problem {
            severity: Severity::Block,
            what: format!("`{}`: {what}", folder.path),
            impact: format!("{} fails or hangs when it saves a checkpoint there", demand.name()),
            fix: STORAGE_BROKEN.fix.to_owned(),
            see: format!("df -h '{0}'; stat -f '{0}'; dmesg | tail", folder.path),
        });
        let evidence = Evidence::of(fact, value, "all bytes come back, nothing fails or hangs");
        Ok(Judgement::from_option(problem, evidence.about(folder.path.as_str())))
    })
}

fn fine(result: &StorageResult) -> String {
    format!(
        "{} written at {}, read at {}, rename {}, {} free",
        table::bytes(result.bytes),
        rate(speed(result)),
        rate(result.bytes as f64 / result.read_seconds.max(1e-9)),
        time(result.rename_us),
        table::bytes(result.free_bytes)
    )
}

/// Bytes per second that reach the disk.
fn speed(result: &StorageResult) -> f64 {
    result.bytes as f64 / result.write_seconds.max(1e-9)
}

fn slow(node: &NodeFacts, demand: &Demand) -> Outcome {
    facts(node)?;
    let Some(checkpoints) = demand.checkpoints else {
        return Err(Stop::skip("the size of a checkpoint is not known (--job FILE)"));
    };
    each(node, |fact, folder| {
        if folder.place.is_some_and(|place| place != Place::Output) {
            return Ok(Judgement::default());
        }
        let result = works(folder)?;
        let seconds = checkpoints.bytes as f64 / speed(result)
            + (result.fsync_median_us + result.rename_us) as f64 / 1e6;
        let size = table::bytes(checkpoints.bytes);
        let text = format!("{seconds:.1} s for {size} at {}", rate(speed(result)));
        let problem = (CHECKPOINT_SECONDS < seconds).then(|| Problem {
            severity: Severity::Warn,
            what: format!(
                "`{}`: a checkpoint of {size} takes {seconds:.0} s at {} (at most 30 s)",
                folder.path,
                rate(speed(result))
            ),
            impact: format!(
                "all ranks of {} wait so long at every save, and a preempted pod is killed before \
                 it has saved",
                demand.name()
            ),
            fix: CHECKPOINT_SLOW.fix.to_owned(),
            see: format!("dd if=/dev/zero of='{}/x' bs=8M count=32 conv=fsync", folder.path),
        });
        let evidence = Evidence::of(fact, text, "at most 30 s").about(folder.path.as_str());
        Ok(Judgement::from_option(problem, evidence))
    })
}

fn latency(node: &NodeFacts, demand: &Demand) -> Outcome {
    each(node, |fact, folder| {
        let result = works(folder)?;
        let (median, longest) = (time(result.fsync_median_us), time(result.fsync_longest_us));
        let problem = (FSYNC_US < result.fsync_median_us).then(|| Problem {
            severity: Severity::Warn,
            what: format!("`{}`: fsync takes {median} (at most 500 ms)", folder.path),
            impact: format!("every save of {} takes seconds longer than its bytes", demand.name()),
            fix: FSYNC_SLOW.fix.to_owned(),
            see: "iostat -x 1 5".to_owned(),
        });
        let text = format!("median {median}, longest {longest}");
        let evidence = Evidence::of(fact, text, "median at most 500 ms");
        Ok(Judgement::from_option(problem, evidence.about(folder.path.as_str())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{
        Verdict, diagnose,
        testing::{change, demand, fleet},
    };

    fn verdict(id: &str, ended: Ended<StorageResult>) -> (Verdict, String) {
        let mut snapshot = fleet(1);
        let node = snapshot.nodes.values_mut().next().unwrap();
        let active = node.active.as_mut().unwrap();
        change(&mut active.storage, |folders| folders[0].ended = ended);
        let report = diagnose(&snapshot, &demand());
        let result = report.results.iter().find(|result| result.rule.id == id).unwrap();
        (result.verdict, result.problems.first().map(|p| p.what.clone()).unwrap_or_default())
    }

    #[test]
    fn a_hang_and_an_error_block_and_a_crash_is_unknown() {
        let hung = Ended::Hung { step: "fsync in /data".to_owned(), after_ms: 30_000 };
        let (found, what) = verdict("storage-broken", hung.clone());
        assert_eq!((found, what.contains("no answer for 30 s: fsync")), (Verdict::Fail, true));
        // Of its speed nothing is known.
        assert_eq!(verdict("checkpoint-slow", hung.clone()).0, Verdict::Unknown);
        assert_eq!(verdict("fsync-slow", hung).0, Verdict::Unknown);
        let error = Some("fsync: Input/output error (os error 5)".to_owned());
        let failed = Ended::Done(StorageResult { error, ..StorageResult::default() });
        let (found, what) = verdict("storage-broken", failed);
        assert_eq!((found, what.contains("Input/output error")), (Verdict::Fail, true));
        let crashed = Ended::Crashed { message: "signal: 9".to_owned() };
        assert_eq!(verdict("storage-broken", crashed).0, Verdict::Unknown);
    }

    #[test]
    fn the_time_of_a_checkpoint_is_that_of_its_size() {
        let at = |bytes: u64, write_seconds: f64| {
            let numbers = StorageResult { bytes, write_seconds, ..StorageResult::default() };
            verdict("checkpoint-slow", Ended::Done(numbers))
        };
        // The checkpoint of the test's job has 1 GiB.
        assert_eq!(at(1 << 28, 1.0).0, Verdict::Pass);
        let (found, what) = at(1 << 28, 10.0);
        assert_eq!(found, Verdict::Warn);
        assert!(what.contains("a checkpoint of 1.0 GiB takes 40 s at 27 MB/s"), "{what}");
    }
}
