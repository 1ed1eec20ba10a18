//! What the collector answers.

use std::{
    convert::Infallible,
    error::Error as _,
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{ConnectInfo, Path, Query as UrlQuery, Request, State},
    http::{Extensions, HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::{
    Collector,
    metrics::count,
    names::{self, BadName, JobName},
    read::{self, Query, Reader},
    store::StoreError,
};
use crate::logs::{
    auth::{Caller, Refusal},
    body::{self, Unread},
};

/// Largest segment that is taken.
pub const SEGMENT_LIMIT: usize = 4 << 20;
/// A reader that cannot send `authorization` through the apiserver's proxy uses this header.
pub const TOKEN_HEADER: &str = "x-qvl-token";
/// A pod has so long to send its segment.
const BODY_WITHIN: Duration = Duration::from_secs(30);
/// A follower looks for new lines this often.
const LOOK: Duration = Duration::from_millis(300);
/// A follower hears an empty line at least this often, so that each side knows the other lives.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Bytes that are sent to a reader at once.
const CHUNK: usize = 64 * 1024;

pub(super) fn routes(collector: Arc<Collector>) -> Router {
    let job = "/v1/namespaces/{namespace}/jobs/{job}";
    Router::new()
        .route(&format!("{job}/segments"), post(segments))
        .route(&format!("{job}/lines"), get(lines))
        .route(&format!("{job}/streams"), get(streams))
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state(collector)
}

pub(super) fn metrics_routes(collector: Arc<Collector>) -> Router {
    let metrics = |State(collector): State<Arc<Collector>>| async move {
        let Collector { store, metrics, identity, .. } = &*collector;
        let of_tls = identity.as_ref().map(|identity| identity.metrics()).unwrap_or_default();
        let text = metrics.text(store.used_bytes(), store.limits.total_bytes) + &of_tls;
        ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
    };
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state(collector)
}

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Name(#[from] BadName),
    #[error(transparent)]
    Token(#[from] Refusal),
    #[error("the token is not that of pod {index} of attempt {attempt} of job `{job}`")]
    OtherPod { job: String, attempt: u32, index: u32 },
    #[error("a segment has at most {SEGMENT_LIMIT} bytes")]
    TooLarge,
    #[error("the segment did not arrive within {} s", BODY_WITHIN.as_secs())]
    TooSlow,
    #[error("the segment broke off")]
    Broken,
    #[error("`{value}` is no list of ranks: expected numbers with commas between them")]
    Ranks { value: String },
    #[error("too many requests at once")]
    Busy,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("failed to read the logs")]
    Read { source: std::io::Error },
}

impl Refused {
    fn status(&self) -> StatusCode {
        match self {
            Refused::Name(_) | Refused::Broken | Refused::Ranks { .. } => StatusCode::BAD_REQUEST,
            Refused::Token(Refusal::Unavailable { .. }) => StatusCode::SERVICE_UNAVAILABLE,
            Refused::Token(Refusal::OtherNamespace { .. }) | Refused::OtherPod { .. } => {
                StatusCode::FORBIDDEN
            }
            Refused::Token(Refusal::TooMany { .. }) | Refused::Busy => {
                StatusCode::TOO_MANY_REQUESTS
            }
            Refused::Token(_) => StatusCode::UNAUTHORIZED,
            Refused::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Refused::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Refused::Store(StoreError::Malformed { .. }) => StatusCode::BAD_REQUEST,
            Refused::Store(StoreError::ForeignRank { .. }) => StatusCode::FORBIDDEN,
            Refused::Store(StoreError::Full { .. } | StoreError::DiskFull { .. }) => {
                StatusCode::INSUFFICIENT_STORAGE
            }
            Refused::Store(StoreError::Write { .. }) | Refused::Read { .. } => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }
}

impl Refused {
    /// What helps.
    fn hint(&self) -> &'static str {
        match self {
            Refused::Token(refusal) => refusal.hint(),
            Refused::OtherPod { .. } => "a pod speaks only for itself",
            Refused::Store(StoreError::ForeignRank { .. }) => "a pod writes only its own ranks",
            Refused::Name(_) | Refused::Ranks { .. } => "`docs/logs.md` has the paths",
            Refused::TooLarge | Refused::Broken | Refused::Store(StoreError::Malformed { .. }) => {
                "use an image of the same version as the collector"
            }
            Refused::TooSlow => "check the network between pod and collector",
            Refused::Busy => "ask again in a few seconds",
            Refused::Store(StoreError::Full { .. } | StoreError::DiskFull { .. }) => {
                "enlarge the collector's volume and its --max-bytes, or lower --max-age"
            }
            Refused::Store(StoreError::Write { .. }) | Refused::Read { .. } => {
                "look at the collector's volume and its log"
            }
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        tracing::info!(status = self.status().as_u16(), "refused: {text}");
        (self.status(), format!("{text}\nhint: {}\n", self.hint())).into_response()
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Origin {
    attempt: u32,
    index: u32,
    pod_uid: String,
}

async fn segments(
    State(collector): State<Arc<Collector>>,
    Path((namespace, job)): Path<(String, String)>,
    UrlQuery(origin): UrlQuery<Origin>,
    request: Request,
) -> Result<Response, Refused> {
    let name = JobName::new(&namespace, &job)?;
    let Origin { attempt, index, pod_uid } = origin;
    names::check("pod UID", &pod_uid)?;
    let from = peer(request.extensions());
    let caller = authenticate(&collector, request.headers(), from, &name).await?;
    if !caller.is_pod(&job, attempt, index, &pod_uid) {
        count(&collector.metrics.unauthorized);
        return Err(Refused::OtherPod { job, attempt, index });
    }
    let permit = Arc::clone(&collector.writers).try_acquire_owned();
    let (Ok(permit), Some(entered)) = (permit, collector.pods.enter(&pod_uid)) else {
        count(&collector.metrics.busy);
        return Err(Refused::Busy);
    };
    let segment = body(request).await.inspect_err(|_error| count(&collector.metrics.invalid))?;
    let bytes = segment.len();
    let writer = Arc::clone(&collector);
    let write = move || {
        let _until_written = (permit, entered);
        writer.store.append(&name, (attempt, index, &pod_uid), &segment)
    };
    let stored = tokio::task::spawn_blocking(write).await.map_err(|_panic| Refused::Broken)?;
    let receipt = stored.inspect_err(|error| collector.metrics.failed(error))?;
    collector.metrics.stored(receipt, bytes);
    let answer = serde_json::json!({
        "lines": receipt.lines, "repeated": receipt.repeated, "lost": receipt.lost
    });
    Ok(Json(answer).into_response())
}

async fn authenticate(
    collector: &Collector,
    headers: &HeaderMap,
    from: Option<IpAddr>,
    name: &JobName,
) -> Result<Caller, Refused> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = text("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let token = text(TOKEN_HEADER).or(bearer);
    let (strangers, job) = (&collector.strangers, (&*name.namespace, &*name.job));
    let checked = collector.auth.check_from(strangers, from, token, job).await;
    Ok(checked.inspect_err(|_refusal| count(&collector.metrics.unauthorized))?)
}

/// Who has connected.
fn peer(extensions: &Extensions) -> Option<IpAddr> {
    extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(address)| address.ip())
}

async fn body(request: Request) -> Result<Bytes, Refused> {
    body::read(request, SEGMENT_LIMIT, BODY_WITHIN).await.map_err(|unread| match unread {
        Unread::TooLarge => Refused::TooLarge,
        Unread::TooSlow => Refused::TooSlow,
        Unread::Broken => Refused::Broken,
    })
}

#[derive(Debug, Deserialize)]
struct Wanted {
    rank: Option<String>,
    attempt: Option<u32>,
    since: Option<u64>,
    #[serde(default)]
    follow: bool,
}

impl Wanted {
    fn query(&self) -> Result<Query, Refused> {
        let ranks = self.rank.iter().flat_map(|list| list.split(','));
        let ranks = ranks.map(|rank| {
            rank.parse::<u32>()
                .map_err(|_error| Refused::Ranks { value: rank.chars().take(20).collect() })
        });
        let (attempt, since) = (self.attempt, self.since);
        Ok(Query { ranks: ranks.collect::<Result<_, _>>()?, attempt, since })
    }
}

async fn lines(
    State(collector): State<Arc<Collector>>,
    Path((namespace, job)): Path<(String, String)>,
    UrlQuery(wanted): UrlQuery<Wanted>,
    headers: HeaderMap,
    extensions: Extensions,
) -> Result<Response, Refused> {
    let name = JobName::new(&namespace, &job)?;
    let query = wanted.query()?;
    authenticate(&collector, &headers, peer(&extensions), &name).await?;
    let permit = Arc::clone(&collector.readers).try_acquire_owned();
    let Ok(permit) = permit else {
        count(&collector.metrics.busy);
        return Err(Refused::Busy);
    };
    let reader = Reader::new(name.folder(&collector.store.root), query);
    let (sender, receiver) = mpsc::channel::<Bytes>(4);
    tokio::task::spawn_blocking(move || {
        collector.metrics.readers.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = send(&collector, reader, wanted.follow, &sender) {
            tracing::warn!("a reader's answer broke off: {error}");
        }
        collector.metrics.readers.fetch_sub(1, Ordering::Relaxed);
        let _until_sent: OwnedSemaphorePermit = permit;
    });
    let chunks = futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|chunk| (Ok::<_, Infallible>(chunk), receiver))
    });
    let head = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((head, Body::from_stream(chunks)).into_response())
}

/// Sends lines until all are sent, or, to a follower, until it goes.
fn send(
    collector: &Collector,
    mut reader: Reader,
    follow: bool,
    sender: &mpsc::Sender<Bytes>,
) -> std::io::Result<()> {
    let mut spoken = std::time::Instant::now();
    loop {
        let mut chunk = Vec::new();
        let mut gone = false;
        reader.read_new(|line| {
            serde_json::to_writer(&mut chunk, &line).expect("plain data");
            chunk.push(b'\n');
            if CHUNK <= chunk.len() {
                gone = sender.blocking_send(std::mem::take(&mut chunk).into()).is_err();
                spoken = std::time::Instant::now();
            }
            !gone
        })?;
        if chunk.is_empty() && HEARTBEAT < spoken.elapsed() {
            chunk.push(b'\n');
        }
        if !chunk.is_empty() {
            gone |= sender.blocking_send(chunk.into()).is_err();
            spoken = std::time::Instant::now();
        }
        if gone || !follow || collector.is_stopping() || sender.is_closed() {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}

async fn streams(
    State(collector): State<Arc<Collector>>,
    Path((namespace, job)): Path<(String, String)>,
    headers: HeaderMap,
    extensions: Extensions,
) -> Result<Response, Refused> {
    let name = JobName::new(&namespace, &job)?;
    authenticate(&collector, &headers, peer(&extensions), &name).await?;
    let folder = name.folder(&collector.store.root);
    let read = tokio::task::spawn_blocking(move || read::streams(&folder)).await;
    let streams = read.map_err(|_panic| Refused::Broken)?;
    Ok(Json(streams.map_err(|source| Refused::Read { source })?).into_response())
}
