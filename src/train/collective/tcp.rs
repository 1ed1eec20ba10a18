//! Ranks as processes that talk over framed TCP.
//!
//! A gradient sum moves every number twice, whatever the number of ranks: each rank is
//! responsible for one slice of the flattened gradients, receives this slice of all partial sums,
//! adds it along the tree, and sends the result to all. Sending and receiving go on at the same
//! time, so buffers larger than the sockets' do not block the group.

mod frame;
mod group;
mod join;

use std::net::TcpListener;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use candle_core::{Device, Tensor};

use self::frame::{CHUNK, Header, Kind};
use self::group::Group;
use super::{Collective, CollectiveError, Solo, check_share};
use crate::train::reduce::{Fold, Layout, Node, Partials, Sum, Tree, add_floats, add_scalars};

/// Longest message of control data.
const CONTROL_LIMIT: usize = 64 << 20;

/// What a rank needs to find its group.
#[derive(Clone, Debug)]
pub struct TcpConfig {
    /// This rank, from 0.
    pub rank: usize,
    /// Number of ranks.
    pub world: usize,
    /// Where rank 0 listens: `MASTER_ADDR:MASTER_PORT`.
    pub master: String,
    /// Secret that the ranks of one attempt share.
    pub token: String,
    /// Attempt epoch.
    pub attempt: u32,
    /// Hash of what all ranks must agree on before they start.
    pub job: String,
    /// How long to wait until all ranks have joined.
    pub join_timeout: Duration,
    /// A peer from which nothing comes for so long, not even a heartbeat, is lost.
    pub peer_timeout: Duration,
    /// Once this is set, a rank that waits for the others gives up.
    pub stop: Arc<AtomicBool>,
}

impl TcpConfig {
    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// An error once this rank was asked to end.
    fn go_on(&self) -> Result<(), CollectiveError> {
        if self.is_stopped() {
            let address = self.master.clone();
            return Err(CollectiveError::Interrupted { rank: self.rank, address });
        }
        Ok(())
    }

    /// A number that two processes with the same rank do not share.
    fn instance(&self) -> u64 {
        u64::from(std::process::id()) << 32 | self.rank as u64
    }
}

/// One rank of a group of processes.
#[derive(Debug)]
pub struct Tcp {
    group: Arc<Group>,
    threads: Vec<JoinHandle<()>>,
    seq: u64,
}

/// The steps that move data. Every frame carries its step, so that ranks which do not run the
/// same program are found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Control = 1,
    Scatter = 2,
    Gather = 3,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Step::Control => "the exchange of control data",
            Step::Scatter => "the gradient sum (first half)",
            Step::Gather => "the gradient sum (second half)",
        }
    }

    fn describe(number: u8) -> &'static str {
        let all = [Step::Control, Step::Scatter, Step::Gather];
        all.iter().find(|step| **step as u8 == number).map_or("an unknown step", |s| s.name())
    }
}

impl Tcp {
    /// Joins the group and returns when all ranks are connected.
    pub fn join(config: &TcpConfig) -> Result<Self, CollectiveError> {
        let streams = if config.rank == 0 {
            join::host(config, &join::bind_master(&config.master)?)?
        } else {
            join::join(config)?
        };
        Self::start(config, streams)
    }

    /// As [`Tcp::join`] for rank 0, with a listener that is bound already.
    pub fn host(config: &TcpConfig, listener: TcpListener) -> Result<Self, CollectiveError> {
        let streams = join::host(config, &listener)?;
        // Nobody can call any more, so nobody can disturb the group.
        drop(listener);
        Self::start(config, streams)
    }

    fn start(
        config: &TcpConfig,
        streams: Vec<Option<join::Peer>>,
    ) -> Result<Self, CollectiveError> {
        let (group, threads) =
            Group::start(config.rank, config.attempt, config.peer_timeout, streams);
        let mut tcp = Tcp { group, threads, seq: 0 };
        tcp.barrier()?;
        Ok(tcp)
    }

    /// Fails if a peer was lost since the last operation.
    #[cfg(feature = "nccl")]
    pub(super) fn check(&self, operation: &'static str) -> Result<(), CollectiveError> {
        self.group.check(operation)
    }

    /// A peer that has left the group in order.
    #[cfg(feature = "nccl")]
    pub(super) fn left(&self) -> Option<usize> {
        self.group.left()
    }

    /// The error of an operation that cannot end because `peer` has left.
    #[cfg(feature = "nccl")]
    pub(super) fn broken(&self, peer: usize, operation: &'static str) -> CollectiveError {
        self.group.broken(peer, operation)
    }

    /// Sends a message to every peer while it receives one from each, in the order of ranks.
    fn exchange(
        &mut self,
        step: Step,
        send: impl Fn(usize, &mut Sender<'_>) + Sync,
        mut receive: impl FnMut(usize, &mut Receiver<'_>) -> Result<(), CollectiveError>,
    ) -> Result<(), CollectiveError> {
        self.seq += 1;
        let (group, seq) = (&*self.group, self.seq);
        std::thread::scope(|scope| {
            let mut senders = Vec::new();
            for peer in group.peers() {
                let send = &send;
                let job = move || {
                    let mut sender = Sender::new(group, peer, step, seq);
                    send(peer, &mut sender);
                    sender.finish()
                };
                senders.push((peer, scope.spawn(job)));
            }
            for peer in group.peers() {
                let mut receiver = Receiver::new(group, peer, step, seq);
                let received = receive(peer, &mut receiver).and_then(|()| receiver.finish());
                if let Err(error) = received {
                    // The senders may wait for a peer that waits for this rank.
                    group.give_in(peer, &error);
                    return Err(error);
                }
            }
            for (peer, sender) in senders {
                if !sender.join().unwrap_or(false) {
                    return Err(group.broken(peer, step.name()));
                }
            }
            Ok(())
        })
    }

    /// Sums this rank's slice of the gradients, and all scalars.
    fn reduce_slice(
        &mut self,
        tree: Tree,
        layout: &Layout,
        own: Flat,
    ) -> Result<(Vec<f32>, Vec<f64>), CollectiveError> {
        let (rank, world, elements) = (self.rank(), self.world(), layout.elements());
        let mine = slice(elements, rank, world);
        let mut parts: Vec<Flat> = (0..world).map(|_| Vec::new()).collect();
        self.exchange(
            Step::Scatter,
            |peer, sender| {
                for (_, floats, scalars) in &own {
                    sender.doubles(scalars);
                    sender.floats(&floats[slice(elements, peer, world)]);
                }
            },
            |peer, receiver| {
                for node in tree.cover(&tree.share(peer, world)) {
                    let scalars = receiver.doubles(layout.scalars)?;
                    parts[peer].push((node, receiver.floats(mine.len())?, scalars));
                }
                Ok(())
            },
        )?;
        parts[rank] = own
            .into_iter()
            .map(|(node, floats, s)| (node, floats[mine.clone()].to_vec(), s))
            .collect();
        let mut fold = Fold::new(tree);
        for (node, floats, scalars) in parts.into_iter().flatten() {
            let add = |_node, left: (Vec<f32>, Vec<f64>), right: (Vec<f32>, Vec<f64>)| {
                Ok::<_, CollectiveError>((
                    add_floats(left.0, &right.0),
                    add_scalars(left.1, &right.1),
                ))
            };
            fold.push(node, (floats, scalars), add)?;
        }
        fold.into_root().ok_or(CollectiveError::Share { rank, world })
    }

    /// Puts the slices of all ranks together.
    fn gather_slices(
        &mut self,
        elements: usize,
        mine: &[f32],
    ) -> Result<Vec<f32>, CollectiveError> {
        let (rank, world) = (self.rank(), self.world());
        let mut all = vec![0.0; elements];
        all[slice(elements, rank, world)].copy_from_slice(mine);
        self.exchange(
            Step::Gather,
            |_peer, sender| sender.floats(mine),
            |peer, receiver| receiver.read_floats(&mut all[slice(elements, peer, world)]),
        )?;
        Ok(all)
    }
}

impl Collective for Tcp {
    fn rank(&self) -> usize {
        self.group.rank
    }

    fn world(&self) -> usize {
        self.group.world()
    }

    fn reduce_tree(&mut self, partials: Partials) -> Result<Sum, CollectiveError> {
        if self.world() == 1 {
            return Solo.reduce_tree(partials);
        }
        check_share(&partials, self.rank(), self.world())?;
        let Partials { tree, layout, nodes } = partials;
        let own =
            nodes.into_iter().map(|(node, sum)| flatten(node, sum)).collect::<Result<_, _>>()?;
        let (mine, scalars) = self.reduce_slice(tree, &layout, own)?;
        let all = self.gather_slices(layout.elements(), &mine)?;
        Ok(Sum { tensors: unflatten(all, &layout)?, scalars })
    }

    fn all_gather_bytes(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        if bytes.len() > CONTROL_LIMIT {
            return Err(CollectiveError::TooLarge { bytes: bytes.len(), limit: CONTROL_LIMIT });
        }
        let mut all = vec![Vec::new(); self.world()];
        all[self.group.rank] = bytes.to_vec();
        self.exchange(
            Step::Control,
            |_peer, sender| sender.bytes(bytes),
            |peer, receiver| receiver.rest(CONTROL_LIMIT).map(|bytes| all[peer] = bytes),
        )?;
        Ok(all)
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        self.group.leave();
        for thread in self.threads.drain(..) {
            // A panic of a helper thread has been reported by the panic hook already.
            let _panicked = thread.join();
        }
    }
}

/// Flattened partial sums of one rank: node, gradients (or a slice of them), scalars.
type Flat = Vec<(Node, Vec<f32>, Vec<f64>)>;

/// The part of the flattened gradients that `rank` sums.
pub(super) fn slice(elements: usize, rank: usize, world: usize) -> Range<usize> {
    rank * elements / world..(rank + 1) * elements / world
}

fn flatten(node: Node, sum: Sum) -> Result<(Node, Vec<f32>, Vec<f64>), CollectiveError> {
    let mut floats = Vec::with_capacity(sum.tensors.iter().map(Tensor::elem_count).sum());
    // Each tensor is dropped as soon as it is copied.
    for tensor in sum.tensors {
        let flat = tensor.to_device(&Device::Cpu).and_then(|tensor| tensor.flatten_all());
        let values = flat.and_then(|tensor| tensor.to_vec1::<f32>());
        floats.extend(values.map_err(|source| CollectiveError::Device { source })?);
    }
    Ok((node, floats, sum.scalars))
}

fn unflatten(mut floats: Vec<f32>, layout: &Layout) -> Result<Vec<Tensor>, CollectiveError> {
    let mut tensors = Vec::with_capacity(layout.shapes.len());
    for shape in layout.shapes.iter().rev() {
        let values = floats.split_off(floats.len() - shape.elem_count());
        let tensor = Tensor::from_vec(values, shape.clone(), &layout.device);
        tensors.push(tensor.map_err(|source| CollectiveError::Device { source })?);
    }
    tensors.reverse();
    Ok(tensors)
}

/// Writes one message to one peer.
struct Sender<'a> {
    group: &'a Group,
    peer: usize,
    header: Header,
    chunk: Vec<u8>,
    /// Once a frame could not be sent, the rest is skipped.
    intact: bool,
}

impl<'a> Sender<'a> {
    fn new(group: &'a Group, peer: usize, step: Step, seq: u64) -> Self {
        let attempt = group.attempt;
        let header = Header { kind: Kind::Data, last: false, operation: step as u8, attempt, seq };
        Sender { group, peer, header, chunk: Vec::new(), intact: true }
    }

    fn bytes(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.intact {
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK - self.chunk.len()));
            self.chunk.extend(now);
            bytes = later;
            if self.chunk.len() == CHUNK {
                self.flush(false);
            }
        }
    }

    fn floats(&mut self, values: &[f32]) {
        // Pieces of 16 KiB stay in the cache between conversion and copy.
        let mut bytes = vec![[0; 4]; 4096];
        for piece in values.chunks(4096) {
            for (slot, value) in bytes.iter_mut().zip(piece) {
                *slot = value.to_le_bytes();
            }
            self.bytes(bytes[..piece.len()].as_flattened());
        }
    }

    fn doubles(&mut self, values: &[f64]) {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.bytes(&bytes);
    }

    fn flush(&mut self, last: bool) {
        let header = Header { last, ..self.header };
        self.intact = self.intact && self.group.send(self.peer, header, &self.chunk);
        self.chunk.clear();
    }

    fn finish(mut self) -> bool {
        self.flush(true);
        self.intact
    }
}

/// Reads one message of one peer.
struct Receiver<'a> {
    group: &'a Group,
    peer: usize,
    step: Step,
    seq: u64,
    chunk: Vec<u8>,
    used: usize,
    ended: bool,
}

impl<'a> Receiver<'a> {
    fn new(group: &'a Group, peer: usize, step: Step, seq: u64) -> Self {
        Receiver { group, peer, step, seq, chunk: Vec::new(), used: 0, ended: false }
    }

    /// Gets the next frame of the message.
    fn refill(&mut self) -> Result<(), CollectiveError> {
        if self.ended {
            return Err(self.out_of_step("a shorter message".to_owned()));
        }
        let (header, payload) = self.group.receive(self.peer, self.step.name())?;
        if (header.seq, header.operation) != (self.seq, self.step as u8) {
            let name = Step::describe(header.operation);
            return Err(self.out_of_step(format!("operation {} ({name})", header.seq)));
        }
        (self.chunk, self.used, self.ended) = (payload, 0, header.last);
        Ok(())
    }

    fn fill(&mut self, mut buffer: &mut [u8]) -> Result<(), CollectiveError> {
        while !buffer.is_empty() {
            if self.used == self.chunk.len() {
                self.refill()?;
                continue;
            }
            let count = buffer.len().min(self.chunk.len() - self.used);
            let (now, later) = buffer.split_at_mut(count);
            now.copy_from_slice(&self.chunk[self.used..self.used + count]);
            self.used += count;
            buffer = later;
        }
        Ok(())
    }

    fn read_floats(&mut self, target: &mut [f32]) -> Result<(), CollectiveError> {
        let mut bytes = vec![[0; 4]; 4096];
        for piece in target.chunks_mut(4096) {
            let bytes = &mut bytes[..piece.len()];
            self.fill(bytes.as_flattened_mut())?;
            for (value, bytes) in piece.iter_mut().zip(bytes) {
                *value = f32::from_le_bytes(*bytes);
            }
        }
        Ok(())
    }

    fn floats(&mut self, count: usize) -> Result<Vec<f32>, CollectiveError> {
        let mut values = vec![0.0; count];
        self.read_floats(&mut values)?;
        Ok(values)
    }

    fn doubles(&mut self, count: usize) -> Result<Vec<f64>, CollectiveError> {
        let mut bytes = vec![0; 8 * count];
        self.fill(&mut bytes)?;
        Ok(bytes.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect())
    }

    /// All that is left of the message.
    fn rest(&mut self, limit: usize) -> Result<Vec<u8>, CollectiveError> {
        let mut bytes = self.chunk.split_off(self.used);
        while !self.ended {
            self.refill()?;
            if bytes.len() + self.chunk.len() > limit {
                return Err(self.out_of_step("a longer message".to_owned()));
            }
            bytes.append(&mut self.chunk);
        }
        self.used = self.chunk.len();
        Ok(bytes)
    }

    /// Makes sure that the message ends here.
    fn finish(mut self) -> Result<(), CollectiveError> {
        while !self.ended && self.used == self.chunk.len() {
            self.refill()?;
        }
        if self.used == self.chunk.len() {
            return Ok(());
        }
        Err(self.out_of_step("a longer message".to_owned()))
    }

    fn out_of_step(&self, found: String) -> CollectiveError {
        let expected = format!("operation {} ({})", self.seq, self.step.name());
        CollectiveError::OutOfStep { rank: self.peer, found, expected }
    }
}
