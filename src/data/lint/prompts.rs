//! The form of prompts: how pictures are introduced, and what is asked. A model that is trained
//! on one form and used with another loses points that no further training gives back.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use super::{LintReport, Purpose, rule};
use crate::data::sample::{Role, Sample, SampleFile};

/// With more wordings than this the questions are free text, and another one is no mismatch.
const WORDINGS: usize = 64;

/// How a picture is introduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Form {
    /// `Picture 1: <img>..</img>` and a line feed, numbered from 1 over the conversation.
    Chat,
    /// `Picture 1:<img>..</img>` and a line feed, as in the Int4 release.
    Tight,
    /// With a label, but without the line feed.
    SameLine,
    /// `Picture 2:` where the first one stands, and the like.
    Misnumbered,
    /// No label, as in the official evaluation scripts.
    Bare,
}

impl Form {
    const fn name(self) -> &'static str {
        match self {
            Form::Chat => "`Picture 1: <img>..</img>` and a line feed",
            Form::Tight => "`Picture 1:<img>..</img>` (no space)",
            Form::SameLine => "`Picture 1: <img>..</img>` without a line feed",
            Form::Misnumbered => "`Picture k: <img>..</img>` with another number",
            Form::Bare => "a bare `<img>..</img>`",
        }
    }
}

/// The prompts of one file.
#[derive(Debug)]
pub(super) struct Prompts {
    path: PathBuf,
    purpose: Purpose,
    /// How often each form is used, and by which sample first.
    forms: BTreeMap<Form, (usize, String)>,
    /// First questions without names, numbers and pictures, with how often each is used.
    wordings: BTreeMap<String, usize>,
    samples: usize,
}

impl Prompts {
    pub(super) fn of(file: &SampleFile, purpose: Purpose) -> Self {
        let mut prompts = Prompts {
            path: file.path.clone(),
            purpose,
            forms: BTreeMap::new(),
            wordings: BTreeMap::new(),
            samples: file.samples.len(),
        };
        for sample in &file.samples {
            for form in forms(sample) {
                prompts.forms.entry(form).or_insert_with(|| (0, sample.id.clone())).0 += 1;
            }
            if let Some(turn) = sample.turns.first()
                && prompts.wordings.len() <= WORDINGS
            {
                *prompts.wordings.entry(wording(&turn.text)).or_default() += 1;
            }
        }
        prompts
    }

    /// The form of most pictures.
    fn usual(&self) -> Option<Form> {
        let most = self.forms.iter().max_by_key(|(form, (count, _sample))| (*count, **form));
        most.map(|(form, _count)| *form)
    }
}

/// Reports unusual and mixed forms in each file, and evaluation that differs from training.
pub(super) fn compare(all: &[Prompts], report: &mut LintReport) {
    for prompts in all {
        let Some(usual) = prompts.usual() else { continue };
        if usual != Form::Chat {
            let (count, sample) = &prompts.forms[&usual];
            let what = format!("{count} pictures are introduced by {}", usual.name());
            report.add(&rule::PROMPT_FORMAT, &prompts.path, sample, what);
        }
        for (form, (count, sample)) in &prompts.forms {
            if *form != usual {
                let what = format!(
                    "{count} pictures are introduced by {}, most by {}",
                    form.name(),
                    usual.name()
                );
                report.add(&rule::PROMPT_MIXED, &prompts.path, sample, what);
            }
        }
    }
    let (train, eval): (Vec<&Prompts>, Vec<&Prompts>) =
        all.iter().partition(|prompts| prompts.purpose == Purpose::Train);
    for prompts in eval {
        mismatch(&train, prompts, report);
    }
}

fn mismatch(train: &[&Prompts], eval: &Prompts, report: &mut LintReport) {
    let trained: BTreeSet<Form> = train.iter().flat_map(|set| set.forms.keys()).copied().collect();
    if let Some(usual) = eval.usual()
        && !trained.is_empty()
        && !trained.contains(&usual)
    {
        let names: Vec<&str> = trained.iter().map(|form| form.name()).collect();
        let what = format!(
            "pictures are introduced by {}, in training by {}",
            usual.name(),
            names.join(" and ")
        );
        return report.add(&rule::PROMPT_MISMATCH, &eval.path, "", what);
    }
    let known: BTreeSet<&String> = train.iter().flat_map(|set| set.wordings.keys()).collect();
    if known.is_empty() || WORDINGS < known.len() || WORDINGS < eval.wordings.len() {
        return;
    }
    let new = eval.wordings.iter().filter(|(wording, _count)| !known.contains(wording));
    let (count, example) =
        new.fold((0, ""), |(sum, _last), (wording, count)| (sum + count, wording.as_str()));
    if eval.samples < 2 * count {
        let what = format!(
            "{count} of {} questions are worded as no training question: `{example}`",
            eval.samples
        );
        report.add(&rule::PROMPT_MISMATCH, &eval.path, "", what);
    }
}

/// The form of each picture of the user's turns, in order.
fn forms(sample: &Sample) -> Vec<Form> {
    let mut forms = Vec::new();
    for turn in sample.turns.iter().filter(|turn| turn.role == Role::User) {
        let mut rest = turn.text.as_str();
        while let Some((before, inside)) = rest.split_once("<img>") {
            let Some((_path, after)) = inside.split_once("</img>") else { break };
            forms.push(form(before, after, forms.len() + 1));
            rest = after;
        }
    }
    forms
}

fn form(before: &str, after: &str, number: usize) -> Form {
    let line = before.rsplit('\n').next().unwrap_or(before);
    let label = line.trim_end().strip_suffix(':').and_then(|line| line.rsplit_once("Picture "));
    let Some((_text, found)) = label else { return Form::Bare };
    if found.parse() != Ok(number) {
        return Form::Misnumbered;
    }
    if !after.starts_with('\n') {
        return Form::SameLine;
    }
    if line.ends_with(": ") { Form::Chat } else { Form::Tight }
}

/// A question without what differs from sample to sample: pictures with their labels, names in
/// references, numbers.
fn wording(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['<', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let (replaced, after) = element(rest);
        out.push_str(replaced);
        rest = after;
    }
    let text = out + rest;
    text.replace("Picture 0:", "").replace("<img/>", "").trim().to_owned()
}

/// What stands for the element at the beginning of a text, and the text after it.
fn element(text: &str) -> (&str, &str) {
    let tags = [
        ("<img>", "</img>", "<img/>"),
        ("<ref>", "</ref>", "<ref>..</ref>"),
        ("<box>", "</box>", "<box>..</box>"),
        ("<quad>", "</quad>", "<quad>..</quad>"),
    ];
    for (open, close, short) in tags {
        if text.starts_with(open)
            && let Some((_inner, after)) = text.split_once(close)
        {
            return (short, after);
        }
    }
    if text.starts_with('<') {
        return text.split_at(1);
    }
    ("0", text.trim_start_matches(|c: char| c.is_ascii_digit()))
}
