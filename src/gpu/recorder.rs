//! Work as a value: a list of dispatches and copies, checked while it is recorded, encoded when it is submitted.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::bind_groups::BindGroups;
use super::buffer::{Binding, Bound, Buffer, Owner};
use super::info::GpuInfo;
use super::pipeline::Pipeline;
use super::readback::{Download, Filled, Staged, StagingPool};
use super::shader::Access;
use super::timing::{Clock, Timing};
use crate::error::{Error, Result};

/// Dispatches and copies in order. Nothing runs before [`Gpu::submit`](super::Gpu::submit); each sees the writes of those before it.
pub struct Recording {
    info: Arc<GpuInfo>,
    pub(super) owner: Arc<Owner>,
    commands: Vec<Command>,
    /// Where times are wanted.
    timing: Option<Timing>,
}

enum Command {
    Dispatch { pipeline: Arc<Pipeline>, params: Vec<u8>, bindings: Vec<Bound>, grid: [u32; 3] },
    Copy { from: Buffer, from_offset: u64, to: Buffer, to_offset: u64, bytes: u64 },
    Download { from: Buffer, offset: u64, bytes: u64, staged: Arc<OnceLock<Staged>> },
    Tag(u8),
}

impl Recording {
    pub(super) fn new(info: Arc<GpuInfo>, owner: Arc<Owner>) -> Self {
        Self { info, owner, commands: Vec::new(), timing: None }
    }

    /// Has the device write down when the parts of this recording run.
    pub fn timed(&mut self) -> Timing {
        self.timing.get_or_insert_with(Timing::new).clone()
    }

    /// Puts what follows under a tag, if the recording is timed. Before the first, it is 0.
    pub fn tag(&mut self, tag: u8) {
        if self.timing.is_some() {
            self.commands.push(Command::Tag(tag));
        }
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// Number of dispatches and copies.
    pub fn len(&self) -> usize {
        self.commands.len()
    }

    /// Names of the dispatched kernels, in order.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.commands.iter().filter_map(|command| match command {
            Command::Dispatch { pipeline, .. } => Some(pipeline.name()),
            _ => None,
        })
    }

    /// Runs a kernel on `grid` workgroups. `params` are the bytes of its parameter struct; `bindings` are its storage buffers in order.
    /// A grid without workgroups records nothing.
    ///
    /// Errors: [`Error::Shader`] with the kernel's name where parameters or bindings are not those of the shader, where a buffer that is
    /// written is bound twice, or where a dimension of the grid is beyond [`Caps::max_workgroups_per_dim`](super::Caps::max_workgroups_per_dim).
    pub fn dispatch(
        &mut self,
        pipeline: &Arc<Pipeline>,
        params: &[u8],
        bindings: &[Binding<'_>],
        grid: [u32; 3],
    ) -> Result<()> {
        let bindings = self.validate(pipeline, params, bindings, grid)?;
        if grid.contains(&0) {
            return Ok(());
        }
        let (pipeline, params) = (pipeline.clone(), params.to_vec());
        self.commands.push(Command::Dispatch { pipeline, params, bindings, grid });
        Ok(())
    }

    /// Copies bytes between two different buffers. Offsets and length are multiples of 4.
    pub fn copy(&mut self, from: &Buffer, from_offset: u64, to: &Buffer, to_offset: u64, bytes: u64) -> Result<()> {
        from.has(&self.owner, from_offset, bytes)?;
        to.has(&self.owner, to_offset, bytes)?;
        if [from_offset, to_offset, bytes].iter().any(|n| !n.is_multiple_of(4)) || from.id() == to.id() {
            let reason = format!("cannot copy {bytes} bytes from {from:?} at {from_offset} to {to:?} at {to_offset}");
            return Err(self.owner.error(reason));
        }
        if bytes > 0 {
            let (from, to) = (from.clone(), to.clone());
            self.commands.push(Command::Copy { from, from_offset, to, to_offset, bytes });
        }
        Ok(())
    }

    /// Copies bytes to the host, as they stand at this point of the recording.
    pub fn download(&mut self, from: &Buffer, range: Range<u64>) -> Result<Download> {
        let bytes = range.end.saturating_sub(range.start);
        from.has(&self.owner, range.start, bytes)?;
        let staged = Arc::new(OnceLock::new());
        let offset = range.start / 4 * 4;
        let skipped = (range.start - offset) as usize;
        let shown = usize::try_from(bytes).map_err(|_| Error::Memory {
            adapter: "host".to_owned(),
            what: "a download".to_owned(),
            needed: bytes,
            available: usize::MAX as u64,
        })?;
        if bytes > 0 {
            let bytes = (skipped as u64 + bytes).next_multiple_of(4);
            self.commands.push(Command::Download { from: from.clone(), offset, bytes, staged: staged.clone() });
        }
        Ok(Download { staged, range: skipped..skipped + shown })
    }

    /// Returns once the driver has compiled everything that is used here.
    ///
    /// Errors: [`Error::Shader`] for what it refused.
    pub(super) fn wait_for_pipelines(&self) -> Result<()> {
        self.commands.iter().try_for_each(|command| match command {
            Command::Dispatch { pipeline, .. } => pipeline.raw().map(drop),
            _ => Ok(()),
        })
    }

    /// Bytes of memory that the submission will ask the driver for at most.
    pub(super) fn staging_bytes(&self) -> u64 {
        let bytes = |command: &Command| if let Command::Download { bytes, .. } = command { *bytes } else { 0 };
        self.commands.iter().map(bytes).sum()
    }

    fn validate(
        &self,
        pipeline: &Arc<Pipeline>,
        params: &[u8],
        bindings: &[Binding<'_>],
        grid: [u32; 3],
    ) -> Result<Vec<Bound>> {
        let (caps, signature) = (&self.info.caps, &pipeline.layout.signature);
        if !Arc::ptr_eq(&pipeline.owner, &self.owner) {
            return Err(refused(pipeline, "it belongs to another device".to_owned()));
        }
        if params.len() != signature.params_bytes as usize {
            let expected = signature.params_bytes;
            return Err(refused(pipeline, format!("{} bytes of parameters, the shader has {expected}", params.len())));
        }
        if bindings.len() != signature.storage.len() {
            let expected = signature.storage.len();
            return Err(refused(pipeline, format!("{} storage bindings, the shader has {expected}", bindings.len())));
        }
        if grid.iter().any(|&n| n > caps.max_workgroups_per_dim) {
            let limit = caps.max_workgroups_per_dim;
            return Err(refused(pipeline, format!("a grid of {grid:?}, {limit} are possible in each dimension")));
        }
        for (i, binding) in bindings.iter().enumerate() {
            let Binding { buffer, offset, bytes } = *binding;
            buffer.has(&self.owner, offset, bytes)?;
            if bytes == 0
                || !offset.is_multiple_of(u64::from(caps.min_storage_offset))
                || bytes > caps.max_binding_bytes
            {
                let (align, limit) = (caps.min_storage_offset, caps.max_binding_bytes);
                return Err(refused(
                    pipeline,
                    format!(
                        "binding {i}: {bytes} bytes at {offset} of `{}`; 1 to {limit} bytes at multiples of {align} are possible",
                        buffer.label()
                    ),
                ));
            }
            let shared = |(j, other): (usize, &Binding<'_>)| {
                j != i && other.buffer.id() == buffer.id() && signature.storage[j] == Access::ReadWrite
            };
            if bindings.iter().enumerate().any(shared) {
                return Err(refused(pipeline, format!("`{}` is written and bound twice", buffer.label())));
            }
        }
        // A binding's length is a multiple of 4; buffers are padded to one.
        let bound =
            |b: &Binding<'_>| Bound { buffer: b.buffer.clone(), offset: b.offset, bytes: b.bytes.next_multiple_of(4) };
        Ok(bindings.iter().map(bound).collect())
    }

    /// Encodes everything, consecutive dispatches in one compute pass. The caller holds the order lock and watches for errors of the device.
    pub(super) fn encode(
        self,
        device: &wgpu::Device,
        bind_groups: &mut BindGroups,
        staging: &StagingPool,
    ) -> (wgpu::CommandBuffer, Vec<Filled>) {
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut filled = Vec::new();
        // Every command but a dispatch may end a pass, and the copies at the end are a stretch of their own.
        let breaks = self.commands.iter().filter(|command| !matches!(command, Command::Dispatch { .. })).count();
        let mut clock = self.timing.and_then(|timing| Clock::new(timing, device, breaks + 2));
        let (mut tag, mut copied) = (0, false);
        let mut pass: Option<Pass> = None;
        for command in &self.commands {
            copied |= matches!(command, Command::Copy { .. } | Command::Download { .. });
            match command {
                Command::Dispatch { pipeline, params, bindings, grid } => {
                    let group = bind_groups.get(device, &pipeline.layout, bindings);
                    let begin = || Pass::begin(&mut encoder, clock.as_mut().and_then(|clock| clock.stretch(Some(tag))));
                    pass.get_or_insert_with(begin).dispatch(pipeline, group, params, *grid);
                    copied = false;
                }
                Command::Tag(next) => {
                    if *next != tag {
                        pass = None;
                    }
                    tag = *next;
                }
                Command::Copy { from, from_offset, to, to_offset, bytes } => {
                    pass = None;
                    encoder.copy_buffer_to_buffer(from.raw(), *from_offset, to.raw(), *to_offset, *bytes);
                }
                Command::Download { from, offset, bytes, staged } => {
                    pass = None;
                    let buffer = staging.take(device, *bytes);
                    encoder.copy_buffer_to_buffer(from.raw(), *offset, &buffer, 0, *bytes);
                    filled.push(Filled { buffer, bytes: *bytes, staged: staged.clone() });
                }
            }
        }
        drop(pass);
        if let Some(mut clock) = clock {
            // A pass without work: it begins when the copies before it are through.
            if copied && let Some(times) = clock.stretch(None) {
                drop(Pass::begin(&mut encoder, Some(times)));
            }
            filled.push(clock.finish(device, &mut encoder, staging));
        }
        (encoder.finish(), filled)
    }
}

/// An open compute pass and the pipeline that is set in it.
struct Pass {
    raw: wgpu::ComputePass<'static>,
    pipeline: Option<Arc<Pipeline>>,
}

impl Pass {
    fn begin(encoder: &mut wgpu::CommandEncoder, times: Option<wgpu::ComputePassTimestampWrites<'_>>) -> Self {
        let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes: times };
        let raw = encoder.begin_compute_pass(&descriptor).forget_lifetime();
        Self { raw, pipeline: None }
    }

    fn dispatch(&mut self, pipeline: &Arc<Pipeline>, group: &wgpu::BindGroup, params: &[u8], [x, y, z]: [u32; 3]) {
        // See `wait_for_pipelines`.
        let Ok(compiled) = pipeline.raw() else { return };
        if !self.pipeline.as_ref().is_some_and(|set| Arc::ptr_eq(set, pipeline)) {
            self.raw.set_pipeline(compiled);
            self.pipeline = Some(pipeline.clone());
        }
        if !params.is_empty() {
            self.raw.set_immediates(0, params);
        }
        self.raw.set_bind_group(0, group, &[]);
        self.raw.dispatch_workgroups(x, y, z);
    }
}

fn refused(pipeline: &Pipeline, reason: String) -> Error {
    Error::Shader { name: pipeline.name.clone(), reason }
}
