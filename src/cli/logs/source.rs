//! Where the lines of a job in a cluster come from: the collector, or the logs of its live pods.

use std::{collections::BTreeMap, time::Duration};

use axum::http::Request;
use futures::{AsyncBufReadExt, StreamExt};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{Pod, Service, ServiceAccount},
};
use kube::{
    Api,
    api::{ListParams, LogParams, PostParams},
};
use tokio::sync::mpsc;

use super::LogsArgs;
use crate::{
    api::labels,
    cli::{
        CliError,
        cluster::{Call, Cluster},
    },
    logs::{
        auth,
        collector::{StoredLine, StreamInfo, TOKEN_HEADER},
    },
};

/// Account that a token for reading is made of; every namespace has it.
const ACCOUNT: &str = "default";
/// The collector's Service, and its port.
const SERVICE: &str = "qvl-collector";
const PORT: &str = "logs";
/// The shortest life that the apiserver gives a token.
const TOKEN_SECONDS: i64 = 600;
/// A broken stream is taken up again after so long.
const AGAIN: Duration = Duration::from_secs(1);
/// Lines so much older than the newest are asked for again then, for clocks that differ.
const OVERLAP_MS: u64 = 60_000;

/// Lines, or why there are no more.
pub(super) type Lines = mpsc::Receiver<Result<StoredLine, CliError>>;

/// The collector, as seen through the apiserver.
#[derive(Clone)]
pub(super) struct Collector {
    cluster: Cluster,
    system_namespace: String,
    job: String,
}

/// What the collector has of a job.
pub(super) enum Found {
    Streams(Vec<StreamInfo>),
    /// It cannot be asked, for this reason.
    Absent(String),
}

impl Collector {
    pub(super) fn new(cluster: &Cluster, args: &LogsArgs) -> Self {
        let system_namespace = args.system_namespace.clone();
        Collector { cluster: cluster.clone(), system_namespace, job: args.name.clone() }
    }

    /// What it has. Whoever asks must be allowed to make tokens in the job's namespace.
    pub(super) async fn streams(&self) -> Result<Found, CliError> {
        let Some(service) = self.service().await? else {
            return Ok(Found::Absent(format!(
                "there is no Service `{SERVICE}` in namespace `{}`",
                self.system_namespace
            )));
        };
        let request = self.request(&service, "streams", "").await?;
        match self.cluster.client.request::<Vec<StreamInfo>>(request).await {
            Ok(streams) => Ok(Found::Streams(streams)),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 502..=504) => {
                Ok(Found::Absent(status.message.lines().next().unwrap_or_default().to_owned()))
            }
            Err(error) => Err(self.error(&service, &error)),
        }
    }

    /// The collector's name at the apiserver's proxy; `None` if it is not installed. Its Service
    /// says whether the port speaks TLS; the apiserver does not check who answers there.
    async fn service(&self) -> Result<Option<String>, CliError> {
        let services: Api<Service> =
            Api::namespaced(self.cluster.client.clone(), &self.system_namespace);
        let call = Call::one("get", "services", &self.system_namespace, SERVICE);
        let found = self.cluster.call(call, services.get_opt(SERVICE)).await?;
        Ok(found.map(|service| proxy_name(&service)))
    }

    /// Streams lines; to a follower again and again, each line once.
    pub(super) fn lines(self, attempt: Option<u32>, since: Option<u64>, follow: bool) -> Lines {
        let (sender, receiver) = mpsc::channel(256);
        tokio::spawn(async move {
            let attempt = attempt.map_or_else(String::new, |attempt| format!("&attempt={attempt}"));
            let query = format!("follow={follow}{attempt}");
            let mut seen = Seen { since, ..Seen::default() };
            while let Err(error) = self.read(&query, follow, &mut seen, &sender).await {
                if !follow || sender.is_closed() {
                    let _reader_gone = sender.send(Err(error)).await;
                    return;
                }
                tokio::time::sleep(AGAIN).await;
            }
        });
        receiver
    }

    async fn read(
        &self,
        query: &str,
        follow: bool,
        seen: &mut Seen,
        sender: &mpsc::Sender<Result<StoredLine, CliError>>,
    ) -> Result<(), CliError> {
        let overlap = seen.newest_ms.map(|newest| newest.saturating_sub(OVERLAP_MS));
        let query = match overlap.max(seen.since) {
            Some(since) => format!("{query}&since={since}"),
            None => query.to_owned(),
        };
        // It may have been installed anew since the last time.
        let service = self.service().await?.unwrap_or_else(|| format!("{SERVICE}:{PORT}"));
        let request = self.request(&service, "lines", &query).await?;
        let stream = self.cluster.client.request_stream(request).await;
        let mut lines = stream.map_err(|error| self.error(&service, &error))?.lines();
        while let Some(text) = lines.next().await {
            let text = text?;
            if text.is_empty() {
                continue;
            }
            let line = serde_json::from_str::<StoredLine>(&text).map_err(|error| {
                let what = "the collector's answer makes no sense";
                let error = anyhow::Error::new(error).context(what);
                CliError::of(crate::wire::ExitStatus::Internal, error)
            })?;
            if seen.is_new(&line) && sender.send(Ok(line)).await.is_err() {
                return Ok(());
            }
        }
        // A follower's stream ends only when the collector does.
        if follow {
            Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into())
        } else {
            Ok(())
        }
    }

    async fn request(
        &self,
        service: &str,
        what: &str,
        query: &str,
    ) -> Result<Request<Vec<u8>>, CliError> {
        let (namespace, job) = (&self.cluster.namespace, &self.job);
        let token = self.token().await?;
        let path = format!(
            "/api/v1/namespaces/{}/services/{service}/proxy\
             /v1/namespaces/{namespace}/jobs/{job}/{what}?{query}",
            self.system_namespace
        );
        let request = Request::get(path).header(TOKEN_HEADER, token).body(Vec::new());
        request.map_err(|error| CliError::of(crate::wire::ExitStatus::Usage, error))
    }

    /// A token that shows the collector that we may act in the job's namespace: through its proxy
    /// the apiserver does not tell who asks.
    async fn token(&self) -> Result<String, CliError> {
        let namespace = self.cluster.namespace.as_str();
        let spec = TokenRequestSpec {
            audiences: Some(vec![auth::audience(namespace, &self.job)]),
            expiration_seconds: Some(TOKEN_SECONDS),
            ..TokenRequestSpec::default()
        };
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.cluster.client.clone(), namespace);
        let parameters = PostParams::default();
        let made = accounts.create_token_request(ACCOUNT, &parameters, &request);
        let call = Call::one("create", "serviceaccounts/token", namespace, ACCOUNT);
        let made = self.cluster.call(call, made).await?;
        Ok(made.status.and_then(|status| status.token).unwrap_or_default())
    }

    fn error(&self, service: &str, error: &kube::Error) -> CliError {
        let call = Call::one("get", "services/proxy", &self.system_namespace, service);
        self.cluster.error(call, error)
    }
}

/// `qvl-collector:logs`, with `https:` before it if the port speaks TLS.
fn proxy_name(service: &Service) -> String {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    let port = ports.into_iter().flatten().find(|port| port.name.as_deref() == Some(PORT));
    let tls = port.is_some_and(|port| port.app_protocol.as_deref() == Some("https"));
    format!("{}{SERVICE}:{PORT}", if tls { "https:" } else { "" })
}

/// What a follower has got already.
#[derive(Default)]
struct Seen {
    /// Nothing older is wanted.
    since: Option<u64>,
    newest_ms: Option<u64>,
    /// Next number by attempt, rank and pod.
    next: BTreeMap<(u32, u32, String), u64>,
}

impl Seen {
    fn is_new(&mut self, line: &StoredLine) -> bool {
        self.newest_ms = self.newest_ms.max(Some(line.time_ms));
        let next = self.next.entry((line.attempt, line.rank, line.pod.clone())).or_default();
        let new = *next <= line.number;
        if new {
            *next = line.number + line.lost.unwrap_or(1);
        }
        new
    }
}

/// The logs of a job's live pods, as `kubectl logs` has them: without numbers, and all ranks of a
/// pod under its first one.
pub(super) async fn pods(cluster: &Cluster, args: &LogsArgs) -> Result<Lines, CliError> {
    let namespace = cluster.namespace.as_str();
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let mut selector = format!("{}={}", labels::JOB, args.name);
    if let Some(attempt) = args.attempt {
        selector = format!("{selector},{}={attempt}", labels::ATTEMPT);
    }
    let parameters = ListParams::default().labels(&selector);
    let call = Call::many("list", "pods", Some(namespace));
    let found = cluster.call(call, pods.list(&parameters)).await?;
    let (sender, receiver) = mpsc::channel(256);
    for pod in found.items {
        let (pods, cluster, sender) = (pods.clone(), cluster.clone(), sender.clone());
        let follow = args.follow;
        tokio::spawn(async move {
            if let Err(error) = read_pod(&cluster, &pods, &pod, follow, &sender).await {
                let _reader_gone = sender.send(Err(error)).await;
            }
        });
    }
    Ok(receiver)
}

async fn read_pod(
    cluster: &Cluster,
    pods: &Api<Pod>,
    pod: &Pod,
    follow: bool,
    sender: &mpsc::Sender<Result<StoredLine, CliError>>,
) -> Result<(), CliError> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let started = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let waits = |status: &k8s_openapi::api::core::v1::ContainerStatus| {
        status.state.as_ref().is_some_and(|state| state.waiting.is_some())
    };
    if started.is_none_or(|statuses| statuses.iter().all(waits)) {
        return Ok(());
    }
    let label = |key: &str| {
        let value = pod.metadata.labels.as_ref().and_then(|labels| labels.get(key));
        value.and_then(|value| value.parse::<u32>().ok())
    };
    let index = label(labels::INDEX);
    let rank = label(labels::RANK).or(index).unwrap_or(0);
    let (attempt, uid) = (label(labels::ATTEMPT).unwrap_or(1), pod.metadata.uid.clone());
    let container = Some(labels::CONTAINER.to_owned());
    let parameters = LogParams { container, follow, timestamps: true, ..LogParams::default() };
    let call = Call::one("get", "pods/log", &cluster.namespace, name);
    let stream = pods.log_stream(name, &parameters).await;
    let mut lines = stream.map_err(|error| cluster.error(call, &error))?.lines();
    let mut number = 0;
    while let Some(text) = lines.next().await {
        let text = text?;
        let (time, text) = text.split_once(' ').unwrap_or(("", &text));
        let time = time.parse::<jiff::Timestamp>().map(jiff::Timestamp::as_millisecond);
        let time_ms = time.ok().and_then(|time| u64::try_from(time).ok()).unwrap_or(0);
        let (pod, text) = (uid.clone().unwrap_or_default(), Some(text.to_owned()));
        let line =
            StoredLine { time_ms, attempt, epoch: attempt, rank, pod, number, text, lost: None };
        number += 1;
        if sender.send(Ok(line)).await.is_err() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_service_says_whether_its_port_speaks_tls() {
        let service = |protocol: serde_json::Value| {
            let ports = json!([
                {"name": "metrics", "port": 9090, "appProtocol": "http"},
                {"name": "logs", "port": 8443, "appProtocol": protocol},
            ]);
            proxy_name(&serde_json::from_value(json!({"spec": {"ports": ports}})).unwrap())
        };
        assert_eq!(service(json!("https")), "https:qvl-collector:logs");
        assert_eq!(service(json!("http")), "qvl-collector:logs");
        // A chart of before says nothing.
        assert_eq!(service(json!(null)), "qvl-collector:logs");
    }
}
