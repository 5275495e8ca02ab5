//! The chain: one prompt's prefill over several adapters, each running all layers on its own tokens (KV-Runahead, Cho et al., ICML 2024).
//!
//! [`partition`] cuts the prompt, [`schedule`] says who computes and who reads what, a [`worker`] and a [`courier`] per adapter carry it out over
//! the [`board`], and [`chain`] starts them and gathers what they made. Nobody waits for a later piece, and there is no barrier.

pub mod auto;
pub mod board;
pub mod chain;
pub mod cost;
pub mod courier;
pub mod experiment;
pub mod link;
pub mod node;
pub mod noise;
pub mod partition;
pub mod pool;
mod queue;
pub mod ring;
pub mod schedule;
pub mod search;
pub mod share;
pub mod simulate;
pub mod table;
pub mod trace;
pub mod turn;
pub mod worker;
