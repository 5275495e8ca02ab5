//! Tables and plots of all results in a folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use runahead::config::shapes;
use runahead::engine::Mode;
use runahead::runahead::cost::{CostModel, Lane};
use runahead::runahead::search::search_simulated;
use serde_json::Value;

use crate::Result;
use crate::panels::{self, Panel, Series};
use crate::run::table_file;
use crate::units::Record;

/// The length at which numbers of adapters are compared, where it was measured; else the longest below it.
const COMPARED: u64 = 16_384;

/// One measured case.
struct Cell {
    shape: String,
    network: &'static str,
    link: String,
    n: usize,
    way: String,
    prompt: u64,
    ttft_ms: f64,
    predicted_ms: f64,
}

/// Writes `tables.md`, `context.svg` and `adapters.svg` into the folder.
pub fn write(out: &Path) -> Result<()> {
    let (cells, skipped) = read(out)?;
    if cells.is_empty() {
        println!("no results in {}", out.display());
        return Ok(());
    }
    std::fs::write(out.join("tables.md"), tables(&cells, &skipped))?;
    let axes = ("tokens of the prompt", "time to first token, ms");
    let context = over_context(&cells);
    if !context.is_empty() {
        std::fs::write(out.join("context.svg"), panels::draw(axes, 2, &context)?)?;
    }
    let axes = ("adapters", "time to first token, ms");
    std::fs::write(out.join("adapters.svg"), panels::draw(axes, 2, &over_adapters(out, &cells)?)?)?;
    println!("{} cases: tables.md, context.svg and adapters.svg in {}", cells.len(), out.display());
    Ok(())
}

/// All rows, and what was skipped.
fn read(out: &Path) -> Result<(Vec<Cell>, Vec<String>)> {
    let mut files: Vec<_> = std::fs::read_dir(out)?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.sort();
    let (mut cells, mut skipped) = (Vec::new(), Vec::new());
    for file in files.iter().filter(|file| file.extension().is_some_and(|e| e == "json")) {
        // Calibrations lie beside.
        let Ok(record) = serde_json::from_slice::<Record>(&std::fs::read(file)?) else { continue };
        let unit = &record.unit;
        let name = file.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        skipped.extend(record.skipped.iter().map(|word| format!("{name}: {word}")));
        for row in &record.rows {
            let (mode, split) = (row["mode"].as_str().unwrap_or(""), row["split"].as_str().unwrap_or(""));
            let (Some(prompt), Some(ttft_ms)) = (row["prompt"].as_u64(), row["ttft_ms"].as_f64()) else { continue };
            cells.push(Cell {
                shape: unit.shape.clone(),
                network: unit.network.text(),
                link: unit.link.clone().unwrap_or_else(|| "default".to_owned()),
                n: unit.n,
                way: if split == "even" { mode.to_owned() } else { format!("{mode}, {split}") },
                prompt,
                ttft_ms,
                predicted_ms: row["predicted"]["ttft_ms"].as_f64().unwrap_or(0.0),
            });
        }
    }
    Ok((cells, skipped))
}

/// Milliseconds of one adapter alone.
fn single(cells: &[Cell], shape: &str, prompt: u64) -> Option<f64> {
    cells.iter().find(|c| c.n == 1 && c.shape == shape && c.prompt == prompt).map(|c| c.ttft_ms)
}

/// A table for each shape, network and link: milliseconds, and behind them how many times as fast as one adapter.
fn tables(cells: &[Cell], skipped: &[String]) -> String {
    let mut text = String::new();
    let places: BTreeSet<_> = cells.iter().map(|c| (&c.shape, c.network, &c.link)).collect();
    for (shape, network, link) in places {
        let here = |c: &&Cell| (&c.shape, c.network, &c.link) == (shape, network, link);
        let prompts: BTreeSet<u64> = cells.iter().filter(here).map(|c| c.prompt).collect();
        let heads: String = prompts.iter().map(|p| format!(" {p} |")).collect();
        text += &format!("\n### {shape}, {network}, link {link}\n\n| adapters | way |{heads}\n|---:|---|");
        text += &"---:|".repeat(prompts.len());
        text.push('\n');
        // In the order in which they were measured.
        let mut rows: Vec<(usize, &str)> = Vec::new();
        for c in cells.iter().filter(here) {
            if !rows.contains(&(c.n, &c.way)) {
                rows.push((c.n, &c.way));
            }
        }
        rows.sort_by_key(|&(n, _)| n);
        for (n, way) in rows {
            text += &format!("| {n} | {way} |");
            for &prompt in &prompts {
                let cell = cells.iter().filter(here).find(|c| c.n == n && c.way == way && c.prompt == prompt);
                text += &match (cell, single(cells, shape, prompt)) {
                    (Some(c), Some(alone)) if n > 1 => format!(" {:.1} ({:.2}) |", c.ttft_ms, alone / c.ttft_ms),
                    (Some(c), _) => format!(" {:.1} |", c.ttft_ms),
                    (None, _) => " |".to_owned(),
                };
            }
            text.push('\n');
        }
    }
    if !skipped.is_empty() {
        text += "\nNot measured:\n\n";
        skipped.iter().for_each(|word| text += &format!("- {word}\n"));
    }
    text.trim_start().to_owned()
}

fn series(points: BTreeMap<String, Vec<(f64, f64)>>) -> Vec<Series> {
    let sorted = |(name, mut points): (String, Vec<(f64, f64)>)| {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Series { name, points }
    };
    points.into_iter().map(sorted).collect()
}

/// Time over prompt length: a plot for each shape, network, link and number of adapters.
fn over_context(cells: &[Cell]) -> Vec<Panel> {
    let places: BTreeSet<_> = cells.iter().filter(|c| c.n > 1).map(|c| (&c.shape, c.network, &c.link, c.n)).collect();
    let panel = |(shape, network, link, n): (&String, &str, &String, usize)| {
        let mut points: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
        for c in cells.iter().filter(|c| c.shape == *shape) {
            let alone = c.n == 1;
            if alone || (c.network, &c.link, c.n) == (network, link, n) {
                points.entry(c.way.clone()).or_default().push((c.prompt as f64, c.ttft_ms));
            }
        }
        let title = format!("{shape}, {n} adapters, {network}, link {link}");
        Panel { title, series: series(points), calculated: Vec::new() }
    };
    places.into_iter().map(panel).collect()
}

/// Time over the number of adapters: a plot for each shape, network and link, with what was predicted, and the bound where the costs are known.
fn over_adapters(out: &Path, cells: &[Cell]) -> Result<Vec<Panel>> {
    let places: BTreeSet<_> = cells.iter().filter(|c| c.n > 1).map(|c| (&c.shape, c.network, &c.link)).collect();
    let mut plots = Vec::new();
    for (shape, network, link) in places {
        let here = |c: &&Cell| c.shape == *shape && (c.n == 1 || (c.network, &c.link) == (network, link));
        let measured = cells.iter().filter(here).filter(|c| c.n > 1).map(|c| c.prompt);
        let Some(prompt) = measured.clone().filter(|&p| p <= COMPARED).max().or(measured.min()) else { continue };
        let mut points: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
        let mut calculated: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
        let alone = single(cells, shape, prompt);
        for c in cells.iter().filter(here).filter(|c| c.prompt == prompt && c.n > 1) {
            let n = c.n as f64;
            points.entry(c.way.clone()).or_default().push((n, c.ttft_ms));
            if c.way == "runahead, searched" {
                calculated.entry("as expected of the searched cut".to_owned()).or_default().push((n, c.predicted_ms));
            }
        }
        let counts: BTreeSet<usize> = cells.iter().filter(here).map(|c| c.n).collect();
        for n in counts {
            if let Some(ms) = bound_ms(out, shape, n, prompt as usize)? {
                calculated.entry("bound: transfers free".to_owned()).or_default().push((n as f64, ms));
            }
        }
        // All ways are one on one adapter.
        let all = points.values_mut().chain(calculated.values_mut().filter(|line| line.iter().all(|p| p.0 > 1.0)));
        all.for_each(|line| line.extend(alone.map(|ms| (1.0, ms))));
        let title = format!("{shape}, {prompt} tokens, {network}, link {link}");
        plots.push(Panel { title, series: series(points), calculated: series(calculated) });
    }
    Ok(plots)
}

/// What the simulator expects of the best cut with transfers free, from a calibration's costs.
fn bound_ms(out: &Path, shape: &str, n: usize, prompt: usize) -> Result<Option<f64>> {
    let file = out.join(format!("calibration-{shape}-{n}.json"));
    if !file.exists() {
        return Ok(None);
    }
    let calibration: Value = serde_json::from_slice(&std::fs::read(file)?)?;
    let Some(table) = table_file(out, &calibration).filter(|table| table.exists()) else { return Ok(None) };
    let table: Value = serde_json::from_slice(&std::fs::read(table)?)?;
    let mut costs: CostModel = serde_json::from_value(table["costs"].clone())?;
    costs.hub = None;
    for adapter in &mut costs.adapters {
        (adapter.down, adapter.up, adapter.queue) = (Lane::default(), Lane::default(), None);
    }
    let n_layers = shapes::shape(shape)?.n_layers;
    Ok(Some(1e3 * search_simulated(Mode::Runahead, &costs, 0, prompt, n_layers)?.seconds))
}
