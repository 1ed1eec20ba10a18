//! The operations between the matrix products, each with its backward pass.
//!
//! Every operation is a composition of tensor operations, which runs on any device that candle
//! has and in any number format. For f32 on a CPU there is also a kernel on plain slices: there a
//! training step of a small model spends most of its time in the many passes over memory that a
//! composition makes. The tests compare each kernel with its composition in f64.
//!
//! Results do not depend on the number of threads: work is cut into blocks of a fixed size, and
//! sums over rows are made block by block, in order.

pub(crate) mod bias;
pub(crate) mod cross_entropy;
pub(crate) mod gelu;
pub(crate) mod heads;
pub(crate) mod layer_norm;
pub(crate) mod rms_norm;
pub(crate) mod softmax;
pub(crate) mod swiglu;

mod host;
mod math;

use candle_core::DType;

/// Number format of norms, losses and gradients: f32, or f64 when everything is f64 (which only
/// tests do).
pub(crate) fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Comparison of an f32 kernel with the composition in f64.

    use candle_core::{DType, Device, Shape, Tensor};

    use crate::train::rng::Stream;

    /// A tensor of normal numbers, different for each `name`.
    pub(crate) fn normal(name: &str, shape: impl Into<Shape>) -> Tensor {
        let (shape, stream) = (shape.into(), Stream::new(1).named(name));
        #[expect(clippy::cast_possible_truncation, reason = "test data is f32")]
        let values: Vec<f32> =
            (0..shape.elem_count() as u64).map(|i| stream.normal(i) as f32).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// The same numbers in f64.
    pub(crate) fn f64s(tensor: &Tensor) -> Tensor {
        tensor.to_dtype(DType::F64).unwrap()
    }

    /// Panics unless `kernel` is within 1e-6 of `composition`, as a share of its largest value.
    pub(crate) fn assert_close(kernel: &Tensor, composition: &Tensor) {
        assert_eq!(kernel.dtype(), DType::F32);
        assert_eq!(composition.dtype(), DType::F64, "the composition must have run");
        assert_eq!(kernel.shape(), composition.shape());
        let max = |x: &Tensor| x.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
        let difference = max(&(f64s(kernel) - composition).unwrap());
        let size = max(composition);
        assert!(difference <= 1e-6 * size, "{difference:e} of {size:e}");
    }
}
