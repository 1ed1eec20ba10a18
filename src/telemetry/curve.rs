//! The loss curve as SVG.

use std::{collections::BTreeMap, path::Path};

use plotters::prelude::*;

use crate::wire::{Event, Record};

/// Colours that nearly everybody can tell apart (Okabe and Ito, 2008).
const COLOURS: [RGBColor; 5] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
];

/// Writes the curves of loss and, below, of the learning rate.
pub fn write(path: &Path, records: &[Record]) -> std::io::Result<()> {
    std::fs::write(path, svg(records))
}

/// The curves of the records as an SVG document.
pub fn svg(records: &[Record]) -> String {
    let mut out = String::new();
    // Drawing into a string cannot fail; an empty run gives an empty picture.
    let _drawn = draw(&mut out, &series(records));
    out
}

type Series = BTreeMap<String, Vec<(f64, f64)>>;

fn series(records: &[Record]) -> Series {
    let mut series = Series::new();
    for record in records {
        let Event::Step(step) = &record.event else { continue };
        let x = step.step as f64;
        series.entry("loss".to_owned()).or_default().push((x, step.loss));
        series.entry("learning rate".to_owned()).or_default().push((x, step.learning_rate));
        for (task, loss) in &step.tasks {
            series.entry(format!("{task} (content)")).or_default().push((x, loss.content_loss));
        }
    }
    series
}

fn draw(out: &mut String, series: &Series) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(out, (860, 460)).into_drawing_area();
    root.fill(&WHITE)?;
    let (losses, rates) = root.split_vertically(330);
    let last = series.values().flatten().fold(1.0_f64, |max, (x, _y)| max.max(*x));
    let is_rate = |name: &str| name == "learning rate";
    let highest = |rate: bool| {
        let chosen = series.iter().filter(|(name, _points)| is_rate(name) == rate);
        chosen.flat_map(|(_name, points)| points).fold(1e-9_f64, |max, (_x, y)| max.max(*y))
    };
    let mut chart = ChartBuilder::on(&losses)
        .margin(10)
        .caption("cross-entropy per labelled token (nats)", ("sans-serif", 15))
        .x_label_area_size(24)
        .y_label_area_size(52)
        .build_cartesian_2d(0.0..last, 0.0..highest(false) * 1.05)?;
    chart.configure_mesh().light_line_style(WHITE).x_desc("step").draw()?;
    let named = series.iter().filter(|(name, _points)| !is_rate(name));
    for ((name, points), colour) in named.zip(COLOURS.iter().cycle()) {
        chart
            .draw_series(LineSeries::new(smooth(points), colour.stroke_width(2)))?
            .label(name.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.2))
        .draw()?;
    let mut chart = ChartBuilder::on(&rates)
        .margin(10)
        .x_label_area_size(24)
        .y_label_area_size(52)
        .build_cartesian_2d(0.0..last, 0.0..highest(true) * 1.1)?;
    chart.configure_mesh().light_line_style(WHITE).y_labels(3).y_desc("rate").draw()?;
    if let Some(points) = series.get("learning rate") {
        chart.draw_series(LineSeries::new(points.iter().copied(), COLOURS[0].stroke_width(2)))?;
    }
    root.present()?;
    Ok(())
}

/// The mean over a window of a fiftieth of the run: single batches are noisy.
fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let window = (points.len() / 50).max(1);
    points
        .windows(window)
        .map(|part| {
            let sum = part.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
            (sum.0 / window as f64, sum.1 / window as f64)
        })
        .collect()
}
