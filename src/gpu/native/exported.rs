//! What other APIs of this process get of a Vulkan device: the memory of its buffers, and timelines that order both sides' work.

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ash::{khr, vk};
use wgpu::hal::api::Vulkan;

use super::{Handles, Shared};

/// The kind of handle that everything here is exported as.
const SEMAPHORE: vk::ExternalSemaphoreHandleTypeFlags = vk::ExternalSemaphoreHandleTypeFlags::OPAQUE_FD;

/// How long the end of a timeline waits for the queue's work.
const PATIENCE: Duration = Duration::from_secs(10);

impl Shared {
    /// A handle of a buffer's memory, which has [`Handles::memory_bytes`] bytes. Whoever imports it owns it.
    pub fn export_memory(&self, handles: &Handles) -> Result<OwnedFd, String> {
        let info = vk::MemoryGetFdInfoKHR::default()
            .memory(handles.memory)
            .handle_type(vk::ExternalMemoryHandleTypeFlags::OPAQUE_FD);
        let export = |instance: &ash::Instance| {
            let functions = khr::external_memory_fd::Device::new(instance, &self.raw);
            // SAFETY: the memory is of this device, was allocated for export as this kind of handle, and lives.
            unsafe { functions.get_memory_fd(&info) }
        };
        self.with_instance(export)
    }

    /// Calls a function that hands out a file descriptor.
    fn with_instance(&self, call: impl FnOnce(&ash::Instance) -> Result<i32, vk::Result>) -> Result<OwnedFd, String> {
        // SAFETY: nothing is destroyed through this handle, which lives only for this call.
        let hal = unsafe { self.device.as_hal::<Vulkan>() }.ok_or("the device is not Vulkan's")?;
        let fd = call(hal.shared_instance().raw_instance()).map_err(|e| format!("an export was refused: {e}"))?;
        // SAFETY: the descriptor was just made, and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// A timeline semaphore that another API shares. Its value only rises.
pub struct Timeline {
    shared: Arc<Shared>,
    semaphore: vk::Semaphore,
}

impl Timeline {
    /// A timeline at 0, and the handle by which another API imports it.
    pub fn new(shared: &Arc<Shared>) -> Result<(Self, OwnedFd), String> {
        let mut export = vk::ExportSemaphoreCreateInfo::default().handle_types(SEMAPHORE);
        let mut kind = vk::SemaphoreTypeCreateInfo::default().semaphore_type(vk::SemaphoreType::TIMELINE);
        let info = vk::SemaphoreCreateInfo::default().push_next(&mut export).push_next(&mut kind);
        // SAFETY: wgpu enables timeline semaphores on every device that has them, and the driver refuses otherwise; what is chained outlives the call.
        let semaphore = unsafe { shared.raw.create_semaphore(&info, None) }.map_err(|e| format!("no timeline: {e}"))?;
        let timeline = Self { shared: shared.clone(), semaphore };
        let info = vk::SemaphoreGetFdInfoKHR::default().semaphore(semaphore).handle_type(SEMAPHORE);
        let fd = shared.with_instance(|instance| {
            let functions = khr::external_semaphore_fd::Device::new(instance, &shared.raw);
            // SAFETY: the semaphore is of this device and was made for export as this kind of handle.
            unsafe { functions.get_semaphore_fd(&info) }
        })?;
        Ok((timeline, fd))
    }

    /// The next submission of `queue` begins when the timeline has reached `value`.
    pub fn next_waits(&self, queue: &wgpu::Queue, value: u64) {
        // SAFETY: nothing is destroyed through this handle, which lives only for this call.
        if let Some(hal) = unsafe { queue.as_hal::<Vulkan>() } {
            hal.add_wait_semaphore(self.semaphore, Some(value), vk::PipelineStageFlags::ALL_COMMANDS);
        }
    }

    /// The next submission of `queue` raises the timeline to `value` when it, and all before it, have run.
    pub fn next_raises(&self, queue: &wgpu::Queue, value: u64) {
        // SAFETY: as above.
        if let Some(hal) = unsafe { queue.as_hal::<Vulkan>() } {
            hal.add_signal_semaphore(self.semaphore, Some(value));
        }
    }

    /// Where the timeline stands; 0 where the device is lost.
    pub fn value(&self) -> u64 {
        // SAFETY: the semaphore is a timeline of this device.
        unsafe { self.shared.raw.get_semaphore_counter_value(self.semaphore) }.unwrap_or(0)
    }

    /// Raises the timeline from the host, so that nobody waits for one who will not raise it any more.
    pub fn raise(&self, value: u64) {
        if self.value() < value {
            let info = vk::SemaphoreSignalInfo::default().semaphore(self.semaphore).value(value);
            // SAFETY: the semaphore is a timeline of this device. Whoever would raise it has failed, or the device is about to go.
            let _ = unsafe { self.shared.raw.signal_semaphore(&info) };
        }
    }
}

impl Drop for Timeline {
    fn drop(&mut self) {
        let start = Instant::now();
        let idle = || matches!(self.shared.device.poll(wgpu::PollType::Poll), Ok(status) if status.is_queue_empty());
        while !idle() {
            if start.elapsed() > PATIENCE {
                // A semaphore in use must not be destroyed: it is left to the end of the device.
                return;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        // SAFETY: the semaphore is of this device, which no longer works on anything that waits for it or raises it.
        unsafe { self.shared.raw.destroy_semaphore(self.semaphore, None) };
    }
}
