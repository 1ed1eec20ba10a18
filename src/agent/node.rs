//! Reports a node: looks at it again and again, follows its kernel log, and writes what it finds
//! into the node's `NodeReport`, on change and every few minutes.
//!
//! Looking and writing do not wait for each other: an API server that is away costs reports, not
//! facts, and a driver that hangs is itself a fact. A report is written only from facts that are
//! newer than those of the report before, so an agent that can no longer look lets its report age.

mod judge;
mod metrics;
mod watch;
mod write;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    http::{StatusCode, header},
    routing::get,
};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use tokio::{net::TcpListener, sync::watch as channel};
use tracing::info;

use self::metrics::Metrics;
use crate::facts::{NodeFacts, NodeName};

/// How an agent runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the node.
    pub node: NodeName,
    /// Where metrics and the probe of the kubelet are served.
    pub listen: SocketAddr,
    /// How often the node is looked at.
    pub interval: Duration,
    /// The program that asks the driver: `qvl`.
    pub program: PathBuf,
    /// Root of the node's files.
    pub root: PathBuf,
}

/// Why an agent ended.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("failed to listen on {address} for metrics")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("failed to serve metrics on {address}")]
    Serve { address: SocketAddr, source: std::io::Error },
}

/// What was seen on the node.
#[derive(Clone, Debug)]
struct Observation {
    facts: NodeFacts,
    at: Timestamp,
    /// The same moment on a clock that nobody sets.
    instant: Instant,
}

/// The newest observation; none before the first.
type Newest = channel::Receiver<Option<Arc<Observation>>>;

/// What the parts of the agent tell each other beside observations.
#[derive(Debug)]
struct Shared {
    started: Instant,
    /// Milliseconds after the start at which the watching loop went round last.
    alive_ms: AtomicU64,
    numbers: Mutex<Numbers>,
}

#[derive(Debug, Default)]
struct Numbers {
    metrics: Metrics,
    looked: Option<Instant>,
    written: Option<Instant>,
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut Numbers)) {
        change(&mut self.numbers.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn is_alive(&self) -> bool {
        let alive = Duration::from_millis(self.alive_ms.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(alive) < STOPPED
    }

    fn metrics(&self) -> String {
        let numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let age = |then: Option<Instant>| then.map(|then| then.elapsed().as_secs_f64());
        let (facts_age, report_age) = (age(numbers.looked), age(numbers.written));
        Metrics { facts_age, report_age, ..numbers.metrics.clone() }.text()
    }
}

/// A loop that has not gone round for so long does not go round any more.
const STOPPED: Duration = Duration::from_secs(60);

/// Runs until `shutdown` is done.
pub async fn run(
    client: Client,
    options: Options,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), NodeError> {
    let address = options.listen;
    let listener =
        TcpListener::bind(address).await.map_err(|source| NodeError::Listen { address, source })?;
    let shared = Arc::new(Shared {
        started: Instant::now(),
        alive_ms: AtomicU64::new(0),
        numbers: Mutex::default(),
    });
    shared.change(|numbers| numbers.metrics.node.clone_from(&options.node.0));
    let (sender, newest) = channel::channel(None);
    let node = options.node.clone();
    info!(%node, "the agent looks at its node");
    tokio::select! {
        served = axum::serve(listener, pages(shared.clone())) => {
            served.map_err(|source| NodeError::Serve { address, source })
        }
        () = watch::watch(options, sender, shared.clone()) => Ok(()),
        () = write::write(client, node, newest, shared) => Ok(()),
        () = shutdown => {
            info!("the agent ends");
            Ok(())
        }
    }
}

/// `/healthz` and `/metrics`.
fn pages(shared: Arc<Shared>) -> Router {
    let text = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    let health = shared.clone();
    let health = move || async move {
        if health.is_alive() {
            (StatusCode::OK, "ok\n")
        } else {
            (StatusCode::INTERNAL_SERVER_ERROR, "the agent no longer looks at its node\n")
        }
    };
    Router::new()
        .route("/healthz", get(health))
        .route("/metrics", get(move || async move { (text, shared.metrics()) }))
}
