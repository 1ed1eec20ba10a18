//! The trainer's own matrix product on a GPU, for a vote among GPUs of one product.

/// CRC-32C of the product of fixed numbers, one for each run; `None` if this build computes on no
/// GPU, or the GPU does not compute.
#[cfg(feature = "cuda")]
pub(super) fn digests(ordinal: u32) -> Option<Vec<u32>> {
    use candle_core::{Device, Tensor};
    const RUNS: usize = 3;
    const N: usize = 1024;
    // Exact in f32, and their products fill the mantissa.
    let number = |i: usize| ((i * 7919) % 2039) as f32 / 2048.0 - 0.5;
    let run = || -> candle_core::Result<Vec<u32>> {
        let device = Device::new_cuda(ordinal as usize)?;
        let a: Vec<f32> = (0..N * N).map(number).collect();
        let b: Vec<f32> = (0..N * N).map(|i| number(i * 31 + 7)).collect();
        let a = Tensor::from_vec(a, (N, N), &device)?;
        let b = Tensor::from_vec(b, (N, N), &device)?;
        let product = || -> candle_core::Result<u32> {
            let c: Vec<f32> = a.matmul(&b)?.flatten_all()?.to_vec1()?;
            Ok(c.iter().fold(0, |crc, x| crc32c::crc32c_append(crc, &x.to_le_bytes())))
        };
        (0..RUNS).map(|_run| product()).collect()
    };
    run().ok()
}

/// A build without CUDA computes on no GPU.
#[cfg(not(feature = "cuda"))]
pub(super) fn digests(_ordinal: u32) -> Option<Vec<u32>> {
    None
}
