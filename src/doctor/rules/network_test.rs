//! What the pairs of hosts tell: `peer-unreachable`, `mtu-black-hole`, `network-slow`,
//! `clock-offset`.

use std::collections::BTreeMap;

use super::active::{done, facts};
use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Problem, Rule, Severity, Stop,
    },
    facts::{Ended, Fact, NetworkTest, NodeFacts, PairTest, Unread},
    locate::{self, Blame, Pair, pair},
    wire::pairs::Way,
};

pub(super) static PEER_UNREACHABLE: Rule = Rule {
    id: "peer-unreachable",
    summary: "all hosts reach each other",
    area: Area::Network,
    severity: Severity::Block,
    applies: Applies::Always,
    source: "awslabs hyperpod-nccl (full-mesh connect)",
    docs: "A pair of hosts that cannot connect, or connects and gets no answer, makes all ranks \
           wait for the time limit of the collective. Every pair is tested once; when most ways of \
           one host are broken that host is named, else the pair. It needs --active --peers, and \
           `qvl doctor serve` on the other hosts.",
    reads: "a TCP connection and 16 small messages between each pair of hosts",
    fix: "open all TCP ports between the hosts; look for a firewall on the named host first",
    check: Check::Node(unreachable),
};

pub(super) static MTU_BLACK_HOLE: Rule = Rule {
    id: "mtu-black-hole",
    summary: "large messages arrive as small ones do",
    area: Area::Network,
    severity: Severity::Block,
    applies: Applies::Always,
    source: "RFC 2923 section 2.1, RFC 4821",
    docs: "Where a path drops packets of full size without a word, ranks meet and hang in the \
           first exchange of gradients. mtu-mismatch compares what the interfaces say; this test \
           sends 64 KiB each way and finds switches and tunnels, too. It needs --active --peers.",
    reads: "64 KiB each way between each pair of hosts, after small messages passed",
    fix: "lower the MTU of the hosts to what the path carries, or raise it on the path",
    check: Check::Node(black_hole),
};

pub(super) static NETWORK_SLOW: Rule = Rule {
    id: "network-slow",
    summary: "all pairs of hosts are equally fast",
    area: Area::Network,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "relative to the peers as in DLRover and NVCRE; the factor 2.5 and 100 Mbit/s are \
             proposals",
    docs: "Every exchange of gradients waits for the slowest way. A host whose ways are all slow \
           has a bad card, port or cable; a single slow pair is something between two hosts. Half \
           against half is a tie. Two hosts alone have no peers to compare with: then only less \
           than 100 Mbit/s is slow. It needs --active --peers.",
    reads: "TCP for 0.2 s each way between each pair of hosts",
    fix: "ethtool on the named host: speed, errors, cable; for a pair, look at the switches between",
    check: Check::Node(slow),
};

pub(super) static CLOCK_OFFSET: Rule = Rule {
    id: "clock-offset",
    summary: "the hosts agree about the time",
    area: Area::Network,
    severity: Severity::Block,
    applies: Applies::Always,
    source: "RFC 5905 section 8 (offset from a round trip); AMD-AGI/Primus (30 s)",
    docs: "clock-skew asks each kernel how wrong it believes to be; this test compares the clocks. \
           More than a second makes tokens and certificates look expired and logs come in the wrong \
           order; more than half a minute breaks the rendezvous. It needs --active --peers.",
    reads: "the other host's clock in the middle of the shortest of 16 round trips",
    fix: "chronyc makestep on the host that is named, or on both of a pair",
    check: Check::Node(clocks),
};

/// A link that agreed on 100 Mbit/s gives less: a gradient sum then takes longer than most steps.
const SLOW_MBIT: f64 = 100.0;
const CLOCK_WARN_MS: f64 = 1000.0;
const CLOCK_BLOCK_MS: f64 = 30_000.0;

type NetworkFact = Fact<Ended<NetworkTest>>;

fn test(node: &NodeFacts) -> Result<(&NetworkFact, &NetworkTest), Stop> {
    let none = || Stop::skip("no other host was named (--peers)");
    let fact = facts(node)?.network.as_ref().ok_or_else(none)?;
    Ok((fact, done(fact)?))
}

/// Judges the ways of which `bad` says something, and names node or link. Pairs that nobody could
/// test are unknown.
fn judge_ways(
    node: &NodeFacts,
    demand: &Demand,
    rule: &'static Rule,
    required: &'static str,
    bad: impl Fn(&Way) -> Option<&str>,
) -> Outcome {
    let (fact, test) = test(node)?;
    let ways: BTreeMap<Pair, bool> =
        test.pairs.iter().map(|one| (key(one), bad(&one.way).is_some())).collect();
    let worst = test.pairs.iter().find_map(|one| Some((one, bad(&one.way)?)));
    let count = ways.values().filter(|bad| **bad).count();
    let text = format!("{count} of {} pairs in {} rounds", ways.len(), test.rounds);
    let mut judgement = Judgement::pass(Evidence::of(fact, text, required));
    judgement.unknown = untested(fact, test);
    judgement.problems.extend(worst.map(|(one, why)| Problem {
        severity: rule.severity,
        what: format!("{}: {why}", blamed(test, &locate::blame(&ways))),
        impact: format!(
            "ranks of {} on these hosts hang at start or in the first step",
            demand.name()
        ),
        fix: rule.fix.to_owned(),
        see: format!(
            "from {}: ping -M do -s 8972 {}; traceroute -T",
            test.hosts[one.from], test.hosts[one.to]
        ),
    }));
    Ok(judgement)
}

fn key(test: &PairTest) -> Pair {
    let number = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
    pair(number(test.from), number(test.to))
}

fn untested(fact: &NetworkFact, test: &NetworkTest) -> Vec<Unread> {
    let name = |index: usize| test.hosts.get(index).map_or("?", String::as_str);
    let unread = |(a, b, why): &(usize, usize, String)| Unread {
        why: format!("{} and {} were not tested: {why}", name(*a), name(*b)),
        from: fact.from().to_owned(),
    };
    test.untested.iter().map(unread).collect()
}

/// Whom the pairs point to, as the begin of a sentence.
fn blamed(test: &NetworkTest, blame: &Blame) -> String {
    let name = |node: &u32| {
        test.hosts.get(*node as usize).cloned().unwrap_or_else(|| format!("host {node}"))
    };
    let mut parts: Vec<String> =
        blame.nodes.iter().map(|node| format!("{} (its ways to others)", name(node))).collect();
    let links = blame.links.iter();
    parts.extend(links.map(|(a, b)| format!("the way between {} and {}", name(a), name(b))));
    if !blame.tie.is_empty() {
        let names: Vec<String> = blame.tie.iter().map(name).collect();
        parts.push(format!("{}, a tie: no side is the majority", names.join(", ")));
    }
    parts.join("; ")
}

fn unreachable(node: &NodeFacts, demand: &Demand) -> Outcome {
    let required = "every pair connects and answers";
    judge_ways(node, demand, &PEER_UNREACHABLE, required, |way| match way {
        Way::Closed { what } | Way::Mute { what } => Some(what),
        Way::Open { .. } | Way::Narrow { .. } => None,
    })
}

fn black_hole(node: &NodeFacts, demand: &Demand) -> Outcome {
    let required = "64 KiB arrive where small messages do";
    judge_ways(node, demand, &MTU_BLACK_HOLE, required, |way| match way {
        Way::Narrow { what } => Some(what),
        Way::Open { .. } | Way::Closed { .. } | Way::Mute { .. } => None,
    })
}

/// The slower direction of an open way, in Mbit/s.
fn speed(way: &Way) -> Option<f64> {
    match way {
        Way::Open { sent_mbit, received_mbit, .. } => Some(sent_mbit.min(*received_mbit)),
        Way::Closed { .. } | Way::Mute { .. } | Way::Narrow { .. } => None,
    }
}

fn slow(node: &NodeFacts, demand: &Demand) -> Outcome {
    let (fact, test) = test(node)?;
    let speeds: BTreeMap<Pair, f64> =
        test.pairs.iter().filter_map(|one| Some((key(one), speed(&one.way)?))).collect();
    if speeds.is_empty() {
        return Err(Stop::skip("no way is open: see peer-unreachable"));
    }
    let blame = locate::slow(&speeds);
    let slowest = speeds.values().copied().fold(f64::INFINITY, f64::min);
    let fastest = speeds.values().copied().fold(0.0, f64::max);
    let trip = test.pairs.iter().filter_map(|one| match &one.way {
        Way::Open { round_trip_us, .. } => Some(*round_trip_us),
        Way::Closed { .. } | Way::Mute { .. } | Way::Narrow { .. } => None,
    });
    let text = format!(
        "{slowest:.0} to {fastest:.0} Mbit/s, round trips up to {}",
        super::active::time(trip.max().unwrap_or(0))
    );
    let required = "none 2.5 times slower than its peers, none under 100 Mbit/s";
    let mut judgement = Judgement::pass(Evidence::of(fact, text, required));
    judgement.unknown = untested(fact, test);
    let what = if !blame.is_empty() {
        format!("{}: {slowest:.0} Mbit/s, up to {fastest:.0} elsewhere", blamed(test, &blame))
    } else if slowest < SLOW_MBIT {
        format!("{slowest:.0} Mbit/s between the slowest pair (100 Mbit/s needed)")
    } else {
        return Ok(judgement);
    };
    judgement.problems.push(NETWORK_SLOW.problem(
        what,
        format!("every step of {} waits for the slowest way", demand.name()),
        "ethtool <interface> | grep Speed; ip -s link",
    ));
    Ok(judgement)
}

fn clocks(node: &NodeFacts, demand: &Demand) -> Outcome {
    let (fact, test) = test(node)?;
    let apart = |one: &PairTest| match &one.way {
        Way::Open { clock_ahead_ms, clock_error_ms, .. } => {
            // What the round trip leaves open is not held against a clock.
            Some((clock_ahead_ms.abs() - clock_error_ms).max(0.0))
        }
        Way::Closed { .. } | Way::Mute { .. } | Way::Narrow { .. } => None,
    };
    let far: Vec<(&PairTest, f64)> =
        test.pairs.iter().filter_map(|one| Some((one, apart(one)?))).collect();
    let Some(worst) = far.iter().map(|(_one, ms)| *ms).max_by(f64::total_cmp) else {
        return Err(Stop::skip("no way is open: see peer-unreachable"));
    };
    let ways = far.iter().map(|(one, ms)| (key(one), CLOCK_WARN_MS < *ms)).collect();
    let evidence = Evidence::of(fact, format!("at most {worst:.1} ms apart"), "at most 1 s");
    let mut judgement = Judgement::pass(evidence);
    judgement.unknown = untested(fact, test);
    if CLOCK_WARN_MS < worst {
        let severity = if CLOCK_BLOCK_MS < worst { Severity::Block } else { Severity::Warn };
        let who = blamed(test, &locate::blame(&ways));
        let problem = CLOCK_OFFSET.problem(
            format!("{who}: clocks are {:.1} s apart", worst / 1000.0),
            format!("tokens of {} may be refused, and its logs are out of order", demand.name()),
            "date -u +%s.%N on both; chronyc tracking",
        );
        judgement.problems.push(problem.at(severity));
    }
    Ok(judgement)
}
