//! Learned or fixed position tables on a square grid, stretched to another grid if needed.

use candle_core::{Result, Tensor};

use super::store::{Gradients, Id, Store};
use crate::train::ops::wide;

/// A table of `from²` vectors, used on a grid of `to²` places.
#[derive(Clone, Debug)]
pub(super) struct PositionTable {
    table: Id,
    /// `to² × from²`, f32, on the table's device; `None` where the grids are equal.
    stretch: Option<Tensor>,
}

impl PositionTable {
    /// The table `table` of `from²` vectors.
    pub(super) fn new(table: Id, from: usize, to: usize, store: &Store) -> Result<Self> {
        let stretch = if from == to {
            None
        } else {
            let axis = axis_weights(from, to);
            let mut both = vec![0.0_f32; to * to * from * from];
            for (o, place) in both.chunks_exact_mut(from * from).enumerate() {
                for (i, weight) in place.iter_mut().enumerate() {
                    let down = axis[(o / to) * from + i / from];
                    let right = axis[(o % to) * from + i % from];
                    *weight = down * right;
                }
            }
            Some(Tensor::from_vec(both, (to * to, from * from), store.get(table).device())?)
        };
        Ok(PositionTable { table, stretch })
    }

    /// (to², D), in the table's number format; the stretching is done in f32.
    pub(super) fn table(&self, store: &Store) -> Result<Tensor> {
        let table = store.get(self.table);
        match &self.stretch {
            None => Ok(table.clone()),
            Some(stretch) => {
                let dtype = wide(table.dtype());
                stretch.to_dtype(dtype)?.matmul(&table.to_dtype(dtype)?)?.to_dtype(table.dtype())
            }
        }
    }

    /// Gradient (to², D) of the stretched table.
    pub(super) fn backward(&self, store: &Store, dy: &Tensor, grads: &mut Gradients) -> Result<()> {
        grads.add(store, self.table, || match &self.stretch {
            None => Ok(dy.clone()),
            Some(stretch) => {
                let dtype = wide(dy.dtype());
                stretch.t()?.to_dtype(dtype)?.matmul(&dy.to_dtype(dtype)?)
            }
        })
    }
}

/// Bicubic weights of one axis, `to × from`, as torch's `interpolate(mode="bicubic",
/// align_corners=False)` uses them: A = −0.75, taps beyond the edge fall on the edge.
pub(super) fn axis_weights(from: usize, to: usize) -> Vec<f32> {
    const A: f64 = -0.75;
    let near = |t: f64| ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0;
    let far = |t: f64| ((A * t - 5.0 * A) * t + 8.0 * A) * t - 4.0 * A;
    let mut weights = vec![0.0_f32; to * from];
    for (o, row) in weights.chunks_exact_mut(from).enumerate() {
        let place = (o as f64 + 0.5) * from as f64 / to as f64 - 0.5;
        let t = place - place.floor();
        for (tap, weight) in [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)].iter().enumerate()
        {
            let column = (place.floor() + tap as f64 - 1.0).clamp(0.0, from as f64 - 1.0);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a column of the table"
            )]
            let column = column as usize;
            #[expect(clippy::cast_possible_truncation, reason = "torch keeps them in f32")]
            let weight = *weight as f32;
            row[column] += weight;
        }
    }
    weights
}

/// The table that a fresh model begins with, `grid² × width`: sines and cosines of the column in
/// the first half of the channels, of the row in the second.
///
/// The official table has wavelengths up to 60,000 places, so on a small grid most of its
/// channels are constant. Here they run from 3 places to four times the grid.
pub(super) fn sine_table(grid: usize, width: usize) -> Vec<f32> {
    let quarter = width / 4;
    let longest = 4.0 * grid as f64;
    let mut table = Vec::with_capacity(grid * grid * width);
    for place in 0..grid * grid {
        for coordinate in [place % grid, place / grid] {
            let angle = |i: usize| {
                let wavelength = 3.0 * (longest / 3.0).powf(i as f64 / quarter as f64);
                coordinate as f64 * std::f64::consts::TAU / wavelength
            };
            #[expect(clippy::cast_possible_truncation, reason = "the table is f32")]
            table.extend((0..quarter).map(|i| angle(i).sin() as f32));
            #[expect(clippy::cast_possible_truncation, reason = "the table is f32")]
            table.extend((0..quarter).map(|i| angle(i).cos() as f32));
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretching_by_two_has_the_known_taps() {
        let weights = axis_weights(16, 32);
        let row = &weights[11 * 16..12 * 16];
        let taps = [-0.035_156_25, 0.261_718_75, 0.878_906_25, -0.105_468_75];
        // Output 11 lies at 5.25: taps at 4, 5, 6, 7 with t = 0.25.
        assert_eq!(row[4..8], [taps[3], taps[2], taps[1], taps[0]]);
        assert!(weights.chunks(16).all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-6));
    }
}
