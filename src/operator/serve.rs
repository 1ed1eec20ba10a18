//! Endpoints: the broker for pods, and pages for probes and metrics.

use std::{net::SocketAddr, sync::Arc};

use axum::{Router, http::header, routing::get};
use tokio::net::TcpListener;
use tracing::error;

use super::{OperatorError, metrics::Metrics};

/// Serves until the shutdown.
pub(super) async fn start(
    what: &'static str,
    address: SocketAddr,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), OperatorError> {
    let listener = TcpListener::bind(address).await.map_err(|source| OperatorError::Listen {
        what,
        address,
        source,
    })?;
    tokio::spawn(async move {
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        let served = axum::serve(listener, service).with_graceful_shutdown(shutdown).await;
        if let Err(failure) = served {
            error!(error = &failure as &dyn std::error::Error, what, "serving ended");
        }
    });
    Ok(())
}

/// `/healthz`, `/readyz` and `/metrics`.
pub(super) fn pages(metrics: Arc<Metrics>) -> Router {
    let text = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(|| async { "ok\n" }))
        .route("/metrics", get(move || async move { (text, metrics.text()) }))
}
