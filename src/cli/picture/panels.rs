//! Small plots side by side, as SVG: lines over two logarithmic axes. Knows nothing of this program, so that others can draw with it.

use std::error::Error;

use plotters::prelude::*;

/// Distinct on white, and for most who see colours differently (Okabe and Ito 2008).
pub const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(130, 130, 130),
    RGBColor(0, 0, 0),
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
    /// Lines that were calculated, not measured like the others: dashed.
    pub calculated: Vec<Series>,
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

/// Plots side by side, `columns` in a row, both axes logarithmic: lines that are steep by nature can be compared over decades. A name has one colour in all
/// of them.
pub fn draw(axes: (&str, &str), columns: usize, panels: &[Panel]) -> Result<String, Box<dyn Error>> {
    let columns = columns.clamp(1, panels.len().max(1));
    let rows = panels.len().div_ceil(columns).max(1);
    let mut names: Vec<&str> = Vec::new();
    let all = panels.iter().flat_map(|p| &p.series).chain(panels.iter().flat_map(|p| &p.calculated));
    for series in all {
        if !names.contains(&series.name.as_str()) {
            names.push(&series.name);
        }
    }
    svg((PANEL.0 * columns as u32, PANEL.1 * rows as u32), |area| {
        area.split_evenly((rows, columns))
            .iter()
            .zip(panels)
            .try_for_each(|(area, panel)| draw_panel(area, axes, panel, &names))
    })
}

fn draw_panel(area: &Area<'_>, (x_name, y_name): (&str, &str), panel: &Panel, names: &[&str]) -> Drawn {
    let lines = || panel.series.iter().map(|s| (s, false)).chain(panel.calculated.iter().map(|s| (s, true)));
    let values = |of: fn(&(f64, f64)) -> f64| {
        let all = lines().flat_map(|(s, _)| &s.points).map(of).filter(|v| *v > 0.0);
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
    // Ticks where something was measured, and at 1, 2 and 5 of each decade, or at every digit where these are few.
    let (xs, ys) = (values(|p| p.0), span(&values(|p| p.1)));
    let at = |digits: &[f64]| -> Vec<f64> {
        let all = (-3..12).flat_map(|e| digits.iter().map(move |digit| digit * 10f64.powi(e)));
        all.filter(|tick| ys.contains(tick)).collect()
    };
    let few = at(&[1.0, 2.0, 5.0]);
    let ticks = if few.len() < 4 { at(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0]) } else { few };
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
    for (line, is_calculated) in lines() {
        // More lines than colours: the second round is thin.
        let i = names.iter().position(|name| *name == line.name).unwrap_or(0);
        let style = colour(i).stroke_width(if i < COLOURS.len() { 2 } else { 1 });
        let points = line.points.iter().copied();
        let drawn = if is_calculated {
            chart.draw_series(DashedLineSeries::new(points, 6, 4, style))?
        } else {
            chart.draw_series(LineSeries::new(points, style))?
        };
        drawn.label(line.name.as_str()).legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 14, y)], style));
        chart.draw_series(line.points.iter().map(|&at| Circle::new(at, 2, style.filled())))?;
    }
    let rises = panel.series.first().is_none_or(|s| s.points.first().map(|p| p.1) <= s.points.last().map(|p| p.1));
    let free = if rises { SeriesLabelPosition::LowerRight } else { SeriesLabelPosition::LowerLeft };
    let labels =
        chart.configure_series_labels().position(free).label_font((FONT, 10)).background_style(WHITE.mix(0.8)).draw();
    Ok(labels?)
}
