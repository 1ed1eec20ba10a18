//! What happens after an attempt: who is to blame, and whether to try again. Pure.

use std::time::Duration;

use super::pulse::Silence;
use crate::wire::TrainerExit;

/// How one rank ended, in the order in which the ranks ended.
#[derive(Clone, Debug, PartialEq)]
pub struct RankEnd {
    pub rank: u32,
    /// Exit code as the trainer's table knows it; `None` for a signal or an unknown code.
    pub exit: Option<TrainerExit>,
    pub signal: Option<i32>,
    pub code: Option<i32>,
    /// The supervisor killed it because another rank had ended.
    pub swept: bool,
    /// The supervisor killed it because it made no step for so long.
    pub stalled: Option<Silence>,
    /// Processes that the kernel killed for want of memory during the attempt, if it tells.
    pub memory_kills: Option<u64>,
    /// Last words of the rank, and the peer that it blames.
    pub message: Option<String>,
    pub hint: Option<String>,
    pub peer: Option<u32>,
}

/// Kinds of failure that differ in what helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The input, the job or the recipe is wrong.
    Input,
    /// The hardware failed its test.
    Hardware,
    /// The device, or the host, has too little memory for the job.
    Memory,
    /// A crash that may be a bug: an internal error, a signal, an unknown code.
    Crash,
    /// A fault that often goes away: a GPU fault, a full disk, a lost peer, a stall.
    Passing,
}

impl Class {
    /// Name in status and termination messages.
    pub fn name(self) -> &'static str {
        match self {
            Class::Input => "input",
            Class::Hardware => "hardware",
            Class::Memory => "memory",
            Class::Crash => "crash",
            Class::Passing => "passing",
        }
    }
}

/// Name of the class of a test before the start that ended with this code.
pub fn class_of_test(exit: TrainerExit) -> &'static str {
    if exit == TrainerExit::Preflight {
        "preflight"
    } else if exit.is_permanent() {
        Class::Input.name()
    } else {
        "storage"
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// All ranks are done.
    Succeed,
    /// The run was stopped on request.
    Stop,
    /// Try again from the newest checkpoint after a pause.
    Restart { after: Duration },
    /// Give up, and why.
    Fail { why: &'static str },
}

/// What came before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Restarts already made in this launch.
    pub restarts: u32,
    /// Restarts in a row after a failure of the same class, at the same step.
    pub repeats: u32,
    pub max_restarts: u32,
}

/// The rank that failed first and is no victim of another. A rank that lost its peer is a victim
/// always; if all say so, the peer that the first of them names is the culprit.
pub fn culprit(ends: &[RankEnd]) -> Option<&RankEnd> {
    let failed = || ends.iter().filter(|end| end.exit != Some(TrainerExit::Success));
    let stalled = failed().find(|end| end.stalled.is_some());
    let own = || failed().find(|end| !end.swept && end.exit != Some(TrainerExit::PeerLost));
    let named = || {
        let peer = failed().find_map(|end| end.peer)?;
        ends.iter().find(|end| end.rank == peer)
    };
    stalled.or_else(own).or_else(named).or_else(|| failed().next())
}

/// The class of a failure.
pub fn class(end: &RankEnd) -> Class {
    if end.stalled.is_some() {
        return Class::Passing;
    }
    if end.signal == Some(9) && end.memory_kills.is_some_and(|kills| 0 < kills) {
        return Class::Memory;
    }
    let Some(exit) = end.exit else { return Class::Crash };
    match exit {
        TrainerExit::Usage
        | TrainerExit::Data
        | TrainerExit::InputMissing
        | TrainerExit::Config
        | TrainerExit::Diverged => Class::Input,
        TrainerExit::Preflight => Class::Hardware,
        TrainerExit::DeviceOutOfMemory => Class::Memory,
        TrainerExit::Internal => Class::Crash,
        TrainerExit::Success
        | TrainerExit::CheckpointIo
        | TrainerExit::Transient
        | TrainerExit::PeerLost
        | TrainerExit::GpuFault
        | TrainerExit::Preempted
        | TrainerExit::Stalled
        | TrainerExit::RestartContainers => Class::Passing,
    }
}

/// The decision table for an attempt that has ended. `stopping` is set once the user asked the
/// run to end.
pub fn decide(ends: &[RankEnd], history: History, stopping: bool) -> Action {
    if ends.iter().all(|end| end.exit == Some(TrainerExit::Success)) {
        return Action::Succeed;
    }
    if stopping {
        return Action::Stop;
    }
    next(culprit(ends).map_or(Class::Crash, class), history)
}

/// The decision table for a failure of a class.
///
/// | class | restarts |
/// |---|---|
/// | input, hardware | none |
/// | memory | one: the memory may have been taken by another process |
/// | crash | `maxRestarts`, but not after the third crash at the same step |
/// | passing | `maxRestarts` |
pub fn next(class: Class, history: History) -> Action {
    let fail = |why| Action::Fail { why };
    match class {
        Class::Input => return fail("a restart cannot help: the input has to change first"),
        Class::Hardware => return fail("a restart cannot help: this machine failed its test"),
        Class::Memory if 0 < history.repeats => {
            return fail("memory ran out again at the same step");
        }
        Class::Crash if 1 < history.repeats => {
            return fail("it crashed at the same step three times");
        }
        Class::Memory | Class::Crash | Class::Passing => {}
    }
    match history.max_restarts {
        0 => return fail("failure.maxRestarts is 0"),
        max if max <= history.restarts => {
            return fail("all restarts of failure.maxRestarts are used up");
        }
        _ => {}
    }
    // One second at first, half a minute at most: a port or a driver may need the time.
    Action::Restart { after: Duration::from_secs((1 << history.restarts.min(5)).min(30)) }
}

/// What happened to a rank, in words that follow "rank 1".
pub fn describe(end: &RankEnd) -> String {
    if let Some(Silence { seconds, median, limit, .. }) = end.stalled {
        let usual =
            if 0.0 < median { format!(", a step takes {median:.1} s") } else { String::new() };
        return format!(
            "made no step for {seconds:.0} s (limit {limit:.0} s{usual}) and was killed"
        );
    }
    if let Some(signal) = end.signal {
        return match (signal, end.memory_kills) {
            (9, Some(1..)) => "was killed by the kernel: the host ran out of memory".to_owned(),
            (9, Some(0)) => {
                "was killed (signal 9) by a person or a program, not for want of memory".to_owned()
            }
            (9, None) => {
                "was killed (signal 9): by the kernel if memory ran out, or by hand".to_owned()
            }
            (7, _) => "died of SIGBUS: /dev/shm or a memory-mapped file was cut short".to_owned(),
            (11, _) => "died of SIGSEGV: a crash in native code".to_owned(),
            (15, _) => "was terminated (signal 15) before it could save".to_owned(),
            (other, _) => format!("died of signal {other}"),
        };
    }
    match (&end.message, end.code) {
        (Some(message), _) => format!("failed: {message}"),
        (None, Some(code)) => match end.exit {
            Some(exit) => format!("ended with code {code} ({exit:?}) and said nothing"),
            None => format!("ended with code {code}, which no trainer gives, and said nothing"),
        },
        (None, None) => "ended for an unknown reason".to_owned(),
    }
}

/// What the user can do about it.
pub fn hint(end: &RankEnd) -> Option<String> {
    if end.hint.is_some() {
        return end.hint.clone();
    }
    let hint = match (class(end), end.stalled, end.signal) {
        (_, Some(_), _) => {
            "raise failure.stallMultiplier or failure.startupSeconds if such a pause is normal"
        }
        (Class::Memory, _, Some(_)) => {
            "use fewer ranks, a smaller batch.unit or a machine with more memory; `qvl plan` shows the need"
        }
        (Class::Crash, _, Some(7)) => {
            "check the size of /dev/shm, and that no model or data file changes during the run"
        }
        (Class::Crash, _, None) if end.message.is_none() => {
            "the last lines of its log may tell more: `qvl logs JOB --first-error`"
        }
        (Class::Input | Class::Hardware | Class::Memory | Class::Crash | Class::Passing, _, _) => {
            return None;
        }
    };
    Some(hint.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use TrainerExit::{
        CheckpointIo, Config, Data, DeviceOutOfMemory, Diverged, GpuFault, InputMissing, Internal,
        PeerLost, Preempted, Preflight, RestartContainers, Stalled, Success, Transient, Usage,
    };

    fn end(rank: u32, exit: TrainerExit) -> RankEnd {
        RankEnd {
            rank,
            exit: Some(exit),
            signal: None,
            code: Some(i32::from(exit.code())),
            swept: false,
            stalled: None,
            memory_kills: Some(0),
            message: None,
            hint: None,
            peer: None,
        }
    }

    fn killed(rank: u32) -> RankEnd {
        RankEnd { exit: None, signal: Some(9), code: None, ..end(rank, Internal) }
    }

    const FRESH: History = History { restarts: 0, repeats: 0, max_restarts: 3 };

    #[test]
    fn a_victim_that_ends_first_is_not_blamed() {
        let victim = RankEnd { peer: Some(1), ..end(0, PeerLost) };
        assert_eq!(culprit(&[victim.clone(), killed(1)]).unwrap().rank, 1);
        // The culprit was swept up with the others before it could tell.
        let silent = RankEnd { swept: true, ..killed(1) };
        assert_eq!(culprit(&[victim.clone(), silent.clone()]).unwrap().rank, 1);
        // The one that stalled is to blame, although it is killed together with the others.
        let silence = Silence { rank: 2, seconds: 30.0, median: 1.0, limit: 30.0 };
        let stalled = RankEnd { stalled: Some(silence), ..killed(2) };
        assert_eq!(culprit(&[victim, silent, stalled]).unwrap().rank, 2);
        assert_eq!(culprit(&[end(0, Success)]), None);
    }

    #[test]
    fn every_exit_has_its_class() {
        let table = [
            (Usage, Class::Input),
            (Data, Class::Input),
            (InputMissing, Class::Input),
            (Config, Class::Input),
            (Diverged, Class::Input),
            (Preflight, Class::Hardware),
            (DeviceOutOfMemory, Class::Memory),
            (Internal, Class::Crash),
            (CheckpointIo, Class::Passing),
            (Transient, Class::Passing),
            (PeerLost, Class::Passing),
            (GpuFault, Class::Passing),
            (Preempted, Class::Passing),
            (Stalled, Class::Passing),
            (RestartContainers, Class::Passing),
        ];
        for (exit, expected) in table {
            assert_eq!(class(&end(0, exit)), expected, "{exit:?}");
            assert_eq!(expected == Class::Input, exit.is_permanent(), "{exit:?}");
        }
        assert_eq!(class(&killed(0)), Class::Crash);
        assert_eq!(class(&RankEnd { memory_kills: Some(1), ..killed(0) }), Class::Memory);
        assert_eq!(class(&RankEnd { memory_kills: None, ..killed(0) }), Class::Crash);
    }

    /// Restarts for every class, count of restarts, repeats and limit.
    #[test]
    fn the_whole_decision_table() {
        for max_restarts in 0..4 {
            for restarts in 0..4 {
                for repeats in 0..4 {
                    let history = History { restarts, repeats, max_restarts };
                    let left = restarts < max_restarts;
                    let expected = [
                        (Class::Input, false),
                        (Class::Hardware, false),
                        (Class::Memory, left && repeats == 0),
                        (Class::Crash, left && repeats < 2),
                        (Class::Passing, left),
                    ];
                    for (class, restart) in expected {
                        let pause = Duration::from_secs(1 << restarts);
                        let action = next(class, history);
                        let said = format!("{class:?} {history:?}: {action:?}");
                        if restart {
                            assert_eq!(action, Action::Restart { after: pause }, "{said}");
                        } else {
                            assert!(matches!(action, Action::Fail { .. }), "{said}");
                        }
                    }
                }
            }
        }
        let long = History { restarts: 40, repeats: 0, max_restarts: 50 };
        assert_eq!(next(Class::Passing, long), Action::Restart { after: Duration::from_secs(30) });
    }

    #[test]
    fn success_and_a_wanted_stop_are_no_failures() {
        assert_eq!(decide(&[end(0, Success), end(1, Success)], FRESH, true), Action::Succeed);
        assert_eq!(decide(&[end(0, Preempted), killed(1)], FRESH, true), Action::Stop);
        let action = decide(&[end(0, Preempted), killed(1)], FRESH, false);
        assert_eq!(action, Action::Restart { after: Duration::from_secs(1) });
        assert!(matches!(decide(&[end(0, Data)], FRESH, false), Action::Fail { .. }));
    }

    #[test]
    fn a_kill_is_explained_by_what_the_kernel_counts() {
        assert!(describe(&killed(0)).contains("by a person"));
        let starved = RankEnd { memory_kills: Some(2), ..killed(0) };
        assert!(describe(&starved).contains("ran out of memory"));
        assert!(hint(&starved).unwrap().contains("batch.unit"));
        let unsure = RankEnd { memory_kills: None, ..killed(0) };
        assert!(describe(&unsure).contains("or by hand"));
    }
}
