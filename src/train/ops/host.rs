//! How kernels on plain slices are run: blocks of rows, on all threads.

use std::{mem, ops::Range, sync::OnceLock};

use candle_core::{
    CpuStorage, Device, InplaceOp1, InplaceOp2, Layout, Result, Shape, Storage, Tensor, bail,
};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Numbers of one block, about. Fixed, because sums are made per block.
const BLOCK: usize = 16_384;

/// A computation on rows. `outs` hold exactly the rows `rows`; `sums` begins as zeros and gets
/// sums over these rows.
pub(super) trait Kernel<const M: usize>: Sync {
    /// Should be inlined always: the caller is compiled for the vector unit of the machine.
    fn block(&self, rows: Range<usize>, outs: [&mut [f32]; M], sums: &mut [f32]);
}

/// Rows, the width of each output, and the number of sums.
#[derive(Clone, Copy)]
pub(super) struct Plan<const M: usize> {
    pub rows: usize,
    pub widths: [usize; M],
    pub sums: usize,
}

/// The slices of contiguous f32 tensors on a CPU, or nothing if a tensor is anything else.
pub(super) fn slices<const N: usize, R>(
    tensors: [&Tensor; N],
    kernel: impl FnOnce([&[f32]; N]) -> R,
) -> Option<R> {
    let held = tensors.map(Tensor::storage_and_layout);
    let mut slices: [&[f32]; N] = [&[]; N];
    for (slot, (storage, layout)) in slices.iter_mut().zip(&held) {
        *slot = contiguous(storage, layout)?;
    }
    Some(kernel(slices))
}

/// Whether [`slices`] would find them all.
pub(super) fn is_host<const N: usize>(tensors: [&Tensor; N]) -> bool {
    slices(tensors, |_slices| ()).is_some()
}

fn contiguous<'a>(storage: &'a Storage, layout: &Layout) -> Option<&'a [f32]> {
    let Storage::Cpu(CpuStorage::F32(values)) = storage else { return None };
    let (start, end) = layout.contiguous_offsets()?;
    values.get(start..end)
}

/// Runs a kernel into new vectors; also returns the sums.
pub(super) fn run<const M: usize>(
    kernel: &impl Kernel<M>,
    plan: Plan<M>,
) -> ([Vec<f32>; M], Vec<f32>) {
    let mut outs = plan.widths.map(|width| vec![0.0_f32; plan.rows * width]);
    let sums = run_into(kernel, plan, outs.each_mut().map(Vec::as_mut_slice));
    (outs, sums)
}

/// Runs a kernel over existing rows; returns the sums.
pub(super) fn run_into<const M: usize>(
    kernel: &impl Kernel<M>,
    plan: Plan<M>,
    mut outs: [&mut [f32]; M],
) -> Vec<f32> {
    let rows_at_once = (BLOCK / plan.widths.iter().sum::<usize>().max(plan.sums).max(1)).max(1);
    let blocks = plan.rows.div_ceil(rows_at_once);
    let mut partial = vec![0.0_f32; blocks * plan.sums];
    let mut rest = partial.as_mut_slice();
    let tasks = (0..blocks).map(|block| {
        let rows = block * rows_at_once..plan.rows.min((block + 1) * rows_at_once);
        let outs = std::array::from_fn(|i| cut(&mut outs[i], rows.len() * plan.widths[i]));
        Task { kernel, rows, outs, sums: cut(&mut rest, plan.sums) }
    });
    if blocks < 2 || threads() < 2 {
        tasks.for_each(|task| Arch::new().dispatch(task));
    } else {
        let tasks: Vec<_> = tasks.collect();
        tasks.into_par_iter().for_each(|task| Arch::new().dispatch(task));
    }
    if blocks == 1 {
        return partial;
    }
    let mut sums = vec![0.0_f32; plan.sums];
    for part in partial.chunks(plan.sums.max(1)) {
        sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
    sums
}

#[expect(clippy::mut_mut, reason = "the rest shrinks")]
fn cut<'a>(rest: &mut &'a mut [f32], length: usize) -> &'a mut [f32] {
    let (head, tail) = mem::take(rest).split_at_mut(length);
    *rest = tail;
    head
}

/// Threads of this process. candle asks the operating system each time.
fn threads() -> usize {
    static THREADS: OnceLock<usize> = OnceLock::new();
    *THREADS.get_or_init(candle_core::utils::get_num_threads)
}

struct Task<'a, K, const M: usize> {
    kernel: &'a K,
    rows: Range<usize>,
    outs: [&'a mut [f32]; M],
    sums: &'a mut [f32],
}

impl<const M: usize, K: Kernel<M>> WithSimd for Task<'_, K, M> {
    type Output = ();

    #[expect(clippy::inline_always, reason = "only inlined code is compiled for the vector unit")]
    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        self.kernel.block(self.rows, self.outs, self.sums);
    }
}

/// A tensor of a kernel's output; it takes the vector over.
pub(super) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)
}

/// Changes the numbers of `target`, a contiguous f32 tensor on a CPU that nothing else uses.
pub(super) fn change(target: &Tensor, change: impl Fn(&mut [f32])) -> Result<()> {
    target.inplace_op1(&Change(change))
}

/// As [`change`], with a second tensor that is only read and has its own storage.
pub(super) fn change_with(
    target: &Tensor,
    source: &Tensor,
    change: impl Fn(&mut [f32], &[f32]),
) -> Result<()> {
    target.inplace_op2(source, &ChangeWith(change))
}

struct Change<F>(F);

impl<F: Fn(&mut [f32])> InplaceOp1 for Change<F> {
    fn name(&self) -> &'static str {
        "change"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        (self.0)(contiguous_mut(storage, layout)?);
        Ok(())
    }
}

struct ChangeWith<F>(F);

impl<F: Fn(&mut [f32], &[f32])> InplaceOp2 for ChangeWith<F> {
    fn name(&self) -> &'static str {
        "change with"
    }

    fn cpu_fwd(
        &self,
        target: &mut CpuStorage,
        layout: &Layout,
        source: &CpuStorage,
        source_layout: &Layout,
    ) -> Result<()> {
        let (CpuStorage::F32(source), Some((start, end))) =
            (source, source_layout.contiguous_offsets())
        else {
            bail!("expected a contiguous f32 source")
        };
        (self.0)(contiguous_mut(target, layout)?, &source[start..end]);
        Ok(())
    }
}

fn contiguous_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&mut values[start..end]),
        _ => bail!("expected a contiguous f32 tensor"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Ones;

    impl Kernel<1> for Ones {
        fn block(&self, rows: Range<usize>, [out]: [&mut [f32]; 1], sums: &mut [f32]) {
            assert_eq!(out.len(), rows.len() * 3);
            for (row, values) in rows.zip(out.chunks_exact_mut(3)) {
                values.fill(row as f32);
                sums[0] += 1.0;
                sums[1] += row as f32;
            }
        }
    }

    #[test]
    fn every_row_is_visited_once() {
        for rows in [0, 1, 7, 5461, 5462, 20_000] {
            let ([out], sums) = run(&Ones, Plan { rows, widths: [3], sums: 2 });
            assert_eq!(sums.first().copied().unwrap_or(0.0), rows as f32);
            assert_eq!(out.len(), rows * 3);
            assert!(out.chunks(3).enumerate().all(|(row, values)| values == [row as f32; 3]));
        }
    }

    #[test]
    fn other_tensors_are_no_slices() {
        let x = Tensor::zeros((2, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(is_host([&x, &x]));
        assert!(!is_host([&x.t().unwrap()]));
        assert!(!is_host([&x.to_dtype(candle_core::DType::F64).unwrap()]));
        assert!(change(&x.t().unwrap(), |_values| ()).is_err());
    }
}
