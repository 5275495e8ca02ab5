//! The bind groups of a device, kept: the same kernels run on the same buffers, token after token.

use std::collections::HashMap;

use super::buffer::Bound;
use super::pipeline::Layout;

/// Bind groups kept at most. A model of 100 layers with 10 kernels a layer has 1,000.
const MAX_BIND_GROUPS: usize = 4096;

/// Bind groups by what they bind.
#[derive(Default)]
pub(super) struct BindGroups(HashMap<Key, wgpu::BindGroup>);

/// Layout, and id, offset and length of each storage binding.
#[derive(PartialEq, Eq, Hash)]
struct Key(usize, Vec<(u64, u64, u64)>);

impl BindGroups {
    /// The bind group of a layout and its storage buffers.
    pub fn get(&mut self, device: &wgpu::Device, layout: &Layout, bindings: &[Bound]) -> &wgpu::BindGroup {
        let key = Key(layout.id, bindings.iter().map(|b| (b.buffer.id(), b.offset, b.bytes)).collect());
        if self.0.len() >= MAX_BIND_GROUPS && !self.0.contains_key(&key) {
            self.0.clear();
        }
        self.0.entry(key).or_insert_with(|| new_group(device, layout, bindings))
    }

    /// Number of them.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Lets go of all: one of them may be what a failed submission failed at.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Lets go of those that refer to buffers which nobody else holds any more: a bind group keeps its buffers' memory alive.
    pub fn forget(&mut self, gone: &[u64]) {
        if !gone.is_empty() {
            self.0.retain(|Key(_, bindings), _| !bindings.iter().any(|(id, ..)| gone.contains(id)));
        }
    }
}

fn new_group(device: &wgpu::Device, layout: &Layout, bindings: &[Bound]) -> wgpu::BindGroup {
    let entries = (0..).zip(bindings).map(|(binding, b)| wgpu::BindGroupEntry {
        binding,
        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: b.buffer.raw(),
            offset: b.offset,
            size: wgpu::BufferSize::new(b.bytes),
        }),
    });
    let entries = entries.collect::<Vec<_>>();
    device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout: &layout.bindings, entries: &entries })
}
