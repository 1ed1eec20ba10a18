//! Looks at the node.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use tokio::{
    sync::watch::Sender,
    task::{JoinError, JoinHandle},
    time::{MissedTickBehavior, interval},
};
use tracing::warn;

use super::{Observation, Options, Shared, judge};
use crate::{
    facts::{Fact, KernelLog, NodeFacts},
    probe::{self, KernelLogFollower},
};

/// How often the kernel log is looked at, which costs one system call.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// A look at the node that is being taken.
struct Look {
    begin: Instant,
    task: JoinHandle<NodeFacts>,
}

/// Looks at the node for ever. Trouble in the kernel log is told at once, with the facts that are
/// known already: the driver may take long to answer, or never.
pub(super) async fn watch(
    options: Options,
    sender: Sender<Option<Arc<Observation>>>,
    shared: Arc<Shared>,
) {
    let mut log = KernelLogFollower::new(&options.root);
    let mut clock = interval(LOG_EVERY);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut look: Option<Look> = None;
    let mut due = Instant::now();
    loop {
        tokio::select! {
            _ = clock.tick() => {
                let millis = shared.started.elapsed().as_millis();
                shared.alive_ms.store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Relaxed);
                let news = log.poll();
                count(&log, &shared);
                if news {
                    tell_log(&sender, &log.log());
                    due = Instant::now();
                }
                if look.is_none() && due <= Instant::now() {
                    due = Instant::now() + options.interval;
                    look = Some(begin(&options, log.log()));
                }
            }
            ended = ended(&mut look) => {
                match ended {
                    Ok((facts, begin)) => {
                        tell(&options, facts, &log, begin, &sender, &shared);
                    }
                    Err(error) => warn!(%error, "a look at the node failed"),
                }
                look = None;
            }
        }
    }
}

/// Files are read and programs started on a thread of their own: a device that does not answer
/// may hold it for long.
fn begin(options: &Options, kernel_log: Fact<KernelLog>) -> Look {
    let options = probe::Options {
        root: options.root.clone(),
        program: Some(options.program.clone()),
        kernel_log: Some(kernel_log),
        ..probe::Options::default()
    };
    let task = tokio::task::spawn_blocking(move || probe::node(&options));
    Look { begin: Instant::now(), task }
}

/// The facts of the look, when it ends; never, if none is taken.
async fn ended(look: &mut Option<Look>) -> Result<(NodeFacts, Instant), JoinError> {
    match look {
        Some(look) => (&mut look.task).await.map(|facts| (facts, look.begin)),
        None => std::future::pending().await,
    }
}

fn tell(
    options: &Options,
    facts: NodeFacts,
    log: &KernelLogFollower,
    begin: Instant,
    sender: &Sender<Option<Arc<Observation>>>,
    shared: &Shared,
) {
    let took = begin.elapsed();
    let at = Timestamp::now();
    let mut facts = judge::of_node(&options.node, facts);
    // What came while the driver was asked.
    facts.kernel.log = log.log();
    let judged = judge::judge(&options.node, &facts);
    shared.change(|numbers| {
        numbers.looked = Some(begin);
        let metrics = &mut numbers.metrics;
        metrics.probe_seconds = Some(took.as_secs_f64());
        metrics.gpus = facts.nvml.gpus.value().map(|gpus| gpus.len() as u64);
        metrics.counts = Some(judged.counts);
        metrics.findings = judged.findings;
    });
    sender.send_replace(Some(Arc::new(Observation { facts, at, instant: begin })));
}

/// The newest observation once more, with what the kernel has said since.
fn tell_log(sender: &Sender<Option<Arc<Observation>>>, log: &Fact<KernelLog>) {
    let Some(before) = sender.borrow().clone() else { return };
    let mut observation = (*before).clone();
    observation.facts.kernel.log = log.clone();
    sender.send_replace(Some(Arc::new(observation)));
}

fn count(log: &KernelLogFollower, shared: &Shared) {
    shared.change(|numbers| {
        let metrics = &mut numbers.metrics;
        metrics.xids.clone_from(log.xids());
        metrics.log_readable = log.log().value().is_some();
        metrics.log_lost = log.lost();
    });
}
