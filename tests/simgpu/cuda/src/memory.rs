//! Memory of the devices, kept in this process, and copies that a scenario spoils.
//!
//! Only pages that were written exist, so a client may allocate what a large GPU has. Copies take
//! the time of this machine's own memory: their speed says nothing about a GPU.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use super::{Code, INVALID_VALUE, MIB, Now};

/// `CUDA_ERROR_OUT_OF_MEMORY`.
const OUT_OF_MEMORY: Code = 2;
/// The first address; no client may take it for one of the host's.
const FIRST: u64 = 0x7f00_0000_0000_0000;
const PAGE: usize = 1 << 20;

struct Block {
    gpu: usize,
    bytes: u64,
    pages: BTreeMap<usize, Box<[u8]>>,
}

static BLOCKS: Mutex<BTreeMap<u64, Block>> = Mutex::new(BTreeMap::new());

fn with<T>(f: impl FnOnce(&mut BTreeMap<u64, Block>) -> T) -> T {
    f(&mut BLOCKS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Bytes that clients of this process hold on a GPU.
pub(super) fn held(gpu: usize) -> u64 {
    with(|blocks| blocks.values().filter(|block| block.gpu == gpu).map(|block| block.bytes).sum())
}

/// Bytes of a GPU that may be allocated.
pub(super) fn free_bytes(now: &Now, gpu: usize) -> u64 {
    let device = &now.scenario.gpus[gpu];
    let usable = device.profile().memory_mib - device.profile().reserved_mib;
    (usable.saturating_sub(device.used_mib()) * MIB as u64).saturating_sub(held(gpu))
}

pub(super) fn allocate(now: &Now, gpu: usize, bytes: u64) -> Result<u64, Code> {
    if bytes == 0 {
        return Err(INVALID_VALUE);
    }
    if free_bytes(now, gpu) < bytes {
        return Err(OUT_OF_MEMORY);
    }
    Ok(with(|blocks| {
        let last = blocks.last_key_value();
        let end = last.map_or(FIRST, |(address, block)| address + block.bytes);
        let address = end.next_multiple_of(PAGE as u64) + PAGE as u64;
        blocks.insert(address, Block { gpu, bytes, pages: BTreeMap::new() });
        address
    }))
}

pub(super) fn free(address: u64) -> Result<(), Code> {
    with(|blocks| blocks.remove(&address)).map(drop).ok_or(INVALID_VALUE)
}

/// A copy to an address of a device; gives the GPU.
pub(super) fn write(address: u64, bytes: &[u8]) -> Result<(), Code> {
    with(|blocks| {
        let (block, mut at) = find(blocks, address, bytes.len())?;
        let mut left = bytes;
        while !left.is_empty() {
            let (page, inside) = (at / PAGE, at % PAGE);
            let length = left.len().min(PAGE - inside);
            let room = block.pages.entry(page).or_insert_with(|| vec![0; PAGE].into());
            room[inside..inside + length].copy_from_slice(&left[..length]);
            (at, left) = (at + length, &left[length..]);
        }
        Ok(())
    })
}

/// Bytes from an address of a device.
pub(super) fn read(address: u64, bytes: usize) -> Result<Vec<u8>, Code> {
    with(|blocks| {
        let (block, begin) = find(blocks, address, bytes)?;
        let mut found = Vec::with_capacity(bytes);
        while found.len() < bytes {
            let at = begin + found.len();
            let (page, inside) = (at / PAGE, at % PAGE);
            let length = (bytes - found.len()).min(PAGE - inside);
            match block.pages.get(&page) {
                Some(page) => found.extend_from_slice(&page[inside..inside + length]),
                None => found.resize(found.len() + length, 0),
            }
        }
        Ok(found)
    })
}

/// The GPU whose memory is at an address.
pub(super) fn gpu_at(address: u64) -> Result<usize, Code> {
    with(|blocks| find(blocks, address, 0).map(|(block, _at)| block.gpu))
}

fn find(
    blocks: &mut BTreeMap<u64, Block>,
    address: u64,
    bytes: usize,
) -> Result<(&mut Block, usize), Code> {
    let (begin, block) = blocks.range_mut(..=address).next_back().ok_or(INVALID_VALUE)?;
    let at = address - begin;
    if block.bytes < at + bytes as u64 {
        return Err(INVALID_VALUE);
    }
    Ok((block, usize::try_from(at).map_err(|_large| INVALID_VALUE)?))
}

/// What the scenario makes of the bytes of a copy. `from` is the GPU that sends, if one does.
pub(super) fn spoil(now: &Now, call: &str, from: Option<usize>, gpu: usize, bytes: &mut [u8]) {
    for corruption in &now.scenario.cuda.corrupt {
        let sender = corruption.from.is_none() || corruption.from == from;
        if corruption.call == call
            && corruption.gpu == gpu
            && sender
            && let Some(byte) = bytes.get_mut(corruption.byte)
        {
            *byte ^= corruption.xor;
        }
    }
}
