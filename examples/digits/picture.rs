//! A crop of a photograph with digits pasted on it.

use image::{Rgb, RgbImage, imageops};
use qvl::train::rng::Stream;

use crate::glyph::Glyph;

/// Side of a picture in pixels.
pub(crate) const SIDE: usize = 112;
/// Ink above this counts for the box.
const VISIBLE: f32 = 0.3;
/// Smallest and largest side of a digit.
const SIZES: (usize, usize) = (28, 48);

const COLOURS: [(&str, [f32; 3]); 3] = [
    ("white", [255.0, 255.0, 255.0]),
    ("yellow", [255.0, 225.0, 40.0]),
    ("cyan", [40.0, 225.0, 255.0]),
];

/// A digit in a picture.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub label: u8,
    pub colour: &'static str,
    /// Left, top, right, bottom in thousandths; right and bottom lie just outside of the ink.
    pub thousandths: [usize; 4],
}

/// A picture and its digits from left to right.
pub(crate) struct Picture {
    pub image: RgbImage,
    pub digits: Vec<Placed>,
}

/// Draws a picture: a random crop of a random photograph, and `glyphs` at random places that do
/// not overlap.
pub(crate) fn compose(photos: &[RgbImage], glyphs: &[&Glyph], stream: Stream) -> Picture {
    let photo = &photos[stream.below(0, photos.len())];
    let mut image = crop(photo, stream.named("crop"));
    let mut digits: Vec<Placed> = Vec::new();
    let mut taken: Vec<[usize; 4]> = Vec::new();
    for (i, glyph) in glyphs.iter().enumerate() {
        let stream = stream.named("digit").child(i as u64);
        let size = SIZES.0 + stream.below(0, SIZES.1 - SIZES.0 + 1);
        let ink = glyph.render(size, stream.named("shape"));
        let Some((left, top)) = free_place(&taken, size, stream.named("place")) else { continue };
        taken.push([left, top, left + size, top + size]);
        let (colour, rgb) = COLOURS[stream.below(1, COLOURS.len())];
        paste(&mut image, &ink, size, (left, top), rgb);
        let [x1, y1, x2, y2] = tight_box(&ink, size);
        let thousandths =
            [left + x1, top + y1, left + x2, top + y2].map(|p| (p * 1000 / SIDE).min(999));
        digits.push(Placed { label: glyph.label, colour, thousandths });
    }
    digits.sort_by_key(|digit| digit.thousandths[0]);
    Picture { image, digits }
}

/// A square of 112 to 280 pixels, scaled to the picture's size and darkened a little, so that
/// light digits can be seen.
fn crop(photo: &RgbImage, stream: Stream) -> RgbImage {
    let (width, height) = (photo.width() as usize, photo.height() as usize);
    let largest = width.min(height).min(280);
    let side = SIDE + stream.below(0, largest - SIDE + 1);
    let (x, y) = (stream.below(1, width - side + 1), stream.below(2, height - side + 1));
    let size = |n: usize| u32::try_from(n).expect("pictures are small");
    let view = imageops::crop_imm(photo, size(x), size(y), size(side), size(side)).to_image();
    let mut out = imageops::resize(&view, size(SIDE), size(SIDE), imageops::FilterType::Triangle);
    for pixel in out.pixels_mut() {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a byte")]
        pixel.0.iter_mut().for_each(|byte| *byte = (f32::from(*byte) * 0.75) as u8);
    }
    out
}

fn free_place(taken: &[[usize; 4]], size: usize, stream: Stream) -> Option<(usize, usize)> {
    (0..64)
        .map(|i| (stream.below(2 * i, SIDE - size + 1), stream.below(2 * i + 1, SIDE - size + 1)))
        .find(|(left, top)| {
            taken.iter().all(|[x1, y1, x2, y2]| {
                *x2 <= *left || left + size <= *x1 || *y2 <= *top || top + size <= *y1
            })
        })
}

fn paste(
    image: &mut RgbImage,
    ink: &[f32],
    size: usize,
    (left, top): (usize, usize),
    rgb: [f32; 3],
) {
    for (i, alpha) in ink.iter().enumerate() {
        let x = u32::try_from(left + i % size).expect("pictures are small");
        let y = u32::try_from(top + i / size).expect("pictures are small");
        let Rgb(old) = *image.get_pixel(x, y);
        let mut new = [0_u8; 3];
        for ((new, old), ink) in new.iter_mut().zip(old).zip(rgb) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a byte")]
            let value = (f32::from(old) * (1.0 - alpha) + ink * alpha) as u8;
            *new = value;
        }
        image.put_pixel(x, y, Rgb(new));
    }
}

/// Left, top, right, bottom of the visible ink; right and bottom are exclusive.
fn tight_box(ink: &[f32], size: usize) -> [usize; 4] {
    let mut bounds = [size, size, 0, 0];
    for (i, _alpha) in ink.iter().enumerate().filter(|(_i, alpha)| VISIBLE < **alpha) {
        let (x, y) = (i % size, i / size);
        bounds = [bounds[0].min(x), bounds[1].min(y), bounds[2].max(x + 1), bounds[3].max(y + 1)];
    }
    bounds
}
