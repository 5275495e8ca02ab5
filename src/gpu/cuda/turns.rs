//! A device that computes by CUDA too: how both sides take turns.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::driver::{Kernel, Memory, Module};
use super::mixed::{Commands, Mixed};
use super::{Order, Side};
use crate::error::Result;
use crate::gpu::buffer::{Buffer, Owner};
use crate::gpu::device::{Gpu, Submission};
use crate::gpu::recorder::Recording;

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
