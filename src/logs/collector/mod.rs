//! The collector: takes log segments of pods over HTTP, keeps them in files, gives them back.
//!
//! A segment is acknowledged when it is on the disk. Whoever sends it again changes nothing.

mod http;
mod metrics;
mod names;
mod pods;
mod read;
mod retention;
mod store;

pub use http::{SEGMENT_LIMIT, TOKEN_HEADER};
pub use read::{Query, StoredLine, StreamInfo};
pub use store::{Limits, Receipt, Store, StoreError};

use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{net::TcpListener, sync::Semaphore};

use self::pods::Pods;
use super::{auth::Auth, strangers::Strangers};
use crate::tls;

/// Segments that are received and written at the same time.
const WRITERS: usize = 64;
/// Readers at the same time; each follower keeps a thread.
const READERS: usize = 128;
/// Retention looks at the files this often.
const SWEEP: Duration = Duration::from_secs(60);
/// Requests in progress have so long when the collector ends.
const END_WITHIN: Duration = Duration::from_secs(5);

impl Default for Limits {
    /// 10 GiB, 1 GiB per rank, 30 days.
    fn default() -> Self {
        let age = Duration::from_secs(30 * 24 * 3600);
        Limits { total_bytes: 10 << 30, stream_bytes: 1 << 30, part_bytes: 16 << 20, age }
    }
}

#[derive(Debug)]
struct Collector {
    store: Store,
    auth: Auth,
    strangers: Strangers,
    pods: Pods,
    metrics: metrics::Metrics,
    identity: Option<Arc<tls::Identity>>,
    writers: Arc<Semaphore>,
    readers: Arc<Semaphore>,
    stopping: AtomicBool,
}

impl Collector {
    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}

/// Serves until `stop`, then ends what is in progress; with TLS if there is a certificate.
pub async fn serve(
    listener: TcpListener,
    identity: Option<Arc<tls::Identity>>,
    metrics_listener: Option<TcpListener>,
    folder: &Path,
    limits: Limits,
    auth: Auth,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let store = Store::open(folder, limits)?;
    let door = tls::open(listener, identity.clone())?;
    let collector = Arc::new(Collector {
        store,
        auth,
        strangers: Strangers::default(),
        pods: Pods::default(),
        metrics: metrics::Metrics::default(),
        identity,
        writers: Arc::new(Semaphore::new(WRITERS)),
        readers: Arc::new(Semaphore::new(READERS)),
        stopping: AtomicBool::new(false),
    });
    let (end, mut ended) = tokio::sync::watch::channel(false);
    let sweeper = tokio::spawn(sweep(Arc::clone(&collector)));
    let metrics = metrics_listener.map(|listener| {
        let routes = http::metrics_routes(Arc::clone(&collector));
        tokio::spawn(axum::serve(listener, routes).into_future())
    });
    let routes = http::routes(Arc::clone(&collector));
    let service = routes.into_make_service_with_connect_info::<SocketAddr>();
    let serving = axum::serve(door, service).with_graceful_shutdown(async move {
        let _sender_gone = ended.wait_for(|end| *end).await;
    });
    let serving = tokio::spawn(serving.into_future());
    stop.await;
    // Followers see the flag within a moment, so that their connections end as well.
    collector.stopping.store(true, Ordering::Relaxed);
    end.send_replace(true);
    sweeper.abort();
    if let Some(metrics) = metrics {
        metrics.abort();
    }
    match tokio::time::timeout(END_WITHIN, serving).await {
        Ok(Ok(served)) => served,
        // A peer that does not read, or a request that panicked, holds nobody up.
        Ok(Err(_)) | Err(_) => Ok(()),
    }
}

async fn sweep(collector: Arc<Collector>) {
    loop {
        let sweeper = Arc::clone(&collector);
        match tokio::task::spawn_blocking(move || sweeper.store.sweep()).await {
            Ok(Ok(removed)) => collector.metrics.removed(removed),
            Ok(Err(error)) => tracing::warn!("retention failed: {error}"),
            Err(error) => tracing::warn!("retention panicked: {error}"),
        }
        tokio::time::sleep(SWEEP).await;
    }
}

#[cfg(test)]
mod tests;
