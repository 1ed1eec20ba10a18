//! Which GPUs of a fleet a rank fits into, and the largest job that would.

use std::collections::BTreeMap;

use super::{Demand, change::Shape};
use crate::{
    facts::{GpuFacts, NodeName, Snapshot},
    job::{Compute, memory},
};

/// The largest job for so many usable bytes of one GPU, as the plan says it.
pub struct Largest<'a> {
    /// Samples at a time, each as long as the longest of the data.
    pub samples: &'a dyn Fn(u64) -> Option<u64>,
    /// Tokens of a sample, with the job's own number of samples at a time.
    pub tokens: &'a dyn Fn(u64) -> Option<u64>,
}

/// One rank against every GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryFit {
    /// What a GPU must have: tensors, CUDA context, reserve, in bytes.
    pub need: u64,
    /// By product.
    pub products: Vec<ProductFit>,
    /// The most ranks that fit, as many on each node; `None` if none does.
    pub ranks: Option<Shape>,
}

/// GPUs of one product.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProductFit {
    /// Product name.
    pub name: String,
    /// Bytes that a rank may use, on the fullest GPU and on the emptiest: all memory without the
    /// driver's share and without what programs use now.
    pub usable: (u64, u64),
    /// GPUs of which this is known.
    pub gpus: u32,
    /// Of these, GPUs that a rank fits into.
    pub fits: u32,
    /// Divided GPUs: the size of their parts is not in the facts.
    pub divided: u32,
    /// GPUs whose memory could not be read.
    pub unread: u32,
    /// Samples at a time that fit into the fullest of them; `None` if not even one does.
    pub samples: Option<u64>,
    /// Tokens of a sample that fit into the fullest of them.
    pub tokens: Option<u64>,
}

/// What is known of one GPU.
#[derive(Clone, Copy)]
enum Usable {
    Bytes(u64),
    Divided,
    Unread,
}

/// Compares the estimate with all GPUs; `None` on CPUs, or without an estimate.
pub fn memory_fit(
    snapshot: &Snapshot,
    demand: &Demand,
    largest: &Largest<'_>,
) -> Option<MemoryFit> {
    let demand = demand.resolved(snapshot);
    if demand.compute == Compute::Cpu {
        return None;
    }
    let need = memory::with_reserve(demand.rank_memory_bytes?);
    let mut products: BTreeMap<String, ProductFit> = BTreeMap::new();
    let mut fitting: BTreeMap<&NodeName, u32> = BTreeMap::new();
    for (node, facts) in &snapshot.nodes {
        for gpu in facts.nvml.gpus.value().into_iter().flatten() {
            let name = gpu.name.value().map_or("unknown product", String::as_str);
            let product = products.entry(name.to_owned()).or_default();
            if product.add(usable(gpu), need) {
                *fitting.entry(node).or_default() += 1;
            }
        }
    }
    let products = products.into_iter().map(|(name, product)| ProductFit {
        name,
        samples: (largest.samples)(product.usable.0),
        tokens: (largest.tokens)(product.usable.0),
        ..product
    });
    let counts: Vec<u32> = fitting.into_values().collect();
    Some(MemoryFit { need, products: products.collect(), ranks: most_ranks(&counts) })
}

impl ProductFit {
    /// Whether a rank fits.
    fn add(&mut self, usable: Usable, need: u64) -> bool {
        let bytes = match usable {
            Usable::Bytes(bytes) => bytes,
            Usable::Divided => {
                self.divided += 1;
                return false;
            }
            Usable::Unread => {
                self.unread += 1;
                return false;
            }
        };
        let (least, most) = if self.gpus == 0 { (bytes, bytes) } else { self.usable };
        self.usable = (least.min(bytes), most.max(bytes));
        self.gpus += 1;
        self.fits += u32::from(need <= bytes);
        need <= bytes
    }
}

fn usable(gpu: &GpuFacts) -> Usable {
    if gpu.mig.value().is_some_and(|mig| mig.is_some_and(|mode| mode.current)) {
        return Usable::Divided;
    }
    let known = (gpu.memory_total_bytes.get(), gpu.memory_used_bytes.get());
    match (known, gpu.memory_reserved_bytes.get()) {
        ((Ok(total), Ok(used)), Ok(reserved)) => {
            Usable::Bytes(total.saturating_sub(reserved.unwrap_or(0)).saturating_sub(*used))
        }
        _ => Usable::Unread,
    }
}

/// The most ranks with as many on each node, from the ranks that fit on each.
fn most_ranks(fitting: &[u32]) -> Option<Shape> {
    let shape = |per_node: u32| {
        let nodes = fitting.iter().filter(|fits| per_node <= **fits).count();
        Shape { nodes: u32::try_from(nodes).unwrap_or(u32::MAX), per_node }
    };
    let most = fitting.iter().copied().max()?;
    // Of shapes with as many ranks the one with the fewest nodes.
    (1..=most)
        .map(shape)
        .max_by_key(|shape| (u64::from(shape.nodes) * u64::from(shape.per_node), shape.per_node))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        doctor::testing::*,
        facts::{Fact, MigMode},
    };

    fn fit(snapshot: &Snapshot) -> MemoryFit {
        let largest = Largest {
            samples: &|usable| (30 << 30 <= usable).then_some(usable >> 34),
            tokens: &|usable| (30 << 30 <= usable).then_some(usable >> 20),
        };
        memory_fit(snapshot, &demand(), &largest).unwrap()
    }

    #[test]
    fn every_gpu_of_a_healthy_fleet_fits() {
        let fit = fit(&fleet(3));
        let [product] = fit.products.as_slice() else { panic!("{fit:?}") };
        assert_eq!((product.gpus, product.fits), (6, 6));
        // 80 GiB without 0.5 GiB of the driver and 4 MiB in use.
        let usable = 80 * GIB - GIB / 2 - (4 << 20);
        assert_eq!((product.usable, product.samples), ((usable, usable), Some(4)));
        assert_eq!(fit.need, memory::with_reserve(30 * GIB));
        assert_eq!(fit.ranks, Some(Shape { nodes: 3, per_node: 2 }));
    }

    #[test]
    fn used_divided_and_unread_gpus_are_told_apart() {
        let mut snapshot = fleet(4);
        let mut nodes = snapshot.nodes.values_mut();
        let first = nodes.next().unwrap();
        change_gpu(first, 0, |gpu| gpu.memory_used_bytes = Fact::known(60 * GIB, "test"));
        change_gpu(first, 1, |gpu| gpu.memory_total_bytes = Fact::unread("blind", "test"));
        let on = MigMode { current: true, pending: true };
        change_gpu(nodes.next().unwrap(), 1, |gpu| gpu.mig = Fact::known(Some(on), "test"));
        change_gpu(nodes.next().unwrap(), 0, |gpu| {
            gpu.name = Fact::known("Tesla T4".to_owned(), "test");
            gpu.memory_total_bytes = Fact::known(16 * GIB, "test");
        });
        let fit = fit(&snapshot);
        let [a100, t4] = fit.products.as_slice() else { panic!("{fit:?}") };
        assert_eq!((a100.gpus, a100.fits, a100.divided, a100.unread), (5, 4, 1, 1));
        assert_eq!((t4.gpus, t4.fits, t4.samples), (1, 0, None));
        // One on n2, one on n3, two on n4: three nodes with one each are more than one with two.
        assert_eq!(fit.ranks, Some(Shape { nodes: 3, per_node: 1 }));
    }

    #[test]
    fn ranks_are_counted_in_equal_shares() {
        assert_eq!(most_ranks(&[]), None);
        assert_eq!(most_ranks(&[8, 8, 7]), Some(Shape { nodes: 3, per_node: 7 }));
        assert_eq!(most_ranks(&[4, 2]), Some(Shape { nodes: 1, per_node: 4 }));
    }
}
