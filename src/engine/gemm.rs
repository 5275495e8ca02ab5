//! Who computes the products of a prefill on a GPU: our WGSL kernels, or NVIDIA's cuBLASLt, with whose kernels attention comes.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// See the module's text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Gemm {
    /// cuBLASLt wherever a GPU, its driver and this build have it; else WGSL.
    #[default]
    Auto,
    /// WGSL everywhere.
    Wgsl,
    /// cuBLASLt; an error where a GPU does not have it.
    CublasLt,
}

impl FromStr for Gemm {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Gemm::Auto),
            "wgsl" => Ok(Gemm::Wgsl),
            "cublaslt" => Ok(Gemm::CublasLt),
            other => Err(Error::Unsupported { what: "products (auto, wgsl or cublaslt)", name: other.to_owned() }),
        }
    }
}

impl fmt::Display for Gemm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Gemm::Auto => "auto",
            Gemm::Wgsl => "wgsl",
            Gemm::CublasLt => "cublaslt",
        })
    }
}

/// Versions of what an adapter multiplies with where it has CUDA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaVersions {
    /// CUDA's, as the driver has it: `13.0`.
    pub cuda: String,
    /// cuBLASLt's: `13.1`.
    pub cublaslt: String,
}

impl fmt::Display for CudaVersions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CUDA {}, cuBLASLt {}", self.cuda, self.cublaslt)
    }
}

/// What this build and machine have of CUDA: versions, or the reason why products and attention are WGSL's. `None` where the program was built
/// without the feature `cuda`.
pub fn cuda() -> Option<std::result::Result<CudaVersions, String>> {
    #[cfg(feature = "cuda")]
    return Some(crate::gpu::cuda_versions().map(|[cuda, cublaslt]| CudaVersions { cuda, cublaslt }));
    #[cfg(not(feature = "cuda"))]
    None
}
