//! The HTTP side of the gangs: who may speak, how much and how often; the leader answers, other
//! replicas pass on.

mod limit;
mod relay;

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{ConnectInfo, Path, Request, State},
    http::{Extensions, HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing,
};
use serde::{Deserialize, Serialize};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};

use self::limit::Limiter;
pub use self::relay::Relay;
use super::gang::{self, Gangs};
use crate::{
    logs::{
        auth::{self, Auth},
        body::{self, Unread},
        strangers::Strangers,
    },
    tls,
    wire::sync::{SYNC_LIMIT, SYNC_PATH, SyncReply, SyncRequest},
};

/// A body must be there within this time.
const BODY_TIME: Duration = Duration::from_secs(5);
/// Tokens that are reviewed at the same time.
const REVIEWS: usize = 64;
/// Marks a request that another replica has passed on: it is not passed on again.
const FORWARDED: &str = "x-qvl-forwarded";

/// Which replica decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leader {
    Unknown,
    /// This one.
    Me,
    /// Another one, with the URL of its broker, such as `https://10.0.0.7:8080`.
    Other(String),
}

/// What the server needs.
#[derive(Debug)]
pub struct Broker {
    auth: Auth,
    gangs: Arc<Mutex<Gangs>>,
    leader: watch::Receiver<Leader>,
    limiter: Limiter,
    strangers: Strangers,
    reviews: Semaphore,
    relay: Relay,
}

/// A refusal as the caller reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Said {
    error: String,
    hint: String,
}

#[derive(Debug)]
struct Refused {
    status: StatusCode,
    said: Said,
}

impl Refused {
    fn new(status: StatusCode, error: impl Into<String>, hint: impl Into<String>) -> Self {
        Refused { status, said: Said { error: error.into(), hint: hint.into() } }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.status, Json(self.said)).into_response()
    }
}

impl Broker {
    /// A broker over gangs that the operator registers.
    pub fn new(auth: Auth, gangs: Arc<Mutex<Gangs>>, leader: watch::Receiver<Leader>) -> Self {
        Broker {
            auth,
            gangs,
            leader,
            limiter: Limiter::default(),
            strangers: Strangers::default(),
            reviews: Semaphore::new(REVIEWS),
            relay: Relay::plain(),
        }
    }

    /// The same with another way to the leader.
    #[must_use]
    pub fn with_relay(self, relay: Relay) -> Self {
        Broker { relay, ..self }
    }
}

/// Secrets for epochs: 128 random bits each.
pub fn random_tokens() -> impl FnMut() -> String + Send + 'static {
    use std::{fs::File, io::Read};
    || {
        let mut bytes = [0_u8; 16];
        File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut bytes))
            .expect("every Linux has /dev/urandom");
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The routes of the broker.
pub fn router(broker: Arc<Broker>) -> Router {
    Router::new().route(SYNC_PATH, routing::post(sync)).with_state(broker)
}

/// Serves until `stop` ends, with TLS if there is a certificate. All replicas serve.
pub async fn serve(
    listener: TcpListener,
    identity: Option<Arc<tls::Identity>>,
    broker: Arc<Broker>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let service = router(broker).into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(tls::open(listener, identity)?, service).with_graceful_shutdown(stop).await
}

async fn sync(
    State(broker): State<Arc<Broker>>,
    Path((namespace, job)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Refused> {
    let leader = broker.leader.borrow().clone();
    let key = (namespace, job);
    match leader {
        Leader::Me => broker.answer(key, request).await.map(|reply| Json(reply).into_response()),
        Leader::Other(url) if !request.headers().contains_key(FORWARDED) => {
            broker.pass_on(&url, &key, request).await
        }
        Leader::Other(_) | Leader::Unknown => Err(Refused::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "no replica of the operator leads at the moment",
            "ask again in a few seconds; trainers that run train on",
        )),
    }
}

impl Broker {
    async fn answer(&self, key: gang::Key, request: Request) -> Result<SyncReply, Refused> {
        let caller = self.caller(&key, request.headers(), peer(request.extensions())).await?;
        // Only after the token is known: nobody can use up the share of another job.
        let pods = self.lock().pods(&key).unwrap_or(1);
        if !self.limiter.allow(&key, pods, Instant::now()) {
            return Err(Refused::new(
                StatusCode::TOO_MANY_REQUESTS,
                format!("job `{}` asks too often", key.1),
                "a pod asks once a second, and a few times more while it waits for a start",
            ));
        }
        let body = body(request).await?;
        let request: SyncRequest = serde_json::from_slice(&body).map_err(|error| {
            Refused::new(
                StatusCode::BAD_REQUEST,
                format!("the request is not understood: {error}"),
                "use an image of the same version as the operator",
            )
        })?;
        if !caller.is_pod(&key.1, request.attempt, request.index, &request.pod_uid) {
            return Err(Refused::new(
                StatusCode::FORBIDDEN,
                format!(
                    "the token does not belong to pod {} of attempt {} of job `{}`",
                    request.index, request.attempt, key.1
                ),
                "a pod speaks only for itself",
            ));
        }
        self.lock().sync(Instant::now(), &key, &request).map_err(|refusal| refused(&refusal))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Gangs> {
        self.gangs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose token it is.
    async fn caller(
        &self,
        (namespace, job): &gang::Key,
        headers: &HeaderMap,
        from: Option<IpAddr>,
    ) -> Result<auth::Caller, Refused> {
        let token = bearer(headers);
        let _permit = self.reviews.acquire().await.expect("it is never closed");
        let checked = self.auth.check_from(&self.strangers, from, token, (namespace, job)).await;
        checked.map_err(|error| {
            let status = match &error {
                auth::Refusal::Missing { .. } | auth::Refusal::Invalid { .. } => {
                    StatusCode::UNAUTHORIZED
                }
                auth::Refusal::OtherNamespace { .. } => StatusCode::FORBIDDEN,
                auth::Refusal::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
                auth::Refusal::TooMany { .. } => StatusCode::TOO_MANY_REQUESTS,
            };
            Refused::new(status, error.to_string(), error.hint())
        })
    }

    /// Asks the leader, whose answer is given back as it is. What nobody should believe does not
    /// get so far: the leader counts what is wrong against the address of this replica.
    async fn pass_on(
        &self,
        leader: &str,
        key: &gang::Key,
        request: Request,
    ) -> Result<Response, Refused> {
        self.caller(key, request.headers(), peer(request.extensions())).await?;
        let (namespace, job) = key;
        let token = bearer(request.headers()).unwrap_or_default().to_owned();
        let away = |error: reqwest::Error| {
            let error = tls::describe(&error);
            Refused::new(
                StatusCode::BAD_GATEWAY,
                format!("the replica that leads does not answer: {error}"),
                "ask again in a few seconds; trainers that run train on",
            )
        };
        let (client, leader) = self.relay.to(leader).map_err(away)?;
        let url = format!("{leader}/v1/namespaces/{namespace}/jobs/{job}/sync");
        let asked = client.post(url).header(FORWARDED, "1").timeout(BODY_TIME);
        let asked = if token.is_empty() { asked } else { asked.bearer_auth(token) };
        let answer = asked.body(body(request).await?).send().await.map_err(away)?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(away)?;
        Ok((status, [(header::CONTENT_TYPE, "application/json")], body).into_response())
    }
}

/// Who has connected.
fn peer(extensions: &Extensions) -> Option<IpAddr> {
    extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(address)| address.ip())
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

async fn body(request: Request) -> Result<Bytes, Refused> {
    body::read(request, SYNC_LIMIT, BODY_TIME).await.map_err(|unread| match unread {
        Unread::TooLarge => Refused::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the request has more than {SYNC_LIMIT} bytes"),
            "only `qvl agent rank` speaks to this address",
        ),
        Unread::TooSlow => Refused::new(
            StatusCode::REQUEST_TIMEOUT,
            "the request did not arrive in time",
            "check the network between pod and operator",
        ),
        Unread::Broken => Refused::new(
            StatusCode::BAD_REQUEST,
            "the request broke off",
            "check the network between pod and operator",
        ),
    })
}

fn refused(refusal: &gang::Refusal) -> Refused {
    let status = match refusal {
        gang::Refusal::UnknownJob { .. } | gang::Refusal::Early { .. } => StatusCode::NOT_FOUND,
        gang::Refusal::Version { .. }
        | gang::Refusal::Index { .. }
        | gang::Refusal::Field { .. } => StatusCode::BAD_REQUEST,
        gang::Refusal::Stale { .. } => StatusCode::PRECONDITION_FAILED,
        gang::Refusal::Late { .. } | gang::Refusal::Replaced { .. } => StatusCode::CONFLICT,
    };
    Refused::new(status, refusal.to_string(), refusal.hint())
}
