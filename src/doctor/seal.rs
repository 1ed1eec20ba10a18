//! What a verdict was made of, as digests, so that a later launch can tell whether it still holds.
//!
//! A digest is the SHA-256 of canonical JSON: keys sorted by their bytes, no white space, numbers
//! and strings as `serde_json` writes them. It proves that nothing was mixed up or edited by
//! accident. It is no signature: there is no key, and whoever edits a report can seal it anew.

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Area, RULES, Severity, Stack};
use crate::{facts::Snapshot, job::FineTuneJob};

/// Digests of what went into a verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Of the facts of all nodes, and the nodes that were expected.
    pub facts: String,
    /// Of the table of rules: ids, limits and sources, with the version of this program.
    pub rules: String,
    /// Of the job and whose trainer runs it; `None` if the doctor was asked about machines alone.
    pub job: Option<String>,
    /// Seconds since the Unix epoch; `None` in a reproducible report.
    pub unix_seconds: Option<i64>,
}

impl Seal {
    /// Digests of what the doctor judged.
    pub fn of(
        snapshot: &Snapshot,
        job: Option<&FineTuneJob>,
        stack: Stack,
        unix_seconds: Option<i64>,
    ) -> Self {
        Seal {
            facts: digest_of(snapshot),
            rules: rules_digest(),
            job: job.map(|job| job_digest(job, stack)),
            unix_seconds,
        }
    }
}

/// Digest of a job and of whose trainer runs it.
pub fn job_digest(job: &FineTuneJob, stack: Stack) -> String {
    let stack = match stack {
        Stack::Own => "own",
        Stack::Official => "official",
    };
    digest_of(&(stack, job))
}

/// Digest of all rules as this program has them.
pub fn rules_digest() -> String {
    let severity = |severity| match severity {
        Severity::Info => "info",
        Severity::Warn => "warn",
        Severity::Block => "block",
    };
    let area = |area: Area| area.name();
    let rules: Vec<_> = RULES
        .iter()
        .map(|rule| {
            let texts = [rule.summary, rule.docs, rule.reads, rule.source, rule.fix];
            (rule.id, area(rule.area), severity(rule.severity), rule.is_needed(), texts)
        })
        .collect();
    digest_of(&(env!("CARGO_PKG_VERSION"), rules))
}

fn digest_of(value: &impl Serialize) -> String {
    digest(&serde_json::to_value(value).expect("plain data"))
}

/// `sha256:` and the digest of a value in canonical form.
pub fn digest(value: &Value) -> String {
    let mut text = String::new();
    canonical(value, &mut text);
    let bytes = Sha256::digest(text.as_bytes());
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Keys are sorted here, because a map of `serde_json` may keep the order of insertion.
fn canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _field)| *name);
            text.push('{');
            for (index, (name, field)) in fields.into_iter().enumerate() {
                separate(index, text);
                text.push_str(&Value::from(name.as_str()).to_string());
                text.push(':');
                canonical(field, text);
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                separate(index, text);
                canonical(item, text);
            }
            text.push(']');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            text.push_str(&value.to_string());
        }
    }
}

fn separate(index: usize, text: &mut String) {
    if 0 < index {
        text.push(',');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_keys_does_not_matter_and_values_do() {
        let of = |text: &str| digest(&serde_json::from_str(text).unwrap());
        assert_eq!(of(r#"{"b":[1,2.5],"a":"x"}"#), of(r#"{ "a": "x", "b": [1, 2.5] }"#));
        assert_ne!(of(r#"{"b":[1,2.5]}"#), of(r#"{"b":[2.5,1]}"#));
        // `printf '{"a":"x","b":[1,2.5]}' | sha256sum`
        let known = "sha256:66efddae6a97500318e4c6cdc4bc04149f340a165a7ef2d830393048b67b7a31";
        assert_eq!(of(r#"{"b":[1,2.5],"a":"x"}"#), known);
    }
}
