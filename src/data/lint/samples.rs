//! Texts of samples: tags, boxes, special tokens, and samples that come twice.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{LintReport, Purpose, Rule, pictures::Pictures, rule};
use crate::data::{
    boxes::{self, Box2d, BoxProblem, RefProblem},
    chatml::image_paths,
    sample::{Role, Sample, SampleFile},
};

/// Tokens that begin or end something, which no text of a user should.
const CONTROL: [&str; 4] = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<imgpad>"];
/// Boxes that must look like pixels before a file is suspected.
const SUSPICIOUS: usize = 10;

/// Checks the texts of a file and returns the number of its boxes.
pub(super) fn check(file: &SampleFile, pictures: &Pictures, report: &mut LintReport) -> usize {
    let mut count = 0;
    let mut pixels = Pixels::default();
    for sample in &file.samples {
        let mut add = |rule, what| report.add(rule, &file.path, &sample.id, what);
        let mut found = Vec::new();
        for turn in &sample.turns {
            text(&turn.text, &mut add);
            if turn.role == Role::Assistant {
                if turn.text.trim().is_empty() {
                    add(&rule::EMPTY_ANSWER, "an answer is empty".to_owned());
                }
                references(&turn.text, &mut add);
            }
            for marked in boxes::parse_training(&turn.text) {
                count += 1;
                match marked.place {
                    Ok(place) => found.push(place),
                    Err(problem) => add(box_rule(problem), marked.text),
                }
            }
        }
        pixels.count(sample, file.folder(), pictures, &found);
    }
    if let Some(what) = pixels.verdict() {
        report.add(&rule::BOX_PIXELS, &file.path, "", what);
    }
    count
}

fn text(text: &str, add: &mut impl FnMut(&'static Rule, String)) {
    for token in CONTROL {
        if text.contains(token) {
            add(&rule::SPECIAL_TOKEN, format!("the text holds {token}"));
        }
    }
    let inside_out = image_paths(text).iter().any(|path| path.contains("<img>"));
    let (open, closed) = (text.matches("<img>").count(), text.matches("</img>").count());
    if open != closed || open != image_paths(text).len() || inside_out {
        add(&rule::IMAGE_TAG, format!("{open} <img> and {closed} </img> do not pair up"));
    }
}

fn references(text: &str, add: &mut impl FnMut(&'static Rule, String)) {
    match boxes::check_references(text) {
        None => {}
        Some(RefProblem::Unclosed) => {
            add(&rule::REF_UNCLOSED, "<ref> and </ref> do not pair up".to_owned());
        }
        Some(RefProblem::WithoutBox) => {
            add(&rule::REF_WITHOUT_BOX, "an answer has <ref> without a box after it".to_owned());
        }
    }
}

fn box_rule(problem: BoxProblem) -> &'static Rule {
    match problem {
        BoxProblem::Form => &rule::BOX_FORM,
        BoxProblem::Decimal => &rule::BOX_DECIMAL,
        BoxProblem::Range => &rule::BOX_RANGE,
        BoxProblem::Reversed => &rule::BOX_REVERSED,
        BoxProblem::Empty => &rule::BOX_EMPTY,
        BoxProblem::Unclosed => &rule::BOX_UNCLOSED,
    }
}

/// Boxes in pixels are within 0 to 999 if the pictures are small. What gives them away is that
/// none reaches beyond the picture's size in pixels, where thousandths would.
#[derive(Default)]
struct Pixels {
    /// Boxes on pictures smaller than 800x800, where the two differ enough.
    tested: usize,
    beyond: bool,
}

impl Pixels {
    fn count(&mut self, sample: &Sample, folder: &Path, pictures: &Pictures, found: &[Box2d]) {
        let mut paths = sample.turns.iter().flat_map(|turn| image_paths(&turn.text));
        // With two pictures it is not known which one a box is about.
        let (Some(path), None) = (paths.next(), paths.next()) else { return };
        let Some(picture) = pictures.get(&folder.join(path)) else { return };
        if 800 < picture.width || 800 < picture.height {
            return;
        }
        self.tested += found.len();
        let (width, height) = (f64::from(picture.width), f64::from(picture.height));
        self.beyond |= found.iter().any(|place| width < place.x2 || height < place.y2);
    }

    fn verdict(&self) -> Option<String> {
        let suspicious = SUSPICIOUS <= self.tested && !self.beyond;
        suspicious
            .then(|| format!("all {} boxes lie within the pictures' sizes in pixels", self.tested))
    }
}

/// Samples of all files so far, by their contents.
#[derive(Debug, Default)]
pub(super) struct Seen {
    train: BTreeMap<[u8; 32], (PathBuf, String)>,
    eval: BTreeMap<[u8; 32], (PathBuf, String)>,
}

impl Seen {
    /// Reports samples that were there before: in evaluation after training, that is a leak.
    pub(super) fn check(
        &mut self,
        file: &SampleFile,
        purpose: Purpose,
        pictures: &Pictures,
        report: &mut LintReport,
    ) {
        for sample in &file.samples {
            let digest = digest(sample, file.folder(), pictures);
            let (own, other) = match purpose {
                Purpose::Train => (&mut self.train, None),
                Purpose::Eval => (&mut self.eval, self.train.get(&digest)),
            };
            let earlier = other.map(|place| (&rule::LEAK, place));
            let earlier =
                earlier.or_else(|| own.get(&digest).map(|place| (&rule::DUPLICATE, place)));
            match earlier {
                Some((rule, (path, id))) => {
                    let what = format!("the same as sample `{id}` of {}", path.display());
                    report.add(rule, &file.path, &sample.id, what);
                }
                None => {
                    own.insert(digest, (file.path.clone(), sample.id.clone()));
                }
            }
        }
    }
}

/// Digest of the turns; pictures count by the file they name, not by its name.
fn digest(sample: &Sample, folder: &Path, pictures: &Pictures) -> [u8; 32] {
    let mut hash = Sha256::new();
    for turn in &sample.turns {
        hash.update([u8::from(turn.role == Role::User)]);
        let mut text = turn.text.clone();
        for path in image_paths(&turn.text) {
            if let Some(picture) = pictures.get(&folder.join(path)) {
                text = text.replace(path, &picture.real.display().to_string());
            }
        }
        hash.update(text.as_bytes());
        hash.update([0]);
    }
    hash.finalize().into()
}
