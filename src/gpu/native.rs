//! Every unsafe call into wgpu and the APIs below it.

#![allow(unsafe_code)]

#[cfg(target_vendor = "apple")]
mod absent;
mod copy;
#[cfg(feature = "cuda")]
mod exported;
mod host;
#[cfg(not(target_vendor = "apple"))]
mod opening;
#[cfg(not(target_vendor = "apple"))]
mod shared;
#[cfg(not(target_vendor = "apple"))]
mod transfer;

#[cfg(target_vendor = "apple")]
pub(super) use absent::{Handles, Pending, Shared, open};
pub use copy::copy_bytes;
pub(super) use copy::copy_to;
#[cfg(feature = "cuda")]
pub(super) use exported::Timeline;
pub use host::HostMemory;
#[cfg(not(target_vendor = "apple"))]
pub(super) use opening::open;
#[cfg(not(target_vendor = "apple"))]
pub(super) use shared::{Handles, Shared};
#[cfg(not(target_vendor = "apple"))]
pub(super) use transfer::Pending;

/// A device that was opened here.
pub(super) struct Opened {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub shared: std::sync::Arc<Shared>,
}

/// Why the driver made no buffer.
pub(super) enum Refusal {
    /// There is no memory for it.
    Memory,
    /// Anything else.
    Driver(String),
}

/// A copy between shared buffers and host memory.
pub(super) struct CopyJob<'a> {
    /// The way.
    pub to_host: bool,
    /// Each inside its buffer and its memory, and not empty.
    pub parts: &'a [CopyPart<'a>],
    /// The buffers, which must not be freed before the copy is over.
    pub keep: Vec<super::Buffer>,
}

/// Bytes of a buffer and their place in host memory.
pub(super) struct CopyPart<'a> {
    pub handles: &'a Handles,
    pub offset: u64,
    pub memory: &'a HostMemory,
    pub host_offset: u64,
    pub bytes: u64,
}

/// Why a copy did not take place, or not in time.
pub(super) enum Fault {
    /// The driver does not take the memory; nothing was copied.
    Refused,
    /// Cancelled, or past its limit.
    Waiting(crate::Error),
    /// The device is lost.
    Lost(String),
    /// Anything else.
    Driver(String),
}

/// Permission for cooperative matrices, where they are asked for.
pub(super) fn experimental_features(features: wgpu::Features) -> wgpu::ExperimentalFeatures {
    if !features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        return wgpu::ExperimentalFeatures::disabled();
    }
    // SAFETY: the one experimental feature that is ever requested is cooperative matrices. Their loads and stores are bounds-checked at the first
    // element only; the layer above pads every buffer that they touch to whole tiles.
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}

/// A shader module without bounds checks and loop bounds: 10 to 25 % faster for a matrix product.
pub(super) fn trusted_module(device: &wgpu::Device, desc: wgpu::ShaderModuleDescriptor<'_>) -> wgpu::ShaderModule {
    // SAFETY: only for shaders of this crate whose `ShaderSpec::checked` is false: their loops end and their indices follow from parameters which
    // the host has checked against the buffers. The drivers' robust buffer access stays on besides.
    unsafe { device.create_shader_module_trusted(desc, wgpu::ShaderRuntimeChecks::unchecked()) }
}

/// A driver's cache of compiled pipelines, beginning with what an earlier one held.
pub(super) fn pipeline_cache(device: &wgpu::Device, data: Option<&[u8]>) -> wgpu::PipelineCache {
    let desc = wgpu::PipelineCacheDescriptor { label: Some("pipelines"), data, fallback: true };
    // SAFETY: the data are those of `PipelineCache::get_data`, whole: the layer above seals them with a checksum; wgpu compares device, driver and
    // its own version, and leaves them out where one differs. The file lies in a folder of the user's own, like the program itself.
    unsafe { device.create_pipeline_cache(&desc) }
}

/// Bytes of an adapter's device-local memory, where its API tells.
pub(super) fn adapter_memory(adapter: &wgpu::Adapter) -> Option<u64> {
    vulkan::adapter_memory(adapter)
}

/// Bytes that a device's adapter can still give to this process, where its API tells.
pub(super) fn free_memory(device: &wgpu::Device) -> Option<u64> {
    vulkan::free_memory(device)
}

#[cfg(not(target_vendor = "apple"))]
mod vulkan {
    use wgpu::hal::api::Vulkan;

    /// `VK_EXT_memory_budget` and its structure (Vulkan 1.3, VkPhysicalDeviceMemoryBudgetPropertiesEXT), written out here since wgpu does not
    /// hand its Vulkan bindings on.
    const MEMORY_BUDGET: &std::ffi::CStr = c"VK_EXT_memory_budget";
    const MEMORY_BUDGET_PROPERTIES: i32 = 1_000_237_000;
    const MAX_HEAPS: usize = 16;
    const HEAP_DEVICE_LOCAL: u32 = 1;

    #[repr(C)]
    struct MemoryBudget {
        structure_type: i32,
        next: *mut std::ffi::c_void,
        budget: [u64; MAX_HEAPS],
        usage: [u64; MAX_HEAPS],
    }

    pub fn adapter_memory(adapter: &wgpu::Adapter) -> Option<u64> {
        // SAFETY: nothing is destroyed through this handle, which lives only for this call.
        let hal = unsafe { adapter.as_hal::<Vulkan>() }?;
        // SAFETY: the physical device belongs to this instance, and the adapter keeps the instance alive.
        let memory = unsafe {
            hal.shared_instance().raw_instance().get_physical_device_memory_properties(hal.raw_physical_device())
        };
        let heaps = memory.memory_heaps.iter().take(memory.memory_heap_count as usize);
        Some(heaps.filter(|heap| heap.flags.as_raw() & HEAP_DEVICE_LOCAL != 0).map(|heap| heap.size).sum())
    }

    pub fn free_memory(device: &wgpu::Device) -> Option<u64> {
        // SAFETY: nothing is destroyed through this handle, which lives only for this call.
        let hal = unsafe { device.as_hal::<Vulkan>() }?;
        // wgpu enables the extension wherever it is there, and with it Vulkan 1.1 or the instance extension that it needs.
        let instance = hal.shared_instance();
        let version_1_1 = (1 << 22) | (1 << 12);
        if !hal.enabled_device_extensions().contains(&MEMORY_BUDGET) || instance.instance_api_version() < version_1_1 {
            return None;
        }
        let mut budget = MemoryBudget {
            structure_type: MEMORY_BUDGET_PROPERTIES,
            next: std::ptr::null_mut(),
            budget: [0; MAX_HEAPS],
            usage: [0; MAX_HEAPS],
        };
        let heaps = {
            // The type is inferred: `VkPhysicalDeviceMemoryProperties2` with its structure type set.
            let mut memory = Default::default();
            let query = |memory: &mut _| {
                // SAFETY: the physical device belongs to this instance, which the device keeps alive; the instance is of version 1.1 or later; what is
                // chained outlives the call and is writable.
                unsafe {
                    instance.raw_instance().get_physical_device_memory_properties2(hal.raw_physical_device(), memory);
                }
            };
            query(&mut memory);
            memory.p_next = (&raw mut budget).cast();
            // The second query fills the chained structure, which lives until the end of this function.
            query(&mut memory);
            memory.memory_properties
        };
        let free = |i: usize| budget.budget[i].saturating_sub(budget.usage[i]);
        let n_heaps = (heaps.memory_heap_count as usize).min(MAX_HEAPS);
        let local = (0..n_heaps).filter(|&i| heaps.memory_heaps[i].flags.as_raw() & HEAP_DEVICE_LOCAL != 0);
        Some(local.map(free).sum())
    }
}

#[cfg(target_vendor = "apple")]
mod vulkan {
    pub fn adapter_memory(_adapter: &wgpu::Adapter) -> Option<u64> {
        None
    }

    pub fn free_memory(_device: &wgpu::Device) -> Option<u64> {
        None
    }
}
