//! From logs to the cause of a failure. Pure: lines come in, an [`Answer`] goes out.
//!
//! What a line means is data: `data/log_patterns.tsv`, and `data/exit_codes.tsv` for exit codes.
//! When many ranks fail, most lines tell of consequences: one rank dies, the others lose their
//! peer, wait, and are ended. So each row has a [`Class`], and an answer is the strongest class
//! first, the earliest of it first. A consequence never hides a cause.

mod collector;
mod line;
mod pattern;
#[cfg(test)]
mod tests;

pub use collector::{Answer, Collector, Finding, Place, Seen, TailLine};
pub use pattern::{Class, Pattern, exit_code, patterns};
