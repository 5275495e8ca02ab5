//! Where tables of cuts are kept, and what they hold for: this machine, its adapters, a model.

use std::path::PathBuf;

use runahead::dtype::KvDtype;
use runahead::engine::{self, DeviceInfo, Gemm};
use runahead::runahead::cost::Shape;
use runahead::runahead::table::Fingerprint;

use super::Outline;
use crate::cli::failure::Failure;
use crate::cli::pull::cache::Cache;

/// Where tables are kept.
pub fn tables_folder() -> Result<PathBuf, Failure> {
    Ok(Cache::find()?.join("tables"))
}

/// What a table holds for.
pub fn fingerprint(outline: &Outline, infos: &[DeviceInfo], kv: KvDtype, gemm: Gemm) -> Fingerprint {
    let products = |d: &DeviceInfo| match engine::cuda() {
        Some(Ok(versions)) if gemm != Gemm::Wgsl && d.driver.starts_with("NVIDIA") => format!(" {versions}"),
        _ => String::new(),
    };
    let config = &outline.config;
    let machine = [std::env::consts::OS.to_owned(), std::env::consts::ARCH.to_owned(), host_name(), processor()];
    Fingerprint {
        machine: machine.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" "),
        adapters: infos.iter().map(|d| [&d.name, d.pci.as_deref().unwrap_or("")].join(" ").trim().to_owned()).collect(),
        drivers: infos.iter().map(|d| format!("{} {} {}{}", d.backend, d.driver, d.tier, products(d))).collect(),
        model: format!("{} {:?}", config.architecture, Shape::of(config)),
        // Formats differ from tensor to tensor: the sum of their sizes tells one mixture from another, and the main one those of equal sizes.
        weights: match outline.weights_dtype {
            Some(dtype) => format!("{} bytes, {dtype:?}", outline.weights_bytes),
            None => format!("{} bytes", outline.weights_bytes),
        },
        kv: format!("{kv:?}"),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// The machine's name where the system has it at hand; else nothing, and the other parts must do.
fn host_name() -> String {
    let file = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    file.or_else(|| std::env::var("COMPUTERNAME").ok()).unwrap_or_default().trim().to_owned()
}

fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{} {threads} threads", model.unwrap_or("")).trim().to_owned()
}
