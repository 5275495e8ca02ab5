//! Products of matrices by cuBLASLt, with the algorithm that it takes for each size.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublaslt::{result, sys};

use super::driver::{Context, Memory, Stream};

/// Scratch memory that algorithms may take: what cuBLAS itself sets aside on Hopper GPUs.
const WORKSPACE_BYTES: usize = 32 << 20;

/// Sizes whose algorithm is remembered.
const MOST_PLANS: usize = 256;

type Outcome<T> = Result<T, String>;

/// `out = x w^T` or `out += x w^T` of row-major matrices, `x` `[m, k]` and `w` `[n, k]` in f16, sums in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatMul {
    /// Rows of `x` and `out`.
    pub m: u64,
    /// Rows of `w`, columns of `out`.
    pub n: u64,
    /// Columns of `x` and `w`.
    pub k: u64,
    /// Elements from one row of `x`, `w` and `out` to the next.
    pub strides: [u64; 3],
    /// Whether `out` is f32 instead of f16.
    pub wide: bool,
    /// Whether the product is added to `out`.
    pub add: bool,
}

/// cuBLASLt for one stream.
pub struct Blas {
    handle: Handle,
    workspace: Memory,
    plans: Mutex<HashMap<MatMul, Arc<Plan>>>,
}

/// cuBLASLt's version (13.1.0 is 130100), where the library is there.
pub fn version() -> Option<usize> {
    // SAFETY: loading the library runs its initialisers, which any program may run.
    if !unsafe { sys::is_culib_present() } {
        return None;
    }
    // SAFETY: no arguments.
    Some(unsafe { sys::cublasLtGetVersion() })
}

impl Blas {
    /// Asks for [`WORKSPACE_BYTES`] of memory.
    pub fn new(context: &Arc<Context>) -> Outcome<Self> {
        version().ok_or("cuBLASLt: the library was not found")?;
        let _entered = context.enter()?;
        let raw = result::create_handle().map_err(|e| format!("cuBLASLt: {e}"))?;
        let handle = Handle { context: context.clone(), raw };
        let workspace = Memory::allocate(context, WORKSPACE_BYTES)?
            .ok_or_else(|| format!("cuBLASLt: no {WORKSPACE_BYTES} bytes of memory to work in"))?;
        Ok(Self { handle, workspace, plans: Mutex::default() })
    }

    /// Appends a product to the stream that this is for. `addresses` are those of `x`, `w` and `out`.
    pub(super) fn run(&self, sizes: &MatMul, addresses: [u64; 3], stream: &Stream) -> Outcome<()> {
        let plan = self.plan(sizes)?;
        let _entered = self.handle.context.enter()?;
        let (one, add) = (1f32, if sizes.add { 1f32 } else { 0f32 });
        let [x, w, out] = addresses.map(|address| address as *mut c_void);
        let [x_layout, w_layout, out_layout] = plan.layouts.map(|layout| layout.0);
        // SAFETY: handle, descriptions and algorithm belong together and live; the layer above has checked that the matrices lie inside their
        // buffers; the workspace has the size it is said to have, and all products use it in the order of one stream.
        let launched = unsafe {
            result::matmul(
                self.handle.raw,
                plan.product,
                (&raw const one).cast(),
                (&raw const add).cast(),
                w,
                w_layout,
                x,
                x_layout,
                out,
                out_layout,
                out,
                out_layout,
                &plan.algorithm,
                self.workspace.address() as *mut c_void,
                WORKSPACE_BYTES,
                stream.raw().cast(),
            )
        };
        launched.map_err(|e| format!("cuBLASLt: {sizes:?}: {e}"))
    }

    fn plan(&self, sizes: &MatMul) -> Outcome<Arc<Plan>> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = plans.get(sizes) {
            return Ok(plan.clone());
        }
        if plans.len() >= MOST_PLANS {
            plans.clear();
        }
        let _entered = self.handle.context.enter()?;
        let plan = Plan::new(self.handle.raw, sizes).map_err(|e| format!("cuBLASLt: {sizes:?}: {e}"))?;
        Ok(plans.entry(*sizes).or_insert(Arc::new(plan)).clone())
    }
}

struct Handle {
    context: Arc<Context>,
    raw: sys::cublasLtHandle_t,
}

// SAFETY: a handle may be used from any thread in its context.
unsafe impl Send for Handle {}
// SAFETY: cuBLASLt's functions are thread-safe.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            // SAFETY: made once, in `Blas::new`.
            let _ = unsafe { result::destroy_handle(self.raw) };
        }
    }
}

/// Descriptions of a product and its matrices, and the algorithm.
struct Plan {
    product: sys::cublasLtMatmulDesc_t,
    layouts: [Layout; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

#[derive(Clone, Copy)]
struct Layout(sys::cublasLtMatrixLayout_t);

// SAFETY: descriptions are plain memory that does not change once made.
unsafe impl Send for Plan {}
// SAFETY: as above.
unsafe impl Sync for Plan {}

impl Plan {
    /// Row-major matrices are to cuBLAS transposed ones: it computes `out^T = w x^T`.
    fn new(handle: sys::cublasLtHandle_t, sizes: &MatMul) -> Result<Self, result::CublasError> {
        use sys::cudaDataType_t::{CUDA_R_16F, CUDA_R_32F};
        let product = result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, CUDA_R_32F)?;
        // From here on the plan's end frees what there is.
        let mut plan = Self {
            product,
            layouts: [Layout(std::ptr::null_mut()); 3],
            // SAFETY: all zeros is a valid value of these plain numbers; it is written below before it is used.
            algorithm: unsafe { std::mem::zeroed() },
        };
        // CUBLAS_OP_T of cublasOperation_t, which the bindings of cuBLASLt leave out.
        let transpose = 1i32;
        // SAFETY: the description lives; the attribute is a number of this size.
        unsafe {
            result::set_matmul_desc_attribute(
                product,
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                (&raw const transpose).cast(),
                size_of_val(&transpose),
            )?;
        }
        let MatMul { m, n, k, strides: [x, w, out], wide, .. } = *sizes;
        let out_type = if wide { CUDA_R_32F } else { CUDA_R_16F };
        plan.layouts[0] = Layout(result::create_matrix_layout(CUDA_R_16F, k, m, x as i64)?);
        plan.layouts[1] = Layout(result::create_matrix_layout(CUDA_R_16F, k, n, w as i64)?);
        plan.layouts[2] = Layout(result::create_matrix_layout(out_type, n, m, out as i64)?);
        let workspace_bytes = WORKSPACE_BYTES;
        let preference = Preference(result::create_matmul_pref()?);
        let [x, w, out] = plan.layouts.map(|layout| layout.0);
        // SAFETY: all descriptions live; the attribute is a number of this size.
        plan.algorithm = unsafe {
            result::set_matmul_pref_attribute(
                preference.0,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const workspace_bytes).cast(),
                size_of::<usize>(),
            )?;
            result::get_matmul_algo_heuristic(handle, product, w, x, out, out, preference.0)?.algo
        };
        Ok(plan)
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made in `new`, and used by calls that have returned: cuBLASLt copies descriptions into its launches.
        unsafe {
            for layout in self.layouts.iter().filter(|layout| !layout.0.is_null()) {
                let _ = result::destroy_matrix_layout(layout.0);
            }
            let _ = result::destroy_matmul_desc(self.product);
        }
    }
}

struct Preference(sys::cublasLtMatmulPreference_t);

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made once, in `Plan::new`.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
