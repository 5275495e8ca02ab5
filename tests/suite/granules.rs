//! The granule invariant of the WGSL kernels: a row's bits depend on that row and the rows before it alone, whatever is computed together with
//! it, wherever a tile begins. Rows are computed all at once and in stretches that cross tiles in every way, and compared as bits.

use std::ops::Range;

use runahead::config::RopePairs;
use runahead::dims::round_up;
use runahead::dtype::{Dtype, Scalar};
use runahead::kernels::wgsl::{Tensor, Wgsl};
use runahead::kernels::{
    Attention, Embed, Epilogue, HeadDims, Kernels, MatrixSource, Norm, Phase, Product, RopeCache, RowOrder,
};

use crate::kernels::harness::{encode, read_bytes, tensor_from_f32, tensor_from_u32, wait};
use crate::kernels::reference::{Random, random_weight};
use crate::kernels::wgsl::{other_kind, shared};

/// Rows that are computed all at once.
const ROWS: usize = 150;

/// Stretches of them: single rows, granules, what crosses a tile of 16, 32 or 64 rows, and cuts at no multiple of anything.
const STRETCHES: [Range<usize>; 9] = [0..1, 5..6, 0..16, 16..48, 15..18, 7..77, 64..128, 149..150, 33..150];

/// Runs `op(input, output, rows, output row)` over all rows and over each stretch, on inputs that are poisoned outside of the stretch, and at
/// other places of both tensors; reports stretches whose output differs in any bit.
fn compare(
    what: &str,
    wrong: &mut Vec<String>,
    (input, in_width): (&[f32], usize),
    out_width: usize,
    op: impl Fn(&Wgsl, &mut <Wgsl as Kernels>::Recording, &Tensor, &Tensor, Range<usize>),
) {
    let k = shared();
    let held = round_up(ROWS + 40, k.row_tile());
    let run = |rows: Range<usize>, at: usize| {
        let mut placed = vec![f32::NAN; held * in_width];
        placed[at * in_width..(at + rows.len()) * in_width]
            .copy_from_slice(&input[rows.start * in_width..rows.end * in_width]);
        let x = tensor_from_f32(k, Scalar::F32, &placed);
        let out = tensor_from_f32(k, Scalar::F32, &vec![0.5; held * out_width]);
        let mut rec = k.begin();
        op(k, &mut rec, &x, &out, at..at + rows.len());
        k.submit(rec, &wait()).unwrap();
        read_bytes(k, &out, at * out_width..(at + rows.len()) * out_width)
    };
    let all = run(0..ROWS, 0);
    let row_bytes = 4 * out_width;
    assert!(all != all[..row_bytes].repeat(ROWS), "{what}: all rows are equal, the test compares nothing");
    for (i, rows) in STRETCHES.into_iter().enumerate() {
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
        for epilogue in [Epilogue::Store, Epilogue::Add, Epilogue::SwiGlu] {
            let width = if dtype.block_len() > 1 { [160, 96][i % 2] } else { [100, 576][i % 2] };
            let n = [129, 70][i % 2];
            let swiglu = epilogue == Epilogue::SwiGlu;
            let parts = (0..1 + usize::from(swiglu)).map(|_| random_weight(random, dtype, n, width)).collect();
            let rows = if swiglu { RowOrder::Alternating } else { RowOrder::Stacked };
            let weight = k.matrix("weight", &MatrixSource { parts, rows }).unwrap();
            let input = random.values(ROWS * width);
            compare(
                &format!("{} {epilogue:?}", dtype.name()),
                &mut wrong,
                (&input, width),
                n,
                |k, rec, x, out, rows| {
                    let out_row = rows.start;
                    let product = Product { x, weight: &weight, out, rows, out_row, epilogue, phase: Phase::Prefill };
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
    // The largest tile is taken from 256 workgroups of 64 x 128 on.
    let (width, n, most) = (96, 2000, 1024);
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Q8_0, Dtype::Q4_1] {
        let source = MatrixSource { parts: vec![random_weight(random, dtype, n, width)], rows: RowOrder::Stacked };
        let input = random.values(most * width);
        let run = |k: &Wgsl, rows: usize| {
            let weight = k.matrix("weight", &source).unwrap();
            let x = tensor_from_f32(k, Scalar::F32, &input[..rows * width]);
            let out = k.tensor("out", Scalar::F32, rows * n).unwrap();
            let mut rec = k.begin();
            let (epilogue, phase) = (Epilogue::Store, Phase::Prefill);
            let product = Product { x: &x, weight: &weight, out: &out, rows: 0..rows, out_row: 0, epilogue, phase };
            k.product(&mut rec, product).unwrap();
            k.submit(rec, &wait()).unwrap();
            read_bytes(k, &out, 0..rows * n)
        };
        let all = run(shared(), most);
        for k in [shared(), other_kind()] {
            for rows in [1, 16, 17, 48, 100, most] {
                assert!(run(k, rows) == all[..4 * rows * n], "{} rows={rows}", dtype.name());
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
            let x = tensor_from_f32(k, Scalar::F32, &random.values(rows * width));
            let ids = tensor_from_u32(k, &(0..262).collect::<Vec<_>>());
            let epilogue = if order == RowOrder::Alternating { Epilogue::SwiGlu } else { Epilogue::Store };
            let n = if order == RowOrder::Alternating { 131 } else { 262 };
            let run = |max_bytes: u64| {
                let weight = k.matrix_in_parts("weight", &source, max_bytes).unwrap();
                let out = k.tensor("out", Scalar::F32, (rows + 1) * n).unwrap();
                let table = k.tensor("table", Scalar::F32, 262 * width).unwrap();
                let mut rec = k.begin();
                for (rows, out_row, phase) in [(0..rows, 0, Phase::Prefill), (3..4, rows, Phase::Decode)] {
                    let product = Product { x: &x, weight: &weight, out: &out, rows, out_row, epilogue, phase };
                    k.product(&mut rec, product).unwrap();
                }
                k.embed(&mut rec, Embed { ids: &ids, table: &weight, out: &table, rows: 262 }).unwrap();
                k.submit(rec, &wait()).unwrap();
                (read_bytes(k, &out, 0..(rows + 1) * n), read_bytes(k, &table, 0..262 * width))
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
        compare(&format!("norm {width}"), &mut wrong, (&input, width), width, |k, rec, x, out, rows| {
            k.norm(rec, Norm { x, weight: &weight, out, rows, width, eps: 1e-5 }).unwrap();
        });
    }
    for dtype in Dtype::ALL {
        let source = MatrixSource { parts: vec![random_weight(random, dtype, 300, 96)], rows: RowOrder::Stacked };
        let table = k.matrix("table", &source).unwrap();
        let ids = (0..ROWS).map(|_| random.below(300) as u32).collect::<Vec<_>>();
        let run = |rows: Range<usize>| {
            let ids = tensor_from_u32(k, &ids[rows.clone()]);
            let out = k.tensor("out", Scalar::F32, rows.len() * 96).unwrap();
            let mut rec = k.begin();
            k.embed(&mut rec, Embed { ids: &ids, table: &table, out: &out, rows: rows.len() }).unwrap();
            k.submit(rec, &wait()).unwrap();
            read_bytes(k, &out, 0..rows.len() * 96)
        };
        let all = run(0..ROWS);
        for rows in STRETCHES {
            if run(rows.clone()) != all[rows.start * 384..rows.end * 384] {
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
    let (k, random, mut wrong) = (shared(), &mut Random::new(24), Vec::new());
    for (i, (heads, kv_heads, head_dim)) in SHAPES.into_iter().enumerate() {
        let dims = HeadDims { heads, kv_heads, head_dim };
        let scalar = [Scalar::F16, Scalar::F32][i % 2];
        let pairs = [RopePairs::Adjacent, RopePairs::Halves][i / 2 % 2];
        for past in [0, 1, 15, 300] {
            let case = Case { k, dims, scalar, pairs, past };
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
        let angles = tensor_from_f32(k, Scalar::F32, angles);
        let mut outputs = Vec::new();
        for piece in pieces {
            let rows = at..at + piece.len();
            let width = dims.qkv_width();
            let mut placed = vec![f32::NAN; round_up(rows.end + 1, k.row_tile()) * width];
            placed[rows.start * width..rows.end * width].copy_from_slice(&qkv[piece.start * width..piece.end * width]);
            let qkv = tensor_from_f32(k, Scalar::F32, &placed);
            let out = k.tensor("out", Scalar::F32, (rows.end + 1) * dims.q_width()).unwrap();
            let (position, scale) = (self.past + piece.start, 0.125);
            let mut rec = k.begin();
            let (qkv, out) = (&qkv, &out);
            let rope = RopeCache {
                qkv,
                angles: &angles,
                k: &keys,
                v: &values,
                rows: rows.clone(),
                position,
                dims,
                pairs: self.pairs,
            };
            k.rope_cache(&mut rec, rope).unwrap();
            let attention = Attention { qkv, k: &keys, v: &values, out, rows: rows.clone(), position, dims, scale };
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
    compare("mixed", &mut wrong, (&input, width), n, |k, rec, x, out, rows| {
        let (out_row, epilogue) = (rows.start, Epilogue::Store);
        let phase = if rows.len() == 1 { Phase::Decode } else { Phase::Prefill };
        k.product(rec, Product { x, weight: &weight, out, rows, out_row, epilogue, phase }).unwrap();
    });
    assert_eq!(wrong.len(), STRETCHES.iter().filter(|rows| rows.len() == 1).count(), "{wrong:?}");
}
