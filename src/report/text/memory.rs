//! Which GPUs a rank fits into.

use std::io::{self, Write};

use super::{BOLD, View, paint};
use crate::doctor::{MemoryFit, ProductFit, Report, human_bytes};

/// Writes one line for each product of the fleet, and the most ranks that fit.
pub(super) fn fit(report: &Report, view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    let Some(MemoryFit { need, products, ranks }) = &report.memory else { return Ok(()) };
    writeln!(out, "\n{}", paint(view, BOLD, "memory of a rank"))?;
    let need = human_bytes(*need);
    writeln!(out, "  needs {need} of a GPU, with a CUDA context and a reserve of 5 %")?;
    for product in products {
        writeln!(out, "  {} x {}: {}", product.gpus, product.name, verdict(product))?;
        for text in rest(product) {
            writeln!(out, "    {text}")?;
        }
    }
    match ranks {
        Some(shape) => writeln!(out, "  at most {} ranks fit, as {shape}", shape.ranks()),
        None => writeln!(out, "  no rank fits"),
    }
}

fn verdict(product: &ProductFit) -> String {
    let (least, most) = (human_bytes(product.usable.0), human_bytes(product.usable.1));
    let usable = if least == most { least } else { format!("{least} to {most}") };
    match (product.gpus, product.fits) {
        (0, _) => "how much is usable is not known".to_owned(),
        (_, 0) => format!("{usable} usable, fits into none"),
        (gpus, fits) if gpus == fits => format!("{usable} usable, fits"),
        (_, fits) => format!("{usable} usable, fits into {fits}"),
    }
}

fn rest(product: &ProductFit) -> Vec<String> {
    let mut lines = Vec::new();
    if 0 < product.gpus {
        lines.push(match (product.samples, product.tokens) {
            (None, None) => "not even one sample of one token fits into the fullest".to_owned(),
            (samples, tokens) => {
                let samples = samples.map_or("not one".to_owned(), |n| format!("batch.unit {n}"));
                let tokens = tokens.map_or("none".to_owned(), |n| n.to_string());
                format!("largest: {samples} with the longest sample, or {tokens} tokens a sample")
            }
        });
    }
    if 0 < product.divided {
        let count = product.divided;
        lines.push(format!("{count} more are divided (MIG); the size of the parts is not known"));
    }
    if 0 < product.unread {
        lines.push(format!("{} more did not tell their memory", product.unread));
    }
    lines
}
