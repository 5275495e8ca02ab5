//! When the parts of a submission ran, by the device's own clock.
//!
//! A timed recording closes its compute pass wherever the tag of its commands changes, and every pass writes the time of its beginning and of its end.
//! Costs a pass's barriers for each change and one small download: for traces, not for ordinary runs.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::readback::{Download, Filled, Staged, StagingPool};

/// wgpu's bound on the queries of a set.
const MOST_QUERIES: u32 = 4096;
/// Bytes of one time.
const TIME_BYTES: u64 = 8;

/// Work under one tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// What [`Recording::tag`](super::Recording::tag) was told; `None` for copies.
    pub tag: Option<u8>,
    /// From a moment that is the same for all of a device's submissions.
    pub start: Duration,
    /// From the same moment.
    pub end: Duration,
}

/// The times of a recording. Made by [`Recording::timed`](super::Recording::timed), read by [`Gpu::times`](super::Gpu::times) once it was submitted.
#[derive(Clone)]
pub struct Timing {
    staged: Arc<OnceLock<Staged>>,
    /// Of each stretch, in order; set when the recording is encoded.
    tags: Arc<OnceLock<Vec<Option<u8>>>>,
}

impl Timing {
    pub(super) fn new() -> Self {
        Self { staged: Arc::default(), tags: Arc::default() }
    }

    /// The download of all times, two for each stretch; `None` before the submission.
    pub(super) fn download(&self) -> Option<Download> {
        let bytes = 2 * TIME_BYTES as usize * self.tags.get()?.len();
        Some(Download { staged: self.staged.clone(), range: 0..bytes })
    }

    /// Stretches from what the device wrote, in ticks of `tick_ns`. One that ends before it begins is the driver's fault, and left out.
    pub(super) fn stretches(&self, bytes: &[u8], tick_ns: f32) -> Vec<Stretch> {
        let time = |bytes: &[u8]| {
            let ticks = bytes.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
            Duration::try_from_secs_f64(ticks as f64 * f64::from(tick_ns) * 1e-9).unwrap_or_default()
        };
        let tags = self.tags.get().map_or(&[][..], Vec::as_slice);
        let pairs = bytes.chunks_exact(2 * TIME_BYTES as usize);
        let stretch = |(&tag, pair): (&Option<u8>, &[u8])| {
            let (start, end) = pair.split_at(TIME_BYTES as usize);
            Stretch { tag, start: time(start), end: time(end) }
        };
        tags.iter().zip(pairs).map(stretch).filter(|s| s.start <= s.end).collect()
    }
}

/// The clock of a submission while it is encoded.
pub(super) struct Clock {
    timing: Timing,
    set: wgpu::QuerySet,
    tags: Vec<Option<u8>>,
    most: u32,
}

impl Clock {
    /// For at most `stretches`; `None` where the device has no clock, or one submission has more than its clock can take.
    pub fn new(timing: Timing, device: &wgpu::Device, stretches: usize) -> Option<Self> {
        let count = u32::try_from(2 * stretches).ok().filter(|n| (2..=MOST_QUERIES).contains(n))?;
        if !device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            return None;
        }
        let ty = wgpu::QueryType::Timestamp;
        let set = device.create_query_set(&wgpu::QuerySetDescriptor { label: Some("times"), ty, count });
        Some(Self { timing, set, tags: Vec::new(), most: count / 2 })
    }

    /// Begins a stretch: what its compute pass is to write, while there is room.
    pub fn stretch(&mut self, tag: Option<u8>) -> Option<wgpu::ComputePassTimestampWrites<'_>> {
        let first = 2 * u32::try_from(self.tags.len()).ok().filter(|&n| n < self.most)?;
        self.tags.push(tag);
        let (begin, end) = (Some(first), Some(first + 1));
        Some(wgpu::ComputePassTimestampWrites {
            query_set: &self.set,
            beginning_of_pass_write_index: begin,
            end_of_pass_write_index: end,
        })
    }

    /// Copies the times to the host.
    pub fn finish(self, device: &wgpu::Device, encoder: &mut wgpu::CommandEncoder, staging: &StagingPool) -> Filled {
        let count = 2 * self.tags.len() as u32;
        let bytes = TIME_BYTES * u64::from(count);
        let resolved = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("times"),
            size: bytes.max(TIME_BYTES),
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let buffer = staging.take(device, bytes);
        if count > 0 {
            encoder.resolve_query_set(&self.set, 0..count, &resolved, 0);
            encoder.copy_buffer_to_buffer(&resolved, 0, &buffer, 0, bytes);
        }
        // A recording is submitted once, so the cell is empty.
        let _ = self.timing.tags.set(self.tags);
        Filled { buffer, bytes, staged: self.timing.staged }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_become_times_and_nonsense_is_left_out() {
        let timing = Timing::new();
        assert!(timing.download().is_none() && timing.stretches(&[0; 64], 1.0).is_empty());
        timing.tags.set(vec![Some(3), None, Some(4)]).unwrap();
        let ticks: [u64; 6] = [100, 300, 300, 350, 9, 8];
        let bytes: Vec<u8> = ticks.iter().flat_map(|t| t.to_le_bytes()).collect();
        let us = Duration::from_micros;
        let expected = [
            Stretch { tag: Some(3), start: us(200), end: us(600) },
            Stretch { tag: None, start: us(600), end: us(700) },
        ];
        assert_eq!(timing.stretches(&bytes, 2000.0), expected);
        assert_eq!(timing.download().unwrap().bytes(), 48);
    }
}
