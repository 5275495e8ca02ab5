//! Runahead: short time to first token, on whatever GPUs the machine has.
//!
//! A long prompt is cut into pieces, and each adapter (a GPU of any vendor, or the CPU) runs all layers on its own piece while K/V rows are handed
//! on through host memory: no barrier, no all-gather, and on WGSL adapters of one kind the same bits whatever the cut (KV-Runahead, Cho, Rastegari and Naik, ICML 2024).
//!
//! ```
//! use runahead::engine::{Engine, Options};
//!
//! # fn main() -> runahead::Result<()> {
//! # let cache = std::env::var("HOME").unwrap_or_default() + "/.cache/runahead/SmolLM2-135M-Instruct.Q4_1.gguf";
//! # let model = std::env::var("RUNAHEAD_MODEL").unwrap_or(cache); // `runahead pull smollm2` fetches it
//! let engine = Engine::builder(model)?.open()?; // on every real GPU, else on the CPU
//! let tokens = engine.prompt_tokens("Why is the sky blue?", false)?;
//! let mut session = engine.session()?;
//! let mut text = String::new();
//! for token in session.generate(&tokens, &Options { max_tokens: 12, ..Options::default() })? {
//!     text += &token?.text;
//! }
//! assert!(text.starts_with("The"), "{text}");
//! # Ok(())
//! # }
//! ```
//!
//! The library never prints, exits, panics or keeps global state (but drivers, which stay loaded until the process ends); every wait has a time-out or a cancel.

pub mod cancel;
pub mod config;
pub mod dates;
pub mod dims;
pub mod dtype;
pub mod error;

pub mod new_file;
pub mod sampler;
pub mod template;
mod threads;
pub mod tokenizer;
pub mod weights;

pub mod gpu;
pub mod kernels;
pub mod model;
pub mod runahead;

pub mod engine;

pub use error::{Error, Result};
