//! Every adapter's kernels against the naive formulas in f64: one suite of problems, run for each implementation of the trait.

// `allow-unwrap-in-tests` covers functions marked `#[test]`, not what they call.
#![allow(clippy::unwrap_used)]

pub mod edges;
pub mod harness;
pub mod problems;
pub mod quants;
pub mod reference;

/// The suite as one `#[test]` per operation. `$kernels` gives a reference to the kernels, anew in each test: `&make()`, or a shared one.
macro_rules! kernel_suite {
    ($kernels:expr) => {
        kernel_suite! { $kernels, problems: embed norm product_prefill product_decode norm_product rope_cache attention attention_decode rope_attention_decode soft_cap arg_max }
        kernel_suite! { $kernels, edges: downloads_and_writes saturation bad_sizes wrong_references_fail }
        kernel_suite! { $kernels, quants: decoding_matches_another_implementation }
    };
    ($kernels:expr, $module:ident: $($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                $crate::kernels::$module::$name($kernels);
            }
        )*
    };
}

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
pub mod wgsl;
