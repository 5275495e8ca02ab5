//! All integration tests in one binary: linked once, one module a subject.

#![allow(missing_docs)]
// `allow-unwrap-in-tests` covers functions marked `#[test]`, not what they call.
#![allow(clippy::unwrap_used)]

mod chain;
#[cfg(feature = "cli")]
mod cli;
mod engine;
mod granules;
mod kernels;
mod layers;
mod model;
mod partition;
#[cfg(feature = "cli")]
mod pull;
mod shaders;
mod tokenizer;
mod weights;
