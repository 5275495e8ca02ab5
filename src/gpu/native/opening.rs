//! Opening a Vulkan device, if wanted with more than wgpu asks for: queues for copies beside the compute queue, and the extensions by which other devices
//! and other APIs see its memory.

use std::ffi::CStr;
use std::sync::Arc;

use ash::{ext, khr, vk};
use wgpu::hal::api::Vulkan;

use super::Opened;
use super::shared::{Queues, Shared};
use crate::gpu::{Opening, Transfers};

/// The family of the one queue that wgpu opens.
const COMPUTE_FAMILY: u32 = 0;

/// Enabled where the device has them. wgpu asks for the second of them itself where one of its features needs it.
const EXTENSIONS: [&CStr; 3] =
    [ext::external_memory_host::NAME, khr::external_memory_fd::NAME, khr::external_semaphore_fd::NAME];

static PRIORITIES: [f32; 3] = [1.0; 3];

/// Opens the adapter as `desc` says and with what `opening` asks for beyond it, as far as the device has that. `None` where it is no Vulkan adapter, or
/// where the driver refuses: the caller opens it the usual way then.
pub fn open(adapter: &wgpu::Adapter, desc: &wgpu::DeviceDescriptor<'_>, opening: Opening) -> Option<Opened> {
    // SAFETY: nothing is destroyed through this handle, which lives only for this call.
    let hal = unsafe { adapter.as_hal::<Vulkan>() }?;
    let (instance, capabilities) = (hal.shared_instance(), hal.physical_device_capabilities());
    // External memory, dedicated allocations and the queries for both are core from 1.1 on.
    let version = instance.instance_api_version().min(capabilities.properties().api_version);
    if version < vk::API_VERSION_1_1 {
        return None;
    }
    let extensions = EXTENSIONS.into_iter().filter(|name| capabilities.supports_extension(name)).collect::<Vec<_>>();
    let has = |name| extensions.contains(&name);
    // SAFETY: the physical device belongs to this instance, and the adapter keeps the instance alive.
    let families =
        unsafe { instance.raw_instance().get_physical_device_queue_family_properties(hal.raw_physical_device()) };
    let families = families.iter().map(|f| (f.queue_flags, f.queue_count)).collect::<Vec<_>>();
    let queues = choose(&families, opening.transfers).filter(|_| has(ext::external_memory_host::NAME));
    let export = opening.export && has(khr::external_memory_fd::NAME);
    let enabled = if queues.is_some() || export { extensions } else { Vec::new() };
    let callback = Box::new(move |args: wgpu::hal::vulkan::CreateDeviceCallbackArgs<'_, '_, '_>| {
        let new = enabled.into_iter().filter(|name| !args.extensions.contains(name)).collect::<Vec<_>>();
        args.extensions.extend(new);
        let create = |family, n: u32| {
            let priorities = &PRIORITIES[..n as usize];
            vk::DeviceQueueCreateInfo::default().queue_family_index(family).queue_priorities(priorities)
        };
        match queues {
            Some(q) if q.family != COMPUTE_FAMILY => args.queue_create_infos.push(create(q.family, q.end())),
            // wgpu takes queue 0 of its family, whatever else is opened there.
            Some(q) => *args.queue_create_infos = vec![create(COMPUTE_FAMILY, q.end())],
            None => {}
        }
    });
    let (features, limits) = (desc.required_features, &desc.required_limits);
    // SAFETY: the callback only adds, and only extensions and queues which the physical device has said that it has.
    let opened = unsafe { hal.open_with_callback(features, limits, &desc.memory_hints, Some(callback)) }.ok()?;
    // SAFETY: the device was just opened from this very adapter, with the features and limits of the descriptor.
    let (device, queue) = unsafe { adapter.create_device_from_hal::<Vulkan>(opened, desc) }.ok()?;
    let shared = Arc::new(Shared::new(&device, queues, export)?);
    Some(Opened { device, queue, shared })
}

/// The queues for copies, of families with these flags and numbers of queues: of a family that does nothing but copy, else of another that
/// computes, else beside wgpu's queue in its own family, else that queue itself.
///
/// Families that also code video copy as well, but on engines of their own whose speed nobody tells; they are left alone.
fn choose(families: &[(vk::QueueFlags, u32)], transfers: Transfers) -> Option<Queues> {
    let (computes, draws) = (vk::QueueFlags::COMPUTE, vk::QueueFlags::GRAPHICS);
    let video = vk::QueueFlags::VIDEO_DECODE_KHR | vk::QueueFlags::VIDEO_ENCODE_KHR;
    let others = || {
        let numbered = families.iter().enumerate().map(|(i, &(flags, n))| (i as u32, flags, n));
        numbered.filter(|&(i, flags, n)| i != COMPUTE_FAMILY && n > 0 && !flags.intersects(video))
    };
    let (_, n_own) = *families.get(COMPUTE_FAMILY as usize)?;
    if transfers == Transfers::None {
        return None;
    }
    let copies = |flags: vk::QueueFlags| flags.contains(vk::QueueFlags::TRANSFER);
    let only = others().find(|&(_, flags, _)| copies(flags) && !flags.intersects(computes | draws));
    // Whoever computes or draws can copy, whether it says so or not.
    if let Some((family, _, n)) = only.or_else(|| others().find(|&(_, flags, _)| flags.intersects(computes | draws))) {
        return Some(Queues { family, indices: [0, n.min(2) - 1] });
    }
    match n_own {
        0 => None,
        1 => (transfers == Transfers::Anywhere).then_some(Queues { family: COMPUTE_FAMILY, indices: [0, 0] }),
        n => Some(Queues { family: COMPUTE_FAMILY, indices: [1, n.min(3) - 1] }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_those_that_do_the_least_beside_copying() {
        let (g, c, t) = (vk::QueueFlags::GRAPHICS, vk::QueueFlags::COMPUTE, vk::QueueFlags::TRANSFER);
        let (s, v) = (vk::QueueFlags::SPARSE_BINDING, vk::QueueFlags::VIDEO_DECODE_KHR);
        let own = (g | c | t, 16);
        let beside = |families: &[_]| choose(families, Transfers::Beside);
        let queues = |family, indices| Some(Queues { family, indices });
        // As NVIDIA's, AMD's, Intel's and llvmpipe's families are.
        assert_eq!(beside(&[own, (t | s, 2), (c | t, 8), (t | v, 1)]), queues(1, [0, 1]));
        assert_eq!(beside(&[(g | c | t, 1), (c | t, 4), (v | t, 1)]), queues(1, [0, 1]));
        assert_eq!(beside(&[(g | c | t, 1), (t | v, 1), (c, 1)]), queues(2, [0, 0]));
        assert_eq!(beside(&[(g | c | t, 2)]), queues(0, [1, 1]));
        assert_eq!(beside(&[own]), queues(0, [1, 2]));
        assert_eq!(beside(&[(g | c | t, 1)]), None);
        assert_eq!(choose(&[(g | c | t, 1)], Transfers::Anywhere), queues(0, [0, 0]));
        assert_eq!(choose(&[own, (t, 1)], Transfers::None), None);
        assert_eq!(beside(&[]), None);
    }
}
