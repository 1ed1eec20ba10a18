//! What a namespace went through, as watches of the API server itself tell it, and what of it must
//! never be seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use futures::{Stream, StreamExt};
use k8s_openapi::{
    api::{batch::v1::Job, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::Condition,
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::watcher::{self, Event, watcher},
};
use qvl::{
    api::job::{FineTuneJob, JobStatus},
    operator::{
        conditions::{COMPLETE, FAILED},
        observed::{AttemptFact, PodFact, PodPhase},
    },
};

/// Follows one job, the only one of its namespace.
#[derive(Clone)]
pub(crate) struct History(Arc<Mutex<Seen>>);

/// What was seen, and what of it was wrong.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) job: Option<FineTuneJob>,
    pub(crate) attempts: BTreeMap<String, AttemptFact>,
    pub(crate) pods: BTreeMap<String, PodFact>,
    /// Names and UIDs of all Jobs that ever were.
    pub(crate) born: BTreeSet<(String, String)>,
    pub(crate) wrong: Vec<String>,
    /// The terminal condition, and the version of the job that first had it.
    terminal: Option<(Condition, u64)>,
}

impl History {
    /// Begins to watch.
    pub(crate) fn follow(client: &Client, namespace: &str) -> History {
        let history = History(Arc::default());
        history.spawn(events::<FineTuneJob>(client, namespace), Seen::job_event);
        history.spawn(events::<Job>(client, namespace), Seen::attempt_event);
        history.spawn(events::<Pod>(client, namespace), Seen::pod_event);
        history
    }

    fn spawn<K: Send + 'static>(
        &self,
        events: impl Stream<Item = Result<Event<K>, watcher::Error>> + Send + 'static,
        take: fn(&mut Seen, Event<K>),
    ) {
        let seen = self.0.clone();
        tokio::spawn(events.for_each(move |event| {
            // A watch that fails begins again by itself.
            if let Ok(event) = event {
                take(&mut seen.lock().unwrap(), event);
            }
            std::future::ready(())
        }));
    }

    /// What was seen so far.
    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap()
    }
}

fn events<K>(
    client: &Client,
    namespace: &str,
) -> impl Stream<Item = Result<Event<K>, watcher::Error>> + use<K>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    watcher(Api::<K>::namespaced(client.clone(), namespace), watcher::Config::default())
}

impl Seen {
    fn job_event(&mut self, event: Event<FineTuneJob>) {
        let (Event::Apply(job) | Event::InitApply(job)) = event else { return };
        let (none, new) = (JobStatus::default(), job.status.clone().unwrap_or_default());
        let old = self.job.as_ref().and_then(|job| job.status.as_ref()).unwrap_or(&none);
        for (what, before, after) in [
            ("attempt", old.attempt, new.attempt),
            ("epoch", old.epoch, new.epoch),
            ("restarts.total", old.restarts.total, new.restarts.total),
            ("restarts.counted", old.restarts.counted, new.restarts.counted),
        ] {
            if after < before {
                self.wrong.push(format!("{what} fell from {before} to {after}"));
            }
        }
        let ended: Vec<Condition> = new
            .conditions
            .iter()
            .filter(|c| [COMPLETE, FAILED].contains(&&*c.type_) && c.status == "True")
            .cloned()
            .collect();
        match (&self.terminal, &ended[..]) {
            (None, []) => {}
            (None, [end]) => self.terminal = Some((end.clone(), version(&job))),
            (None, _) => self.wrong.push(format!("two ends: {ended:?}")),
            (Some((end, _version)), now) => {
                let same = |now: &Condition| {
                    let known = (&now.type_, &now.reason, &now.message, &now.last_transition_time);
                    known == (&end.type_, &end.reason, &end.message, &end.last_transition_time)
                };
                if !matches!(now, [now] if same(now)) {
                    self.wrong.push(format!("the end {end:?} became {now:?}"));
                }
            }
        }
        self.job = Some(job);
    }

    fn attempt_event(&mut self, event: Event<Job>) {
        match event {
            Event::Apply(job) | Event::InitApply(job) => {
                let Some(fact) = AttemptFact::of(&job) else { return };
                let is_new = self.born.insert((fact.name.clone(), fact.uid.clone()));
                if let Some((_end, version_of_end)) = &self.terminal
                    && is_new
                    && *version_of_end < version(&job)
                    && fact.created.is_some_and(|created| self.ended_before(created))
                {
                    self.wrong.push(format!("Job `{}` was made for a job that is over", fact.name));
                }
                self.attempts.insert(fact.name.clone(), fact);
            }
            Event::Delete(job) => {
                self.attempts.remove(&job.name_any());
            }
            Event::Init | Event::InitDone => {}
        }
        let live = |fact: &&AttemptFact| fact.end.is_none() && !fact.deleting;
        let live: Vec<&str> =
            self.attempts.values().filter(live).map(|fact| fact.name.as_str()).collect();
        if 1 < live.len() {
            self.wrong.push(format!("two live attempts: {}", live.join(", ")));
        }
    }

    /// Whether the job was over in a second before this one.
    fn ended_before(&self, created: Timestamp) -> bool {
        let end = self.terminal.as_ref().map(|(end, _version)| end.last_transition_time.0);
        end.is_some_and(|end| end.as_second() < created.as_second())
    }

    fn pod_event(&mut self, event: Event<Pod>) {
        match event {
            Event::Apply(pod) | Event::InitApply(pod) => {
                let Some(fact) = PodFact::of(&pod) else { return };
                self.pods.insert(fact.name.clone(), fact);
            }
            Event::Delete(pod) => {
                self.pods.remove(&pod.name_any());
            }
            Event::Init | Event::InitDone => {}
        }
        let now = Timestamp::now();
        let live = self.pods.values().filter(|pod| lives(pod, now)).map(|pod| pod.attempt);
        let live: BTreeSet<u32> = live.collect();
        if 1 < live.len() {
            self.wrong.push(format!("pods of attempts {live:?} live at the same time"));
        }
    }

    /// Pods of an attempt that run.
    pub(crate) fn running(&self, attempt: u32) -> Vec<PodFact> {
        let pods = self.pods.values();
        pods.filter(|pod| pod.attempt == attempt && pod.phase == PodPhase::Running)
            .cloned()
            .collect()
    }

    /// The newest status.
    pub(crate) fn status(&self) -> JobStatus {
        self.job.as_ref().and_then(|job| job.status.clone()).unwrap_or_default()
    }
}

/// Whether a pod may still do something: one that has to end has its time, one of a lost node none.
fn lives(pod: &PodFact, now: Timestamp) -> bool {
    let (since, patience) =
        if pod.on_lost_node() { (pod.deleted, 10) } else { (pod.deadline, 120) };
    let gone = since.is_some_and(|since| patience < now.as_second() - since.as_second());
    !gone && !matches!(pod.phase, PodPhase::Succeeded | PodPhase::Failed)
}

/// Versions of all objects of an API server come from one counter.
fn version(object: &impl Resource) -> u64 {
    object.resource_version().and_then(|version| version.parse().ok()).unwrap_or(0)
}
