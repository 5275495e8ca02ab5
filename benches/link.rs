//! How fast rows go from one adapter's cache to host memory and from there into another's, by each way of the link. `cargo bench --bench link`
//! takes the first GPU twice; `cargo bench --bench link -- 0 1` the first two. With the feature `cuda` also from device to device.

use std::sync::Arc;
use std::time::Instant;

use runahead::cancel::{Cancel, Wait};
use runahead::dtype::Scalar;
use runahead::engine::Link;
use runahead::error::Result;
#[cfg(feature = "cuda")]
use runahead::gpu::PeerMemory;
use runahead::gpu::{self, Gpu, HostMemory, Opening, copy_bytes};
#[cfg(feature = "cuda")]
use runahead::kernels::cuda::Cuda;
use runahead::kernels::wgsl::Wgsl;
use runahead::kernels::{Kernels, Run};

const MIB: usize = 1 << 20;
/// K and V of a piece in one layer, in MiB: Llama-2-7B has 16 KiB a token.
const SIZES: [usize; 5] = [1, 8, 32, 64, 140];
const REPETITIONS: usize = 12;

struct Side<K: Kernels> {
    kernels: K,
    halves: [K::Tensor; 2],
}

fn open(index: usize, opening: Opening) -> Result<Gpu> {
    let adapters = gpu::enumerate();
    adapters[index.min(adapters.len() - 1)].open_with(opening)
}

impl Side<Wgsl> {
    fn open(index: usize, link: Link, bytes: usize) -> Result<Self> {
        let gpu = open(index, Opening { transfers: link.transfers(), export: false })?;
        Self::new(Wgsl::new(Arc::new(gpu))?, bytes)
    }
}

#[cfg(feature = "cuda")]
impl Side<Cuda> {
    fn open(index: usize, bytes: usize) -> Result<Self> {
        let gpu = open(index, Opening { transfers: Link::Cuda.transfers(), export: true })?.with_cuda()?;
        Self::new(Cuda::new(Arc::new(gpu))?.with_peers(), bytes)
    }
}

impl<K: Kernels> Side<K> {
    fn new(kernels: K, bytes: usize) -> Result<Self> {
        let half = || kernels.cache("rows", Scalar::F16, bytes / 4);
        let halves = [half()?, half()?];
        let side = Self { kernels, halves };
        let wait = Wait::new(&Cancel::new());
        let point = side.kernels.submit(side.kernels.begin(), &wait)?;
        side.kernels.wait(&point, &wait)?;
        Ok(side)
    }

    fn runs(&self, bytes: usize) -> [Run<'_, K>; 2] {
        [0, 1].map(|i| Run { tensor: &self.halves[i], elements: 0..bytes / 4, host_offset: i * bytes / 2 })
    }

    /// Rows out of the cache; `false` where the way is not there.
    fn out(&self, link: Link, bytes: usize, to: &mut HostMemory, wait: &Wait) -> Result<bool> {
        if link == Link::Dma {
            return self.kernels.copy_out(&self.runs(bytes), to, wait);
        }
        let mut rec = self.kernels.begin();
        let [k, v] = &self.halves;
        let copies =
            [self.kernels.download(&mut rec, k, 0..bytes / 4)?, self.kernels.download(&mut rec, v, 0..bytes / 4)?];
        let point = self.kernels.submit(rec, wait)?;
        for (copy, half) in copies.into_iter().zip(to[..bytes].chunks_mut(bytes / 2)) {
            self.kernels.collect(copy, &point, wait, &mut |from| copy_bytes(half, from))?;
        }
        Ok(true)
    }

    /// Rows into the cache, and the device done with it.
    fn take(&self, link: Link, bytes: usize, from: &HostMemory, wait: &Wait) -> Result<bool> {
        if link == Link::Dma {
            return self.kernels.copy_in(from, &self.runs(bytes), wait);
        }
        for (half, rows) in self.halves.iter().zip(from[..bytes].chunks(bytes / 2)) {
            self.kernels.write(half, 0, rows)?;
        }
        let point = self.kernels.submit(self.kernels.begin(), wait)?;
        self.kernels.wait(&point, wait)?;
        Ok(true)
    }
}

/// Bytes a second in units of 10^9, of the median of some runs after one to warm up.
fn rate(bytes: usize, mut run: impl FnMut() -> Result<bool>) -> Result<Option<f64>> {
    let mut times = Vec::with_capacity(REPETITIONS);
    for i in 0..=REPETITIONS {
        let start = Instant::now();
        if !run()? {
            return Ok(None);
        }
        if i > 0 {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(Some(bytes as f64 / times[times.len() / 2] / 1e9))
}

fn cell(rate: Option<f64>) -> String {
    rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"))
}

fn main() -> Result<()> {
    let indices = std::env::args().filter_map(|arg| arg.parse::<usize>().ok()).collect::<Vec<_>>();
    let (a, b) = (indices.first().copied().unwrap_or(0), indices.get(1).or(indices.first()).copied().unwrap_or(0));
    let wait = Wait::new(&Cancel::new());
    println!("| MiB | link | out, GB/s | in | both at once, each | first out, to new memory | to memory in use |");
    println!("|---:|---|---:|---:|---:|---:|---:|");
    for mib in SIZES {
        let bytes = mib * MIB;
        for link in [Link::Copy, Link::Dma] {
            let (from, to) = (Side::<Wgsl>::open(a, link, bytes)?, Side::<Wgsl>::open(b, link, bytes)?);
            let [mut one, mut other] = [HostMemory::new(bytes)?, HostMemory::new(bytes)?];
            let first = |memory: &mut HostMemory| {
                let start = Instant::now();
                let there = from.out(link, bytes, memory, &wait)?;
                Ok(there.then(|| bytes as f64 / start.elapsed().as_secs_f64() / 1e9))
            };
            other.fill(1);
            let (to_used, to_new) = (first(&mut other)?, first(&mut one)?);
            let out = rate(bytes, || from.out(link, bytes, &mut one, &wait))?;
            let taken = rate(bytes, || to.take(link, bytes, &one, &wait))?;
            let both = std::thread::scope(|scope| {
                let taking = scope.spawn(|| rate(bytes, || to.take(link, bytes, &one, &wait)));
                let out = rate(bytes, || from.out(link, bytes, &mut other, &wait))?;
                let taken = taking.join().unwrap_or(Ok(None))?;
                Ok(out.zip(taken).map(|(out, taken)| f64::min(out, taken)))
            })?;
            let cells = [out, taken, both, to_new, to_used].map(cell).join(" | ");
            println!("| {mib} | {} | {cells} |", link.name());
        }
    }
    #[cfg(feature = "cuda")]
    if let Err(error) = peers(a, b) {
        println!("\nfrom device to device: {error}");
    }
    copies()
}

/// From device to device by CUDA: out of a cache into memory of CUDA's on the same device, from there into the other's cache, and both in turn, as a chain
/// hands rows on.
#[cfg(feature = "cuda")]
fn peers(a: usize, b: usize) -> Result<()> {
    let wait = Wait::new(&Cancel::new());
    let mut lines = Vec::new();
    for mib in SIZES {
        let bytes = mib * MIB;
        let (from, to) = (Side::<Cuda>::open(a, bytes)?, Side::<Cuda>::open(b, bytes)?);
        let leave = || {
            let mut rec = from.kernels.begin();
            let memory = from.kernels.copy_to_peers(&mut rec, &from.runs(bytes))?;
            let point = from.kernels.submit(rec, &wait)?;
            from.kernels.wait(&point, &wait)?;
            Ok(memory)
        };
        let take = |memory: &PeerMemory| to.kernels.copy_from_peer(memory, &to.runs(bytes), &wait);
        let out = rate(bytes, || leave().map(|memory| memory.is_some()))?;
        let memory = leave()?;
        let taken = rate(bytes, || memory.as_ref().map_or(Ok(false), take))?;
        let both = rate(bytes, || leave()?.as_ref().map_or(Ok(false), take))?;
        lines.push(format!("| {mib} | cuda | {} |", [out, taken, both].map(cell).join(" | ")));
    }
    println!("\n| MiB | link | out, GB/s | in | out and in |\n|---:|---|---:|---:|---:|\n{}", lines.join("\n"));
    Ok(())
}

/// What the host's own copies do, by one thread and as the link makes them.
fn copies() -> Result<()> {
    let (mut to, from) = (HostMemory::new(140 * MIB)?, HostMemory::from_bytes(&vec![1; 140 * MIB])?);
    println!("\n| MiB | one thread, GB/s | several | filling new memory, one thread |\n|---:|---:|---:|---:|");
    for mib in SIZES {
        let n = mib * MIB;
        let single = rate(n, || {
            to[..n].copy_from_slice(&from[..n]);
            Ok(true)
        })?;
        let several = rate(n, || {
            copy_bytes(&mut to[..n], &from[..n]);
            Ok(true)
        })?;
        let start = Instant::now();
        HostMemory::new(n)?.fill(1);
        let new = n as f64 / start.elapsed().as_secs_f64() / 1e9;
        println!("| {mib} | {} | {} | {new:.1} |", cell(single), cell(several));
    }
    Ok(())
}
