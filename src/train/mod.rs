//! The trainer: data-parallel fine-tuning of Qwen-VL, equal to the bit on any number of ranks.

pub mod adapter;
pub mod batch;
pub mod canary;
pub mod checkpoint;
pub mod collective;
pub mod events;
pub mod failure;
pub mod features;
pub mod guard;
pub mod model;
pub mod optim;
pub mod order;
pub mod place;
pub mod reduce;
pub mod rng;
pub mod selftest;
pub mod step;
pub mod weights;

#[cfg(test)]
mod step_tests;
