//! How often the pods of a job may ask.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::operator::gang::Key;

/// Requests a second for a job, and for each of its pods.
const EACH_JOB: f64 = 10.0;
const EACH_POD: f64 = 5.0;
/// Seconds of asking that can be saved up.
const BURST: f64 = 2.0;
/// A job that has not asked for so long is forgotten.
const FORGET: Duration = Duration::from_secs(600);
/// Jobs beyond which forgotten ones are looked for.
const MANY: usize = 1024;

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

/// A token bucket for each job.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    buckets: Mutex<BTreeMap<Key, Bucket>>,
}

impl Limiter {
    /// Whether a request of a job of so many pods may be answered.
    pub(super) fn allow(&self, key: &Key, pods: u32, now: Instant) -> bool {
        let rate = EACH_JOB + EACH_POD * f64::from(pods);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if MANY < buckets.len() {
            buckets.retain(|_key, bucket| now.saturating_duration_since(bucket.at) < FORGET);
        }
        let full = Bucket { left: rate * BURST, at: now };
        let bucket = buckets.entry(key.clone()).or_insert(full);
        let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.left = (bucket.left + passed * rate).min(rate * BURST);
        bucket.at = now;
        if bucket.left < 1.0 {
            return false;
        }
        bucket.left -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_has_its_share_and_no_more() {
        let limiter = Limiter::default();
        let now = Instant::now();
        let key = |job: &str| ("team".to_owned(), job.to_owned());
        let answered =
            |job: &str, at| (0..1000).filter(|_| limiter.allow(&key(job), 2, at)).count();
        assert_eq!(answered("a", now), 40);
        assert_eq!(answered("a", now + Duration::from_secs(1)), 20);
        assert_eq!(answered("b", now), 40, "another job is not touched by it");
    }
}
