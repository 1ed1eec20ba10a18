//! The trainer: data-parallel fine-tuning of Qwen-VL, equal to the bit on any number of ranks.

pub mod adapter;
pub mod apply;
pub mod batch;
pub mod canary;
pub mod checkpoint;
pub mod cli;
pub mod collective;
pub mod commands;
pub mod corpus;
pub mod eval;
pub mod events;
pub mod export;
pub mod failure;
pub mod features;
pub mod gputest;
pub mod guard;
pub mod memory;
pub mod model;
mod ops;
pub mod optim;
pub mod order;
pub mod place;
pub mod reduce;
pub mod rng;
pub mod run;
pub mod selftest;
pub mod stages;
pub mod step;
pub mod weights;

#[cfg(test)]
mod step_tests;
