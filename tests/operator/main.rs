//! The operator on a real API server that answers as badly as it can, and the rules of the API
//! server beside those of `qvl`. Nodes and pods are simulated; everything else is real.
//!
//! `QVL_SOAK=1` lives a job's life again with every one of its calls going wrong in every way.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod admission;
mod client;
mod faults;
mod gangs;
mod history;
mod life;
#[expect(dead_code, reason = "the benchmark uses all of it")]
mod process;
mod proxy;

use std::{env, io::Write as _, path::Path, sync::Arc};

use futures::{StreamExt, stream};
use kube::Client;
use qvl_cluster::{
    Topology,
    peers::Simulation,
    testing::{TestCluster, must},
};

use crate::faults::{Fault, OUTSIDE, Plan};

/// Lives at the same time.
const AT_ONCE: usize = 8;
/// Calls of 1,000 that go wrong in the sample.
const PER_MILLE: u64 = 60;

#[test]
fn the_operator_on_a_real_api_server() {
    let nodes = "nodes: [{name: n1}]";
    let topology = Topology::parse(nodes, Path::new("nodes.yaml")).unwrap();
    let cluster = TestCluster::with("operator", topology);
    install(&cluster, 20);
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = client::connect(&cluster).await;
        admission::the_api_server_refuses_what_qvl_refuses(&client).await;
        life::invalid(&client, folder.path()).await;
        lives_go_as_they_must(&client, folder.path()).await;
    });
}

/// The kinds, the rights of the operator, and simulated nodes.
fn install(cluster: &TestCluster, nodes: usize) {
    must(cluster.simulate(Simulation { nodes, pods_end: false, tainted: false }));
    cluster.create(&std::fs::read_to_string("manifests/crds.yaml").unwrap());
    cluster.create("apiVersion: v1\nkind: Namespace\nmetadata: {name: qvl-system}\n");
    let mut helm = cluster.command("helm");
    helm.args(["template", "qvl", "charts/qvl", "-n", "qvl-system"]);
    let output = helm.args(["--show-only", "templates/operator/rbac.yaml"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    cluster.create(&String::from_utf8(output.stdout).unwrap());
    cluster.wait_for(
        "get crd finetunejobs.qvl.dev -o jsonpath={.status.conditions[*].type}",
        "Established",
    );
}

/// A calm life tells what to expect; then others live through faults.
async fn lives_go_as_they_must(client: &Client, folder: &Path) {
    let calm = life::live(client, "calm", Plan::Calm, folder).await;
    let calm = calm.unwrap_or_else(|error| panic!("{error}"));
    insta::assert_snapshot!(calm.events.join("\n"));
    let is_soak = env::var_os("QVL_SOAK").is_some();
    let plans = if is_soak { every_call(calm.calls) } else { sample() };
    let known: Arc<[String]> = calm.events.into();
    let count = plans.len();
    let lives = stream::iter(plans.into_iter().enumerate()).map(|(number, plan)| {
        let (client, folder, known) = (client.clone(), folder.to_owned(), known.clone());
        async move {
            let life = life::live(&client, &format!("life-{number}"), plan, &folder).await?;
            let unknown = life.events.iter().find(|news| !known.contains(news));
            unknown.map_or(Ok(()), |news| Err(format!("{plan}: an Event of no calm life: {news}")))
        }
    });
    let ended: Vec<Result<(), String>> = lives.buffer_unordered(AT_ONCE).collect().await;
    let failed: Vec<String> = ended.into_iter().filter_map(Result::err).collect();
    let told = format!("{} of {count} lives went as they must\n", count - failed.len());
    std::io::stderr().write_all(told.as_bytes()).unwrap();
    assert!(failed.is_empty(), "{} of {count} lives:\n{}", failed.len(), failed.join("\n\n"));
}

/// A few seeds; `QVL_SEED` is the first of them.
fn sample() -> Vec<Plan> {
    let first = env::var("QVL_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    (first..first + AT_ONCE as u64)
        .map(|seed| Plan::Seeded { seed, per_mille: PER_MILLE })
        .collect()
}

/// A crash before and after every call of a life, and every call going wrong in another way.
fn every_call(calls: u64) -> Vec<Plan> {
    let once = |call, fault| Plan::Once { call, fault };
    (0..calls)
        .flat_map(|call| {
            let other = OUTSIDE[usize::try_from(call).unwrap() % OUTSIDE.len()];
            [Fault::CrashBefore, Fault::CrashAfter, other].map(|fault| once(call, fault))
        })
        .collect()
}
