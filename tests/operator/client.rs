//! A client of the API server of a test's cluster.

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use qvl_cluster::testing::TestCluster;

/// As its kubeconfig says; within a runtime of tokio.
pub(crate) async fn connect(cluster: &TestCluster) -> Client {
    let file = Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    Client::try_from(config.unwrap()).unwrap()
}
