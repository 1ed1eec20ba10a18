//! The report of a run: one HTML file without anything from outside, rendered by a pure function.

mod input;
mod numbers;
mod render;
mod text;

pub use input::{
    Check, DoctorVerdict, Measured, Memory, Picture, Proof, ProofRun, ReportInput, Row, SetReport,
    Tone,
};
pub use render::html;
pub use text::table;
