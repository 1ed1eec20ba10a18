//! One full life of a job: a rank fails, the user suspends and resumes it, it ends, its Jobs go.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    core::v1::{Namespace, Pod},
    events::v1::Event,
};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use qvl::{
    api::job::{FineTuneJob, State},
    job,
    operator::observed::PodFact,
};
use serde_json::json;

use crate::{
    admission,
    faults::Plan,
    history::{History, Seen},
    process::Operator,
    proxy::Proxy,
};

/// How long one stage of a life may take.
const LIMIT: Duration = Duration::from_secs(150);
const PAUSE: Duration = Duration::from_millis(100);

const JOB: &str = "apiVersion: qvl.dev/v1alpha1
kind: FineTuneJob
metadata: {name: digits}
spec:
  model: {path: /data/base}
  data: {train: [{name: t, path: /data/train.json, task: grounding}]}
  stages: [{name: s, steps: 10}]
  output: /data/run
  world: {gpus: 2, compute: cpu}
  batch: {global: 16, unit: 8}
  cluster: {gpusPerNode: 1, ttlSeconds: 0, nodeSelector: {type: kwok}}
";

/// A job that the API server takes and no cluster can run.
pub(crate) async fn invalid(client: &Client, folder: &std::path::Path) {
    let proxy = Proxy::start(client.clone(), Plan::Calm).await;
    let operator = Operator::start(Some("default"), proxy.address, folder);
    let api: Api<FineTuneJob> = Api::namespaced(client.clone(), "default");
    let job = FineTuneJob::of(job::parse(admission::HOMELESS, "job.yaml").unwrap());
    api.create(&PostParams::default(), &job).await.unwrap();
    let begin = Instant::now();
    while !admission::says_what_the_api_server_let_pass(&api.get("table").await.unwrap()) {
        let (calls, words) = (proxy.log().join("\n"), operator.last_words());
        assert!(begin.elapsed() < LIMIT, "the job is not called invalid: {calls}\n{words}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// A life that went as it must.
pub(crate) struct Life {
    /// Calls of the operator.
    pub(crate) calls: u64,
    /// Reasons of the Events about the job, in order.
    pub(crate) events: Vec<String>,
}

struct Stage<'l> {
    client: &'l Client,
    namespace: &'l str,
    history: History,
    operator: Arc<Operator>,
}

/// Lives it in a namespace of its own. The error tells all that is needed to understand it.
pub(crate) async fn live(
    client: &Client,
    namespace: &str,
    plan: Plan,
    folder: &std::path::Path,
) -> Result<Life, String> {
    let object: Namespace =
        serde_json::from_value(json!({"metadata": {"name": namespace}})).unwrap();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces.create(&PostParams::default(), &object).await.map_err(|error| error.to_string())?;
    let proxy = Proxy::start(client.clone(), plan).await;
    let operator = Arc::new(Operator::start(Some(namespace), proxy.address, folder));
    proxy.protects(&operator);
    let history = History::follow(client, namespace);
    let stage = Stage { client, namespace, history, operator: operator.clone() };
    let lived = match stage.all().await {
        Ok(()) => stage.judge().await,
        Err(error) => Err(error),
    };
    lived.map(|events| Life { calls: proxy.calls(), events }).map_err(|error| {
        let status = serde_json::to_string_pretty(&stage.history.seen().status()).unwrap();
        let (calls, words) = (proxy.log().join("\n"), operator.last_words());
        format!("{plan}: {error}\nstatus: {status}\ncalls:\n{calls}\noperator:\n{words}")
    })
}

impl Stage<'_> {
    async fn all(&self) -> Result<(), String> {
        let job = FineTuneJob::of(job::parse(JOB, "job.yaml").unwrap());
        self.jobs().create(&PostParams::default(), &job).await.map_err(|e| e.to_string())?;
        let pods = self.running(1).await?;
        self.end(&pods[..1], 75).await?;
        self.running(2).await?;
        self.suspend(true).await?;
        self.until("Suspended", |seen| {
            seen.status().summary.state == State::Suspended && seen.running(2).is_empty()
        })
        .await?;
        self.suspend(false).await?;
        let pods = self.running(3).await?;
        self.end(&pods, 0).await?;
        self.until("Complete", |seen| seen.status().summary.state == State::Complete).await?;
        self.until("no Jobs", |seen| seen.attempts.is_empty()).await?;
        // An operator that finds a job that is over leaves it alone.
        self.operator.crash();
        self.until("a look at it", |_seen| {
            0 < self.operator.metric("qvl_operator_reconciles_total").unwrap_or(0)
        })
        .await
    }

    /// What must be true of a life as a whole; answers with its Events.
    async fn judge(&self) -> Result<Vec<String>, String> {
        let status = {
            let seen = self.history.seen();
            if !seen.wrong.is_empty() {
                return Err(seen.wrong.join("\n"));
            }
            let names: Vec<&str> = seen.born.iter().map(|(name, _uid)| name.as_str()).collect();
            if names != ["digits-a1", "digits-a2", "digits-a3"] || !seen.attempts.is_empty() {
                return Err(format!("Jobs that were made: {names:?}"));
            }
            seen.status()
        };
        let counted = (status.attempt, status.restarts.total, status.restarts.counted);
        if counted != (3, 1, 1) {
            return Err(format!("attempt, restarts in all, restarts that count: {counted:?}"));
        }
        let events: Api<Event> = Api::namespaced(self.client.clone(), self.namespace);
        let list = events.list(&ListParams::default()).await.map_err(|e| e.to_string())?;
        let about = |event: &Event| {
            let regarding = event.regarding.as_ref();
            regarding.is_some_and(|object| object.kind.as_deref() == Some("FineTuneJob"))
        };
        let mut about: Vec<&Event> = list.items.iter().filter(|event| about(event)).collect();
        about.sort_by_key(|event| event.event_time.as_ref().map(|time| time.0));
        let told: Vec<String> = about
            .iter()
            .map(|event| {
                let text = |text: &Option<String>| text.clone().unwrap_or_default();
                format!("{}: {}", text(&event.reason), text(&event.note))
            })
            .collect();
        let twice = told.iter().enumerate().find(|(at, news)| told[..*at].contains(news));
        match twice {
            Some((_at, news)) => Err(format!("told twice: {news}")),
            None => Ok(told),
        }
    }

    fn jobs(&self) -> Api<FineTuneJob> {
        Api::namespaced(self.client.clone(), self.namespace)
    }

    async fn running(&self, attempt: u32) -> Result<Vec<PodFact>, String> {
        let what = format!("two running pods of attempt {attempt}");
        self.until(&what, |seen| seen.running(attempt).len() == 2).await?;
        Ok(self.history.seen().running(attempt))
    }

    async fn suspend(&self, suspend: bool) -> Result<(), String> {
        let patch = Patch::Merge(json!({"spec": {"suspend": suspend}}));
        let patched = self.jobs().patch("digits", &PatchParams::default(), &patch).await;
        patched.map(|_job| ()).map_err(|error| error.to_string())
    }

    /// Does as a kubelet does when the container of a pod ends.
    async fn end(&self, pods: &[PodFact], code: i32) -> Result<(), String> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), self.namespace);
        for pod in pods {
            let phase = if code == 0 { "Succeeded" } else { "Failed" };
            let patch = Patch::Merge(json!({"status": {
                "phase": phase,
                "containerStatuses": [{
                    "name": "trainer", "image": "none", "imageID": "", "ready": false,
                    "restartCount": 0, "started": false,
                    "state": {"terminated": {"exitCode": code, "reason": "Ended"}},
                }],
            }}));
            let patched = api.patch_status(&pod.name, &PatchParams::default(), &patch).await;
            patched.map_err(|error| format!("end of pod `{}`: {error}", pod.name))?;
        }
        Ok(())
    }

    async fn until(&self, what: &str, done: impl Fn(&Seen) -> bool) -> Result<(), String> {
        let begin = Instant::now();
        while begin.elapsed() < LIMIT {
            {
                let seen = self.history.seen();
                if !seen.wrong.is_empty() {
                    return Err(seen.wrong.join("\n"));
                }
                if done(&seen) {
                    return Ok(());
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(format!("waited {} s for {what}", LIMIT.as_secs()))
    }
}
