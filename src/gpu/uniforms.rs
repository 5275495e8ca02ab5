//! Parameters of dispatches: one uniform buffer per device, and the bind groups that refer to it.

use std::collections::HashMap;

use super::buffer::Bound;
use super::pipeline::Layout;

/// Bind groups kept at most. A model of 100 layers with 10 kernels a layer has 1,000.
const MAX_BIND_GROUPS: usize = 4096;

/// First size of the uniform buffer: 512 dispatches at 256 bytes.
const FIRST_BYTES: u64 = 128 << 10;

/// The parameters of the submission that is being encoded, and the bind groups of all.
///
/// One buffer is enough, since writes and submissions of a queue run in order: the next submission's parameters are copied in when this one's
/// dispatches have run. Whoever holds this holds the device's order lock from the write of the parameters to the submit.
#[derive(Default)]
pub(super) struct Uniforms {
    /// Made by the first submission that has parameters.
    buffer: Option<wgpu::Buffer>,
    groups: HashMap<GroupKey, wgpu::BindGroup>,
}

/// Layout, and id, offset and length of each storage binding.
#[derive(PartialEq, Eq, Hash)]
struct GroupKey(usize, Vec<(u64, u64, u64)>);

impl Uniforms {
    /// Writes the packed parameters of one submission into a buffer that has `room` bytes more, for the binding that starts at the last of them.
    pub fn upload(&mut self, device: &wgpu::Device, queue: &wgpu::Queue, params: &[u8], room: u64) -> wgpu::Buffer {
        let needed = params.len() as u64 + room;
        let buffer = match self.buffer.take() {
            Some(buffer) if buffer.size() >= needed => buffer,
            _ => {
                self.groups.clear();
                new_buffer(device, needed.next_power_of_two().max(FIRST_BYTES))
            }
        };
        if !params.is_empty() {
            queue.write_buffer(&buffer, 0, params);
        }
        self.buffer.insert(buffer).clone()
    }

    /// The bind group of a layout, the buffer that `upload` gave, and the storage buffers.
    pub fn group(
        &mut self,
        device: &wgpu::Device,
        params: &wgpu::Buffer,
        layout: &Layout,
        bindings: &[Bound],
    ) -> &wgpu::BindGroup {
        let key = GroupKey(layout.id, bindings.iter().map(|b| (b.buffer.id(), b.offset, b.bytes)).collect());
        if self.groups.len() >= MAX_BIND_GROUPS && !self.groups.contains_key(&key) {
            self.groups.clear();
        }
        self.groups.entry(key).or_insert_with(|| new_group(device, params, layout, bindings))
    }

    /// Bind groups in the cache.
    #[cfg(test)]
    pub fn n_groups(&self) -> usize {
        self.groups.len()
    }

    /// Lets go of all bind groups and the buffer: one of them may be what a failed submission failed at.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Lets go of the bind groups that refer to buffers which nobody else holds any more: a bind group keeps its buffers' memory alive.
    pub fn forget(&mut self, gone: &[u64]) {
        if !gone.is_empty() {
            self.groups.retain(|GroupKey(_, bindings), _| !bindings.iter().any(|(id, ..)| gone.contains(id)));
        }
    }
}

fn new_buffer(device: &wgpu::Device, bytes: u64) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("parameters"),
        size: bytes,
        usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}

fn new_group(device: &wgpu::Device, params: &wgpu::Buffer, layout: &Layout, bindings: &[Bound]) -> wgpu::BindGroup {
    let entry = |binding, buffer, offset, bytes| wgpu::BindGroupEntry {
        binding,
        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer,
            offset,
            size: wgpu::BufferSize::new(bytes),
        }),
    };
    let storage = (1..).zip(bindings).map(|(binding, b)| entry(binding, b.buffer.raw(), b.offset, b.bytes));
    let entries =
        std::iter::once(entry(0, params, 0, layout.signature.uniform_bytes())).chain(storage).collect::<Vec<_>>();
    device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout: &layout.bindings, entries: &entries })
}
