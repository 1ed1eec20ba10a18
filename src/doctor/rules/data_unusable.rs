//! `data-unusable`: what the data lint found.

use crate::doctor::{
    Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Problem, Rule, Severity, Stop,
};

pub(super) static RULE: Rule = Rule {
    id: "data-unusable",
    summary: "the training data can be trained on",
    area: Area::Job,
    severity: Severity::Block,
    applies: Applies::Always,
    source: "`qvl data lint`",
    docs: "Samples without answers, pictures that cannot be read and boxes outside of their \
           pictures make a training pointless or end it in the middle.",
    reads: "the data lint",
    fix: "repair the samples that `qvl data lint` names",
    check: Check::Job(check),
};

fn check(demand: &Demand) -> Outcome {
    let Some(data) = &demand.data else {
        return Err(Stop::skip("no job was given (--job FILE)"));
    };
    let text = format!("{} blocking, {} warnings", data.blocking, data.warnings);
    let evidence = Evidence::new("qvl data lint", text.as_str(), "0 blocking");
    let severity = match (data.blocking, data.warnings) {
        (0, 0) => return Ok(Judgement::pass(evidence)),
        (0, _) => Severity::Warn,
        _ => Severity::Block,
    };
    let worst = data.worst.as_deref().unwrap_or("see the lint");
    let problem = Problem {
        severity,
        what: format!("the lint has {text}; the worst: {worst}"),
        impact: match severity {
            Severity::Block => format!("{} fails or learns nothing", demand.name()),
            Severity::Warn | Severity::Info => {
                format!("{} may learn something else than meant", demand.name())
            }
        },
        fix: "correct the samples that the lint names".to_owned(),
        see: "qvl data lint FILE".to_owned(),
    };
    Ok(Judgement::problem(problem, evidence))
}
