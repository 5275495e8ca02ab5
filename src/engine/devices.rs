//! The adapters of this machine: GPUs by index, and the CPU.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::gpu::{self, GpuAdapter, GpuKind};
use crate::kernels::cpu::{Cpu, Level};
use crate::kernels::wgsl::Wgsl;

/// How an adapter is named: a GPU's index in [`devices`], or `cpu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceId {
    /// A GPU (or a software one) by index.
    Gpu(usize),
    /// The machine's CPU.
    Cpu,
}

impl FromStr for DeviceId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.trim() {
            "cpu" => Ok(DeviceId::Cpu),
            other => other
                .parse()
                .map(DeviceId::Gpu)
                .map_err(|_| Error::NoAdapter { name: other.to_owned(), available: "an index or `cpu`".to_owned() }),
        }
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceId::Gpu(index) => write!(f, "{index}"),
            DeviceId::Cpu => f.write_str("cpu"),
        }
    }
}

/// What an adapter is.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// How it is named.
    pub id: DeviceId,
    /// The driver's name for it.
    pub name: String,
    /// `vulkan`, `metal`, `dx12` or `native`.
    pub backend: String,
    /// Driver and version.
    pub driver: String,
    /// PCI bus id, where there is one.
    pub pci: Option<String>,
    /// `discrete`, `integrated`, `virtual`, `software`, `cpu` or `other`.
    pub kind: &'static str,
    /// What its hardware allows: `base`, `f16`, `subgroup`, `coop`; the CPU's SIMD level for the CPU.
    pub tier: String,
    /// Rows of the tiles of long products ([`Kernels::tile_rows`](crate::kernels::Kernels::tile_rows)).
    pub tile_rows: usize,
    /// Memory in bytes, where the system tells.
    pub memory_bytes: Option<u64>,
    /// Largest buffer in bytes.
    pub max_buffer_bytes: Option<u64>,
    /// Largest part of a buffer that a kernel sees, in bytes.
    pub max_binding_bytes: Option<u64>,
    /// Workgroup memory in bytes.
    pub workgroup_memory_bytes: Option<u64>,
}

/// Every adapter of the machine: GPUs first, in the order of their indices, the CPU last.
pub fn devices() -> Vec<DeviceInfo> {
    let gpus = gpu::enumerate();
    gpus.iter().enumerate().map(|(i, g)| gpu_info(i, g)).chain([cpu_info()]).collect()
}

/// What a chain takes when nobody chose: every real GPU, else the CPU. Software GPUs are used only when named.
pub fn default_devices(devices: &[DeviceInfo]) -> Vec<DeviceId> {
    let real = |d: &&DeviceInfo| matches!(d.kind, "discrete" | "integrated" | "virtual" | "other");
    let gpus: Vec<DeviceId> = devices.iter().filter(real).map(|d| d.id).collect();
    if gpus.is_empty() { vec![DeviceId::Cpu] } else { gpus }
}

fn gpu_info(index: usize, adapter: &GpuAdapter) -> DeviceInfo {
    let info = adapter.info();
    let caps = &info.caps;
    let lowered = caps.lowered_by_environment();
    let used = lowered.as_ref().unwrap_or(caps);
    DeviceInfo {
        id: DeviceId::Gpu(index),
        name: info.name.clone(),
        backend: info.backend.to_owned(),
        driver: info.driver.clone(),
        pci: info.pci.clone(),
        kind: match info.kind {
            GpuKind::Discrete => "discrete",
            GpuKind::Integrated => "integrated",
            GpuKind::Virtual => "virtual",
            GpuKind::Software => "software",
            GpuKind::Other => "other",
        },
        tier: used.tier.name().to_owned(),
        tile_rows: Wgsl::tile_rows_of(used),
        memory_bytes: info.memory_bytes,
        max_buffer_bytes: Some(caps.max_buffer_bytes),
        max_binding_bytes: Some(caps.max_binding_bytes),
        workgroup_memory_bytes: Some(u64::from(caps.workgroup_memory_bytes)),
    }
}

fn cpu_info() -> DeviceInfo {
    DeviceInfo {
        id: DeviceId::Cpu,
        name: "cpu".to_owned(),
        backend: "native".to_owned(),
        driver: format!("{} threads", Cpu::default_threads()),
        pci: None,
        kind: "cpu",
        tier: Level::best().name().to_owned(),
        tile_rows: 1,
        memory_bytes: Cpu::memory_bytes(),
        max_buffer_bytes: None,
        max_binding_bytes: None,
        workgroup_memory_bytes: None,
    }
}
