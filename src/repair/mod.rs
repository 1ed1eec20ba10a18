//! Makes repairs, and takes them back. What to change is decided in [`crate::doctor::fix`]; here is
//! the machine that is changed, and a journal that survives the death of this process at any
//! moment: each step is on disk before it is made, with the state that was there before.

mod file;
pub mod journal;
mod machine;
mod store;
mod transaction;

pub use journal::{Begin, End, Record, State, Transaction};
pub use machine::{Machine, Trouble, session};
pub use store::{Journal, JournalError};
pub use transaction::{Refused, apply, interrupted, keep, restore};
