//! What the operator costs at scale, on simulated nodes of a real API server. `make bench-operator`
//! writes the figures into docs/benchmarks.md.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark for people")]

mod client;
#[expect(dead_code, reason = "the test uses all of it")]
mod process;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::StreamExt;
use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{Pod, ServiceAccount},
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, PostParams},
    core::PartialObjectMeta,
    runtime::watcher::{self, Event, watcher},
};
use qvl::{
    api::job::FineTuneJob,
    job,
    operator::build::{self, Settings},
};
use qvl_cluster::{
    Topology,
    peers::Simulation,
    testing::{TestCluster, must},
};

use self::process::Operator;

const NODES: usize = 1000;
/// Pods of the one large job.
const RANKS: usize = 1000;
/// Small jobs, and the pods of each.
const JOBS: usize = 1000;
const PODS: usize = 8;
/// Calls a second that Kubernetes' own controllers may make: with their defaults they, and nothing
/// else, would be measured.
const CALLS_PER_SECOND: u32 = 300;
const LIMIT: Duration = Duration::from_secs(1800);
const FILE: &str = "docs/benchmarks.md";
const BEGIN: &str = "<!-- operator -->\n";
const END: &str = "<!-- end of operator -->\n";

fn main() {
    let nodes = format!("nodes: [{{name: n1}}]\ncallsPerSecond: {CALLS_PER_SECOND}\n");
    let topology = Topology::parse(&nodes, Path::new("nodes.yaml")).unwrap();
    let cluster = TestCluster::with("opbench", topology);
    cluster.run("cordon n1");
    must(cluster.simulate(Simulation { nodes: NODES, pods_end: false, tainted: false }));
    cluster.create(&fs::read_to_string("manifests/crds.yaml").unwrap());
    let established = "get crd finetunejobs.qvl.dev -o jsonpath={.status.conditions[*].type}";
    cluster.wait_for(established, "Established");
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let text = runtime.block_on(async {
        let client = client::connect(&cluster).await;
        let operator = Operator::with(None, cluster.kubeconfig(), folder.path());
        let bench = Bench { running: Running::follow(&client), client, operator };
        bench.all().await
    });
    println!("{text}");
    let page = fs::read_to_string(FILE).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("the file has the marker");
    let (_old, after) = rest.split_once(END).expect("the file has the end marker");
    fs::write(FILE, format!("{before}{BEGIN}{text}{END}{after}")).unwrap();
}

struct Bench {
    client: Client,
    operator: Operator,
    running: Running,
}

impl Bench {
    async fn all(&self) -> String {
        self.until("the operator answers", || self.operator.metrics().is_some()).await;
        // It has nothing to do; what it has allocated at its start is there.
        tokio::time::sleep(Duration::from_secs(20)).await;
        let idle = memory(self.operator.id());
        println!("idle: {idle:?}");
        let plain_first = self.plain("plain-1").await;
        println!("plain Job: {plain_first:?}");
        let launch = self.launch().await;
        println!("one job: {launch:?}");
        let plain_second = self.plain("plain-2").await;
        println!("plain Job: {plain_second:?}");
        let plain = [plain_first, plain_second];
        let many = self.many().await;
        println!("many jobs: {many:?}");
        self.report(&idle, plain, launch, &many).await
    }

    /// The pods of a job of qvl in a Job that qvl does not know.
    async fn plain(&self, name: &str) -> Duration {
        let settings = Settings {
            image: "none".to_owned(),
            broker_url: "http://127.0.0.1:9".to_owned(),
            collector_url: None,
            ca: None,
            pod_groups: false,
        };
        let object = build::job(&of(name, RANKS), 1, &settings);
        let mut object: Job = serde_json::from_str(
            &serde_json::to_string(&object).unwrap().replace("qvl.dev/job", "bench.test/job"),
        )
        .unwrap();
        object.metadata.owner_references = None;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), "default");
        let account: ServiceAccount =
            serde_json::from_value(serde_json::json!({"metadata": {"name": name}})).unwrap();
        accounts.create(&PostParams::default(), &account).await.unwrap();
        let jobs: Api<Job> = Api::namespaced(self.client.clone(), "default");
        let begin = Instant::now();
        jobs.create(&PostParams::default(), &object).await.unwrap();
        self.until("pods of a plain Job", || self.running.count() == RANKS).await;
        let took = begin.elapsed();
        let name = object.name_any();
        jobs.delete(&name, &DeleteParams::background()).await.unwrap();
        self.until("no pods", || self.running.count() == 0).await;
        took
    }

    async fn launch(&self) -> Duration {
        let jobs: Api<FineTuneJob> = Api::namespaced(self.client.clone(), "default");
        let begin = Instant::now();
        jobs.create(&PostParams::default(), &of("large", RANKS)).await.unwrap();
        self.until("pods of one job", || self.running.count() == RANKS).await;
        let took = begin.elapsed();
        jobs.delete("large", &DeleteParams::background()).await.unwrap();
        self.until("no pods", || self.running.count() == 0).await;
        took
    }

    async fn many(&self) -> Many {
        let jobs: Api<FineTuneJob> = Api::namespaced(self.client.clone(), "default");
        let before = self.counters();
        let begin = Instant::now();
        for number in 0..JOBS {
            let job = of(&format!("job-{number}"), PODS);
            jobs.create(&PostParams::default(), &job).await.unwrap();
        }
        let created = begin.elapsed();
        self.until("pods of all jobs", || self.running.count() == JOBS * PODS).await;
        let took = begin.elapsed();
        let after = self.counters();
        // All pods run and nothing happens: what it keeps, and what it does.
        tokio::time::sleep(Duration::from_secs(60)).await;
        let steady = self.counters();
        Many { created, took, before, after, steady, memory: memory(self.operator.id()) }
    }

    fn counters(&self) -> Counters {
        let id = self.operator.id();
        let text = self.operator.metrics().unwrap_or_default();
        let calls = text.lines().filter_map(|line| {
            let rest = line.strip_prefix("qvl_operator_calls_total{operation=\"")?;
            let (name, count) = rest.split_once("\"} ")?;
            Some((name.to_owned(), count.parse().ok()?))
        });
        Counters {
            at: Instant::now(),
            reconciles: self.operator.metric("qvl_operator_reconciles_total ").unwrap_or(0),
            calls: calls.collect(),
            processor: processor(id),
        }
    }

    async fn until(&self, what: &str, done: impl Fn() -> bool) {
        let begin = Instant::now();
        while !done() {
            let count = self.running.count();
            let words = || self.operator.last_words();
            assert!(begin.elapsed() < LIMIT, "waited for {what}, {count} pods run: {}", words());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn report(
        &self,
        idle: &Memory,
        plain: [Duration; 2],
        launch: Duration,
        many: &Many,
    ) -> String {
        let version = self.client.apiserver_version().await.unwrap();
        let cores = std::thread::available_parallelism().unwrap();
        let gigabytes = machine_gigabytes();
        let date = Timestamp::now().strftime("%Y-%m-%d").to_string();
        let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
        let [first, second] = plain;
        let difference = launch.as_secs_f64() - (first + second).as_secs_f64() / 2.0;
        let per = |count: u64| count as f64 / JOBS as f64;
        let made = |name: &str| {
            let of = |counters: &Counters| counters.calls.get(name).copied().unwrap_or(0);
            of(&many.after) - of(&many.before)
        };
        let all: u64 = many.after.calls.keys().map(|name| made(name)).sum();
        let by_kind: Vec<String> =
            many.after.calls.keys().map(|name| format!("{name} {:.1}", per(made(name)))).collect();
        let reconciles = many.after.reconciles - many.before.reconciles;
        let rate = reconciles as f64 / many.took.as_secs_f64();
        let busy = many.after.processor.saturating_sub(many.before.processor);
        let quiet = many.steady.at.duration_since(many.after.at);
        let quiet_rate =
            (many.steady.reconciles - many.after.reconciles) as f64 / quiet.as_secs_f64();
        let quiet_busy = 100.0
            * many.steady.processor.saturating_sub(many.after.processor).as_secs_f64()
            / quiet.as_secs_f64();
        format!(
            "Measured {date} on {cores} cores and {gigabytes:.0} GiB, which etcd, the API server, the controllers, KWOK and the\n\
             operator share. Kubernetes {}, {NODES} KWOK nodes; controllers and scheduler may make {CALLS_PER_SECOND} calls a second.\n\n\
             | | measured | target |\n|---|---|---|\n\
             | memory of an operator without jobs (RSS; of it files) | {:.1} MiB; {:.1} MiB | 20 MiB |\n\
             | one job of {RANKS} pods, from its creation until all run | {} | |\n\
             | the same pods in a plain Job, before and after | {}, {} | |\n\
             | what qvl adds | {difference:.1} s | 10 s |\n\
             | {JOBS} jobs of {PODS} pods, from the first creation until all run | {} | |\n\
             | of it until the last job was created | {} | |\n\
             | memory of the operator then (RSS; highest) | {:.1} MiB; {:.1} MiB | 64 MiB |\n\
             | looks at jobs a second meanwhile | {rate:.0} | |\n\
             | calls of the API server for each job | {:.1} | |\n\
             | of them | {} | |\n\
             | processor time for each job | {:.1} ms | |\n\
             | all pods run, nothing happens: looks a second, processor | {quiet_rate:.0}, {quiet_busy:.1} % | |\n",
            version.git_version,
            idle.resident,
            idle.files,
            seconds(launch),
            seconds(first),
            seconds(second),
            seconds(many.took),
            seconds(many.created),
            many.memory.resident,
            many.memory.highest,
            per(all),
            by_kind.join(", "),
            1000.0 * busy.as_secs_f64() / JOBS as f64,
        )
    }
}

#[derive(Debug)]
struct Many {
    created: Duration,
    took: Duration,
    before: Counters,
    after: Counters,
    steady: Counters,
    memory: Memory,
}

#[derive(Debug)]
struct Counters {
    at: Instant,
    reconciles: u64,
    calls: BTreeMap<String, u64>,
    processor: Duration,
}

/// A job of so many ranks, one for each pod.
fn of(name: &str, ranks: usize) -> FineTuneJob {
    let text = format!(
        "apiVersion: qvl.dev/v1alpha1
kind: FineTuneJob
metadata: {{name: {name}}}
spec:
  model: {{path: /data/base}}
  data: {{train: [{{name: t, path: /data/train.json, task: grounding}}]}}
  stages: [{{name: s, steps: 10}}]
  output: /data/run
  world: {{gpus: {ranks}, compute: cpu}}
  batch: {{global: {ranks}, unit: 1}}
  cluster: {{gpusPerNode: 1, startTimeoutSeconds: 3600}}
"
    );
    let mut job = FineTuneJob::of(job::parse(&text, "job.yaml").unwrap());
    job.metadata.namespace = Some("default".to_owned());
    job
}

/// Names of all pods that run.
struct Running(Arc<Mutex<BTreeSet<String>>>);

impl Running {
    fn follow(client: &Client) -> Running {
        let names = Arc::new(Mutex::new(BTreeSet::new()));
        let api: Api<PartialObjectMeta<Pod>> = Api::namespaced(client.clone(), "default");
        let events = watcher(api, watcher::Config::default().fields("status.phase=Running"));
        let kept = names.clone();
        tokio::spawn(events.for_each(move |event| {
            let mut names = kept.lock().unwrap();
            match event {
                Ok(Event::Apply(pod) | Event::InitApply(pod)) => {
                    names.insert(pod.name_any());
                }
                Ok(Event::Delete(pod)) => {
                    names.remove(&pod.name_any());
                }
                Ok(Event::Init) => names.clear(),
                Ok(Event::InitDone) | Err(_) => {}
            }
            std::future::ready(())
        }));
        Running(names)
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

/// Memory of a process in MiB.
#[derive(Debug)]
struct Memory {
    resident: f64,
    files: f64,
    highest: f64,
}

fn memory(process: u32) -> Memory {
    let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let number = line.trim_start_matches(':').split_whitespace().next().unwrap();
        number.parse::<f64>().unwrap() / 1024.0
    };
    Memory { resident: of("VmRSS"), files: of("RssFile"), highest: of("VmHWM") }
}

/// Processor time of a process so far.
fn processor(process: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let (_name, rest) = text.rsplit_once(')').unwrap();
    let ticks = |at: usize| rest.split_whitespace().nth(at).unwrap().parse::<u64>().unwrap();
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

fn machine_gigabytes() -> f64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1024.0 / 1024.0
}
