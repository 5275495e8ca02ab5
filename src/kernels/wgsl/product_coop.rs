//! Products of many rows with a weight matrix on matrix units.

use super::coop::Coop;
use super::matrix::Part;
use super::product::{Form, GIVEN, Params, bindings, check, finish_part, params};
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

/// Rows of a large tile.
pub(super) const TILE_ROWS: usize = WIDE[0].m as usize;

/// For widths that 64 divides, from the fastest to those that spread few rows farther. On an H200: 253 TFLOP/s for a product of 4096 x 4096 x 4096
/// with the first; for 256 rows 128, 165 and 126; for 128 rows 63, 85 and 122.
const WIDE: [Tile; 3] = [
    Tile { m: 128, n: 128, k: 64, subgroup_m: 64, subgroup_n: 32, depth: 4, staged: 1 },
    Tile { m: 128, n: 64, k: 64, subgroup_m: 64, subgroup_n: 32, depth: 3, staged: 2 },
    Tile { m: 64, n: 64, k: 64, subgroup_m: 32, subgroup_n: 32, depth: 4, staged: 2 },
];

/// The same for weights that are unpacked, which takes the registers that loads ahead would need: with four steps instead of two Q8_0 loses 4 % and
/// Q4_K 8 % of 4096 x 4096 x 4096.
const WIDE_PACKED: [Tile; 3] = [WIDE[0].ahead(2), WIDE[1].ahead(2), WIDE[2].ahead(3)];

/// For other widths: 184 and 170 TFLOP/s.
const NARROW: [Tile; 3] = [
    Tile { m: 256, n: 128, k: 32, subgroup_m: 64, subgroup_n: 64, depth: 2, staged: 2 },
    Tile { m: 128, n: 64, k: 32, subgroup_m: 64, subgroup_n: 32, depth: 3, staged: 2 },
    Tile { m: 64, n: 64, k: 32, subgroup_m: 32, subgroup_n: 32, depth: 3, staged: 2 },
];

const NARROW_PACKED: [Tile; 3] = [NARROW[0].ahead(2), NARROW[1].ahead(2), NARROW[2].ahead(2)];

impl Tile {
    const fn ahead(self, depth: u32) -> Self {
        Self { depth, ..self }
    }

    const fn subgroups(self) -> u32 {
        (self.m / self.subgroup_m) * (self.n / self.subgroup_n)
    }

    const fn count(self, rows: u32, n: u32) -> u32 {
        rows.div_ceil(self.m).saturating_mul(n.div_ceil(self.n))
    }

    const fn all(format: Dtype, wide: bool) -> [Self; 3] {
        match (format, wide) {
            (Dtype::F16, true) => WIDE,
            (Dtype::F16, false) => NARROW,
            (_, true) => WIDE_PACKED,
            (_, false) => NARROW_PACKED,
        }
    }

    /// The first tile that makes as many workgroups as keep the device `busy`; the bits of a row do not depend on it.
    fn choose(format: Dtype, width: usize, rows: u32, n: u32, busy: usize) -> Self {
        let [large, middle, small] = Self::all(format, width.is_multiple_of(64));
        [large, middle].into_iter().find(|tile| tile.count(rows, n) as usize >= busy).unwrap_or(small)
    }

    /// Elements of a weight row that a thread unpacks at a time: what 32 share is then decoded once (4096 x 4096 x 4096 on an H200: Q8_0 202 to 223
    /// TFLOP/s, Q4_K 199 to 227).
    const fn run(self, format: Dtype) -> u32 {
        if self.k == 64 && tile_weight_part(format).is_some() { 32 } else { 8 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    coop: Coop,
    form: Form,
    tile: Tile,
    /// Whether the loop over `k` may end between the steps that are written out.
    exits: bool,
    /// Whether outputs can be written four sums at a time.
    aligned: bool,
}

impl Variant {
    pub fn all(form: Form) -> impl Iterator<Item = Self> {
        let (coop, Form { weight, epilogue, bias, .. }) = (Coop::USUAL, form);
        let variant = move |tile, exits, aligned| Self { coop, form, tile, exits, aligned };
        let aligned = (!bias).then(|| wide_part(epilogue)).flatten().is_some();
        let with_exits = [true, false].into_iter().filter(move |&exits| exits || weight != Dtype::F16);
        [true, false].into_iter().flat_map(move |wide| Tile::all(weight, wide)).flat_map(move |tile| {
            with_exits.clone().flat_map(move |exits| {
                std::iter::once(variant(tile, exits, false)).chain(aligned.then(|| variant(tile, exits, true)))
            })
        })
    }

    pub fn spec(self) -> ShaderSpec {
        let Tile { m, n, k, subgroup_m, subgroup_n, depth, staged } = self.tile;
        let threads = self.coop.lanes * self.tile.subgroups();
        let run = self.tile.run(self.form.weight);
        let constants = [
            ("TM", m),
            ("TN", n),
            ("TK", k),
            ("WM", subgroup_m),
            ("WN", subgroup_n),
            ("SUBGROUPS", self.tile.subgroups()),
            ("DEPTH", depth),
            ("RUN", run),
            ("STAGED", staged),
        ];
        let counts = [
            ("M_BLOCKS", subgroup_m / 16),
            ("N_PARTS", subgroup_n / 16 / staged),
            ("STAGED", staged),
            ("X_LOADS", m * k / 8 / threads),
            ("W_LOADS", n * k / run / threads),
            ("EIGHTS", run / 8),
            ("STEPS", k / 16),
            ("DEPTH", depth),
            ("EXITS", u32::from(self.exits)),
            ("STORES", 64 * staged / self.coop.lanes),
        ];
        let pairs = if self.aligned { "" } else { " in pairs" };
        let exits = if self.exits { "" } else { " even" };
        ShaderSpec {
            name: format!("product_coop {} {m}x{n}x{k}{exits}{pairs}", self.form.name()),
            header: self.coop.header(&constants) + &unroll(PRODUCT, &counts),
            parts: self.parts(),
            op: include_str!("../../../shaders/lib/octet.wgsl"),
            entry: "product",
            overrides: Vec::new(),
            checked: false,
        }
    }

    fn parts(self) -> Vec<&'static str> {
        let Form { weight, epilogue, .. } = self.form;
        let mut parts = self.form.input_parts();
        parts.push(GIVEN);
        let in_runs = tile_weight_part(weight).filter(|_| self.tile.run(weight) == 32);
        parts.extend(match (weight, in_runs) {
            (Dtype::F16, _) => vec![include_str!("../../../shaders/lib/tile_weight_f16.wgsl")],
            (_, Some(in_runs)) => vec![ROUNDED, in_runs],
            (_, None) => vec![ROUNDED, include_str!("../../../shaders/lib/tile_weight_any.wgsl")],
        });
        match wide_part(epilogue).filter(|_| self.aligned) {
            Some(wide) => parts.push(wide),
            None => parts.extend([finish_part(epilogue), include_str!("../../../shaders/lib/wide_none.wgsl")]),
        }
        parts
    }
}

const ROUNDED: &str = include_str!("../../../shaders/lib/rounded.wgsl");

/// The formats whose blocks are unpacked 32 elements at a time.
const fn tile_weight_part(format: Dtype) -> Option<&'static str> {
    match format {
        Dtype::Q8_0 => Some(include_str!("../../../shaders/lib/tile_weight_q8_0.wgsl")),
        Dtype::Q4_0 => Some(include_str!("../../../shaders/lib/tile_weight_q4_0.wgsl")),
        Dtype::Q4K => Some(include_str!("../../../shaders/lib/tile_weight_q4_k.wgsl")),
        Dtype::Q5K => Some(include_str!("../../../shaders/lib/tile_weight_q5_k.wgsl")),
        _ => None,
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
    let form = Form::of(op, part);
    let Form { weight, epilogue, bias, .. } = form;
    let tile = Tile::choose(weight, op.weight.width(), params.rows, params.n, kernels.busy());
    let aligned = !bias && wide_part(epilogue).is_some() && aligned(&params, epilogue);
    let steps = op.weight.width().div_ceil(tile.k as usize);
    let exits = weight == Dtype::F16 || !steps.is_multiple_of(tile.depth as usize);
    let variant = Variant { coop, form, tile, exits, aligned };
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
        for (format, width) in [Dtype::F16, Dtype::Q8_0].into_iter().flat_map(|format| [(format, 4096), (format, 96)]) {
            let [large, middle, small] = Tile::all(format, width == 4096);
            let choose = |rows, n, busy| Tile::choose(format, width, rows, n, busy);
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
        for (format, wide) in Dtype::ALL.into_iter().flat_map(|format| [(format, true), (format, false)]) {
            for tile in Tile::all(format, wide) {
                let threads = 32 * tile.subgroups();
                assert!(threads <= 256 && tile.m % tile.subgroup_m == 0 && tile.n % tile.subgroup_n == 0, "{tile:?}");
                for (rows, run) in [(tile.m, 8), (tile.n, tile.run(format))] {
                    assert!(rows * tile.k / run % threads == 0 && threads % (tile.k / run) == 0, "{tile:?} {format:?}");
                }
                assert!(tile.subgroup_n / 16 % tile.staged == 0 && tile.k % 16 == 0, "{tile:?}");
            }
        }
    }
}
