//! `qvl doctor undo`: takes repairs back.

use std::io::Write;

use clap::Args;
use serde_json::{Value, json};

use super::{Format, fix};
use crate::{
    cli::{CliError, home},
    repair::{self, End, Journal, Machine, Refused, State, Transaction},
    wire::ExitStatus,
};

#[derive(Debug, Args)]
pub(super) struct UndoArgs {
    /// Number of one repair; without it all of this user on this machine are taken back.
    id: Option<u64>,
    /// Show the repairs and change nothing.
    #[arg(long, conflicts_with = "force")]
    list: bool,
    /// Write the old state also over what somebody else changed since.
    #[arg(long)]
    force: bool,
    /// Form of the answer.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// What became of one undo.
struct Answer {
    one: Transaction,
    error: Option<Refused>,
}

pub(super) fn run(args: &UndoArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    let path = home::repairs(&fix::node());
    let known = Journal::read(&path).map_err(fix::explain)?;
    if let Some(id) = args.id
        && !known.iter().any(|one| one.begin.id == id)
    {
        return Err(CliError::new(ExitStatus::Usage, format!("there is no repair {id}"))
            .hint("`qvl doctor undo --list` shows all; each user and each machine has its own"));
    }
    let asked = |one: &Transaction| args.id.is_none_or(|id| one.begin.id == id);
    if args.list {
        let all: Vec<Transaction> = known.into_iter().filter(asked).collect();
        list(&all, args.format, out)?;
        return Ok(ExitStatus::Success);
    }
    if !known.iter().any(Transaction::is_live) {
        return nothing(args.format, out);
    }
    let mut journal = Journal::open(&path).map_err(fix::explain)?;
    let machine = Machine::new(std::env::current_exe()?, Some(journal.lock()?));
    let live: Vec<Transaction> = journal.transactions().into_iter().rev().filter(asked).collect();
    let mut answers = Vec::new();
    for one in live.into_iter().filter(Transaction::is_live) {
        let how = if one.state == State::Open { End::RolledBack } else { End::Undone };
        match repair::restore(&mut journal, &machine, &one, how, args.force) {
            Ok(()) => answers.push(Answer { one, error: None }),
            Err(Refused::Journal(error)) => return Err(fix::explain(error)),
            Err(error) => answers.push(Answer { one, error: Some(error) }),
        }
    }
    if answers.is_empty() {
        return nothing(args.format, out);
    }
    say(&answers, args.format, out)?;
    let mut errors = answers.iter().filter_map(|answer| answer.error.as_ref());
    Ok(match errors.next() {
        None => ExitStatus::Success,
        Some(first) if first.is_denied() => ExitStatus::Unreachable,
        Some(_) => ExitStatus::Blocked,
    })
}

fn nothing(format: Format, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    match format {
        Format::Text => writeln!(out, "there is nothing to undo")?,
        Format::Json => writeln!(out, "{:#}", json!({"v": 1, "undone": []}))?,
    }
    Ok(ExitStatus::Success)
}

fn say(answers: &[Answer], format: Format, out: &mut impl Write) -> std::io::Result<()> {
    if format == Format::Json {
        let undone: Vec<Value> = answers
            .iter()
            .map(|answer| {
                let begin = &answer.one.begin;
                json!({
                    "id": begin.id,
                    "check": begin.rule,
                    "subject": begin.subject,
                    "done": answer.error.is_none(),
                    "why": answer.error.as_ref().map(ToString::to_string),
                })
            })
            .collect();
        return writeln!(out, "{:#}", json!({"v": 1, "undone": undone}));
    }
    for Answer { one, error } in answers {
        let name = format!("{} {} on {}", one.begin.id, one.begin.rule, one.begin.subject);
        let Some(error) = error else {
            writeln!(out, "undone   {name}")?;
            continue;
        };
        writeln!(out, "REFUSED  {name}: {error}")?;
        match error {
            Refused::Changed { .. } => {
                let id = one.begin.id;
                writeln!(
                    out,
                    "         keep it so, or write the old state over it: qvl doctor undo {id} --force"
                )?;
            }
            Refused::Trouble(trouble) if trouble.denied => {
                let commands = one
                    .touched
                    .iter()
                    .rev()
                    .filter_map(|index| one.begin.changes.get(*index)?.undo_command());
                for command in commands {
                    writeln!(out, "         as root: {command}")?;
                }
            }
            Refused::Trouble(_) | Refused::Journal(_) => {}
        }
    }
    Ok(())
}

fn list(all: &[Transaction], format: Format, out: &mut impl Write) -> std::io::Result<()> {
    if format == Format::Json {
        let repairs: Vec<Value> = all
            .iter()
            .map(|one| {
                let begin = &one.begin;
                let targets: Vec<String> =
                    begin.changes.iter().map(|change| change.target.to_string()).collect();
                json!({
                    "id": begin.id,
                    "time": begin.at,
                    "check": begin.rule,
                    "subject": begin.subject,
                    "state": one.state,
                    "targets": targets,
                })
            })
            .collect();
        return writeln!(out, "{:#}", json!({"v": 1, "repairs": repairs}));
    }
    if all.is_empty() {
        return writeln!(out, "no repair was made by this user on this machine");
    }
    for Transaction { begin, state, .. } in all {
        let time = jiff::Timestamp::from_second(begin.at).unwrap_or_default();
        let time = time.strftime("%Y-%m-%d %H:%M:%SZ");
        let (id, rule, subject) = (begin.id, &begin.rule, &begin.subject);
        writeln!(out, "{id:>4}  {time}  {:<12} {rule} on {subject}", state.name())?;
        for change in &begin.changes {
            writeln!(out, "      {}", change.target)?;
        }
    }
    Ok(())
}
