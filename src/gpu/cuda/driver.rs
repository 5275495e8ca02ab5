//! CUDA's driver: contexts, streams, memory and semaphores of another API, and modules that the driver compiles.
//!
//! Every call is made with this module's context current on the calling thread, and puts back the one that was current before, since an embedding
//! application may use CUDA itself. Reasons of failures are text; the layer above adds whose they are.

#![allow(unsafe_code)]

use std::collections::HashSet;
use std::ffi::{CStr, CString, c_void};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cudarc::driver::sys;

/// The oldest driver whose functions are all there: 12.0.
const OLDEST: i32 = 12_000;

/// How long a wait for a copy looks again and again before it sleeps in between.
const SPIN: Duration = Duration::from_micros(500);

/// How long the end of a stream waits for its work.
const PATIENCE: Duration = Duration::from_secs(10);

type Outcome<T> = Result<T, String>;

/// An error with CUDA's name for it.
fn check(result: sys::CUresult, what: &str) -> Outcome<()> {
    if result == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut name = std::ptr::null();
    // SAFETY: the pointer is written where the code is known.
    let known = unsafe { sys::cuGetErrorName(result, &mut name) } == sys::CUresult::CUDA_SUCCESS && !name.is_null();
    let name = if known {
        // SAFETY: it then points to a string that lives for ever.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    } else {
        format!("{result:?}")
    };
    Err(format!("CUDA: {what}: {name}"))
}

/// The driver's version (13.0 is 13000), once it is known to be there and new enough.
pub fn version() -> Outcome<i32> {
    // SAFETY: loading the driver's library runs its initialisers, which any program may run.
    if !unsafe { sys::is_culib_present() } {
        return Err("CUDA: no driver on this machine".to_owned());
    }
    let mut version = 0;
    // SAFETY: a place for one number; this function needs no initialisation.
    check(unsafe { sys::cuDriverGetVersion(&mut version) }, "the driver's version")?;
    if version < OLDEST {
        let [found, needed] = [version, OLDEST].map(|v| format!("{}.{}", v / 1000, v % 1000 / 10));
        return Err(format!("CUDA: the driver has version {found}, {needed} is needed"));
    }
    // SAFETY: no arguments but the flags, which must be 0.
    check(unsafe { sys::cuInit(0) }, "initialisation")?;
    Ok(version)
}

/// The primary context of one device.
pub struct Context {
    device: sys::CUdevice,
    raw: sys::CUcontext,
    /// Devices whose memory this one was told that it may read.
    reached: Mutex<HashSet<sys::CUdevice>>,
}

// SAFETY: contexts may be used from any thread; each use makes it current for its own thread first.
unsafe impl Send for Context {}
// SAFETY: as above; the driver's functions are thread-safe.
unsafe impl Sync for Context {}

impl Context {
    /// Of the device at `pci` (`domain:bus:device.function`).
    pub fn open(pci: &str) -> Outcome<Arc<Self>> {
        version()?;
        let name = CString::new(pci).map_err(|_| format!("`{pci}` is no PCI id"))?;
        let mut device = 0;
        // SAFETY: a place for one handle, and a string that ends.
        check(unsafe { sys::cuDeviceGetByPCIBusId(&mut device, name.as_ptr()) }, &format!("the device at {pci}"))?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: a place for one handle; the device is the driver's.
        check(unsafe { sys::cuDevicePrimaryCtxRetain(&mut raw, device) }, "a context")?;
        Ok(Arc::new(Self { device, raw, reached: Mutex::default() }))
    }

    /// Major and minor of the device's compute capability, as 80 for 8.0.
    pub fn capability(&self) -> Outcome<i32> {
        let attribute = |kind| {
            let mut value = 0;
            // SAFETY: a place for one number; the device is the driver's.
            check(unsafe { sys::cuDeviceGetAttribute(&mut value, kind, self.device) }, "a device's attribute")?;
            Ok::<i32, String>(value)
        };
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        };
        let major = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        Ok(10 * major + attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?)
    }

    /// Lets this device read another's memory directly, where the machine allows it; copies go by way of the host where not.
    fn reach(&self, other: &Context) -> Outcome<()> {
        if self.device == other.device
            || !self.reached.lock().unwrap_or_else(PoisonError::into_inner).insert(other.device)
        {
            return Ok(());
        }
        let _entered = self.enter()?;
        let mut can = 0;
        // SAFETY: a place for one number; both devices are the driver's.
        check(unsafe { sys::cuDeviceCanAccessPeer(&mut can, self.device, other.device) }, "a question about a peer")?;
        if can == 0 {
            return Ok(());
        }
        // SAFETY: the other context lives; this one is current.
        match unsafe { sys::cuCtxEnablePeerAccess(other.raw, 0) } {
            sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(()),
            result => check(result, "access to a peer"),
        }
    }

    /// Makes it current for as long as the result lives.
    pub fn enter(&self) -> Outcome<Entered> {
        // SAFETY: the context lives as long as `self`.
        check(unsafe { sys::cuCtxPushCurrent_v2(self.raw) }, "entering a context")?;
        Ok(Entered(std::marker::PhantomData))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once in `open`; everything that was made in it holds an `Arc` of it and is gone.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// A context is current on this thread.
pub struct Entered(std::marker::PhantomData<*const ()>);

impl Drop for Entered {
    fn drop(&mut self) {
        let mut left = std::ptr::null_mut();
        // SAFETY: a place for one handle; what was pushed last is popped.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&mut left) };
    }
}

/// Work in order.
pub struct Stream {
    context: Arc<Context>,
    raw: sys::CUstream,
}

// SAFETY: streams may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above; the driver's functions are thread-safe.
unsafe impl Sync for Stream {}

impl Stream {
    /// An empty stream.
    pub fn new(context: &Arc<Context>) -> Outcome<Self> {
        let _entered = context.enter()?;
        let mut raw = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: a place for one handle.
        check(unsafe { sys::cuStreamCreate(&mut raw, flags) }, "a stream")?;
        Ok(Self { context: context.clone(), raw })
    }

    pub(super) fn raw(&self) -> sys::CUstream {
        self.raw
    }

    /// Whether all its work has run; an error where it failed.
    pub fn is_done(&self) -> Outcome<bool> {
        let _entered = self.context.enter()?;
        // SAFETY: the stream lives as long as `self`.
        match unsafe { sys::cuStreamQuery(self.raw) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => check(result, "work on the device").map(|()| true),
        }
    }

    /// Whether all its work has run, or failed, before patience ends.
    pub fn settle(&self) -> bool {
        let start = Instant::now();
        while matches!(self.is_done(), Ok(false)) {
            if start.elapsed() > PATIENCE {
                return false;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        true
    }

    /// As [`is_done`](Self::is_done), looking again for as long as `slice`; `None` where it is not.
    pub fn wait_until_done(&self, slice: Duration) -> Outcome<Option<()>> {
        let start = Instant::now();
        while !self.is_done()? {
            let waited = start.elapsed();
            if waited >= slice {
                return Ok(None);
            }
            // A piece of a layer takes tens to hundreds of microseconds between devices, and the shortest sleep some 70.
            if waited < SPIN {
                std::thread::yield_now();
            } else {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        Ok(Some(()))
    }

    /// Copies bytes from one address of this device to another.
    ///
    /// The caller has checked that both ranges lie inside their memory, and keeps both until the copy has run.
    pub(super) fn copy_here(&self, to: u64, from: u64, bytes: u64) -> Outcome<()> {
        let _entered = self.context.enter()?;
        // SAFETY: what is said above.
        let copied = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes as usize, self.raw) };
        check(copied, "a copy within a device")
    }

    /// Copies bytes from a place in one memory to a place in another, of the same device or not.
    pub fn copy(
        &self,
        (to, to_offset): (&Memory, u64),
        (from, from_offset): (&Memory, u64),
        bytes: u64,
    ) -> Outcome<()> {
        let other = if Arc::ptr_eq(&to.context, &self.context) { &from.context } else { &to.context };
        self.context.reach(other)?;
        let _entered = self.context.enter()?;
        let (to_address, from_address) = (to.address + to_offset, from.address + from_offset);
        // SAFETY: the caller has checked that both ranges lie inside their memory, and keeps both until the copy has run.
        let copied = unsafe {
            sys::cuMemcpyPeerAsync(to_address, to.context.raw, from_address, from.context.raw, bytes as usize, self.raw)
        };
        check(copied, "a copy between devices")
    }

    /// What follows begins when the timeline has reached `value`.
    pub fn wait(&self, timeline: &Semaphore, value: u64) -> Outcome<()> {
        let _entered = self.context.enter()?;
        // SAFETY: all zeros is a valid value of these numbers and pointers: no flags, and nothing of other kinds of semaphores.
        let mut params: sys::CUDA_EXTERNAL_SEMAPHORE_WAIT_PARAMS = unsafe { std::mem::zeroed() };
        params.params.fence.value = value;
        // SAFETY: one semaphore and its parameters; both handles live.
        check(unsafe { sys::cuWaitExternalSemaphoresAsync(&timeline.raw, &params, 1, self.raw) }, "a wait for Vulkan")
    }

    /// Raises the timeline to `value` when all so far has run.
    pub fn raise(&self, timeline: &Semaphore, value: u64) -> Outcome<()> {
        let _entered = self.context.enter()?;
        // SAFETY: as in `wait`.
        let mut params: sys::CUDA_EXTERNAL_SEMAPHORE_SIGNAL_PARAMS = unsafe { std::mem::zeroed() };
        params.params.fence.value = value;
        // SAFETY: one semaphore and its parameters; both handles live.
        check(
            unsafe { sys::cuSignalExternalSemaphoresAsync(&timeline.raw, &params, 1, self.raw) },
            "a signal to Vulkan",
        )
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            // SAFETY: made in `new`; the driver lets its work end first.
            let _ = unsafe { sys::cuStreamDestroy_v2(self.raw) };
        }
    }
}

/// Device memory: CUDA's own, or that of a Vulkan buffer.
pub struct Memory {
    context: Arc<Context>,
    address: u64,
    bytes: usize,
    imported: Option<sys::CUexternalMemory>,
}

// SAFETY: addresses of device memory may be used from any thread.
unsafe impl Send for Memory {}
// SAFETY: as above; nothing here changes after it was made.
unsafe impl Sync for Memory {}

impl Memory {
    /// New memory, whose bytes are whatever they were; `None` where there is not enough.
    pub fn allocate(context: &Arc<Context>, bytes: usize) -> Outcome<Option<Self>> {
        let _entered = context.enter()?;
        let mut address = 0;
        // SAFETY: a place for one address.
        match unsafe { sys::cuMemAlloc_v2(&mut address, bytes) } {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Ok(None),
            result => {
                check(result, "memory")?;
                Ok(Some(Self { context: context.clone(), address, bytes, imported: None }))
            }
        }
    }

    /// The memory behind a handle, which has `bytes` bytes and one buffer in it.
    pub fn import(context: &Arc<Context>, handle: OwnedFd, bytes: u64) -> Outcome<Self> {
        let _entered = context.enter()?;
        let fd = handle.into_raw_fd();
        let desc = sys::CUDA_EXTERNAL_MEMORY_HANDLE_DESC {
            type_: sys::CUexternalMemoryHandleType::CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD,
            handle: sys::CUDA_EXTERNAL_MEMORY_HANDLE_DESC_st__bindgen_ty_1 { fd },
            size: bytes,
            flags: sys::CUDA_EXTERNAL_MEMORY_DEDICATED,
            reserved: [0; 16],
        };
        let mut memory = std::ptr::null_mut();
        // SAFETY: a place for one handle; the descriptor is an opaque handle of Vulkan's of that size, with a buffer of its own.
        let imported = check(unsafe { sys::cuImportExternalMemory(&mut memory, &desc) }, "an import of memory");
        give_back_unless(imported.is_ok(), fd);
        imported?;
        let range = sys::CUDA_EXTERNAL_MEMORY_BUFFER_DESC { offset: 0, size: bytes, flags: 0, reserved: [0; 16] };
        let mut address = 0;
        // SAFETY: a place for one address; the memory was just imported and has so many bytes.
        let mapped = check(unsafe { sys::cuExternalMemoryGetMappedBuffer(&mut address, memory, &range) }, "a mapping");
        if let Err(reason) = mapped {
            // SAFETY: imported above, known to nobody else.
            let _ = unsafe { sys::cuDestroyExternalMemory(memory) };
            return Err(reason);
        }
        Ok(Self { context: context.clone(), address, bytes: bytes as usize, imported: Some(memory) })
    }

    /// Where it begins.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// How much it is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            // SAFETY: made by one of the two above; whoever launches work on it keeps it until that has run.
            unsafe {
                let _ = sys::cuMemFree_v2(self.address);
                if let Some(imported) = self.imported {
                    let _ = sys::cuDestroyExternalMemory(imported);
                }
            }
        }
    }
}

/// A descriptor that was imported belongs to the driver; another is closed.
fn give_back_unless(imported: bool, fd: i32) {
    if !imported {
        use std::os::fd::FromRawFd;
        // SAFETY: the descriptor was ours before the import that failed, and nobody else knows it.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
}

/// A timeline of Vulkan's.
pub struct Semaphore {
    context: Arc<Context>,
    raw: sys::CUexternalSemaphore,
}

// SAFETY: semaphores may be used from any thread.
unsafe impl Send for Semaphore {}
// SAFETY: as above; nothing here changes after it was made.
unsafe impl Sync for Semaphore {}

impl Semaphore {
    /// The timeline semaphore behind a handle.
    pub fn import(context: &Arc<Context>, handle: OwnedFd) -> Outcome<Self> {
        let _entered = context.enter()?;
        let fd = handle.into_raw_fd();
        let desc = sys::CUDA_EXTERNAL_SEMAPHORE_HANDLE_DESC {
            type_: sys::CUexternalSemaphoreHandleType::CU_EXTERNAL_SEMAPHORE_HANDLE_TYPE_TIMELINE_SEMAPHORE_FD,
            handle: sys::CUDA_EXTERNAL_SEMAPHORE_HANDLE_DESC_st__bindgen_ty_1 { fd },
            flags: 0,
            reserved: [0; 16],
        };
        let mut raw = std::ptr::null_mut();
        // SAFETY: a place for one handle; the descriptor is an opaque handle of a timeline semaphore.
        let imported = check(unsafe { sys::cuImportExternalSemaphore(&mut raw, &desc) }, "an import of a semaphore");
        give_back_unless(imported.is_ok(), fd);
        imported.map(|()| Self { context: context.clone(), raw })
    }
}

impl Drop for Semaphore {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            // SAFETY: imported above; its stream has ended.
            let _ = unsafe { sys::cuDestroyExternalSemaphore(self.raw) };
        }
    }
}

/// Kernels that the driver compiled from one text.
pub struct Module {
    context: Arc<Context>,
    raw: sys::CUmodule,
}

// SAFETY: modules may be used from any thread.
unsafe impl Send for Module {}
// SAFETY: as above; nothing here changes after it was made.
unsafe impl Sync for Module {}

impl Module {
    /// Compiles PTX for the device.
    pub fn compile(context: &Arc<Context>, ptx: &str) -> Outcome<Arc<Self>> {
        let _entered = context.enter()?;
        let text = CString::new(ptx).map_err(|_| "a kernel's text has a zero in it".to_owned())?;
        let mut raw = std::ptr::null_mut();
        let load =
            // SAFETY: a place for one handle, and a text that ends with a zero; there are no options.
            unsafe { sys::cuModuleLoadDataEx(&mut raw, text.as_ptr().cast(), 0, std::ptr::null_mut(), std::ptr::null_mut()) };
        check(load, "compiling a kernel")?;
        Ok(Arc::new(Self { context: context.clone(), raw }))
    }

    /// The kernel of this name, to be launched with so many bytes of shared memory beyond its own.
    pub(super) fn kernel(self: &Arc<Self>, name: &str, shared_bytes: u32) -> Outcome<Kernel> {
        let _entered = self.context.enter()?;
        let text = CString::new(name).map_err(|_| "a kernel's name has a zero in it".to_owned())?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: a place for one handle, and a string that ends.
        check(unsafe { sys::cuModuleGetFunction(&mut raw, self.raw, text.as_ptr()) }, &format!("kernel `{name}`"))?;
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let bytes = i32::try_from(shared_bytes).map_err(|_| format!("{shared_bytes} bytes of shared memory"))?;
        // SAFETY: the function was just found.
        check(unsafe { sys::cuFuncSetAttribute(raw, attribute, bytes) }, &format!("shared memory of `{name}`"))?;
        Ok(Kernel { module: self.clone(), raw, shared_bytes })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            // SAFETY: loaded above; kernels and launches hold an `Arc` of it, and launches are kept until they have run.
            let _ = unsafe { sys::cuModuleUnload(self.raw) };
        }
    }
}

/// A kernel. Clones are the same one.
#[derive(Clone)]
pub struct Kernel {
    module: Arc<Module>,
    raw: sys::CUfunction,
    shared_bytes: u32,
}

// SAFETY: kernels may be launched from any thread.
unsafe impl Send for Kernel {}
// SAFETY: as above; nothing here changes after it was made.
unsafe impl Sync for Kernel {}

/// One run of a kernel.
pub struct Launch {
    /// What runs.
    pub kernel: Kernel,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Its parameters in order, a word each: an address, or a number of 32 bits in the lower half.
    pub params: Vec<u64>,
}

impl Launch {
    /// Appends it to a stream.
    pub(super) fn run(&self, stream: &Stream) -> Outcome<()> {
        let _entered = self.kernel.module.context.enter()?;
        let mut params =
            self.params.iter().map(|p| std::ptr::from_ref(p).cast_mut().cast::<c_void>()).collect::<Vec<_>>();
        let ([x, y, z], shared) = (self.grid, self.kernel.shared_bytes);
        // SAFETY: each parameter points to at least as many bytes as the kernel reads there (this machine is little-endian, as CUDA's are), which it
        // copies now. What the kernel itself reads and writes is inside the buffers: the layer above has checked the sizes that it is given.
        let launched = unsafe {
            sys::cuLaunchKernel(
                self.kernel.raw,
                x,
                y,
                z,
                self.threads,
                1,
                1,
                shared,
                stream.raw,
                params.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        check(launched, "a launch")
    }
}
