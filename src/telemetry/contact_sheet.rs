//! A contact sheet: pictures side by side, with true and predicted boxes.

use std::path::{Path, PathBuf};

use font8x8::{BASIC_FONTS, UnicodeFonts};
use image::{Rgb, RgbImage, imageops};

/// Side of one picture on the sheet, and the height of the line below it.
const CELL: u32 = 168;
const LINE: u32 = 14;
const GAP: u32 = 8;
const COLUMNS: u32 = 6;
/// Pictures beyond this are left out.
pub const MOST: usize = 24;

/// Blue and orange can be told apart by nearly everybody.
const EXPECTED: Rgb<u8> = Rgb([64, 160, 255]);
const FOUND: Rgb<u8> = Rgb([255, 140, 0]);
const PAPER: Rgb<u8> = Rgb([250, 250, 250]);
const INK: Rgb<u8> = Rgb([40, 40, 40]);
const BAD: Rgb<u8> = Rgb([190, 30, 30]);

/// One picture. Boxes are left, top, right, bottom as shares of width and height.
#[derive(Clone, Debug)]
pub struct SheetItem {
    pub image: PathBuf,
    pub expected: Option<[f64; 4]>,
    pub found: Option<[f64; 4]>,
    pub caption: String,
    pub good: bool,
}

/// Why a sheet cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SheetError {
    #[error(transparent)]
    Picture(#[from] PictureError),
    #[error("failed to write `{}`", .path.display())]
    Write { path: PathBuf, source: image::ImageError },
}

/// A picture of the sheet that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("failed to read `{}`", .path.display())]
pub struct PictureError {
    path: PathBuf,
    source: image::ImageError,
}

/// Writes a PNG of the first 24 items.
pub fn write(path: &Path, items: &[SheetItem]) -> Result<(), SheetError> {
    draw(items)?.save(path).map_err(|source| SheetError::Write { path: path.to_owned(), source })
}

fn draw(items: &[SheetItem]) -> Result<RgbImage, PictureError> {
    let items = &items[..items.len().min(MOST)];
    let rows = u32::try_from(items.len()).unwrap_or(0).div_ceil(COLUMNS).max(1);
    let (width, height) = (GAP + COLUMNS * (CELL + GAP), 2 * LINE + rows * (CELL + LINE + GAP));
    let mut sheet = RgbImage::from_pixel(width, height, PAPER);
    text(&mut sheet, GAP, 10, "true box", EXPECTED);
    text(&mut sheet, GAP + 80, 10, "predicted box", FOUND);
    for (i, item) in (0_u32..).zip(items) {
        let left = GAP + (i % COLUMNS) * (CELL + GAP);
        let top = 2 * LINE + (i / COLUMNS) * (CELL + LINE + GAP);
        let picture = image::open(&item.image)
            .map_err(|source| PictureError { path: item.image.clone(), source })?
            .to_rgb8();
        let picture = imageops::resize(&picture, CELL, CELL, imageops::FilterType::Triangle);
        imageops::replace(&mut sheet, &picture, i64::from(left), i64::from(top));
        for (rectangle, colour) in [(item.expected, EXPECTED), (item.found, FOUND)] {
            if let Some(rectangle) = rectangle {
                outline(&mut sheet, (left, top), rectangle, colour);
            }
        }
        let colour = if item.good { INK } else { BAD };
        text(&mut sheet, left, top + CELL + 3, &item.caption, colour);
    }
    Ok(sheet)
}

/// A frame of two pixels, cut off at the picture's edge.
fn outline(sheet: &mut RgbImage, (left, top): (u32, u32), rectangle: [f64; 4], colour: Rgb<u8>) {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    let [x1, y1, x2, y2] =
        rectangle.map(|share| (share.clamp(0.0, 1.0) * f64::from(CELL - 1)).round() as u32);
    for thickness in 0..2 {
        for x in x1..=x2 {
            sheet.put_pixel(left + x, top + (y1 + thickness).min(CELL - 1), colour);
            sheet.put_pixel(left + x, top + y2.saturating_sub(thickness), colour);
        }
        for y in y1..=y2 {
            sheet.put_pixel(left + (x1 + thickness).min(CELL - 1), top + y, colour);
            sheet.put_pixel(left + x2.saturating_sub(thickness), top + y, colour);
        }
    }
}

/// Text in an 8x8 font; what does not fit into a cell is cut off.
fn text(sheet: &mut RgbImage, left: u32, top: u32, words: &str, colour: Rgb<u8>) {
    for (i, character) in (0_u32..CELL / 8).zip(words.chars()) {
        let glyph = BASIC_FONTS.get(character).unwrap_or([0; 8]);
        for (y, row) in (0_u32..).zip(glyph) {
            for x in (0..8).filter(|x| row & (1 << x) != 0) {
                let (x, y) = (left + i * 8 + x, top + y);
                if x < sheet.width() && y < sheet.height() {
                    sheet.put_pixel(x, y, colour);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_boxes_are_drawn_at_their_places() {
        let item = SheetItem {
            image: PathBuf::from("tests/goldens/a.png"),
            expected: Some([0.25, 0.25, 0.75, 0.75]),
            found: Some([0.0, 0.0, 2.0, 2.0]),
            caption: "IoU 0.25".to_owned(),
            good: false,
        };
        let sheet = draw(&[item]).unwrap();
        assert_eq!(*sheet.get_pixel(GAP + 42, 2 * LINE + 60), EXPECTED);
        assert_eq!(*sheet.get_pixel(GAP, 2 * LINE), FOUND);
        assert_eq!(*sheet.get_pixel(GAP + CELL - 1, 2 * LINE + CELL - 1), FOUND);
        assert!(sheet.pixels().any(|pixel| *pixel == BAD));
    }

    #[test]
    fn a_missing_picture_is_named() {
        let item = SheetItem {
            image: PathBuf::from("none.png"),
            expected: None,
            found: None,
            caption: String::new(),
            good: true,
        };
        assert_eq!(draw(&[item]).unwrap_err().to_string(), "failed to read `none.png`");
    }
}
