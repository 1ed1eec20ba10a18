//! Limits for those who show tokens that are no good: each question costs the apiserver a review.
//!
//! Addresses have a few tries, which come back with time. Who is believed gets his try back, so
//! that only refusals count.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// Tries of an address that was not heard of lately, and how many come back each second.
const TRIES: f64 = 64.0;
const EACH_SECOND: f64 = 4.0;
/// Addresses that are remembered; beyond it, those with all tries are forgotten.
const MANY: usize = 4096;

/// Tries left, by address.
#[derive(Debug, Default)]
pub struct Strangers {
    tries: Mutex<HashMap<IpAddr, (f64, Instant)>>,
}

impl Strangers {
    /// Takes a try; false if there is none left.
    pub fn admit(&self, from: IpAddr, now: Instant) -> bool {
        self.change(from, now, |left| {
            let admitted = 1.0 <= *left;
            *left -= f64::from(u8::from(admitted));
            admitted
        })
    }

    /// It was no stranger.
    pub fn give_back(&self, from: IpAddr, now: Instant) {
        self.change(from, now, |left| *left = (*left + 1.0).min(TRIES));
    }

    fn change<T>(&self, from: IpAddr, now: Instant, change: impl FnOnce(&mut f64) -> T) -> T {
        let mut tries = self.tries.lock().unwrap_or_else(PoisonError::into_inner);
        let grown = |(left, at): (f64, Instant)| {
            (left + now.saturating_duration_since(at).as_secs_f64() * EACH_SECOND).min(TRIES)
        };
        if MANY <= tries.len() && !tries.contains_key(&from) {
            tries.retain(|_from, entry| grown(*entry) < TRIES);
        }
        if MANY <= tries.len() && !tries.contains_key(&from) {
            // So many of them at once are one attack, and forgetting all is the lesser evil.
            tries.clear();
        }
        let entry = tries.entry(from).or_insert((TRIES, now));
        let mut left = grown(*entry);
        let answer = change(&mut left);
        *entry = (left, now.max(entry.1));
        answer
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn refusals_use_up_the_tries_of_one_address_only() {
        let (strangers, now) = (Strangers::default(), Instant::now());
        let [bad, good] = [1, 2].map(|last| IpAddr::from([10, 0, 0, last]));
        let admitted = |from, at| (0..1000).filter(|_| strangers.admit(from, at)).count();
        assert_eq!(admitted(bad, now), 64);
        assert_eq!(admitted(bad, now + Duration::from_secs(2)), 8);
        for _request in 0..1000 {
            assert!(strangers.admit(good, now));
            strangers.give_back(good, now);
        }
    }

    #[test]
    fn many_addresses_do_not_fill_the_memory() {
        let (strangers, now) = (Strangers::default(), Instant::now());
        for address in 0..20_000_u32 {
            assert!(strangers.admit(IpAddr::from(address.to_be_bytes()), now));
        }
        assert!(strangers.tries.lock().unwrap().len() <= MANY);
    }
}
