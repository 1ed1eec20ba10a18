//! Ranks as threads of one process.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use candle_core::Device;

use super::{Cause, Collective, CollectiveError, check_share};
use crate::train::reduce::{Fold, Partials, Sum, add_sums};

/// One rank of a group of threads.
#[derive(Debug)]
pub struct Threads {
    rank: usize,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    world: usize,
    timeout: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Operations that all ranks have come to.
    rounds: u64,
    deposits: Vec<Option<Deposit>>,
    /// The deposits of the newest complete round. A rank adds to the next round only after it
    /// has read this one, so it cannot be overwritten too early.
    complete: Option<Arc<Round>>,
    left: Vec<bool>,
}

/// What a rank brings to an operation.
#[derive(Clone, Debug)]
enum Deposit {
    Bytes(Vec<u8>),
    Partials(Partials),
}

#[derive(Debug)]
struct Round {
    deposits: Vec<Deposit>,
    /// Computed by the first rank that needs it.
    sum: OnceLock<Result<Sum, String>>,
}

impl Threads {
    /// The handles of a group of `world` ranks. A rank that waits longer than `timeout` for
    /// another reports it as lost.
    pub fn group(world: usize, timeout: Duration) -> Vec<Threads> {
        let state = State {
            rounds: 0,
            deposits: vec![None; world],
            complete: None,
            left: vec![false; world],
        };
        let shared =
            Arc::new(Shared { world, timeout, state: Mutex::new(state), changed: Condvar::new() });
        (0..world).map(|rank| Threads { rank, shared: Arc::clone(&shared) }).collect()
    }

    /// Waits until all ranks have brought their deposit.
    fn meet(
        &self,
        operation: &'static str,
        deposit: Deposit,
    ) -> Result<Arc<Round>, CollectiveError> {
        let deadline = Instant::now() + self.shared.timeout;
        let mut state = self.shared.lock();
        let round = state.rounds;
        state.deposits[self.rank] = Some(deposit);
        if state.deposits.iter().all(Option::is_some) {
            let deposits = state.deposits.iter_mut().filter_map(Option::take).collect();
            state.complete = Some(Arc::new(Round { deposits, sum: OnceLock::new() }));
            state.rounds += 1;
            self.shared.changed.notify_all();
        }
        loop {
            if state.rounds > round
                && let Some(complete) = &state.complete
            {
                return Ok(Arc::clone(complete));
            }
            let missing = |rank: &usize| state.deposits[*rank].is_none();
            let left = (0..self.world()).filter(missing).find(|&rank| state.left[rank]);
            if let Some(rank) = left {
                return Err(lost(rank, operation, Cause::Left));
            }
            let now = Instant::now();
            if now >= deadline
                && let Some(rank) = (0..self.world()).find(missing)
            {
                let milliseconds = self.shared.timeout.as_millis();
                return Err(lost(rank, operation, Cause::Silent { milliseconds }));
            }
            let wait = deadline.saturating_duration_since(now);
            state = self
                .shared
                .changed
                .wait_timeout(state, wait)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics between two changes that belong together, so the state is usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.lock().left[self.rank] = true;
        self.shared.changed.notify_all();
    }
}

impl Collective for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.shared.world
    }

    fn reduce_tree(&mut self, partials: Partials) -> Result<Sum, CollectiveError> {
        check_share(&partials, self.rank, self.world())?;
        let device = partials.layout.device.clone();
        let round = self.meet("the gradient sum", Deposit::Partials(partials))?;
        for (rank, deposit) in round.deposits.iter().enumerate() {
            if matches!(deposit, Deposit::Bytes(_)) {
                return Err(out_of_step(rank, "control data", "gradients"));
            }
        }
        let sum = round.sum.get_or_init(|| add_round(&round.deposits, &device));
        let failed = |message: &String| candle_core::Error::Msg(message.clone());
        let sum =
            sum.as_ref().map_err(|message| CollectiveError::Device { source: failed(message) })?;
        move_sum(sum, &device).map_err(|source| CollectiveError::Device { source })
    }

    fn all_gather_bytes(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        let round = self.meet("the exchange of control data", Deposit::Bytes(bytes.to_vec()))?;
        let bytes = |(rank, deposit): (usize, &Deposit)| match deposit {
            Deposit::Bytes(bytes) => Ok(bytes.clone()),
            Deposit::Partials(_) => Err(out_of_step(rank, "gradients", "control data")),
        };
        round.deposits.iter().enumerate().map(bytes).collect()
    }
}

/// Adds the partial sums of all ranks. The error is a text because all ranks share it.
fn add_round(deposits: &[Deposit], device: &Device) -> Result<Sum, String> {
    let mut fold: Option<Fold<Sum>> = None;
    for deposit in deposits {
        if let Deposit::Partials(partials) = deposit {
            let fold = fold.get_or_insert_with(|| Fold::new(partials.tree));
            for (node, sum) in &partials.nodes {
                let sum = move_sum(sum, device).map_err(|error| error.to_string())?;
                fold.push(*node, sum, add_sums).map_err(|error| error.to_string())?;
            }
        }
    }
    fold.and_then(Fold::into_root).ok_or_else(|| "the ranks use different trees".to_owned())
}

fn move_sum(sum: &Sum, device: &Device) -> Result<Sum, candle_core::Error> {
    let tensors =
        sum.tensors.iter().map(|tensor| tensor.to_device(device)).collect::<Result<_, _>>()?;
    Ok(Sum { tensors, scalars: sum.scalars.clone() })
}

fn lost(rank: usize, operation: &'static str, cause: Cause) -> CollectiveError {
    CollectiveError::PeerLost { rank, address: "a thread".to_owned(), operation, cause }
}

fn out_of_step(rank: usize, found: &str, expected: &str) -> CollectiveError {
    CollectiveError::OutOfStep { rank, found: found.to_owned(), expected: expected.to_owned() }
}
