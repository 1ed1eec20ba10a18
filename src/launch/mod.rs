//! Local runs: the run folder, the supervisor of the ranks, and what to do when one fails.

pub mod attempt;
pub mod ladder;
pub mod logs;
pub mod process;
pub mod pulse;
mod rank;
pub mod registry;
pub mod state;
pub mod supervisor;
pub mod text;
