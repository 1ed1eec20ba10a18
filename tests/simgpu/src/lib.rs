//! A simulated NVIDIA driver: what clients see through `libnvidia-ml.so.1` and `libcuda.so.1` is
//! written in one JSON file, the scenario.
//!
//! The two libraries are the crates `simgpu-nvml` and `simgpu-cuda`. They answer queries and copy;
//! they do not compute, so no number about speed or about arithmetic can come from them.
//!
//! | module | holds |
//! |---|---|
//! | [`scenario`] | the file's types and what follows from them for a GPU |
//! | [`profile`] | values of real products, with their sources |
//! | [`live`] | the file as it is now: re-read when it changes, with a timeline of events |
//! | [`host`] | for tests: a folder with both libraries and a scenario |

pub mod host;
pub mod live;
pub mod profile;
pub mod scenario;

pub use host::Host;
pub use serde_json::Value;
