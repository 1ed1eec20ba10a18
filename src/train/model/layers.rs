//! Layers with explicit forward and backward passes, built from tensor operations.
//!
//! candle's own autograd keeps a gradient for every frozen weight and silently cuts the graph at
//! its fused operations, so the training step does without it: a forward pass returns what its
//! backward pass needs, and the backward pass adds to [`Gradients`] only what is trained. The
//! operations run on any device that candle has.
//!
//! Shapes: T rows (samples × positions), I inputs, O outputs, D width, R rank of an adapter.

use candle_core::{D, DType, Result, Tensor};
use candle_nn::ops;

use super::{
    lora::{Adapter, SavedAdapter},
    store::{Gradients, Id, Store},
};

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
        if let Some(bias) = self.bias {
            y_TO = y_TO.broadcast_add(store.get(bias))?;
        }
        let mut saved = SavedLinear { x_TI: x_TI.clone(), adapter: None };
        if let Some(adapter) = &self.adapter {
            let (delta_TO, saved_adapter) = adapter.forward(store, x_TI, dropout)?;
            y_TO = (y_TO + delta_TO)?;
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
            dx_TI = (dx_TI + adapter.backward(store, saved, dy_TO, grads)?)?;
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
        if let Some(bias) = self.bias {
            grads.add(store, bias, || dy_TO.to_dtype(DType::F32)?.sum(0))?;
        }
        Ok(())
    }
}

/// Key of the dropout masks of one forward pass; `None` outside of training.
pub(super) type Dropout<'a> = Option<&'a super::lora::DropoutMasks<'a>>;

/// `y = w · x/√(mean(x²) + ε)`; the normalised value is rounded to the model's number format
/// *before* it is multiplied, as the official code does.
#[derive(Clone, Copy, Debug)]
pub(super) struct RmsNorm {
    pub weight: Id,
    pub epsilon: f64,
}

impl RmsNorm {
    /// (T, D) -> (T, D).
    pub(super) fn forward(&self, store: &Store, x_TD: &Tensor) -> Result<Tensor> {
        self.normalised(x_TD)?.to_dtype(x_TD.dtype())?.broadcast_mul(store.get(self.weight))
    }

    fn normalised(&self, x_TD: &Tensor) -> Result<Tensor> {
        let x_TD = x_TD.to_dtype(DType::F32)?;
        x_TD.broadcast_mul(&self.rate(&x_TD)?)
    }

    fn rate(&self, x_TD: &Tensor) -> Result<Tensor> {
        (x_TD.sqr()?.mean_keepdim(D::Minus1)? + self.epsilon)?.sqrt()?.recip()
    }

    /// With g' = g·w: dx = r·(g' − x̂·mean(g'·x̂)), dw = Σ g·x̂. `x_TD` is the input.
    pub(super) fn backward(
        &self,
        store: &Store,
        x_TD: &Tensor,
        dy_TD: &Tensor,
        grads: &mut Gradients,
    ) -> Result<Tensor> {
        let dtype = x_TD.dtype();
        let x_TD = x_TD.to_dtype(DType::F32)?;
        let r_T1 = self.rate(&x_TD)?;
        let n_TD = x_TD.broadcast_mul(&r_T1)?;
        let dy_TD = dy_TD.to_dtype(DType::F32)?;
        grads.add(store, self.weight, || (&dy_TD * &n_TD)?.sum(0))?;
        let g_TD = dy_TD.broadcast_mul(&store.get(self.weight).to_dtype(DType::F32)?)?;
        let mean_T1 = (&g_TD * &n_TD)?.mean_keepdim(D::Minus1)?;
        (g_TD - n_TD.broadcast_mul(&mean_T1)?)?.broadcast_mul(&r_T1)?.to_dtype(dtype)
    }
}

/// `y = w·x̂ + b` with x̂ of mean 0 and variance 1, ε = 1e-6.
#[derive(Clone, Copy, Debug)]
pub(super) struct LayerNorm {
    pub weight: Id,
    pub bias: Id,
}

/// The vision tower's ε.
const LAYER_NORM_EPSILON: f64 = 1e-6;

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
        #[expect(clippy::cast_possible_truncation, reason = "1e-6 in f32")]
        let epsilon = LAYER_NORM_EPSILON as f32;
        ops::layer_norm(&x_TD.contiguous()?, store.get(self.weight), store.get(self.bias), epsilon)
    }

    /// With g' = g·w: dx = r·(g' − mean g' − x̂·mean(g'·x̂)), dw = Σ g·x̂, db = Σ g.
    pub(super) fn backward(
        &self,
        store: &Store,
        x_TD: &Tensor,
        dy_TD: &Tensor,
        grads: &mut Gradients,
    ) -> Result<Tensor> {
        let dtype = x_TD.dtype();
        let x_TD = x_TD.to_dtype(DType::F32)?;
        let dy_TD = dy_TD.to_dtype(DType::F32)?;
        let centred_TD = x_TD.broadcast_sub(&x_TD.mean_keepdim(D::Minus1)?)?;
        let variance_T1 = centred_TD.sqr()?.mean_keepdim(D::Minus1)?;
        let r_T1 = (variance_T1 + LAYER_NORM_EPSILON)?.sqrt()?.recip()?;
        let n_TD = centred_TD.broadcast_mul(&r_T1)?;
        grads.add(store, self.weight, || (&dy_TD * &n_TD)?.sum(0))?;
        grads.add(store, self.bias, || dy_TD.sum(0))?;
        let g_TD = dy_TD.broadcast_mul(&store.get(self.weight).to_dtype(DType::F32)?)?;
        let mean_T1 = g_TD.mean_keepdim(D::Minus1)?;
        let along_T1 = (&g_TD * &n_TD)?.mean_keepdim(D::Minus1)?;
        g_TD.broadcast_sub(&mean_T1)?
            .sub(&n_TD.broadcast_mul(&along_T1)?)?
            .broadcast_mul(&r_T1)?
            .to_dtype(dtype)
    }
}

/// GELU in its exact form, `x·Φ(x)`.
pub(super) fn gelu(x: &Tensor) -> Result<Tensor> {
    x.gelu_erf()
}

/// g·(Φ(x) + x·φ(x)).
pub(super) fn gelu_backward(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(DType::F32)?;
    let cdf = (((&x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)? * 0.5)?;
    let inv_sqrt_tau = 1.0 / std::f64::consts::TAU.sqrt();
    let density = ((x.sqr()? * -0.5)?.exp()? * inv_sqrt_tau)?;
    (dy.to_dtype(DType::F32)? * (cdf + (x * density)?)?)?.to_dtype(dtype)
}

/// `a · silu(b)`: `w2` makes the gate b.
pub(super) fn swiglu(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a * b.silu()?
}

/// da = g·silu(b); db = g·a·σ(b)·(1 + b·(1 − σ(b))).
pub(super) fn swiglu_backward(a: &Tensor, b: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let sigma = ops::sigmoid(b)?;
    let silu = (b * &sigma)?;
    let slope = (&sigma + (&silu * (1.0 - &sigma)?)?)?;
    Ok(((dy * &silu)?, ((dy * a)? * slope)?))
}
