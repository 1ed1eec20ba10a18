//! One repair from its begin to its end: each step is in the journal before it is made.

use super::{
    Begin, End, Journal, JournalError, Machine, Record, Transaction, Trouble,
    journal::{Found, State, found},
};
use crate::doctor::fix::{Change, Target};

/// Why a repair, or its undo, did not go through.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The journal cannot be written, so nothing more is done.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The machine refuses.
    #[error(transparent)]
    Trouble(#[from] Trouble),
    /// Somebody else changed it meanwhile.
    #[error("{target} is neither as before the repair nor as after it: {present}")]
    Changed {
        /// What.
        target: Target,
        /// Its present state in few words.
        present: String,
    },
}

impl Refused {
    /// Whether rights are missing.
    pub fn is_denied(&self) -> bool {
        matches!(self, Refused::Trouble(trouble) if trouble.denied)
    }
}

/// Makes all changes of a repair. On an error those that were made are still in force: the caller
/// takes them back with [`restore`].
pub fn apply(journal: &mut Journal, machine: &Machine, begin: Begin) -> Result<(), Refused> {
    let (id, changes) = (begin.id, begin.changes.clone());
    journal.append(Record::Begin(begin))?;
    for (index, change) in changes.iter().enumerate() {
        let present = machine.read(&change.target)?;
        if found(change, present.as_deref()) != Found::Old {
            return Err(changed(change, present));
        }
        journal.append(Record::Applying { id, change: index })?;
        machine.write(&change.target, change.new.as_deref(), id)?;
        journal.append(Record::Applied { id, change: index })?;
    }
    Ok(())
}

/// The repair holds: it stays until somebody undoes it.
pub fn keep(journal: &mut Journal, id: u64) -> Result<(), JournalError> {
    journal.append(Record::Kept { id })
}

/// Repairs that were interrupted, or whose undo was, the newest first.
pub fn interrupted(journal: &Journal) -> Vec<Transaction> {
    let open = |one: &Transaction| matches!(one.state, State::Open | State::Restoring);
    journal.transactions().into_iter().rev().filter(open).collect()
}

/// Gives everything that a repair changed its old state back, the last change first. What has it
/// already, or went away with a boot or a process, is left alone; so this may be done again after
/// an interruption. What somebody else changed stops it before anything is touched, unless `force`.
pub fn restore(
    journal: &mut Journal,
    machine: &Machine,
    one: &Transaction,
    how: End,
    force: bool,
) -> Result<(), Refused> {
    let (id, begin) = (one.begin.id, &one.begin);
    let gone =
        |change: &Change| change.target.kind().ends_with_boot() && begin.boot != machine.boot();
    let mut todo = Vec::new();
    for index in one.touched.iter().rev().copied() {
        let Some(change) = begin.changes.get(index).filter(|change| !gone(change)) else {
            continue;
        };
        machine.clean(&change.target, id)?;
        let present = machine.read(&change.target)?;
        let ended = present.is_none() && matches!(change.target, Target::Limit { .. });
        match found(change, present.as_deref()) {
            _ if ended => {}
            Found::Old => {}
            Found::New => todo.push((index, change)),
            Found::Other if force => todo.push((index, change)),
            Found::Other => return Err(changed(change, present)),
        }
    }
    for (index, change) in todo {
        journal.append(Record::Restoring { id, change: index })?;
        machine.write(&change.target, change.old.as_deref(), id)?;
        journal.append(Record::Restored { id, change: index })?;
    }
    journal.append(Record::Ended { id, how })?;
    Ok(())
}

fn changed(change: &Change, present: Option<String>) -> Refused {
    let text = |state: Option<String>| state.unwrap_or_else(|| "not there".to_owned());
    let present = match (change.target.path(), present) {
        (Some(_), None) => "it was removed".to_owned(),
        (Some(_), Some(_)) => "its text is another one".to_owned(),
        (None, present) => {
            let (old, new) = (text(change.old.clone()), text(change.new.clone()));
            format!("{} (before {old}, after {new})", text(present))
        }
    };
    Refused::Changed { target: change.target.clone(), present }
}
