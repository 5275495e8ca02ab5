//! A Vulkan device as we opened it, with what it has beyond wgpu's, and buffers on it which wgpu did not make.

use std::sync::Arc;

use ash::vk;
use wgpu::hal::api::Vulkan;

use super::Refusal;
use super::transfer::Lanes;
use crate::gpu::{Opening, Transfers};

/// Queues for copies: `indices` of them for the way to the host and for the way back, which may be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queues {
    pub family: u32,
    pub indices: [u32; 2],
}

impl Queues {
    /// One past the last index.
    pub fn end(self) -> u32 {
        self.indices[0].max(self.indices[1]) + 1
    }
}

/// A buffer in memory of its own, by Vulkan's names. It is shared with the wgpu buffer made of it, and goes with the later of the two: wgpu lets go of
/// its buffers at once when it takes a device for lost, whoever still copies to them.
pub struct Handles {
    /// Its device, which lives as long as the wgpu buffer: the holder of both drops this first.
    raw: Arc<ash::Device>,
    pub buffer: vk::Buffer,
    pub memory: vk::DeviceMemory,
    /// Size of the memory: at least the buffer's.
    #[cfg(feature = "cuda")]
    pub memory_bytes: u64,
}

impl Drop for Handles {
    fn drop(&mut self) {
        // SAFETY: both were made on this device, which lives; wgpu has let go of the buffer, and every copy holds what it copies.
        unsafe {
            self.raw.destroy_buffer(self.buffer, None);
            self.raw.free_memory(self.memory, None);
        }
    }
}

/// See the module's text.
pub struct Shared {
    pub(super) raw: Arc<ash::Device>,
    memory: vk::PhysicalDeviceMemoryProperties,
    pub(super) lanes: Option<Lanes>,
    /// Whether copies go through wgpu's own queue.
    on_compute_queue: bool,
    /// Families that use the buffers, where they are several.
    families: Vec<u32>,
    /// Whether other APIs may import the buffers' memory.
    export: bool,
    /// Keeps the raw device alive; dropped after everything that was made on it.
    pub(super) device: wgpu::Device,
}

impl Shared {
    /// `None` where the device is not Vulkan's.
    pub(super) fn new(device: &wgpu::Device, queues: Option<Queues>, export: bool) -> Option<Self> {
        // SAFETY: nothing is destroyed through this handle, which lives only for this call.
        let hal = unsafe { device.as_hal::<Vulkan>() }?;
        let instance = hal.shared_instance().raw_instance();
        // SAFETY: the physical device belongs to this instance, which the device keeps alive.
        let memory = unsafe { instance.get_physical_device_memory_properties(hal.raw_physical_device()) };
        let own = (hal.queue_family_index(), hal.queue_index());
        let families = queues.filter(|q| q.family != own.0).map_or(Vec::new(), |q| vec![own.0, q.family]);
        let raw = hal.raw_device().clone();
        let lanes = queues.map(|q| Lanes::new(instance, hal.raw_physical_device(), &raw, q));
        let on_compute_queue = queues.is_some_and(|q| q.family == own.0 && q.indices.contains(&own.1));
        Some(Self { raw: Arc::new(raw), memory, lanes, on_compute_queue, families, export, device: device.clone() })
    }

    /// What there is.
    pub fn opening(&self) -> Opening {
        let transfers = match &self.lanes {
            Some(lanes) if lanes.usable() => {
                if self.on_compute_queue {
                    Transfers::Anywhere
                } else {
                    Transfers::Beside
                }
            }
            _ => Transfers::None,
        };
        Opening { transfers, export: self.export }
    }

    /// Whether copies are submissions to wgpu's queue.
    pub fn on_compute_queue(&self) -> bool {
        self.on_compute_queue
    }

    /// A buffer in device memory of its own, which the queues for copies use without any change of ownership, and whose memory can be exported
    /// where the device was opened for that. Its bytes are whatever they were: the caller clears it.
    pub fn buffer(
        self: &Arc<Self>,
        label: &str,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<(wgpu::Buffer, Arc<Handles>), Refusal> {
        let handles = Arc::new(self.allocate(bytes, usage).map_err(|e| match e {
            vk::Result::ERROR_OUT_OF_DEVICE_MEMORY
            | vk::Result::ERROR_OUT_OF_HOST_MEMORY
            | vk::Result::ERROR_TOO_MANY_OBJECTS => Refusal::Memory,
            e => Refusal::Driver(format!("`{label}`: {e}")),
        })?);
        let until_wgpu_is_done = Arc::clone(&handles);
        let let_go = Box::new(move || drop(until_wgpu_is_done));
        // SAFETY: the buffer was made on this device, bound to memory from offset 0 on, and lives until wgpu calls back; it is never mapped.
        let hal = unsafe { wgpu::hal::vulkan::Buffer::from_raw_externally_owned(handles.buffer, let_go) };
        let desc = wgpu::BufferDescriptor { label: Some(label), size: bytes, usage, mapped_at_creation: false };
        // SAFETY: the buffer has the size and usage of the descriptor, is not empty, and the caller clears it before anybody reads it.
        Ok((unsafe { self.device.create_buffer_from_hal::<Vulkan>(hal, &desc) }, handles))
    }

    fn allocate(&self, bytes: u64, usage: wgpu::BufferUsages) -> Result<Handles, vk::Result> {
        let kind = vk::ExternalMemoryHandleTypeFlags::OPAQUE_FD;
        let mut external = vk::ExternalMemoryBufferCreateInfo::default().handle_types(kind);
        let mut info = vk::BufferCreateInfo::default().size(bytes).usage(buffer_usage(usage));
        if !self.families.is_empty() {
            info = info.sharing_mode(vk::SharingMode::CONCURRENT).queue_family_indices(&self.families);
        }
        if self.export {
            info = info.push_next(&mut external);
        }
        // SAFETY: the structure is complete, and its families are of this device.
        let buffer = unsafe { self.raw.create_buffer(&info, None) }?;
        self.bind(buffer, kind).inspect_err(|_| {
            // SAFETY: nobody but this function knows the buffer.
            unsafe { self.raw.destroy_buffer(buffer, None) };
        })
    }

    /// Device memory for `buffer` alone.
    fn bind(&self, buffer: vk::Buffer, kind: vk::ExternalMemoryHandleTypeFlags) -> Result<Handles, vk::Result> {
        // SAFETY: the buffer is of this device.
        let needs = unsafe { self.raw.get_buffer_memory_requirements(buffer) };
        let kind_of_memory = self
            .memory_type(needs.memory_type_bits, vk::MemoryPropertyFlags::DEVICE_LOCAL)
            .ok_or(vk::Result::ERROR_OUT_OF_DEVICE_MEMORY)?;
        let mut dedicated = vk::MemoryDedicatedAllocateInfo::default().buffer(buffer);
        let mut export = vk::ExportMemoryAllocateInfo::default().handle_types(kind);
        let mut info = vk::MemoryAllocateInfo::default()
            .allocation_size(needs.size)
            .memory_type_index(kind_of_memory)
            .push_next(&mut dedicated);
        if self.export {
            info = info.push_next(&mut export);
        }
        // SAFETY: the size is what the buffer needs and the type is among those that it takes; what is chained outlives the call.
        let memory = unsafe { self.raw.allocate_memory(&info, None) }?;
        // SAFETY: both are of this device and unbound; the memory is as large as the buffer needs it.
        match unsafe { self.raw.bind_buffer_memory(buffer, memory, 0) } {
            Ok(()) => Ok(Handles {
                raw: Arc::clone(&self.raw),
                buffer,
                memory,
                #[cfg(feature = "cuda")]
                memory_bytes: needs.size,
            }),
            Err(e) => {
                // SAFETY: nobody but this function knows the memory, and the buffer was not bound to it.
                unsafe { self.raw.free_memory(memory, None) };
                Err(e)
            }
        }
    }

    /// The first memory type among `bits` that has `properties`; drivers list the faster of equal ones first. Types with properties that not
    /// every driver knows are left out, since their use has conditions.
    pub(super) fn memory_type(&self, bits: u32, properties: vk::MemoryPropertyFlags) -> Option<u32> {
        let known = vk::MemoryPropertyFlags::DEVICE_LOCAL
            | vk::MemoryPropertyFlags::HOST_VISIBLE
            | vk::MemoryPropertyFlags::HOST_COHERENT
            | vk::MemoryPropertyFlags::HOST_CACHED;
        let suits = |flags: vk::MemoryPropertyFlags| flags.contains(properties) && known.contains(flags);
        let types = self.memory.memory_types.iter().take(self.memory.memory_type_count as usize);
        types.zip(0u32..).find(|(t, i)| bits & (1 << i) != 0 && suits(t.property_flags)).map(|(_, i)| i)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(lanes) = &self.lanes {
            lanes.destroy(&self.raw);
        }
    }
}

/// What wgpu would ask for in buffers that it makes with these usages.
fn buffer_usage(usage: wgpu::BufferUsages) -> vk::BufferUsageFlags {
    let pairs = [
        (wgpu::BufferUsages::STORAGE, vk::BufferUsageFlags::STORAGE_BUFFER),
        (wgpu::BufferUsages::COPY_SRC, vk::BufferUsageFlags::TRANSFER_SRC),
        (wgpu::BufferUsages::COPY_DST, vk::BufferUsageFlags::TRANSFER_DST),
    ];
    let asked = pairs.into_iter().filter(|(wgpu, _)| usage.contains(*wgpu));
    asked.fold(vk::BufferUsageFlags::empty(), |all, (_, flag)| all | flag)
}
