//! Endpoints: the broker for pods, and pages for probes and metrics.

use std::{net::SocketAddr, sync::Arc};

use axum::{Router, http::header, routing::get};
use tokio::net::TcpListener;
use tracing::{error, info};

use super::{OperatorError, metrics::Metrics};
use crate::tls;

/// Serves until the shutdown, with TLS if there is a certificate.
pub(super) async fn start(
    what: &'static str,
    address: SocketAddr,
    certificate: Option<Arc<tls::Identity>>,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), OperatorError> {
    let failed = |source| OperatorError::Listen { what, address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let listens = listener.local_addr().map_err(failed)?;
    info!(what, address = %listens, "listening");
    let door = tls::open(listener, certificate).map_err(failed)?;
    tokio::spawn(async move {
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        let served = axum::serve(door, service).with_graceful_shutdown(shutdown).await;
        if let Err(failure) = served {
            error!(error = &failure as &dyn std::error::Error, what, "serving ended");
        }
    });
    Ok(())
}

/// `/healthz`, `/readyz` and `/metrics`.
pub(super) fn pages(metrics: Arc<Metrics>, certificate: Option<Arc<tls::Identity>>) -> Router {
    let page = move || {
        let of_tls = certificate.as_ref().map(|certificate| certificate.metrics());
        metrics.text() + &of_tls.unwrap_or_default()
    };
    let text = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(|| async { "ok\n" }))
        .route("/metrics", get(move || async move { (text, page()) }))
}
