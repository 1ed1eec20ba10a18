//! Every pair of some hosts, in rounds of pairs that do not disturb each other.

use std::thread;

use crate::{
    facts::{NetworkTest, PairTest},
    locate,
    probe::{Progress, way},
    wire::pairs::Way,
};

/// What this test is called in evidence.
pub(super) const FROM: &str = "TCP between each pair of hosts";
/// A round whose ways are all broken takes less.
pub(super) const ROUND_SECONDS: u64 = 70;

/// Tests every pair once. `host` is this machine, which nobody else can reach by that name; it
/// tests its own ways, and asks the others to test theirs.
pub(super) fn test(host: &str, peers: &[String], secret: &str, progress: &Progress) -> NetworkTest {
    let hosts: Vec<String> =
        std::iter::once(host.to_owned()).chain(peers.iter().cloned()).collect();
    let rounds = locate::rounds(hosts.len());
    let mut found = NetworkTest {
        hosts,
        rounds: u32::try_from(rounds.len()).unwrap_or(u32::MAX),
        pairs: Vec::new(),
        untested: Vec::new(),
    };
    for (number, round) in rounds.iter().enumerate() {
        progress.begin(format!("round {} of {}", number + 1, rounds.len()));
        let hosts = &found.hosts;
        let answers: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = round
                .iter()
                .map(|pair| (*pair, scope.spawn(move || one(hosts, *pair, secret))))
                .collect();
            threads.into_iter().map(|(pair, thread)| (pair, thread.join())).collect()
        });
        for ((a, b), answer) in answers {
            match answer {
                Ok(Ok(test)) => found.pairs.push(test),
                Ok(Err(why)) => found.untested.push((a, b, why)),
                Err(_panicked) => found.untested.push((a, b, "the test panicked".to_owned())),
            }
        }
    }
    found
}

/// One pair. If the first host cannot be asked, the second one is.
fn one(hosts: &[String], (a, b): (usize, usize), secret: &str) -> Result<PairTest, String> {
    if a == 0 {
        return Ok(PairTest { from: 0, to: b, way: way::to_host(&hosts[b], secret) });
    }
    let ask = |from: usize, to: usize| -> Result<PairTest, String> {
        let way: Way = way::send_on_errand(&hosts[from], &hosts[to], secret)?;
        Ok(PairTest { from, to, way })
    };
    ask(a, b).or_else(|first| ask(b, a).map_err(|second| format!("{first}; {second}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::way::{OpenDoor, secret_of};

    #[test]
    fn all_pairs_of_three_hosts_are_tested_once() {
        let secret = secret_of("a token");
        let local = "127.0.0.1:0".parse().unwrap();
        let doors: Vec<OpenDoor> =
            (0..2).map(|_| OpenDoor::serve(local, secret.clone()).unwrap()).collect();
        let peers: Vec<String> = doors.iter().map(|door| door.address.to_string()).collect();
        let found = test("here", &peers, &secret, &Progress::default());
        assert_eq!((found.rounds, found.untested.len()), (3, 0));
        let mut pairs: Vec<_> = found.pairs.iter().map(|pair| (pair.from, pair.to)).collect();
        pairs.sort_unstable();
        assert_eq!(pairs, [(0, 1), (0, 2), (1, 2)]);
        let open = found.pairs.iter().all(|pair| matches!(pair.way, Way::Open { .. }));
        assert!(open, "{found:?}");
    }

    #[test]
    fn a_host_that_is_away_or_has_another_token_is_told_from_the_others() {
        let (secret, local) = (secret_of("a token"), "127.0.0.1:0".parse().unwrap());
        let right = OpenDoor::serve(local, secret.clone()).unwrap();
        // The door of a pod goes on no errands.
        let wrong = OpenDoor::serve(local, secret_of("another")).unwrap();
        let peers = [right.address.to_string(), wrong.address.to_string()];
        let found = test("here", &peers, &secret, &Progress::default());
        let way =
            |from, to| &found.pairs.iter().find(|p| (p.from, p.to) == (from, to)).unwrap().way;
        assert!(matches!(way(0, 1), Way::Open { .. }), "{found:?}");
        assert!(matches!(way(0, 2), Way::Mute { .. }), "{found:?}");
        assert!(matches!(way(1, 2), Way::Mute { .. }), "{found:?}");
        let away = test("here", &["127.0.0.1:1".to_owned()], &secret, &Progress::default());
        assert!(matches!(away.pairs[0].way, Way::Closed { .. }), "{away:?}");
    }
}
