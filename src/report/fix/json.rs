//! The plan of repairs as JSON.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Fate, Plan};
use crate::{
    doctor::{
        Overall,
        fix::{Change, Left, Repair},
    },
    report::{schema_of, words},
};

/// The answer of `qvl doctor --fix --format json`.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(title = "RepairPlan")]
struct Document<'p> {
    /// Version of this format: 1.
    v: u32,
    /// Whether the repairs were made, or only shown.
    applied: bool,
    /// Earlier repairs that were interrupted and are still open.
    interrupted: usize,
    /// Numbers of interrupted repairs that were taken back first.
    rolled_back: &'p [u64],
    /// In the order in which they are made.
    repairs: Vec<RepairForm<'p>>,
    /// What is left to people.
    left: Vec<LeftForm<'p>>,
    /// Verdict of the whole report, as `qvl doctor --format json` has it.
    verdict: &'static str,
}

/// What is done because of one finding.
#[derive(Serialize, JsonSchema)]
#[schemars(title = "Repair")]
struct RepairForm<'p> {
    /// Id of the check.
    check: &'p str,
    /// What the check judged: a node, `all nodes` or `job`.
    subject: String,
    /// What is wrong.
    what: &'p str,
    /// Whether it can be made here.
    ready: bool,
    /// Why not, if so.
    obstacle: Option<&'p str>,
    /// Commands that do the same by hand; a change of a file has a diff instead.
    commands: &'p [String],
    /// In order. Empty if the present state is not known.
    changes: Vec<ChangeForm>,
    /// What became of it; null if it was only shown.
    result: Option<ResultForm<'p>>,
}

/// One change.
#[derive(Serialize, JsonSchema)]
#[schemars(title = "Change")]
struct ChangeForm {
    /// What kind of thing is changed; `docs/repairs.md` lists them.
    kind: &'static str,
    /// Which one: `gpu`, `resource` and `process`, `path` or `name`.
    target: Map<String, Value>,
    /// State before; null if it is not there, and for a file, whose text is in the diff.
    old: Option<String>,
    /// State after, in the same way.
    new: Option<String>,
    /// The command that does the same, if there is one.
    command: Option<String>,
    /// The command that takes it back, if there is one.
    undo: Option<String>,
    /// For a file.
    diff: Option<String>,
    /// How long it lasts without an undo.
    lasts: &'static str,
    /// Whether it needs root.
    root: bool,
}

/// What became of a repair.
#[derive(Serialize, JsonSchema)]
#[schemars(title = "Result")]
struct ResultForm<'p> {
    /// `done`, `already-so`, `rolled-back`, `stuck` or `not-ready`.
    state: &'static str,
    /// Number for `qvl doctor undo`.
    id: Option<u64>,
    /// Why it does not hold.
    why: Option<&'p str>,
}

/// A finding without a repair.
#[derive(Serialize, JsonSchema)]
#[schemars(title = "Left")]
struct LeftForm<'p> {
    /// Id of the check.
    check: &'p str,
    /// What the check judged.
    subject: String,
    /// What is wrong.
    what: &'p str,
    /// What a person can do.
    fix: &'p str,
}

/// The plan as pretty JSON, with what became of its repairs, if they were made.
pub fn json(
    plan: &Plan<'_>,
    fates: Option<&[Fate]>,
    recovered: &[u64],
    overall: Overall,
) -> String {
    let fate = |index: usize| fates.and_then(|fates| fates.get(index));
    let repairs = plan.repairs.iter().enumerate();
    let document = Document {
        v: 1,
        applied: fates.is_some(),
        interrupted: plan.interrupted,
        rolled_back: recovered,
        repairs: repairs.map(|(index, repair)| repair_form(repair, fate(index))).collect(),
        left: plan.left.iter().map(left_form).collect(),
        verdict: words::overall(overall),
    };
    serde_json::to_string_pretty(&document).expect("plain data")
}

/// The JSON Schema of [`json`].
pub fn schema() -> schemars::Schema {
    schema_of::<Document<'static>>()
}

fn repair_form<'p>(repair: &'p Repair, fate: Option<&'p Fate>) -> RepairForm<'p> {
    RepairForm {
        check: repair.rule,
        subject: repair.subject.to_string(),
        what: &repair.what,
        ready: repair.is_ready(),
        obstacle: repair.obstacle.as_deref(),
        commands: &repair.commands,
        changes: repair.changes.iter().map(change_form).collect(),
        result: fate.map(result_form),
    }
}

fn change_form(change: &Change) -> ChangeForm {
    let is_file = change.target.path().is_some();
    let state = |state: &Option<String>| if is_file { None } else { state.clone() };
    let fields = serde_json::to_value(&change.target).expect("plain data");
    let Value::Object(mut target) = fields else { unreachable!("a target has fields") };
    target.remove("kind");
    ChangeForm {
        kind: change.target.kind().name(),
        target,
        old: state(&change.old),
        new: state(&change.new),
        command: change.command(),
        undo: change.undo_command(),
        diff: change.diff(),
        lasts: change.target.kind().lasts(),
        root: change.needs_root(),
    }
}

fn result_form(fate: &Fate) -> ResultForm<'_> {
    let (id, why) = match fate {
        Fate::Done { id } => (Some(*id), None),
        Fate::Stuck { id, why } => (Some(*id), Some(why.as_str())),
        Fate::RolledBack { why } | Fate::NotReady { why } => (None, Some(why.as_str())),
        Fate::AlreadySo => (None, None),
    };
    ResultForm { state: fate.name(), id, why }
}

fn left_form(left: &Left) -> LeftForm<'_> {
    LeftForm {
        check: left.rule,
        subject: left.subject.to_string(),
        what: &left.what,
        fix: &left.fix,
    }
}
