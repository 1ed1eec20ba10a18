//! `clock-unsynchronised` and `clock-skew`.

use crate::{
    doctor::{Applies, Area, Check, Demand, Judgement, Outcome, Rule, Severity, Stop},
    facts::NodeFacts,
};

pub(super) static CLOCK_UNSYNCHRONISED: Rule = Rule {
    id: "clock-unsynchronised",
    summary: "the kernel takes its clock for right",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::Nodes,
    source: "adjtimex(2), TIME_ERROR and STA_UNSYNC",
    docs: "A time daemon that runs need not have found a server. The kernel knows: without a \
           correction for some hours it calls its clock unsynchronised. Clocks that run apart make \
           logs of several nodes impossible to merge.",
    reads: "adjtimex",
    fix: "chronyc sources, or timedatectl timesync-status: let the daemon reach its server",
    check: Check::Node(unsynchronised),
};

pub(super) static CLOCK_SKEW: Rule = Rule {
    id: "clock-skew",
    summary: "the clock is not far off",
    area: Area::Host,
    severity: Severity::Block,
    applies: Applies::Nodes,
    source: "adjtimex(2), estimated error; AMD-AGI/Primus (30 s)",
    docs: "Clocks that differ by more than a second make tokens and certificates look expired or \
           not yet valid, and put logs in the wrong order; by more than half a minute the \
           rendezvous fails.",
    reads: "adjtimex",
    fix: "chronyc makestep, or systemctl restart systemd-timesyncd",
    check: Check::Node(skew),
};

fn unsynchronised(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.system.clock;
    let clock = fact.get()?;
    let problem = (!clock.synchronised).then(|| {
        CLOCK_UNSYNCHRONISED.problem(
            "the kernel calls its clock unsynchronised",
            format!("logs of {} from several nodes cannot be merged by time", demand.name()),
            "timedatectl; chronyc tracking",
        )
    });
    Judgement::of(fact, clock.synchronised, "yes", problem)
}

fn skew(node: &NodeFacts, demand: &Demand) -> Outcome {
    const WARN_US: u64 = 1_000_000;
    const BLOCK_US: u64 = 30_000_000;
    let fact = &node.system.clock;
    let clock = fact.get()?;
    if !clock.synchronised {
        return Err(Stop::skip("nothing estimates the error: see clock-unsynchronised"));
    }
    let error = clock.estimated_error_us;
    let problem = (WARN_US < error).then(|| {
        let severity = if BLOCK_US < error { Severity::Block } else { Severity::Warn };
        let problem = CLOCK_SKEW.problem(
            format!("the clock is expected to be {} ms off", error / 1000),
            format!("tokens of {} may be refused, and its logs are out of order", demand.name()),
            "chronyc tracking; timedatectl timesync-status",
        );
        problem.at(severity)
    });
    Judgement::of(fact, format!("{error} us"), "at most 1 s", problem)
}
