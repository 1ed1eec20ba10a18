//! Layers with explicit forward and backward passes, built from tensor operations.
//!
//! candle's own autograd keeps a gradient for every frozen weight and silently cuts the graph at
//! its fused operations, so the training step does without it: a forward pass returns what its
//! backward pass needs, and the backward pass adds to [`Gradients`] only what is trained. The
//! operations run on any device that candle has.
//!
//! Shapes: T rows (samples × positions), I inputs, O outputs, D width, R rank of an adapter.

use candle_core::{Result, Tensor};

use super::{
    lora::{Adapter, SavedAdapter},
    store::{Gradients, Id, Store},
};
use crate::train::ops::{bias, layer_norm, rms_norm};

/// `y = x Wᵀ + b`, plus the adapter's `scale · dropout(x) Aᵀ Bᵀ` if there is one.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    pub weight: Id,
    pub bias: Option<Id>,
    pub adapter: Option<Adapter>,
}

/// What the backward pass of [`Linear`] needs.
pub(super) struct SavedLinear {
    x_TI: Tensor,
    adapter: Option<SavedAdapter>,
}

impl Linear {
    /// The layer with `{name}.weight` and, if it exists, `{name}.bias`.
    pub(super) fn new(store: &Store, name: &str) -> Self {
        Linear {
            weight: store.id(&format!("{name}.weight")),
            bias: store.find(&format!("{name}.bias")),
            adapter: None,
        }
    }

    /// (T, I) -> (T, O).
    pub(super) fn forward(
        &self,
        store: &Store,
        x_TI: &Tensor,
        dropout: Dropout,
    ) -> Result<(Tensor, SavedLinear)> {
        let mut y_TO = x_TI.matmul(&store.get(self.weight).t()?)?;
        if let Some(id) = self.bias {
            y_TO = bias::add_bias(y_TO, store.get(id))?;
        }
        let mut saved = SavedLinear { x_TI: x_TI.clone(), adapter: None };
        if let Some(adapter) = &self.adapter {
            let (delta_TO, saved_adapter) = adapter.forward(store, x_TI, dropout)?;
            y_TO = bias::add(y_TO, &delta_TO)?;
            saved.adapter = Some(saved_adapter);
        }
        Ok((y_TO, saved))
    }

    /// (T, O) -> (T, I).
    pub(super) fn backward(
        &self,
        store: &Store,
        saved: &SavedLinear,
        dy_TO: &Tensor,
        grads: &mut Gradients,
    ) -> Result<Tensor> {
        self.backward_weights(store, saved, dy_TO, grads)?;
        let mut dx_TI = dy_TO.matmul(store.get(self.weight))?;
        if let (Some(adapter), Some(saved)) = (&self.adapter, &saved.adapter) {
            dx_TI = bias::add(dx_TI, &adapter.backward(store, saved, dy_TO, grads)?)?;
        }
        Ok(dx_TI)
    }

    fn backward_weights(
        &self,
        store: &Store,
        saved: &SavedLinear,
        dy_TO: &Tensor,
        grads: &mut Gradients,
    ) -> Result<()> {
        grads.add(store, self.weight, || dy_TO.t()?.matmul(&saved.x_TI))?;
        if let Some(id) = self.bias {
            grads.add(store, id, || bias::sum_rows(dy_TO))?;
        }
        Ok(())
    }
}

/// Key of the dropout masks of one forward pass; `None` outside of training.
pub(super) type Dropout<'a> = Option<&'a super::lora::DropoutMasks<'a>>;

/// `y = w · x/√(mean(x²) + ε)`.
#[derive(Clone, Copy, Debug)]
pub(super) struct RmsNorm {
    pub weight: Id,
    pub epsilon: f64,
}

impl RmsNorm {
    /// (T, D) -> (T, D).
    pub(super) fn forward(&self, store: &Store, x_TD: &Tensor) -> Result<Tensor> {
        rms_norm::forward(x_TD, store.get(self.weight), self.epsilon)
    }

    /// Gradient of the output -> gradient of the input `x_TD`.
    pub(super) fn backward(
        &self,
        store: &Store,
        x_TD: &Tensor,
        dy_TD: &Tensor,
        grads: &mut Gradients,
    ) -> Result<Tensor> {
        let (dx_TD, dw_D) = rms_norm::backward(x_TD, store.get(self.weight), self.epsilon, dy_TD)?;
        grads.add(store, self.weight, || Ok(dw_D))?;
        Ok(dx_TD)
    }
}

/// `y = w·x̂ + b` with x̂ of mean 0 and variance 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct LayerNorm {
    pub weight: Id,
    pub bias: Id,
}

impl LayerNorm {
    /// The norm with `{name}.weight` and `{name}.bias`.
    pub(super) fn new(store: &Store, name: &str) -> Self {
        LayerNorm {
            weight: store.id(&format!("{name}.weight")),
            bias: store.id(&format!("{name}.bias")),
        }
    }

    /// (T, D) -> (T, D).
    pub(super) fn forward(&self, store: &Store, x_TD: &Tensor) -> Result<Tensor> {
        layer_norm::forward(x_TD, store.get(self.weight), store.get(self.bias))
    }

    /// Gradient of the output -> gradient of the input `x_TD`.
    pub(super) fn backward(
        &self,
        store: &Store,
        x_TD: &Tensor,
        dy_TD: &Tensor,
        grads: &mut Gradients,
    ) -> Result<Tensor> {
        let gradients = layer_norm::backward(x_TD, store.get(self.weight), dy_TD)?;
        grads.add(store, self.weight, || Ok(gradients.weight_D))?;
        grads.add(store, self.bias, || Ok(gradients.bias_D))?;
        Ok(gradients.x_TD)
    }
}
