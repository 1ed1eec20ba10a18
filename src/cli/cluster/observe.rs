//! Reads what the launcher's plan needs from a cluster.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, api::ListParams};
use serde::de::DeserializeOwned;

use super::{
    Call, Cluster,
    trouble::{Denied, JOBS, REPORTS},
};
use crate::{api::node::NodeReport, cli::CliError};

/// Objects of one answer: a large cluster is read in pages.
const PAGE: u32 = 500;

/// Nodes, the pods that take room on them, and what their agents say.
#[derive(Debug, Default)]
pub(crate) struct World {
    /// `None` if this user may not list them.
    pub nodes: Option<Vec<Node>>,
    pub pods: Vec<Pod>,
    /// What may not be seen, and why.
    pub blind: Option<String>,
    pub reports: Vec<NodeReport>,
    /// Why the reports may not be seen.
    pub reports_blind: Option<String>,
}

/// Reads nodes and pods. Not being allowed to is no error: many users have rights in their own
/// namespace only.
pub(crate) async fn world(cluster: &Cluster) -> Result<World, CliError> {
    let (nodes, pods, reports) = futures::join!(nodes(cluster), pods(cluster), reports(cluster));
    let (reports, reports_blind) = match reports {
        Ok(reports) => (reports, None),
        Err(error) if error.is::<Denied>() => (Vec::new(), Some(error.line())),
        Err(error) => return Err(error),
    };
    let (nodes, pods) = match (nodes, pods) {
        (Ok(nodes), Ok(pods)) => (nodes, pods),
        (Err(error), _) | (_, Err(error)) if error.is::<Denied>() => {
            let blind = Some(error.line());
            return Ok(World { blind, reports, reports_blind, ..World::default() });
        }
        (Err(error), _) | (_, Err(error)) => return Err(error),
    };
    Ok(World { nodes: Some(nodes), pods, blind: None, reports, reports_blind })
}

/// Reports of all nodes.
pub(crate) async fn reports(cluster: &Cluster) -> Result<Vec<NodeReport>, CliError> {
    let api: Api<NodeReport> = Api::all(cluster.client.clone());
    all(cluster, &api, Call::many("list", REPORTS, None), ListParams::default()).await
}

pub(crate) async fn nodes(cluster: &Cluster) -> Result<Vec<Node>, CliError> {
    let api: Api<Node> = Api::all(cluster.client.clone());
    all(cluster, &api, Call::many("list", "nodes", None), ListParams::default()).await
}

/// Pods of all namespaces that are not over.
pub(crate) async fn pods(cluster: &Cluster) -> Result<Vec<Pod>, CliError> {
    let api: Api<Pod> = Api::all(cluster.client.clone());
    let live = ListParams::default().fields("status.phase!=Succeeded,status.phase!=Failed");
    all(cluster, &api, Call::many("list", "pods", None), live).await
}

/// All pages of a list.
pub(crate) async fn all<K>(
    cluster: &Cluster,
    api: &Api<K>,
    call: Call<'_>,
    params: ListParams,
) -> Result<Vec<K>, CliError>
where
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    let mut params = params.limit(PAGE);
    let mut items = Vec::new();
    loop {
        let page = cluster.call(call, api.list(&params)).await?;
        items.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(items),
        }
    }
}

/// Fails if the cluster does not know our kinds.
pub(crate) async fn installed(cluster: &Cluster) -> Result<(), CliError> {
    // A missing object and a missing kind give one code, so a list is asked for.
    let call = Call::many("list", JOBS, Some(&cluster.namespace));
    let params = ListParams::default().limit(1);
    cluster.call(call, cluster.jobs().list(&params)).await.map(|_list| ())
}
