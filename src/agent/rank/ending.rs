//! How epochs and pods end: what is left behind, and how long the broker is waited for.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{Next, Pod, Refused, Supervisor, TICK, dialogue::Answer, ledger};
use crate::{
    api::job::LastFailure,
    wire::{
        TrainerExit,
        sync::{PodPhase, SyncReply},
    },
};

/// A pod whose ranks are done does not wait for ever for a broker that is away.
const DONE_ALONE: Duration = Duration::from_secs(60);
/// A pod that leaves tells the broker, if it is there.
const FAREWELL: Duration = Duration::from_secs(2);

impl Supervisor<'_> {
    /// Reports how the epoch ended here, and waits for what the broker makes of it.
    pub(super) fn after_epoch(&mut self) -> Next {
        let epoch = self.epoch;
        if self.ledger.is_success() {
            self.say(PodPhase::Done { epoch });
            return self.until_told(DONE_ALONE, 0);
        }
        let failure = self.ledger.failure();
        self.leave_word(&failure);
        let code = self.ledger.exit_code();
        let ends = self.ledger.reports(Instant::now());
        self.say(PodPhase::Ended { epoch, ends });
        if self.is_leaving() {
            return Next::Exit(self.farewell(code));
        }
        self.until_told(self.pod.alone, code)
    }

    /// Waits for an order; the pod ends by itself when the broker was away so long.
    fn until_told(&mut self, alone: Duration, code: u8) -> Next {
        let mut heard = Instant::now();
        loop {
            self.reaper.reap();
            match self.dialogue.answer() {
                Some(Answer::Reply(SyncReply::Exit { code, success })) => {
                    // A success leaves no failure behind.
                    if success {
                        self.forget_word();
                    }
                    return Next::Exit(code);
                }
                Some(Answer::Reply(SyncReply::Rejoin)) => return Next::Join,
                Some(Answer::Superseded) => return Next::Exit(TrainerExit::Transient.code()),
                Some(Answer::Reply(
                    SyncReply::Continue
                    | SyncReply::Meet { .. }
                    | SyncReply::Stop
                    | SyncReply::Start { .. },
                )) => {
                    heard = Instant::now();
                }
                None => {}
            }
            if alone <= heard.elapsed() || self.is_leaving() {
                return Next::Exit(self.farewell(code));
            }
            thread::sleep(TICK);
        }
    }

    /// Waits a moment for the broker to hear the last words.
    pub(super) fn farewell(&mut self, code: u8) -> u8 {
        self.dialogue.change(|request| request.leaving = self.is_leaving());
        self.until_exit(FAREWELL, code)
    }

    /// Waits for an answer to the last words; the broker may know a better exit code.
    fn until_exit(&mut self, limit: Duration, code: u8) -> u8 {
        let until = Instant::now() + limit;
        while Instant::now() < until {
            self.reaper.reap();
            match self.dialogue.answer() {
                Some(Answer::Reply(SyncReply::Exit { code, .. })) => return code,
                Some(Answer::Reply(_)) if self.is_leaving() => return code,
                Some(Answer::Reply(_) | Answer::Superseded) | None => {}
            }
            thread::sleep(TICK);
        }
        code
    }

    /// The machine, or the job, failed its test: the broker hears of it, if it is there.
    pub(super) fn refuse(&mut self, refused: Refused) -> u8 {
        let failure = self.ledger.refused(&refused);
        self.leave_word(&failure);
        let Refused { what, checks, exit } = refused;
        self.say(PodPhase::Refused { what, checks, exit: Some(exit) });
        self.until_exit(FAREWELL * 5, exit.code())
    }

    /// Leaves the failure where the kubelet finds it.
    pub(super) fn leave_word(&self, failure: &LastFailure) {
        let text = ledger::termination_message(failure);
        let _written = std::fs::write(&self.pod.termination_log, text);
    }

    fn forget_word(&self) {
        if self.pod.termination_log.exists() {
            let _written = std::fs::write(&self.pod.termination_log, "");
        }
    }
}

/// The broker was away for too long, and no rank has run.
pub(super) fn give_up(pod: &Pod) -> u8 {
    let seconds = pod.alone.as_secs();
    tracing::error!("the broker was away for {seconds} s: the pod gives its place back");
    TrainerExit::Transient.code()
}
