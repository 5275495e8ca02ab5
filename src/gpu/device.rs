//! An opened adapter: memory, pipelines and the queue.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::bind_groups::BindGroups;
use super::buffer::{Buffer, Owner};
use super::caps::{Caps, features_of};
use super::compiling::{self, DiskCache};
use super::info::{GpuInfo, Opening};
use super::native;
use super::pipeline::{Pipeline, Pipelines};
use super::readback::{Download, Staged, StagingPool};
use super::recorder::Recording;
use super::shader::ShaderSpec;
use super::timing::{Stretch, Timing};
use crate::cancel::{Cancel, Wait};
use crate::error::{Error, Result};

/// Largest piece of a write that is staged at once.
const WRITE_PIECE_BYTES: usize = 8 << 20;

/// Written bytes after which the copies so far are submitted and those before them waited for. wgpu keeps staging memory until its copy has run,
/// so that loading a model would else take the model's size in host memory.
const WRITE_FLUSH_BYTES: usize = 32 << 20;

/// From this size on a buffer has memory of its own, where we can ask the driver for it. NVIDIA's then seems to use larger pages than in wgpu's blocks,
/// and where 4 GB are read for every token that counts: on an H200 Llama-3-8B in Q4_K decodes 590 instead of 554 token/s, Llama-2-7B in F16
/// 267 instead of 246, and is there in 0.72 s instead of 1.04.
const OWN_MEMORY_BYTES: u64 = 1 << 20;

/// A device of an adapter, with a queue of its own.
pub struct Gpu {
    /// The first to go, since it lets go of those who wait for it.
    #[cfg(feature = "cuda")]
    pub(super) cuda: Option<super::cuda::Side>,
    pub(super) info: Arc<GpuInfo>,
    pub(super) owner: Arc<Owner>,
    device: wgpu::Device,
    queue: wgpu::Queue,
    /// Where the device is Vulkan's: what it has beyond wgpu's, buffers with memory of their own among it.
    pub(super) shared: Option<Arc<native::Shared>>,
    pub(super) health: Arc<Health>,
    pipelines: Pipelines,
    staging: StagingPool,
    /// Held while a submission is encoded and handed over, so that those of several threads do not mix.
    order: Mutex<Order>,
}

#[derive(Default)]
pub(super) struct Order {
    bind_groups: BindGroups,
    /// Bytes written since the last flush.
    written_bytes: usize,
    /// The last flush: a submission that was made for writes alone.
    flushed: Option<Submission>,
}

/// A point in a device's queue: whether all up to it has run.
#[derive(Clone, Debug)]
pub struct Submission(Arc<AtomicBool>);

impl Gpu {
    pub(super) fn open(adapter: &wgpu::Adapter, info: GpuInfo, opening: Opening) -> Result<Self> {
        let owner = Owner::new(&info.name);
        let optional = wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::PIPELINE_CACHE;
        // Immediates hold the parameters of dispatches; wgpu has them on Vulkan, Metal and DX12.
        let needed = features_of(info.caps.tier) | wgpu::Features::IMMEDIATES;
        let features = needed | (adapter.features() & optional);
        let desc = wgpu::DeviceDescriptor {
            label: Some("runahead"),
            required_features: features,
            required_limits: adapter.limits(),
            experimental_features: native::experimental_features(features),
            memory_hints: wgpu::MemoryHints::Performance,
            trace: wgpu::Trace::Off,
        };
        let (device, queue, shared) = match native::open(adapter, &desc, opening) {
            Some(native::Opened { device, queue, shared }) => (device, queue, Some(shared)),
            None => {
                let (device, queue) = pollster::block_on(adapter.request_device(&desc))
                    .map_err(|e| owner.error(format!("the device could not be opened: {e}")))?;
                (device, queue, None)
            }
        };
        Ok(Self {
            #[cfg(feature = "cuda")]
            cuda: None,
            info: Arc::new(info),
            health: Health::watch(&device, &owner),
            pipelines: Pipelines::new(&owner),
            owner,
            device,
            queue,
            shared,
            staging: StagingPool::default(),
            order: Mutex::default(),
        })
    }

    /// The adapter, with the capabilities that this device was opened with.
    pub fn info(&self) -> &GpuInfo {
        &self.info
    }

    /// What shaders of this device may use.
    pub fn caps(&self) -> &Caps {
        &self.info.caps
    }

    /// What the driver gave of what this device was opened with.
    pub fn opened_with(&self) -> Opening {
        self.shared.as_ref().map_or_else(Opening::default, |shared| shared.opening())
    }

    /// A zeroed buffer. It is cleared here, so that the memory is really there and no later submission has to do it.
    ///
    /// Errors: [`Error::Memory`] where `bytes` is more than [`Caps::max_buffer_bytes`] or than the adapter can give, [`Error::Adapter`] for other
    /// refusals of the driver.
    pub fn buffer(&self, label: &str, bytes: u64) -> Result<Buffer> {
        let own_memory = bytes >= OWN_MEMORY_BYTES;
        #[cfg(feature = "cuda")]
        let own_memory = own_memory || self.cuda.is_some();
        if own_memory { self.shared_buffer(label, bytes) } else { self.pooled_buffer(label, bytes) }
    }

    /// A buffer in memory that wgpu shares out.
    fn pooled_buffer(&self, label: &str, bytes: u64) -> Result<Buffer> {
        let (raw, _) = self.cleared(label, bytes, |size, usage| {
            let desc = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
            Ok((self.device.create_buffer(&desc), ()))
        })?;
        Ok(Buffer::new(raw, bytes, label, &self.owner))
    }

    /// As [`buffer`](Self::buffer), whatever its size in memory of its own that also what the device was [opened with](Opening) can use; an ordinary
    /// buffer where the device is not Vulkan's.
    pub fn shared_buffer(&self, label: &str, bytes: u64) -> Result<Buffer> {
        let Some(shared) = &self.shared else { return self.pooled_buffer(label, bytes) };
        let (raw, handles) = self.cleared(label, bytes, |size, usage| shared.buffer(label, size, usage))?;
        let buffer = Buffer::shared(raw, handles, bytes, label, &self.owner);
        #[cfg(feature = "cuda")]
        if let (Some(cuda), Some(handles)) = (&self.cuda, buffer.handles()) {
            cuda.touch();
            buffer.set_imported(cuda.import(shared, handles).map_err(|reason| self.owner.error(reason))?);
        }
        Ok(buffer)
    }

    /// Makes a buffer and clears it.
    fn cleared<T>(
        &self,
        label: &str,
        bytes: u64,
        make: impl FnOnce(u64, wgpu::BufferUsages) -> std::result::Result<(wgpu::Buffer, T), native::Refusal>,
    ) -> Result<(wgpu::Buffer, T)> {
        let limit = self.caps().max_buffer_bytes / 4 * 4;
        if bytes > limit {
            return Err(self.memory(label, bytes, limit));
        }
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let _order = self.order();
        let made = self.scoped(label, bytes, || {
            let (buffer, more) = make(Buffer::padded_bytes(bytes), usage)?;
            let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            encoder.clear_buffer(&buffer, 0, None);
            self.queue.submit([encoder.finish()]);
            Ok((buffer, more))
        })?;
        made.map_err(|refusal| match refusal {
            native::Refusal::Memory => self.memory(label, bytes, native::free_memory(&self.device).unwrap_or(0)),
            native::Refusal::Driver(reason) => self.owner.error(reason),
        })
    }

    /// Host bytes into a buffer, after every earlier submission and before every later one. `offset` is a multiple of 4; so is the length,
    /// unless it ends where the buffer ends.
    ///
    /// Many megabytes go in pieces, and this waits for the device now and then: staging memory stays bounded.
    pub fn write(&self, buffer: &Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        buffer.has(&self.owner, offset, bytes.len() as u64)?;
        let end = offset + bytes.len() as u64;
        if !offset.is_multiple_of(4) || !(end.is_multiple_of(4) || end == buffer.bytes()) {
            let (n, label) = (bytes.len(), buffer.label());
            return Err(self.owner.error(format!("a write of {n} bytes at {offset} of `{label}` is not aligned to 4")));
        }
        let offsets = (offset..).step_by(WRITE_PIECE_BYTES);
        for (offset, piece) in offsets.zip(bytes.chunks(WRITE_PIECE_BYTES)) {
            self.write_piece(buffer, offset, piece)?;
        }
        Ok(())
    }

    /// Keeps what the driver compiles in a file of this folder, and begins with what is there. Where that cannot be, nothing changes but the time that
    /// compiling takes.
    pub fn keep_pipelines(&self, folder: &Path) {
        if !self.device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return;
        }
        let Some(path) = compiling::cache_path(folder, &self.device.adapter_info()) else { return };
        if let Ok(cache) = self.scoped("a pipeline cache", 0, || DiskCache::open(&self.device, path)) {
            self.pipelines.keep_on_disk(cache);
        }
    }

    /// The pipeline of a shader. The shader is checked here; the driver goes on compiling it until it is needed.
    ///
    /// Errors: [`Error::Shader`] with the shader's name. What the driver says against it is said by the submission that needs it.
    pub fn pipeline(&self, spec: &ShaderSpec) -> Result<Arc<Pipeline>> {
        let key = spec.key();
        if let Some(pipeline) = self.pipelines.get(&key) {
            return Ok(pipeline);
        }
        let refused = |reason: String| Error::Shader { name: spec.name.clone(), reason };
        match self.scoped(&spec.name, 0, || self.pipelines.begin(&self.device, self.caps(), spec)) {
            Ok(pipeline) => Ok(self.pipelines.keep(key, pipeline?)),
            Err(Error::Adapter { reason, .. }) => Err(refused(reason)),
            Err(Error::Memory { .. }) => Err(refused("the driver is out of memory".to_owned())),
            Err(other) => Err(other),
        }
    }

    /// An empty recording for this device.
    pub fn recording(&self) -> Recording {
        Recording::new(self.info.clone(), self.owner.clone())
    }

    /// Hands work to the device; does not wait for it.
    ///
    /// Errors: [`Error::Memory`] where there is none for downloads, [`Error::AdapterLost`], [`Error::Adapter`]; among them what went wrong on the
    /// device since the last call.
    pub fn submit(&self, recording: Recording) -> Result<Submission> {
        #[cfg(feature = "cuda")]
        if let Some(cuda) = &self.cuda {
            cuda.touch();
        }
        self.submit_armed(recording, |_| ())
    }

    /// As [`submit`](Self::submit); `arm` is called right before the work is handed over.
    pub(super) fn submit_armed(&self, recording: Recording, arm: impl FnOnce(&wgpu::Queue)) -> Result<Submission> {
        self.health.check()?;
        if !Arc::ptr_eq(&recording.owner, &self.owner) {
            return Err(self.owner.error("the recording belongs to another device"));
        }
        recording.wait_for_pipelines()?;
        let mut order = self.order();
        let submitted = self.scoped("a submission", recording.staging_bytes(), || {
            let (commands, filled) = recording.encode(&self.device, &mut order.bind_groups, &self.staging);
            arm(&self.queue);
            self.queue.submit([commands]);
            filled.into_iter().for_each(|staging| staging.map());
            self.point()
        });
        if submitted.is_err() {
            order.bind_groups.clear();
        }
        submitted
    }

    /// Blocks until a submission and all before it have run.
    ///
    /// Looks at growing intervals instead of waiting on wgpu's fence: in wgpu 30 a `PollType::Wait` that times out panics ("If the queue is empty
    /// …") when another thread's submit or poll retires the same submission between the time-out and its own look, and loses callbacks. The
    /// intervals add 6 % or 0.2 ms to a wait, whichever is less.
    pub fn wait(&self, submission: &Submission, wait: &Wait) -> Result<()> {
        let begun = Instant::now();
        wait.until("the GPU's work", |slice| {
            let slice_begun = Instant::now();
            loop {
                self.health.check()?;
                self.poll()?;
                #[cfg(feature = "cuda")]
                if let Some(cuda) = &self.cuda {
                    cuda.check(&self.owner)?;
                }
                if submission.0.load(Ordering::Acquire) {
                    return Ok(Some(()));
                }
                if slice_begun.elapsed() >= slice {
                    return Ok(None);
                }
                std::thread::sleep((begun.elapsed() / 16).min(Duration::from_micros(200)));
            }
        })
    }

    /// The queue as it stands; under the order lock, right after a submit.
    fn point(&self) -> Submission {
        let done = Arc::new(AtomicBool::new(false));
        let tell = done.clone();
        self.queue.on_submitted_work_done(move || tell.store(true, Ordering::Release));
        Submission(done)
    }

    /// Waits for the submission that holds the download, then shows its bytes to `read`.
    pub fn collect(
        &self,
        download: Download,
        submission: &Submission,
        wait: &Wait,
        read: &mut dyn FnMut(&[u8]),
    ) -> Result<()> {
        self.wait(submission, wait)?;
        if download.range.is_empty() {
            read(&[]);
            return Ok(());
        }
        let Some(staged) = download.staged.get() else {
            return Err(self.owner.error("a download was collected whose recording was not submitted"));
        };
        self.wait_for_mapping(staged, wait)?;
        let failed = |e: String| self.owner.error(format!("a download cannot be read: {e}"));
        let view = staged.buffer.slice(0..staged.bytes).get_mapped_range().map_err(|e| failed(e.to_string()))?;
        match view.get(download.range.clone()) {
            Some(bytes) => read(bytes),
            None => return Err(failed(format!("{} bytes are mapped, not {:?}", view.len(), download.range))),
        }
        drop(view);
        staged.buffer.unmap();
        self.staging.put(staged.buffer.clone());
        Ok(())
    }

    /// When the parts of a timed submission ran, in order; waits for it. Nothing where the device has no clock.
    pub fn times(&self, timing: &Timing, submission: &Submission, wait: &Wait) -> Result<Vec<Stretch>> {
        let mut stretches = Vec::new();
        if let Some(download) = timing.download() {
            let tick_ns = self.queue.get_timestamp_period();
            self.collect(download, submission, wait, &mut |bytes| stretches = timing.stretches(bytes, tick_ns))?;
        }
        Ok(stretches)
    }

    /// Memory that the adapter can still give, in bytes, where its driver tells; buffers that nobody holds any more are freed first.
    pub fn free_memory(&self) -> Option<u64> {
        #[cfg(feature = "cuda")]
        if let Some(cuda) = &self.cuda {
            // What this check would report, the next submit or wait reports too.
            let _ = cuda.check(&self.owner);
        }
        drop(self.order());
        // What this poll would report, the next submit or wait reports too.
        let _ = self.poll();
        native::free_memory(&self.device)
    }

    fn write_piece(&self, buffer: &Buffer, offset: u64, piece: &[u8]) -> Result<()> {
        let padded = piece.len().next_multiple_of(4);
        let Some(size) = wgpu::BufferSize::new(padded as u64) else { return Ok(()) };
        self.scoped("staging a write", padded as u64, || {
            if let Some(mut view) = self.queue.write_buffer_with(buffer.raw(), offset, size) {
                native::copy_to(view.slice(..piece.len()), piece);
                view.slice(piece.len()..).copy_from_slice(&[0; 3][..padded - piece.len()]);
            }
        })?;
        #[cfg(feature = "cuda")]
        if let Some(cuda) = &self.cuda {
            cuda.touch();
        }
        // The copy above took no lock of ours: a submit of another thread is not held up by it.
        let mut order = lock(&self.order);
        order.written_bytes += padded;
        if order.written_bytes < WRITE_FLUSH_BYTES {
            return Ok(());
        }
        order.written_bytes = 0;
        let flush = self.scoped("a write", 0, || {
            self.queue.submit([]);
            self.point()
        })?;
        let before = order.flushed.replace(flush);
        drop(order);
        before.map_or(Ok(()), |flush| self.wait(&flush, &Wait::new(&Cancel::new())))
    }

    /// As a rule the mapping came with the poll that saw the submission's end; another thread's poll may still be about to announce it.
    fn wait_for_mapping(&self, staged: &Staged, wait: &Wait) -> Result<()> {
        wait.until("a download", |slice| {
            self.health.check()?;
            let result = match staged.mapped.try_recv() {
                Err(flume::TryRecvError::Empty) => {
                    self.poll()?;
                    match staged.mapped.recv_timeout(slice.min(Duration::from_millis(1))) {
                        Err(flume::RecvTimeoutError::Timeout) => return Ok(None),
                        Err(flume::RecvTimeoutError::Disconnected) => Err(wgpu::BufferAsyncError),
                        Ok(result) => result,
                    }
                }
                Err(flume::TryRecvError::Disconnected) => Err(wgpu::BufferAsyncError),
                Ok(result) => result,
            };
            result.map(Some).map_err(|e| self.owner.error(format!("a download could not be mapped: {e}")))
        })
    }

    /// The order of submissions, once the bind groups of dropped buffers are gone.
    pub(super) fn order(&self) -> MutexGuard<'_, Order> {
        let mut order = lock(&self.order);
        order.bind_groups.forget(&self.owner.take_gone());
        order
    }

    /// Runs callbacks that are due.
    fn poll(&self) -> Result<()> {
        // wgpu 30 reports a device that is lost during a poll by a panic; it holds no lock then, so it can be caught and told as an error.
        match std::panic::catch_unwind(AssertUnwindSafe(|| self.device.poll(wgpu::PollType::Poll))) {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) => Err(self.owner.error(format!("waiting: {e}"))),
            Err(_) => {
                self.health.check()?;
                Err(self.health.lost_error("while its work was waited for"))
            }
        }
    }

    /// Runs `f` and gives the error that the device reported meanwhile, if any; `what` and `needed_bytes` are for [`Error::Memory`]. Error scopes
    /// are the thread's own.
    fn scoped<T>(&self, what: &str, needed_bytes: u64, f: impl FnOnce() -> T) -> Result<T> {
        let (value, error) = compiling::watched(&self.device, f);
        // A lost device reports nothing to the scopes, and what it gives back is of no use.
        self.health.check_lost()?;
        match error {
            None => Ok(value),
            Some(wgpu::Error::OutOfMemory { .. }) => {
                Err(self.memory(what, needed_bytes, native::free_memory(&self.device).unwrap_or(0)))
            }
            Some(e) => Err(self.owner.error(e.to_string())),
        }
    }

    fn memory(&self, what: &str, needed: u64, available: u64) -> Error {
        Error::Memory { adapter: self.info.name.clone(), what: what.to_owned(), needed, available }
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpu({})", self.info.name)
    }
}

/// What the driver reported outside of any error scope.
pub(super) struct Health {
    owner: Arc<Owner>,
    lost: Mutex<Option<String>>,
    error: Mutex<Option<String>>,
}

impl Health {
    fn watch(device: &wgpu::Device, owner: &Arc<Owner>) -> Arc<Self> {
        let health = Arc::new(Self { owner: owner.clone(), lost: Mutex::default(), error: Mutex::default() });
        let watcher = health.clone();
        device.set_device_lost_callback(move |reason, message| {
            lock(&watcher.lost).get_or_insert(format!("{reason:?} {message}"));
        });
        let watcher = health.clone();
        // Without a handler of ours, wgpu panics.
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| {
            lock(&watcher.error).get_or_insert(e.to_string());
        }));
        health
    }

    /// The device's loss, or the first error that no scope has caught; an error is told once, a loss for ever.
    fn check(&self) -> Result<()> {
        self.check_lost()?;
        lock(&self.error).take().map_or(Ok(()), |reason| Err(self.owner.error(reason)))
    }

    pub fn check_lost(&self) -> Result<()> {
        lock(&self.lost).as_deref().map_or(Ok(()), |reason| Err(self.lost_error(reason)))
    }

    fn lost_error(&self, reason: &str) -> Error {
        Error::AdapterLost { adapter: self.owner.adapter.clone(), reason: reason.to_owned() }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::tests::{adapter, double, double_spec, gpu, wait};
    use crate::gpu::{HostCopy, HostMemory, Transfers};

    #[test]
    fn a_lost_device_gives_errors_that_name_the_adapter() {
        let gpu = adapter().open_with(Opening { transfers: Transfers::Anywhere, export: false }).unwrap();
        let pipeline = gpu.pipeline(&double_spec()).unwrap();
        let (buffer, shared) = (gpu.buffer("data", 64).unwrap(), gpu.shared_buffer("rows", 1 << 20).unwrap());
        let mut recording = gpu.recording();
        double(&mut recording, &pipeline, &buffer, 16);
        let submission = gpu.submit(recording).unwrap();
        gpu.wait(&submission, &wait()).unwrap();
        let rows = [HostCopy { buffer: &shared, offset: 0, host_offset: 0, bytes: 1 << 20 }];
        let mut memory = HostMemory::new(1 << 20).unwrap();
        let under_way = gpu.fetch(vec![(HostMemory::new(1 << 20).unwrap(), rows.to_vec())]).unwrap();

        // wgpu lets go of all its buffers; a copy that is under way keeps what it needs.
        gpu.device.destroy();
        let _ = gpu.poll();
        assert!(under_way.is_err() || under_way.is_ok_and(|fetch| fetch.finish(&wait()).is_ok()));
        let mut recording = gpu.recording();
        double(&mut recording, &pipeline, &buffer, 16);
        let errors = [
            gpu.submit(recording).map(drop),
            gpu.buffer("more", 64).map(drop),
            gpu.write(&buffer, 0, &[0; 4]),
            gpu.wait(&submission, &wait()),
            gpu.copy_to_host(&rows, &mut memory, &wait()).map(drop),
            gpu.copy_from_host(&memory, &rows, &wait()).map(drop),
            gpu.fetch(vec![(memory, rows.to_vec())]).map(drop),
        ];
        for error in errors {
            let name = &gpu.info().name;
            assert!(matches!(&error, Err(Error::AdapterLost { adapter, .. }) if adapter == name), "{error:?}");
        }
    }

    #[test]
    fn errors_outside_of_scopes_are_told_by_the_next_submit() {
        let gpu = gpu();
        let _ = gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 4,
            usage: wgpu::BufferUsages::empty(),
            mapped_at_creation: false,
        });
        assert!(matches!(gpu.submit(gpu.recording()), Err(Error::Adapter { .. })));
        gpu.submit(gpu.recording()).unwrap();
    }

    #[test]
    fn large_buffers_have_memory_of_their_own_where_the_driver_can_be_asked() {
        let gpu = gpu();
        let own = |bytes: u64| gpu.buffer("data", bytes).unwrap().handles().is_some();
        assert!(!own(OWN_MEMORY_BYTES - 4) || gpu.opened_with().export);
        assert_eq!([OWN_MEMORY_BYTES, 3 * OWN_MEMORY_BYTES + 4].map(own), [gpu.shared.is_some(); 2]);
        assert_eq!(gpu.shared.is_some(), gpu.info().backend == "vulkan");
    }

    #[test]
    fn bind_groups_of_dropped_buffers_are_let_go() {
        let gpu = gpu();
        let pipeline = gpu.pipeline(&double_spec()).unwrap();
        let kept = gpu.buffer("kept", 64).unwrap();
        for _ in 0..3 {
            let dropped = gpu.buffer("dropped", 64).unwrap();
            let mut recording = gpu.recording();
            double(&mut recording, &pipeline, &kept, 16);
            double(&mut recording, &pipeline, &dropped, 16);
            gpu.submit(recording).unwrap();
            assert_eq!(lock(&gpu.order).bind_groups.len(), 2);
        }
        assert_eq!(gpu.order().bind_groups.len(), 1);
    }

    #[test]
    fn staging_buffers_are_used_again() {
        let gpu = gpu();
        let buffer = gpu.buffer("data", 10_000).unwrap();
        for _ in 0..5 {
            let mut recording = gpu.recording();
            let download = recording.download(&buffer, 0..10_000).unwrap();
            let submission = gpu.submit(recording).unwrap();
            gpu.collect(download, &submission, &wait(), &mut |bytes| assert!(bytes.iter().all(|&b| b == 0))).unwrap();
        }
        assert_eq!(gpu.staging.n_idle(), 1);
    }
}
