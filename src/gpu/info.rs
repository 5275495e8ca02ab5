//! What is known of an adapter, and what may be asked of it when it is opened.

use super::caps::Caps;

/// What kind of device an adapter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GpuKind {
    /// A card with memory of its own.
    Discrete,
    /// Shares the host's memory.
    Integrated,
    /// Lent to a virtual machine.
    Virtual,
    /// The driver does not tell.
    Other,
    /// Runs on the CPU (llvmpipe, WARP).
    Software,
}

impl GpuKind {
    /// The name that users see.
    pub const fn name(self) -> &'static str {
        match self {
            GpuKind::Discrete => "discrete",
            GpuKind::Integrated => "integrated",
            GpuKind::Virtual => "virtual",
            GpuKind::Other => "other",
            GpuKind::Software => "software",
        }
    }
}

/// What is known of an adapter before it is opened.
#[derive(Clone, Debug)]
pub struct GpuInfo {
    /// As the driver calls it.
    pub name: String,
    /// "vulkan", "metal" or "dx12".
    pub backend: &'static str,
    /// The driver and its version, where they are told.
    pub driver: String,
    /// `domain:bus:device.function`, where the driver tells.
    pub pci: Option<String>,
    /// What kind of device it is.
    pub kind: GpuKind,
    /// What it can do. Of an opened device: what its shaders may use.
    pub caps: Caps,
    /// Memory of its own (of a software adapter, the host's), where the driver tells.
    pub memory_bytes: Option<u64>,
}

/// What a device is opened with beyond its compute queue, as far as its driver has it. The default asks for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opening {
    /// Copies between [shared buffers](super::Gpu::shared_buffer) and host memory beside the compute queue.
    pub transfers: Transfers,
    /// Memory of shared buffers that other APIs of the same process can import.
    pub export: bool,
}

/// Where a device may run copies to and from [`HostMemory`](super::HostMemory).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transfers {
    /// Nowhere.
    #[default]
    None,
    /// On queues beside the one that computes, where it has them.
    Beside,
    /// There, or on the compute queue itself, where they wait for the work in front of them.
    Anywhere,
}
