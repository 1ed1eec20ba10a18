//! The test of the network, once all pods are there and before the first epoch.

use std::{thread, time::Instant};

use super::{Lines, Supervisor, TICK, dialogue::Answer, ending::give_up, say_line};
use crate::{
    probe::way::{self, OpenDoor},
    wire::{
        TrainerExit,
        pairs::Peer,
        sync::{PodPhase, SyncReply},
    },
};

impl Supervisor<'_> {
    /// Opens the door, waits for the other pods, tests the ways to some of them. What it finds goes
    /// to the broker with the next words; a code if the pod has to end.
    pub(super) fn meet(&mut self, lines: Lines<'_>) -> Result<(), u8> {
        if self.pod.pods < 2 || !self.pod.test_network {
            return Ok(());
        }
        let open = match OpenDoor::open() {
            Ok(open) => open,
            Err(error) => {
                tracing::warn!("the network is not tested: failed to listen: {error}");
                return Ok(());
            }
        };
        self.dialogue.change(|request| request.door = Some(open.door.clone()));
        self.open = Some(open);
        let peers = self.wait_for_peers()?;
        if peers.is_empty() {
            return Ok(());
        }
        let begin = Instant::now();
        let reports = way::test(&peers);
        let notes: Vec<String> = self.name_of_master(&peers).into_iter().collect();
        let mut say = |text: &str| {
            let rank = self.pod.index * self.pod.ranks;
            say_line(rank, text);
            lines(rank, 0, text);
        };
        for (report, peer) in reports.iter().zip(&peers) {
            say(&way::describe(report, &peer.node));
        }
        notes.iter().for_each(|note| say(&format!("network: {note}")));
        say(&format!("network: tested in {:.1} s", begin.elapsed().as_secs_f64()));
        self.dialogue.change(|request| {
            request.pairs = reports;
            request.notes = notes;
        });
        Ok(())
    }

    fn wait_for_peers(&mut self) -> Result<Vec<Peer>, u8> {
        let mut heard = Instant::now();
        loop {
            self.reaper.reap();
            if self.is_leaving() {
                self.say(PodPhase::Preflight);
                return Err(self.farewell(TrainerExit::Preempted.code()));
            }
            if self.pod.alone <= heard.elapsed() {
                return Err(give_up(self.pod));
            }
            match self.dialogue.answer() {
                Some(Answer::Reply(SyncReply::Meet { peers })) => return Ok(peers),
                Some(Answer::Reply(SyncReply::Exit { code, .. })) => return Err(code),
                Some(Answer::Superseded) => return Err(TrainerExit::Transient.code()),
                Some(Answer::Reply(
                    SyncReply::Continue
                    | SyncReply::Start { .. }
                    | SyncReply::Rejoin
                    | SyncReply::Stop,
                )) => heard = Instant::now(),
                None => {}
            }
            thread::sleep(TICK);
        }
    }

    /// What is wrong with the name of the pod of rank 0, if its address is known here. Ranks meet
    /// by addresses, so this only tells that DNS is in trouble.
    fn name_of_master(&self, peers: &[Peer]) -> Option<String> {
        let master = peers.iter().find(|peer| peer.index == 0)?;
        let (job, namespace) = (&self.pod.job, &self.pod.namespace);
        let name = format!("{job}-a{}-0.{job}.{namespace}.svc", self.pod.attempt);
        way::look_up(&name, &master.address)
    }

    /// The ranks start: nobody tests any more.
    pub(super) fn close_door(&mut self) {
        self.open = None;
        self.dialogue.change(|request| {
            request.door = None;
            request.pairs.clear();
            request.notes.clear();
        });
    }
}
