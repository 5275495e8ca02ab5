//! Weight matrices on their way to the device: one thread makes their buffers, others fill pieces of host memory with runs of rows, and a device that
//! copies beside its compute queue fetches these, so that the bus waits neither for a buffer nor for the end of a matrix. What a device does
//! not fetch is written by the thread that filled it.

use std::num::NonZero;
use std::ops::Range;

use super::matrix::{Matrix, Part, Plan};
use super::planes::RowBytes;
use super::tensor::Args;
use crate::cancel::{Cancel, Wait, all_or_cause, or_stop};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, HostCopy, HostMemory, Transfers};
use crate::kernels::MatrixSource;
use crate::threads;

/// Bytes of the rows that a thread fills at a time, where the device fetches them: a core's cache holds as many. On an H200 7.0 GB of F16 are there in 186 ms
/// so and in 182 with 4 MiB, 2.0 GB of Q4_K in 67 and 74.
const FETCHED_BYTES: usize = 1 << 20;

/// The same where they are written, which costs more for each run: 284 and 238 ms, 113 and 92.
const WRITTEN_BYTES: usize = 4 << 20;

/// Host memory for runs, in all.
const STAGING_BYTES: usize = 64 << 20;

/// Threads that fill, at most.
const MAX_FILLERS: usize = 16;

/// Threads that have runs fetched, and wait for it: two for each of a device's two queues, so that neither waits for the host.
const CARRIERS: usize = 4;

/// Runs that one submission fetches, at most.
const BATCH: usize = 8;

/// Runs whose buffers are there and that no thread has begun to fill, at most: enough for the time in which the next buffers are made.
const MAX_WAITING: usize = 64;

/// Uploads matrices, in buffers of at most `max_bytes`. `step` is called with the index of each before it is made.
pub(super) fn upload(
    gpu: &Gpu,
    sources: &[(&str, &MatrixSource)],
    max_bytes: u64,
    cancel: &Cancel,
    step: &mut dyn FnMut(usize),
) -> Result<Vec<Matrix>> {
    let plans = sources.iter().map(|(_, source)| Plan::new(source, max_bytes)).collect::<Result<Vec<_>>>()?;
    let (run_bytes, n_carriers) = match gpu.opened_with().transfers {
        Transfers::None => (WRITTEN_BYTES, 0),
        _ => (FETCHED_BYTES, CARRIERS),
    };
    let parts =
        || plans.iter().flat_map(|plan| plan.parts.iter().map(|(format, rows)| (plan.row_bytes(*format), rows)));
    let n_runs = parts().map(|(bytes, rows)| rows.len().div_ceil(rows_of_a_run(bytes, run_bytes))).sum::<usize>();
    let longest = parts().map(|(bytes, rows)| bytes.total() * rows.len().min(rows_of_a_run(bytes, run_bytes))).max();
    let piece_bytes = longest.unwrap_or(1);
    let n_pieces = (STAGING_BYTES / piece_bytes).max(2).min(n_runs);
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);

    let stop = cancel.child();
    let (runs, waiting) = flume::bounded(MAX_WAITING);
    let (free, idle) = flume::unbounded();
    let (filled, to_fetch) = flume::unbounded();
    let filler = Filler { gpu, wait: Wait::new(&stop), runs: waiting, idle, filled, free: free.clone() };
    let carrier = Carrier { gpu, wait: Wait::new(&stop), filled: to_fetch, free };
    // Beside the first buffers, since both take some milliseconds.
    let memory_to = carrier.free.clone();
    let mut work: Vec<Work<'_>> = vec![Box::new(move || take_memory(n_pieces, piece_bytes, &memory_to))];
    for filler in std::iter::repeat_n(filler, n_runs.min(cores).min(MAX_FILLERS)) {
        work.push(Box::new(move || filler.work()));
    }
    for carrier in std::iter::repeat_n(carrier, n_runs.min(n_carriers)) {
        work.push(Box::new(move || carrier.work()));
    }
    std::thread::scope(|scope| {
        let mut started = Vec::new();
        let made = or_stop(&stop, || {
            for work in work {
                started.push(threads::start(scope, ("upload", &gpu.info().name), &stop, work)?);
            }
            let wait = Wait::new(&stop);
            let upload = |(i, plan): (usize, _)| {
                stop.check()?;
                step(i);
                let matrix = make(gpu, sources[i].0, plan)?;
                hand_out(gpu, plan, &matrix, run_bytes, &runs, &wait)?;
                Ok(matrix)
            };
            plans.iter().enumerate().map(upload).collect::<Result<Vec<_>>>()
        });
        drop(runs);
        let died = |_| Err(Args("matrix").error("a thread died"));
        let ends: Vec<_> = started.into_iter().map(|thread| thread.join().unwrap_or_else(died)).collect();
        match (made, all_or_cause(ends)) {
            (Ok(_) | Err(Error::Cancelled), Err(cause)) => Err(cause),
            (made, _) => made,
        }
    })
}

/// What a thread does.
type Work<'a> = Box<dyn FnOnce() -> Result<()> + Send + 'a>;

/// Pieces of host memory, for whoever fills them.
fn take_memory(n: usize, bytes: usize, free: &flume::Sender<HostMemory>) -> Result<()> {
    for piece in HostMemory::pieces(n, bytes)? {
        // Where nobody takes it, the upload is over.
        let _ = free.send(piece);
    }
    Ok(())
}

fn rows_of_a_run(bytes: RowBytes, run_bytes: usize) -> usize {
    (run_bytes / bytes.total()).max(1)
}

/// A matrix whose buffers hold nothing yet.
fn make(gpu: &Gpu, label: &str, plan: &Plan<'_>) -> Result<Matrix> {
    let part = |(format, rows): &(_, Range<usize>)| {
        let bytes = plan.row_bytes(*format);
        let size = |row: usize| (row * rows.len()) as u64;
        let quants = gpu.buffer(label, size(bytes.quants))?;
        let scales = if bytes.scales > 0 { Some(gpu.buffer(label, size(bytes.scales))?) } else { None };
        Ok(Part { format: *format, rows: rows.clone(), quants, scales })
    };
    Ok(plan.matrix(plan.parts.iter().map(part).collect::<Result<_>>()?))
}

/// Hands out the runs of a matrix to those who fill them.
fn hand_out<'a>(
    gpu: &Gpu,
    plan: &'a Plan<'a>,
    matrix: &Matrix,
    run_bytes: usize,
    runs: &flume::Sender<Run<'a>>,
    wait: &Wait,
) -> Result<()> {
    let fetched = |part: &Part| gpu.reaches(&part.quants) && part.scales.as_ref().is_none_or(|s| gpu.reaches(s));
    if matrix.parts().iter().any(fetched) {
        // Buffers are cleared in the order of submissions, and fetched beside it.
        gpu.wait(&gpu.submit(gpu.recording())?, wait)?;
    }
    for part in matrix.parts() {
        let step = rows_of_a_run(plan.row_bytes(part.format), run_bytes);
        for start in part.rows.clone().step_by(step) {
            let rows = start..part.rows.end.min(start + step);
            let run = Run { plan, part: part.clone(), rows, fetched: fetched(part) };
            // Where nobody takes it, somebody has an error to tell.
            wait.patient().send(runs, run, "a thread")?;
        }
    }
    Ok(())
}

/// Rows of a part, few enough to be filled at once.
struct Run<'a> {
    plan: &'a Plan<'a>,
    part: Part,
    rows: Range<usize>,
    /// Whether the device fetches them.
    fetched: bool,
}

impl Run<'_> {
    /// The rows as the device reads them at the front of a piece: quants, then scales.
    fn fill(&self, piece: &mut [u8]) -> Result<()> {
        let (bytes, n) = (self.plan.row_bytes(self.part.format), self.rows.len());
        let (quants, scales) = piece[..n * bytes.total()].split_at_mut(n * bytes.quants);
        self.plan.repack(self.part.format, self.rows.clone(), quants, scales)
    }

    /// Their places in the piece and in the part's buffers.
    fn copies(&self) -> impl Iterator<Item = HostCopy<'_>> {
        let (bytes, n) = (self.plan.row_bytes(self.part.format), self.rows.len() as u64);
        let first = (self.rows.start - self.part.rows.start) as u64;
        let quants = Some((&self.part.quants, bytes.quants as u64, 0));
        let scales = self.part.scales.as_ref().map(|scales| (scales, bytes.scales as u64, n * bytes.quants as u64));
        let copy =
            move |(buffer, row, host_offset)| HostCopy { buffer, offset: first * row, host_offset, bytes: n * row };
        [quants, scales].into_iter().flatten().map(copy)
    }

    /// Writes them through the device's queue.
    fn write(&self, gpu: &Gpu, piece: &[u8]) -> Result<()> {
        self.copies().try_for_each(|HostCopy { buffer, offset, host_offset, bytes }| {
            gpu.write(buffer, offset, &piece[host_offset as usize..(host_offset + bytes) as usize])
        })
    }
}

/// A thread that fills pieces of host memory.
#[derive(Clone)]
struct Filler<'a> {
    gpu: &'a Gpu,
    wait: Wait,
    runs: flume::Receiver<Run<'a>>,
    idle: flume::Receiver<HostMemory>,
    free: flume::Sender<HostMemory>,
    filled: flume::Sender<(HostMemory, Run<'a>)>,
}

impl Filler<'_> {
    fn work(self) -> Result<()> {
        while let Some(run) = self.wait.recv_patiently(&self.runs)? {
            let Some(mut piece) = self.wait.recv_patiently(&self.idle)? else { return Ok(()) };
            run.fill(&mut piece)?;
            // Where nobody takes these, somebody has an error to tell.
            if run.fetched {
                let _ = self.filled.send((piece, run));
            } else {
                run.write(self.gpu, &piece)?;
                let _ = self.free.send(piece);
            }
        }
        Ok(())
    }
}

/// A thread that has the device fetch what is filled.
#[derive(Clone)]
struct Carrier<'a> {
    gpu: &'a Gpu,
    wait: Wait,
    filled: flume::Receiver<(HostMemory, Run<'a>)>,
    free: flume::Sender<HostMemory>,
}

impl Carrier<'_> {
    fn work(self) -> Result<()> {
        while let Some(first) = self.wait.recv_patiently(&self.filled)? {
            let more = self.filled.try_iter().take(BATCH - 1);
            let (pieces, runs): (Vec<_>, Vec<_>) = std::iter::once(first).chain(more).unzip();
            let from = pieces.into_iter().zip(&runs).map(|(piece, run)| (piece, run.copies().collect())).collect();
            let pieces = match self.gpu.fetch(from)? {
                Ok(fetch) => fetch.finish(&self.wait)?,
                Err(pieces) => {
                    // The driver has just refused the memory, and was not to be known to do so.
                    pieces.iter().zip(&runs).try_for_each(|(piece, run)| run.write(self.gpu, piece))?;
                    pieces
                }
            };
            for piece in pieces {
                let _ = self.free.send(piece);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;
    use crate::gpu::Opening;
    use crate::gpu::tests::{adapter, read};
    use crate::kernels::RowOrder;
    use crate::kernels::wgsl::planes::tests::noise;
    use crate::weights::WeightTensor;

    fn source(dtype: Dtype, rows: usize, width: usize, order: RowOrder) -> MatrixSource {
        let data = noise(rows * dtype.bytes(width).unwrap()).into();
        let tensor = WeightTensor { name: format!("{dtype:?}"), dtype, shape: vec![rows, width], data };
        MatrixSource { parts: vec![tensor; if order == RowOrder::Alternating { 2 } else { 1 }], rows: order }
    }

    #[test]
    fn every_run_arrives_whether_it_is_fetched_or_written() {
        // More runs than pieces of memory, runs of several and of all rows, buffers with memory of their own beside those without.
        let sources = [
            source(Dtype::F16, 3001, 4096, RowOrder::Stacked),
            source(Dtype::Q4K, 2051, 1024, RowOrder::Alternating),
            source(Dtype::Q6K, 7, 256, RowOrder::Stacked),
            source(Dtype::F32, 3, 1 << 19, RowOrder::Stacked),
            source(Dtype::Q5_0, 30_000, 4128, RowOrder::Stacked),
        ];
        let named: Vec<_> = sources.iter().map(|source| ("weights", source)).collect();
        for transfers in [Transfers::None, Transfers::Anywhere] {
            let gpu = adapter().open_with(Opening { transfers, export: false }).unwrap();
            let mut steps = Vec::new();
            let mut step = |i| steps.push(i);
            let made = upload(&gpu, &named, gpu.caps().max_binding_bytes, &Cancel::new(), &mut step).unwrap();
            assert_eq!(steps, [0, 1, 2, 3, 4]);
            for (matrix, source) in made.iter().zip(&sources) {
                let plan = Plan::new(source, gpu.caps().max_binding_bytes).unwrap();
                for part in matrix.parts() {
                    let bytes = plan.row_bytes(part.format);
                    let n = part.rows.len();
                    let (mut quants, mut scales) = (vec![0; n * bytes.quants], vec![0; n * bytes.scales]);
                    plan.repack(part.format, part.rows.clone(), &mut quants, &mut scales).unwrap();
                    assert!(read(&gpu, &part.quants, 0..part.quants.bytes()) == quants, "{transfers:?} {part:?}");
                    let there = part.scales.as_ref().map(|scales| read(&gpu, scales, 0..scales.bytes()));
                    assert!(there.unwrap_or_default() == scales, "{transfers:?} {part:?}: scales");
                }
            }
        }
    }

    #[test]
    fn a_cancel_ends_the_upload() {
        let gpu = adapter().open_with(Opening { transfers: Transfers::Anywhere, export: false }).unwrap();
        let source = source(Dtype::F16, 1000, 1024, RowOrder::Stacked);
        let (cancel, last) = (Cancel::new(), &mut 0);
        let mut step = |i| {
            *last = i;
            if i == 2 {
                cancel.cancel();
            }
        };
        let end = upload(&gpu, &[("weights", &source); 9], u64::MAX, &cancel, &mut step);
        assert!(matches!(end, Err(Error::Cancelled)), "{end:?}");
        assert_eq!(*last, 2);
        // One that no buffer takes is found before anything is made.
        let mut step = |_| panic!("nothing is begun");
        assert!(upload(&gpu, &[("weights", &source); 2], 100, &Cancel::new(), &mut step).is_err());
        let nothing = upload(&gpu, &[], u64::MAX, &Cancel::new(), &mut |_| ()).unwrap();
        assert!(nothing.is_empty());
    }
}
