//! Who is to blame for an epoch that ended early, over all pods, and what follows.

use std::time::{Duration, Instant};

use crate::{
    api::job::LastFailure,
    launch::{
        ladder::{self, Action, Class, History, RankEnd},
        pulse::Silence,
        text,
    },
    wire::{TrainerExit, sync::RankReport},
};

/// Longest tail that is kept, in bytes.
const TAIL: usize = 2048;
/// Longest message or hint that is kept, in bytes.
const WORDS: usize = 1024;

/// How a rank ended, when and where.
#[derive(Clone, Debug)]
pub(super) struct Account {
    pub report: RankReport,
    /// When the first sign of it was seen, by the clock of the operator.
    pub at: Instant,
    node: String,
}

impl Account {
    pub(super) fn new(report: RankReport, now: Instant, node: &str) -> Self {
        let age = Duration::from_millis(report.age_ms);
        let at = now.checked_sub(age).unwrap_or(now);
        Account { report, at, node: node.to_owned() }
    }

    fn end(&self) -> RankEnd {
        let RankReport { rank, exit, code, signal, swept, .. } = self.report;
        let silence = |seconds| Silence { rank, seconds, median: 0.0, limit: 0.0 };
        RankEnd {
            rank,
            exit,
            signal,
            code,
            swept,
            stalled: self.report.stalled_seconds.map(silence),
            memory_kills: Some(u64::from(self.report.memory_kill)),
            message: self.report.message.clone(),
            hint: self.report.hint.clone(),
            peer: self.report.peer,
        }
    }

    fn failed(&self) -> bool {
        self.report.exit != Some(TrainerExit::Success)
    }

    /// It ended because of another rank, or well.
    pub(super) fn is_victim(&self) -> bool {
        let swept = self.report.swept && self.report.stalled_seconds.is_none();
        swept || self.report.exit == Some(TrainerExit::PeerLost) || !self.failed()
    }

    /// It was asked to end, and saved.
    pub(super) fn has_saved(&self) -> bool {
        self.report.exit == Some(TrainerExit::Preempted)
    }

    /// It ended by itself, not as a victim and not for want of steps.
    fn is_own(&self) -> bool {
        !self.is_victim() && self.report.stalled_seconds.is_none()
    }

    fn exit_code(&self) -> Option<i32> {
        match (self.report.stalled_seconds, self.report.signal) {
            (Some(_), _) => Some(i32::from(TrainerExit::Stalled.code())),
            (None, Some(signal)) => Some(128 + signal),
            (None, None) => self.report.code,
        }
    }

    fn failure(&self, class: Class) -> LastFailure {
        let end = self.end();
        let words = match (&end.message, end.stalled) {
            (Some(message), Some(_)) => message.clone(),
            (Some(_) | None, _) => ladder::describe(&end),
        };
        LastFailure {
            class: class.name().to_owned(),
            rank: end.rank,
            node: self.node.clone(),
            exit_code: self.exit_code(),
            what: text::head(&format!("rank {} {words}", end.rank), WORDS).to_owned(),
            hint: ladder::hint(&end).map(|hint| text::head(&hint, WORDS).to_owned()),
            tail: text::tail(&self.report.tail, TAIL).to_owned(),
            epoch: 0,
            step: 0,
        }
    }
}

impl LastFailure {
    /// The failure with its place in the training.
    pub(super) fn at(self, epoch: u32, step: u64) -> Self {
        LastFailure { epoch, step, ..self }
    }
}

/// What follows.
#[derive(Debug)]
pub(super) enum Verdict {
    Stop,
    /// Nothing has failed, but the epoch cannot go on.
    Nothing,
    Restart {
        after: Duration,
        failure: LastFailure,
    },
    Fail {
        code: u8,
        failure: LastFailure,
    },
}

/// The accounts in the order in which the ladder reads them: by the time of the first sign. Of
/// ranks that stalled together the first is the one to blame: one that was stopped, that others
/// name, that is behind. A rank that fell silent after another had crashed is a victim of that one.
pub(super) fn sorted(mut accounts: Vec<Account>) -> Vec<Account> {
    let crash = accounts.iter().filter(|account| account.is_own()).map(|account| account.at).min();
    for account in &mut accounts {
        if account.report.stalled_seconds.is_some() && crash.is_some_and(|crash| crash < account.at)
        {
            account.report.stalled_seconds = None;
            account.report.swept = true;
        }
    }
    let named: Vec<u32> = accounts.iter().filter_map(|account| account.report.peer).collect();
    let votes = |rank| named.iter().filter(|peer| **peer == rank).count();
    let place = |account: &Account| {
        let RankReport { rank, stopped, stalled_seconds, step, .. } = account.report;
        let suspicion = (!stopped, usize::MAX - votes(rank), step);
        (stalled_seconds.map_or((true, 0, 0), |_| suspicion), account.at, rank)
    };
    accounts.sort_by_key(|account| {
        let ((trusted, votes, step), at, rank) = place(account);
        (account.report.stalled_seconds.is_none(), trusted, votes, step, at, rank)
    });
    accounts
}

/// Class of the failure, if there is one.
pub(super) fn class(sorted: &[Account]) -> Option<Class> {
    let ends: Vec<RankEnd> = sorted.iter().map(Account::end).collect();
    ladder::culprit(&ends).map(ladder::class)
}

/// Decides about accounts in their order.
pub(super) fn judge(sorted: &[Account], history: History, stopping: bool) -> Verdict {
    let ends: Vec<RankEnd> = sorted.iter().map(Account::end).collect();
    let Some(culprit) = ladder::culprit(&ends) else {
        return if stopping { Verdict::Stop } else { Verdict::Nothing };
    };
    let account = sorted.iter().find(|account| account.report.rank == culprit.rank);
    let known = |rank| sorted.iter().any(|account| account.report.rank == rank);
    let told = |account: &Account| match (account.report.exit, account.report.peer) {
        (Some(TrainerExit::PeerLost), Some(peer)) => known(peer),
        (Some(TrainerExit::PeerLost), None) => true,
        (Some(_) | None, _) => !account.is_victim(),
    };
    let Some(account) = account.filter(|_| stopping || sorted.iter().any(told)) else {
        // All are victims of a rank that an operator before this one knew.
        return Verdict::Nothing;
    };
    let failure = account.failure(ladder::class(culprit));
    match ladder::decide(&ends, history, stopping) {
        Action::Succeed => Verdict::Nothing,
        Action::Stop => Verdict::Stop,
        Action::Restart { after } => Verdict::Restart { after, failure },
        Action::Fail { why } => {
            let what = format!("{}; {why}", failure.what);
            let code = account.exit_code().and_then(|code| u8::try_from(code).ok());
            let code = code.filter(|code| *code != 0).unwrap_or(TrainerExit::Internal.code());
            Verdict::Fail { code, failure: LastFailure { what, ..failure } }
        }
    }
}

/// The end of a rank whose pod does not tell how it came.
pub(super) fn unsupervised(rank: u32, step: u64) -> RankReport {
    let what = "lost its supervisor: the container or the pod was started anew";
    RankReport {
        rank,
        exit: None,
        code: None,
        signal: None,
        peer: None,
        swept: false,
        stalled_seconds: None,
        stopped: false,
        memory_kill: false,
        message: Some(what.to_owned()),
        hint: Some("`kubectl describe pod` may tell why".to_owned()),
        tail: String::new(),
        step,
        age_ms: 0,
    }
}

/// The end of a rank whose pod was asked to leave, and is gone.
pub(super) fn departed(rank: u32, step: u64) -> RankReport {
    let exit = TrainerExit::Preempted;
    let code = Some(i32::from(exit.code()));
    let message = Some("left with its pod".to_owned());
    RankReport { exit: Some(exit), code, message, hint: None, ..unsupervised(rank, step) }
}

/// The failure of a pod's own test: of its machine, or, by the exit code, of the job.
pub(super) fn refused(
    rank: u32,
    node: &str,
    what: &str,
    checks: &[String],
    exit: TrainerExit,
) -> LastFailure {
    let checks = checks.join(", ");
    let (what, hint) = if exit == TrainerExit::Preflight {
        (
            format!("node {node} failed its test before the start ({checks}): {what}"),
            format!("`kubectl get nodereport {node} -o yaml` shows what the node has"),
        )
    } else {
        let hint = "it would fail on any node: correct the job file, or the files that it names";
        (format!("the job failed its test before the start ({checks}): {what}"), hint.to_owned())
    };
    LastFailure {
        class: ladder::class_of_test(exit).to_owned(),
        rank,
        node: node.to_owned(),
        exit_code: Some(i32::from(exit.code())),
        what: text::head(&what, WORDS).to_owned(),
        hint: Some(hint),
        tail: String::new(),
        epoch: 0,
        step: 0,
    }
}
