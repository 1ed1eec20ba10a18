//! The curves of a run as SVG: loss and evaluations above, the learning rate below.

use std::{collections::BTreeMap, path::Path};

use plotters::{coord::Shift, prelude::*};

use crate::wire::{Event, Record};

/// Colours that nearly everybody can tell apart (Okabe and Ito, 2008).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
];
const GREY: RGBColor = RGBColor(128, 128, 128);
/// Curves are means over this share of the run, because single batches are noisy.
const WINDOWS: usize = 50;

/// Writes the curves of loss and, below, of the learning rate.
pub fn write(path: &Path, records: &[Record]) -> std::io::Result<()> {
    std::fs::write(path, svg(records))
}

/// The curves of the records as an SVG document.
pub fn svg(records: &[Record]) -> String {
    let mut out = String::new();
    // Drawing into a string cannot fail; an empty run gives an empty picture.
    let _drawn = draw(&mut out, &Curves::of(records));
    out
}

type Points = Vec<(f64, f64)>;
type Drawn = Result<(), Box<dyn std::error::Error>>;
type Area<'o> = DrawingArea<SVGBackend<'o>, Shift>;

#[derive(Debug, Default)]
struct Curves {
    loss: Points,
    tasks: BTreeMap<String, Points>,
    /// Loss of each evaluation set.
    sets: BTreeMap<String, Points>,
    rate: Points,
    /// First step of each attempt but the first.
    restarts: Vec<f64>,
}

impl Curves {
    fn of(records: &[Record]) -> Self {
        let mut curves = Curves::default();
        let mut attempt = None;
        for record in records {
            if let Event::Evaluated { step, set, metrics } = &record.event
                && let Some(loss) = metrics.loss
            {
                curves.sets.entry(set.clone()).or_default().push((*step as f64, loss));
            }
            let Event::Step(step) = &record.event else { continue };
            let x = step.step as f64;
            if attempt.is_some_and(|attempt| attempt != record.attempt) {
                curves.restarts.push(x);
            }
            attempt = Some(record.attempt);
            curves.loss.push((x, step.loss));
            curves.rate.push((x, step.learning_rate));
            for (task, loss) in &step.tasks {
                let points = curves.tasks.entry(task.clone()).or_default();
                points.push((x, loss.content_loss));
            }
        }
        curves
    }

    fn last_step(&self) -> f64 {
        let evaluations = self.sets.values().flatten();
        self.loss.iter().chain(evaluations).fold(1.0_f64, |last, (x, _y)| last.max(*x))
    }

    /// The top of the picture: the highest mean after the first hundredths of the run. What lies
    /// above, the first steps and the evaluation before them, is drawn at the edge.
    fn top(&self) -> f64 {
        let settled = 0.04 * self.last_step();
        let means = self.tasks.values().chain([&self.loss]).flat_map(|points| smooth(points));
        let settled = means.filter(|(x, _y)| settled <= *x);
        settled.fold(1e-3_f64, |most, (_x, y)| most.max(y)) * 1.1
    }
}

fn draw(out: &mut String, curves: &Curves) -> Drawn {
    let root = SVGBackend::with_string(out, (880, 500)).into_drawing_area();
    root.fill(&WHITE)?;
    let (losses, rates) = root.split_vertically(370);
    draw_losses(&losses, curves)?;
    draw_rate(&rates, curves)?;
    root.present()?;
    Ok(())
}

fn draw_losses(area: &Area<'_>, curves: &Curves) -> Drawn {
    let top = curves.top();
    let cut = |(x, y): (f64, f64)| (x, y.min(top));
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .margin_right(26)
        .x_label_area_size(34)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..curves.last_step(), 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GREY.mix(0.25))
        .label_style(("sans-serif", 13))
        .axis_desc_style(("sans-serif", 13))
        .x_label_formatter(&|step| format!("{step:.0}"))
        .x_desc("step")
        .y_desc("cross-entropy per token (nats)")
        .draw()?;
    for x in &curves.restarts {
        chart.draw_series([PathElement::new([(*x, 0.0), (*x, top)], GREY.mix(0.8))])?;
        let label = Text::new("restart", (*x, top), ("sans-serif", 12).into_font().color(&GREY));
        chart.draw_series([label])?;
    }
    let faint = COLOURS[0].mix(0.22);
    chart.draw_series(LineSeries::new(curves.loss.iter().copied().map(cut), faint))?;
    let named = curves.tasks.iter().map(|(task, points)| (format!("{task}, content only"), points));
    let named = [("all tasks, weighted".to_owned(), &curves.loss)].into_iter().chain(named);
    for ((name, points), colour) in named.zip(COLOURS.iter().cycle()) {
        let style = colour.stroke_width(2);
        chart
            .draw_series(LineSeries::new(smooth(points).into_iter().map(cut), style))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    for ((set, points), colour) in curves.sets.iter().zip(COLOURS.iter().rev().cycle()) {
        let dot = |at: (f64, f64)| Circle::new(at, 4, colour.filled());
        chart
            .draw_series(points.iter().copied().map(cut).map(dot))?
            .label(format!("evaluation: {set}"))
            .legend(|(x, y)| Circle::new((x + 9, y), 4, colour.filled()));
    }
    chart
        .configure_series_labels()
        .label_font(("sans-serif", 13))
        .background_style(WHITE.mix(0.85))
        .border_style(GREY.mix(0.4))
        .draw()?;
    Ok(())
}

fn draw_rate(area: &Area<'_>, curves: &Curves) -> Drawn {
    let top = curves.rate.iter().fold(1e-12_f64, |most, (_x, y)| most.max(*y)) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .margin_right(26)
        .x_label_area_size(22)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..curves.last_step(), 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GREY.mix(0.25))
        .label_style(("sans-serif", 13))
        .axis_desc_style(("sans-serif", 13))
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_labels(3)
        .y_label_formatter(&|rate| {
            if *rate == 0.0 { "0".to_owned() } else { format!("{rate:.0e}") }
        })
        .y_desc("learning rate")
        .draw()?;
    let style = COLOURS[0].stroke_width(2);
    chart.draw_series(LineSeries::new(curves.rate.iter().copied(), style))?;
    Ok(())
}

/// Means over a [`WINDOWS`]th of the run.
fn smooth(points: &[(f64, f64)]) -> Points {
    let window = (points.len() / WINDOWS).max(1);
    points
        .windows(window)
        .map(|part| {
            let sum = part.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
            (sum.0 / window as f64, sum.1 / window as f64)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{EvalMetrics, StepMetrics, TaskLoss};

    fn record(attempt: u32, event: Event) -> Record {
        Record { v: Record::VERSION, time_ms: 0, rank: 0, attempt, event }
    }

    fn step(attempt: u32, step: u64) -> Record {
        let loss = TaskLoss { loss: 2.0, content_loss: 1.0, tokens: 3 };
        let metrics = StepMetrics {
            step,
            total_steps: 4,
            epoch: 0.0,
            stage: "s".to_owned(),
            loss: 4.0 / step as f64,
            tasks: BTreeMap::from([("grounding".to_owned(), loss)]),
            learning_rate: 1e-3,
            grad_norm: 1.0,
            samples: 1,
            tokens: 1,
            seconds: 1.0,
            reduce_seconds: 0.0,
        };
        record(attempt, Event::Step(metrics))
    }

    #[test]
    fn everything_that_was_measured_is_drawn() {
        let metrics = EvalMetrics { loss: Some(0.7), ..EvalMetrics::default() };
        let evaluated = Event::Evaluated { step: 2, set: "held-out".to_owned(), metrics };
        let records = [step(1, 1), step(1, 2), record(1, evaluated), step(2, 3), step(2, 4)];
        let svg = svg(&records);
        for word in ["grounding, content only", "evaluation: held-out", "restart", "learning rate"]
        {
            assert!(svg.contains(word), "no `{word}`");
        }
        assert_eq!(svg.matches("<circle").count(), 2, "the evaluation and its legend");
    }

    #[test]
    fn an_empty_run_is_an_empty_picture() {
        assert!(svg(&[]).starts_with("<svg"));
    }
}
