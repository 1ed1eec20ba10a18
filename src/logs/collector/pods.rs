//! How many segments a pod sends at the same time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// A pod sends one after another; a second one may come after a connection that broke off.
const EACH: u32 = 4;

type Counts = Arc<Mutex<HashMap<String, u32>>>;

/// Segments on their way, by the UID of the pod.
#[derive(Debug, Default)]
pub(super) struct Pods(Counts);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct OnItsWay {
    counts: Counts,
    uid: String,
}

impl Pods {
    /// `None` if the pod has too many.
    pub(super) fn enter(&self, uid: &str) -> Option<OnItsWay> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(uid.to_owned()).or_default();
        if EACH <= *count {
            return None;
        }
        *count += 1;
        Some(OnItsWay { counts: Arc::clone(&self.0), uid: uid.to_owned() })
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_cannot_take_all_places() {
        let pods = Pods::default();
        let mut entered: Vec<OnItsWay> = (0..4).map(|_| pods.enter("a").unwrap()).collect();
        assert!(pods.enter("a").is_none() && pods.enter("b").is_some());
        entered.pop();
        assert!(pods.enter("a").is_some());
        drop(entered);
        assert!(pods.0.lock().unwrap().is_empty());
    }
}
