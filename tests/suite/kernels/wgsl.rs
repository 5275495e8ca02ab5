//! The suite on the first GPU of the machine, which may be a software one.

use std::sync::{Arc, LazyLock};

use runahead::dtype::Scalar;
use runahead::gpu::{Gpu, GpuKind, Tier, enumerate};
use runahead::kernels::Kernels;
use runahead::kernels::wgsl::Wgsl;

/// A device of its own.
pub fn open() -> Arc<Gpu> {
    let adapters = enumerate();
    let adapter = adapters.first().expect("there is no Vulkan, Metal or DX12 adapter; mesa-vulkan-drivers brings one");
    Arc::new(adapter.open().unwrap())
}

/// One device for most tests: pipelines are compiled once.
pub fn shared() -> &'static Wgsl {
    static KERNELS: LazyLock<Wgsl> = LazyLock::new(|| Wgsl::new(open()).unwrap());
    &KERNELS
}

/// Another device, for variants that the first would not take. A software GPU compiles within submissions, which only those of another device can do
/// at the same time.
fn second() -> &'static Arc<Gpu> {
    static GPU: LazyLock<Arc<Gpu>> = LazyLock::new(open);
    &GPU
}

/// The variants that this kind of GPU would not take: those for hardware on a software GPU, and the other way round.
pub fn other_kind() -> &'static Wgsl {
    static KERNELS: LazyLock<Wgsl> = LazyLock::new(|| {
        let gpu = second();
        let other = if gpu.info().kind == GpuKind::Software { GpuKind::Discrete } else { GpuKind::Software };
        Wgsl::new(gpu.clone()).unwrap().as_on(other)
    });
    &KERNELS
}

/// The first device with the activation type that it does not take by itself, where it has one.
pub fn other_activations() -> &'static Wgsl {
    static KERNELS: LazyLock<Wgsl> = LazyLock::new(|| {
        let gpu = shared().gpu();
        let other = shared().activation() == Scalar::F32 && gpu.caps().tier >= Tier::F16;
        Wgsl::with_activation(if other { Scalar::F16 } else { Scalar::F32 }, gpu.clone()).unwrap()
    });
    &KERNELS
}

/// The variants for hardware with activations in f16, where the device has them: a GPU with matrix units takes them by itself, with them.
pub fn hardware() -> &'static Wgsl {
    static KERNELS: LazyLock<Wgsl> = LazyLock::new(|| {
        let gpu = second();
        let activation = if gpu.caps().tier >= Tier::F16 { Scalar::F16 } else { Scalar::F32 };
        Wgsl::with_activation(activation, gpu.clone()).unwrap().as_on(GpuKind::Discrete)
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

mod variants_for_hardware {
    use runahead::dtype::{Dtype, Scalar};
    use runahead::gpu::Tier;
    use runahead::kernels::{AttentionDecode, Epilogue, HeadDims, Kernels, Phase, Product, ScoreRules};

    use super::super::problems::single;
    use super::super::reference::Random;
    use super::hardware;

    /// The kernels above are those that work by subgroups, where the device has subgroups for them; few keys take one dispatch.
    #[test]
    fn subgroups_are_used() {
        let k = hardware();
        let caps = k.gpu().caps();
        if caps.tier < Tier::Subgroup || caps.subgroup_min != caps.subgroup_max {
            return;
        }
        let tensor = |scalar, len| k.tensor("tensor", scalar, len).unwrap();
        let (a, dims) = (k.activation(), HeadDims { heads: 4, kv_heads: 2, head_dim: 64 });
        let (width, mut random) = (256, Random::new(31));
        let (x, out) = (tensor(a, 64 * width), tensor(Scalar::F32, 64 * 8));
        let weight = k.matrix("weight", &single(&mut random, Dtype::Q4K, 8, width)).unwrap();
        let mut rec = k.begin();
        let product = Product {
            x: &x,
            weight: &weight,
            bias: None,
            out: &out,
            rows: 0..1,
            out_row: 0,
            epilogue: Epilogue::Store,
            phase: Phase::Decode,
        };
        k.product(&mut rec, product).unwrap();
        let (qkv, attended) = (tensor(a, 64 * dims.qkv_width()), tensor(a, 64 * dims.q_width()));
        let (keys, values) = (tensor(Scalar::F16, 1024 * dims.kv_width()), tensor(Scalar::F16, 1024 * dims.kv_width()));
        let partial = tensor(Scalar::F32, k.decode_splits() * dims.heads * (dims.head_dim + 2));
        for position in [511, 512] {
            let op = AttentionDecode {
                qkv: &qkv,
                k: &keys,
                v: &values,
                out: &attended,
                partial: &partial,
                position,
                dims,
                scale: 0.125,
                rules: ScoreRules::default(),
                bias: None,
            };
            k.attention_decode(&mut rec, op).unwrap();
        }
        let names: Vec<&str> = rec.kernels().map(|name| name.split(' ').next().unwrap()).collect();
        assert_eq!(names, ["matvec", "attention_decode", "attention_decode", "attention_merge"]);
        let by_subgroups: Vec<_> = rec.kernels().filter(|name| name.contains("subgroups of")).collect();
        assert_eq!(by_subgroups.len(), if a == Scalar::F16 { 3 } else { 2 }, "{by_subgroups:?}");
    }

    kernel_suite! { hardware(), problems: product_decode norm_product attention_decode rope_attention_decode arg_max }
    kernel_suite! { hardware(), edges: saturation }
}
