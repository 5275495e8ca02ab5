//! How fast weights reach a GPU, by its own copies and by the host's, against what the bus carries: `cargo bench --bench upload [-- GPU [LAYERS]]`.
//!
//! The weights are those of Llama-2-7B's shape with fewer layers, 16 if nothing else is said: 7.0 GB of F16.

use std::sync::Arc;
use std::time::Instant;

use runahead::cancel::{Cancel, Wait};
use runahead::dtype::Dtype;
use runahead::engine::Link;
use runahead::error::{Error, Result};
use runahead::gpu::{self, Gpu, GpuAdapter, HostCopy, HostMemory, Opening};
use runahead::kernels::wgsl::Wgsl;
use runahead::model::{LoadOptions, Model};
use runahead::weights::ModelFiles;

const REPETITIONS: usize = 5;

/// Pieces of host memory that the bare bus is measured with: two, of as many bytes, one of which is always on its way.
const PIECE_BYTES: usize = 64 << 20;
const N_PIECES: usize = 32;

fn open(adapter: &GpuAdapter, link: Link) -> Result<Arc<Gpu>> {
    Ok(Arc::new(adapter.open_with(Opening { transfers: link.transfers(), export: false })?))
}

/// Seconds of the median of some runs after one to warm up.
fn seconds(mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = Vec::with_capacity(REPETITIONS);
    for i in 0..=REPETITIONS {
        let start = Instant::now();
        run()?;
        if i > 0 {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Bytes a second of the device's own copies alone. `None` where it makes none.
fn bus(gpu: &Gpu) -> Result<Option<f64>> {
    let wait = Wait::new(&Cancel::new());
    let buffer = gpu.shared_buffer("weights", PIECE_BYTES as u64)?;
    gpu.wait(&gpu.submit(gpu.recording())?, &wait)?;
    let begin = |piece| {
        gpu.fetch(vec![(
            piece,
            vec![HostCopy { buffer: &buffer, offset: 0, host_offset: 0, bytes: PIECE_BYTES as u64 }],
        )])
    };
    let mut idle = HostMemory::pieces(2, PIECE_BYTES)?;
    let Ok(mut under_way) = begin(idle.pop().unwrap_or_default())? else { return Ok(None) };
    let round = || {
        for _ in 0..N_PIECES {
            let Ok(next) = begin(idle.pop().unwrap_or_default())? else { break };
            idle = std::mem::replace(&mut under_way, next).finish(&wait)?;
        }
        Ok(())
    };
    Ok(Some((N_PIECES * PIECE_BYTES) as f64 / seconds(round)?))
}

fn main() -> Result<()> {
    let numbers = std::env::args().filter_map(|arg| arg.parse::<usize>().ok()).collect::<Vec<_>>();
    let adapters = gpu::enumerate();
    let nothing = || Error::NoAdapter { name: "0".to_owned(), available: "none".to_owned() };
    let adapter = adapters.get(numbers.first().copied().unwrap_or(0)).ok_or_else(nothing)?;
    let mut config = runahead::config::shapes::shape("llama-2-7b")?;
    config.n_layers = numbers.get(1).copied().unwrap_or(16).clamp(1, config.n_layers);
    config.layers.truncate(config.n_layers);
    println!("{}", adapter.info().name);
    let bus = bus(&*open(adapter, Link::Dma)?)?;
    match bus {
        Some(bus) => println!("its own copies alone: {:.1} GB/s", bus / 1e9),
        None => println!("no copies of its own"),
    }
    println!("\n| weights | GB | link | ms | GB/s | of the bus |\n|---|---:|---|---:|---:|---:|");
    for dtype in [Dtype::F16, Dtype::Q8_0, Dtype::Q6K, Dtype::Q4K] {
        let files = ModelFiles::synthetic(config.clone(), dtype, 1)?;
        for link in [Link::Copy, Link::Auto] {
            let gpu = open(adapter, link)?;
            let load = || {
                let options =
                    LoadOptions { context: 128, submission: None, cancel: &Cancel::new(), progress: &|_, _| () };
                let kernels = Arc::new(Wgsl::new(gpu.clone())?);
                Model::load(kernels, Arc::new(config.clone()), &files.weights, &options)?;
                gpu.free_memory();
                Ok(())
            };
            let (bytes, time) = (files.weights.n_bytes() as f64, seconds(load)?);
            let share = bus.map_or_else(|| "-".to_owned(), |bus| format!("{:.0} %", 100.0 * bytes / time / bus));
            println!(
                "| {} | {:.1} | {} | {:.0} | {:.1} | {share} |",
                dtype.name(),
                bytes / 1e9,
                link.name(),
                time * 1e3,
                bytes / time / 1e9
            );
        }
    }
    Ok(())
}
