//! `qvl-train gputest`: allocates, copies and verifies on every GPU, and between every two.
//!
//! The doctor starts it with `--active`, because `qvl` itself never touches CUDA memory. It says
//! each call before it makes it, and gives one answer: [`crate::wire::gputest`]. Without a driver
//! it tests nothing and says so.

mod driver;
mod kernels;

use std::{io::Write, time::Instant};

use clap::Args;

use self::driver::{Context, Driver, Failed, Memory};
use super::failure::Failure;
use crate::wire::{
    TrainerExit,
    gputest::{ANSWER, CALL, Copied, DeviceTest, GpuTests, Outcome, PeerTest, Tested},
};

/// What AMD-AGI/Primus allocates before it trusts a GPU.
const ALLOCATE: u64 = 256 << 20;
/// One copy: long enough for the full speed of a link.
const COPY: usize = 64 << 20;
/// Bytes that are compared at a time.
const CHUNK: usize = 4096;
/// Copies that are timed; the best one counts.
const COPIES: usize = 5;

/// Arguments of `qvl-train gputest`.
#[derive(Debug, Args)]
pub struct GputestArgs {
    /// Memory that a rank needs, in bytes: it is allocated on each GPU, and freed.
    #[arg(long, value_name = "BYTES", default_value_t = ALLOCATE)]
    bytes: u64,
    /// Size of a copy, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = COPY, value_parser = copy_size)]
    copy_bytes: usize,
}

fn copy_size(text: &str) -> Result<usize, String> {
    let bytes: usize = text.parse().map_err(|error| format!("{error}"))?;
    if (4096..=1 << 30).contains(&bytes) { Ok(bytes) } else { Err("4096 to 1 GiB".to_owned()) }
}

/// Tests all visible GPUs and writes the protocol to `out`.
pub(super) fn run(args: &GputestArgs, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
    let mut say = |step: &str| {
        // Whoever listened may be gone; then nobody needs the answer either.
        let _said = writeln!(out, "{CALL}{step}").and_then(|()| out.flush());
    };
    let tests = match test(args, &mut say) {
        Ok(tested) => GpuTests::Tested(tested),
        Err(Failed { call, code: 0, message }) => GpuTests::Unavailable { call, why: message },
        Err(Failed { call, code, message }) => {
            GpuTests::Unavailable { call, why: format!("error {code} ({message})") }
        }
    };
    let json = serde_json::to_string(&tests).expect("plain data");
    writeln!(out, "{ANSWER}{json}")
        .and_then(|()| out.flush())
        .map_err(|error| Failure::of(TrainerExit::Internal, error))
}

/// All GPUs that CUDA shows. The error is that of the driver as a whole.
fn test(args: &GputestArgs, say: &mut dyn FnMut(&str)) -> Result<Tested, Failed> {
    say("dlopen libcuda.so.1");
    let driver = Driver::load()?;
    say("cuInit");
    driver.init()?;
    let count = driver.device_count()?;
    let contexts: Vec<Result<Context<'_>, Failed>> = (0..count)
        .map(|ordinal| {
            say(&format!("cuDevicePrimaryCtxRetain of GPU {ordinal}"));
            driver.context(ordinal)
        })
        .collect();
    let mut devices = Vec::new();
    for (context, ordinal) in contexts.iter().zip(0..) {
        devices.push(match context {
            Ok(context) => device(context, args, say),
            Err(failed) => unusable(&driver, ordinal, failed),
        });
    }
    let mut peers = Vec::new();
    let mut sent = vec![0; args.copy_bytes];
    Pattern::Mixed(2).fill(&mut sent);
    for from in contexts.iter().flatten() {
        for to in contexts.iter().flatten().filter(|to| to.ordinal != from.ordinal) {
            peers.push(peer(from, to, &sent, say));
        }
    }
    Ok(Tested { devices, peers, asked_bytes: args.bytes, copy_bytes: args.copy_bytes as u64 })
}

fn unusable(driver: &Driver, ordinal: u32, failed: &Failed) -> DeviceTest {
    DeviceTest {
        ordinal,
        name: driver.name(ordinal).unwrap_or_default(),
        pci_address: driver.pci_address(ordinal).ok(),
        allocated: outcome(Err(failed.clone())),
        copied: copied(Err(failed.clone())),
        to_device: None,
        to_host: None,
        kernels: None,
    }
}

fn device(context: &Context<'_>, args: &GputestArgs, say: &mut dyn FnMut(&str)) -> DeviceTest {
    let Context { driver, ordinal, .. } = *context;
    let mut about = |call: &str| say(&format!("{call} of GPU {ordinal}"));
    about("cuMemAlloc_v2");
    // Given back at once: the copies need room, too.
    let allocated = context.allocate(args.bytes).map(drop);
    let mut speeds = (None, None);
    let found = copies(context, args.copy_bytes, &mut speeds, &mut about);
    about("kernels");
    DeviceTest {
        ordinal,
        name: driver.name(ordinal).unwrap_or_default(),
        pci_address: driver.pci_address(ordinal).ok(),
        allocated: outcome(allocated),
        copied: copied(found),
        to_device: speeds.0,
        to_host: speeds.1,
        kernels: kernels::digests(ordinal),
    }
}

/// First wrong byte and number of wrong bytes, if any.
type Difference = Option<(u64, u64)>;

/// There and back with each pattern, and the speed of both ways.
fn copies(
    context: &Context<'_>,
    bytes: usize,
    speeds: &mut (Option<f64>, Option<f64>),
    about: &mut dyn FnMut(&str),
) -> Result<Difference, Failed> {
    let (mut there, mut back) = (context.pinned(bytes)?, context.pinned(bytes)?);
    let memory = context.allocate(bytes as u64)?;
    let mut worst: Difference = None;
    for pattern in Pattern::ALL {
        pattern.fill(&mut there);
        // So that a copy which does not happen shows.
        back.fill(0);
        about("cuMemcpyHtoD_v2");
        context.copy_to(&memory, &there)?;
        about("cuMemcpyDtoH_v2");
        context.copy_from(&mut back, &memory)?;
        worst = worst.max(difference(&there, &back));
    }
    let mut best = (f64::INFINITY, f64::INFINITY);
    for _copy in 0..COPIES {
        about("cuMemcpyHtoD_v2");
        let begin = Instant::now();
        context.copy_to(&memory, &there)?;
        best.0 = best.0.min(begin.elapsed().as_secs_f64());
        about("cuMemcpyDtoH_v2");
        let begin = Instant::now();
        context.copy_from(&mut back, &memory)?;
        best.1 = best.1.min(begin.elapsed().as_secs_f64());
    }
    let rate = |seconds: f64| Some(bytes as f64 / seconds.max(1e-9));
    *speeds = (rate(best.0), rate(best.1));
    Ok(worst)
}

/// From one GPU to another, read back from the other.
fn peer(from: &Context<'_>, to: &Context<'_>, sent: &[u8], say: &mut dyn FnMut(&str)) -> PeerTest {
    let mut about = |call: &str| say(&format!("{call} of GPU {} to {}", from.ordinal, to.ordinal));
    about("cuDeviceCanAccessPeer");
    let can_access = from.can_access(to).ok();
    let found = peer_copy(from, to, sent, can_access == Some(true), &mut about);
    PeerTest { from: from.ordinal, to: to.ordinal, can_access, copied: copied(found) }
}

fn peer_copy(
    from: &Context<'_>,
    to: &Context<'_>,
    sent: &[u8],
    enable: bool,
    about: &mut dyn FnMut(&str),
) -> Result<Difference, Failed> {
    // So that a copy which does not happen, or goes elsewhere, shows.
    let mut arrived = vec![0; sent.len()];
    let bytes = sent.len() as u64;
    let (source, target): (Memory<'_>, Memory<'_>) = (from.allocate(bytes)?, to.allocate(bytes)?);
    from.copy_to(&source, sent)?;
    to.copy_to(&target, &arrived)?;
    if enable {
        about("cuCtxEnablePeerAccess");
        from.enable_peer(to)?;
    }
    about("cuMemcpyPeer");
    let copied = from.copy_to_peer(&target, &source, to);
    if enable {
        about("cuCtxDisablePeerAccess");
        from.disable_peer(to)?;
    }
    copied?;
    to.copy_from(&mut arrived, &target)?;
    Ok(difference(sent, &arrived))
}

/// Bytes that show a fault: lines that are stuck, lines that touch, bytes from another place.
#[derive(Clone, Copy)]
enum Pattern {
    Same(u8),
    Mixed(u64),
}

impl Pattern {
    const ALL: [Pattern; 3] = [Pattern::Same(0x55), Pattern::Same(0xaa), Pattern::Mixed(1)];

    fn fill(self, bytes: &mut [u8]) {
        match self {
            Pattern::Same(byte) => bytes.fill(byte),
            Pattern::Mixed(seed) => {
                for (word, bytes) in (0_u64..).zip(bytes.chunks_mut(8)) {
                    // A multiplication spreads the number of the word over its upper bytes.
                    let mixed = (word ^ seed).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    bytes.copy_from_slice(&mixed.to_be_bytes()[..bytes.len()]);
                }
            }
        }
    }
}

/// How many bytes differ, and where the first one is; ordered by how many.
fn difference(expected: &[u8], found: &[u8]) -> Difference {
    if expected == found {
        return None;
    }
    let chunks = expected.chunks(CHUNK).zip(found.chunks(CHUNK)).zip(0_u64..);
    // Nearly all chunks are equal, and those are compared at the speed of memory.
    let different = chunks.filter(|((expected, found), _number)| expected != found);
    let mut wrong = different.flat_map(|((expected, found), number)| {
        let bytes = expected.iter().zip(found).zip((number * CHUNK as u64)..);
        bytes.filter(|((a, b), _at)| a != b).map(|(_bytes, at)| at)
    });
    let first = wrong.next()?;
    Some((1 + wrong.count() as u64, first))
}

fn copied(found: Result<Difference, Failed>) -> Copied {
    match found {
        Ok(None) => Copied::Right,
        Ok(Some((bytes, first))) => Copied::Wrong { bytes, first },
        Err(Failed { call, code, message }) => Copied::Failed { call, code, message },
    }
}

fn outcome(found: Result<(), Failed>) -> Outcome {
    match found {
        Ok(()) => Outcome::Done,
        Err(Failed { call, code, message }) => Outcome::Failed { call, code, message },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrong_byte_is_counted() {
        let mut bytes = vec![0; 1000];
        Pattern::Mixed(7).fill(&mut bytes);
        assert_eq!(difference(&bytes, &bytes), None);
        let mut bent = bytes.clone();
        bent[500] ^= 1;
        bent[999] ^= 0x80;
        assert_eq!(difference(&bytes, &bent), Some((2, 500)));
        // A block that came from eight bytes away is wrong nearly everywhere.
        let moved = difference(&bytes[8..], &bytes[..992]).unwrap();
        assert!(900 < moved.0, "{moved:?}");
    }

    #[test]
    fn sizes_of_copies_are_bounded() {
        assert_eq!(copy_size("4096"), Ok(4096));
        assert!(copy_size("1").is_err() && copy_size("9999999999999").is_err());
    }
}
