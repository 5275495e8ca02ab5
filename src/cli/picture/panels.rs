//! Small plots side by side, as SVG: lines over two logarithmic axes. Knows nothing of this program, so that others can draw with it.

use std::error::Error;

use plotters::prelude::*;

/// Distinct on white, and for most who see colours differently (Okabe and Ito 2008).
pub const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(90, 90, 90),
];
pub const FONT: &str = "sans-serif";
/// Pixels of one of many small plots.
const PANEL: (u32, u32) = (460, 330);

pub type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
pub type Drawn = Result<(), Box<dyn Error>>;

/// A named line through points.
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// A plot among others.
pub struct Panel {
    pub title: String,
    pub series: Vec<Series>,
}

pub fn colour(i: usize) -> RGBColor {
    COLOURS[i % COLOURS.len()]
}

/// A picture of this size.
pub fn svg(size: (u32, u32), draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<String, Box<dyn Error>> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        area.fill(&WHITE)?;
        draw(&area)?;
        area.present()?;
    }
    Ok(text)
}

/// Plots side by side, `columns` in a row, both axes logarithmic: lines that are steep by nature can be compared over decades.
pub fn draw(axes: (&str, &str), columns: usize, panels: &[Panel]) -> Result<String, Box<dyn Error>> {
    let columns = columns.clamp(1, panels.len().max(1));
    let rows = panels.len().div_ceil(columns).max(1);
    svg((PANEL.0 * columns as u32, PANEL.1 * rows as u32), |area| {
        area.split_evenly((rows, columns))
            .iter()
            .zip(panels)
            .try_for_each(|(area, panel)| draw_panel(area, axes, panel))
    })
}

fn draw_panel(area: &Area<'_>, (x_name, y_name): (&str, &str), panel: &Panel) -> Drawn {
    let values = |of: fn(&(f64, f64)) -> f64| {
        let all = panel.series.iter().flat_map(|s| &s.points).map(of).filter(|v| *v > 0.0);
        let mut all: Vec<f64> = all.collect();
        all.sort_by(f64::total_cmp);
        all.dedup();
        all
    };
    // A logarithm needs room on both sides and no zero.
    let span = |values: &[f64]| match (values.first(), values.last()) {
        (Some(low), Some(high)) => low / 1.15..high * 1.15,
        _ => 1.0..10.0,
    };
    // Ticks where something was measured, and at 1, 2 and 5 of each decade.
    let (xs, ys) = (values(|p| p.0), span(&values(|p| p.1)));
    let decades = (-3..12).flat_map(|e| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(e)));
    let ticks: Vec<f64> = decades.filter(|tick| ys.contains(tick)).collect();
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, (FONT, 14))
        .margin(6)
        .x_label_area_size(34)
        .y_label_area_size(52)
        .build_cartesian_2d(span(&xs).log_scale().with_key_points(xs), ys.log_scale().with_key_points(ticks))?;
    let number = |v: &f64| if *v < 1.0 { format!("{v:.1}") } else { format!("{v:.0}") };
    chart
        .configure_mesh()
        .x_desc(x_name)
        .y_desc(y_name)
        .x_label_formatter(&number)
        .y_label_formatter(&number)
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(225, 225, 225))
        .draw()?;
    for (i, line) in panel.series.iter().enumerate() {
        // More lines than colours: the second round is thin.
        let style = colour(i).stroke_width(if i < COLOURS.len() { 2 } else { 1 });
        let drawn = chart.draw_series(LineSeries::new(line.points.iter().copied(), style))?;
        drawn.label(line.name.as_str()).legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 14, y)], style));
        chart.draw_series(line.points.iter().map(|&at| Circle::new(at, 2, style.filled())))?;
    }
    let rises = panel.series.first().is_none_or(|s| s.points.first().map(|p| p.1) <= s.points.last().map(|p| p.1));
    let free = if rises { SeriesLabelPosition::LowerRight } else { SeriesLabelPosition::LowerLeft };
    let labels =
        chart.configure_series_labels().position(free).label_font((FONT, 10)).background_style(WHITE.mix(0.8)).draw();
    Ok(labels?)
}
