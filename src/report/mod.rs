//! Renders a doctor's report: text for people, JSON for programs.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod json;
mod text;
mod wrap;

use std::collections::BTreeSet;

pub use json::{JSON_VERSION, json, schema, write_json};
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
}
