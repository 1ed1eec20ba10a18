//! What happens after an attempt: who is to blame, and whether to try again. Pure.

use std::time::Duration;

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
    /// It was killed because no step ended for too long.
    pub stalled: bool,
    /// Last words of the rank, and the peer that it blames.
    pub message: Option<String>,
    pub hint: Option<String>,
    pub peer: Option<u32>,
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

/// The rank that failed first and is no victim of another. A rank that lost its peer is a victim
/// always; if all say so, the peer that the first of them names is the culprit.
pub fn culprit(ends: &[RankEnd]) -> Option<&RankEnd> {
    let failed = || ends.iter().filter(|end| end.exit != Some(TrainerExit::Success));
    let own = failed().find(|end| !end.swept && end.exit != Some(TrainerExit::PeerLost));
    let named = || {
        let peer = failed().find_map(|end| end.peer)?;
        ends.iter().find(|end| end.rank == peer)
    };
    own.or_else(named).or_else(|| failed().next())
}

/// The decision table. `restarts` counts those already made; `stopping` is set once the user
/// asked the run to end.
pub fn decide(ends: &[RankEnd], restarts: u32, max_restarts: u32, stopping: bool) -> Action {
    if ends.iter().all(|end| end.exit == Some(TrainerExit::Success)) {
        return Action::Succeed;
    }
    if stopping {
        return Action::Stop;
    }
    let exit = culprit(ends).and_then(|end| end.exit);
    if exit.is_some_and(TrainerExit::is_permanent) {
        return Action::Fail { why: "a restart cannot help: the input has to change first" };
    }
    if max_restarts <= restarts {
        return Action::Fail { why: "all restarts are used up" };
    }
    Action::Restart { after: Duration::from_secs(1 << restarts.min(5)) }
}

/// What happened to a rank, in words.
pub fn describe(end: &RankEnd) -> String {
    if end.stalled {
        return "made no step for too long and was killed".to_owned();
    }
    if let Some(signal) = end.signal {
        return match signal {
            9 => "was killed (signal 9): by the kernel if memory ran out, or by hand".to_owned(),
            7 => "died of SIGBUS: /dev/shm or a memory-mapped file was cut short".to_owned(),
            11 => "died of SIGSEGV: a crash in native code".to_owned(),
            15 => "was terminated (signal 15) before it could save".to_owned(),
            other => format!("died of signal {other}"),
        };
    }
    match (&end.message, end.code) {
        (Some(message), _) => message.clone(),
        (None, Some(code)) => format!("ended with code {code} and said nothing"),
        (None, None) => "ended for an unknown reason".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(rank: u32, exit: TrainerExit) -> RankEnd {
        RankEnd {
            rank,
            exit: Some(exit),
            signal: None,
            code: Some(i32::from(exit.code())),
            swept: false,
            stalled: false,
            message: None,
            hint: None,
            peer: None,
        }
    }

    fn killed(rank: u32) -> RankEnd {
        RankEnd { exit: None, signal: Some(9), code: None, ..end(rank, TrainerExit::Internal) }
    }

    #[test]
    fn a_victim_that_ends_first_is_not_blamed() {
        let victim = RankEnd { peer: Some(1), ..end(0, TrainerExit::PeerLost) };
        assert_eq!(culprit(&[victim.clone(), killed(1)]).unwrap().rank, 1);
        // The culprit was swept up with the others before it could tell.
        let silent = RankEnd { swept: true, ..killed(1) };
        assert_eq!(culprit(&[victim, silent]).unwrap().rank, 1);
    }

    #[test]
    fn every_exit_has_its_action() {
        use TrainerExit::{
            CheckpointIo, Config, Data, DeviceOutOfMemory, Diverged, GpuFault, InputMissing,
            Internal, PeerLost, Preempted, Preflight, RestartContainers, Stalled, Transient, Usage,
        };
        let again = Action::Restart { after: Duration::from_secs(1) };
        for exit in [
            Internal,
            CheckpointIo,
            Transient,
            PeerLost,
            GpuFault,
            DeviceOutOfMemory,
            Preflight,
            Preempted,
            Stalled,
            RestartContainers,
        ] {
            assert_eq!(decide(&[end(0, exit)], 0, 3, false), again, "{exit:?}");
        }
        for exit in [Usage, Data, InputMissing, Config, Diverged] {
            let action = decide(&[end(0, exit)], 0, 3, false);
            assert!(matches!(action, Action::Fail { .. }), "{exit:?}");
        }
        assert_eq!(decide(&[killed(0)], 0, 3, false), again);
        assert!(matches!(decide(&[killed(0)], 3, 3, false), Action::Fail { .. }));
        assert_eq!(decide(&[end(0, Preempted)], 0, 3, true), Action::Stop);
        assert_eq!(decide(&[end(0, TrainerExit::Success)], 0, 3, true), Action::Succeed);
    }
}
