//! Matrix units: whether a device's are of the kind that our kernels use, and what their shaders begin with.

use crate::gpu::{Caps, CoopScalar, CoopShape, Tier};

/// Most workgroup memory that a kernel with matrix units takes.
const MEMORY_BYTES: u32 = 48 << 10;

/// Most invocations of a workgroup, 8 subgroups of 32.
const INVOCATIONS: u32 = 256;

/// Matrix units of 16x16x16, f16 with sums in f32, worked by subgroups of a size that is known beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Coop {
    /// Invocations of a subgroup.
    pub lanes: u32,
}

impl Coop {
    /// What every kernel here is written for; NVIDIA's.
    pub const USUAL: Self = Self { lanes: 32 };

    /// Nothing where kernels without matrix units have to do. WGSL cannot ask for a subgroup size, and a workgroup's subgroups have to be
    /// as many as its tile was cut for: a device whose subgroups vary is left out.
    pub fn of(caps: &Caps) -> Option<Self> {
        let shape = CoopShape { m: 16, n: 16, k: 16, inputs: CoopScalar::F16, sums: CoopScalar::F32 };
        let usable = caps.tier >= Tier::Coop
            && caps.coop_shapes.contains(&shape)
            && caps.subgroup_min == caps.subgroup_max
            && caps.subgroup_min == Self::USUAL.lanes
            && caps.workgroup_memory_bytes >= MEMORY_BYTES
            && caps.max_workgroup_invocations >= INVOCATIONS;
        usable.then_some(Self { lanes: caps.subgroup_min })
    }

    /// The beginning of a shader: directives and constants.
    pub fn header(self, constants: &[(&str, u32)]) -> String {
        let mut header = "enable f16;\nenable wgpu_cooperative_matrix;\n".to_owned();
        for (name, value) in constants.iter().chain(&[("LANES", self.lanes)]) {
            header.push_str(&format!("const {name}: u32 = {value}u;\n"));
        }
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_devices_that_fit_the_kernels_use_matrix_units() {
        let shape = CoopShape { m: 16, n: 16, k: 16, inputs: CoopScalar::F16, sums: CoopScalar::F32 };
        let caps = Caps {
            tier: Tier::Coop,
            coop_shapes: vec![CoopShape { m: 8, n: 8, k: 8, ..shape }, shape],
            subgroup_min: 32,
            subgroup_max: 32,
            workgroup_memory_bytes: 48 << 10,
            ..Caps::least()
        };
        assert_eq!(Coop::of(&caps), Some(Coop::USUAL));
        let others = [
            caps.at_tier(Tier::Subgroup),
            Caps { coop_shapes: vec![CoopShape { m: 8, n: 8, k: 8, ..shape }], ..caps.clone() },
            Caps { subgroup_max: 64, ..caps.clone() },
            Caps { subgroup_min: 64, subgroup_max: 64, ..caps.clone() },
            Caps { workgroup_memory_bytes: 32 << 10, ..caps.clone() },
            Caps { max_workgroup_invocations: 128, ..caps },
        ];
        assert!(others.iter().all(|caps| Coop::of(caps).is_none()));
    }
}
