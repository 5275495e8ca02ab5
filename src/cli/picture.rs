//! Pictures as SVG: a prefill over time, and times over prompt lengths.

use std::ops::Range;

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use runahead::engine::{AdapterReport, PrefillReport};
use runahead::runahead::trace::{What, on_device, stages};

use super::failure::Failure;

pub mod panels;

use panels::{Area, COLOURS, Drawn, FONT, colour};
pub use panels::{Panel, Series};

const WIDTH: u32 = 1100;

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

fn svg(height: u32, draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<String, Failure> {
    panels::svg((WIDTH, height), draw).map_err(failed)
}

fn failed(error: Box<dyn std::error::Error>) -> Failure {
    Failure::Other(format!("picture: {error}"))
}

/// Plots side by side, `columns` in a row, both axes logarithmic.
pub fn plots(axes: (&str, &str), columns: usize, plots: &[Panel]) -> Result<String, Failure> {
    panels::draw(axes, columns, plots).map_err(failed)
}

/// A prefill: above, what each adapter did when; below, the layer that each had reached, where the distance between the lines is the run-ahead.
pub fn timeline(report: &PrefillReport) -> Result<String, Failure> {
    let lanes = 60 + 74 * report.adapters.len() as u32;
    svg(lanes + 340, |area| {
        let (above, below) = area.split_vertically(lanes);
        let ends = report.adapters.iter().flat_map(|a| &a.log.spans).map(|s| s.end.as_secs_f64() * 1e3);
        let times = 0.0..ends.fold(1e-3, f64::max);
        draw_lanes(&above, report, times.clone())?;
        let reached = |a: &AdapterReport| Series {
            name: a.name.clone(),
            points: stages(&a.log.spans).iter().map(|s| (s.end.as_secs_f64() * 1e3, s.stage as f64 + 1.0)).collect(),
        };
        let series: Vec<Series> = report.adapters.iter().map(reached).collect();
        draw_series(&below, "", ("ms", "layers reached"), times, &series, None)
    })
}

fn draw_lanes(area: &Area<'_>, report: &PrefillReport, times: Range<f64>) -> Drawn {
    let n = report.adapters.len();
    let cut = report.partition.iter().map(usize::to_string).collect::<Vec<_>>().join(" + ");
    let ahead = report.run_ahead_layers;
    let title =
        format!("{}: {cut} tokens, first token after {:.0} ms, {ahead} layers run ahead", report.mode, report.ttft_ms);
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 18))
        .margin(8)
        .x_label_area_size(22)
        .y_label_area_size(40)
        .build_cartesian_2d(times, 0.0..n as f64)?;
    chart.configure_mesh().disable_y_mesh().disable_y_axis().x_labels(12).light_line_style(WHITE).draw()?;
    for (i, adapter) in report.adapters.iter().enumerate() {
        draw_lane(&mut chart, adapter, (n - i) as f64, colour(i))?;
    }
    Ok(())
}

/// One adapter below `top`: its device's stages, darker and lighter in turn, or products and attention where it was timed, then a row for each of the threads' kinds
/// of work.
fn draw_lane(chart: &mut Chart<'_, '_>, adapter: &AdapterReport, top: f64, colour: RGBColor) -> Drawn {
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    let mut bar = |(from, to): (f64, f64), (high, low): (f64, f64), style: ShapeStyle| {
        let corners = [(from, top - high), (to, top - low)];
        chart.draw_series(std::iter::once(Rectangle::new(corners, style))).map(drop)
    };
    let timed = adapter.log.events.iter().any(|event| matches!(event.what, What::Products | What::Attention));
    for span in on_device(&adapter.log.spans).filter(|_| !timed) {
        let strength = if span.stage % 2 == 0 { 0.9 } else { 0.55 };
        bar((ms(span.start), ms(span.end)), (0.26, 0.62), colour.mix(strength).filled())?;
    }
    for event in &adapter.log.events {
        let (heights, style) = match event.what {
            What::Products => ((0.26, 0.62), colour.mix(0.5).filled()),
            What::Attention => ((0.26, 0.62), colour.filled()),
            What::Download => ((0.26, 0.62), BLACK.filled()),
            What::Publish => ((0.64, 0.72), COLOURS[2].filled()),
            What::Fetch => ((0.74, 0.82), COLOURS[3].filled()),
            What::Wait => ((0.84, 0.92), RGBColor(170, 170, 170).filled()),
            What::Pause => ((0.84, 0.92), RGBColor(225, 225, 225).filled()),
        };
        bar((ms(event.start), ms(event.end)), heights, style)?;
    }
    let device = if timed { "products light, attention dark, download black" } else { "device" };
    let text = format!(
        "{}: tokens {}..{}, busy {:.0} ms, idle {:.0} ms ({device}; publish; fetch; wait)",
        adapter.name, adapter.start, adapter.end, adapter.busy_ms, adapter.wait_ms
    );
    chart.draw_series(std::iter::once(Text::new(text, (0.0, top - 0.05), (FONT, 13))))?;
    Ok(())
}

/// Times to the first token over prompt lengths.
pub fn ttft(title: &str, series: &[Series]) -> Result<String, Failure> {
    let points = || series.iter().flat_map(|s| &s.points);
    let longest = points().map(|p| p.0).fold(1.0, f64::max);
    svg(560, |area| {
        draw_series(area, title, ("tokens of the prompt", "time to first token, ms"), 0.0..longest, series, Some(3))
    })
}

fn draw_series(
    area: &Area<'_>,
    title: &str,
    (x_name, y_name): (&str, &str),
    x: Range<f64>,
    series: &[Series],
    dots: Option<i32>,
) -> Drawn {
    let highest = series.iter().flat_map(|s| &s.points).map(|p| p.1).fold(1e-3, f64::max);
    let mut builder = ChartBuilder::on(area);
    if !title.is_empty() {
        builder.caption(title, (FONT, 18));
    }
    let mut chart = builder
        .margin(8)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(x.start..x.end * 1.02, 0.0..highest * 1.05)?;
    chart.configure_mesh().x_desc(x_name).y_desc(y_name).light_line_style(WHITE).draw()?;
    for (i, line) in series.iter().enumerate() {
        let colour = colour(i);
        let drawn = chart.draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)))?;
        drawn
            .label(line.name.as_str())
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], colour.stroke_width(2)));
        if let Some(size) = dots {
            chart.draw_series(line.points.iter().map(|&at| Circle::new(at, size, colour.filled())))?;
        }
    }
    let labels = chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font((FONT, 13))
        .background_style(WHITE.mix(0.8))
        .draw();
    Ok(labels?)
}
