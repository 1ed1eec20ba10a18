//! Pictures as the official preprocessing sees them: RGB, resized to a square with PIL's
//! bicubic filter, normalised.
//!
//! PNG is exact to the bit. JPEG decoders differ from libjpeg-turbo by up to 4 of 255 in a few
//! per cent of the bytes. EXIF orientation is ignored, and the aspect ratio is not kept, as in
//! the official code.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use image::{DynamicImage, ImageReader, RgbImage};

/// Pictures with more pixels are refused, because they are damaged or hostile far more often
/// than they are data: 100 million.
pub const MAX_PIXELS: u64 = 100_000_000;

/// Mean of the channels R, G, B, from the official preprocessing.
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation of the channels, from the same place.
const DEVIATION: [f32; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];
/// Fraction bits of PIL's fixed-point filter coefficients: 32 − 8 − 2.
const FRACTION_BITS: u32 = 22;

/// Why a picture cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("failed to read picture `{}`", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("failed to decode picture `{}`: {reason}", .path.display())]
    Decode { path: PathBuf, reason: String },
    #[error("picture `{}` has {width}x{height} pixels, more than {MAX_PIXELS}", .path.display())]
    Huge { path: PathBuf, width: u32, height: u32 },
}

impl ImageError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            ImageError::Read { .. } => "image paths are relative to the folder of the JSON file",
            ImageError::Decode { .. } => "PNG and JPEG are supported; the file may be truncated",
            ImageError::Huge { .. } => "scale it down first: the model sees 448x448 pixels of it",
        }
    }
}

/// Width and height from the header, without decoding.
pub fn dimensions(path: &Path) -> Result<(u32, u32), ImageError> {
    let (width, height) = reader(path)?.into_dimensions().map_err(|error| decode(path, &error))?;
    if MAX_PIXELS < u64::from(width) * u64::from(height) {
        return Err(ImageError::Huge { path: path.to_owned(), width, height });
    }
    Ok((width, height))
}

/// Decodes a picture to RGB; alpha is dropped, palettes are looked up.
pub fn open(path: &Path) -> Result<RgbImage, ImageError> {
    dimensions(path)?;
    let picture = reader(path)?.decode().map_err(|error| decode(path, &error))?;
    Ok(to_rgb(&picture))
}

fn reader(path: &Path) -> Result<ImageReader<io::BufReader<std::fs::File>>, ImageError> {
    let read = |source| ImageError::Read { path: path.to_owned(), source };
    ImageReader::open(path).map_err(read)?.with_guessed_format().map_err(read)
}

fn decode(path: &Path, error: &image::ImageError) -> ImageError {
    ImageError::Decode { path: path.to_owned(), reason: error.to_string() }
}

/// PIL's `convert("RGB")`: the alpha channel is cut off, not blended.
fn to_rgb(picture: &DynamicImage) -> RgbImage {
    picture.to_rgb8()
}

/// The picture as the model wants it: `3 * size * size` numbers, channel by channel.
pub fn pixels(picture: &RgbImage, size: usize) -> Arc<[f32]> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    normalise(&resize(picture.as_raw(), width, height, size, size), size * size)
}

/// Interleaved RGB bytes -> planes of `(x/255 − mean)/deviation`, each step rounded to f32.
fn normalise(rgb: &[u8], plane: usize) -> Arc<[f32]> {
    let mut out = vec![0.0_f32; 3 * plane];
    for (i, pixel) in rgb.chunks_exact(3).enumerate() {
        for (channel, byte) in pixel.iter().enumerate() {
            let value = f32::from(*byte) / 255.0;
            out[channel * plane + i] = (value - MEAN[channel]) / DEVIATION[channel];
        }
    }
    out.into()
}

/// Resizes interleaved RGB bytes to the same bytes as PIL's `resize(.., BICUBIC)`: two passes
/// of integer arithmetic, horizontal first, rounded to bytes in between.
pub fn resize(
    rgb: &[u8],
    width: usize,
    height: usize,
    to_width: usize,
    to_height: usize,
) -> Vec<u8> {
    let mut picture = rgb.to_vec();
    if width != to_width {
        let filter = taps(width, to_width);
        let mut out = vec![0_u8; to_width * height * 3];
        for (source, target) in
            picture.chunks_exact(width * 3).zip(out.chunks_exact_mut(to_width * 3))
        {
            for ((first, weights), pixel) in filter.iter().zip(target.chunks_exact_mut(3)) {
                weigh(&source[first * 3..], 3, weights, pixel);
            }
        }
        picture = out;
    }
    if height != to_height {
        let row = to_width * 3;
        let mut out = vec![0_u8; row * to_height];
        for ((first, weights), target) in
            taps(height, to_height).iter().zip(out.chunks_exact_mut(row))
        {
            for (x, pixel) in target.chunks_exact_mut(3).enumerate() {
                weigh(&picture[first * row + x * 3..], row, weights, pixel);
            }
        }
        picture = out;
    }
    picture
}

/// One output pixel: a weighted sum of input pixels that are `stride` bytes apart.
fn weigh(source: &[u8], stride: usize, weights: &[i32], pixel: &mut [u8]) {
    for (channel, out) in pixel.iter_mut().enumerate() {
        let sum = weights.iter().enumerate().fold(1 << (FRACTION_BITS - 1), |sum, (i, w)| {
            sum + i32::from(source[i * stride + channel]) * w
        });
        *out = u8::try_from((sum >> FRACTION_BITS).clamp(0, 255)).expect("clamped to a byte");
    }
}

/// For each output pixel of one axis: its first input pixel and the fixed-point weights.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "PIL casts these numbers the same way, and they are within the axis"
)]
fn taps(from: usize, to: usize) -> Vec<(usize, Vec<i32>)> {
    let scale = from as f64 / to as f64;
    // A filter that shrinks is widened, so that every input pixel counts.
    let filter_scale = scale.max(1.0);
    let (support, inverse) = (2.0 * filter_scale, 1.0 / filter_scale);
    (0..to)
        .map(|o| {
            let centre = (o as f64 + 0.5) * scale;
            let first = (centre - support + 0.5).trunc().max(0.0) as usize;
            let last = ((centre + support + 0.5).trunc() as usize).min(from);
            let mut weights: Vec<f64> =
                (first..last).map(|x| cubic((x as f64 - centre + 0.5) * inverse)).collect();
            let sum: f64 = weights.iter().sum();
            if sum != 0.0 {
                weights.iter_mut().for_each(|weight| *weight /= sum);
            }
            (first, weights.into_iter().map(fixed_point).collect())
        })
        .collect()
}

#[expect(clippy::cast_possible_truncation, reason = "weights are at most about 1")]
fn fixed_point(weight: f64) -> i32 {
    let scaled = weight * f64::from(1_u32 << FRACTION_BITS);
    if weight < 0.0 { (scaled - 0.5) as i32 } else { (scaled + 0.5) as i32 }
}

/// The cubic of PIL's BICUBIC, a = −0.5, evaluated in PIL's order.
fn cubic(t: f64) -> f64 {
    const A: f64 = -0.5;
    let t = t.abs();
    if t < 1.0 {
        ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0
    } else if t < 2.0 {
        (((t - 5.0) * t + 8.0) * t - 4.0) * A
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::data::numpy;

    #[test]
    fn resize_equals_pil_to_the_byte() {
        let text = std::fs::read_to_string("tests/goldens/tokenizer_a.json").unwrap();
        let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
        let hash = |bytes: &[u8]| {
            Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect::<String>()
        };
        let cases = golden["resize"].as_array().unwrap();
        assert_eq!(cases.len(), 2);
        for case in cases {
            let number = |key: &str| usize::try_from(case[key].as_u64().unwrap()).unwrap();
            let (width, height) = (number("width"), number("height"));
            let seed = u32::try_from(number("numpy_seed")).unwrap();
            let input = numpy::random_bytes(seed, width * height * 3);
            let output = resize(&input, width, height, 448, 448);
            let text = case.to_string();
            assert!(text.contains(&hash(&input)), "input of {width}x{height}");
            assert!(text.contains(&hash(&output)), "output of {width}x{height}");
        }
    }

    #[test]
    fn damaged_and_huge_pictures_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let whole = std::fs::read("tests/goldens/a.png").unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(matches!(open(&path), Err(ImageError::Decode { .. })));
        let mut huge = whole.clone();
        huge[16..24].copy_from_slice(&[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff]);
        std::fs::write(&path, &huge).unwrap();
        assert!(open(&path).is_err());
        assert!(matches!(open(&folder.path().join("b.png")), Err(ImageError::Read { .. })));
    }
}
