//! The report as SARIF 2.1.0, for code scanning and its viewers.
//!
//! A problem is a result of kind `fail`; a check that the job needs and that is unknown is one of
//! kind `open`. What passed or does not apply is left out: viewers show every result as a finding.
//! The OASIS standard is the source of all names: SARIF 2.1.0, sections 3.19 to 3.28.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{View, words};
use crate::doctor::{CheckResult, Problem, Report, Rule, Severity};

const SCHEMA: &str =
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json";

/// The report as a SARIF log with one run.
pub fn sarif(report: &Report, view: &View<'_>) -> String {
    let mut rules: Vec<&'static Rule> = report.results.iter().map(|result| result.rule).collect();
    rules.dedup_by_key(|rule| rule.id);
    let index_of: BTreeMap<&str, usize> =
        rules.iter().enumerate().map(|(index, rule)| (rule.id, index)).collect();
    let of = |result: &CheckResult| results(result, index_of[result.rule.id], view);
    let log = json!({
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "qvl doctor",
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "rules": rules.iter().map(|rule| self::rule(rule)).collect::<Vec<Value>>(),
            }},
            "invocations": [{ "executionSuccessful": true }],
            "columnKind": "unicodeCodePoints",
            "results": report.results.iter().flat_map(of).collect::<Vec<Value>>(),
            "properties": {
                "verdict": words::overall(report.overall(view.strict, view.allowed)),
                "coverage": report.coverage(),
                "nodes": names(&report.nodes),
                "missingNodes": names(&report.missing),
            },
        }],
    });
    serde_json::to_string_pretty(&log).expect("plain data")
}

fn names(nodes: &[crate::facts::NodeName]) -> Vec<&str> {
    nodes.iter().map(|name| name.0.as_str()).collect()
}

fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "note",
        Severity::Warn => "warning",
        Severity::Block => "error",
    }
}

fn rule(rule: &Rule) -> Value {
    json!({
        "id": rule.id,
        "shortDescription": { "text": rule.summary },
        "fullDescription": { "text": rule.docs },
        "help": { "text": format!("Fix: {}. Source: {}.", rule.fix, rule.source) },
        "defaultConfiguration": { "level": level(rule.severity) },
        "properties": { "area": rule.area.name(), "needed": rule.is_needed() },
    })
}

fn results(result: &CheckResult, index: usize, view: &View<'_>) -> Vec<Value> {
    let problems = result.problems.iter().map(|problem| of_problem(result, problem, index));
    let open = result.is_needed_unknown() && !view.allowed.contains(result.rule.id);
    let unknown = result.unknown.iter().filter(|_unread| open).map(|unread| {
        let text = format!("not known, because {} gave nothing: {}", unread.from, unread.why);
        located(result, index, &text, json!({ "kind": "open", "level": "none" }))
    });
    problems.chain(unknown).collect()
}

fn of_problem(result: &CheckResult, problem: &Problem, index: usize) -> Value {
    let text = format!(
        "{}\nEffect: {}\nFix: {}\nSee: {}",
        problem.what, problem.impact, problem.fix, problem.see
    );
    let kind = json!({ "kind": "fail", "level": level(problem.severity) });
    located(result, index, &text, kind)
}

/// A result with its text and its subject; a node has no file, so the place is a logical one.
fn located(result: &CheckResult, index: usize, text: &str, mut value: Value) -> Value {
    let subject = result.subject.to_string();
    value["ruleId"] = json!(result.rule.id);
    value["ruleIndex"] = json!(index);
    value["message"] = json!({ "text": text });
    value["locations"] = json!([{ "logicalLocations": [{
        "name": subject,
        "fullyQualifiedName": format!("{subject}/{}", result.rule.id),
        "kind": "resource",
    }] }]);
    value["partialFingerprints"] =
        json!({ "subjectCheck/v1": format!("{subject}/{}", result.rule.id) });
    value
}
