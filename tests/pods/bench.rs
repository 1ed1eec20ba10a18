//! A cluster that all tests of this program share, jobs with pods and tokens in it, a broker, a
//! collector, and supervisors.

use std::{
    fs,
    net::TcpListener,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use qvl::{
    logs::auth::Auth,
    operator::{
        broker::{self, Broker, Leader, Relay, random_tokens},
        gang::{GangSpec, GangView, Gangs},
    },
    tls::{Authority, Identity},
};
use qvl_cluster::{Topology, testing::TestCluster};
use serde_json::{Value, json};
use tokio::{runtime::Runtime, sync::watch};

use super::{
    api,
    certificates::{SERVICE, bundle, client, issue},
};

/// Generous: the machine may be busy with other tests.
pub(crate) const LIMIT: Duration = Duration::from_secs(240);

/// The cluster, while any test uses it.
pub(crate) fn cluster() -> Arc<TestCluster> {
    static SHARED: Mutex<Weak<TestCluster>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(cluster) = shared.upgrade() {
        return cluster;
    }
    let topology = Topology::parse("nodes: [{name: n1}]", Path::new("nodes.yaml")).unwrap();
    let cluster = Arc::new(TestCluster::with("pods", topology));
    *shared = Arc::downgrade(&cluster);
    cluster
}

#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(begin.elapsed() < LIMIT, "never: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// A pod of the cluster. No node takes it, so that nothing but its token is of use.
#[derive(Clone, Debug)]
pub(crate) struct PodObject {
    pub(crate) name: String,
    pub(crate) uid: String,
    account: String,
    namespace: String,
}

/// A job in a namespace of its own.
pub(crate) struct Job {
    pub(crate) cluster: Arc<TestCluster>,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) pods: Vec<PodObject>,
    pub(crate) folder: tempfile::TempDir,
}

impl Job {
    pub(crate) fn new(name: &str, pods: u32) -> Job {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let namespace = format!("team-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let cluster = cluster();
        let mut job = Job {
            cluster,
            namespace,
            name: name.to_owned(),
            pods: Vec::new(),
            folder: tempfile::tempdir().unwrap(),
        };
        let Job { namespace, .. } = &job;
        job.cluster.create(&format!(
            "apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: {name}, namespace: {namespace}}}
"
        ));
        job.pods = (0..pods).map(|index| job.pod(&format!("{name}-a1-{index}-x7f2q"))).collect();
        job
    }

    /// Makes a pod of that name.
    pub(crate) fn pod(&self, pod: &str) -> PodObject {
        let Job { namespace, name, .. } = self;
        self.cluster.create(&format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {pod}, namespace: {namespace}}}
spec:
  serviceAccountName: {name}
  automountServiceAccountToken: false
  nodeSelector: {{no-node: has-this}}
  containers: [{{name: trainer, image: none}}]
"
        ));
        let words = format!("get pod {pod} -n {namespace} -o jsonpath={{.metadata.uid}}");
        let uid = self.cluster.run(&words).trim().to_owned();
        let (account, namespace) = (name.clone(), namespace.clone());
        PodObject { name: pod.to_owned(), uid, account, namespace }
    }

    pub(crate) fn audience(&self) -> String {
        format!("qvl.dev/{}/{}", self.namespace, self.name)
    }

    /// A token as the kubelet projects it into the pod.
    pub(crate) fn token(&self, index: usize) -> String {
        self.token_of(&self.pods[index], &self.audience())
    }

    pub(crate) fn token_of(&self, pod: &PodObject, audience: &str) -> String {
        let PodObject { name, uid, account, namespace } = pod;
        let words = format!(
            "create token {account} -n {namespace} --audience {audience} --bound-object-kind Pod \
             --bound-object-name {name} --bound-object-uid {uid}"
        );
        self.cluster.run(&words).trim().to_owned()
    }

    pub(crate) fn key(&self) -> (String, String) {
        (self.namespace.clone(), self.name.clone())
    }

    pub(crate) fn spec(&self) -> GangSpec {
        GangSpec {
            attempt: 1,
            pods: u32::try_from(self.pods.len()).unwrap(),
            ranks_per_pod: 2,
            max_restarts: 3,
            restarts: 0,
            epoch_floor: 0,
            replaces: false,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes data and the job file, changed by `edit`.
    pub(crate) fn write(&self, steps: u64, edit: impl FnOnce(&mut Value)) {
        fs::copy("tests/goldens/a.png", self.path("a.png")).unwrap();
        let sample = |i: usize| {
            let (x, y) = (10 * i + 1, 7 * i + 2);
            let question = format!("Picture 1: <img>a.png</img>\nFind <ref>{i}</ref>");
            let answer = format!("<ref>{i}</ref><box>({x},{y}),({},{})</box>", x + 300, y + 200);
            json!({"id": format!("s{i}"), "conversations": [
                {"from": "user", "value": question}, {"from": "assistant", "value": answer}]})
        };
        let samples: Vec<Value> = (0..12).map(sample).collect();
        fs::write(self.path("d.json"), json!(samples).to_string()).unwrap();
        let base = Path::new("examples/digits/base").canonicalize().unwrap();
        let mut job = json!({
            "apiVersion": "qvl.dev/v1alpha1", "kind": "FineTuneJob",
            "metadata": {"name": self.name},
            "spec": {
                "model": {"path": base},
                "data": {"maxLength": 256,
                    "train": [{"name": "d", "path": "d.json", "task": "grounding"}]},
                "method": {"lora": {"r": 4, "alpha": 8}},
                "batch": {"global": 8, "unit": 2},
                "stages": [{"name": "one", "steps": steps}],
                "world": {"gpus": 2 * self.pods.len(), "compute": "cpu", "threads": 1},
                "checkpoint": {"everySteps": 20, "keep": 2},
                "output": "out"}});
        edit(&mut job);
        fs::write(self.path("job.yaml"), job.to_string()).unwrap();
    }
}

/// A broker in this process, whose tokens the cluster's API server reviews.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) gangs: Arc<Mutex<Gangs>>,
    pub(crate) leader: watch::Sender<Leader>,
    runtime: Option<Runtime>,
    key: (String, String),
}

impl Server {
    pub(crate) fn start(job: &Job) -> Server {
        Server::start_at(job, free_port())
    }

    /// One whose certificate is for these names only.
    pub(crate) fn named(job: &Job, names: &[&str]) -> Server {
        Server::start_with(job, free_port(), names)
    }

    /// As an operator that is started anew: it knows the job and nothing of its pods.
    pub(crate) fn start_at(job: &Job, port: u16) -> Server {
        Server::start_with(job, port, &["127.0.0.1", SERVICE])
    }

    fn start_with(job: &Job, port: u16, names: &[&str]) -> Server {
        let folder = job.path(&format!("tls-{port}"));
        let files = issue(&folder, names);
        let gangs = Arc::new(Mutex::new(Gangs::new(random_tokens())));
        gangs.lock().unwrap().register(job.key(), job.spec());
        let (leader, follow) = watch::channel(Leader::Me);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.unwrap();
        let broker_gangs = Arc::clone(&gangs);
        let (listener, identity, broker) = runtime.block_on(async {
            let client = api::connect(&job.cluster).await;
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
            let identity = Identity::load(files, false).unwrap();
            let authority = Authority::load(folder.join("ca.crt")).unwrap();
            let relay = Relay::verified(authority, SERVICE.to_owned());
            let broker = Broker::new(Auth::reviews(client), broker_gangs, follow);
            (listener, Some(identity), Arc::new(broker.with_relay(relay)))
        });
        runtime.spawn(broker::serve(listener, identity, broker, std::future::pending()));
        let url = format!("https://127.0.0.1:{port}");
        Server { url, gangs, leader, runtime: Some(runtime), key: job.key() }
    }

    pub(crate) fn view(&self) -> GangView {
        self.gangs.lock().unwrap().view(&self.key, Instant::now()).unwrap()
    }

    /// The operator is gone, with all that it knew.
    pub(crate) fn stop(mut self) -> u16 {
        self.end();
        self.url.rsplit(':').next().unwrap().parse().unwrap()
    }

    fn end(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(2));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A collector as a process of its own, which asks the cluster's API server about tokens.
pub(crate) struct Collector {
    pub(crate) url: String,
    folder: PathBuf,
    kubeconfig: PathBuf,
    process: Option<Child>,
}

impl Collector {
    pub(crate) fn start(job: &Job) -> Collector {
        let url = format!("https://127.0.0.1:{}", free_port());
        let (folder, kubeconfig) = (job.path("collector"), job.cluster.kubeconfig());
        issue(&folder, &["127.0.0.1"]);
        let mut collector = Collector { url, folder, kubeconfig, process: None };
        collector.run();
        collector
    }

    pub(crate) fn run(&mut self) {
        let address = self.url.strip_prefix("https://").unwrap();
        let log = fs::File::options().create(true).append(true).open(self.folder.join("log"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_qvl"));
        command.args(["collector", "--listen", address, "--metrics-listen", "127.0.0.1:0"]);
        command.arg("--dir").arg(self.folder.join("logs")).env("KUBECONFIG", &self.kubeconfig);
        command.arg("--tls-cert").arg(self.folder.join("tls.crt"));
        command.arg("--tls-key").arg(self.folder.join("tls.key"));
        self.process = Some(command.stderr(log.unwrap()).spawn().unwrap());
        wait_for("the collector listens", || std::net::TcpStream::connect(address).ok());
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The supervisor of a pod. It, and all that it started, ends with this.
pub(crate) struct Agent {
    process: Child,
    job: String,
    index: usize,
    pub(crate) folder: PathBuf,
}

impl Agent {
    pub(crate) fn start(job: &Job, index: usize, broker: &str, more: &[(&str, &str)]) -> Agent {
        let folder = job.path(&format!("pod-{index}"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("token"), job.token(index)).unwrap();
        let out = |name: &str| Stdio::from(fs::File::create(folder.join(name)).unwrap());
        let mut command = Command::new("unshare");
        command
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .arg(env!("CARGO_BIN_EXE_qvl"))
            .args(["agent", "rank"])
            .env("QVL_NAMESPACE", &job.namespace)
            .env("QVL_JOB", &job.name)
            .env("QVL_ATTEMPT", "1")
            .env("QVL_INDEX", index.to_string())
            .env("QVL_PODS", job.pods.len().to_string())
            .env("QVL_LOCAL_RANKS", "2")
            .env("QVL_BROKER", broker)
            .env("QVL_CA", bundle())
            .env("QVL_NODE", format!("node-{index}"))
            .env("QVL_POD_UID", &job.pods[index].uid)
            .env("QVL_POD_IP", "127.0.0.1")
            .env("QVL_TOKEN_FILE", folder.join("token"))
            .env("QVL_JOB_FILE", job.path("job.yaml"))
            .env("QVL_SPOOL", folder.join("spool"))
            .env("QVL_TERMINATION_LOG", folder.join("termination"))
            .env("QVL_TRAIN_BIN", env!("CARGO_BIN_EXE_qvl-train"))
            .env("QVL_SKIP_PREFLIGHT", "true")
            .env("QVL_TEST_POD", format!("{}-{index}", job.folder.path().display()))
            .envs(more.iter().copied())
            .stdin(Stdio::null())
            .stdout(out("stdout"))
            .stderr(out("stderr"))
            .process_group(0);
        let process = command.spawn().unwrap();
        Agent { process, job: job.folder.path().display().to_string(), index, folder }
    }

    /// Process ids of this pod whose command line begins with this program and these words.
    fn find(&self, program: &str, variable: &str) -> Option<i32> {
        let mark = format!("QVL_TEST_POD={}-{}", self.job, self.index);
        fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let environment = fs::read(entry.path().join("environ")).ok()?;
            let has = |wanted: &str| {
                environment.split(|byte| *byte == 0).any(|one| one == wanted.as_bytes())
            };
            let command = fs::read(entry.path().join("cmdline")).ok()?;
            let first = command.split(|byte| *byte == 0).next()?;
            let named = Path::new(std::str::from_utf8(first).ok()?).file_name()? == program;
            (named && has(&mark) && (variable.is_empty() || has(variable))).then_some(pid)
        })
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = wait_for("the supervisor runs", || self.find("qvl", ""));
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// Process id of a rank's trainer; waits until it runs.
    pub(crate) fn trainer(&self, rank: u32) -> i32 {
        let variable = format!("RANK={rank}");
        wait_for("the trainer runs", || self.find("qvl-train", &variable))
    }

    pub(crate) fn signal_rank(&self, rank: u32, signal: Signal) {
        kill(Pid::from_raw(self.trainer(rank)), signal).unwrap();
    }

    pub(crate) fn output(&self) -> String {
        fs::read_to_string(self.folder.join("stdout")).unwrap()
    }

    /// What was left for the kubelet; nothing if it is not there.
    pub(crate) fn word(&self) -> Option<Value> {
        serde_json::from_slice(&fs::read(self.folder.join("termination")).ok()?).ok()
    }

    /// Waits for the end; the code for the container.
    pub(crate) fn code(&mut self) -> i32 {
        let status: ExitStatus =
            wait_for("the supervisor ends", || self.process.try_wait().unwrap());
        status.code().unwrap()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.is_running() {
            self.process.kill().unwrap();
            self.process.wait().unwrap();
        }
        if thread::panicking() {
            let errors = fs::read_to_string(self.folder.join("stderr")).unwrap_or_default();
            let output = fs::read_to_string(self.folder.join("stdout")).unwrap_or_default();
            let tail = |text: &str| text.lines().rev().take(15).map(str::to_owned).collect();
            let tails: [Vec<String>; 2] = [tail(&output), tail(&errors)];
            let mut err = std::io::stderr();
            let _written = std::io::Write::write_fmt(
                &mut err,
                format_args!("pod {}, newest first: {tails:#?}\n", self.index),
            );
        }
    }
}

pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// Status and text of the answer.
pub(crate) fn get(url: &str, token: Option<&str>) -> (u16, String) {
    answer(client().get(url), token)
}

pub(crate) fn post(url: &str, token: Option<&str>, body: Vec<u8>) -> (u16, String) {
    answer(client().post(url).body(body), token)
}

/// Answers to so many requests, all sent at the same time.
pub(crate) fn at_once(
    count: u32,
    request: impl Fn(&reqwest::Client, u32) -> reqwest::RequestBuilder,
) -> Vec<(u16, String)> {
    let client = client();
    block_on(futures::future::join_all((0..count).map(|i| {
        let request = request(&client, i);
        async {
            let answer = request.send().await.unwrap();
            (answer.status().as_u16(), answer.text().await.unwrap())
        }
    })))
}

fn answer(request: reqwest::RequestBuilder, token: Option<&str>) -> (u16, String) {
    let request = match token {
        Some(token) => request.bearer_auth(token),
        None => request,
    };
    block_on(async {
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    })
}
