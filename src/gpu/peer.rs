//! Memory of one device that it and others of the machine read by themselves: CUDA's, hence none without the feature `cuda`.

#[cfg(feature = "cuda")]
pub use super::cuda::PeerMemory;

/// There is none.
#[cfg(not(feature = "cuda"))]
#[derive(Debug)]
pub enum PeerMemory {}
