//! Features of pictures, kept while the vision tower is frozen.
//!
//! Preprocessing is deterministic and a frozen tower never changes, so the features of a picture
//! are constants of the run; they are computed alone (never as part of a batch) and so have the
//! same bits whichever rank meets the picture first.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use candle_core::Tensor;

use super::{batch::ImageContent, failure::Failure, model::QwenVl};
use crate::{
    data::image::{self, ImageError},
    wire::TrainerExit,
};

/// Bytes of features that one rank keeps; pictures beyond it are computed each time.
const LIMIT: usize = 4 << 30;

/// The features met so far, or nothing if the vision tower is trained.
#[derive(Debug, Default)]
pub struct FeatureCache {
    known: BTreeMap<PathBuf, Tensor>,
    bytes: usize,
}

impl FeatureCache {
    /// The picture `path` as the model takes it.
    pub fn content(&mut self, model: &QwenVl, path: &Path) -> Result<ImageContent, Failure> {
        if let Some(features) = self.known.get(path) {
            return Ok(ImageContent::Features(features.clone()));
        }
        let side = model.config().visual.image_size;
        let pixels = image::pixels(&image::open(path)?, side);
        if model.trains_vision() {
            return Ok(ImageContent::Pixels(pixels));
        }
        let picture = Tensor::from_slice(&pixels, (1, 3, side, side), model.device())?;
        let features = model.visual(&picture)?.squeeze(0)?;
        let bytes = features.elem_count() * features.dtype().size_in_bytes();
        if self.bytes + bytes <= LIMIT {
            self.bytes += bytes;
            self.known.insert(path.to_owned(), features.clone());
        }
        Ok(ImageContent::Features(features))
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        let hint = error.hint();
        let exit = match &error {
            ImageError::Read { .. } => TrainerExit::InputMissing,
            ImageError::Decode { .. } | ImageError::Huge { .. } | ImageError::Truncated { .. } => {
                TrainerExit::Data
            }
        };
        Failure::of(exit, error).hint(hint)
    }
}
