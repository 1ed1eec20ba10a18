//! What all rules about active tests share.

use crate::{
    doctor::{Rule, Stop},
    facts::{ActiveFacts, Ended, Fact, NodeFacts, Unread},
};

/// All rules about active tests.
const ACTIVE: [&str; 15] = [
    "storage-broken",
    "checkpoint-slow",
    "fsync-slow",
    "memory-bandwidth-uneven",
    "cpu-miscomputes",
    "straggler",
    "peer-unreachable",
    "mtu-black-hole",
    "network-slow",
    "clock-offset",
    "memory-not-allocatable",
    "gpu-memory-wrong",
    "p2p-copy-wrong",
    "copy-bandwidth",
    "sdc-vote",
];

/// Whether a rule judges what active tests found.
pub fn is_active(rule: &Rule) -> bool {
    ACTIVE.contains(&rule.id)
}

/// Results of the active tests; skipped if nobody asked for them.
pub(super) fn facts(node: &NodeFacts) -> Result<&ActiveFacts, Stop> {
    let none = || Stop::skip("active tests not asked for (--active)");
    node.active.as_deref().ok_or_else(none)
}

/// The result of a test that came to its end. One that hung or died says nothing.
pub(super) fn done<T>(fact: &Fact<Ended<T>>) -> Result<&T, Stop> {
    match fact.get()? {
        Ended::Done(found) => Ok(found),
        Ended::Hung { step, after_ms } => {
            Err(unknown(fact, format!("killed after {after_ms} ms in: {step}")))
        }
        Ended::Crashed { message } => Err(unknown(fact, format!("the test died: {message}"))),
    }
}

fn unknown<T>(fact: &Fact<T>, why: String) -> Stop {
    Stop::Unknown(Unread { why, from: fact.from().to_owned() })
}

/// Bytes per second in the unit that people read.
pub(super) fn rate(bytes_per_second: f64) -> String {
    match bytes_per_second {
        rate if 1e9 <= rate => format!("{:.1} GB/s", rate / 1e9),
        rate if 1e6 <= rate => format!("{:.0} MB/s", rate / 1e6),
        rate => format!("{:.0} kB/s", rate / 1e3),
    }
}

/// Microseconds in the unit that people read.
pub(super) fn time(us: u64) -> String {
    if us < 1000 { format!("{us} us") } else { format!("{:.1} ms", us as f64 / 1e3) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{RULES, Verdict, diagnose, testing};

    #[test]
    fn the_list_is_that_of_the_rules_that_say_so() {
        let say = |rule: &&&Rule| rule.docs.contains("--active");
        let found: Vec<&str> = RULES.iter().filter(say).map(|rule| rule.id).collect();
        assert_eq!(found, ACTIVE);
    }

    #[test]
    fn without_active_tests_all_of_them_are_skipped_with_that_reason() {
        let mut snapshot = testing::fleet(3);
        snapshot.nodes.values_mut().for_each(|node| node.active = None);
        let report = diagnose(&snapshot, &testing::demand());
        let of = report.results.iter().filter(|result| is_active(result.rule));
        for result in of {
            assert_eq!(result.verdict, Verdict::Skipped, "{}", result.rule.id);
            let why = result.skipped.as_deref().unwrap();
            assert_eq!(why, "active tests not asked for (--active)", "{}", result.rule.id);
        }
    }

    #[test]
    fn only_an_end_with_a_result_is_one() {
        let of = |ended: Ended<u32>| {
            let fact = Fact::known(ended, "test");
            done(&fact).copied()
        };
        assert_eq!(of(Ended::Done(7)), Ok(7));
        for ended in [
            Ended::Hung { step: "fsync".to_owned(), after_ms: 5 },
            Ended::Crashed { message: "signal: 11".to_owned() },
        ] {
            assert!(matches!(of(ended), Err(Stop::Unknown(_))));
        }
    }

    #[test]
    fn numbers_have_units_that_people_read() {
        assert_eq!([rate(2.5e9), rate(9.4e7), rate(3e4)], ["2.5 GB/s", "94 MB/s", "30 kB/s"]);
        assert_eq!([time(90), time(12_345)], ["90 us", "12.3 ms"]);
    }
}
