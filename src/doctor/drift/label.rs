//! What a difference does to this job: by the checks that judge the value.

use std::collections::{BTreeMap, BTreeSet};

use super::{Difference, Group, Key, Label};
use crate::{
    doctor::{CheckResult, Subject, Verdict},
    facts::NodeName,
};

/// What a check says that explains a difference.
struct Blame {
    label: Label,
    rule: &'static str,
    reason: String,
    source: &'static str,
}

/// A difference with its label. The worst check counts; without one, what the key says itself.
pub(super) fn of(
    key: &Key,
    groups: Vec<Group>,
    results: &BTreeMap<&'static str, &[CheckResult]>,
) -> Difference {
    // Of several as bad as each other the first that the key names counts.
    let found = key.rules.iter().rev().filter_map(|id| results.get(id));
    let blame = found.filter_map(|results| blame(results, &groups)).max_by_key(|blame| blame.label);
    match blame {
        Some(Blame { label, rule, reason, source }) => {
            Difference { key: key.name, groups, label, reason, source, rule: Some(rule) }
        }
        None => Difference {
            key: key.name,
            groups,
            label: key.otherwise,
            reason: key.reason.to_owned(),
            source: key.source,
            rule: None,
        },
    }
}

/// A check that fails over all nodes together, or on every node of a value. One that fails on some
/// nodes of a value only fails for another reason than this value.
fn blame(results: &[CheckResult], groups: &[Group]) -> Option<Blame> {
    let whole = results.iter().find(|r| r.subject == Subject::All && r.verdict == Verdict::Fail);
    if let Some(result) = whole {
        return Some(fatal(result));
    }
    let of = |verdict: Verdict| -> BTreeMap<&NodeName, &CheckResult> {
        let hits = results.iter().filter(|result| result.verdict == verdict);
        hits.filter_map(|result| match &result.subject {
            Subject::Node(name) => Some((name, result)),
            Subject::All | Subject::Job => None,
        })
        .collect()
    };
    let fails = of(Verdict::Fail);
    // The smaller sides are told first: they are what a reader would repair.
    if let Some(result) = in_whole_group(&fails, groups) {
        return Some(fatal(result));
    }
    let unknown = of(Verdict::Unknown);
    let result = in_whole_group(&unknown, groups).filter(|result| result.rule.is_needed())?;
    let why = result.unknown.first().map_or_else(String::new, ToString::to_string);
    Some(Blame {
        label: Label::Unknown,
        rule: result.rule.id,
        reason: format!("not known: {why}"),
        source: result.rule.source,
    })
}

fn in_whole_group<'r>(
    hits: &BTreeMap<&NodeName, &'r CheckResult>,
    groups: &[Group],
) -> Option<&'r CheckResult> {
    let nodes: BTreeSet<&NodeName> = hits.keys().copied().collect();
    let group = groups.iter().rev().find(|group| group.nodes.iter().all(|n| nodes.contains(n)))?;
    hits.get(group.nodes.first()?).copied()
}

fn fatal(result: &CheckResult) -> Blame {
    let problem = result.problems.first();
    let on = match &result.subject {
        Subject::Node(name) => format!("{name}: "),
        Subject::All | Subject::Job => String::new(),
    };
    let reason = problem.map_or_else(
        || result.rule.summary.to_owned(),
        // Over all nodes the problem repeats the values; on a node it says what they mean.
        |problem| match result.subject {
            Subject::All | Subject::Job => problem.impact.clone(),
            Subject::Node(_) => format!("{on}{}; {}", problem.what, problem.impact),
        },
    );
    Blame { label: Label::Fatal, rule: result.rule.id, reason, source: result.rule.source }
}
