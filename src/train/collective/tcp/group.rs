//! The connected group: one reader and one heartbeat thread per peer, and what they found out.
//!
//! A dead peer is noticed by its reader at once (the connection ends without a farewell), a
//! silent one after the peer timeout: the heartbeat runs beside the computation, so a peer that
//! is merely busy is never silent. The first loss that rank 0 hears of is its verdict, which it
//! sends to all, so that every survivor names the same culprit; a rank that leaves because of a
//! loss names the culprit in its farewell.

use std::collections::VecDeque;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::frame::{self, CHUNK, Header, Kind, ReadError};
use crate::train::collective::{Cause, CollectiveError};

/// Bytes of one peer that wait to be used; then its reader stops reading.
const INBOX_LIMIT: usize = 8 * CHUNK;
/// How long a rank waits for rank 0's verdict, and for its own last frames to be sent.
const GRACE: Duration = Duration::from_millis(400);

/// The shared state of one rank.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) rank: usize,
    pub(super) attempt: u32,
    pub(super) peer_timeout: Duration,
    /// By rank; `None` for this rank itself.
    links: Vec<Option<Link>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct Link {
    address: SocketAddr,
    stream: TcpStream,
    /// Held while a frame is written, so that frames do not mix.
    writing: Mutex<()>,
}

#[derive(Debug)]
struct State {
    inboxes: Vec<Inbox>,
    lost: Option<Lost>,
    /// Whether `lost` is what rank 0 decided.
    settled: bool,
    /// This rank leaves.
    closing: bool,
}

#[derive(Debug, Default)]
struct Inbox {
    frames: VecDeque<(Header, Vec<u8>)>,
    bytes: usize,
    /// The peer said goodbye.
    left: bool,
}

#[derive(Clone, Debug)]
struct Lost {
    rank: usize,
    cause: Cause,
    since: Instant,
}

impl Group {
    /// Starts the threads of a group; `streams` by rank, `None` for this rank.
    pub(super) fn start(
        rank: usize,
        attempt: u32,
        peer_timeout: Duration,
        streams: Vec<Option<(TcpStream, SocketAddr)>>,
    ) -> (Arc<Group>, Vec<JoinHandle<()>>) {
        let inboxes = streams.iter().map(|_| Inbox::default()).collect();
        let link = |(stream, address)| Link { address, stream, writing: Mutex::new(()) };
        let group = Arc::new(Group {
            rank,
            attempt,
            peer_timeout,
            links: streams.into_iter().map(|entry| entry.map(link)).collect(),
            state: Mutex::new(State { inboxes, lost: None, settled: false, closing: false }),
            changed: Condvar::new(),
        });
        let threads = group.peers().flat_map(|peer| {
            let (reader, beater) = (Arc::clone(&group), Arc::clone(&group));
            [
                std::thread::spawn(move || reader.read_all(peer)),
                std::thread::spawn(move || beater.beat(peer)),
            ]
        });
        let threads = threads.collect();
        (group, threads)
    }

    pub(super) fn world(&self) -> usize {
        self.links.len()
    }

    /// The other ranks.
    pub(super) fn peers(&self) -> impl Iterator<Item = usize> + use<> {
        let rank = self.rank;
        (0..self.world()).filter(move |&peer| peer != rank)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics between two changes that belong together, so the state is usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Body of the reader thread of `peer`.
    fn read_all(&self, peer: usize) {
        let Some(link) = &self.links[peer] else { return };
        let mut heard = Instant::now();
        loop {
            let read = frame::read(&link.stream, CHUNK, |progress| {
                if progress {
                    heard = Instant::now();
                }
                self.lock().closing || heard.elapsed() > self.peer_timeout
            });
            let cause = match read {
                Ok((header, _)) if header.attempt != self.attempt => {
                    Cause::Garbled(format!("a frame of attempt {}", header.attempt))
                }
                Ok((header, payload)) => match self.take(peer, header, payload) {
                    Ok(true) => {
                        heard = Instant::now();
                        continue;
                    }
                    Ok(false) => return,
                    Err(cause) => cause,
                },
                Err(ReadError::Closed(how)) => Cause::Closed(how),
                Err(ReadError::Garbled(what)) => Cause::Garbled(what),
                Err(ReadError::Stopped) => {
                    Cause::Silent { milliseconds: heard.elapsed().as_millis() }
                }
            };
            return self.suspect(peer, &cause);
        }
    }

    /// Uses one frame of `peer`; `false` after its last one.
    fn take(&self, peer: usize, header: Header, payload: Vec<u8>) -> Result<bool, Cause> {
        match header.kind {
            Kind::Data => self.keep(peer, header, payload),
            Kind::Heartbeat => {}
            Kind::Lost => {
                let (rank, cause) = self.read_loss(peer, &payload)?;
                self.suspect(rank, &cause);
            }
            Kind::Verdict => {
                let (rank, cause) = self.read_loss(peer, &payload)?;
                self.settle(rank, cause);
            }
            Kind::Bye => {
                if !payload.is_empty() {
                    let (rank, cause) = self.read_loss(peer, &payload)?;
                    self.suspect(rank, &cause);
                }
                self.lock().inboxes[peer].left = true;
                self.changed.notify_all();
                return Ok(false);
            }
            Kind::Hello | Kind::Welcome | Kind::Refuse | Kind::Peers => {
                return Err(Cause::Garbled(format!("{:?} within the group", header.kind)));
            }
        }
        Ok(true)
    }

    /// Who was lost and how, in the words of `peer`.
    fn read_loss(&self, peer: usize, payload: &[u8]) -> Result<(usize, Cause), Cause> {
        let rank = payload.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        let rank = rank.and_then(|rank| usize::try_from(rank).ok());
        let Some(rank) = rank.filter(|&rank| rank < self.world()) else {
            return Err(Cause::Garbled("a report of a loss without a rank".to_owned()));
        };
        let what = String::from_utf8_lossy(payload.get(8..).unwrap_or_default()).into_owned();
        Ok((rank, Cause::Reported { by: peer, what }))
    }

    /// Puts a data frame into the inbox, when there is room. After a loss nobody reads the
    /// inboxes any more, and what comes is dropped so that the peers can finish their frames.
    fn keep(&self, peer: usize, header: Header, payload: Vec<u8>) {
        let mut state = self.lock();
        while state.inboxes[peer].bytes >= INBOX_LIMIT && state.lost.is_none() && !state.closing {
            state = self.wait(state, self.peer_timeout);
        }
        if state.lost.is_none() {
            state.inboxes[peer].bytes += payload.len();
            state.inboxes[peer].frames.push_back((header, payload));
            self.changed.notify_all();
        }
    }

    /// Body of the heartbeat thread of `peer`.
    fn beat(&self, peer: usize) {
        let longest = Duration::from_millis(250);
        let interval = (self.peer_timeout / 5).clamp(Duration::from_millis(10), longest);
        loop {
            let due = Instant::now() + interval;
            let mut state = self.lock();
            while Instant::now() < due {
                if state.closing || state.lost.is_some() || state.inboxes[peer].left {
                    return;
                }
                state = self.wait(state, due.saturating_duration_since(Instant::now()));
            }
            drop(state);
            // If another thread is writing, that is sign of life enough.
            let Some(link) = &self.links[peer] else { return };
            if let Ok(_guard) = link.writing.try_lock() {
                let bytes = frame::encode(self.header(Kind::Heartbeat), &[]);
                if !frame::write(&link.stream, &bytes, || self.give_up(peer)) {
                    return;
                }
            }
        }
    }

    fn header(&self, kind: Kind) -> Header {
        Header { kind, last: true, operation: 0, attempt: self.attempt, seq: 0 }
    }

    /// Notes that `rank` is lost, if it is the first, and tells rank 0, or as rank 0 all others.
    fn suspect(&self, rank: usize, cause: &Cause) {
        {
            let mut state = self.lock();
            if state.closing || state.lost.is_some() {
                return;
            }
            state.lost = Some(Lost { rank, cause: cause.clone(), since: Instant::now() });
            state.settled = self.rank == 0 || rank == 0;
            self.changed.notify_all();
        }
        let payload = write_loss(rank, cause);
        if self.rank == 0 {
            for peer in self.peers().filter(|&peer| peer != rank) {
                self.send_notice(peer, Kind::Verdict, &payload);
            }
            // A rank that was only silent should learn that the others go on without it.
            self.send_notice(rank, Kind::Verdict, &payload);
        } else if rank != 0 {
            self.send_notice(0, Kind::Lost, &payload);
        }
    }

    /// Notes rank 0's verdict. What this rank saw itself says more than a report of it.
    fn settle(&self, rank: usize, cause: Cause) {
        let mut state = self.lock();
        let own = state.lost.take().filter(|lost| lost.rank == rank);
        state.lost = Some(own.unwrap_or(Lost { rank, cause, since: Instant::now() }));
        state.settled = true;
        self.changed.notify_all();
    }

    /// Sends a short frame if the link is free within the grace period.
    fn send_notice(&self, peer: usize, kind: Kind, payload: &[u8]) {
        let Some(Some(link)) = self.links.get(peer) else { return };
        let deadline = Instant::now() + GRACE;
        let bytes = frame::encode(self.header(kind), payload);
        while Instant::now() < deadline {
            if let Ok(_guard) = link.writing.try_lock() {
                frame::write(&link.stream, &bytes, || Instant::now() >= deadline);
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether a frame to `peer` that makes no progress should be abandoned.
    fn give_up(&self, peer: usize) -> bool {
        let state = self.lock();
        let lost = |lost: &Lost| lost.rank == peer || lost.since.elapsed() > GRACE;
        state.closing || state.inboxes[peer].left || state.lost.as_ref().is_some_and(lost)
    }

    /// Sends one data frame; `false` if the group broke.
    pub(super) fn send(&self, peer: usize, header: Header, payload: &[u8]) -> bool {
        let Some(link) = &self.links[peer] else { return false };
        let head = frame::encode_head(header, payload);
        let _guard = link.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.lock().lost.is_none()
            && [&head, payload]
                .iter()
                .all(|bytes| frame::write(&link.stream, bytes, || self.give_up(peer)))
    }

    /// The next data frame of `peer`.
    pub(super) fn receive(
        &self,
        peer: usize,
        operation: &'static str,
    ) -> Result<(Header, Vec<u8>), CollectiveError> {
        let mut state = self.lock();
        loop {
            if state.lost.is_some() {
                drop(state);
                return Err(self.loss(operation));
            }
            if let Some((header, payload)) = state.inboxes[peer].frames.pop_front() {
                state.inboxes[peer].bytes -= payload.len();
                self.changed.notify_all();
                return Ok((header, payload));
            }
            if state.inboxes[peer].left {
                drop(state);
                self.suspect(peer, &Cause::Left);
                return Err(self.loss(operation));
            }
            state = self.wait(state, self.peer_timeout);
        }
    }

    /// The error of a rank that could not send to `peer`: its reader finds out why.
    pub(super) fn broken(&self, peer: usize, operation: &'static str) -> CollectiveError {
        let deadline = Instant::now() + GRACE;
        let mut state = self.lock();
        while state.lost.is_none() && !state.inboxes[peer].left && Instant::now() < deadline {
            state = self.wait(state, deadline.saturating_duration_since(Instant::now()));
        }
        drop(state);
        self.suspect(peer, &Cause::Left);
        self.loss(operation)
    }

    /// Fails if a peer was lost.
    #[cfg(feature = "nccl")]
    pub(super) fn check(&self, operation: &'static str) -> Result<(), CollectiveError> {
        if self.lock().lost.is_none() {
            return Ok(());
        }
        Err(self.loss(operation))
    }

    /// A peer that said goodbye.
    #[cfg(feature = "nccl")]
    pub(super) fn left(&self) -> Option<usize> {
        self.lock().inboxes.iter().position(|inbox| inbox.left)
    }

    /// Breaks up the group because of what `peer` sent; nothing if it broke before.
    pub(super) fn give_in(&self, peer: usize, error: &CollectiveError) {
        self.suspect(peer, &Cause::Garbled(format!("something unexpected: {error}")));
    }

    /// The error for the loss that was noted; waits a moment for the verdict of rank 0.
    fn loss(&self, operation: &'static str) -> CollectiveError {
        let deadline = Instant::now() + GRACE;
        let mut state = self.lock();
        while !state.settled && Instant::now() < deadline {
            state = self.wait(state, deadline.saturating_duration_since(Instant::now()));
        }
        let (rank, cause) = match &state.lost {
            Some(lost) => (lost.rank, lost.cause.clone()),
            None => (self.rank, Cause::Left),
        };
        match &self.links[rank] {
            Some(link) => {
                let address = link.address.to_string();
                CollectiveError::PeerLost { rank, address, operation, cause }
            }
            None => CollectiveError::Expelled { rank, operation, cause },
        }
    }

    /// Says goodbye to all, with the culprit if this rank leaves because of a loss, and ends the
    /// threads.
    pub(super) fn leave(&self) {
        let lost = self.lock().lost.clone();
        let culprit = lost.as_ref().map(|lost| lost.rank);
        let payload = lost.map(|lost| write_loss(lost.rank, &lost.cause)).unwrap_or_default();
        // The culprit comes last, because its link may be stuck. If it is alive after all, it
        // learns that it was given up.
        for peer in self.peers().filter(|&peer| Some(peer) != culprit).chain(culprit) {
            self.send_notice(peer, Kind::Bye, &payload);
        }
        self.lock().closing = true;
        self.changed.notify_all();
        for link in self.links.iter().flatten() {
            // The connection may be gone already, which is what is wanted.
            let _gone = link.stream.shutdown(Shutdown::Both);
        }
    }
}

fn write_loss(rank: usize, cause: &Cause) -> Vec<u8> {
    let what = match cause {
        // A report is passed on as it came, or it would grow from rank to rank.
        Cause::Reported { what, .. } => what.clone(),
        Cause::Closed(_) | Cause::Silent { .. } | Cause::Garbled(_) | Cause::Left => {
            cause.to_string()
        }
    };
    let mut payload = (rank as u64).to_le_bytes().to_vec();
    payload.extend(what.bytes().take(1000));
    payload
}
