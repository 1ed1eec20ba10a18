//! A simulated `libnvidia-ml.so.1`: NVML's C interface over the scenario of the crate `simgpu`.
//!
//! Every symbol that the Rust bindings (`nvml-wrapper-sys` 0.10) or NVIDIA's Python bindings
//! (`nvidia-ml-py` 13.615) name is exported; those without a meaning here return "not supported".
//! The structs are written down again from the header's layout instead of taken from a binding,
//! so that a mistake in a binding shows.
#![allow(non_snake_case, reason = "names of C functions")]

mod answer;
mod calls;
mod device;
mod events;
mod export_table;
mod fields;
mod layout;
mod links;
mod memory;
mod processes;
mod stubs;
mod system;
