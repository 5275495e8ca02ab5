//! Rates by kind of adapter, for a plan before anything was timed: orders of magnitude, and named so wherever they are used.

use crate::runahead::cost::{Lane, Rates};

/// One core's products in f32 with wide SIMD (measured: 80 GFLOP/s on two cores with AVX-512).
const CORE_FLOPS: f64 = 40e9;

/// What an adapter of this kind (`discrete`, `integrated`, `virtual`, `other`, `software` or `cpu`) does about; `threads` counts for the CPU alone.
pub fn typical(name: &str, kind: &str, threads: usize) -> Rates {
    let cpu = CORE_FLOPS * threads.max(1) as f64;
    // Products and attention in operations per second, half-speed length, host memory in bytes per second, latency.
    let (product_flops, attention_flops, half_speed_tokens, bandwidth, latency_s) = match kind {
        "discrete" => (50e12, 15e12, 128.0, 8e9, 1e-4),
        "virtual" | "other" => (20e12, 5e12, 128.0, 5e9, 2e-4),
        "integrated" => (1.5e12, 0.5e12, 32.0, 8e9, 1e-4),
        // A software GPU: 5 to 10 GFLOP/s were measured on two cores.
        "software" => (cpu / 10.0, cpu / 20.0, 8.0, 5e9, 1e-4),
        _ => (cpu, cpu / 4.0, 4.0, 5e9, 1e-5),
    };
    let lane = Lane { bandwidth: Some(bandwidth), latency_s, noise: None };
    Rates {
        name: name.to_owned(),
        product_flops,
        attention_flops,
        half_speed_tokens,
        decode_s: None,
        down: lane,
        up: lane,
    }
}
