//! `runahead devices`: the adapters of this machine, as a table or as JSON.

use runahead::engine::{self, CudaVersions, DeviceId, DeviceInfo};
use serde::Serialize;

use super::failure::Failure;
use super::output;

/// Arguments of `devices`.
#[derive(Debug, clap::Args)]
pub struct DevicesArgs {
    /// A JSON array instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &DevicesArgs) -> Result<(), Failure> {
    let devices = engine::devices();
    if args.json {
        let cuda = engine::cuda();
        let entries = devices.iter().map(|device| Entry::new(device, cuda.as_ref())).collect::<Vec<_>>();
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
    cuda: Option<Cuda<'a>>,
}

/// What a GPU has of CUDA, or why it has none.
#[derive(Serialize)]
#[serde(untagged)]
enum Cuda<'a> {
    Versions { version: &'a str, cublaslt: &'a str },
    Reason(&'a str),
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

impl<'a> Cuda<'a> {
    /// `None` for the CPU, and where the program was built without it.
    fn new(device: &DeviceInfo, found: Option<&'a Result<CudaVersions, String>>) -> Option<Self> {
        if device.id == DeviceId::Cpu {
            return None;
        }
        Some(match found? {
            Err(reason) => Cuda::Reason(reason),
            Ok(_) if !device.driver.starts_with("NVIDIA") => Cuda::Reason("not NVIDIA's driver"),
            Ok(CudaVersions { cuda, cublaslt }) => Cuda::Versions { version: cuda, cublaslt },
        })
    }
}

impl<'a> Entry<'a> {
    fn new(device: &'a DeviceInfo, cuda: Option<&'a Result<CudaVersions, String>>) -> Self {
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
            cuda: Cuda::new(device, cuda),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_tells_the_versions_of_cuda_or_why_there_is_none() {
        // The CPU's entry is there on every machine; a GPU's differs in what is set here.
        let cpu = engine::devices().pop().unwrap();
        let mut gpu = cpu.clone();
        gpu.id = DeviceId::Gpu(0);
        gpu.driver = "NVIDIA 580.95".to_owned();
        let mut other = gpu.clone();
        other.driver = "Mesa 25.0".to_owned();
        let versions = Ok(CudaVersions { cuda: "13.0".to_owned(), cublaslt: "13.1".to_owned() });
        let reason = Err("CUDA: no driver on this machine".to_owned());
        let json = |device: &DeviceInfo, found| {
            let entry = serde_json::to_value(Entry::new(device, found)).unwrap();
            entry.get("cuda").unwrap().clone()
        };
        assert_eq!(json(&gpu, Some(&versions)), serde_json::json!({ "version": "13.0", "cublaslt": "13.1" }));
        assert_eq!(json(&gpu, Some(&reason)), "CUDA: no driver on this machine");
        assert_eq!(json(&other, Some(&versions)), "not NVIDIA's driver");
        assert!(json(&gpu, None).is_null() && json(&cpu, Some(&versions)).is_null());
    }
}
