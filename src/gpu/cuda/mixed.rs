//! Work for both sides of one device as a value: wgpu's commands and CUDA's, in order.

use std::sync::Arc;

use super::blas::MatMul;
use super::driver::{Launch, Memory};
use crate::gpu::{Buffer, Recording};

/// One piece of CUDA's work.
pub(super) enum Command {
    Launch(Launch),
    /// With the addresses of `x`, `w` and `out`.
    MatMul(MatMul, [u64; 3]),
    /// So many bytes to the first address from the second.
    Copy([u64; 2], u64),
}

/// What CUDA does between two of wgpu's submissions.
#[derive(Default)]
pub(super) struct Commands {
    pub list: Vec<Command>,
    /// What they work on, kept until they have run.
    pub buffers: Vec<Buffer>,
    pub memory: Vec<Arc<Memory>>,
}

/// wgpu's work, then CUDA's; either may be empty.
pub(super) struct Run {
    pub gpu: Recording,
    pub cuda: Commands,
}

/// Dispatches, copies and CUDA's work in order; each sees the writes of those before it. Nothing runs before
/// [`Gpu::submit_mixed`](crate::gpu::Gpu::submit_mixed).
pub struct Mixed {
    new: Box<dyn Fn() -> Recording + Send>,
    done: Vec<Run>,
    last: Run,
}

impl Mixed {
    /// Nothing; `new` makes empty recordings of the device.
    pub(super) fn new(new: impl Fn() -> Recording + Send + 'static) -> Self {
        let last = Run { gpu: new(), cuda: Commands::default() };
        Self { new: Box::new(new), done: Vec::new(), last }
    }

    /// Whether what comes next would follow CUDA's work directly.
    pub fn is_at_cuda(&self) -> bool {
        !self.last.cuda.list.is_empty()
    }

    /// Where wgpu's next commands are recorded.
    pub fn gpu(&mut self) -> &mut Recording {
        if self.is_at_cuda() {
            let next = Run { gpu: (self.new)(), cuda: Commands::default() };
            self.done.push(std::mem::replace(&mut self.last, next));
        }
        &mut self.last.gpu
    }

    /// Runs a kernel on `buffers`, of which its parameters hold addresses.
    pub fn launch(&mut self, launch: Launch, buffers: &[&Buffer]) {
        self.push(Command::Launch(launch), buffers);
    }

    /// Multiplies matrices in `buffers`; `addresses` are those of `x`, `w` and `out`.
    pub fn multiply(&mut self, sizes: MatMul, addresses: [u64; 3], buffers: &[&Buffer]) {
        self.push(Command::MatMul(sizes, addresses), buffers);
    }

    /// Copies from a buffer to CUDA's own memory; both addresses have so many bytes behind them.
    pub(super) fn copy(&mut self, (to, memory): (u64, &Arc<Memory>), (from, buffer): (u64, &Buffer), bytes: u64) {
        self.push(Command::Copy([to, from], bytes), &[buffer]);
        let kept = &mut self.last.cuda.memory;
        if !kept.iter().any(|m| Arc::ptr_eq(m, memory)) {
            kept.push(memory.clone());
        }
    }

    fn push(&mut self, command: Command, buffers: &[&Buffer]) {
        let cuda = &mut self.last.cuda;
        cuda.list.push(command);
        for buffer in buffers {
            if !cuda.buffers.iter().any(|kept| kept.id() == buffer.id()) {
                cuda.buffers.push((*buffer).clone());
            }
        }
    }

    /// The runs in order.
    pub(super) fn runs(self) -> impl Iterator<Item = Run> {
        self.done.into_iter().chain([self.last])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::tests::{double, double_spec, gpu};

    #[test]
    fn runs_keep_the_order_and_change_sides_only_where_the_work_does() {
        let gpu = gpu();
        let pipeline = gpu.pipeline(&double_spec()).unwrap();
        let (x, y) = (gpu.buffer("x", 64).unwrap(), gpu.buffer("y", 64).unwrap());
        let product = MatMul { m: 1, n: 1, k: 1, strides: [1; 3], wide: false, add: false };
        let runs = |steps: &str| {
            let mut work = gpu.mixed();
            for step in steps.chars() {
                match step {
                    'g' => double(work.gpu(), &pipeline, &x, 16),
                    _ => work.multiply(product, [0; 3], &[&x, &y, &x]),
                }
                assert_eq!(work.is_at_cuda(), step == 'c');
            }
            work.runs().map(|run| (run.gpu.len(), run.cuda.list.len(), run.cuda.buffers.len())).collect::<Vec<_>>()
        };
        assert_eq!(runs("gccggc"), [(1, 2, 2), (2, 1, 2)]);
        assert_eq!(runs("cg"), [(0, 1, 2), (1, 0, 0)]);
        assert_eq!(runs("g"), [(1, 0, 0)]);
        assert_eq!(runs(""), [(0, 0, 0)]);
    }
}
