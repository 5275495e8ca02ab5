//! What an adapter can do, as plain data: the tier, the limits, the matrix units.

use crate::error::{Error, Result};

/// The variable that lowers the tier.
const TIER_VARIABLE: &str = "RUNAHEAD_TIER";

/// What shaders may use; each tier includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// WebGPU without extensions: f32 arithmetic, f16 by `pack2x16float`.
    Base,
    /// `enable f16;`.
    F16,
    /// Subgroup operations.
    Subgroup,
    /// Cooperative matrices of f16 with f32 sums.
    Coop,
}

impl Tier {
    /// All tiers, lowest first.
    pub const ALL: [Tier; 4] = [Tier::Base, Tier::F16, Tier::Subgroup, Tier::Coop];

    /// The name that users see and `RUNAHEAD_TIER` takes.
    pub const fn name(self) -> &'static str {
        match self {
            Tier::Base => "base",
            Tier::F16 => "f16",
            Tier::Subgroup => "subgroup",
            Tier::Coop => "coop",
        }
    }

    /// This tier, or the named one where that is lower. Errors: [`Error::Unsupported`] for a name that is none.
    fn lowered_to(self, name: Option<&str>) -> Result<Self> {
        let Some(name) = name else { return Ok(self) };
        match Tier::ALL.into_iter().find(|tier| tier.name() == name) {
            Some(tier) => Ok(self.min(tier)),
            None => Err(Error::Unsupported {
                what: "tier in RUNAHEAD_TIER (base, f16, subgroup or coop)",
                name: name.to_owned(),
            }),
        }
    }
}

/// Element types of cooperative matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CoopScalar {
    /// IEEE binary16.
    F16,
    /// IEEE binary32.
    F32,
}

/// One shape `C[m, n] += A[m, k] * B[k, n]` of the adapter's matrix units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CoopShape {
    /// Rows of A and C.
    pub m: u32,
    /// Columns of B and C.
    pub n: u32,
    /// Columns of A, rows of B.
    pub k: u32,
    /// Elements of A and B.
    pub inputs: CoopScalar,
    /// Elements of C.
    pub sums: CoopScalar,
}

/// What kernels are chosen by and checked against. A value: tests make their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caps {
    /// What shaders may use.
    pub tier: Tier,
    /// Largest buffer, in bytes.
    pub max_buffer_bytes: u64,
    /// Largest part of a buffer that one storage binding shows, in bytes; a multiple of 4.
    pub max_binding_bytes: u64,
    /// Workgroup memory, in bytes.
    pub workgroup_memory_bytes: u32,
    /// Invocations in a workgroup.
    pub max_workgroup_invocations: u32,
    /// Workgroup size in each dimension.
    pub max_workgroup_size: [u32; 3],
    /// Workgroups in each dimension of a dispatch.
    pub max_workgroups_per_dim: u32,
    /// Storage bindings of a shader.
    pub storage_buffers_per_stage: u32,
    /// Offsets of storage bindings are multiples of this, in bytes.
    pub min_storage_offset: u32,
    /// Smallest subgroup.
    pub subgroup_min: u32,
    /// Largest subgroup.
    pub subgroup_max: u32,
    /// Shapes of the matrix units; empty below [`Tier::Coop`].
    pub coop_shapes: Vec<CoopShape>,
}

impl Caps {
    /// The least that WebGPU promises: a shader that passes [`check`](super::check) with these runs everywhere.
    pub fn least() -> Self {
        Self::from_limits(&wgpu::Limits::defaults())
    }

    /// What the hardware and its driver offer.
    pub(super) fn of(adapter: &wgpu::Adapter) -> Self {
        let info = adapter.get_info();
        let shapes = coop_shapes(&adapter.cooperative_matrix_properties());
        let tier = tier_of(adapter.features(), &shapes);
        Self {
            tier,
            subgroup_min: info.subgroup_min_size,
            subgroup_max: info.subgroup_max_size,
            coop_shapes: if tier == Tier::Coop { shapes } else { Vec::new() },
            ..Self::from_limits(&adapter.limits())
        }
    }

    /// These capabilities, not above the tier that the environment names.
    pub fn lowered_by_environment(&self) -> Result<Self> {
        let name = std::env::var_os(TIER_VARIABLE).map(|name| name.to_string_lossy().into_owned());
        Ok(self.at_tier(self.tier.lowered_to(name.as_deref())?))
    }

    /// These capabilities with a lower tier: the variants of slower adapters, on this one. A higher tier changes nothing.
    pub fn at_tier(&self, tier: Tier) -> Self {
        let tier = self.tier.min(tier);
        let coop_shapes = if tier == Tier::Coop { self.coop_shapes.clone() } else { Vec::new() };
        Self { tier, coop_shapes, ..self.clone() }
    }

    fn from_limits(limits: &wgpu::Limits) -> Self {
        Self {
            tier: Tier::Base,
            max_buffer_bytes: limits.max_buffer_size,
            // Shaders count in 32 bits, and Metal binds more than these can.
            max_binding_bytes: limits.max_storage_buffer_binding_size.min(i32::MAX as u64) / 4 * 4,
            workgroup_memory_bytes: limits.max_compute_workgroup_storage_size,
            max_workgroup_invocations: limits.max_compute_invocations_per_workgroup,
            max_workgroup_size: [
                limits.max_compute_workgroup_size_x,
                limits.max_compute_workgroup_size_y,
                limits.max_compute_workgroup_size_z,
            ],
            max_workgroups_per_dim: limits.max_compute_workgroups_per_dimension,
            storage_buffers_per_stage: limits.max_storage_buffers_per_shader_stage,
            min_storage_offset: limits.min_storage_buffer_offset_alignment,
            subgroup_min: wgpu::MINIMUM_SUBGROUP_MIN_SIZE,
            subgroup_max: wgpu::MAXIMUM_SUBGROUP_MAX_SIZE,
            coop_shapes: Vec::new(),
        }
    }
}

/// The device features that a tier's shaders need.
pub(super) fn features_of(tier: Tier) -> wgpu::Features {
    let mut features = wgpu::Features::empty();
    features.set(wgpu::Features::SHADER_F16, tier >= Tier::F16);
    features.set(wgpu::Features::SUBGROUP, tier >= Tier::Subgroup);
    features.set(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, tier >= Tier::Coop);
    features
}

/// The highest tier whose features are all there and, for [`Tier::Coop`], whose shapes our kernels can use.
fn tier_of(features: wgpu::Features, shapes: &[CoopShape]) -> Tier {
    let usable = |s: &CoopShape| {
        s.m == s.n && s.n == s.k && matches!(s.m, 8 | 16) && s.inputs == CoopScalar::F16 && s.sums == CoopScalar::F32
    };
    let has = |tier: Tier| features.contains(features_of(tier)) && (tier < Tier::Coop || shapes.iter().any(usable));
    Tier::ALL.into_iter().rev().find(|&tier| has(tier)).unwrap_or(Tier::Base)
}

fn coop_shapes(properties: &[wgpu::wgt::CooperativeMatrixProperties]) -> Vec<CoopShape> {
    let scalar = |scalar| match scalar {
        wgpu::wgt::CooperativeScalarType::F16 => Some(CoopScalar::F16),
        wgpu::wgt::CooperativeScalarType::F32 => Some(CoopScalar::F32),
        _ => None,
    };
    let shape = |p: &wgpu::wgt::CooperativeMatrixProperties| {
        Some(CoopShape { m: p.m_size, n: p.n_size, k: p.k_size, inputs: scalar(p.ab_type)?, sums: scalar(p.cr_type)? })
    };
    properties.iter().filter_map(shape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SQUARE: CoopShape = CoopShape { m: 16, n: 16, k: 16, inputs: CoopScalar::F16, sums: CoopScalar::F32 };

    #[test]
    fn a_tier_needs_all_features_of_those_below() {
        let f16 = wgpu::Features::SHADER_F16;
        let subgroup = wgpu::Features::SUBGROUP;
        let coop = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
        assert_eq!(tier_of(wgpu::Features::empty(), &[SQUARE]), Tier::Base);
        assert_eq!(tier_of(f16, &[]), Tier::F16);
        assert_eq!(tier_of(subgroup, &[]), Tier::Base);
        assert_eq!(tier_of(f16 | subgroup, &[]), Tier::Subgroup);
        assert_eq!(tier_of(f16 | subgroup | coop, &[SQUARE]), Tier::Coop);
        assert_eq!(tier_of(f16 | coop, &[SQUARE]), Tier::F16);
        let f16_sums = CoopShape { sums: CoopScalar::F16, ..SQUARE };
        let oblong = CoopShape { n: 8, ..SQUARE };
        assert_eq!(tier_of(f16 | subgroup | coop, &[f16_sums, oblong]), Tier::Subgroup);
    }

    #[test]
    fn the_environment_lowers_and_never_raises() {
        assert_eq!(Tier::Coop.lowered_to(None).unwrap(), Tier::Coop);
        assert_eq!(Tier::Coop.lowered_to(Some("f16")).unwrap(), Tier::F16);
        assert_eq!(Tier::F16.lowered_to(Some("coop")).unwrap(), Tier::F16);
        for name in ["", "F16", "fast"] {
            assert!(matches!(Tier::Coop.lowered_to(Some(name)), Err(Error::Unsupported { name: n, .. }) if n == name));
        }
    }

    #[test]
    fn matrix_shapes_leave_with_their_tier() {
        let caps = Caps { tier: Tier::Coop, coop_shapes: vec![SQUARE], ..Caps::least() };
        assert_eq!(caps.at_tier(Tier::Coop), caps);
        assert!(caps.at_tier(Tier::Subgroup).coop_shapes.is_empty());
        assert_eq!(Caps::least().at_tier(Tier::Coop), Caps::least());
    }
}
