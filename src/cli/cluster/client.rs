//! The connection to a cluster, as kubectl would make it.

use std::{future::Future, path::PathBuf, time::Duration};

use clap::Args;
use kube::{
    Api, Client, Config,
    api::{ApiResource, DynamicObject, GroupVersionKind},
    config::{KubeConfigOptions, Kubeconfig},
};

use super::{
    Call,
    trouble::{self, Place},
};
use crate::{api, cli::CliError, wire::ExitStatus};

/// A server that does not even take a connection in this time is not there.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Longest time for one answer; watches are no calls.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// Which cluster, and where in it.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Target {
    /// Namespace of the job, instead of the one of the kubeconfig's context.
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Context of the kubeconfig, instead of its current one.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

/// A cluster that can be asked. Nothing has been sent to it yet.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub client: Client,
    pub namespace: String,
    place: Place,
}

/// Whether a cluster is configured at all: a kubeconfig exists, or this is a pod.
pub(crate) fn is_configured() -> bool {
    kubeconfig().is_some() || in_pod()
}

/// Runs a command's requests on this thread.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work)
}

/// The cluster of the kubeconfig, or the one that this pod runs in.
pub(crate) async fn connect(target: &Target) -> Result<Cluster, CliError> {
    let (mut config, source) = config(target).await?;
    config.connect_timeout = Some(CONNECT_WITHIN);
    let place = Place { server: config.cluster_url.to_string(), source };
    let namespace = target.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config)
        .map_err(|error| trouble::bad_config(&place.source, &trouble::innermost(&error)))?;
    Ok(Cluster { client, namespace, place })
}

async fn config(target: &Target) -> Result<(Config, String), CliError> {
    let Some(source) = kubeconfig() else {
        if !in_pod() {
            return Err(no_config());
        }
        let source = "the service account of this pod".to_owned();
        let config = Config::incluster()
            .map_err(|error| trouble::bad_config(&source, &trouble::innermost(&error)))?;
        return Ok((config, source));
    };
    let source = format!("kubeconfig {source}");
    let bad = |error: kube::config::KubeconfigError| {
        trouble::bad_config(&source, &trouble::innermost(&error))
    };
    let read = Kubeconfig::read().map_err(bad)?;
    let options = KubeConfigOptions { context: target.context.clone(), ..Default::default() };
    let config = Config::from_custom_kubeconfig(read, &options).await.map_err(bad)?;
    Ok((config, source))
}

fn no_config() -> CliError {
    CliError::new(
        ExitStatus::Unreachable,
        "no cluster is configured: KUBECONFIG is not set, and there is no `~/.kube/config`",
    )
    .hint("set KUBECONFIG to the kubeconfig of a cluster; `kubectl cluster-info` then finds it too")
    .hint("add --local to run the ranks as processes on this machine")
}

/// The kubeconfig that will be read, for messages; `None` if there is none.
fn kubeconfig() -> Option<String> {
    let named = std::env::var("KUBECONFIG").ok().filter(|value| !value.is_empty());
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    let usual = || home.map(|home| home.join(".kube/config")).filter(|path| path.exists());
    named.or_else(|| usual().map(|path| path.display().to_string()))
}

fn in_pod() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
}

impl Cluster {
    /// Fine-tune jobs of the namespace. They are read untyped, so that a command can show a job
    /// that a newer version of qvl has written.
    pub(crate) fn jobs(&self) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, &job_resource())
    }

    /// Fine-tune jobs of all namespaces.
    pub(crate) fn all_jobs(&self) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &job_resource())
    }

    /// Awaits one answer; what goes wrong becomes an error for a person.
    pub(crate) async fn call<T>(
        &self,
        call: Call<'_>,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, CliError> {
        match tokio::time::timeout(ANSWER_WITHIN, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.error(call, &error)),
            Err(_elapsed) => {
                let what = format!("no answer within {} s", ANSWER_WITHIN.as_secs());
                Err(trouble::unreachable(&self.place, &what))
            }
        }
    }

    /// The error of a request that was not made by [`Cluster::call`], for example of a watch.
    pub(crate) fn error(&self, call: Call<'_>, error: &kube::Error) -> CliError {
        trouble::explain(error, &call, &self.place)
    }
}

fn job_resource() -> ApiResource {
    let kind = GroupVersionKind::gvk(api::GROUP, api::VERSION, "FineTuneJob");
    ApiResource::from_gvk_with_plural(&kind, "finetunejobs")
}
