//! What the broker's answers and the kubelet's signal mean for trainers that run.

use super::dialogue::Answer;
use crate::{
    launch::attempt::Request,
    wire::{TrainerExit, sync::SyncReply},
};

/// What the trainers of an epoch are asked to do: it only gets more urgent.
#[derive(Debug)]
pub(super) struct Wanted {
    pub request: Request,
    /// The pod ends with this code, whatever its trainers say.
    pub exit: Option<u8>,
}

impl Default for Wanted {
    fn default() -> Self {
        Wanted { request: Request::Nothing, exit: None }
    }
}

impl Wanted {
    pub(super) fn at_least(&mut self, request: Request) {
        let urgency = |request: Request| match request {
            Request::Nothing => 0,
            Request::Stop => 1,
            Request::Sweep => 2,
            Request::Kill => 3,
        };
        if urgency(self.request) < urgency(request) {
            self.request = request;
        }
    }

    pub(super) fn hear(&mut self, answer: Option<&Answer>, epoch: u32) {
        match answer {
            Some(Answer::Reply(SyncReply::Stop)) => self.at_least(Request::Stop),
            Some(Answer::Reply(SyncReply::Rejoin)) => self.at_least(Request::Sweep),
            Some(Answer::Reply(SyncReply::Exit { code, .. })) => {
                self.exit = Some(*code);
                self.at_least(Request::Kill);
            }
            Some(Answer::Superseded) => {
                self.exit = Some(TrainerExit::Transient.code());
                self.at_least(Request::Kill);
            }
            Some(Answer::Reply(SyncReply::Start { epoch: other, .. })) if epoch < *other => {
                self.at_least(Request::Sweep);
            }
            Some(Answer::Reply(
                SyncReply::Start { .. } | SyncReply::Continue | SyncReply::Meet { .. },
            ))
            | None => {}
        }
    }
}
