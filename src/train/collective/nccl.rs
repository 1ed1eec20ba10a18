//! Ranks as processes with a GPU each: gradients by NCCL, control data by [`Tcp`].
//!
//! NCCL's own sum is not used, because its order depends on the number of ranks. As with
//! [`Tcp`], each rank receives its slice of all partial sums, adds it along the tree on its GPU,
//! and sends the result to all.
//!
//! While the GPU works, the TCP group watches the peers, so a dead one is named just as
//! quickly; NCCL alone would wait for it.
//!
//! **This file is only type-checked (`cargo check --features cuda,nccl`): no machine with two
//! GPUs has run it yet.** Before you trust it, compare the losses of some steps on one GPU and on
//! two: they must be equal to the bit.

use std::ffi::c_char;
use std::ops::Range;
use std::time::{Duration, Instant};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaDevice, CudaStorage, CustomOp1, Shape, Tensor};
use cudarc::nccl::result::{NcclError, group_end, group_start};
use cudarc::nccl::safe::{Comm, Id};

use super::tcp::slice;
use super::{Collective, CollectiveError, Solo, Tcp, TcpConfig, check_share};
use crate::train::reduce::{Fold, Layout, Node, Partials, ReduceError, Sum, Tree, add_scalars};

/// A peer may end as soon as it has all it needs; this rank gets that long to receive the rest.
const LEFT_GRACE: Duration = Duration::from_secs(5);

/// One rank of a group of GPUs.
pub struct Nccl {
    // Dropped before `control`, whose farewell then ends the wait of the peers.
    comm: Comm,
    device: CudaDevice,
    control: Tcp,
}

#[expect(unsafe_code, reason = "a communicator is a raw pointer to the compiler")]
// SAFETY: NCCL allows calls on a communicator from any thread, though not from two at a time;
// all uses of `comm` go through `&mut Nccl`.
unsafe impl Send for Nccl {}

impl std::fmt::Debug for Nccl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nccl").field("control", &self.control).finish_non_exhaustive()
    }
}

impl Nccl {
    /// Joins the group with the GPU `device`, which no other rank may use. The identifier of
    /// the NCCL group is made by rank 0 and travels over the TCP group.
    pub fn join(config: &TcpConfig, device: &CudaDevice) -> Result<Self, CollectiveError> {
        let mut control = Tcp::join(config)?;
        let (stream, operation) = (device.cuda_stream(), "joining");
        stream.context().bind_to_thread().map_err(|error| failed(operation, &error))?;
        let mut own = Vec::new();
        if config.rank == 0 {
            let id = Id::new().map_err(|error| nccl_failed(operation, &error))?;
            own.extend(id.internal().iter().map(|byte| byte.to_ne_bytes()[0]));
        }
        let bytes = control.broadcast_bytes(0, &own)?;
        let bytes: [u8; 128] = bytes.try_into().map_err(|bytes: Vec<u8>| {
            let (found, expected) = (format!("{} bytes", bytes.len()), "128 bytes".to_owned());
            CollectiveError::OutOfStep { rank: 0, found, expected }
        })?;
        let id = Id::uninit(bytes.map(|byte| c_char::from_ne_bytes([byte])));
        let comm = Comm::from_rank(stream, config.rank, config.world, id)
            .map_err(|error| nccl_failed(operation, &error))?;
        control.barrier()?;
        Ok(Nccl { comm, device: device.clone(), control })
    }

    /// Sends and receives pieces of flat buffers, and returns when all has arrived.
    fn exchange(
        &self,
        source: &Tensor,
        plan: &Plan,
        operation: &'static str,
    ) -> Result<Tensor, CollectiveError> {
        let device_error = |source| CollectiveError::Device { source };
        let received =
            source.apply_op1_no_bwd(&Exchange { comm: &self.comm, plan }).map_err(device_error)?;
        let stream = self.device.cuda_stream();
        let event = stream.record_event(None).map_err(|error| failed(operation, &error))?;
        let mut left_since: Option<Instant> = None;
        while !event.is_complete() {
            self.control.check(operation)?;
            if let Some(peer) = self.control.left() {
                let since = left_since.get_or_insert_with(Instant::now);
                if since.elapsed() > LEFT_GRACE {
                    return Err(self.control.broken(peer, operation));
                }
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(received)
    }

    /// The sums of all scalars; also makes sure that all ranks are at the same operation.
    fn reduce_scalars(
        &mut self,
        tree: Tree,
        nodes: &[(Node, Sum)],
        layout: &Layout,
    ) -> Result<Vec<f64>, CollectiveError> {
        let own: Vec<u8> = nodes
            .iter()
            .flat_map(|(_, sum)| sum.scalars.iter().flat_map(|value| value.to_le_bytes()))
            .collect();
        let world = self.world();
        let mut fold = Fold::new(tree);
        for (rank, bytes) in self.control.all_gather_bytes(&own)?.into_iter().enumerate() {
            let values: Vec<f64> =
                bytes.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
            let cover = tree.cover(&tree.share(rank, world));
            if values.len() != cover.len() * layout.scalars {
                let found = format!("{} numbers", values.len());
                let expected = format!("{} numbers", cover.len() * layout.scalars);
                return Err(CollectiveError::OutOfStep { rank, found, expected });
            }
            for (index, node) in cover.into_iter().enumerate() {
                let range = index * layout.scalars..(index + 1) * layout.scalars;
                let add = |_node, left, right: Vec<f64>| {
                    Ok::<_, CollectiveError>(add_scalars(left, &right))
                };
                fold.push(node, values[range].to_vec(), add)?;
            }
        }
        fold.into_root().ok_or(CollectiveError::Share { rank: self.rank(), world })
    }

    /// This rank's slice of the sum. `flat` holds the flattened partial sums of this rank, one
    /// after another.
    fn reduce_slice(
        &self,
        tree: Tree,
        elements: usize,
        flat: &Tensor,
    ) -> Result<Tensor, CollectiveError> {
        let (rank, world) = (self.rank(), self.world());
        let mine = slice(elements, rank, world);
        let own_count = tree.cover(&tree.share(rank, world)).len();
        let mut plan = Plan::default();
        for peer in (0..world).filter(|&peer| peer != rank) {
            let theirs = slice(elements, peer, world);
            for index in 0..own_count {
                let start = index * elements + theirs.start;
                plan.sends.push((peer, start..start + theirs.len()));
            }
            for _node in tree.cover(&tree.share(peer, world)) {
                plan.receives.push((peer, plan.length..plan.length + mine.len()));
                plan.length += mine.len();
            }
        }
        let received = self.exchange(flat, &plan, "the gradient sum (first half)")?;
        let (mut own, mut others) = (0, 0);
        let mut fold = Fold::new(tree);
        for peer in 0..world {
            for node in tree.cover(&tree.share(peer, world)) {
                let part = if peer == rank {
                    own += 1;
                    flat.narrow(0, (own - 1) * elements + mine.start, mine.len())
                } else {
                    others += 1;
                    received.narrow(0, (others - 1) * mine.len(), mine.len())
                };
                let part = part.map_err(|source| CollectiveError::Device { source })?;
                let add = |node, left: Tensor, right: Tensor| {
                    (left + right).map_err(|source| ReduceError::Add { node, source })
                };
                fold.push(node, part, add)?;
            }
        }
        fold.into_root().ok_or(CollectiveError::Share { rank, world })
    }

    /// Puts the slices of all ranks together.
    fn gather_slices(&self, elements: usize, mine: &Tensor) -> Result<Tensor, CollectiveError> {
        let (rank, world) = (self.rank(), self.world());
        let own = slice(elements, rank, world);
        let mut plan = Plan { length: elements - own.len(), ..Plan::default() };
        for peer in (0..world).filter(|&peer| peer != rank) {
            let theirs = slice(elements, peer, world);
            // The buffer has no place for this rank's own slice.
            let start = theirs.start - if peer > rank { own.len() } else { 0 };
            plan.sends.push((peer, 0..own.len()));
            plan.receives.push((peer, start..start + theirs.len()));
        }
        let others = self.exchange(mine, &plan, "the gradient sum (second half)")?;
        let join = || {
            let before = others.narrow(0, 0, own.start)?;
            let after = others.narrow(0, own.start, elements - own.end)?;
            let parts = [before, mine.clone(), after];
            let full: Vec<_> = parts.iter().filter(|part| part.elem_count() > 0).collect();
            Tensor::cat(&full, 0)
        };
        join().map_err(|source| CollectiveError::Device { source })
    }
}

impl Collective for Nccl {
    fn rank(&self) -> usize {
        self.control.rank()
    }

    fn world(&self) -> usize {
        self.control.world()
    }

    fn reduce_tree(&mut self, partials: Partials) -> Result<Sum, CollectiveError> {
        check_share(&partials, self.rank(), self.world())?;
        let (tree, elements) = (partials.tree, partials.layout.elements());
        if self.world() == 1 {
            return Solo.reduce_tree(partials);
        }
        if elements < self.world() || self.world() > tree.units() {
            // Some rank has an empty slice or no partial sums; the TCP group can do that, with
            // the same bits.
            return self.control.reduce_tree(partials);
        }
        let scalars = self.reduce_scalars(tree, &partials.nodes, &partials.layout)?;
        let flat = flatten(partials.nodes).map_err(|source| CollectiveError::Device { source })?;
        let mine = self.reduce_slice(tree, elements, &flat)?;
        drop(flat);
        let all = self.gather_slices(elements, &mine)?;
        let tensors = unflatten(&all, &partials.layout);
        Ok(Sum { tensors: tensors.map_err(|source| CollectiveError::Device { source })?, scalars })
    }

    fn all_gather_bytes(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        self.control.all_gather_bytes(bytes)
    }
}

/// Which pieces of the source go where, and where what comes belongs in the target. Pieces
/// between two ranks are sent and received in the order of the lists.
#[derive(Debug, Default)]
struct Plan {
    sends: Vec<(usize, Range<usize>)>,
    receives: Vec<(usize, Range<usize>)>,
    /// Elements of the target.
    length: usize,
}

/// The exchange as an operation on a flat f32 tensor.
struct Exchange<'a> {
    comm: &'a Comm,
    plan: &'a Plan,
}

impl CustomOp1 for Exchange<'_> {
    fn name(&self) -> &'static str {
        "nccl-exchange"
    }

    fn cpu_fwd(
        &self,
        _storage: &CpuStorage,
        _layout: &candle_core::Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        candle_core::bail!("NCCL moves tensors of a GPU, not of the CPU")
    }

    fn cuda_fwd(
        &self,
        storage: &CudaStorage,
        layout: &candle_core::Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("NCCL moves contiguous tensors only")
        };
        let source = storage.as_cuda_slice::<f32>()?.slice(start..end);
        let stream = self.comm.stream();
        stream.context().bind_to_thread().map_err(candle_core::Error::wrap)?;
        let mut target =
            stream.alloc_zeros::<f32>(self.plan.length).map_err(candle_core::Error::wrap)?;
        // All on candle's own stream of the device, which orders it before and after the rest.
        group_start().map_err(|error| message(&error))?;
        for (peer, range) in &self.plan.sends {
            self.comm
                .send(&source.slice(range.clone()), number(*peer)?)
                .map_err(|error| message(&error))?;
        }
        for (peer, range) in &self.plan.receives {
            let mut part = target.slice_mut(range.clone());
            self.comm.recv(&mut part, number(*peer)?).map_err(|error| message(&error))?;
        }
        group_end().map_err(|error| message(&error))?;
        let device = storage.device().clone();
        Ok((CudaStorage::wrap_cuda_slice(target, device), Shape::from(self.plan.length)))
    }
}

fn number(rank: usize) -> candle_core::Result<i32> {
    i32::try_from(rank).map_err(candle_core::Error::wrap)
}

fn flatten(nodes: Vec<(Node, Sum)>) -> candle_core::Result<Tensor> {
    let tensors = nodes.into_iter().flat_map(|(_, sum)| sum.tensors);
    let flat =
        tensors.map(|tensor| tensor.flatten_all()).collect::<candle_core::Result<Vec<_>>>()?;
    Tensor::cat(&flat, 0)?.contiguous()
}

fn unflatten(all: &Tensor, layout: &Layout) -> candle_core::Result<Vec<Tensor>> {
    let mut start = 0;
    let mut cut = |shape: &Shape| {
        let count = shape.elem_count();
        let tensor = all.narrow(0, start, count)?.reshape(shape.clone());
        start += count;
        tensor
    };
    layout.shapes.iter().map(&mut cut).collect()
}

fn message(error: &NcclError) -> candle_core::Error {
    candle_core::Error::Msg(format!("NCCL: {:?}", error.0))
}

fn nccl_failed(operation: &'static str, error: &NcclError) -> CollectiveError {
    CollectiveError::Nccl { operation, message: format!("{:?}", error.0) }
}

fn failed(operation: &'static str, error: &dyn std::error::Error) -> CollectiveError {
    CollectiveError::Nccl { operation, message: error.to_string() }
}
