//! Pictures as the official preprocessing sees them: RGB, resized to a square with PIL's
//! bicubic filter, normalised.
//!
//! PNG is exact to the bit: alpha is cut off, palettes are looked up, of 16 bits a channel the
//! upper 8 are taken, but 16-bit grey values are clipped to 255, all as in PIL. JPEG decoders
//! differ from libjpeg-turbo by up to 4 of 255 in a few per cent of the bytes. EXIF orientation is ignored, and the aspect ratio is not kept, as in
//! the official code.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
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
    #[error("picture `{}` is truncated: its end mark is missing", .path.display())]
    Truncated { path: PathBuf },
}

impl ImageError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            ImageError::Read { .. } => "image paths are relative to the folder of the JSON file",
            ImageError::Truncated { .. } => "copy the file again",
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

/// Width and height, if header and end of the file are in order; much faster than decoding.
pub fn check(path: &Path) -> Result<(u32, u32), ImageError> {
    let size = dimensions(path)?;
    let read = |source| ImageError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(read)?;
    let mut head = [0_u8; 2];
    file.read_exact(&mut head).map_err(read)?;
    // Some cameras write more after the end mark, so it is looked for in a whole block.
    let length = file.seek(SeekFrom::End(0)).map_err(read)?;
    file.seek(SeekFrom::Start(length.saturating_sub(1 << 16))).map_err(read)?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).map_err(read)?;
    let mark: &[u8] = if head == [0xff, 0xd8] { &[0xff, 0xd9] } else { b"IEND" };
    if tail.windows(mark.len()).any(|window| window == mark) {
        Ok(size)
    } else {
        Err(ImageError::Truncated { path: path.to_owned() })
    }
}

/// Decodes a picture to RGB; alpha is dropped, palettes are looked up.
pub fn open(path: &Path) -> Result<RgbImage, ImageError> {
    dimensions(path)?;
    let picture = reader(path)?.decode().map_err(|error| decode(path, &error))?;
    Ok(to_rgb(&picture))
}

fn reader(path: &Path) -> Result<ImageReader<io::BufReader<File>>, ImageError> {
    let read = |source| ImageError::Read { path: path.to_owned(), source };
    ImageReader::open(path).map_err(read)?.with_guessed_format().map_err(read)
}

fn decode(path: &Path, error: &image::ImageError) -> ImageError {
    ImageError::Decode { path: path.to_owned(), reason: error.to_string() }
}

/// PIL's `convert("RGB")`: the alpha channel is cut off, not blended; of 16 bits the upper 8 are
/// kept, but 16-bit grey is clipped, which turns most such pictures white.
fn to_rgb(picture: &DynamicImage) -> RgbImage {
    let upper = |value: u16| value.to_be_bytes()[0];
    let rgb: Vec<u8> = if let Some(picture) = picture.as_rgb16() {
        picture.pixels().flat_map(|pixel| pixel.0.map(upper)).collect()
    } else if let Some(picture) = picture.as_rgba16() {
        picture.pixels().flat_map(|pixel| [pixel.0[0], pixel.0[1], pixel.0[2]].map(upper)).collect()
    } else if let Some(picture) = picture.as_luma_alpha16() {
        picture.pixels().flat_map(|pixel| [upper(pixel.0[0]); 3]).collect()
    } else if let Some(picture) = picture.as_luma16() {
        let clipped = |value: u16| u8::try_from(value).unwrap_or(u8::MAX);
        picture.pixels().flat_map(|pixel| [clipped(pixel.0[0]); 3]).collect()
    } else {
        return picture.to_rgb8();
    };
    RgbImage::from_raw(picture.width(), picture.height(), rgb).expect("three bytes a pixel")
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

    /// Writes a PNG of 2x1 pixels with these raw bytes, which no conversion touches.
    fn png(path: &Path, colour: png::ColorType, depth: png::BitDepth, raw: &[u8]) {
        let file = File::create(path).unwrap();
        let mut encoder = png::Encoder::new(file, 2, 1);
        encoder.set_color(colour);
        encoder.set_depth(depth);
        if colour == png::ColorType::Indexed {
            encoder.set_palette(vec![1, 2, 3, 4, 5, 6]);
            encoder.set_trns(vec![0, 128]);
        }
        encoder.write_header().unwrap().write_image_data(raw).unwrap();
    }

    /// What PIL 10.4 makes of each mode, two pixels each.
    #[test]
    fn modes_become_rgb_as_in_pil() {
        use png::{BitDepth::*, ColorType::*};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let mode = |colour, depth, raw: &[u8], expected: [u8; 6]| {
            png(&path, colour, depth, raw);
            assert_eq!(open(&path).unwrap().into_raw(), expected, "{colour:?} {depth:?}");
            assert_eq!(check(&path).unwrap(), (2, 1));
        };
        mode(Grayscale, Eight, &[7, 9], [7, 7, 7, 9, 9, 9]);
        mode(GrayscaleAlpha, Eight, &[7, 0, 9, 255], [7, 7, 7, 9, 9, 9]);
        mode(Rgba, Eight, &[1, 2, 3, 0, 4, 5, 6, 9], [1, 2, 3, 4, 5, 6]);
        mode(Indexed, Eight, &[1, 0], [4, 5, 6, 1, 2, 3]);
        mode(Grayscale, One, &[0b0100_0000], [0, 0, 0, 255, 255, 255]);
        mode(Grayscale, Two, &[0b0110_0000], [85, 85, 85, 170, 170, 170]);
        mode(Rgb, Sixteen, &[1, 255, 2, 0, 3, 9, 4, 200, 5, 0, 6, 1], [1, 2, 3, 4, 5, 6]);
        mode(GrayscaleAlpha, Sixteen, &[7, 255, 0, 0, 9, 0, 0, 0], [7, 7, 7, 9, 9, 9]);
        mode(Grayscale, Sixteen, &[0, 7, 1, 0], [7, 7, 7, 255, 255, 255]);
    }

    #[test]
    fn damaged_and_huge_pictures_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let whole = std::fs::read("tests/goldens/a.png").unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(matches!(open(&path), Err(ImageError::Decode { .. })));
        assert!(matches!(check(&path), Err(ImageError::Truncated { .. })));
        std::fs::write(&path, b"not a picture").unwrap();
        assert!(matches!(check(&path), Err(ImageError::Decode { .. })));
        std::fs::write(&path, b"").unwrap();
        assert!(matches!(check(&path), Err(ImageError::Decode { .. })));
        assert!(matches!(open(&folder.path().join("b.png")), Err(ImageError::Read { .. })));
    }

    /// A header that promises 65535 x 65535 pixels: refused before anything is allocated.
    #[test]
    fn a_bomb_is_refused_by_its_header() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let file = File::create(&path).unwrap();
        let mut writer = png::Encoder::new(file, 65_535, 65_535).write_header().unwrap();
        writer.write_chunk(png::chunk::IDAT, &[0; 8]).unwrap();
        drop(writer);
        let error = open(&path).unwrap_err();
        assert!(matches!(error, ImageError::Huge { width: 65_535, height: 65_535, .. }), "{error}");
    }
}
