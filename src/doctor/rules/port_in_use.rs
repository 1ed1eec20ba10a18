//! `port-in-use`: can rank 0 listen?

use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Problem, Rule, Severity, Stop,
    },
    facts::{NodeFacts, PortState},
};

pub(super) static RULE: Rule = Rule {
    id: "port-in-use",
    summary: "the port of rank 0 is free",
    area: Area::Network,
    severity: Severity::Block,
    applies: Applies::Always,
    source: "awslabs hyperpod-nccl; torchrun's fixed 29500 and Qwen-VL's 6001",
    docs: "Rank 0 listens on MASTER_PORT. A port that another job holds makes the rendezvous fail, \
           or connects ranks of two jobs. The launcher chooses a free port itself, so this is \
           judged only when MASTER_PORT is set.",
    reads: "bind of MASTER_PORT",
    fix: "choose a free port, or end the program that has it",
    check: Check::Node(check),
};

fn check(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fixed = node.env.variables.get()?.contains_key("MASTER_PORT");
    if !fixed && demand.master_port.is_none() {
        return Err(Stop::skip("MASTER_PORT is not set: the launcher chooses a free port"));
    }
    let fact = &node.network.master_port;
    match fact.get()? {
        PortState::Free { port } => {
            Ok(Judgement::pass(Evidence::of(fact, format!("{port} is free"), "free")))
        }
        PortState::Taken { port, message } => {
            let problem = Problem {
                severity: Severity::Block,
                what: format!("port {port} cannot be bound: {message}"),
                impact: format!("rank 0 of {} cannot listen, so no rank starts", demand.name()),
                fix:
                    "unset MASTER_PORT and let the launcher choose, or set a free port on all nodes"
                        .to_owned(),
                see: format!("ss -ltnp 'sport = :{port}'"),
            };
            Ok(Judgement::problem(problem, Evidence::of(fact, format!("{port} is taken"), "free")))
        }
    }
}
