//! The place of this process in the job, from the environment that the supervisor sets.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use candle_core::Device;

use super::{
    collective::{Collective, Solo, Tcp, TcpConfig},
    failure::Failure,
};
use crate::{
    job::{Compute, FineTuneJob},
    wire::{TrainerExit, env},
};

/// Rank, world and how to reach the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub rank: usize,
    pub local_rank: usize,
    pub world: usize,
    pub attempt: u32,
    pub master_addr: String,
    pub master_port: u16,
    pub token: String,
}

impl Place {
    /// Reads the place with `variable`; without `WORLD_SIZE` the process is alone.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Place, Failure> {
        let number = |name: &str, default: u32| match variable(name) {
            None => Ok(default),
            Some(text) => text.trim().parse::<u32>().map_err(|_error| {
                Failure::new(TrainerExit::Usage, format!("{name} is `{text}`, expected a number"))
                    .hint("RANK, LOCAL_RANK and WORLD_SIZE are set by `qvl launch` or torchrun")
            }),
        };
        let world = number(env::WORLD_SIZE, 1)? as usize;
        let rank = number(env::RANK, 0)? as usize;
        if world <= rank {
            return Err(Failure::new(
                TrainerExit::Usage,
                format!("RANK is {rank}, but WORLD_SIZE is {world}"),
            )
            .hint("ranks count from 0 to WORLD_SIZE - 1"));
        }
        let port = number(env::MASTER_PORT, 29_500)?;
        Ok(Place {
            rank,
            local_rank: number(env::LOCAL_RANK, u32::try_from(rank).unwrap_or(0))? as usize,
            world,
            attempt: number(env::ATTEMPT, 0)?,
            master_addr: variable(env::MASTER_ADDR).unwrap_or_else(|| "127.0.0.1".to_owned()),
            master_port: u16::try_from(port).map_err(|_error| {
                Failure::new(TrainerExit::Usage, format!("MASTER_PORT is {port}"))
                    .hint("expected a port from 1 to 65535")
            })?,
            token: variable(env::TOKEN).unwrap_or_default(),
        })
    }
}

/// The device of this rank.
pub fn device(place: &Place, compute: Compute) -> Result<Device, Failure> {
    match compute {
        Compute::Cpu => Ok(Device::Cpu),
        Compute::Auto => Ok(cuda(place.local_rank).unwrap_or(Device::Cpu)),
        Compute::Cuda => cuda(place.local_rank).map_err(|error| {
            Failure::of(TrainerExit::GpuFault, error)
                .hint("run `qvl doctor --job` on this node; `spec.world.compute: cpu` trains without a GPU")
        }),
    }
}

#[cfg(feature = "cuda")]
fn cuda(local_rank: usize) -> candle_core::Result<Device> {
    Device::new_cuda(local_rank)
}

#[cfg(not(feature = "cuda"))]
fn cuda(_local_rank: usize) -> candle_core::Result<Device> {
    candle_core::bail!("this qvl-train was built without CUDA")
}

/// Address and port in one text; an IPv6 address needs its brackets.
fn authority(address: &str, port: u16) -> String {
    match address.parse::<std::net::Ipv6Addr>() {
        Ok(address) => format!("[{address}]:{port}"),
        Err(_) => format!("{address}:{port}"),
    }
}

/// The group of all ranks. `digest` is one of everything that must be equal on all of them; once
/// `stop` is set, the wait for the others ends.
pub fn join(
    place: &Place,
    job: &FineTuneJob,
    digest: &str,
    stop: &Arc<AtomicBool>,
) -> Result<Box<dyn Collective>, Failure> {
    if place.world == 1 {
        return Ok(Box::new(Solo));
    }
    let timeout = Duration::from_secs(u64::from(job.spec.world.peer_timeout_seconds));
    let config = TcpConfig {
        rank: place.rank,
        world: place.world,
        master: authority(&place.master_addr, place.master_port),
        token: place.token.clone(),
        attempt: place.attempt,
        job: digest.to_owned(),
        join_timeout: Duration::from_secs(u64::from(job.spec.failure.startup_seconds)),
        peer_timeout: timeout,
        stop: Arc::clone(stop),
    };
    Ok(Box::new(Tcp::join(&config)?))
}
