//! CUDA on the device of a [`Gpu`], on the same buffers: what it computes takes turns with wgpu's submissions, ordered by a timeline that both
//! sides wait for and raise.
//!
//! Contract. A [`Gpu`] that was opened for export and then given CUDA by [`Gpu::with_cuda`] makes all its buffers so that CUDA sees them
//! ([`Buffer::cuda_address`]). A [`Mixed`] recording is a value like a [`Recording`]; [`Gpu::submit_mixed`] hands its runs over one after another
//! and does not wait: where wgpu's work follows CUDA's, the queue waits for the timeline, and the other way round the stream does. A submission
//! that ends with CUDA's work is followed by an empty one of wgpu's which waits for it, so that [`Gpu::wait`], writes and downloads need to know
//! nothing of CUDA. CUDA's work that follows CUDA's waits for nothing, unless wgpu was given work or bytes in between.
//!
//! Failures. An error of CUDA is told by the submit, or by the wait during which it shows, and by every submit after it; the timeline is then
//! raised from the host, so that no queue waits for ever. The end of a device lets both sides finish first, for a bounded time.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::buffer::{Buffer, Owner};
use super::device::{Gpu, Submission};
use super::native::{Handles, Shared, Timeline};
use super::recorder::Recording;
use crate::error::Result;

mod blas;
mod driver;
mod mixed;
mod peer;

pub use blas::MatMul;
pub(super) use driver::Memory;
pub use driver::{Kernel, Launch, Module};
pub use mixed::Mixed;
pub use peer::PeerMemory;

use mixed::{Command, Commands};

/// The lowest compute capability whose instructions our kernels use: 8.0.
const LEAST_CAPABILITY: i32 = 80;

/// What there is of CUDA on this machine: the driver's version and cuBLASLt's, or why it cannot be used.
pub fn cuda_versions() -> std::result::Result<[String; 2], String> {
    let driver = driver::version()?;
    let blas = blas::version().ok_or("cuBLASLt: the library was not found")?;
    Ok([format!("{}.{}", driver / 1000, driver % 1000 / 10), format!("{}.{}", blas / 10_000, blas / 100 % 100)])
}

/// CUDA's side of a device.
pub(super) struct Side {
    context: Arc<driver::Context>,
    blas: blas::Blas,
    stream: driver::Stream,
    /// For copies from other devices.
    inward: driver::Stream,
    idle: Arc<peer::Idle>,
    /// The timeline as CUDA knows it; goes after the stream.
    semaphore: driver::Semaphore,
    timeline: Timeline,
    order: Mutex<Order>,
    /// Whether wgpu was given work or bytes that the stream has not waited for.
    touched: AtomicBool,
}

#[derive(Default)]
struct Order {
    /// The highest value of the timeline that was promised.
    value: u64,
    /// The value that wgpu's next work waits for.
    awaited: Option<u64>,
    /// Work that may still run, and the value that tells its end.
    running: VecDeque<(u64, Commands)>,
    /// The first failure.
    failed: Option<String>,
}

impl Order {
    fn next(&mut self) -> u64 {
        self.value += 1;
        self.value
    }
}

impl Side {
    /// For the CUDA device at `pci`, which is the one that `shared` was opened on.
    fn new(shared: &Arc<Shared>, pci: &str) -> std::result::Result<Self, String> {
        let context = driver::Context::open(pci)?;
        let capability = context.capability()?;
        if capability < LEAST_CAPABILITY {
            let [found, needed] = [capability, LEAST_CAPABILITY].map(|c| format!("{}.{}", c / 10, c % 10));
            return Err(format!("CUDA: compute capability {found}, {needed} is needed"));
        }
        let (timeline, handle) = Timeline::new(shared)?;
        Ok(Self {
            blas: blas::Blas::new(&context)?,
            stream: driver::Stream::new(&context)?,
            inward: driver::Stream::new(&context)?,
            idle: Arc::default(),
            semaphore: driver::Semaphore::import(&context, handle)?,
            context,
            timeline,
            order: Mutex::default(),
            touched: AtomicBool::new(true),
        })
    }

    /// wgpu was given work or bytes.
    pub fn touch(&self) {
        self.touched.store(true, Ordering::Release);
    }

    /// The memory of a buffer as CUDA sees it.
    pub fn import(&self, shared: &Shared, handles: &Handles) -> std::result::Result<Memory, String> {
        let handle: OwnedFd = shared.export_memory(handles)?;
        Memory::import(&self.context, handle, handles.memory_bytes)
    }

    /// An error where work on the stream has failed; lets go of what it worked on where all has run.
    pub fn check(&self, owner: &Owner) -> Result<()> {
        let mut order = self.order();
        match self.stream.is_done() {
            Ok(true) => order.running.clear(),
            Ok(false) => {}
            Err(reason) => self.fail(&mut order, reason),
        }
        order.failed.clone().map_or(Ok(()), |reason| Err(owner.error(reason)))
    }

    fn order(&self) -> MutexGuard<'_, Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a failure and lets go of everybody who waits for CUDA.
    fn fail(&self, order: &mut Order, reason: String) {
        order.failed.get_or_insert(reason);
        self.timeline.raise(order.value);
    }

    fn run(&self, commands: &Commands) -> std::result::Result<(), String> {
        commands.list.iter().try_for_each(|command| match command {
            Command::Launch(launch) => launch.run(&self.stream),
            Command::MatMul(sizes, addresses) => self.blas.run(sizes, *addresses, &self.stream),
            Command::Copy([to, from], bytes) => self.stream.copy_here(*to, *from, *bytes),
        })
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // What is under way ends by itself; what waits for one that will not come is let go.
        if !self.stream.settle() {
            self.timeline.raise(self.order().value);
            self.stream.settle();
        }
        self.timeline.raise(self.order().value);
    }
}

impl Gpu {
    /// The same device with CUDA beside wgpu.
    ///
    /// Errors: [`Error::Adapter`](crate::Error::Adapter) with the reason where the device was not opened for export, or CUDA does not have it, is too old or refuses.
    pub fn with_cuda(mut self) -> Result<Self> {
        let refused = |owner: &Owner, reason: &str| owner.error(reason);
        let Some(shared) = self.shared.as_ref().filter(|shared| shared.opening().export) else {
            return Err(refused(&self.owner, "CUDA: this device's memory cannot be exported"));
        };
        let Some(pci) = self.info().pci.clone() else {
            return Err(refused(&self.owner, "CUDA: the driver does not tell this device's PCI id"));
        };
        let side = Side::new(shared, &pci).map_err(|reason| refused(&self.owner, &reason))?;
        self.cuda = Some(side);
        Ok(self)
    }

    /// An empty recording of work for both sides.
    pub fn mixed(&self) -> Mixed {
        let (info, owner) = (self.info.clone(), self.owner.clone());
        Mixed::new(move || Recording::new(info.clone(), owner.clone()))
    }

    /// Compiles kernels for CUDA.
    ///
    /// Errors: [`Error::Adapter`](crate::Error::Adapter) with the driver's reason.
    pub fn cuda_module(&self, ptx: &str) -> Result<Arc<Module>> {
        let side = self.side()?;
        Module::compile(&side.context, ptx).map_err(|reason| self.owner.error(reason))
    }

    /// A kernel of a module, to be launched with so many bytes of shared memory beyond its own.
    ///
    /// Errors: [`Error::Adapter`](crate::Error::Adapter) where there is none of this name, or the device has less memory.
    pub fn cuda_kernel(&self, module: &Arc<Module>, name: &str, shared_bytes: u32) -> Result<Kernel> {
        module.kernel(name, shared_bytes).map_err(|reason| self.owner.error(reason))
    }

    /// Hands work to both sides; does not wait for it.
    ///
    /// Errors: as [`Gpu::submit`], and what CUDA says.
    pub fn submit_mixed(&self, work: Mixed) -> Result<Submission> {
        let side = self.side()?;
        side.check(&self.owner)?;
        let mut order = side.order();
        let done = side.timeline.value();
        while order.running.front().is_some_and(|(value, _)| *value <= done) {
            order.running.pop_front();
        }
        let mut last = None;
        for run in work.runs() {
            if !run.gpu.is_empty() {
                last = Some(self.submit_after(side, &mut order, run.gpu)?);
                side.touch();
            }
            if !run.cuda.list.is_empty() {
                run.cuda.buffers.iter().try_for_each(|buffer| buffer.has(&self.owner, 0, 0))?;
                self.submit_cuda(side, &mut order, run.cuda)?;
                last = None;
            }
        }
        match last {
            Some(submission) => Ok(submission),
            None => self.submit_after(side, &mut order, self.recording()),
        }
    }

    /// wgpu's work, behind CUDA's so far.
    fn submit_after(&self, side: &Side, order: &mut Order, recording: Recording) -> Result<Submission> {
        let awaited = order.awaited.take();
        self.submit_armed(recording, |queue| {
            if let Some(value) = awaited {
                side.timeline.next_waits(queue, value);
            }
        })
    }

    /// CUDA's work, behind wgpu's so far.
    fn submit_cuda(&self, side: &Side, order: &mut Order, commands: Commands) -> Result<()> {
        let mut run = || -> std::result::Result<(), String> {
            if side.touched.swap(false, Ordering::AcqRel) {
                let (awaited, value) = (order.awaited.take(), order.next());
                let raised = self.submit_armed(self.recording(), |queue| {
                    if let Some(awaited) = awaited {
                        side.timeline.next_waits(queue, awaited);
                    }
                    side.timeline.next_raises(queue, value);
                });
                raised.map_err(|e| e.to_string())?;
                side.stream.wait(&side.semaphore, value)?;
            }
            side.run(&commands)?;
            let value = order.next();
            side.stream.raise(&side.semaphore, value)?;
            order.awaited = Some(value);
            Ok(())
        };
        let launched = run();
        // Even where a launch failed, those before it may still run.
        let value = order.value;
        order.running.push_back((value, commands));
        launched.map_err(|reason| {
            side.fail(order, reason.clone());
            self.owner.error(reason)
        })
    }

    fn side(&self) -> Result<&Side> {
        self.cuda.as_ref().ok_or_else(|| self.owner.error("CUDA: the device was opened without it"))
    }
}

impl Buffer {
    /// Where it begins for CUDA. Errors: [`Error::Adapter`](crate::Error::Adapter) for a buffer of a device without CUDA.
    pub fn cuda_address(&self) -> Result<u64> {
        self.imported().map(Memory::address).ok_or_else(|| {
            self.owner().error(format!("CUDA: buffer `{}` is of a device that was opened without it", self.label()))
        })
    }
}
