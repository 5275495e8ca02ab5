//! Copies between shared buffers and host memory on a queue of their own, one call each: recorded, submitted, waited for.
//!
//! Nothing here orders a copy against the compute queue; both ends are the host's to order. It waits for a fence before it submits what must come
//! after, and the fence's wait makes available, the next submission visible, what was written before. The barriers below say the same to the
//! caches of the copying queue and of the host.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ash::vk::Handle;
use ash::{ext, vk};

use super::host::{Import, Region};
use super::shared::{Queues, Shared};
use super::{CopyJob, Fault};
use crate::cancel::{Cancel, Wait};
use crate::gpu::Buffer;

/// How long a copy that was given up may still take. A few hundred megabytes need tens of milliseconds, and on the compute queue there may be
/// work in front of them.
const LAST_CHANCE: Duration = Duration::from_secs(5);

/// What copies need: of a device that was opened with queues for them.
pub(super) struct Lanes {
    /// For the way to the host, and to the device.
    queues: [vk::Queue; 2],
    family: u32,
    /// Held while something is submitted: the two queues may be one.
    submitting: Mutex<()>,
    /// Copies that each queue has still to do.
    under_way: [AtomicUsize; 2],
    idle: Mutex<Vec<Slot>>,
    import: ext::external_memory_host::Device,
    /// Imported memory starts and ends at multiples of this.
    alignment: u64,
    /// Set where the driver would not import memory: it will not be asked again.
    refused: AtomicBool,
    /// Set where a copy did not end: the device is not used for another.
    hung: AtomicBool,
}

/// A command buffer with its pool and fence; nobody uses it while it is idle.
struct Slot {
    pool: vk::CommandPool,
    commands: vk::CommandBuffer,
    fence: vk::Fence,
}

/// A copy that was submitted: until it has ended, what it uses is nobody's else. Dropping it waits for the end.
pub struct Pending {
    shared: Arc<Shared>,
    /// Taken when it is dropped.
    used: Option<(Slot, Vec<Arc<Region>>, Vec<Buffer>)>,
    /// Which queue.
    lane: usize,
}

impl Pending {
    /// Blocks until it has ended. A cancel or a limit that comes meanwhile is told once it has.
    pub fn wait(self, wait: &Wait) -> Result<(), Fault> {
        self.used.as_ref().map_or(Ok(()), |(slot, ..)| self.shared.wait_for(slot, wait))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let (Some((slot, regions, keep)), Some(lanes)) = (self.used.take(), &self.shared.lanes) else { return };
        let chance = Wait { cancel: Cancel::new(), limit: LAST_CHANCE };
        match self.shared.wait_for(&slot, &chance) {
            // What hangs may still write: nothing that it uses is ever freed.
            Err(_) if !self.shared.signalled(&slot) => {
                lanes.hung.store(true, Ordering::Relaxed);
                std::mem::forget((regions, keep));
            }
            _ => lanes.give_back(self.lane, slot),
        }
    }
}

/// Host memory as a buffer of one device.
struct Imported {
    shared: Arc<Shared>,
    buffer: vk::Buffer,
    memory: vk::DeviceMemory,
}

impl Drop for Imported {
    fn drop(&mut self) {
        // SAFETY: both were made on this device; no copy of theirs is under way, since a copy holds the region that holds this.
        unsafe {
            self.shared.raw.destroy_buffer(self.buffer, None);
            self.shared.raw.free_memory(self.memory, None);
        }
    }
}

impl Lanes {
    pub fn new(instance: &ash::Instance, physical: vk::PhysicalDevice, raw: &ash::Device, queues: Queues) -> Self {
        let mut host = vk::PhysicalDeviceExternalMemoryHostPropertiesEXT::default();
        let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut host);
        // SAFETY: the physical device belongs to this instance and is of version 1.1 or later; what is chained outlives the call.
        unsafe { instance.get_physical_device_properties2(physical, &mut properties) };
        // SAFETY: the device was created with these queues.
        let queue = |index| unsafe { raw.get_device_queue(queues.family, index) };
        Self {
            queues: queues.indices.map(queue),
            family: queues.family,
            submitting: Mutex::default(),
            under_way: Default::default(),
            idle: Mutex::default(),
            import: ext::external_memory_host::Device::new(instance, raw),
            alignment: host.min_imported_host_pointer_alignment.max(1),
            refused: AtomicBool::new(false),
            hung: AtomicBool::new(false),
        }
    }

    pub fn usable(&self) -> bool {
        !self.refused.load(Ordering::Relaxed)
    }

    /// The index of the queue for a copy. The way to the device borrows the other queue while that has less to do: there are 20 µs between two copies of
    /// a queue, in which the other one copies.
    fn take(&self, to_host: bool) -> usize {
        let [out, back] = self.under_way.each_ref().map(|n| n.load(Ordering::Relaxed));
        let lane = usize::from(!to_host && back <= out);
        self.under_way[lane].fetch_add(1, Ordering::Relaxed);
        lane
    }

    /// For the next copy, once a queue is done with this one.
    fn give_back(&self, lane: usize, slot: Slot) {
        self.under_way[lane].fetch_sub(1, Ordering::Relaxed);
        lock(&self.idle).push(slot);
    }

    /// Destroys what is idle; at the device's end this is everything.
    pub fn destroy(&self, raw: &ash::Device) {
        for slot in lock(&self.idle).drain(..) {
            // SAFETY: made on this device, and idle: its last submission has ended. The pool takes its command buffer with it.
            unsafe {
                raw.destroy_fence(slot.fence, None);
                raw.destroy_command_pool(slot.pool, None);
            }
        }
    }
}

impl Shared {
    /// Whether a copy did not end: what it uses belongs to nobody any more.
    pub fn hangs(&self) -> bool {
        self.lanes.as_ref().is_some_and(|lanes| lanes.hung.load(Ordering::Relaxed))
    }

    /// Begins a job; `submit_under` is held while it is submitted.
    pub fn begin<G>(self: &Arc<Self>, job: CopyJob<'_>, submit_under: impl FnOnce() -> G) -> Result<Pending, Fault> {
        let Some(lanes) = &self.lanes else { return Err(Fault::Refused) };
        if lanes.hung.load(Ordering::Relaxed) {
            return Err(Fault::Lost("an earlier copy to or from host memory did not end".to_owned()));
        }
        let mut regions = Vec::with_capacity(job.parts.len());
        let mut copies = Vec::with_capacity(job.parts.len());
        for part in job.parts {
            let (region, range) = part.memory.place().ok_or(Fault::Refused)?;
            let host = self.imported(lanes, region).inspect_err(|_| lanes.refused.store(true, Ordering::Relaxed))?;
            let (device, at, host_at) = (part.handles.buffer, part.offset, range.start as u64 + part.host_offset);
            let copy = vk::BufferCopy::default().size(part.bytes);
            copies.push(match job.to_host {
                true => (device, host, copy.src_offset(at).dst_offset(host_at)),
                false => (host, device, copy.src_offset(host_at).dst_offset(at)),
            });
            regions.push(Arc::clone(region));
        }
        let slot = match lock(&lanes.idle).pop() {
            Some(slot) => slot,
            None => self.slot(lanes.family).map_err(fault)?,
        };
        let lane = lanes.take(job.to_host);
        let submitted = self.record(&slot, &copies, job.to_host).and_then(|()| {
            let _turn = submit_under();
            let _submitting = lock(&lanes.submitting);
            let info = [vk::SubmitInfo::default().command_buffers(std::slice::from_ref(&slot.commands))];
            // SAFETY: the commands are recorded and not pending, the fence is unsignalled and of no other submission, and this thread alone
            // submits: our own submissions exclude each other, and the caller's guard keeps wgpu's away where the queue is wgpu's.
            unsafe { self.raw.queue_submit(lanes.queues[lane], &info, slot.fence) }
        });
        if let Err(e) = submitted {
            lanes.give_back(lane, slot);
            return Err(fault(e));
        }
        Ok(Pending { shared: Arc::clone(self), used: Some((slot, regions, job.keep)), lane })
    }

    fn wait_for(&self, slot: &Slot, wait: &Wait) -> Result<(), Fault> {
        let mut lost = None;
        let waited = wait.until("a copy between device and host memory", |slice| {
            let nanoseconds = u64::try_from(slice.as_nanos()).unwrap_or(u64::MAX);
            // SAFETY: the fence is of this device and belongs to this submission alone.
            match unsafe { self.raw.wait_for_fences(&[slot.fence], true, nanoseconds) } {
                Ok(()) => Ok(Some(())),
                Err(vk::Result::TIMEOUT) => Ok(None),
                Err(e) => {
                    lost = Some(fault(e));
                    Ok(Some(()))
                }
            }
        });
        match lost {
            Some(fault) => Err(fault),
            None => waited.map_err(Fault::Waiting),
        }
    }

    fn signalled(&self, slot: &Slot) -> bool {
        // SAFETY: the fence is of this device. A device that is lost says so here, and uses no memory any more.
        !matches!(unsafe { self.raw.get_fence_status(slot.fence) }, Ok(false))
    }

    fn slot(&self, family: u32) -> Result<Slot, vk::Result> {
        let raw = &self.raw;
        let flags = vk::CommandPoolCreateFlags::TRANSIENT | vk::CommandPoolCreateFlags::RESET_COMMAND_BUFFER;
        let info = vk::CommandPoolCreateInfo::default().queue_family_index(family).flags(flags);
        // SAFETY: the device was created with a queue of this family.
        let pool = unsafe { raw.create_command_pool(&info, None) }?;
        let rest = || {
            let info = vk::CommandBufferAllocateInfo::default().command_pool(pool).command_buffer_count(1);
            // SAFETY: the pool is of this device and nobody else's.
            let commands = unsafe { raw.allocate_command_buffers(&info) }?;
            // SAFETY: nothing is asked of the fence but to exist.
            let fence = unsafe { raw.create_fence(&vk::FenceCreateInfo::default(), None) }?;
            Ok((commands, fence))
        };
        match rest() {
            Ok((commands, fence)) => Ok(Slot { pool, commands: commands[0], fence }),
            Err(e) => {
                // SAFETY: nobody but this function knows the pool.
                unsafe { raw.destroy_command_pool(pool, None) };
                Err(e)
            }
        }
    }

    /// Records copies from one buffer to another.
    fn record(
        &self,
        slot: &Slot,
        copies: &[(vk::Buffer, vk::Buffer, vk::BufferCopy)],
        to_host: bool,
    ) -> Result<(), vk::Result> {
        let (raw, commands) = (&self.raw, slot.commands);
        let barrier = |from: (vk::PipelineStageFlags, vk::AccessFlags),
                       to: (vk::PipelineStageFlags, vk::AccessFlags)| {
            let memory = [vk::MemoryBarrier::default().src_access_mask(from.1).dst_access_mask(to.1)];
            // SAFETY: the command buffer is being recorded.
            unsafe {
                raw.cmd_pipeline_barrier(commands, from.0, to.0, vk::DependencyFlags::empty(), &memory, &[], &[])
            };
        };
        let all = (vk::PipelineStageFlags::ALL_COMMANDS, vk::AccessFlags::MEMORY_READ | vk::AccessFlags::MEMORY_WRITE);
        let transfers =
            (vk::PipelineStageFlags::TRANSFER, vk::AccessFlags::TRANSFER_READ | vk::AccessFlags::TRANSFER_WRITE);
        let host_reads = (vk::PipelineStageFlags::HOST, vk::AccessFlags::HOST_READ);
        // SAFETY: the slot is this call's alone, and nothing of it is pending. Each copy lies inside both buffers, which the caller has checked, and
        // host and device buffers are different ones.
        unsafe {
            raw.reset_fences(&[slot.fence])?;
            let once = vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT;
            raw.begin_command_buffer(commands, &vk::CommandBufferBeginInfo::default().flags(once))?;
            barrier(all, transfers);
            for (from, to, copy) in copies {
                raw.cmd_copy_buffer(commands, *from, *to, std::slice::from_ref(copy));
            }
            barrier(transfers, if to_host { host_reads } else { all });
            raw.end_command_buffer(commands)
        }
    }

    /// The region as a buffer of this device.
    fn imported(self: &Arc<Self>, lanes: &Lanes, region: &Arc<Region>) -> Result<vk::Buffer, Fault> {
        let mut imports = lock(&region.imports);
        let device = Arc::as_ptr(self).addr();
        if let Some(import) = imports.iter().find(|import| import.device == device) {
            return Ok(vk::Buffer::from_raw(import.buffer));
        }
        let imported = self.import(lanes, region).map_err(|_| Fault::Refused)?;
        let buffer = imported.buffer;
        imports.push(Import { device, buffer: buffer.as_raw(), _end: Box::new(imported) });
        Ok(buffer)
    }

    fn import(self: &Arc<Self>, lanes: &Lanes, region: &Region) -> Result<Imported, vk::Result> {
        let unfit = vk::Result::ERROR_INVALID_EXTERNAL_HANDLE;
        let (start, bytes) = (region.start().cast::<std::ffi::c_void>(), region.bytes() as u64);
        if !(start as u64).is_multiple_of(lanes.alignment) || !bytes.is_multiple_of(lanes.alignment) {
            return Err(unfit);
        }
        let kind = vk::ExternalMemoryHandleTypeFlags::HOST_ALLOCATION_EXT;
        let mut properties = vk::MemoryHostPointerPropertiesEXT::default();
        // SAFETY: the extension is enabled, the pointer is that of host memory which is mapped, and the structure is writable.
        unsafe {
            let query = lanes.import.fp().get_memory_host_pointer_properties_ext;
            query(self.raw.handle(), kind, start, &mut properties).result()?;
        }
        let mut external = vk::ExternalMemoryBufferCreateInfo::default().handle_types(kind);
        let usage = vk::BufferUsageFlags::TRANSFER_SRC | vk::BufferUsageFlags::TRANSFER_DST;
        let info = vk::BufferCreateInfo::default().size(bytes).usage(usage).push_next(&mut external);
        // SAFETY: the structure is complete; the buffer is used by one queue family alone.
        let buffer = unsafe { self.raw.create_buffer(&info, None) }?;
        let memory = || {
            // SAFETY: the buffer is of this device.
            let needs = unsafe { self.raw.get_buffer_memory_requirements(buffer) };
            // Coherent, since nobody flushes or invalidates memory that was never mapped; cached rather than not, since the host reads it.
            let coherent = vk::MemoryPropertyFlags::HOST_VISIBLE | vk::MemoryPropertyFlags::HOST_COHERENT;
            let bits = needs.memory_type_bits & properties.memory_type_bits;
            let cached = self.memory_type(bits, coherent | vk::MemoryPropertyFlags::HOST_CACHED);
            let index =
                cached.or_else(|| self.memory_type(bits, coherent)).filter(|_| needs.size <= bytes).ok_or(unfit)?;
            let mut pointer = vk::ImportMemoryHostPointerInfoEXT::default().handle_type(kind).host_pointer(start);
            let info = vk::MemoryAllocateInfo::default()
                .allocation_size(bytes)
                .memory_type_index(index)
                .push_next(&mut pointer);
            // SAFETY: pointer and size are aligned as the device wants it, and the pages outlive the import, which the region owns.
            let memory = unsafe { self.raw.allocate_memory(&info, None) }?;
            // SAFETY: both are of this device and unbound; the memory is as large as the buffer needs it.
            unsafe { self.raw.bind_buffer_memory(buffer, memory, 0) }.inspect_err(|_| {
                // SAFETY: nobody but this function knows the memory, and the buffer was not bound to it.
                unsafe { self.raw.free_memory(memory, None) };
            })?;
            Ok(memory)
        };
        match memory() {
            Ok(memory) => Ok(Imported { shared: Arc::clone(self), buffer, memory }),
            Err(e) => {
                // SAFETY: nobody but this function knows the buffer.
                unsafe { self.raw.destroy_buffer(buffer, None) };
                Err(e)
            }
        }
    }
}

fn fault(e: vk::Result) -> Fault {
    if e == vk::Result::ERROR_DEVICE_LOST {
        Fault::Lost("while it copied to or from host memory".to_owned())
    } else {
        Fault::Driver(format!("a copy to or from host memory: {e}"))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
