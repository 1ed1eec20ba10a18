//! Renders a doctor's report: text for people, JSON for programs.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod json;
mod text;

pub use json::{JSON_VERSION, json};
pub use text::{problems, summary, text};
