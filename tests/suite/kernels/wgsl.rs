//! The suite on the first GPU of the machine, which may be a software one.

use std::sync::{Arc, LazyLock};

use runahead::dtype::Scalar;
use runahead::gpu::{Gpu, GpuKind, Tier, enumerate};
use runahead::kernels::Kernels;
use runahead::kernels::wgsl::Wgsl;

fn open() -> Arc<Gpu> {
    let adapters = enumerate();
    let adapter = adapters.first().expect("there is no Vulkan, Metal or DX12 adapter; mesa-vulkan-drivers brings one");
    Arc::new(adapter.open().unwrap())
}

/// One device for all tests: pipelines are compiled once.
pub fn shared() -> &'static Wgsl {
    static KERNELS: LazyLock<Wgsl> = LazyLock::new(|| Wgsl::new(open()).unwrap());
    &KERNELS
}

/// The same with the variants that this kind of GPU would not take: those for hardware on a software GPU, and the other way round.
pub fn other_kind() -> &'static Wgsl {
    static KERNELS: LazyLock<Wgsl> = LazyLock::new(|| {
        let gpu = shared().gpu();
        let other = if gpu.info().kind == GpuKind::Software { GpuKind::Discrete } else { GpuKind::Software };
        Wgsl::as_on(other, gpu.clone()).unwrap()
    });
    &KERNELS
}

/// The same device with the activation type that it does not take by itself, where it has one.
pub fn other_activations() -> &'static Wgsl {
    static KERNELS: LazyLock<Wgsl> = LazyLock::new(|| {
        let gpu = shared().gpu();
        let other = shared().activation() == Scalar::F32 && gpu.caps().tier >= Tier::F16;
        Wgsl::with_activation(if other { Scalar::F16 } else { Scalar::F32 }, gpu.clone()).unwrap()
    });
    &KERNELS
}

kernel_suite! { shared() }

mod other_activations {
    kernel_suite! { super::other_activations() }
}

mod variants_of_the_other_kind {
    use super::other_kind;

    kernel_suite! { other_kind(), problems: norm product_prefill product_decode attention_decode arg_max }
}
