//! Subgroups as the decode kernels need them: whether a device's have one size that is known beforehand.

use super::coop::Coop;
use crate::gpu::{Caps, Tier};

/// Subgroups in a workgroup of the kernels that attend.
pub(super) const ATTEND: u32 = 8;

/// Subgroups of one size. WGSL cannot ask for it, and a kernel's workgroups have to be cut for it: a device whose subgroups vary is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Subgroups {
    /// Invocations of a subgroup, a power of two from 8 on.
    pub lanes: u32,
}

impl Subgroups {
    /// Those of a GPU with matrix units.
    pub const USUAL: Self = Self { lanes: Coop::USUAL.lanes };

    pub fn of(caps: &Caps) -> Option<Self> {
        let lanes = caps.subgroup_min;
        let usable = caps.tier >= Tier::Subgroup
            && lanes == caps.subgroup_max
            && lanes.is_power_of_two()
            && lanes >= 8
            && ATTEND * lanes <= caps.max_workgroup_invocations;
        usable.then_some(Self { lanes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subgroups_have_one_size() {
        let caps = Caps { tier: Tier::Subgroup, subgroup_min: 8, subgroup_max: 8, ..Caps::least() };
        assert_eq!(Subgroups::of(&caps), Some(Subgroups { lanes: 8 }));
        let usual = Caps { subgroup_min: 32, subgroup_max: 32, ..caps.clone() };
        assert_eq!(Subgroups::of(&usual), Some(Subgroups::USUAL));
        let others = [
            caps.at_tier(Tier::F16),
            Caps { subgroup_max: 16, ..caps.clone() },
            Caps { subgroup_min: 4, subgroup_max: 4, ..caps.clone() },
            Caps { subgroup_min: 64, subgroup_max: 64, ..caps },
        ];
        assert!(others.iter().all(|caps| Subgroups::of(caps).is_none()));
    }
}
