//! Low-rank adapters: `scale · dropout(x) Aᵀ Bᵀ`, computed in f32 whatever the base is.

use candle_core::{Device, Result, Tensor};

use super::store::{Gradients, Id, Store};
use crate::train::{ops::wide, rng::Stream};

/// One adapter. Dropout masks depend on its `index` among all adapters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Adapter {
    pub a: Id,
    pub b: Id,
    pub scale: f64,
    pub index: u64,
}

/// What the backward pass needs.
pub(super) struct SavedAdapter {
    /// The input after dropout, f32, the mask itself, and `scale · x Aᵀ`.
    x_TI: Tensor,
    mask_TI: Option<Tensor>,
    h_TR: Tensor,
}

/// Everything that a dropout mask depends on. Nothing here knows the rank, the number of ranks
/// or how often a block is recomputed.
#[derive(Clone, Copy, Debug)]
pub struct DropoutKey {
    pub seed: u64,
    /// Optimizer steps done before.
    pub step: u64,
    /// Probability of a zero.
    pub probability: f64,
}

/// The masks of one forward pass.
#[derive(Debug)]
pub(super) struct DropoutMasks<'a> {
    pub key: DropoutKey,
    /// Key of each row's sample, and the padded length of a row.
    pub samples: &'a [u64],
    pub length: usize,
}

impl DropoutMasks<'_> {
    /// Mask (T, I) of the adapter `index`: 0 or 1/(1−p).
    fn mask(&self, index: u64, inputs: usize, device: &Device) -> Result<Tensor> {
        let keep = 1.0 - self.key.probability;
        #[expect(clippy::cast_possible_truncation, reason = "a factor near 1")]
        let scale = (1.0 / keep) as f32;
        let stream = Stream::new(self.key.seed).named("dropout").child(self.key.step).child(index);
        let mut mask = Vec::with_capacity(self.samples.len() * self.length * inputs);
        for sample in self.samples {
            let stream = stream.child(*sample);
            let draws = 0..(self.length * inputs) as u64;
            mask.extend(draws.map(|i| if stream.uniform(i) < keep { scale } else { 0.0 }));
        }
        Tensor::from_vec(mask, (self.samples.len() * self.length, inputs), device)
    }
}

impl Adapter {
    fn weights(&self, store: &Store, dtype: candle_core::DType) -> Result<(Tensor, Tensor)> {
        Ok((store.get(self.a).to_dtype(dtype)?, store.get(self.b).to_dtype(dtype)?))
    }

    /// (T, I) -> (T, O), in the number format of `x`.
    pub(super) fn forward(
        &self,
        store: &Store,
        x_TI: &Tensor,
        dropout: Option<&DropoutMasks>,
    ) -> Result<(Tensor, SavedAdapter)> {
        let dtype = x_TI.dtype();
        let mut x_TI = x_TI.to_dtype(wide(dtype))?;
        let mut mask_TI = None;
        if let Some(masks) = dropout.filter(|masks| 0.0 < masks.key.probability) {
            let mask = masks.mask(self.index, x_TI.dim(1)?, x_TI.device())?;
            let mask = mask.to_dtype(x_TI.dtype())?;
            x_TI = (x_TI * &mask)?;
            mask_TI = Some(mask);
        }
        let (a, b) = self.weights(store, x_TI.dtype())?;
        let h_TR = (x_TI.matmul(&a.t()?)? * self.scale)?;
        let y_TO = h_TR.matmul(&b.t()?)?.to_dtype(dtype)?;
        Ok((y_TO, SavedAdapter { x_TI, mask_TI, h_TR }))
    }

    /// With s the scale and k = s·g B: dB = gᵀ(s·x Aᵀ), dA = kᵀx, dx = k A, masked.
    pub(super) fn backward(
        &self,
        store: &Store,
        saved: &SavedAdapter,
        dy_TO: &Tensor,
        grads: &mut Gradients,
    ) -> Result<Tensor> {
        let dtype = dy_TO.dtype();
        let dy_TO = dy_TO.to_dtype(wide(dtype))?;
        let (a, b) = self.weights(store, dy_TO.dtype())?;
        grads.add(store, self.b, || dy_TO.t()?.matmul(&saved.h_TR))?;
        let k_TR = (dy_TO.matmul(&b)? * self.scale)?;
        grads.add(store, self.a, || k_TR.t()?.matmul(&saved.x_TI))?;
        let dx_TI = k_TR.matmul(&a)?;
        let dx_TI = match &saved.mask_TI {
            Some(mask) => (dx_TI * mask)?,
            None => dx_TI,
        };
        dx_TI.to_dtype(dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_keeps_the_mean_and_zeroes_its_share() {
        let key = DropoutKey { seed: 1, step: 2, probability: 0.25 };
        let masks = DropoutMasks { key, samples: &[3, 4], length: 50 };
        let mask = masks.mask(0, 400, &Device::Cpu).unwrap();
        let mask: Vec<f32> = mask.flatten_all().unwrap().to_vec1().unwrap();
        assert!(mask.iter().all(|value| [0.0, 4.0 / 3.0].contains(value)));
        // 40,000 draws: the standard deviation of the share is 0.0022, of the mean 0.0029.
        let count = mask.len() as f32;
        let zeros = mask.iter().filter(|value| **value == 0.0).count() as f32 / count;
        assert!((zeros - 0.25).abs() < 0.01, "{zeros}");
        let mean = mask.iter().sum::<f32>() / count;
        assert!((mean - 1.0).abs() < 0.013, "{mean}");
    }
}
