//! Children of all jobs in memory, reduced to what a plan reads. Filled by watches that the
//! server filters by label: an operator pays only for its own pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{Stream, StreamExt};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{
    Api, Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        reflector::ObjectRef,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tracing::warn;

use super::{
    gang::Key,
    observe::PAGE,
    observed::{AttemptFact, PodFact},
};
use crate::api::{job::FineTuneJob, labels};

/// Children of all jobs.
#[derive(Debug, Default)]
pub(super) struct Index {
    jobs: Mutex<Table<AttemptFact>>,
    pods: Mutex<Table<PodFact>>,
}

/// Facts by job and name.
#[derive(Debug)]
struct Table<F> {
    facts: BTreeMap<Key, BTreeMap<String, F>>,
    /// Names that a list in progress has shown.
    listed: BTreeSet<(Key, String)>,
    complete: bool,
}

impl<F> Default for Table<F> {
    fn default() -> Self {
        Table { facts: BTreeMap::new(), listed: BTreeSet::new(), complete: false }
    }
}

impl<F> Table<F> {
    fn put(&mut self, key: Key, name: String, fact: Option<F>) {
        match fact {
            Some(fact) => {
                self.facts.entry(key).or_default().insert(name, fact);
            }
            None => self.remove(&key, &name),
        }
    }

    fn remove(&mut self, key: &Key, name: &str) {
        let Some(facts) = self.facts.get_mut(key) else { return };
        facts.remove(name);
        if facts.is_empty() {
            self.facts.remove(key);
        }
    }

    /// Ends a list: what it did not show is gone. Gives the jobs that lost something.
    fn finish_list(&mut self) -> Vec<Key> {
        let listed = std::mem::take(&mut self.listed);
        let mut gone = Vec::new();
        for (key, facts) in &self.facts {
            let names =
                facts.keys().filter(|name| !listed.contains(&(key.clone(), (*name).clone())));
            gone.extend(names.map(|name| (key.clone(), name.clone())));
        }
        for (key, name) in &gone {
            self.remove(key, name);
        }
        self.complete = true;
        gone.into_iter().map(|(key, _name)| key).collect()
    }

    /// Takes an event and gives the jobs that it is about.
    fn take<K: Resource>(&mut self, event: Event<K>, fact: impl Fn(&K) -> Option<F>) -> Vec<Key> {
        match event {
            Event::Init => {
                self.listed.clear();
                Vec::new()
            }
            Event::InitDone => self.finish_list(),
            Event::InitApply(object) => {
                let Some((key, name)) = names(&object) else { return Vec::new() };
                self.listed.insert((key.clone(), name.clone()));
                self.put(key.clone(), name, fact(&object));
                vec![key]
            }
            Event::Apply(object) => {
                let Some((key, name)) = names(&object) else { return Vec::new() };
                self.put(key.clone(), name, fact(&object));
                vec![key]
            }
            Event::Delete(object) => {
                let Some((key, name)) = names(&object) else { return Vec::new() };
                self.remove(&key, &name);
                vec![key]
            }
        }
    }

    fn of(&self, key: &Key) -> Vec<F>
    where
        F: Clone,
    {
        self.facts.get(key).into_iter().flat_map(BTreeMap::values).cloned().collect()
    }
}

impl Index {
    /// Whether both watches have listed everything once.
    pub(super) fn is_complete(&self) -> bool {
        lock(&self.jobs).complete && lock(&self.pods).complete
    }

    /// Child Jobs of a job.
    pub(super) fn attempts(&self, key: &Key) -> Vec<AttemptFact> {
        lock(&self.jobs).of(key)
    }

    /// Pods of a job.
    pub(super) fn pods(&self, key: &Key) -> Vec<PodFact> {
        lock(&self.pods).of(key)
    }
}

/// Watches child Jobs; each item is a job to look at.
pub(super) fn follow_jobs(
    api: Api<Job>,
    index: Arc<Index>,
) -> impl Stream<Item = ObjectRef<FineTuneJob>> {
    follow(api, move |event| lock(&index.jobs).take(event, AttemptFact::of))
}

/// Watches pods; each item is a job to look at.
pub(super) fn follow_pods(
    api: Api<Pod>,
    index: Arc<Index>,
) -> impl Stream<Item = ObjectRef<FineTuneJob>> {
    follow(api, move |event| lock(&index.pods).take(event, PodFact::of))
}

fn follow<K>(
    api: Api<K>,
    mut take: impl FnMut(Event<K>) -> Vec<Key>,
) -> impl Stream<Item = ObjectRef<FineTuneJob>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = watcher::Config::default().labels(labels::JOB).page_size(PAGE);
    let events = watcher(api, config).default_backoff();
    events.flat_map(move |event| {
        let keys = event.map_or_else(|error| {
            let kind = K::kind(&());
            warn!(error = &error as &dyn std::error::Error, %kind, "watch failed, it begins again");
            Vec::new()
        }, &mut take);
        let refs = keys.into_iter().map(|(namespace, job)| ObjectRef::new(&job).within(&namespace));
        futures::stream::iter(refs.collect::<Vec<_>>())
    })
}

fn names(object: &impl Resource) -> Option<(Key, String)> {
    let job = object.labels().get(labels::JOB)?.clone();
    Some(((object.namespace()?, job), object.name_any()))
}

/// A panic elsewhere does not make facts wrong.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use kube::api::ObjectMeta;

    use super::*;

    fn pod(name: &str, job: &str) -> Pod {
        let labels = [(labels::JOB.to_owned(), job.to_owned())];
        Pod {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some("team".to_owned()),
                labels: Some(labels.into()),
                ..ObjectMeta::default()
            },
            ..Pod::default()
        }
    }

    #[test]
    fn a_new_list_forgets_what_is_gone_and_names_its_job() {
        let mut table: Table<String> = Table::default();
        let fact = |pod: &Pod| pod.metadata.name.clone();
        let a = ("team".to_owned(), "a".to_owned());
        let b = ("team".to_owned(), "b".to_owned());
        assert_eq!(table.take(Event::Apply(pod("a-0", "a")), fact), vec![a.clone()]);
        assert_eq!(table.take(Event::Apply(pod("b-0", "b")), fact), vec![b.clone()]);
        assert!(!table.complete);
        table.take(Event::Init, fact);
        table.take(Event::InitApply(pod("a-0", "a")), fact);
        assert_eq!(table.of(&b), ["b-0"], "it stays until the list is done");
        assert_eq!(table.take(Event::InitDone, fact), vec![b.clone()]);
        assert_eq!((table.of(&a), table.of(&b)), (vec!["a-0".to_owned()], vec![]));
        assert!(table.complete);
        table.take(Event::Delete(pod("a-0", "a")), fact);
        assert!(table.facts.is_empty());
    }
}
