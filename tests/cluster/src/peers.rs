//! Simulated nodes (KWOK) and the queue (Kueue), for those tests that need them.

use std::{fmt::Write, fs, path::PathBuf, process::Command, time::Duration};

use crate::{
    Cluster, daemon,
    error::{At, Error},
    image::Image,
    namespace,
};

/// GPUs of a simulated node.
const GPUS: usize = 8;

/// Behaviour of simulated nodes and pods, files of KWOK's own project.
const STAGES: [&str; 4] = [
    "node/fast/node-initialize.yaml",
    "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
    "pod/fast/pod-ready.yaml",
    "pod/fast/pod-delete.yaml",
];
/// Ends pods of Jobs as soon as they run.
const COMPLETE: &str = "pod/fast/pod-complete.yaml";

/// How long simulated nodes may take.
const SIMULATED_LIMIT: Duration = Duration::from_secs(300);

const KUEUE: &str = "qvl.test/kueue:1";
const KUEUE_NAMESPACE: &str = "kueue-system";

/// Simulated nodes. The first call decides about `pods_end` for the cluster.
#[derive(Clone, Copy, Debug)]
pub struct Simulation {
    pub nodes: usize,
    /// Pods of Jobs succeed as soon as they run; without it they run until a test writes their end.
    pub pods_end: bool,
    /// Only pods that tolerate `kwok.x-k8s.io/node` come to these nodes.
    pub tainted: bool,
}

impl Cluster {
    /// Adds `count` simulated nodes with 8 GPUs each, which run nothing and say that they do. They
    /// carry the taint `kwok.x-k8s.io/node`, so that real pods stay off them.
    pub fn kwok(&self, count: usize) -> Result<(), Error> {
        self.simulate(Simulation { nodes: count, pods_end: true, tainted: true })
    }

    /// Adds simulated nodes with the label `type: kwok`.
    pub fn simulate(&self, simulation: Simulation) -> Result<(), Error> {
        if daemon::running(&self.places, "kwok").is_none() {
            self.start_kwok(simulation.pods_end)?;
        }
        let count = simulation.nodes;
        let nodes = (0..count).map(|index| simulated_node(index, simulation.tainted));
        self.apply(&nodes.collect::<String>())?;
        self.wait("simulated nodes are not ready", SIMULATED_LIMIT, || {
            daemon::running(&self.places, "kwok").is_none() || count <= self.simulated()
        })?;
        daemon::check(&self.places, "kwok")
    }

    /// How many simulated nodes are ready.
    fn simulated(&self) -> usize {
        let arguments = ["get", "nodes", "-l", "type=kwok", "--no-headers"];
        let list = self.kubectl(&arguments).unwrap_or_default();
        list.lines().filter(|line| line.contains(" Ready")).count()
    }

    fn start_kwok(&self, pods_end: bool) -> Result<(), Error> {
        let share = self.places.share().join("kwok");
        let lease = if self.topology.is_driven_hard() { 600 } else { 40 };
        let mut kwok = Command::new(self.places.program("kwok"));
        kwok.arg(format!("--node-lease-duration-seconds={lease}"));
        kwok.arg("--kubeconfig").arg(self.places.pki().join("admin.kubeconfig")).args([
            "--manage-all-nodes=false",
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
            "--node-ip=10.240.0.1",
        ]);
        for stage in STAGES.into_iter().chain(pods_end.then_some(COMPLETE)) {
            kwok.arg(format!("--config={}", share.join(stage).display()));
        }
        namespace::inside(&self.places.network("cp"), || {
            daemon::start(&self.places, "kwok", &mut kwok)
        })
    }

    /// Installs Kueue: its own controller in a pod, from its own chart. `values` are further
    /// `--set` arguments of helm. Returns when its webhooks answer.
    pub fn kueue(&self, values: &[&str]) -> Result<(), Error> {
        let archive = self.places.images().join("kueue.tar");
        let mut image = Image {
            name: KUEUE.to_owned(),
            entrypoint: vec!["/manager".to_owned()],
            ..Image::default()
        };
        let manager = PathBuf::from("/manager");
        image.add(&self.places.program("kueue"), Some(&manager))?;
        image.write(&archive)?;
        self.load(&archive)?;
        let chart = self.places.share().join("kueue");
        let (repository, tag) = KUEUE.split_once(':').expect("a constant with a tag");
        let mut sets = vec![
            format!("controllerManager.manager.image.repository={repository}"),
            format!("controllerManager.manager.image.tag={tag}"),
            "controllerManager.manager.image.pullPolicy=IfNotPresent".to_owned(),
        ];
        sets.extend(values.iter().map(|value| (*value).to_owned()));
        let mut helm = self.command("helm");
        helm.args(["template", "kueue"]).arg(chart).args(["-n", KUEUE_NAMESPACE, "--include-crds"]);
        for set in sets {
            helm.args(["--set", &set]);
        }
        let objects = crate::cluster::output(&mut helm)?;
        let path = self.places.run().join("kueue.yaml");
        fs::write(&path, &objects).at("write", path)?;
        self.apply(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {KUEUE_NAMESPACE}}}\n"
        ))?;
        self.apply(&objects)?;
        self.kubectl(&[
            "-n",
            KUEUE_NAMESPACE,
            "rollout",
            "status",
            "deployment/kueue-controller-manager",
            "--timeout=300s",
        ])?;
        // It is ready a moment before its webhooks are.
        self.wait("Kueue's webhooks do not answer", Duration::from_secs(60), || {
            let flavor = "apiVersion: kueue.x-k8s.io/v1beta2\nkind: ResourceFlavor\n\
                          metadata: {name: default}\n";
            self.apply(flavor).is_ok()
        })
    }
}

fn simulated_node(index: usize, tainted: bool) -> String {
    let taint = "{key: kwok.x-k8s.io/node, value: fake, effect: NoSchedule}";
    let taint = if tainted { taint } else { "" };
    let mut text = String::new();
    let _infallible = write!(
        text,
        "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: kwok-{index}\n  \
         annotations: {{kwok.x-k8s.io/node: fake, node.alpha.kubernetes.io/ttl: '0'}}\n  \
         labels: {{type: kwok, kubernetes.io/hostname: kwok-{index}, kubernetes.io/os: linux, kubernetes.io/arch: amd64}}\n\
         spec:\n  taints: [{taint}]\n\
         status:\n  allocatable: {{cpu: '64', memory: 1Ti, pods: '110', nvidia.com/gpu: '{GPUS}'}}\n  \
         capacity: {{cpu: '64', memory: 1Ti, pods: '110', nvidia.com/gpu: '{GPUS}'}}\n"
    );
    text
}
