//! Pictures: present, readable, of sane size, and not in training and evaluation at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{LintReport, Purpose, Rule, chain, parallel, rule};
use crate::data::{
    chatml::image_paths,
    image::{self, ImageError},
    sample::SampleFile,
};

/// The official tokenizer fails on longer paths: two of the 256 slots are not for the path.
const OFFICIAL_PATH_LIMIT: usize = 254;

/// What was seen of the pictures of all files so far.
#[derive(Debug, Default)]
pub(super) struct Pictures {
    /// As named by the data sets; nothing for a picture that cannot be used.
    known: BTreeMap<PathBuf, Option<Picture>>,
    /// Training pictures by their length in bytes: only equal lengths can be equal pictures.
    trained: BTreeMap<u64, BTreeSet<PathBuf>>,
    digests: BTreeMap<PathBuf, Option<[u8; 32]>>,
}

/// A picture that can be used.
#[derive(Clone, Debug)]
pub(super) struct Picture {
    /// The same for all names of one file.
    pub real: PathBuf,
    pub width: u32,
    pub height: u32,
    bytes: u64,
}

impl Pictures {
    /// A picture by the path of a data set, joined with its folder.
    pub(super) fn get(&self, path: &Path) -> Option<&Picture> {
        self.known.get(path)?.as_ref()
    }

    /// Checks the pictures of a file and returns their number.
    pub(super) fn check(
        &mut self,
        file: &SampleFile,
        purpose: Purpose,
        decode: bool,
        report: &mut LintReport,
    ) -> usize {
        let users = users(file, report);
        let new: Vec<&PathBuf> =
            users.keys().filter(|path| !self.known.contains_key(*path)).collect();
        let looked = parallel::map(&new, |path| look(path, decode));
        let new: Vec<PathBuf> = new.into_iter().cloned().collect();
        for (path, looked) in new.into_iter().zip(looked) {
            let picture = match looked {
                Ok(picture) => Some(picture),
                Err(error) => {
                    report.add(rule_of(&error), &file.path, &users[&path], chain(&error));
                    None
                }
            };
            self.known.insert(path, picture);
        }
        self.compare(file, purpose, users.keys(), report);
        users.len()
    }

    fn compare<'a>(
        &mut self,
        file: &SampleFile,
        purpose: Purpose,
        paths: impl Iterator<Item = &'a PathBuf>,
        report: &mut LintReport,
    ) {
        let usable: Vec<Picture> = paths.filter_map(|path| self.get(path)).cloned().collect();
        let total = usable.len();
        let mut leaked: Option<PathBuf> = None;
        let mut count = 0;
        for Picture { real, bytes, .. } in usable {
            match purpose {
                Purpose::Train => {
                    self.trained.entry(bytes).or_default().insert(real);
                }
                Purpose::Eval if self.is_trained(&real, bytes) => {
                    count += 1;
                    leaked = leaked.or(Some(real));
                }
                Purpose::Eval => {}
            }
        }
        if let Some(example) = leaked {
            let example = example.display();
            let what = format!("{count} of {total} pictures are training pictures, as `{example}`");
            report.add(&rule::PICTURE_LEAK, &file.path, "", what);
        }
    }

    /// Whether the same file, or one of the same bytes, is a training picture.
    fn is_trained(&mut self, path: &Path, bytes: u64) -> bool {
        let Some(candidates) = self.trained.get(&bytes).cloned() else { return false };
        if candidates.contains(path) {
            return true;
        }
        let digest = self.digest(path);
        digest.is_some() && candidates.iter().any(|other| self.digest(other) == digest)
    }

    fn digest(&mut self, path: &Path) -> Option<[u8; 32]> {
        let read = |path: &Path| fs::read(path).ok().map(|bytes| Sha256::digest(bytes).into());
        *self.digests.entry(path.to_owned()).or_insert_with(|| read(path))
    }
}

/// Pictures of a file, each with the first sample that shows it. Names that are no local file
/// are reported here.
fn users(file: &SampleFile, report: &mut LintReport) -> BTreeMap<PathBuf, String> {
    let mut users = BTreeMap::new();
    for sample in &file.samples {
        for path in sample.turns.iter().flat_map(|turn| image_paths(&turn.text)) {
            if path.starts_with("http://") || path.starts_with("https://") {
                let what = format!("`{path}` is a URL");
                report.add(&rule::REMOTE_IMAGE, &file.path, &sample.id, what);
                continue;
            }
            if OFFICIAL_PATH_LIMIT < path.len() {
                let bytes = path.len();
                let what = format!(
                    "the picture's path has {bytes} bytes, the official limit is {OFFICIAL_PATH_LIMIT}"
                );
                report.add(&rule::LONG_PATH, &file.path, &sample.id, what);
            }
            users.entry(file.folder().join(path)).or_insert_with(|| sample.id.clone());
        }
    }
    users
}

fn look(path: &Path, decode: bool) -> Result<Picture, ImageError> {
    let (width, height) = image::check(path)?;
    if decode {
        image::open(path)?;
    }
    let read = |source| ImageError::Read { path: path.to_owned(), source };
    let bytes = fs::metadata(path).map_err(read)?.len();
    let real = fs::canonicalize(path).map_err(read)?;
    Ok(Picture { real, width, height, bytes })
}

fn rule_of(error: &ImageError) -> &'static Rule {
    match error {
        ImageError::Huge { .. } => &rule::IMAGE_HUGE,
        ImageError::Read { .. } | ImageError::Decode { .. } | ImageError::Truncated { .. } => {
            &rule::IMAGE_UNREADABLE
        }
    }
}
