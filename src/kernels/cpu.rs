//! The CPU as an adapter: the operations of [`Kernels`] on threads of its own, with the weights read from the file's mapping.
//!
//! A recording is a list of operations; `submit` computes them one after another, each spread over the adapter's threads, and returns when the
//! last one is done. All arithmetic is f32 on decoded weights. Activations are F32, the K/V cache F16 or F32. Submissions from several threads
//! wait for one another. Within a level the granule invariant holds here too: a product adds k in ascending order whatever the tile, and
//! attention's key blocks begin at key 0; between levels results differ by rounding.

use std::num::NonZero;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::{
    ArgMax, Attention, AttentionDecode, Embed, Kernels, MatrixSource, Norm, Part, Product, RopeCache, SoftCap, Work,
};
use crate::cancel::{Cancel, Wait};
use crate::dtype::{Dtype, Scalar};
use crate::error::{Error, Result};

mod attention;
mod matrix;
mod product;
mod rows;
mod scratch;
mod simd;
mod tensor;

pub use matrix::Matrix;
pub use simd::Level;
pub use tensor::Tensor;

use scratch::Scratch;
use simd::Simd;

/// The machine's CPU, or some of its threads.
#[derive(Debug)]
pub struct Cpu {
    name: Arc<str>,
    pool: rayon::ThreadPool,
    simd: Simd,
    /// One for each thread of the pool; kept, so that steady work allocates nothing.
    scratch: Vec<Mutex<Scratch>>,
    /// Held by the submission that computes.
    turn: Mutex<()>,
    /// Where the clock of timed recordings begins.
    opened: Instant,
}

/// Operations in the order in which they were recorded, and where to say when their parts ran.
#[derive(Default)]
pub struct Recording(Vec<Op>, Option<Timing>);

/// Filled in when the recording runs.
#[derive(Clone, Debug, Default)]
pub struct Timing(Arc<Mutex<Vec<Part>>>);

impl Timing {
    /// Adds an operation that ran, to the part before it if that is of a kind.
    fn add(&self, work: Work, start: Duration, end: Duration) {
        let mut parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match parts.last_mut() {
            Some(last) if last.work == work => last.end = end,
            _ => parts.push(Part { work, start, end }),
        }
    }
}

enum Op {
    Embed(rows::Embed),
    Norm(rows::Norm),
    Product(product::Product),
    RopeCache(rows::RopeCache),
    Attention(attention::Attention),
    AttentionDecode(attention::AttentionDecode),
    SoftCap(rows::SoftCap),
    ArgMax(rows::ArgMax),
    Download { from: Tensor, bytes: Range<usize>, to: Arc<Mutex<Option<Vec<u8>>>> },
}

/// Decodes whole blocks of a weight format: `values` holds as many elements as there are in `bytes`.
pub(crate) fn decode(format: Dtype, bytes: &[u8], values: &mut [f32]) {
    Simd::best().decode(format, bytes, values);
}

/// A submission, which has been computed when this value exists.
#[derive(Clone, Copy, Debug)]
pub struct Submitted(());

/// Elements on their way to the host: filled in when the recording runs.
#[derive(Debug)]
pub struct Download(Arc<Mutex<Option<Vec<u8>>>>);

/// What an operation has at hand while it runs.
struct Context<'a> {
    simd: Simd,
    scratch: &'a [Mutex<Scratch>],
    cancel: &'a Cancel,
    adapter: &'a str,
}

impl Context<'_> {
    /// Number of threads.
    fn threads(&self) -> usize {
        self.scratch.len()
    }

    /// Number of key splits, see [`Kernels::decode_splits`].
    fn splits(&self) -> usize {
        splits(self.threads())
    }

    /// Runs the tasks on all threads; a single one on the calling thread. Looks at the cancel before each.
    fn for_each<T: Send>(
        &self,
        tasks: Vec<T>,
        run: impl Fn(usize, T, &mut Scratch) -> Result<()> + Send + Sync,
    ) -> Result<()> {
        let one = |(i, task)| {
            self.cancel.check()?;
            let thread = rayon::current_thread_index().and_then(|thread| self.scratch.get(thread));
            let scratch = thread.map(Mutex::lock).and_then(std::result::Result::ok);
            run(i, task, &mut *scratch.ok_or_else(|| Error::WorkerDied { adapter: self.adapter.to_owned() })?)
        };
        if tasks.len() == 1 {
            tasks.into_iter().enumerate().try_for_each(one)
        } else {
            tasks.into_par_iter().enumerate().try_for_each(one)
        }
    }
}

/// Two splits a thread even out threads that are slower than others.
fn splits(threads: usize) -> usize {
    2 * threads
}

impl Cpu {
    /// The CPU under this name, with `threads` threads and the fastest instruction set that it has.
    ///
    /// # Errors
    /// [`Error::Adapter`] for no threads, or where the system refuses to start them.
    pub fn new(name: &str, threads: usize) -> Result<Self> {
        Self::with_level(name, threads, Level::best())
    }

    /// As [`new`](Self::new), with a given instruction set: for tests and comparisons.
    ///
    /// # Errors
    /// As [`new`](Self::new), and [`Error::Adapter`] where the CPU lacks the instruction set.
    pub fn with_level(name: &str, threads: usize, level: Level) -> Result<Self> {
        let fault = |reason: String| Error::Adapter { adapter: name.to_owned(), reason };
        let simd = Simd::new(level).ok_or_else(|| fault(format!("this CPU has no {level:?}")))?;
        if threads == 0 {
            return Err(fault("no threads".to_owned()));
        }
        let thread_name = name.to_owned();
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(move |i| format!("{thread_name}-{i}"))
            .build()
            .map_err(|e| fault(format!("{threads} threads: {e}")))?;
        let scratch = (0..threads).map(|_| Mutex::default()).collect();
        Ok(Self { name: name.into(), pool, simd, scratch, turn: Mutex::default(), opened: Instant::now() })
    }

    /// The machine's memory in bytes, where the system tells.
    pub fn memory_bytes() -> Option<u64> {
        meminfo("MemTotal")
    }

    /// Memory that can be had without swapping, in bytes, where the system tells.
    pub fn free_memory_bytes() -> Option<u64> {
        meminfo("MemAvailable")
    }

    /// As many threads as the system lets this process run at once.
    pub fn default_threads() -> usize {
        std::thread::available_parallelism().map_or(1, NonZero::get)
    }

    /// The instruction set in use.
    pub fn level(&self) -> Level {
        self.simd.level()
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.scratch.len()
    }

    fn fault(&self, reason: impl Into<String>) -> Error {
        Error::Adapter { adapter: self.name.to_string(), reason: reason.into() }
    }
}

impl Op {
    const fn work(&self) -> Work {
        match self {
            Op::Attention(_) => Work::Attention,
            Op::Download { .. } => Work::Download,
            _ => Work::Products,
        }
    }

    fn run(&self, ctx: &Context<'_>) -> Result<()> {
        match self {
            Op::Embed(op) => op.run(ctx),
            Op::Norm(op) => op.run(ctx),
            Op::Product(op) => op.run(ctx),
            Op::RopeCache(op) => op.run(ctx),
            Op::Attention(op) => op.run(ctx),
            Op::AttentionDecode(op) => op.run(ctx),
            Op::SoftCap(op) => op.run(ctx),
            Op::ArgMax(op) => op.run(),
            Op::Download { from, bytes, to } => {
                let copy = from.read()?.bytes()[bytes.clone()].to_vec();
                *to.lock().map_err(|_| from.fault("a thread died while it read a download"))? = Some(copy);
                Ok(())
            }
        }
    }
}

impl Kernels for Cpu {
    type Tensor = Tensor;
    type Matrix = Matrix;
    type Recording = Recording;
    type Submitted = Submitted;
    type Download = Download;
    type Timing = Timing;

    fn name(&self) -> &str {
        &self.name
    }

    fn products(&self) -> &'static str {
        "native"
    }

    fn activation(&self) -> Scalar {
        Scalar::F32
    }

    fn row_multiple(&self) -> usize {
        1
    }

    fn rows_at_once(&self, _width: usize) -> usize {
        512
    }

    fn tile_rows(&self) -> usize {
        1
    }

    fn works_beside_host(&self) -> bool {
        false
    }

    fn key_tile(&self) -> usize {
        tensor::KEY_BLOCK
    }

    fn decode_splits(&self) -> usize {
        splits(self.threads())
    }

    fn tensor(&self, label: &str, scalar: Scalar, len: usize) -> Result<Tensor> {
        Tensor::new(&self.name, label, scalar, len, self.free_memory())
    }

    fn matrix_bytes(&self, _: &MatrixSource) -> u64 {
        0
    }

    fn matrices(
        &self,
        sources: &[(&str, &MatrixSource)],
        cancel: &Cancel,
        step: &mut dyn FnMut(usize),
    ) -> Result<Vec<Matrix>> {
        let make = |(i, (label, source)): (usize, &(&str, &MatrixSource))| {
            cancel.check()?;
            step(i);
            Matrix::new(&self.name, label, source)
        };
        sources.iter().enumerate().map(make).collect()
    }

    fn write(&self, to: &Tensor, offset: usize, bytes: &[u8]) -> Result<()> {
        let size = to.scalar().bytes();
        let end = offset.checked_mul(size).and_then(|start| start.checked_add(bytes.len()));
        let words = bytes.len().is_multiple_of(4) && (offset.wrapping_mul(size)).is_multiple_of(4);
        if !words || end.is_none_or(|end| end > to.len() * size) {
            let (n, len) = (bytes.len(), to.len());
            return Err(to.fault(format_args!("{n} bytes written at element {offset} of {len}")));
        }
        to.write()?.bytes_mut()[offset * size..offset * size + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn begin(&self) -> Recording {
        Recording::default()
    }

    fn begin_timed(&self) -> (Recording, Timing) {
        let timing = Timing::default();
        (Recording(Vec::new(), Some(timing.clone())), timing)
    }

    fn embed(&self, rec: &mut Recording, op: Embed<'_, Self>) -> Result<()> {
        rec.0.push(Op::Embed(rows::Embed::new(&op)?));
        Ok(())
    }

    fn norm(&self, rec: &mut Recording, op: Norm<'_, Self>) -> Result<()> {
        rec.0.push(Op::Norm(rows::Norm::new(&op)?));
        Ok(())
    }

    fn product(&self, rec: &mut Recording, op: Product<'_, Self>) -> Result<()> {
        rec.0.push(Op::Product(product::Product::new(&op)?));
        Ok(())
    }

    fn rope_cache(&self, rec: &mut Recording, op: RopeCache<'_, Self>) -> Result<()> {
        rec.0.push(Op::RopeCache(rows::RopeCache::new(&op)?));
        Ok(())
    }

    fn attention(&self, rec: &mut Recording, op: Attention<'_, Self>) -> Result<()> {
        rec.0.push(Op::Attention(attention::Attention::new(&op)?));
        Ok(())
    }

    fn attention_decode(&self, rec: &mut Recording, op: AttentionDecode<'_, Self>) -> Result<()> {
        rec.0.push(Op::AttentionDecode(attention::AttentionDecode::new(&op, self.decode_splits())?));
        Ok(())
    }

    fn soft_cap(&self, rec: &mut Recording, op: SoftCap<'_, Self>) -> Result<()> {
        rec.0.push(Op::SoftCap(rows::SoftCap::new(&op)?));
        Ok(())
    }

    fn arg_max(&self, rec: &mut Recording, op: ArgMax<'_, Self>) -> Result<()> {
        rec.0.push(Op::ArgMax(rows::ArgMax::new(&op)?));
        Ok(())
    }

    fn download(&self, rec: &mut Recording, from: &Tensor, range: Range<usize>) -> Result<Download> {
        let size = from.scalar().bytes();
        let words = [range.start, range.end].iter().all(|i| i.wrapping_mul(size).is_multiple_of(4));
        if !words || range.start > range.end || range.end > from.len() {
            return Err(from.fault(format_args!("download of {range:?} of {} elements", from.len())));
        }
        let to = Arc::new(Mutex::new(None));
        let bytes = range.start * size..range.end * size;
        rec.0.push(Op::Download { from: from.clone(), bytes, to: to.clone() });
        Ok(Download(to))
    }

    fn submit(&self, rec: Recording, wait: &Wait) -> Result<Submitted> {
        // What another session computes here may take minutes.
        let _turn = wait.patient().until("the CPU adapter", |slice| match self.turn.try_lock() {
            Ok(turn) => Ok(Some(turn)),
            Err(std::sync::TryLockError::WouldBlock) => {
                std::thread::sleep(slice.min(std::time::Duration::from_millis(1)));
                Ok(None)
            }
            Err(std::sync::TryLockError::Poisoned(_)) => Err(Error::WorkerDied { adapter: self.name.to_string() }),
        })?;
        let ctx = Context { simd: self.simd, scratch: &self.scratch, cancel: &wait.cancel, adapter: &self.name };
        self.pool.install(|| {
            rec.0.iter().try_for_each(|op| {
                ctx.cancel.check()?;
                let start = self.opened.elapsed();
                op.run(&ctx)?;
                if let Some(timing) = &rec.1 {
                    timing.add(op.work(), start, self.opened.elapsed());
                }
                Ok(())
            })
        })?;
        Ok(Submitted(()))
    }

    fn wait(&self, _: &Submitted, _: &Wait) -> Result<()> {
        Ok(())
    }

    fn collect(&self, download: Download, _: &Submitted, _: &Wait, read: &mut dyn FnMut(&[u8])) -> Result<()> {
        let bytes = download.0.lock().ok().and_then(|mut bytes| bytes.take());
        read(&bytes.ok_or_else(|| self.fault("a download whose recording was not computed"))?);
        Ok(())
    }

    fn parts(&self, timing: Timing, _: &Submitted, _: &Wait) -> Result<Vec<Part>> {
        Ok(std::mem::take(&mut *timing.0.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn free_memory(&self) -> Option<u64> {
        Self::free_memory_bytes()
    }
}

/// A line of Linux's `/proc/meminfo`, in bytes; `None` on other systems.
fn meminfo(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}
