//! What `qvl doctor --fix` and `qvl doctor undo` say.

mod json;

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};

pub use self::json::{json, schema};
use super::{View, wrap::wrap};
use crate::doctor::fix::{Change, Left, Repair};

/// Column in which texts begin.
const COLUMN: usize = 12;
const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

/// What was found to repair.
#[derive(Debug)]
pub struct Plan<'p> {
    /// For which machine and job, in words.
    pub about: String,
    /// Repairs, in order.
    pub repairs: &'p [Repair],
    /// What is left to people.
    pub left: &'p [Left],
    /// Earlier repairs that were interrupted and are still open.
    pub interrupted: usize,
    /// The command that makes the repairs; `None` if they are made now, or cannot be made here.
    pub apply: Option<String>,
}

/// What became of a repair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The check passes now. The number takes it back.
    Done {
        /// Of `qvl doctor undo`.
        id: u64,
    },
    /// There was nothing left to do.
    AlreadySo,
    /// It was taken back.
    RolledBack {
        /// Why.
        why: String,
    },
    /// It could not be taken back.
    Stuck {
        /// Of `qvl doctor undo`.
        id: u64,
        /// Why, first of the failure, then of the failed return.
        why: String,
    },
    /// It was not tried.
    NotReady {
        /// Why.
        why: String,
    },
}

impl Fate {
    /// Whether a repair was tried and does not hold.
    pub fn is_failure(&self) -> bool {
        matches!(self, Fate::RolledBack { .. } | Fate::Stuck { .. })
    }

    fn name(&self) -> &'static str {
        match self {
            Fate::Done { .. } => "done",
            Fate::AlreadySo => "already-so",
            Fate::RolledBack { .. } => "rolled-back",
            Fate::Stuck { .. } => "stuck",
            Fate::NotReady { .. } => "not-ready",
        }
    }
}

fn paint(view: &View<'_>, style: Style, text: &str) -> String {
    if view.color { format!("{style}{text}{style:#}") } else { text.to_owned() }
}

fn row(name: &str, text: &str, view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    let lines = wrap(text, view.width.saturating_sub(COLUMN).max(20));
    for (index, line) in lines.iter().enumerate() {
        let name = if index == 0 { name } else { "" };
        writeln!(out, "   {}{line}", paint(view, DIM, &format!("{name:<9}")))?;
    }
    Ok(())
}

/// A command stays in one piece, so that it can be copied.
fn command(name: &str, text: &str, view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "   {}{text}", paint(view, DIM, &format!("{name:<9}")))
}

fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// Writes the plan.
pub fn plan(plan: &Plan<'_>, view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{}", paint(view, BOLD, &format!("qvl doctor --fix: {}", plan.about)))?;
    let (ready, other): (Vec<&Repair>, Vec<&Repair>) =
        plan.repairs.iter().partition(|repair| repair.is_ready());
    let here = count(ready.len(), "repair");
    writeln!(
        out,
        "{here} can be made here, {} elsewhere or by hand, {} left to people",
        other.len(),
        count(plan.left.len(), "finding")
    )?;
    if 0 < plan.interrupted {
        let text = format!(
            "{} interrupted: `qvl doctor undo`, or the next --apply, rolls back first",
            count(plan.interrupted, "earlier repair")
                + if plan.interrupted == 1 { " was" } else { " were" }
        );
        writeln!(out, "{}", paint(view, AnsiColor::Yellow.on_default(), &text))?;
    }
    for (index, repair) in ready.iter().enumerate() {
        writeln!(out, "\n{}", paint(view, BOLD, &format!("{}  {}", index + 1, title(repair))))?;
        row("what", &repair.what, view, out)?;
        changes(&repair.changes, view, out)?;
    }
    for repair in other {
        writeln!(out, "\n{}", paint(view, BOLD, &format!("-  {}", title(repair))))?;
        row("what", &repair.what, view, out)?;
        row("not here", repair.obstacle.as_deref().unwrap_or(""), view, out)?;
        if repair.changes.is_empty() {
            repair.commands.iter().try_for_each(|line| command("by hand", line, view, out))?;
        } else {
            changes(&repair.changes, view, out)?;
        }
    }
    left(plan.left, view, out)?;
    match &plan.apply {
        Some(command) => writeln!(out, "\nnothing was changed; this makes the repairs: {command}"),
        None => Ok(()),
    }
}

fn title(repair: &Repair) -> String {
    format!("{} on {}", repair.rule, repair.subject)
}

fn changes(changes: &[Change], view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    for change in changes {
        let state =
            |state: &Option<String>| state.clone().unwrap_or_else(|| "not there".to_owned());
        if let Some(diff) = change.diff() {
            row("change", &format!("{}:", change.target), view, out)?;
            for line in diff.lines() {
                let style = match line.as_bytes().first() {
                    Some(b'+') => AnsiColor::Green.on_default(),
                    Some(b'-') => AnsiColor::Red.on_default(),
                    Some(_) | None => DIM,
                };
                writeln!(out, "   {}", paint(view, style, line))?;
            }
        } else {
            let text =
                format!("{}: {} -> {}", change.target, state(&change.old), state(&change.new));
            row("change", &text, view, out)?;
        }
        if let Some(line) = change.command() {
            command("command", &line, view, out)?;
        }
        match (change.undo_command(), change.target.path()) {
            (Some(line), _) => command("undo", &line, view, out)?,
            (None, Some(path)) if change.old.is_none() => {
                command("undo", &format!("rm {path}"), view, out)?;
            }
            (None, Some(_)) => row("undo", "the old text", view, out)?,
            (None, None) => {}
        }
        row("lasts", change.target.kind().lasts(), view, out)?;
    }
    Ok(())
}

fn left(left: &[Left], view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    if left.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{}", paint(view, BOLD, "left to people"))?;
    for Left { rule, subject, what, fix } in left {
        writeln!(out, "   {rule} on {subject}")?;
        row("what", what, view, out)?;
        row("fix", fix, view, out)?;
    }
    Ok(())
}

/// Writes what became of one repair.
pub fn fate(repair: &Repair, fate: &Fate, view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    let (word, style, text) = match fate {
        Fate::Done { id } => (
            "done",
            AnsiColor::Green.on_default().bold(),
            format!("the check passes now; `qvl doctor undo {id}` takes it back"),
        ),
        Fate::AlreadySo => {
            ("done", AnsiColor::Green.on_default().bold(), "it was so already".to_owned())
        }
        Fate::RolledBack { why } => {
            ("undone", AnsiColor::Yellow.on_default().bold(), format!("rolled back: {why}"))
        }
        Fate::Stuck { id, why } => (
            "STUCK",
            AnsiColor::Red.on_default().bold(),
            format!("{why}; `qvl doctor undo {id}` tries again"),
        ),
        Fate::NotReady { why } => ("skip", DIM, why.clone()),
    };
    let word = paint(view, style, &format!("{word:<9}"));
    let lines =
        wrap(&format!("{}: {text}", title(repair)), view.width.saturating_sub(COLUMN).max(20));
    for (index, line) in lines.iter().enumerate() {
        let word = if index == 0 { word.clone() } else { " ".repeat(9) };
        writeln!(out, "{word}{line}")?;
    }
    Ok(())
}
