//! Products of many rows with a weight matrix on matrix units.

use super::coop::Coop;
use super::matrix::Part;
use super::product::{Params, Types, bindings, check, finish_part, input_parts, params};
use super::tensor::Args;
use super::unroll::unroll;
use super::{Kernel, Wgsl};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::gpu::{Recording, ShaderSpec};
use crate::kernels::{Epilogue, Product};

/// Widths that are a multiple of this have a kernel: the blocks that weight rows are padded to.
const BLOCK: usize = 32;

/// What a workgroup computes, and each of its subgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tile {
    m: u32,
    n: u32,
    /// Elements of `k` in workgroup memory at a time.
    k: u32,
    subgroup_m: u32,
    subgroup_n: u32,
    /// Steps of `k` that loads run ahead.
    depth: u32,
    /// Matrices side by side that a subgroup stores at a time.
    staged: u32,
}

/// For widths that 64 divides, from the fastest to those that spread few rows farther. On an H200: 220 TFLOP/s for a product of 4096 x 4096 x 4096
/// with the first; on an H100 176 with the second, about 100, 163 and 101 for 256 rows; the last one 62 for 64.
const WIDE: [Tile; 3] = [
    Tile { m: 128, n: 128, k: 64, subgroup_m: 64, subgroup_n: 32, depth: 4, staged: 1 },
    Tile { m: 128, n: 64, k: 64, subgroup_m: 64, subgroup_n: 32, depth: 2, staged: 2 },
    Tile { m: 64, n: 64, k: 64, subgroup_m: 32, subgroup_n: 32, depth: 3, staged: 2 },
];

/// For other widths: 184 and 170 TFLOP/s.
const NARROW: [Tile; 3] = [
    Tile { m: 256, n: 128, k: 32, subgroup_m: 64, subgroup_n: 64, depth: 2, staged: 2 },
    Tile { m: 128, n: 64, k: 32, subgroup_m: 64, subgroup_n: 32, depth: 3, staged: 2 },
    Tile { m: 64, n: 64, k: 32, subgroup_m: 32, subgroup_n: 32, depth: 3, staged: 2 },
];

impl Tile {
    const fn subgroups(self) -> u32 {
        (self.m / self.subgroup_m) * (self.n / self.subgroup_n)
    }

    const fn count(self, rows: u32, n: u32) -> u32 {
        rows.div_ceil(self.m).saturating_mul(n.div_ceil(self.n))
    }

    /// The first tile that makes as many workgroups as keep the device `busy`; the bits of a row do not depend on it.
    fn choose(format: Dtype, width: usize, rows: u32, n: u32, busy: usize) -> Self {
        let [large, middle, small] = if width.is_multiple_of(64) { WIDE } else { NARROW };
        let tile = [large, middle].into_iter().find(|tile| tile.count(rows, n) as usize >= busy).unwrap_or(small);
        tile.suited(format)
    }

    /// Unpacking takes the registers that loads ahead would need: with four steps instead of two Q8_0 loses 4 %, Q4_K 8 %.
    fn suited(self, format: Dtype) -> Self {
        Self { depth: if format == Dtype::F16 { self.depth } else { self.depth.min(2) }, ..self }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    coop: Coop,
    types: Types,
    weight: Dtype,
    epilogue: Epilogue,
    bias: bool,
    tile: Tile,
    /// Whether outputs can be written four sums at a time.
    aligned: bool,
}

impl Variant {
    pub fn all(types: Types, weight: Dtype, epilogue: Epilogue, bias: bool) -> impl Iterator<Item = Self> {
        let coop = Coop::USUAL;
        let variant = move |tile, aligned| Self { coop, types, weight, epilogue, bias, tile, aligned };
        let aligned = (!bias).then(|| wide_part(epilogue)).flatten().is_some();
        WIDE.into_iter()
            .chain(NARROW)
            .map(move |tile| tile.suited(weight))
            .flat_map(move |tile| std::iter::once(variant(tile, false)).chain(aligned.then(|| variant(tile, true))))
    }

    pub fn spec(self) -> ShaderSpec {
        let Tile { m, n, k, subgroup_m, subgroup_n, depth, staged } = self.tile;
        let threads = self.coop.lanes * self.tile.subgroups();
        let constants = [
            ("TM", m),
            ("TN", n),
            ("TK", k),
            ("WM", subgroup_m),
            ("WN", subgroup_n),
            ("SUBGROUPS", self.tile.subgroups()),
            ("DEPTH", depth),
            ("STAGED", staged),
        ];
        let counts = [
            ("M_BLOCKS", subgroup_m / 16),
            ("N_PARTS", subgroup_n / 16 / staged),
            ("STAGED", staged),
            ("X_LOADS", m * k / 8 / threads),
            ("W_LOADS", n * k / 8 / threads),
            ("STEPS", k / 16),
            ("DEPTH", depth),
        ];
        let (types, weight, epilogue) = (self.types.name(), self.weight.name(), self.epilogue);
        let pairs = if self.aligned { "" } else { " in pairs" };
        let bias = self.bias;
        ShaderSpec {
            name: format!("product_coop {types} {weight} {epilogue:?} bias={bias} {m}x{n}x{k}{pairs}"),
            header: self.coop.header(&constants) + &unroll(PRODUCT, &counts),
            parts: self.parts(),
            op: include_str!("../../../shaders/lib/octet.wgsl"),
            entry: "product",
            overrides: Vec::new(),
            checked: false,
        }
    }

    fn parts(self) -> Vec<&'static str> {
        let mut parts = input_parts(self.types, self.weight, self.bias);
        parts.push(match self.weight {
            Dtype::F16 => include_str!("../../../shaders/lib/tile_weight_f16.wgsl"),
            _ => include_str!("../../../shaders/lib/tile_weight_any.wgsl"),
        });
        match wide_part(self.epilogue).filter(|_| self.aligned) {
            Some(wide) => parts.push(wide),
            None => parts.extend([finish_part(self.epilogue), include_str!("../../../shaders/lib/wide_none.wgsl")]),
        }
        parts
    }
}

/// The epilogues that have a form for four sums; it knows no bias.
const fn wide_part(epilogue: Epilogue) -> Option<&'static str> {
    match epilogue {
        Epilogue::Store => Some(include_str!("../../../shaders/lib/wide_store.wgsl")),
        Epilogue::Add => Some(include_str!("../../../shaders/lib/wide_add.wgsl")),
        Epilogue::SwiGlu => Some(include_str!("../../../shaders/lib/wide_swiglu.wgsl")),
        Epilogue::GeGlu | Epilogue::Gelu => None,
    }
}

const PRODUCT: &str = include_str!("../../../shaders/product_coop.wgsl");

/// Whether products with matrices of this width run here; the rows have no say, since both kernels would give a row other bits.
pub(super) const fn suits(width: usize) -> bool {
    width.is_multiple_of(BLOCK)
}

pub(super) fn record(kernels: &Wgsl, coop: Coop, rec: &mut Recording, op: &Product<'_, Wgsl>) -> Result<()> {
    check(Args("product"), kernels, op)?;
    for part in op.weight.parts() {
        record_part(kernels, coop, rec, op, part)?;
    }
    Ok(())
}

fn record_part(kernels: &Wgsl, coop: Coop, rec: &mut Recording, op: &Product<'_, Wgsl>, part: &Part) -> Result<()> {
    let params = params(Args("product"), op, part)?;
    if params.rows == 0 {
        return Ok(());
    }
    let (weight, epilogue, bias) = (part.format, op.epilogue, op.bias.is_some());
    let tile = Tile::choose(weight, op.weight.width(), params.rows, params.n, kernels.busy());
    let aligned = !bias && wide_part(epilogue).is_some() && aligned(&params, epilogue);
    let variant = Variant { coop, types: Types::of(op), weight, epilogue, bias, tile, aligned };
    let pipeline = kernels.pipeline(Kernel::ProductCoop(variant))?;
    let grid = [params.rows.div_ceil(tile.m), params.n.div_ceil(tile.n), 1];
    rec.dispatch(&pipeline, bytemuck::bytes_of(&params), &bindings(op, part), grid)
}

/// Whether each four sums become one aligned vector: of four elements, of two after SwiGLU.
const fn aligned(params: &Params, epilogue: Epilogue) -> bool {
    let step = if matches!(epilogue, Epilogue::SwiGlu) { 2 } else { 4 };
    params.n.is_multiple_of(4) && params.out_start.is_multiple_of(step) && params.out_stride.is_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_get_small_tiles_and_fewer_where_the_device_is_small() {
        for (width, [large, middle, small]) in [(4096, WIDE), (96, NARROW)] {
            let choose = |rows, n, busy| Tile::choose(Dtype::F16, width, rows, n, busy);
            assert_eq!([choose(4096, 4096, 128), choose(256, 4096, 128), choose(1, 64, 128)], [large, middle, small]);
            assert_eq!([choose(256, 4096, 32), choose(1, 64, 1)], [large; 2]);
            for rows in [1, 16, 100, 512, 5000] {
                for n in [1, 64, 576, 4096, 128_256] {
                    let tile = choose(rows, n, 128);
                    assert!(tile == small || tile.count(rows, n) >= 128, "{rows} {n}");
                }
            }
        }
    }

    #[test]
    fn subgroups_and_loads_divide_every_tile() {
        for tile in WIDE.into_iter().chain(NARROW) {
            let threads = 32 * tile.subgroups();
            assert!(threads <= 256 && tile.m % tile.subgroup_m == 0 && tile.n % tile.subgroup_n == 0, "{tile:?}");
            for rows in [tile.m, tile.n] {
                assert!(rows * tile.k / 8 % threads == 0 && threads % (tile.k / 8) == 0, "{tile:?}");
            }
            assert!(tile.subgroup_n / 16 % tile.staged == 0 && tile.k % 16 == 0, "{tile:?}");
        }
    }
}
