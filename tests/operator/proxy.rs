//! Stands between one operator and the API server, and breaks what its plan says.

use std::{
    error::Error,
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{StreamExt, future, stream};
use http_body_util::{BodyDataStream, BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response,
    body::{Bytes, Frame, Incoming},
    header,
    http::request::Parts,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use kube::{Client, client::Body};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    faults::{Fault, Plan},
    process::Operator,
};

type AnyError = Box<dyn Error + Send + Sync>;
type Answer = Response<UnsyncBoxBody<Bytes, AnyError>>;

/// Who the operator is for the API server: it has the rights of the chart and no others.
const USER: &str = "system:serviceaccount:qvl-system:qvl-operator";

/// A proxy for one operator.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    plan: Plan,
    operator: OnceLock<Arc<Operator>>,
    /// Calls so far, watches left out.
    calls: AtomicU64,
    /// Every call with what went wrong.
    log: Mutex<Vec<String>>,
    /// Counts the times that all watches were cut.
    cuts: watch::Sender<u64>,
}

impl Proxy {
    /// Listens on 127.0.0.1 and forwards as the operator's account.
    pub(crate) async fn start(client: Client, plan: Plan) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shared = Arc::new(Shared {
            client,
            plan,
            operator: OnceLock::new(),
            calls: AtomicU64::new(0),
            log: Mutex::new(Vec::new()),
            cuts: watch::Sender::new(0),
        });
        let proxy = Proxy { address: listener.local_addr().unwrap(), shared: shared.clone() };
        tokio::spawn(async move {
            while let Ok((socket, _peer)) = listener.accept().await {
                let shared = shared.clone();
                tokio::spawn(async move {
                    let serve = service_fn(move |request| handle(shared.clone(), request));
                    // That it ends with an error is the purpose.
                    let _broken =
                        http1::Builder::new().serve_connection(TokioIo::new(socket), serve).await;
                });
            }
        });
        proxy
    }

    /// Whom a crash kills.
    pub(crate) fn protects(&self, operator: &Arc<Operator>) {
        assert!(self.shared.operator.set(operator.clone()).is_ok(), "one operator");
    }

    /// Calls so far.
    pub(crate) fn calls(&self) -> u64 {
        self.shared.calls.load(Ordering::SeqCst)
    }

    /// All calls with their faults.
    pub(crate) fn log(&self) -> Vec<String> {
        self.shared.log.lock().unwrap().clone()
    }
}

async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Answer, AnyError> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    if path.contains("watch=true") {
        return shared.watch(&parts, body).await;
    }
    let call = shared.calls.fetch_add(1, Ordering::SeqCst);
    let fault = shared.plan.at(call);
    let told = fault.map_or(String::new(), |fault| format!("  {fault:?}"));
    shared.log.lock().unwrap().push(format!("{call} {} {path}{told}", parts.method));
    let dropped = || Err(AnyError::from("dropped"));
    match fault {
        None => shared.forward(&parts, body).await,
        Some(Fault::Refuse(code)) => Ok(refusal(code)),
        Some(Fault::DropBefore) => dropped(),
        Some(Fault::CrashBefore) => {
            shared.crash();
            dropped()
        }
        Some(Fault::Deny) => shared.forward(&parts, body).await.map(|_answer| refusal(500)),
        Some(Fault::DropAfter) => {
            shared.forward(&parts, body).await?;
            dropped()
        }
        Some(Fault::CrashAfter) => {
            shared.forward(&parts, body).await?;
            shared.crash();
            dropped()
        }
        Some(Fault::CutWatches) => {
            let answer = shared.forward(&parts, body).await;
            shared.cuts.send_modify(|cuts| *cuts += 1);
            answer
        }
    }
}

impl Shared {
    fn crash(&self) {
        self.operator.get().expect("it has an operator before it has calls").crash();
    }

    async fn send(&self, parts: &Parts, body: Bytes) -> Result<Response<Body>, AnyError> {
        let mut request = Request::builder().method(&parts.method).uri(&parts.uri);
        for name in [header::CONTENT_TYPE, header::ACCEPT] {
            if let Some(value) = parts.headers.get(&name) {
                request = request.header(name, value);
            }
        }
        let request = request.header("Impersonate-User", USER).body(Body::from(body.to_vec()))?;
        Ok(self.client.send(request).await?)
    }

    async fn forward(&self, parts: &Parts, body: Bytes) -> Result<Answer, AnyError> {
        let (head, body) = self.send(parts, body).await?.into_parts();
        Ok(whole(head.status.as_u16(), None, body.collect().await?.to_bytes()))
    }

    /// Passes a watch on until it is cut.
    async fn watch(&self, parts: &Parts, body: Bytes) -> Result<Answer, AnyError> {
        let mut cuts = self.cuts.subscribe();
        let (head, body) = self.send(parts, body).await?.into_parts();
        let cut = async move { cuts.changed().await };
        let end = stream::once(future::ready(Err(AnyError::from("the watch is cut"))));
        let frames =
            BodyDataStream::new(body).map(|data| data.map(Frame::data).map_err(Into::into));
        let frames = frames.take_until(Box::pin(cut)).chain(end);
        let answer = Response::builder().status(head.status);
        Ok(answer
            .header(header::CONTENT_TYPE, "application/json")
            .body(StreamBody::new(frames).boxed_unsync())?)
    }
}

/// A refusal in the words of an API server.
fn refusal(code: u16) -> Answer {
    let reason = match code {
        409 => "Conflict",
        429 => "TooManyRequests",
        _ => "InternalError",
    };
    let status = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "a fault of the test", "reason": reason, "code": code,
    });
    whole(code, (code == 429).then_some("1"), Bytes::from(status.to_string()))
}

fn whole(code: u16, retry_after: Option<&str>, body: Bytes) -> Answer {
    let mut answer = Response::builder().status(code);
    answer = answer.header(header::CONTENT_TYPE, "application/json");
    if let Some(seconds) = retry_after {
        answer = answer.header(header::RETRY_AFTER, seconds);
    }
    answer.body(Full::new(body).map_err(|never| match never {}).boxed_unsync()).unwrap()
}
