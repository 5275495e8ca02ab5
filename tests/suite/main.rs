//! All integration tests in one binary: linked once, one module a subject.

#![allow(missing_docs)]
// `allow-unwrap-in-tests` covers functions marked `#[test]`, not what they call.
#![allow(clippy::unwrap_used)]

#[cfg(feature = "cli")]
mod bench;
mod chain;
#[cfg(feature = "cli")]
mod chat;
#[cfg(feature = "cli")]
mod cli;
#[cfg(feature = "cuda")]
mod cuda;
mod dependencies;
mod engine;
mod families;
#[cfg(feature = "cli")]
mod gemma3;
mod granules;
mod kernels;
mod layers;
mod link;
mod model;
mod modes;
mod naive;
mod partition;
mod plan;
#[cfg(feature = "cli")]
mod pull;
mod sampler;
mod saved;
mod shaders;
mod simulate;
mod submissions;
mod templates;
mod tokenizer;
mod weights;
mod windows;
