//! The granule invariant of the WGSL kernels: a row's bits depend on that row and the rows before it alone, whatever is computed together with
//! it, wherever a tile begins. Rows are computed all at once and in stretches that cross tiles in every way, and compared as bits.

use std::ops::Range;

use runahead::config::{NormKind, RopePairs};
use runahead::dims::round_up;
use runahead::dtype::{Dtype, Scalar};
use runahead::kernels::wgsl::{Tensor, Wgsl};
use runahead::kernels::{
    Attention, Embed, Epilogue, HeadDims, HeadNorm, Kernels, MatrixSource, Norm, Phase, Product, RopeCache, RowOrder,
    ScoreRules,
};

use crate::kernels::harness::{encode, read_bytes, tensor_from_f32, tensor_from_u32, wait};
use crate::kernels::reference::{Random, random_weight};
use crate::kernels::wgsl::{other_activations, other_kind, shared};

/// Rows that are computed all at once.
const ROWS: usize = 150;

/// Stretches of them: single rows, granules, what crosses a tile of 16, 32 or 64 rows, and cuts at no multiple of anything.
const STRETCHES: [Range<usize>; 9] = [0..1, 5..6, 0..16, 16..48, 15..18, 7..77, 64..128, 149..150, 33..150];

/// Runs `op(input, output, rows, output row)` over all rows and over each stretch, on inputs that are poisoned outside of the stretch, and at
/// other places of both tensors; reports stretches whose output differs in any bit.
fn compare(
    what: &str,
    wrong: &mut Vec<String>,
    input: (&[f32], usize),
    out_width: usize,
    types: impl Fn(&Wgsl) -> (Scalar, Scalar),
    op: impl Fn(&Wgsl, &mut <Wgsl as Kernels>::Recording, &Tensor, &Tensor, Range<usize>),
) {
    // The activations that this device doesn't take by itself go through fewer stretches: a software GPU is slow with f16.
    for (k, stretches) in [(shared(), &STRETCHES[..]), (other_activations(), &STRETCHES[4..6])] {
        let what = format!("{what} {:?}", k.activation());
        compare_on(k, &what, wrong, input, out_width, types(k), stretches, &op);
    }
}

fn compare_on(
    k: &Wgsl,
    what: &str,
    wrong: &mut Vec<String>,
    (input, in_width): (&[f32], usize),
    out_width: usize,
    (in_scalar, out_scalar): (Scalar, Scalar),
    stretches: &[Range<usize>],
    op: impl Fn(&Wgsl, &mut <Wgsl as Kernels>::Recording, &Tensor, &Tensor, Range<usize>),
) {
    let row_bytes = out_scalar.bytes() * out_width;
    let held = round_up(ROWS + 40, k.row_multiple());
    let run = |rows: Range<usize>, at: usize| {
        let mut placed = vec![f32::NAN; held * in_width];
        placed[at * in_width..(at + rows.len()) * in_width]
            .copy_from_slice(&input[rows.start * in_width..rows.end * in_width]);
        let x = tensor_from_f32(k, in_scalar, &placed);
        let out = tensor_from_f32(k, out_scalar, &vec![0.5; held * out_width]);
        let mut rec = k.begin();
        op(k, &mut rec, &x, &out, at..at + rows.len());
        k.submit(rec, &wait()).unwrap();
        let bytes = read_bytes(k, &out, 0..held * out_width);
        bytes[at * row_bytes..(at + rows.len()) * row_bytes].to_vec()
    };
    let all = run(0..ROWS, 0);
    assert!(all != all[..row_bytes].repeat(ROWS), "{what}: all rows are equal, the test compares nothing");
    for (i, rows) in stretches.iter().cloned().enumerate() {
        // Nor do a row's bits depend on the tiles that a calibration prefers.
        k.set_busy_workgroups([1, 128, 100_000][i % 3]);
        let at = [rows.start, 0, 37][i % 3];
        if run(rows.clone(), at) != all[rows.start * row_bytes..rows.end * row_bytes] {
            wrong.push(format!("{what}: rows {rows:?} placed at row {at}"));
        }
    }
}

fn finish(wrong: &[String]) {
    assert!(wrong.is_empty(), "bits differ:\n{}", wrong.join("\n"));
}

#[test]
fn products_in_every_format() {
    let (k, random, mut wrong) = (shared(), &mut Random::new(21), Vec::new());
    for (i, dtype) in Dtype::ALL.into_iter().enumerate() {
        // The first six formats, of each kind one, with every epilogue; the others with one in turn.
        let all = Epilogue::ALL;
        for &epilogue in if i < 6 { &all[..] } else { std::slice::from_ref(&all[i % all.len()]) } {
            let width = if dtype.block_len() > 1 { [160, 96][i % 2] } else { [100, 576][i % 2] };
            let width = round_up(width, dtype.block_len());
            let n = [129, 70][i % 2];
            let swiglu = epilogue.gated();
            let parts = (0..1 + usize::from(swiglu)).map(|_| random_weight(random, dtype, n, width)).collect();
            let rows = if swiglu { RowOrder::Alternating } else { RowOrder::Stacked };
            let weight = k.matrix("weight", &MatrixSource { parts, rows }).unwrap();
            let input = random.values(ROWS * width);
            let bias = tensor_from_f32(k, Scalar::F32, &random.values(2 * n));
            let bias = (i % 2 == 0).then_some(&bias);
            compare(
                &format!("{} {epilogue:?}", dtype.name()),
                &mut wrong,
                (&input, width),
                n,
                |k| (k.activation(), if epilogue == Epilogue::Add { Scalar::F32 } else { k.activation() }),
                |k, rec, x, out, rows| {
                    let out_row = rows.start;
                    let product =
                        Product { x, weight: &weight, out, rows, out_row, epilogue, phase: Phase::Prefill, bias };
                    k.product(rec, product).unwrap();
                },
            );
        }
    }
    finish(&wrong);
}

/// Tiles are chosen by row count, width and kind of GPU: no choice changes a bit, so that the host may make any.
#[test]
fn products_in_every_tile() {
    let random = &mut Random::new(26);
    // The largest tile is taken from 256 workgroups of 64 x 128 on. On matrix units steps of 64 come out even for some widths and not for others, and some
    // formats are unpacked in runs of 32.
    let (n, most) = (2000, 1024);
    let narrow = [Dtype::F32, Dtype::F16, Dtype::Q8_0, Dtype::Q4_1].map(|dtype| (dtype, 96));
    let wide = [(Dtype::F16, 320), (Dtype::Q8_0, 192), (Dtype::Q8_0, 256), (Dtype::Q4_0, 320)];
    let in_super_blocks = [Dtype::Q4K, Dtype::Q5K, Dtype::Q6K].map(|dtype| (dtype, 256));
    for (dtype, width) in [&narrow[..], &wide, &in_super_blocks].concat() {
        let source = MatrixSource { parts: vec![random_weight(random, dtype, n, width)], rows: RowOrder::Stacked };
        let input = random.values(most * width);
        let run = |k: &Wgsl, rows: usize| {
            let weight = k.matrix("weight", &source).unwrap();
            let x = tensor_from_f32(k, k.activation(), &input[..rows * width]);
            let out = k.tensor("out", Scalar::F32, rows * n).unwrap();
            let mut rec = k.begin();
            let (epilogue, phase) = (Epilogue::Store, Phase::Prefill);
            let product =
                Product { x: &x, weight: &weight, out: &out, rows: 0..rows, out_row: 0, bias: None, epilogue, phase };
            k.product(&mut rec, product).unwrap();
            k.submit(rec, &wait()).unwrap();
            read_bytes(k, &out, 0..rows * n)
        };
        let all = run(shared(), most);
        for k in [shared(), other_kind()] {
            for rows in [1, 16, 17, 48, 100, most] {
                assert!(run(k, rows) == all[..4 * rows * n], "{} width={width} rows={rows}", dtype.name());
            }
        }
    }
}

/// The cuts of a matrix into buffers, which depend on the device, change no bit either.
#[test]
fn matrices_in_parts() {
    let (k, random) = (shared(), &mut Random::new(22));
    let (rows, width) = (70, 96);
    for order in [RowOrder::Stacked, RowOrder::Alternating] {
        for formats in [[Dtype::F32; 2], [Dtype::Q8_0; 2], [Dtype::Q4_1; 2], [Dtype::F16, Dtype::Q4_0]] {
            let source = MatrixSource {
                parts: formats.map(|dtype| random_weight(random, dtype, 131, width)).to_vec(),
                rows: order,
            };
            let x = tensor_from_f32(k, k.activation(), &random.values(rows * width));
            let ids = tensor_from_u32(k, &(0..262).collect::<Vec<_>>());
            let epilogue = if order == RowOrder::Alternating { Epilogue::SwiGlu } else { Epilogue::Store };
            let n = if order == RowOrder::Alternating { 131 } else { 262 };
            let run = |max_bytes: u64| {
                let weight = k.matrix_in_parts("weight", &source, max_bytes).unwrap();
                let scalar = if epilogue.gated() { k.activation() } else { Scalar::F32 };
                let out = k.tensor("out", scalar, round_up((rows + 1) * n, 2)).unwrap();
                let table = k.tensor("table", Scalar::F32, 262 * width).unwrap();
                let mut rec = k.begin();
                for (rows, out_row, phase) in [(0..rows, 0, Phase::Prefill), (3..4, rows, Phase::Decode)] {
                    let product =
                        Product { x: &x, weight: &weight, out: &out, rows, out_row, epilogue, phase, bias: None };
                    k.product(&mut rec, product).unwrap();
                }
                k.embed(&mut rec, Embed { ids: &ids, table: &weight, out: &table, rows: 262, scale: 1.0 }).unwrap();
                k.submit(rec, &wait()).unwrap();
                (read_bytes(k, &out, 0..round_up((rows + 1) * n, 2)), read_bytes(k, &table, 0..262 * width))
            };
            let whole = run(u64::MAX);
            // A few rows to a part, an odd number of them, and whole column tiles.
            for max_bytes in [2 * 4 * 96, 7 * 4 * 96, 64 * 4 * 96, 8192] {
                assert!(run(max_bytes) == whole, "{order:?} {formats:?} in parts of {max_bytes} bytes");
            }
            assert!(k.matrix_in_parts("weight", &source, 32).is_err(), "no row fits 32 bytes");
        }
    }
}

#[test]
fn norms_and_lookups() {
    let (k, random, mut wrong) = (shared(), &mut Random::new(23), Vec::new());
    for width in [36, 64, 576, 1024] {
        let weight = tensor_from_f32(k, Scalar::F32, &random.values(width));
        let input = random.values(ROWS * width);
        for (kind, bias, add) in [(NormKind::Rms, None, false), (NormKind::Layer, Some(&weight), true)] {
            let types = |k: &Wgsl| (Scalar::F32, if add { Scalar::F32 } else { k.activation() });
            let what = format!("norm {kind:?} {width}");
            compare(&what, &mut wrong, (&input, width), width, types, |k, rec, x, out, rows| {
                k.norm(rec, Norm { x, weight: &weight, out, rows, width, eps: 1e-5, bias, kind, add }).unwrap();
            });
        }
    }
    for dtype in Dtype::ALL {
        let width = round_up(96, dtype.block_len());
        let source = MatrixSource { parts: vec![random_weight(random, dtype, 300, width)], rows: RowOrder::Stacked };
        let table = k.matrix("table", &source).unwrap();
        let ids = (0..ROWS).map(|_| random.below(300) as u32).collect::<Vec<_>>();
        let run = |rows: Range<usize>| {
            let ids = tensor_from_u32(k, &ids[rows.clone()]);
            let out = k.tensor("out", Scalar::F32, rows.len() * width).unwrap();
            let mut rec = k.begin();
            k.embed(&mut rec, Embed { ids: &ids, table: &table, out: &out, rows: rows.len(), scale: 1.0 }).unwrap();
            k.submit(rec, &wait()).unwrap();
            read_bytes(k, &out, 0..rows.len() * width)
        };
        let all = run(0..ROWS);
        for rows in STRETCHES {
            if run(rows.clone()) != all[4 * rows.start * width..4 * rows.end * width] {
                wrong.push(format!("embed {}: rows {rows:?}", dtype.name()));
            }
        }
    }
    finish(&wrong);
}

/// Sizes with whole and broken chunks of 64, with and without grouping.
const SHAPES: [(usize, usize, usize); 6] = [(9, 3, 64), (4, 4, 80), (4, 1, 128), (2, 1, 20), (2, 2, 96), (4, 2, 256)];

/// Rotation, the cache's content and attention over it, for a prompt that starts at `past`: all rows at once, and piece by piece, each piece at
/// its own place of `qkv` over a cache that holds stale rows after it.
#[test]
fn attention_and_rope() {
    let (random, mut wrong) = (&mut Random::new(24), Vec::new());
    let kernels = [(shared(), &[0, 1, 15, 300][..]), (other_activations(), &[15][..])];
    for ((k, pasts), (i, (heads, kv_heads, head_dim))) in
        SHAPES.into_iter().enumerate().flat_map(|case| kernels.map(|k| (k, case)))
    {
        let dims = HeadDims { heads, kv_heads, head_dim };
        let pairs = [RopePairs::Adjacent, RopePairs::Halves][i / 2 % 2];
        for &past in pasts {
            let scalar = [Scalar::F16, Scalar::F32][(i + past) % 2];
            // A window within a tile, across tiles, and none; with soft-cap and bias, and a norm of heads, of which a part turns.
            let window = [None, Some(20), Some(100)][(i + past) % 3];
            let rules = ScoreRules { window, soft_cap: (i % 3 == 1).then_some(20.0) };
            let special = i % 2 == 1;
            let case = Case { k, dims, scalar, pairs, past, rules, special };
            let qkv = random.values(ROWS * dims.qkv_width());
            let held = random.values(past * dims.kv_width());
            let angles = random.values((past + ROWS) * head_dim);
            let (all_out, all_k, all_v) = case.run(&qkv, &held, &angles, std::slice::from_ref(&(0..ROWS)), 0);
            let cuts: [&[usize]; 4] = [&[0, 16, ROWS], &[0, 1, 2, 150], &[0, 48, 64, 144, 150], &[0, 7, 77, 78, 150]];
            for (cut, at) in cuts.into_iter().zip([0, 3, 16, 37]) {
                let pieces = cut.windows(2).map(|ends| ends[0]..ends[1]).collect::<Vec<_>>();
                let (out, k_cache, v) = case.run(&qkv, &held, &angles, &pieces, at);
                for (what, same) in [("k", k_cache == all_k), ("v", v == all_v), ("attention", out == all_out)] {
                    if !same {
                        wrong.push(format!("{what} {dims:?} {scalar:?} {pairs:?} past={past} pieces={pieces:?}"));
                    }
                }
            }
        }
    }
    finish(&wrong);
}

struct Case {
    k: &'static Wgsl,
    dims: HeadDims,
    scalar: Scalar,
    pairs: RopePairs,
    past: usize,
    rules: ScoreRules,
    /// Bias of scores, norm of heads, partial rotation.
    special: bool,
}

impl Case {
    /// Attention output of all rows, and the cache afterwards.
    fn run(
        &self,
        qkv: &[f32],
        held: &[f32],
        angles: &[f32],
        pieces: &[Range<usize>],
        at: usize,
    ) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let (k, dims) = (self.k, self.dims);
        let tokens = self.past + ROWS;
        let cached = round_up(tokens, k.key_tile()) * dims.kv_width();
        let cache = || {
            // Stale rows: large, but finite as all that was ever stored.
            let mut content = vec![3e4; cached];
            content[..held.len()].copy_from_slice(held);
            let tensor = k.tensor("cache", self.scalar, cached).unwrap();
            k.write(&tensor, 0, &encode(self.scalar, &content)).unwrap();
            tensor
        };
        let (keys, values) = (cache(), cache());
        let weight = tensor_from_f32(k, Scalar::F32, &angles[..dims.head_dim]);
        let angles = tensor_from_f32(k, Scalar::F32, angles);
        let bias: Vec<f32> = (0..dims.heads * tokens).map(|i| (i % tokens) as f32 / 16.0).collect();
        let bias = tensor_from_f32(k, Scalar::F32, &bias);
        let mut outputs = Vec::new();
        for piece in pieces {
            let rows = at..at + piece.len();
            let width = dims.qkv_width();
            let mut placed = vec![f32::NAN; round_up(rows.end + 1, k.row_multiple()) * width];
            placed[rows.start * width..rows.end * width].copy_from_slice(&qkv[piece.start * width..piece.end * width]);
            let qkv = tensor_from_f32(k, k.activation(), &placed);
            let out = k.tensor("out", k.activation(), (rows.end + 1) * dims.q_width()).unwrap();
            let (position, scale) = (self.past + piece.start, 0.125);
            let mut rec = k.begin();
            let (qkv, out) = (&qkv, &out);
            let rope = RopeCache {
                qkv,
                angles: &angles,
                k: &keys,
                v: &values,
                ring: false,
                rows: rows.clone(),
                position,
                dims,
                pairs: self.pairs,
                rotary: if self.special { dims.head_dim / 8 * 4 } else { dims.head_dim },
                norm: self.special.then_some(HeadNorm { q: &weight, k: &weight, eps: 1e-3 }),
            };
            k.rope_cache(&mut rec, rope).unwrap();
            let attention = Attention {
                qkv,
                k: &keys,
                v: &values,
                out,
                rows: rows.clone(),
                position,
                dense_keys: 0,
                kv_heads: 0..dims.kv_heads,
                dims,
                scale,
                rules: self.rules,
                bias: self.special.then_some(&bias),
            };
            k.attention(&mut rec, attention).unwrap();
            k.submit(rec, &wait()).unwrap();
            outputs.extend(read_bytes(k, out, rows.start * dims.q_width()..rows.end * dims.q_width()));
        }
        let used = tokens * dims.kv_width();
        (outputs, read_bytes(k, &keys, 0..used), read_bytes(k, &values, 0..used))
    }
}

/// The comparison itself: the matrix-vector kernel adds in another order than the tiles, and is found out.
#[test]
fn another_order_of_summation_is_noticed() {
    let (k, random, mut wrong) = (shared(), &mut Random::new(25), Vec::new());
    let (n, width) = (70, 576);
    let source = MatrixSource { parts: vec![random_weight(random, Dtype::F32, n, width)], rows: RowOrder::Stacked };
    let weight = k.matrix("weight", &source).unwrap();
    let input = random.values(ROWS * width);
    let types = (k.activation(), Scalar::F32);
    compare_on(k, "mixed", &mut wrong, (&input, width), n, types, &STRETCHES, |k, rec, x, out, rows| {
        let (out_row, epilogue) = (rows.start, Epilogue::Store);
        let phase = if rows.len() == 1 { Phase::Decode } else { Phase::Prefill };
        k.product(rec, Product { x, weight: &weight, out, rows, out_row, epilogue, phase, bias: None }).unwrap();
    });
    assert_eq!(wrong.len(), STRETCHES.iter().filter(|rows| rows.len() == 1).count(), "{wrong:?}");
}
