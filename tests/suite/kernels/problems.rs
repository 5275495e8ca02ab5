//! Tables of odd sizes, one function an operation. The tables sample the cross product: neighbouring cases differ in every size at once.

use runahead::config::{NormKind, RopePairs};
use runahead::dims::round_up;
use runahead::dtype::{Dtype, Scalar};
use runahead::kernels::{
    ArgMax, Attention, AttentionDecode, Embed, Epilogue, HeadDims, HeadNorm, Kernels, MatrixSource, Norm, Phase,
    Product, RopeCache, RowOrder, ScoreRules, SoftCap,
};

use super::harness::{Check, Field, read_bytes, read_f32, tensor_from_f32, tensor_from_u32};
use super::reference::{self, Random, Value, random_weight};

const ROWS: [usize; 7] = [1, 2, 15, 16, 17, 33, 70];
const FIRST: [usize; 4] = [0, 3, 16, 37];
const WIDTHS: [usize; 7] = [4, 36, 64, 100, 160, 576, 96];
const BLOCK_WIDTHS: [usize; 4] = [64, 160, 576, 96];
const N: [usize; 6] = [1, 3, 64, 129, 160, 384];
const HEADS: [(usize, usize); 4] = [(4, 4), (4, 2), (9, 3), (5, 1)];
const HEAD_DIMS: [usize; 7] = [4, 16, 20, 64, 80, 128, 256];
const POSITIONS: [usize; 6] = [0, 1, 15, 16, 47, 300];
const CACHES: [Scalar; 2] = [Scalar::F16, Scalar::F32];

/// Rows of an activation tensor that has a guard row before (where `first > 0`) and after the named rows.
pub fn activation_rows<K: Kernels>(k: &K, first: usize, rows: usize) -> usize {
    round_up(first + rows + 1, k.row_multiple())
}

/// Rows of a cache that holds `tokens` and a guard row.
pub fn cache_rows<K: Kernels>(k: &K, tokens: usize) -> usize {
    round_up(tokens + 1, k.key_tile())
}

/// An activation tensor with random content in `first..first + rows` and poison elsewhere.
pub fn activations<K: Kernels>(
    k: &K,
    random: &mut Random,
    first: usize,
    rows: usize,
    width: usize,
    size: f32,
) -> Field<K> {
    let named = first..first + rows;
    Field::new(k, k.activation(), activation_rows(k, first, rows), width, |row, _| {
        named.contains(&row).then(|| size * random.symmetric())
    })
}

/// A cache with random content in `0..tokens`. Rows after that are stale: large, but finite as all that was ever stored.
pub fn cache<K: Kernels>(k: &K, random: &mut Random, scalar: Scalar, tokens: usize, width: usize) -> Field<K> {
    Field::new(k, scalar, cache_rows(k, tokens), width, |row, _| {
        Some(random.symmetric() * if row < tokens { 1.0 } else { 3e4 })
    })
}

fn widths_of(dtype: Dtype) -> &'static [usize] {
    if dtype.block_len() > 1 { &BLOCK_WIDTHS } else { &WIDTHS }
}

/// A matrix of one tensor.
pub fn single(random: &mut Random, dtype: Dtype, n: usize, width: usize) -> MatrixSource {
    MatrixSource { parts: vec![random_weight(random, dtype, n, width)], rows: RowOrder::Stacked }
}

/// Row lookup in tables of every format.
pub fn embed<K: Kernels>(k: &K) {
    let mut check = Check::new(k, "embed");
    let mut random = Random::new(1);
    for (i, dtype) in Dtype::ALL.into_iter().enumerate() {
        for (j, &width) in widths_of(dtype).iter().enumerate() {
            let width = round_up(width, dtype.block_len());
            let (rows, vocab) = (ROWS[(i + j) % ROWS.len()], [1, 3, 129, 300][(i + 3 * j) % 4]);
            let case = format!("{} rows={rows} vocab={vocab} width={width}", dtype.name());
            let scale = [1.0f32, 7.5][j % 2];
            let source = single(&mut random, dtype, vocab, width);
            let table = k.matrix("table", &source).unwrap();
            let mut ids: Vec<u32> = (0..rows).map(|_| random.below(vocab) as u32).collect();
            ids[rows / 2] = vocab as u32 - 1;
            let ids_tensor = tensor_from_u32(k, &ids);
            let out = Field::poisoned(k, Scalar::F32, activation_rows(k, 0, rows), width);
            if check.run(k, &case, |rec| {
                k.embed(rec, Embed { ids: &ids_tensor, table: &table, out: &out.tensor, rows, scale })
            }) {
                let all = reference::matrix_rows(&source);
                let value = |&v: &f64| Value { want: v * f64::from(scale), scale: (v * f64::from(scale)).abs() };
                let want: Vec<Vec<_>> = ids.iter().map(|&id| all[id as usize].iter().map(value).collect()).collect();
                check.changed(k, &case, "out", &out, 0, &want);
            }
        }
    }
    check.finish();
}

/// Both norms with and without bias, stored and added, with an `eps` from negligible to large.
pub fn norm<K: Kernels>(k: &K) {
    let mut check = Check::new(k, "norm");
    let mut random = Random::new(2);
    for (i, &width) in WIDTHS.iter().chain(&[2048]).enumerate() {
        for (j, eps) in [1e-5f32, 1e-6, 0.25].into_iter().enumerate() {
            let (rows, first) = (ROWS[(i + 3 * j) % ROWS.len()], FIRST[(i + j) % FIRST.len()]);
            let kind = [NormKind::Rms, NormKind::Layer][(i + j) % 2];
            let (biased, add) = ((i + j / 2) % 2 == 1, (i / 2 + j) % 2 == 1);
            let case = format!("{kind:?} bias={biased} add={add} rows={first}+{rows} width={width} eps={eps}");
            let named = first..first + rows;
            let held = activation_rows(k, first, rows);
            let size = [1.0, 0.01, 50.0][i % 3];
            let x = Field::new(k, Scalar::F32, held, width, |row, _| {
                named.contains(&row).then(|| size * random.symmetric())
            });
            let weight = Field::new(k, Scalar::F32, 1, width, |_, _| Some(1.0 + random.symmetric()));
            let bias = Field::new(k, Scalar::F32, 1, width, |_, _| Some(random.symmetric()));
            let out_scalar = if add { Scalar::F32 } else { k.activation() };
            let out = Field::new(k, out_scalar, held, width, |row, _| {
                (add && named.contains(&row)).then(|| 4.0 * random.symmetric())
            });
            if check.run(k, &case, |rec| {
                let rows = named.clone();
                k.norm(
                    rec,
                    Norm {
                        x: &x.tensor,
                        weight: &weight.tensor,
                        out: &out.tensor,
                        rows,
                        width,
                        eps,
                        bias: biased.then_some(&bias.tensor),
                        kind,
                        add,
                    },
                )
            }) {
                let want = named.map(|row| {
                    let bias = biased.then(|| bias.row(0));
                    let normed = reference::norm(&x.row(row), &weight.row(0), bias.as_deref(), f64::from(eps), kind);
                    if add { reference::add(&out.row(row), &normed) } else { normed }
                });
                let want: Vec<_> = want.collect();
                check.changed(k, &case, "out", &out, first, &want);
                check.unchanged(k, &case, "x", &x);
                check.unchanged(k, &case, "weight", &weight);
            }
        }
    }
    check.finish();
}

/// One case of a product; the parts are `(format, rows)`.
#[derive(Debug)]
struct ProductCase {
    parts: Vec<(Dtype, usize)>,
    order: RowOrder,
    width: usize,
    rows: usize,
    first: usize,
    out_row: usize,
    epilogue: Epilogue,
    phase: Phase,
    bias: bool,
    out_f32: bool,
}

/// Stacked and alternating matrices, and each format alone, over odd sizes.
fn product_parts() -> Vec<(Vec<(Dtype, usize)>, RowOrder)> {
    use Dtype::{Bf16, F16, F32, Q4_0, Q4_1, Q4K, Q5K, Q6K, Q8_0};
    let mut parts = Vec::new();
    for (i, dtype) in Dtype::ALL.into_iter().enumerate() {
        // The first six formats, of each kind one, meet all sizes, the others some.
        let step = if i < 6 { 1 } else { 3 };
        parts.extend(N.iter().skip(i % step).step_by(step).map(|&n| (vec![(dtype, n)], RowOrder::Stacked)));
    }
    let stacked = [
        vec![(Q8_0, 129), (Q8_0, 3)],
        vec![(F32, 64), (Q4_0, 32), (Q4_0, 32)],
        vec![(Q4_1, 7), (Bf16, 65), (Q8_0, 1)],
        vec![(Q4K, 64), (Q4K, 5), (Q6K, 33)],
    ];
    parts.extend(stacked.map(|p| (p, RowOrder::Stacked)));
    parts.push((vec![(F16, 192), (F16, 64), (F16, 64)], RowOrder::Stacked));
    for (gate, up, n) in [
        (Q4_1, Q8_0, 160),
        (F32, F32, 3),
        (F16, Bf16, 65),
        (Q4_0, Q4_0, 64),
        (Q8_0, F32, 192),
        (Q8_0, Q8_0, 129),
        (Q4K, Q4K, 66),
        (Q5K, Q6K, 34),
    ] {
        parts.push((vec![(gate, n), (up, n)], RowOrder::Alternating));
    }
    parts
}

fn product_cases(phase: Phase) -> Vec<ProductCase> {
    let mut cases = Vec::new();
    for (i, (parts, order)) in product_parts().into_iter().enumerate() {
        let block = parts.iter().map(|(dtype, _)| dtype.block_len()).max().unwrap_or(1);
        let widths: &[usize] = if block > 1 { &BLOCK_WIDTHS } else { &WIDTHS };
        let epilogues: &[Epilogue] = match order {
            RowOrder::Alternating => &[Epilogue::SwiGlu, Epilogue::Store, Epilogue::GeGlu],
            RowOrder::Stacked if i % 3 == 0 => &[Epilogue::Add],
            RowOrder::Stacked if i % 3 == 1 => &[Epilogue::Gelu],
            RowOrder::Stacked => &[Epilogue::Store],
        };
        for (j, &epilogue) in epilogues.iter().enumerate() {
            cases.push(ProductCase {
                parts: parts.clone(),
                order,
                width: round_up(widths[(i + i / N.len() + j) % widths.len()], block),
                rows: if phase == Phase::Decode { 1 } else { ROWS[(i + j) % ROWS.len()] },
                first: FIRST[(i / 2 + j) % FIRST.len()],
                out_row: FIRST[(i / 3 + 1) % FIRST.len()],
                epilogue,
                phase,
                bias: (i / 3 + j) % 2 == 1,
                out_f32: i % 2 == 0,
            });
        }
    }
    cases
}

fn product_case<K: Kernels>(k: &K, check: &mut Check, random: &mut Random, case: &ProductCase) {
    let label = format!("{case:?}");
    let source = MatrixSource {
        parts: case.parts.iter().map(|&(dtype, n)| random_weight(random, dtype, n, case.width)).collect(),
        rows: case.order,
    };
    let weight = k.matrix("weight", &source).unwrap();
    let n: usize = case.parts.iter().map(|(_, n)| n).sum();
    let n_out = if case.epilogue.gated() { n / 2 } else { n };
    // Rows of f16 activations are whole words in every model; odd widths (a vocabulary) are logits, which are F32.
    let f32_out = case.epilogue == Epilogue::Add || case.out_f32 || !n_out.is_multiple_of(4);
    let activated = case.epilogue.gated() || case.epilogue == Epilogue::Gelu;
    let out_scalar = if f32_out && !activated { Scalar::F32 } else { k.activation() };
    if out_scalar == Scalar::F16 && !n_out.is_multiple_of(4) {
        return;
    }
    let x = activations(k, random, case.first, case.rows, case.width, 1.0);
    let bias = Field::new(k, Scalar::F32, 1, n, |_, _| Some(random.symmetric()));
    let out = Field::new(k, out_scalar, activation_rows(k, case.out_row, case.rows), n_out, |row, _| {
        let named = case.out_row..case.out_row + case.rows;
        (case.epilogue == Epilogue::Add && named.contains(&row)).then(|| 4.0 * random.symmetric())
    });
    let done = check.run(k, &label, |rec| {
        let product = Product {
            x: &x.tensor,
            weight: &weight,
            out: &out.tensor,
            rows: case.first..case.first + case.rows,
            out_row: case.out_row,
            epilogue: case.epilogue,
            phase: case.phase,
            bias: case.bias.then_some(&bias.tensor),
        };
        k.product(rec, product)
    });
    if !done {
        return;
    }
    let matrix = reference::matrix_rows(&source);
    let row = |r: usize| {
        let mut sums = reference::product(&x.row(case.first + r), &matrix);
        if case.bias {
            sums = reference::add(&bias.row(0), &sums);
        }
        match case.epilogue {
            Epilogue::Store => sums,
            Epilogue::Add => reference::add(&out.row(case.out_row + r), &sums),
            Epilogue::SwiGlu => reference::swiglu(&sums),
            Epilogue::GeGlu => reference::geglu(&sums),
            Epilogue::Gelu => reference::gelu(&sums),
        }
    };
    let want: Vec<_> = (0..case.rows).map(row).collect();
    check.changed(k, &label, "out", &out, case.out_row, &want);
    check.unchanged(k, &label, "x", &x);
}

/// Tile kernels, from one row on.
pub fn product_prefill<K: Kernels>(k: &K) {
    let (mut check, mut random) = (Check::new(k, "product"), Random::new(3));
    for case in product_cases(Phase::Prefill) {
        product_case(k, &mut check, &mut random, &case);
    }
    check.finish();
}

/// The matrix-vector kernel.
pub fn product_decode<K: Kernels>(k: &K) {
    let (mut check, mut random) = (Check::new(k, "product"), Random::new(4));
    for mut case in product_cases(Phase::Decode) {
        case.first = case.first / 2 * 2;
        product_case(k, &mut check, &mut random, &case);
    }
    // More columns than all workgroups take at a time, rows that take several steps, and matrices that are uploaded in several runs.
    let large = [(Dtype::Q8_0, 4301, 96), (Dtype::Q4K, 67, 5120), (Dtype::Q6K, 35, 9472)];
    for (dtype, n, width) in large.into_iter().chain([(Dtype::Q4K, 4099, 2048), (Dtype::F16, 2111, 1100)]) {
        let case = ProductCase {
            parts: vec![(dtype, n)],
            order: RowOrder::Stacked,
            width,
            rows: 1,
            first: 0,
            out_row: 0,
            epilogue: Epilogue::Store,
            phase: Phase::Decode,
            bias: true,
            out_f32: true,
        };
        product_case(k, &mut check, &mut random, &case);
    }
    check.finish();
}

/// A norm and the product behind it, as one row of decoding and as several of a prompt.
pub fn norm_product<K: Kernels>(k: &K) {
    let (mut check, mut random) = (Check::new(k, "norm_product"), Random::new(21));
    let formats = [Dtype::F16, Dtype::F32, Dtype::Bf16, Dtype::Q4_0, Dtype::Q8_0, Dtype::Q4K, Dtype::Q6K];
    for (i, &width) in WIDTHS.iter().chain(&[2048]).enumerate() {
        for (j, phase) in [Phase::Decode, Phase::Prefill].into_iter().enumerate() {
            let dtype = formats[(i + j) % formats.len()];
            let width = round_up(width, dtype.block_len());
            let (kind, eps) = ([NormKind::Rms, NormKind::Rms, NormKind::Layer][i % 3], [1e-5f32, 0.25][i % 2]);
            let (n, rows) = (N[(i + j) % N.len()], if phase == Phase::Decode { 1 } else { 5 });
            let case = format!("{kind:?} {} {phase:?} {n} x {width} eps={eps}", dtype.name());
            let x = Field::new(k, Scalar::F32, activation_rows(k, 0, rows), width, |row, _| {
                (row < rows).then(|| 3.0 * random.symmetric())
            });
            let gain = Field::new(k, Scalar::F32, 1, width, |_, _| Some(1.0 + random.symmetric()));
            let bias = Field::new(k, Scalar::F32, 1, n, |_, _| Some(random.symmetric()));
            let source = single(&mut random, dtype, n, width);
            let weight = k.matrix("weight", &source).unwrap();
            let between = k.tensor("normed", k.activation(), activation_rows(k, 0, rows) * width).unwrap();
            let out = Field::poisoned(k, Scalar::F32, activation_rows(k, 0, rows), n);
            if check.run(k, &case, |rec| {
                let norm = Norm {
                    x: &x.tensor,
                    weight: &gain.tensor,
                    out: &between,
                    rows: 0..rows,
                    width,
                    eps,
                    bias: None,
                    kind,
                    add: false,
                };
                let product = Product {
                    x: &between,
                    weight: &weight,
                    out: &out.tensor,
                    rows: 0..rows,
                    out_row: 0,
                    epilogue: Epilogue::Store,
                    phase,
                    bias: Some(&bias.tensor),
                };
                k.norm_product(rec, norm, product)
            }) {
                let matrix = reference::matrix_rows(&source);
                let row = |r: usize| {
                    let normed = reference::norm(&x.row(r), &gain.row(0), None, f64::from(eps), kind);
                    let normed: Vec<f64> = normed.iter().map(|v| v.want).collect();
                    reference::add(&bias.row(0), &reference::product(&normed, &matrix))
                };
                let want: Vec<_> = (0..rows).map(row).collect();
                check.changed(k, &case, "out", &out, 0, &want);
                check.unchanged(k, &case, "x", &x);
            }
        }
    }
    check.finish();
}

/// Every head size in both pair orders and both cache types.
pub fn rope_cache<K: Kernels>(k: &K) {
    let (mut check, mut random) = (Check::new(k, "rope_cache"), Random::new(5));
    let mut i = 0;
    for head_dim in HEAD_DIMS {
        for pairs in [RopePairs::Adjacent, RopePairs::Halves] {
            for scalar in CACHES {
                let (heads, kv_heads) = HEADS[i % HEADS.len()];
                let dims = HeadDims { heads, kv_heads, head_dim };
                let (rows, first) = (ROWS[i % ROWS.len()], FIRST[i / 2 % FIRST.len()]);
                let position = POSITIONS[(i + i / 6) % POSITIONS.len()];
                let case = format!("{dims:?} {pairs:?} cache={scalar:?} rows={first}+{rows} position={position}");
                rope_case(k, &mut check, &mut random, &case, (dims, pairs, scalar), (first, rows, position));
                i += 1;
            }
        }
    }
    check.finish();
}

fn rope_case<K: Kernels>(
    k: &K,
    check: &mut Check,
    random: &mut Random,
    case: &str,
    (dims, pairs, scalar): (HeadDims, RopePairs, Scalar),
    (first, rows, position): (usize, usize, usize),
) {
    let named = first..first + rows;
    let qkv = activations(k, random, first, rows, dims.qkv_width(), 2.0);
    // All of a head turns, a part, or nothing; with a norm before or without.
    let rotary = [dims.head_dim, dims.head_dim / 8 * 4, 0][(rows + position) % 3];
    let norms = (rows % 3 != 1).then(|| {
        [0.5, 2.0].map(|size| Field::new(k, Scalar::F32, 1, dims.head_dim, |_, _| Some(size + random.symmetric())))
    });
    let angles = Field::new(k, Scalar::F32, position + rows, rotary.max(4), |row, column| {
        let angle = (row as f64) * 0.37f64.powf((column / 2) as f64 / 8.0) + 0.1;
        Some(if column % 2 == 0 { angle.cos() } else { angle.sin() } as f32)
    });
    let keys = Field::poisoned(k, scalar, cache_rows(k, position + rows), dims.kv_width());
    let values = Field::poisoned(k, scalar, cache_rows(k, position + rows), dims.kv_width());
    let done = check.run(k, case, |rec| {
        let rope = RopeCache {
            qkv: &qkv.tensor,
            angles: &angles.tensor,
            k: &keys.tensor,
            v: &values.tensor,
            ring: false,
            rows: named.clone(),
            position,
            dims,
            pairs,
            rotary,
            norm: norms.as_ref().map(|[q, k]| HeadNorm { q: &q.tensor, k: &k.tensor, eps: 1e-3 }),
        };
        k.rope_cache(rec, rope)
    });
    if !done {
        return;
    }
    let (q_end, k_end) = (dims.q_width(), dims.q_width() + dims.kv_width());
    let (mut want_q, mut want_k, mut want_v) = (Vec::new(), Vec::new(), Vec::new());
    for r in 0..rows {
        let (mut row, angles) = (qkv.row(first + r), angles.row(position + r));
        if let Some([q_norm, k_norm]) = &norms {
            for (i, head) in row[..k_end].chunks_exact_mut(dims.head_dim).enumerate() {
                let weight = if i < dims.heads { q_norm.row(0) } else { k_norm.row(0) };
                let normed = reference::norm(head, &weight, None, 1e-3, NormKind::Rms);
                head.iter_mut().zip(normed).for_each(|(x, normed)| *x = normed.want);
            }
        }
        let turned = |range: std::ops::Range<usize>| {
            let mut values = reference::rope(&row[range], &angles[..rotary], dims.head_dim, pairs);
            values.iter_mut().filter(|_| norms.is_some()).for_each(|v| v.scale = v.scale.max(v.want.abs()));
            values
        };
        let (mut q, keys) = (turned(0..q_end), turned(q_end..k_end));
        if norms.is_some() {
            q.extend(row[q_end..k_end].iter().map(|&want| Value { want, scale: want.abs() }));
        }
        want_q.push(q);
        want_k.push(keys);
        want_v.push(row[k_end..].iter().map(|&want| Value { want, scale: 0.0 }).collect());
    }
    check.changed(k, case, "qkv", &qkv, first, &want_q);
    check.changed(k, case, "k", &keys, position, &want_k);
    check.changed(k, case, "v", &values, position, &want_v);
    check.unchanged(k, case, "angles", &angles);
}

/// Every head size with every grouping, from the first token to a long past.
pub fn attention<K: Kernels>(k: &K) {
    let (mut check, mut random) = (Check::new(k, "attention"), Random::new(6));
    for i in 0..28 {
        let (heads, kv_heads) = HEADS[(i + i / 7) % HEADS.len()];
        let dims = HeadDims { heads, kv_heads, head_dim: HEAD_DIMS[i % HEAD_DIMS.len()] };
        let (rows, first) = (ROWS[(i + i / 7) % ROWS.len()], FIRST[i / 2 % FIRST.len()]);
        let (position, scalar) = (POSITIONS[(i + i / 6) % POSITIONS.len()], CACHES[(i + i / 7) % 2]);
        // Scores of the order of 1, 30 (one key takes all), and of a scale that is not head_dim^-1/2.
        let (size, scale) = [(1.0, 1.0), (30.0, 1.0), (1.0, 0.3)][i % 3];
        let scale = scale * (dims.head_dim as f32).powf(-0.5);
        let rules = rules(i);
        let case = format!(
            "{dims:?} cache={scalar:?} rows={first}+{rows} position={position} size={size} scale={scale} {rules:?}"
        );
        let bias = score_bias(k, &mut random, heads, position + rows + i % 4);
        let bias = (i % 2 == 1).then_some(&bias);
        let qkv = activations(k, &mut random, first, rows, dims.qkv_width(), size);
        let keys = cache(k, &mut random, scalar, position + rows, dims.kv_width());
        let values = cache(k, &mut random, scalar, position + rows, dims.kv_width());
        let out = Field::poisoned(k, k.activation(), activation_rows(k, first, rows), dims.q_width());
        if check.run(k, &case, |rec| {
            let attention = Attention {
                qkv: &qkv.tensor,
                k: &keys.tensor,
                v: &values.tensor,
                out: &out.tensor,
                rows: first..first + rows,
                position,
                dense_keys: 0,
                kv_heads: 0..dims.kv_heads,
                dims,
                scale,
                rules,
                bias: bias.map(|bias| &bias.tensor),
            };
            k.attention(rec, attention)
        }) {
            check.changed(
                k,
                &case,
                "out",
                &out,
                first,
                &attend_by(&qkv, &keys, &values, dims, (scale, rules, bias), (first, rows, position)),
            );
            check.unchanged(k, &case, "qkv", &qkv);
            check.unchanged(k, &case, "k", &keys);
            check.unchanged(k, &case, "v", &values);
        }
    }
    check.finish();
}

/// Every combination of window and soft-cap; windows of one key, within a tile, across tiles, and longer than most pasts.
fn rules(i: usize) -> ScoreRules {
    let window = [None, Some(1), Some(24), Some(100), Some(1000)][i % 5];
    ScoreRules { window, soft_cap: [None, Some(5.0), Some(50.0)][i % 3] }
}

/// A bias of scores `[heads, keys]`.
fn score_bias<K: Kernels>(k: &K, random: &mut Random, heads: usize, keys: usize) -> Field<K> {
    Field::new(k, Scalar::F32, heads, keys, |head, key| Some(key as f32 / (head + 1) as f32 / 8.0 + random.symmetric()))
}

/// The reference over fields: row `first + r` sees keys `0..=position + r`.
pub fn attend<K: Kernels>(
    qkv: &Field<K>,
    keys: &Field<K>,
    values: &Field<K>,
    dims: HeadDims,
    scale: f32,
    at: (usize, usize, usize),
) -> Vec<Vec<Value>> {
    attend_by(qkv, keys, values, dims, (scale, ScoreRules::default(), None), at)
}

fn attend_by<K: Kernels>(
    qkv: &Field<K>,
    keys: &Field<K>,
    values: &Field<K>,
    dims: HeadDims,
    (scale, rules, bias): (f32, ScoreRules, Option<&Field<K>>),
    (first, rows, position): (usize, usize, usize),
) -> Vec<Vec<Value>> {
    let keys: Vec<_> = (0..position + rows).map(|row| keys.row(row)).collect();
    let values: Vec<_> = (0..position + rows).map(|row| values.row(row)).collect();
    let bias: Option<Vec<_>> = bias.map(|bias| (0..dims.heads).map(|head| bias.row(head)).collect());
    let row = |r: usize| {
        let q = qkv.row(first + r);
        let seen = (position + r + 1).saturating_sub(rules.window.unwrap_or(usize::MAX))..position + r + 1;
        let bias: Option<Vec<&[f64]>> = bias.as_ref().map(|bias| bias.iter().map(|row| &row[seen.clone()]).collect());
        let (scale, soft_cap) = (f64::from(scale), rules.soft_cap.map(f64::from));
        let rule = reference::Scores { scale, soft_cap, bias: bias.as_deref() };
        reference::attention(&q[..dims.q_width()], &keys[seen.clone()], &values[seen], dims, &rule)
    };
    (0..rows).map(row).collect()
}

/// One row whose keys are split over the device: fewer keys than splits, and many.
pub fn attention_decode<K: Kernels>(k: &K) {
    let (mut check, mut random) = (Check::new(k, "attention_decode"), Random::new(7));
    for i in 0..21 {
        let (heads, kv_heads) = HEADS[(i + i / 7) % HEADS.len()];
        let dims = HeadDims { heads, kv_heads, head_dim: HEAD_DIMS[i % HEAD_DIMS.len()] };
        let (position, scalar) = ([0, 1, 15, 16, 47, 300, 63, 1000][(i + i / 8) % 8], CACHES[(i + i / 7) % 2]);
        let size = [1.0, 30.0][i / 2 % 2];
        let scale = (dims.head_dim as f32).powf(-0.5);
        let rules = rules(i);
        let case = format!("{dims:?} cache={scalar:?} position={position} size={size} {rules:?}");
        let bias = score_bias(k, &mut random, heads, position + 1 + i % 4);
        let bias = (i % 2 == 1).then_some(&bias);
        let qkv = activations(k, &mut random, 0, 1, dims.qkv_width(), size);
        let keys = cache(k, &mut random, scalar, position + 1, dims.kv_width());
        let values = cache(k, &mut random, scalar, position + 1, dims.kv_width());
        let out = Field::poisoned(k, k.activation(), activation_rows(k, 0, 1), dims.q_width());
        let partial = Field::poisoned(k, Scalar::F32, k.decode_splits() * heads, dims.head_dim + 2);
        if check.run(k, &case, |rec| {
            let attention = AttentionDecode {
                qkv: &qkv.tensor,
                k: &keys.tensor,
                v: &values.tensor,
                out: &out.tensor,
                partial: &partial.tensor,
                position,
                dims,
                scale,
                rules,
                bias: bias.map(|bias| &bias.tensor),
            };
            k.attention_decode(rec, attention)
        }) {
            check.changed(
                k,
                &case,
                "out",
                &out,
                0,
                &attend_by(&qkv, &keys, &values, dims, (scale, rules, bias), (0, 1, position)),
            );
            check.unchanged(k, &case, "qkv", &qkv);
            check.unchanged(k, &case, "k", &keys);
            check.unchanged(k, &case, "v", &values);
        }
    }
    check.finish();
}

/// A row that is turned on the way, beside one that is turned first: all pair orders, parts of a head, norms, windows and rings.
pub fn rope_attention_decode<K: Kernels>(k: &K) {
    let mut check = Check::new(k, "rope_attention_decode");
    for i in 0..24 {
        let (heads, kv_heads) = HEADS[(i + i / 7) % HEADS.len()];
        let dims = HeadDims { heads, kv_heads, head_dim: HEAD_DIMS[i % HEAD_DIMS.len()] };
        let (position, scalar) = ([0, 1, 15, 300, 47, 1000, 63, 550][(i + i / 8) % 8], CACHES[(i + i / 7) % 2]);
        let pairs = [RopePairs::Halves, RopePairs::Adjacent][i / 2 % 2];
        let rotary = [dims.head_dim, dims.head_dim / 8 * 4, 0][i % 3];
        let rules = rules(i);
        let cached = rules.window.map_or(position + 2, |window| window + 1);
        let case = format!("{dims:?} {pairs:?} {rotary} cache={scalar:?} position={position} {rules:?}");
        // The same numbers for both.
        let fields = || {
            let random = &mut Random::new(70 + i as u64);
            let angles = Field::new(k, Scalar::F32, position + 1, rotary.max(4), |_, _| Some(random.symmetric()));
            let norms = (i % 4 == 1).then(|| {
                [0.5, 2.0]
                    .map(|size| Field::new(k, Scalar::F32, 1, dims.head_dim, |_, _| Some(size + random.symmetric())))
            });
            let qkv = activations(k, random, 0, 1, dims.qkv_width(), 2.0);
            let [keys, values] = [0; 2].map(|_| cache(k, random, scalar, cached - 1, dims.kv_width()));
            let out = Field::poisoned(k, k.activation(), activation_rows(k, 0, 1), dims.q_width());
            let partial = Field::poisoned(k, Scalar::F32, k.decode_splits() * heads, dims.head_dim + 2);
            (angles, norms, qkv, [keys, values], out, partial)
        };
        let mut run = |together: bool| {
            let (angles, norms, qkv, [keys, values], out, partial) = fields();
            let done = check.run(k, &case, |rec| {
                let (qkv, k_cache, v) = (&qkv.tensor, &keys.tensor, &values.tensor);
                let norm = norms.as_ref().map(|[q, k]| HeadNorm { q: &q.tensor, k: &k.tensor, eps: 1e-3 });
                let rope = RopeCache {
                    qkv,
                    angles: &angles.tensor,
                    k: k_cache,
                    v,
                    ring: rules.window.is_some(),
                    rows: 0..1,
                    position,
                    dims,
                    pairs,
                    rotary,
                    norm,
                };
                let attention = AttentionDecode {
                    qkv,
                    k: k_cache,
                    v,
                    out: &out.tensor,
                    partial: &partial.tensor,
                    position,
                    dims,
                    scale: 0.3,
                    rules,
                    bias: None,
                };
                if together {
                    return k.rope_attention_decode(rec, rope, attention);
                }
                k.rope_cache(rec, rope)?;
                k.attention_decode(rec, attention)
            });
            done.then_some(([keys, values], out))
        };
        let (Some((caches, out)), Some((want_caches, want_out))) = (run(true), run(false)) else { continue };
        let attended = read_f32(k, k.activation(), &want_out.tensor, 0..dims.q_width());
        let scale = attended.iter().fold(0.0, |most: f64, v| most.max(f64::from(v.abs())));
        let want = attended.iter().map(|&v| Value { want: f64::from(v), scale }).collect();
        check.changed(k, &case, "out", &out, 0, &[want]);
        for (name, (field, want)) in ["k", "v"].iter().zip(caches.iter().zip(&want_caches)) {
            let bytes = |field: &Field<K>| {
                let elements = cache_rows(k, cached - 1) * dims.kv_width();
                read_bytes(k, &field.tensor, 0..elements)
            };
            check.expect(&case, "the same cache", bytes(field) == bytes(want), || format!("other bits in {name}"));
        }
    }
    check.finish();
}

/// Bounded values, up to far past the bound; what lies behind them stays.
pub fn soft_cap<K: Kernels>(k: &K) {
    let (mut check, mut random) = (Check::new(k, "soft_cap"), Random::new(14));
    for (i, len) in [1, 3, 64, 129, 1000, 4097, 12289].into_iter().enumerate() {
        let cap = [30.0f32, 0.5][i % 2];
        let case = format!("len={len} cap={cap}");
        let x = Field::new(k, Scalar::F32, 1, len + 5, |_, _| Some(100.0 * random.symmetric().powi(3)));
        if check.run(k, &case, |rec| k.soft_cap(rec, SoftCap { x: &x.tensor, len, cap })) {
            let cap = f64::from(cap);
            let bounded = |v: &f64| Value { want: cap * (v / cap).tanh(), scale: v.abs().min(cap) + 0.2 * cap };
            check.changed(k, &case, "x", &x, 0, &[x.row(0)[..len].iter().map(bounded).collect()]);
        }
    }
    check.finish();
}

/// Exact, so no tolerance: the largest element at either end, ties far apart, and rows where an initial value of 0 or of the
/// smallest float would win.
pub fn arg_max<K: Kernels>(k: &K) {
    let (mut check, mut random) = (Check::new(k, "arg_max"), Random::new(8));
    for (i, width) in [1usize, 2, 3, 64, 129, 257, 1000, 4096, 32003, 49152].into_iter().enumerate() {
        let last = width - 1;
        let kinds: [(&str, &[usize], f32); 6] = [
            ("random", &[], 0.0),
            ("last", &[last], 2.0),
            ("first", &[0], 2.0),
            ("tie", &[last / 3, last / 2, last], 2.0),
            ("all equal", &[], -1.0),
            ("all lowest", &[], f32::MIN),
        ];
        for (kind, at, value) in kinds {
            let row = i % 3;
            let case = format!("{kind} width={width} row={row}");
            let mut x = random.values(4 * width);
            for (other, x) in x.iter_mut().enumerate() {
                // Rows beside the named one hold larger elements.
                if other / width != row {
                    *x += 10.0;
                } else if kind.starts_with("all") {
                    *x = value;
                } else {
                    *x -= 5.0;
                }
            }
            at.iter().for_each(|column| x[row * width + column] = -value);
            let want = reference::arg_max(&x[row * width..(row + 1) * width]);
            let x = tensor_from_f32(k, Scalar::F32, &x);
            let out = tensor_from_u32(k, &[0xDEAD_BEEF; 4]);
            if check.run(k, &case, |rec| k.arg_max(rec, ArgMax { x: &x, row, width, out: &out })) {
                let got: Vec<u32> = bytemuck::pod_collect_to_vec(&read_bytes(k, &out, 0..4));
                let want = [want, 0xDEAD_BEEF, 0xDEAD_BEEF, 0xDEAD_BEEF];
                check.expect(&case, &format!("{want:x?}"), got == want, || format!("{got:x?}"));
            }
        }
    }
    check.finish();
}
