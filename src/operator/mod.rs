//! The operator: observes a job and its pods, plans the next steps, applies them.
//!
//! | file | holds | may do I/O |
//! |---|---|---|
//! | `observe`, `index` | what there is | yes |
//! | `observed`, `outcome` | what it means | no |
//! | `decide`, `plan` | what to do next | no |
//! | `status`, `conditions`, `news` | what to say about it | no |
//! | `build` | objects | no |
//! | `apply` | one call of the API server for a step | yes |
//! | `gang` | when ranks start and stop | no |
//! | `broker` | what pods ask it | yes |
//! | `lease`, `serve`, `metrics` | one leader; its endpoints | yes |

mod apply;
pub mod broker;
pub mod build;
pub mod conditions;
pub mod decide;
pub mod gang;
mod index;
mod lease;
mod metrics;
pub mod news;
mod observe;
pub mod observed;
pub mod outcome;
pub mod plan;
pub mod progress;
mod reconcile;
mod serve;
#[cfg(test)]
mod simulation;
pub mod status;
#[cfg(test)]
mod testing;

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    error::Error as _,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::Router;
use futures::{FutureExt, Stream, StreamExt, future::BoxFuture, stream};
use kube::{
    Api, Client, ResourceExt,
    runtime::{
        WatchStreamExt,
        controller::{self, applier},
        reflector::{self, ObjectRef},
        watcher::{self, Event, watcher},
    },
};
use tokio::sync::watch;
use tracing::{info, warn};

use self::{
    broker::Leader,
    build::Settings,
    gang::{Gangs, Key},
    index::Index,
    metrics::Metrics,
    news::FailureId,
    observed::Fault,
};
use crate::{api::job::FineTuneJob, tls};

/// Jobs that are looked at at the same time.
const CONCURRENCY: u16 = 16;

/// How an operator runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The only namespace to look after; all if `None`.
    pub namespace: Option<String>,
    pub settings: Settings,
    pub broker_listen: SocketAddr,
    pub metrics_listen: SocketAddr,
    /// Namespace of the lease; without one this operator is the only one.
    pub lease: Option<LeaseOptions>,
    /// Name of this operator, for example of its pod: its Events carry it.
    pub identity: String,
    /// The certificate of the broker; plain HTTP without one.
    pub certificate: Option<Arc<tls::Identity>>,
    /// What pods are given to check certificates with.
    pub authority: Option<Arc<tls::Authority>>,
}

/// How operators agree on one leader.
#[derive(Clone, Debug)]
pub struct LeaseOptions {
    pub namespace: String,
    /// Where the others reach this operator's broker: `10.0.0.1:8080`.
    pub address: String,
    /// The brokers speak TLS.
    pub tls: bool,
}

/// Why an operator ended.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    #[error("failed to listen on {address} for {what}")]
    Listen { what: &'static str, address: SocketAddr, source: std::io::Error },
    #[error("the lease is lost: another operator leads, or the API server does not answer")]
    LeaseLost,
    #[error("the custom resource finetunejobs.qvl.dev cannot be read")]
    NoKind { source: kube::Error },
}

/// What reconciles share.
struct Context {
    client: Client,
    settings: Settings,
    authority: Option<Arc<tls::Authority>>,
    identity: String,
    gangs: Arc<Mutex<Gangs>>,
    index: Arc<Index>,
    metrics: Arc<Metrics>,
    memory: Mutex<BTreeMap<Key, Memory>>,
}

/// What is remembered about a job beside its status. All of it may be lost.
#[derive(Debug, Default)]
struct Memory {
    /// Attempt whose gang the broker knows.
    registered: Option<u32>,
    registered_at: Option<Instant>,
    fault: Option<Fault>,
    /// Failures in a row.
    failures: u32,
    progress_written: Option<Instant>,
    /// Keys of the news that were told and are still recent.
    told: BTreeSet<String>,
    /// Whether this operator has looked at the job before.
    looked: bool,
    /// The failure that was there at the first look.
    first_failure: Option<FailureId>,
}

impl Context {
    /// The settings of this moment: the bundle of CAs may have changed.
    fn settings(&self) -> Settings {
        let roots = self.authority.as_ref().map(|authority| authority.roots());
        Settings { ca: roots.map(|roots| roots.pem().to_owned()), ..self.settings.clone() }
    }

    fn remember(&self, key: &Key, change: impl FnOnce(&mut Memory)) {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        change(memory.entry(key.clone()).or_default());
    }

    fn forget(&self, key: &Key) {
        self.gangs.lock().unwrap_or_else(PoisonError::into_inner).forget(key);
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.remove(key);
    }
}

/// Runs until `shutdown` is done or the lease is lost. `broker` answers the pods and shares
/// `gangs`; it learns from `leader` whether it does so itself.
pub async fn run(
    client: Client,
    options: Options,
    gangs: Arc<Mutex<Gangs>>,
    broker: Router,
    leader: watch::Sender<Leader>,
    shutdown: BoxFuture<'static, ()>,
) -> Result<(), OperatorError> {
    let shutdown = shutdown.shared();
    let metrics = Arc::new(Metrics::default());
    let certificate = options.certificate.clone();
    let listen = options.broker_listen;
    serve::start("the broker", listen, certificate.clone(), broker, shutdown.clone()).await?;
    let pages = serve::pages(metrics.clone(), certificate);
    serve::start("metrics", options.metrics_listen, None, pages, shutdown.clone()).await?;

    let mut holding = None;
    if options.lease.is_none() {
        leader.send_replace(Leader::Me);
    }
    if let Some(lease) = &options.lease {
        let lease = lease::Lease::new(client.clone(), lease, &options.identity, leader.clone());
        let Some(lease) = lease.acquire(shutdown.clone()).await else { return Ok(()) };
        holding = Some(lease);
    }
    metrics.lead();
    let pod_groups = tokio::select! {
        served = serves_pod_groups(&client) => served,
        () = shutdown.clone() => return Ok(()),
    };
    info!(pod_groups, "the API server was asked what it serves");
    let context = Arc::new(Context {
        client: client.clone(),
        settings: Settings { pod_groups, ..options.settings.clone() },
        authority: options.authority.clone(),
        identity: options.identity.clone(),
        gangs,
        index: Arc::new(Index::default()),
        metrics,
        memory: Mutex::new(BTreeMap::new()),
    });
    let control = control(context, options.namespace.as_deref(), shutdown.clone());
    let Some(mut lease) = holding else { return control.await };
    let done = tokio::select! {
        done = control => done,
        () = lease.keep() => return Err(OperatorError::LeaseLost),
    };
    lease.release().await;
    done
}

async fn control(
    context: Arc<Context>,
    namespace: Option<&str>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), OperatorError> {
    let client = context.client.clone();
    let api: Api<FineTuneJob> = namespace.map_or_else(
        || Api::all(client.clone()),
        |namespace| Api::namespaced(client.clone(), namespace),
    );
    let shutdown = shutdown.shared();
    tokio::select! {
        there = kind_is_there(&api) => there?,
        () = shutdown.clone() => return Ok(()),
    }
    let jobs = namespace
        .map_or_else(|| Api::all(client.clone()), |name| Api::namespaced(client.clone(), name));
    let pods = namespace
        .map_or_else(|| Api::all(client.clone()), |name| Api::namespaced(client.clone(), name));

    let (store, writer) = reflector::store();
    context.metrics.watch(store.clone());
    let events = watcher(api, watcher::Config::default().page_size(observe::PAGE))
        .modify(|job| job.managed_fields_mut().clear())
        .default_backoff();
    let own = reflector::reflector(writer, events);
    let forgetting = context.clone();
    let own = own.filter_map(move |event| {
        let reference = told(event, &forgetting);
        async move { reference }
    });
    let queue = stream::select_all([
        own.boxed(),
        index::follow_jobs(jobs, context.index.clone()).boxed(),
        index::follow_pods(pods, context.index.clone()).boxed(),
        gang_changes(context.clone()).boxed(),
    ]);
    let queue = queue.map(Ok::<_, Infallible>).take_until(shutdown);
    let config = controller::Config::default().concurrency(CONCURRENCY);
    info!("reconciling begins");
    let results = applier(
        |job, context| reconcile::reconcile(job, context).boxed(),
        reconcile::after_error,
        context,
        store,
        queue,
        config,
    );
    results
        .for_each(|result| async move {
            // A job that was deleted meanwhile is no news.
            if let Err(controller::Error::RunnerError(error)) = result {
                warn!(error = &error as &dyn std::error::Error, "runner");
            }
        })
        .await;
    info!("reconciling ends");
    Ok(())
}

/// Whether the API server serves the pod groups that this version knows.
async fn serves_pod_groups(client: &Client) -> bool {
    loop {
        match client.list_api_group_resources("scheduling.k8s.io/v1beta1").await {
            Ok(list) => return list.resources.iter().any(|kind| kind.name == "podgroups"),
            Err(kube::Error::Api(status)) if status.code == 404 => return false,
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "what the API server serves");
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        }
    }
}

/// A watch would try for ever; that the kind is missing should be said at once. An API server that
/// does not answer well will do so later.
async fn kind_is_there(api: &Api<FineTuneJob>) -> Result<(), OperatorError> {
    let one = kube::api::ListParams::default().limit(1);
    loop {
        match api.list(&one).await {
            Ok(_list) => return Ok(()),
            Err(source) if is_absent(&source) => {
                return Err(OperatorError::NoKind { source });
            }
            Err(error) => warn!(error = &error as &dyn std::error::Error, "jobs cannot be read"),
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

fn is_absent(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

fn told(
    event: Result<Event<FineTuneJob>, watcher::Error>,
    context: &Context,
) -> Option<ObjectRef<FineTuneJob>> {
    match event {
        Ok(Event::Apply(job) | Event::InitApply(job)) => Some(ObjectRef::from_obj(&job)),
        Ok(Event::Delete(job)) => {
            context.forget(&observe::key(&job));
            None
        }
        Ok(Event::Init | Event::InitDone) => None,
        Err(error) => {
            let cause = error.source().map(ToString::to_string);
            warn!(error = %error, cause, "watch of jobs failed, it begins again");
            None
        }
    }
}

/// Jobs whose gang is in another phase than a second ago.
fn gang_changes(context: Arc<Context>) -> impl Stream<Item = ObjectRef<FineTuneJob>> {
    let start = (context, BTreeMap::<Key, (gang::GangPhase, u32)>::new());
    let rounds = stream::unfold(start, |(context, mut before)| async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let memory = context.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let keys: Vec<Key> = memory.keys().cloned().collect();
        drop(memory);
        let gangs = context.gangs.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let views = keys.into_iter().filter_map(|key| {
            let view = gangs.view(&key, now)?;
            Some((key, (view.phase, view.epoch)))
        });
        let after: BTreeMap<_, _> = views.collect();
        drop(gangs);
        let changed = after.iter().filter(|(key, view)| before.get(*key) != Some(*view));
        let changed: Vec<_> = changed
            .map(|((namespace, job), _view)| ObjectRef::new(job).within(namespace))
            .collect();
        before = after;
        Some((stream::iter(changed), (context, before)))
    });
    rounds.flatten()
}
