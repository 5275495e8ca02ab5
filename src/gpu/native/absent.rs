//! What stands in for Vulkan where wgpu has none: nothing is opened that way, so nothing of it can be called.

use std::sync::Arc;

use super::{CopyJob, Fault, Opened, Refusal};
use crate::cancel::Wait;
use crate::gpu::Opening;

/// There is none.
pub enum Handles {}

/// There is none.
pub enum Shared {}

/// There is none.
pub enum Pending {}

impl Pending {
    pub fn wait(self, _: &Wait) -> Result<(), Fault> {
        match self {}
    }
}

pub fn open(_: &wgpu::Adapter, _: &wgpu::DeviceDescriptor<'_>, _: Opening) -> Option<Opened> {
    None
}

impl Shared {
    pub fn opening(&self) -> Opening {
        match *self {}
    }

    pub fn on_compute_queue(&self) -> bool {
        match *self {}
    }

    pub fn hangs(&self) -> bool {
        match *self {}
    }

    pub fn buffer(
        self: &Arc<Self>,
        _: &str,
        _: u64,
        _: wgpu::BufferUsages,
    ) -> Result<(wgpu::Buffer, Arc<Handles>), Refusal> {
        match **self {}
    }

    pub fn begin<G>(self: &Arc<Self>, _: CopyJob<'_>, _: impl FnOnce() -> G) -> Result<Pending, Fault> {
        match **self {}
    }
}
