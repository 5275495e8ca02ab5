//! `runahead devices`: the adapters of this machine, as a table or as JSON.

use runahead::engine::{self, DeviceId, DeviceInfo};
use serde::Serialize;

use super::args::DevicesArgs;
use super::failure::Failure;
use super::output;

/// Runs the command.
pub fn run(args: &DevicesArgs) -> Result<(), Failure> {
    let devices = engine::devices();
    if args.json {
        let entries = devices.iter().map(Entry::new).collect::<Vec<_>>();
        output::json_pretty(&entries)
    } else {
        output::print(&(table(&devices) + &cuda()))
    }
}

/// What a build with CUDA found of it.
fn cuda() -> String {
    match engine::cuda() {
        Some(Ok(versions)) => format!("\n{versions}\n"),
        Some(Err(reason)) => format!("\n{reason}; prefill is WGSL's everywhere\n"),
        None => String::new(),
    }
}

/// One adapter in JSON. Names and order of the keys are a contract: other programs read them, some of them line by line.
#[derive(Serialize)]
struct Entry<'a> {
    index: Index,
    name: &'a str,
    backend: &'a str,
    driver: &'a str,
    pci: Option<&'a str>,
    r#type: &'a str,
    tier: &'a str,
    memory_bytes: Option<u64>,
    limits: Limits,
}

/// What `--devices` takes: a number, or "cpu".
#[derive(Serialize)]
#[serde(untagged)]
enum Index {
    Number(usize),
    Name(&'static str),
}

#[derive(Serialize)]
struct Limits {
    max_buffer_bytes: Option<u64>,
    max_binding_bytes: Option<u64>,
    workgroup_memory_bytes: Option<u64>,
}

impl<'a> Entry<'a> {
    fn new(device: &'a DeviceInfo) -> Self {
        Self {
            index: match device.id {
                DeviceId::Gpu(index) => Index::Number(index),
                DeviceId::Cpu => Index::Name("cpu"),
            },
            name: &device.name,
            backend: &device.backend,
            driver: &device.driver,
            pci: device.pci.as_deref(),
            r#type: device.kind,
            tier: &device.tier,
            memory_bytes: device.memory_bytes,
            limits: Limits {
                max_buffer_bytes: device.max_buffer_bytes,
                max_binding_bytes: device.max_binding_bytes,
                workgroup_memory_bytes: device.workgroup_memory_bytes,
            },
        }
    }
}

const HEADINGS: [&str; 11] =
    ["INDEX", "NAME", "BACKEND", "TYPE", "TIER", "MEMORY", "BUFFER", "BINDING", "WORKGROUP", "PCI", "DRIVER"];

/// Left-aligned columns; the last one, which is long, is not padded.
fn table(devices: &[DeviceInfo]) -> String {
    let rows = devices.iter().map(row).collect::<Vec<_>>();
    let headings = HEADINGS.map(str::to_owned);
    let lines = std::iter::once(&headings).chain(&rows);
    let width = |column: usize| lines.clone().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths = std::array::from_fn::<usize, { HEADINGS.len() }, _>(width);
    let mut text = String::new();
    for line in lines.clone() {
        let cells = line.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect::<Vec<_>>();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn row(device: &DeviceInfo) -> [String; HEADINGS.len()] {
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), output::bytes);
    [
        device.id.to_string(),
        device.name.clone(),
        device.backend.clone(),
        device.kind.to_owned(),
        device.tier.clone(),
        size(device.memory_bytes),
        size(device.max_buffer_bytes),
        size(device.max_binding_bytes),
        size(device.workgroup_memory_bytes),
        device.pci.clone().unwrap_or_else(|| "-".to_owned()),
        device.driver.clone(),
    ]
}
