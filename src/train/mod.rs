//! The trainer: data-parallel fine-tuning of Qwen-VL, equal to the bit on any number of ranks.

pub mod batch;
pub mod collective;
pub mod events;
pub mod model;
pub mod optim;
pub mod order;
pub mod reduce;
pub mod rng;
pub mod selftest;
pub mod weights;
