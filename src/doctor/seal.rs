//! What a verdict was made of, as digests, so that a later launch can tell whether it still holds.
//!
//! A digest is the SHA-256 of canonical JSON: keys sorted by their bytes, no white space, numbers
//! and strings as `serde_json` writes them. It proves that nothing was mixed up or edited by
//! accident. It is no signature: there is no key, and whoever edits a report can seal it anew.

use std::fmt::{self, Write};

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
            facts: snapshot_digest(snapshot),
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

/// As [`digest_of`], node by node: all facts of a fleet as JSON are several times their size.
fn snapshot_digest(snapshot: &Snapshot) -> String {
    let mut digest = Digester::default();
    digest.open('{');
    digest.key("expected");
    digest.value(&serde_json::to_value(&snapshot.expected).expect("plain data"));
    digest.key("nodes");
    digest.open('{');
    for (name, facts) in &snapshot.nodes {
        digest.key(&name.0);
        digest.value(&serde_json::to_value(facts).expect("plain data"));
    }
    digest.close('}');
    digest.close('}');
    digest.finish()
}

/// `sha256:` and the digest of a value in canonical form.
pub fn digest(value: &Value) -> String {
    let mut digest = Digester::default();
    digest.value(value);
    digest.finish()
}

/// The digest of a value that is given part by part, in the order of the canonical form.
#[derive(Default)]
pub struct Digester {
    sha: Sha256,
    /// Whether the next key or item needs no comma before it.
    first: bool,
}

impl Write for Digester {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.sha.update(text);
        Ok(())
    }
}

impl Digester {
    /// Begins an object or an array.
    pub fn open(&mut self, bracket: char) {
        self.write(bracket);
        self.first = true;
    }

    /// Ends it.
    pub fn close(&mut self, bracket: char) {
        self.write(bracket);
        self.first = false;
    }

    /// A key of an object; its value comes next. Keys must come sorted by their bytes.
    pub fn key(&mut self, key: &str) {
        self.separate();
        self.write(Value::from(key));
        self.write(':');
    }

    /// An item of an array.
    pub fn item(&mut self, item: &Value) {
        self.separate();
        self.value(item);
    }

    /// A whole value. Keys are sorted here, because a map of `serde_json` may keep the order of
    /// insertion.
    pub fn value(&mut self, value: &Value) {
        match value {
            Value::Object(fields) => {
                let mut fields: Vec<_> = fields.iter().collect();
                fields.sort_by_key(|(name, _field)| *name);
                self.open('{');
                for (name, field) in fields {
                    self.key(name);
                    self.value(field);
                }
                self.close('}');
            }
            Value::Array(items) => {
                self.open('[');
                items.iter().for_each(|item| self.item(item));
                self.close(']');
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => self.write(value),
        }
    }

    /// `sha256:` and 64 digits.
    pub fn finish(self) -> String {
        let hex: String = self.sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256:{hex}")
    }

    fn separate(&mut self) {
        if !std::mem::take(&mut self.first) {
            self.write(',');
        }
    }

    fn write(&mut self, text: impl fmt::Display) {
        write!(self, "{text}").expect("a digest takes everything");
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
        // `printf '[{},[],[[1],{"a":null}],"\\n"]' | sha256sum`
        let known = "sha256:9d82232d6be45d8d96ee9cdbc7eb37f3a12f76e081cd253b34f4aed80d8d51ad";
        assert_eq!(of(r#"[{}, [], [[1], {"a": null}], "\n"]"#), known);
    }

    /// Saved reports are compared with digests that are made of a whole value.
    #[test]
    fn facts_have_the_same_digest_in_parts_and_as_a_whole() {
        let fleet = crate::doctor::testing::fleet(11);
        let expected = fleet.nodes.keys().cloned().collect();
        let snapshot = Snapshot { expected, ..fleet };
        assert_eq!(snapshot_digest(&snapshot), digest_of(&snapshot));
        assert_eq!(snapshot_digest(&Snapshot::default()), digest_of(&Snapshot::default()));
    }
}
