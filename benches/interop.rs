//! What it costs to change sides between Vulkan and CUDA on one device: `cargo bench --features cuda --bench interop`.
//!
//! A prefill of 32 layers whose products alone were CUDA's would change sides 128 times and back. Each line is the best of several submissions.

use std::sync::Arc;
use std::time::Instant;

use runahead::cancel::{Cancel, Wait};
use runahead::gpu::{Binding, Buffer, Gpu, Kernel, Launch, Mixed, Opening, Pipeline, ShaderSpec, enumerate};
use runahead::{Error, Result};

/// Changes of side in one submission.
const ROUNDS: usize = 128;
const REPETITIONS: usize = 20;
/// Elements of the buffer: nothing, and what one layer's products read and write of activations at 4,096 tokens.
const SIZES: [usize; 2] = [64, 16 << 20];

/// `x = x + 1`, a block of 64 at a time.
const INCREMENT: &str = "
.version 7.0
.target sm_80
.address_size 64
.visible .entry increment(.param .u64 x)
{
    .reg .u32 %i, %b, %t;
    .reg .u64 %x, %at;
    .reg .f32 %v;
    ld.param.u64 %x, [x];
    mov.u32 %b, %ctaid.x;
    mov.u32 %t, %tid.x;
    mad.lo.u32 %i, %b, 64, %t;
    mul.wide.u32 %at, %i, 4;
    add.u64 %at, %x, %at;
    ld.global.f32 %v, [%at];
    add.f32 %v, %v, 0f3F800000;
    st.global.f32 [%at], %v;
    ret;
}
";

fn main() -> Result<()> {
    let adapters = enumerate();
    let adapter = adapters.first().ok_or(Error::Unsupported { what: "machine without GPU", name: String::new() })?;
    let gpu = adapter.open_with(Opening { export: true, ..Opening::default() })?.with_cuda()?;
    let bench = Bench::new(gpu)?;
    println!("{}, {ROUNDS} rounds", bench.gpu.info().name);
    println!("| elements | work of a round | microseconds a round |");
    println!("|---:|---|---:|");
    SIZES.into_iter().try_for_each(|n| bench.lines(n))
}

struct Bench {
    gpu: Gpu,
    increment: Kernel,
    shader: Arc<Pipeline>,
}

impl Bench {
    fn new(gpu: Gpu) -> Result<Self> {
        let spec = ShaderSpec {
            name: "increment".to_owned(),
            header: String::new(),
            parts: Vec::new(),
            op: "var<immediate> params: vec4u;
                @group(0) @binding(0) var<storage, read_write> data: array<f32>;
                @compute @workgroup_size(64) fn increment(
                    @builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32
                ) {
                    let i = group.x * 64u + lane + group.y * params.x;
                    data[i] = data[i] + 1.0;
                }",
            entry: "increment",
            overrides: Vec::new(),
            checked: true,
        };
        let module = gpu.cuda_module(INCREMENT)?;
        Ok(Self { shader: gpu.pipeline(&spec)?, increment: gpu.cuda_kernel(&module, "increment", 0)?, gpu })
    }

    fn lines(&self, n: usize) -> Result<()> {
        let x = self.gpu.buffer("x", 4 * n as u64)?;
        let vulkan = |work: &mut Mixed| self.vulkan(work, &x, n);
        let cuda = |work: &mut Mixed| self.cuda(work, &x, n);
        self.line(n, "Vulkan, Vulkan", false, &|work| vulkan(work).and_then(|()| vulkan(work)))?;
        self.line(n, "CUDA, CUDA", false, &|work| cuda(work).and_then(|()| cuda(work)))?;
        self.line(n, "Vulkan, CUDA: there and back", false, &|work| vulkan(work).and_then(|()| cuda(work)))?;
        self.line(n, "CUDA, CUDA, a submission each round", true, &|work| cuda(work).and_then(|()| cuda(work)))?;
        self.line(n, "Vulkan, CUDA, a submission each round", true, &|work| vulkan(work).and_then(|()| cuda(work)))
    }

    fn vulkan(&self, work: &mut Mixed, x: &Buffer, n: usize) -> Result<()> {
        let groups = n.div_ceil(64);
        // A dimension of a grid ends at 65,535.
        let (columns, rows) = if groups > 32_768 { (32_768, groups / 32_768) } else { (groups, 1) };
        let params = [(columns * 64) as u32, 0, 0, 0];
        let grid = [columns as u32, rows as u32, 1];
        work.gpu().dispatch(&self.shader, bytemuck::bytes_of(&params), &[Binding::whole(x)], grid)
    }

    fn cuda(&self, work: &mut Mixed, x: &Buffer, n: usize) -> Result<()> {
        let grid = [(n / 64) as u32, 1, 1];
        let params = vec![x.cuda_address()?];
        work.launch(Launch { kernel: self.increment.clone(), grid, threads: 64, params }, &[x]);
        Ok(())
    }

    fn line(&self, n: usize, what: &str, each: bool, round: &dyn Fn(&mut Mixed) -> Result<()>) -> Result<()> {
        let mut best = f64::INFINITY;
        for _ in 0..REPETITIONS {
            let begun = Instant::now();
            let mut work = self.gpu.mixed();
            for _ in 0..ROUNDS {
                round(&mut work)?;
                if each {
                    self.gpu.submit_mixed(std::mem::replace(&mut work, self.gpu.mixed()))?;
                }
            }
            let last = self.gpu.submit_mixed(work)?;
            self.gpu.wait(&last, &Wait::new(&Cancel::new()))?;
            best = best.min(begun.elapsed().as_secs_f64());
        }
        println!("| {n} | {what} | {:.1} |", best / ROUNDS as f64 * 1e6);
        Ok(())
    }
}
