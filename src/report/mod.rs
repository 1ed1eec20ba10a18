//! Renders a doctor's report: text, Markdown and HTML for people, JSON, SARIF and JUnit for programs.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod changes;
pub mod fix;
mod html;
mod json;
mod junit;
mod markdown;
mod sarif;
mod text;
pub mod verdict;
pub mod why;
mod words;
mod wrap;

use std::collections::BTreeSet;

use crate::doctor::Seal;

pub use html::html;
pub use json::{JSON_VERSION, digest, json, schema, write_json};
pub use junit::junit;
pub use markdown::markdown;
pub use sarif::sarif;
pub use text::{problems, summary, text};

/// How a report is looked at.
#[derive(Clone, Copy, Debug)]
pub struct View<'v> {
    /// Warnings and unknown checks block too.
    pub strict: bool,
    /// Rules that may be unknown.
    pub allowed: &'v BTreeSet<String>,
    /// Milliseconds that observation and judgement took; `None` makes the report depend on the
    /// facts alone.
    pub elapsed_ms: Option<u64>,
    /// Whether text has colours.
    pub color: bool,
    /// Columns of text.
    pub width: usize,
    /// What the verdict was made of; `None` where nobody will ask.
    pub seal: Option<&'v Seal>,
}

/// The JSON Schema of what is written as a `T`.
fn schema_of<T: schemars::JsonSchema>() -> schemars::Schema {
    let settings = schemars::generate::SchemaSettings::draft2020_12().for_serialize();
    settings.into_generator().into_root_schema_for::<T>()
}
