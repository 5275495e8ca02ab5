//! The GPUs of this machine: found, described, opened.

use std::sync::OnceLock;

use super::caps::Caps;
use super::device::Gpu;
use super::info::{GpuInfo, GpuKind, Opening};
use super::native;
use crate::error::Result;

/// An adapter that can be opened, any number of times.
#[derive(Clone, Debug)]
pub struct GpuAdapter {
    info: GpuInfo,
    raw: wgpu::Adapter,
}

impl GpuAdapter {
    /// What is known of it.
    pub fn info(&self) -> &GpuInfo {
        &self.info
    }

    /// A device of its own: memory and queue are not shared with other devices of this adapter.
    ///
    /// Reads the environment variable `RUNAHEAD_TIER` (base, f16, subgroup, coop), which lowers the tier.
    ///
    /// Errors: [`Error::Unsupported`](crate::Error::Unsupported) where that variable names no tier,
    /// [`Error::Adapter`](crate::Error::Adapter) where the driver refuses.
    pub fn open(&self) -> Result<Gpu> {
        self.open_with(Opening::default())
    }

    /// As [`open`](Self::open), with more than a compute queue where the driver has it; [`Gpu::opened_with`] says what there is.
    pub fn open_with(&self, opening: Opening) -> Result<Gpu> {
        let caps = self.info.caps.lowered_by_environment()?;
        Gpu::open(&self.raw, GpuInfo { caps, ..self.info.clone() }, opening)
    }
}

/// All GPUs: discrete ones first, then integrated, virtual, unknown and software ones; by PCI id and name within these.
///
/// An adapter that shows up under two APIs is listed once, under Vulkan, else Metal, else DX12. Without any driver the list is empty.
pub fn enumerate() -> Vec<GpuAdapter> {
    let drivers = DRIVERS.get_or_init(drivers);
    let found = pollster::block_on(drivers.enumerate_adapters(wgpu::Backends::all()));
    let usable = |adapter: &wgpu::Adapter| {
        let computes = wgpu::DownlevelFlags::COMPUTE_SHADERS;
        adapter.get_downlevel_capabilities().flags.contains(computes)
    };
    let found = found.into_iter().filter(usable).map(|adapter| (adapter.get_info(), adapter)).collect::<Vec<_>>();
    let ids = found.iter().map(|(info, _)| Identity::of(info)).collect::<Vec<_>>();
    let mut adapters = distinct(&ids).into_iter().map(|i| describe(&found[i].0, &found[i].1)).collect::<Vec<_>>();
    adapters.sort_by(|a, b| {
        let key = |g: &'_ GpuAdapter| (g.info.kind, g.info.pci.clone(), g.info.name.clone());
        key(a).cmp(&key(b))
    });
    adapters
}

/// The machine's drivers: loaded once, and not unloaded before the process ends. NVIDIA's Vulkan driver on Linux crashes or hangs where one thread
/// loads it while another unloads it or loads it too (gfx-rs/wgpu#5930), as happens where engines come and go on several threads. And
/// beside CUDA's, which is never unloaded, it could not be loaded a second time: both have thread-local storage of the kind that a process has
/// little of and gets back in reverse order only.
static DRIVERS: OnceLock<wgpu::Instance> = OnceLock::new();

fn drivers() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12,
        // No validation layers and no debug messages: they would print.
        flags: wgpu::InstanceFlags::empty(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    })
}

fn describe(info: &wgpu::AdapterInfo, raw: &wgpu::Adapter) -> GpuAdapter {
    let kind = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => GpuKind::Discrete,
        wgpu::DeviceType::IntegratedGpu => GpuKind::Integrated,
        wgpu::DeviceType::VirtualGpu => GpuKind::Virtual,
        wgpu::DeviceType::Cpu => GpuKind::Software,
        wgpu::DeviceType::Other => GpuKind::Other,
    };
    let driver = [&info.driver, &info.driver_info].map(|s| s.trim());
    let info = GpuInfo {
        name: info.name.clone(),
        backend: backend_name(info.backend),
        driver: driver.join(" ").trim().to_owned(),
        pci: Some(info.device_pci_bus_id.clone()).filter(|pci| !pci.is_empty()),
        kind,
        caps: Caps::of(raw),
        memory_bytes: native::adapter_memory(raw),
    };
    GpuAdapter { info, raw: raw.clone() }
}

const fn backend_name(backend: wgpu::Backend) -> &'static str {
    match backend {
        wgpu::Backend::Vulkan => "vulkan",
        wgpu::Backend::Metal => "metal",
        wgpu::Backend::Dx12 => "dx12",
        _ => "other",
    }
}

/// What tells whether two entries are one physical adapter.
#[derive(Clone, Debug)]
struct Identity {
    /// 0 for the API that we prefer.
    rank: usize,
    pci: String,
    name: String,
    vendor: u32,
    device: u32,
}

impl Identity {
    fn of(info: &wgpu::AdapterInfo) -> Self {
        let preferred = [wgpu::Backend::Vulkan, wgpu::Backend::Metal, wgpu::Backend::Dx12];
        Self {
            rank: preferred.iter().position(|b| *b == info.backend).unwrap_or(preferred.len()),
            pci: info.device_pci_bus_id.clone(),
            name: info.name.clone(),
            vendor: info.vendor,
            device: info.device,
        }
    }

    /// By PCI id where both have one. Else by name and ids, and then only across APIs: equal cards look alike within one.
    fn same_adapter(&self, other: &Self) -> bool {
        if !self.pci.is_empty() && !other.pci.is_empty() {
            return self.pci == other.pci;
        }
        let ids = |i: &Self| (i.vendor, i.device, i.name.clone());
        self.rank != other.rank && ids(self) == ids(other)
    }
}

/// Indices of the entries that remain when each physical adapter is kept under its preferred API.
fn distinct(ids: &[Identity]) -> Vec<usize> {
    let mut order = (0..ids.len()).collect::<Vec<_>>();
    order.sort_by_key(|&i| ids[i].rank);
    let mut kept = Vec::<usize>::new();
    for i in order {
        if !kept.iter().any(|&k| ids[k].same_adapter(&ids[i])) {
            kept.push(i);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(rank: usize, pci: &str, name: &str) -> Identity {
        Identity { rank, pci: pci.to_owned(), name: name.to_owned(), vendor: 0x10de, device: 1 }
    }

    #[test]
    fn an_adapter_under_two_apis_is_kept_once() {
        let (vulkan, dx12) = (0, 2);
        let ids = [
            identity(dx12, "0000:01:00.0", "A"),
            identity(vulkan, "0000:01:00.0", "A (driver's own name)"),
            identity(vulkan, "0000:02:00.0", "A"),
            identity(dx12, "", "A"),
            identity(dx12, "", "B"),
        ];
        assert_eq!(distinct(&ids), [1, 2, 4]);
    }

    #[test]
    fn equal_cards_without_pci_ids_are_two() {
        let ids = [identity(0, "", "A"), identity(0, "", "A"), identity(1, "", "A")];
        assert_eq!(distinct(&ids), [0, 1]);
        assert!(distinct(&[]).is_empty());
    }
}
