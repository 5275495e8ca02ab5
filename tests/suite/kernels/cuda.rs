//! The suite on an NVIDIA GPU that Vulkan and CUDA share: as it is used, and with everything on CUDA's side that has a kernel there.

use std::sync::{Arc, LazyLock};

use runahead::kernels::cuda::Cuda;

use crate::cuda::open;

fn shared() -> &'static Cuda {
    static KERNELS: LazyLock<Cuda> = LazyLock::new(|| Cuda::new(Arc::new(open())).unwrap());
    &KERNELS
}

fn eager() -> &'static Cuda {
    static KERNELS: LazyLock<Cuda> = LazyLock::new(|| Cuda::eager(Arc::new(open())).unwrap());
    &KERNELS
}

kernel_suite! { shared() }

mod eager {
    kernel_suite! { super::eager() }
}
