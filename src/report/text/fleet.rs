//! What differs between nodes, and the smallest change that launches the job.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use super::{BOLD, DIM, VERDICT_WIDTH, View, few, paint, style, wrap};
use crate::{
    doctor::{Action, Change, Choice, Difference, Drift, Group, Label, Remedy, Report, Verdict},
    facts::NodeName,
};

/// Column of the values of a key.
const KEY_WIDTH: usize = 34;
/// Values that are shown of one key.
const VALUES: usize = 4;
/// Nodes that keep their names in a command.
const NAMED: usize = 64;

/// Writes what differs; nothing about a single node.
pub(super) fn drift(report: &Report, view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    let Some(drift) = &report.drift else { return Ok(()) };
    writeln!(out, "\n{}", paint(view, BOLD, "drift"))?;
    let differing = drift.differing.len();
    let whose = report.job.as_ref().map_or(String::new(), |job| format!(" for {job}"));
    let (compared, nodes) = (drift.compared, drift.nodes);
    if differing == 0 {
        writeln!(out, "  all of {compared} keys are equal on {nodes} nodes")?;
    } else {
        writeln!(out, "  {differing} of {compared} keys differ over {nodes} nodes{whose}:")?;
    }
    drift.differing.iter().try_for_each(|difference| key(difference, nodes, view, out))?;
    unread(drift, view, out)
}

fn key(
    difference: &Difference,
    nodes: usize,
    view: &View<'_>,
    out: &mut impl Write,
) -> io::Result<()> {
    let (word, verdict) = match difference.label {
        Label::Fatal => ("FATAL", Verdict::Fail),
        Label::Unknown => ("UNKNOWN", Verdict::Unknown),
        Label::Slow => ("SLOW", Verdict::Warn),
        Label::Benign => ("benign", Verdict::Pass),
    };
    let word = paint(view, style(verdict), &format!("{word:<VERDICT_WIDTH$}"));
    let name = difference.key;
    let indent = 2 + VERDICT_WIDTH;
    let room = view.width.saturating_sub(indent + KEY_WIDTH).max(30);
    for (index, line) in wrap(&values(difference, nodes), room).iter().enumerate() {
        let name = if index == 0 { name } else { "" };
        let word = if index == 0 { word.clone() } else { " ".repeat(VERDICT_WIDTH) };
        writeln!(out, "  {word}{name:<KEY_WIDTH$}{line}")?;
    }
    let rule = difference.rule.map_or(String::new(), |rule| format!("{rule}: "));
    let why = format!("{rule}{} [{}]", difference.reason, difference.source);
    for line in wrap(&why, view.width.saturating_sub(indent).max(30)) {
        writeln!(out, "{:indent$}{}", "", paint(view, DIM, &line))?;
    }
    Ok(())
}

/// `580.65.06 on 15 of 16, but 535.104.05 on n3`, or `a tie: ...`.
fn values(difference: &Difference, nodes: usize) -> String {
    let group = |group: &Group| format!("{} on {}", group.value, names(&group.nodes));
    let outliers = difference.outliers();
    let mut parts: Vec<String> = outliers.iter().take(VALUES).map(group).collect();
    if VALUES < outliers.len() {
        parts.push(format!("{} more values", outliers.len() - VALUES));
    }
    let parts = parts.join("; ");
    match difference.majority() {
        Some(most) => format!("{} on {} of {nodes}, but {parts}", most.value, most.nodes.len()),
        None => format!("a tie: {parts}"),
    }
}

fn names(nodes: &[NodeName]) -> String {
    few(&nodes.iter().map(|node| node.0.clone()).collect::<Vec<_>>())
}

/// Keys that some nodes did not tell, by these nodes.
fn unread(drift: &Drift, view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    let mut by_nodes: BTreeMap<&[NodeName], Vec<&str>> = BTreeMap::new();
    for (key, nodes) in &drift.unread {
        by_nodes.entry(nodes).or_default().push(key);
    }
    for (nodes, keys) in by_nodes {
        let on = if nodes.len() == drift.nodes { "any node".to_owned() } else { names(nodes) };
        let text = format!("not told by {on}: {}", keys.join(", "));
        for (index, line) in wrap(&text, view.width.saturating_sub(4).max(30)).iter().enumerate() {
            let indent = if index == 0 { 2 } else { 4 };
            writeln!(out, "{:indent$}{}", "", paint(view, DIM, line))?;
        }
    }
    Ok(())
}

/// Writes what makes the job launchable.
pub(super) fn remedy(report: &Report, view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    match &report.remedy {
        None => Ok(()),
        Some(Remedy::Change(change)) => {
            writeln!(out, "\n{}", paint(view, BOLD, "smallest change"))?;
            self::change(change, view, out)
        }
        Some(Remedy::TooFew { ranks, largest, hindrances, proven }) => {
            writeln!(out, "\n{}", paint(view, BOLD, "smallest change"))?;
            let none = if *proven { "no change of nodes" } else { "no change that was tried" };
            let most = largest.as_ref().map_or("no node takes a rank".to_owned(), |change| {
                format!("{} would do, as {}", change.shape.ranks(), change.shape)
            });
            lines(&format!("{none} launches {ranks} ranks; {most}"), 2, view, out)?;
            for hindrance in hindrances {
                let on = names(&hindrance.nodes);
                let (rule, what, fix) = (hindrance.rule, &hindrance.what, &hindrance.fix);
                lines(&format!("{rule} keeps out {on} for good: {what}; {fix}"), 2, view, out)?;
            }
            largest.as_ref().map_or(Ok(()), |change| self::change(change, view, out))
        }
    }
}

fn change(change: &Change, view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    let several = 1 < change.options.len();
    for (index, choice) in change.options.iter().enumerate() {
        let head = match (several, index) {
            (false, _) => "",
            (true, 0) => "either ",
            (true, _) => "or ",
        };
        option(head, choice, change, view, out)?;
    }
    if change.more {
        lines("there are more ways that cost the same", 2, view, out)?;
    }
    if change.bound < change.cost {
        let text = format!(
            "not all ways were tried: no way costs less than {} quarters of a node, this one {}",
            change.bound, change.cost
        );
        lines(&text, 2, view, out)?;
    }
    if !change.remaining.is_empty() {
        let text = format!(
            "what it does not change, because no single node is to blame: {}",
            change.remaining.join(" ")
        );
        lines(&text, 2, view, out)?;
    }
    Ok(())
}

fn option(
    head: &str,
    choice: &Choice,
    change: &Change,
    view: &View<'_>,
    out: &mut impl Write,
) -> io::Result<()> {
    let mut head = head.to_owned();
    for action in &choice.actions {
        lines(&format!("{head}{}", sentence(action)), 2, view, out)?;
        head.clear();
        if let Action::Exclude(excluded) = action {
            let names: Vec<&str> = excluded.iter().map(|out| out.node.0.as_str()).collect();
            if names.len() <= NAMED {
                // A line to copy stays in one piece.
                writeln!(out, "    spec.cluster.excludeNodes: [{}]", names.join(", "))?;
            }
        }
    }
    let shape = change.shape;
    let needs = format!("the job needs {} as {shape}", shape.ranks());
    let nodes = match choice.nodes_left {
        1 => "1 node".to_owned(),
        nodes => format!("{nodes} nodes"),
    };
    let left = match choice.gpus_left {
        Some(gpus) => format!("leaves {gpus} GPUs on {nodes}, {needs}"),
        None => format!("leaves {nodes}, {needs}"),
    };
    let only = if choice.actions.is_empty() {
        format!("    spec.cluster.gpusPerNode: {}\n", shape.per_node)
    } else {
        String::new()
    };
    write!(out, "{only}")?;
    lines(&left, 4, view, out)
}

fn sentence(action: &Action) -> String {
    match action {
        Action::Exclude(excluded) => {
            let mut parts: Vec<String> = excluded
                .iter()
                .take(VALUES)
                .map(|out| format!("{} ({}: {})", out.node, few_rules(&out.rules), out.why))
                .collect();
            if VALUES < excluded.len() {
                parts.push(format!("{} more nodes", excluded.len() - VALUES));
            }
            format!("exclude {}", parts.join(", "))
        }
        Action::Repair { rule, nodes, what, unknown: true, .. } => {
            format!("find out {rule} on {}, and judge again: {what}", names(nodes))
        }
        Action::Repair { rule, nodes, what, fix, unknown: false } => {
            format!("repair {rule} on {}: {what}; {fix}", names(nodes))
        }
    }
}

/// The first few checks: the first is the one that is explained.
fn few_rules(rules: &[&str]) -> String {
    let more = rules.len().saturating_sub(VALUES);
    let list = rules.iter().take(VALUES).copied().collect::<Vec<_>>().join(" ");
    if more == 0 { list } else { format!("{list} and {more} more") }
}

fn lines(text: &str, indent: usize, view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    for (index, line) in
        wrap(text, view.width.saturating_sub(indent + 2).max(30)).iter().enumerate()
    {
        let indent = if index == 0 { indent } else { indent + 2 };
        writeln!(out, "{:indent$}{line}", "")?;
    }
    Ok(())
}
