//! CUDA on the device of a [`Gpu`](super::Gpu), on the same buffers: what it computes takes turns with wgpu's submissions, ordered by a timeline that
//! both sides wait for and raise.
//!
//! Contract. A device that was opened for export and then given CUDA by [`with_cuda`](super::Gpu::with_cuda) makes all its buffers so that CUDA sees
//! them ([`cuda_address`](super::Buffer::cuda_address)). A [`Mixed`] recording is a value like a [`Recording`](super::Recording);
//! [`submit_mixed`](super::Gpu::submit_mixed) hands its runs over one after another and does not wait: where wgpu's work follows CUDA's, the queue
//! waits for the timeline, and the other way round the stream does. A submission that ends with CUDA's work is followed by an empty one of wgpu's
//! which waits for it, so that [`wait`](super::Gpu::wait), writes and downloads need to know nothing of CUDA. CUDA's work that follows CUDA's waits
//! for nothing, unless wgpu was given work or bytes in between.
//!
//! Failures. An error of CUDA is told by the submit, or by the wait during which it shows, and by every submit after it; the timeline is then
//! raised from the host, so that no queue waits for ever. The end of a device lets both sides finish first, for a bounded time.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::buffer::Owner;
use super::native::{Handles, Shared, Timeline};
use crate::error::Result;

mod blas;
pub(super) mod driver;
mod mixed;
mod peer;
mod turns;

pub use blas::MatMul;
pub use driver::{Kernel, Launch, Module};
pub use mixed::Mixed;
pub use peer::PeerMemory;

use driver::Memory;
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
