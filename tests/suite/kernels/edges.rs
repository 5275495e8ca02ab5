//! What is not arithmetic: order of writes, submissions and downloads; saturation; sizes that do not fit; a reference that is wrong.

use std::panic::{AssertUnwindSafe, catch_unwind};

use runahead::Result;
use runahead::config::{NormKind, RopePairs};
use runahead::dtype::{Dtype, Scalar};
use runahead::kernels::{
    ArgMax, Attention, AttentionDecode, Embed, Epilogue, HeadDims, Kernels, MatrixSource, Norm, Phase, Product,
    RopeCache, RowOrder, ScoreRules,
};

use super::harness::{
    Check, Field, collect_bytes, decode, encode, read_bytes, read_f32, tensor_from_f32, tensor_from_u32, wait,
};
use super::problems::{activation_rows, activations, attend, cache, cache_rows, single};
use super::reference::{self, Random, random_weight};

/// Tensors start zeroed; a write is seen by later submissions only; a download shows its point of the recording.
pub fn downloads_and_writes<K: Kernels>(k: &K) {
    for scalar in [Scalar::F32, Scalar::F16, Scalar::U32] {
        let tensor = k.tensor("zeroed", scalar, 64).unwrap();
        assert!(read_bytes(k, &tensor, 0..64).iter().all(|b| *b == 0), "a new {scalar:?} tensor is not zeroed");
        k.write(&tensor, 10, &encode(scalar, &[1.0, 2.0, 3.0, 4.0])).unwrap();
        assert_eq!(read_f32(k, scalar, &tensor, 8..16), [0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 0.0, 0.0], "{scalar:?}");
        let clone = tensor.clone();
        k.write(&clone, 62, &encode(scalar, &[5.0, 6.0])).unwrap();
        assert_eq!(read_f32(k, scalar, &tensor, 62..64), [5.0, 6.0], "{scalar:?}: clones share the storage");
    }
    let random = &mut Random::new(9);
    let table = k.matrix("table", &single(random, Dtype::F32, 3, 64)).unwrap();
    let row = |id: usize| -> Vec<f32> {
        let all = reference::matrix_rows(&single(&mut Random::new(9), Dtype::F32, 3, 64));
        all[id].iter().map(|v| *v as f32).collect()
    };
    let (zero, one, two) = (tensor_from_u32(k, &[0]), tensor_from_u32(k, &[1]), tensor_from_u32(k, &[2]));
    let out = k.tensor("out", Scalar::F32, activation_rows(k, 0, 1) * 64).unwrap();
    let embed = |rec: &mut K::Recording, ids: &K::Tensor| {
        k.embed(rec, Embed { ids, table: &table, out: &out, rows: 1, scale: 1.0 }).unwrap();
    };
    let mut rec = k.begin();
    embed(&mut rec, &zero);
    let first = k.download(&mut rec, &out, 0..64).unwrap();
    embed(&mut rec, &one);
    let second = k.download(&mut rec, &out, 32..64).unwrap();
    let dropped = k.download(&mut rec, &out, 0..64).unwrap();
    // Recorded before the write, submitted after it.
    k.write(&zero, 0, bytemuck::bytes_of(&2u32)).unwrap();
    let point = k.submit(rec, &wait()).unwrap();
    // Neither this write nor the next submission may change what the first one saw.
    k.write(&zero, 0, bytemuck::bytes_of(&1u32)).unwrap();
    let mut rec = k.begin();
    let between = k.download(&mut rec, &out, 0..64).unwrap();
    embed(&mut rec, &two);
    embed(&mut rec, &zero);
    let last = k.download(&mut rec, &out, 0..64).unwrap();
    let later = k.submit(rec, &wait()).unwrap();
    k.wait(&later, &wait()).unwrap();
    drop(dropped);
    let read = |download, after: &K::Submitted| decode(Scalar::F32, &collect_bytes(k, download, after));
    assert_eq!(read(last, &later), row(1), "the second submission sees the second write");
    assert_eq!(read(second, &point), row(1)[32..], "a stretch, after the second operation");
    assert_eq!(read(first, &point), row(2), "before the second operation, after the write");
    assert_eq!(read(between, &later), row(1), "the second submission starts where the first ended");
    k.wait(&point, &wait()).unwrap();
}

/// Activations of 1e5 end as ±65504 wherever they are stored as f16, and attention over such a cache stays finite.
pub fn saturation<K: Kernels>(k: &K) {
    let (mut check, random) = (Check::new(k, "saturation"), &mut Random::new(10));
    let dims = HeadDims { heads: 4, kv_heads: 2, head_dim: 64 };
    let (rows, scale) = (17, 0.125);
    let sign = |row: usize, column: usize| if (row * 7 + column).is_multiple_of(3) { -1e5 } else { 1e5 };
    let held = activation_rows(k, 0, rows);
    let qkv =
        Field::new(k, k.activation(), held, dims.qkv_width(), |row, column| (row < rows).then(|| sign(row, column)));
    let turn = |_, column: usize| Some(if column.is_multiple_of(2) { 0.6 } else { 0.8 });
    let angles = Field::new(k, Scalar::F32, rows, dims.head_dim, turn);
    let keys = Field::new(k, Scalar::F16, cache_rows(k, rows), dims.kv_width(), |_, _| Some(0.0));
    let values = Field::new(k, Scalar::F16, cache_rows(k, rows), dims.kv_width(), |_, _| Some(0.0));
    let out = Field::poisoned(k, k.activation(), held, dims.q_width());
    check.run(k, "rope_cache and attention", |rec| {
        let (k_cache, v_cache) = (&keys.tensor, &values.tensor);
        let pairs = RopePairs::Halves;
        let (qkv, angles, out) = (&qkv.tensor, &angles.tensor, &out.tensor);
        let rope = RopeCache {
            qkv,
            angles,
            k: k_cache,
            v: v_cache,
            ring: false,
            rows: 0..rows,
            position: 0,
            dims,
            pairs,
            rotary: dims.head_dim,
            norm: None,
        };
        k.rope_cache(rec, rope)?;
        k.attention(
            rec,
            Attention {
                qkv,
                k: k_cache,
                v: v_cache,
                out,
                rows: 0..rows,
                position: 0,
                dense_keys: 0,
                kv_heads: 0..dims.kv_heads,
                dims,
                scale,
                rules: ScoreRules::default(),
                bias: None,
            },
        )
    });
    let v_at = dims.q_width() + dims.kv_width();
    let got = read_f32(k, Scalar::F16, &values.tensor, 0..rows * dims.kv_width());
    for (at, v) in got.into_iter().enumerate() {
        let want = 65504f32.copysign(sign(at / dims.kv_width(), v_at + at % dims.kv_width()));
        check.expect(&format!("v[{at}]"), &format!("{want}"), v == want, || format!("{v}"));
    }
    // Elements of one sign leave the rotation as 1.4e5, so K reaches the limit too.
    let got = read_f32(k, Scalar::F16, &keys.tensor, 0..rows * dims.kv_width());
    check.expect("k", "finite", got.iter().all(|v| v.is_finite()), || format!("{got:?}"));
    let reached = got.iter().any(|v| v.abs() == 65504.0);
    check.expect("k", "±65504 somewhere", reached, || format!("{got:?}"));
    let got = read_f32(k, k.activation(), &out.tensor, 0..rows * dims.q_width());
    let largest = got.iter().fold(0.0f32, |m, v| if v.is_finite() { m.max(v.abs()) } else { f32::INFINITY });
    check.expect("attention", "at most 65504", largest <= 65504.0 * 1.00001, || format!("{largest}"));

    let width = 64;
    for (dtype, epilogue) in [(Dtype::F32, Epilogue::Store), (Dtype::Q8_0, Epilogue::SwiGlu)] {
        let weight = random_weight(random, dtype, 64, width);
        let swiglu = epilogue == Epilogue::SwiGlu;
        let parts = if swiglu { vec![weight, random_weight(random, dtype, 64, width)] } else { vec![weight] };
        let order = if swiglu { RowOrder::Alternating } else { RowOrder::Stacked };
        let source = MatrixSource { parts, rows: order };
        let matrix = k.matrix("weight", &source).unwrap();
        for phase in [Phase::Prefill, Phase::Decode] {
            let rows = if phase == Phase::Decode { 1 } else { 17 };
            let case = format!("product {epilogue:?} {phase:?}");
            let x = activations(k, random, 0, rows, width, 1e5);
            let out = Field::poisoned(k, k.activation(), activation_rows(k, 0, rows), 64);
            let (input, weight) = (&x.tensor, &matrix);
            if check.run(k, &case, |rec| {
                let out = &out.tensor;
                k.product(
                    rec,
                    Product { x: input, weight, out, rows: 0..rows, out_row: 0, epilogue, phase, bias: None },
                )
            }) {
                let row = |row: usize| {
                    let sums = reference::product(&x.row(row), &reference::matrix_rows(&source));
                    if swiglu { reference::swiglu(&sums) } else { sums }
                };
                check.changed(k, &case, "out", &out, 0, &(0..rows).map(row).collect::<Vec<_>>());
            }
        }
    }
    check.finish();
}

/// Names what was accepted, or panicked, and should have been an error.
struct Refusals(Vec<String>);

impl Refusals {
    fn expect_err<T>(&mut self, what: &str, attempt: impl FnOnce() -> Result<T>) {
        match catch_unwind(AssertUnwindSafe(|| attempt().map(drop))) {
            Ok(Err(_)) => {}
            Ok(Ok(())) => self.0.push(format!("{what}: accepted")),
            Err(_) => self.0.push(format!("{what}: panicked")),
        }
    }
}

/// Sizes that do not fit are errors when the operation is recorded, whatever they are.
pub fn bad_sizes<K: Kernels>(k: &K) {
    let mut refusals = Refusals(Vec::new());
    bad_matrices(k, &mut refusals);
    bad_transfers(k, &mut refusals);
    bad_rows(k, &mut refusals);
    bad_attention(k, &mut refusals);
    assert!(refusals.0.is_empty(), "bad sizes:\n{}", refusals.0.join("\n"));
}

fn bad_matrices<K: Kernels>(k: &K, refusals: &mut Refusals) {
    let random = &mut Random::new(11);
    let mut weight = |dtype, n, width| random_weight(random, dtype, n, width);
    let (a, b, wide) = (weight(Dtype::F32, 8, 64), weight(Dtype::F32, 4, 64), weight(Dtype::F32, 8, 96));
    let mut short = weight(Dtype::Q8_0, 8, 64);
    short.data = short.data[..short.data.len() - 1].to_vec().into();
    let mut torn = weight(Dtype::Q8_0, 8, 64);
    torn.shape = vec![32, 16];
    let mut huge = weight(Dtype::F32, 8, 64);
    huge.shape = vec![usize::MAX, 64];
    let mut refuse = |what: &str, parts, rows| {
        refusals.expect_err(what, || k.matrix("bad", &MatrixSource { parts, rows }));
    };
    refuse("a matrix of no tensors", vec![], RowOrder::Stacked);
    refuse("stacked tensors of two widths", vec![a.clone(), wide.clone()], RowOrder::Stacked);
    refuse("alternating tensors of two widths", vec![a.clone(), wide], RowOrder::Alternating);
    refuse("alternating tensors of two heights", vec![a.clone(), b], RowOrder::Alternating);
    refuse("three alternating tensors", vec![a.clone(), a.clone(), a.clone()], RowOrder::Alternating);
    refuse("one alternating tensor", vec![a], RowOrder::Alternating);
    refuse("less data than the shape asks for", vec![short], RowOrder::Stacked);
    refuse("rows that are no whole blocks", vec![torn], RowOrder::Stacked);
    refuse("a shape that overflows", vec![huge], RowOrder::Stacked);
}

fn bad_transfers<K: Kernels>(k: &K, refusals: &mut Refusals) {
    let f32s = k.tensor("f32", Scalar::F32, 64).unwrap();
    let f16s = k.tensor("f16", Scalar::F16, 64).unwrap();
    let mut rec = k.begin();
    refusals.expect_err("a write past the end", || k.write(&f32s, 61, &[0; 16]));
    refusals.expect_err("a write far past the end", || k.write(&f32s, usize::MAX, &[0; 4]));
    refusals.expect_err("a write of half a word", || k.write(&f16s, 0, &[0; 2]));
    refusals.expect_err("a write to half a word", || k.write(&f16s, 1, &[0; 4]));
    refusals.expect_err("a download past the end", || k.download(&mut rec, &f32s, 60..65));
    refusals.expect_err("a download from half a word", || k.download(&mut rec, &f16s, 1..3));
    refusals.expect_err("a download of half a word", || k.download(&mut rec, &f16s, 0..3));
    refusals.expect_err("a tensor larger than any memory", || k.tensor("huge", Scalar::F32, usize::MAX / 2));
}

fn bad_rows<K: Kernels>(k: &K, refusals: &mut Refusals) {
    let random = &mut Random::new(12);
    let (width, n, held) = (64, 96, activation_rows(k, 0, 16));
    let end = held + 1;
    let far = usize::MAX - 1..usize::MAX;
    let mut rec = k.begin();
    let matrix = k.matrix("weight", &single(random, Dtype::F32, n, width)).unwrap();
    let table = k.matrix("table", &single(random, Dtype::F32, n, width)).unwrap();
    let ids = tensor_from_u32(k, &vec![0; held]);
    let f32s = k.tensor("x", Scalar::F32, held * width).unwrap();
    let x = k.tensor("x", k.activation(), held * width).unwrap();
    let narrow = k.tensor("narrow", Scalar::F32, width - 4).unwrap();
    let weight = tensor_from_f32(k, Scalar::F32, &vec![1.0; width]);
    let out = k.tensor("out", k.activation(), held * n).unwrap();
    let short_ids = tensor_from_u32(k, &[0; 4]);

    let mut embed = |what: &str, ids: &K::Tensor, rows| {
        refusals.expect_err(what, || k.embed(&mut rec, Embed { ids, table: &table, out: &f32s, rows, scale: 1.0 }));
    };
    embed("embed: more rows than ids", &short_ids, 5);
    embed("embed: more rows than `out` has", &ids, end);
    embed("embed: rows that overflow", &ids, usize::MAX / 8);

    let mut norm = |what: &str, from: &K::Tensor, weight: &K::Tensor, out: &K::Tensor, rows, width| {
        let op = Norm { x: from, weight, out, rows, width, eps: 1e-5, bias: None, kind: NormKind::Rms, add: false };
        refusals.expect_err(what, || k.norm(&mut rec, op));
    };
    norm("norm: rows past the end of `x`", &f32s, &weight, &out, held..end, width);
    norm("norm: rows past the end of `out`", &f32s, &weight, &narrow, 0..2, width);
    norm("norm: a weight shorter than a row", &f32s, &narrow, &out, 0..1, width);
    norm("norm: rows that overflow", &f32s, &weight, &out, far.clone(), width);

    let mut product = |what: &str, rows, out_row, phase, epilogue| {
        let op = Product { x: &x, weight: &matrix, out: &out, rows, out_row, epilogue, phase, bias: None };
        refusals.expect_err(what, || k.product(&mut rec, op));
    };
    let (store, prefill, decode) = (Epilogue::Store, Phase::Prefill, Phase::Decode);
    product("product: rows past the end of `x`", held..end, 0, prefill, store);
    product("product: rows past the end of `out`", 0..2, held - 1, prefill, store);
    product("product: decode past the end of `x`", held..end, 0, decode, store);
    product("product: decode past the end of `out`", 0..1, held, decode, store);
    product("product: decode of two rows", 0..2, 0, decode, store);
    product("product: rows that overflow", far.clone(), 0, prefill, store);
    product("product: an output row that overflows", 0..1, usize::MAX, prefill, store);

    let index = tensor_from_u32(k, &[0]);
    let mut arg_max = |what: &str, row, width| {
        refusals.expect_err(what, || k.arg_max(&mut rec, ArgMax { x: &f32s, row, width, out: &index }));
    };
    arg_max("arg_max: a row past the end", held, width);
    arg_max("arg_max: a row that overflows", usize::MAX, width);
    arg_max("arg_max: a row of no elements", 0, 0);
}

fn bad_attention<K: Kernels>(k: &K, refusals: &mut Refusals) {
    let good = HeadDims { heads: 4, kv_heads: 2, head_dim: 16 };
    let (held, cached) = (activation_rows(k, 0, 16), cache_rows(k, 32));
    let mut rec = k.begin();
    let qkv = k.tensor("qkv", k.activation(), held * good.qkv_width()).unwrap();
    let out = k.tensor("out", k.activation(), held * good.q_width()).unwrap();
    let angles = k.tensor("angles", Scalar::F32, (cached + 8) * good.head_dim).unwrap();
    let few_angles = k.tensor("angles", Scalar::F32, 4 * good.head_dim).unwrap();
    let keys = k.tensor("k", Scalar::F16, cached * good.kv_width()).unwrap();
    let values = k.tensor("v", Scalar::F16, cached * good.kv_width()).unwrap();
    let partial = k.tensor("partial", Scalar::F32, k.decode_splits() * good.heads * (good.head_dim + 2)).unwrap();
    let short = k.tensor("short", Scalar::F32, 4).unwrap();
    let shapes = [
        ("kv_heads that do not divide heads", HeadDims { kv_heads: 3, ..good }),
        ("no kv_heads", HeadDims { kv_heads: 0, ..good }),
        ("no heads", HeadDims { heads: 0, ..good }),
        ("a head_dim that is no multiple of 4", HeadDims { head_dim: 6, ..good }),
        ("a head_dim of 0", HeadDims { head_dim: 0, ..good }),
        ("heads that overflow", HeadDims { heads: usize::MAX - 3, kv_heads: 1, ..good }),
    ];

    let mut rope = |what: &str, angles: &K::Tensor, rows, position, dims| {
        let (qkv, k_cache, v, pairs) = (&qkv, &keys, &values, RopePairs::Halves);
        let op = RopeCache {
            qkv,
            angles,
            k: k_cache,
            v,
            ring: false,
            rows,
            position,
            dims,
            pairs,
            rotary: dims.head_dim,
            norm: None,
        };
        refusals.expect_err(&format!("rope_cache: {what}"), || k.rope_cache(&mut rec, op));
    };
    rope("rows past the end of `qkv`", &angles, held..held + 1, 0, good);
    rope("rows past the end of the cache", &angles, 0..2, cached - 1, good);
    rope("positions past the angles", &few_angles, 0..2, 3, good);
    rope("a position that overflows", &angles, 0..2, usize::MAX, good);
    shapes.iter().for_each(|(what, dims)| rope(what, &angles, 0..1, 0, *dims));

    let mut attention = |what: &str, out: &K::Tensor, rows, position, dims: HeadDims| {
        let op = Attention {
            qkv: &qkv,
            k: &keys,
            v: &values,
            out,
            rows,
            position,
            dense_keys: 0,
            kv_heads: 0..dims.kv_heads,
            dims,
            scale: 0.25,
            rules: ScoreRules::default(),
            bias: None,
        };
        refusals.expect_err(&format!("attention: {what}"), || k.attention(&mut rec, op));
    };
    attention("rows past the end of `qkv`", &out, held..held + 1, 0, good);
    attention("rows past the end of `out`", &short, 0..1, 0, good);
    attention("keys past the end of the cache", &out, 0..2, cached - 1, good);
    attention("a position that overflows", &out, 0..2, usize::MAX, good);
    shapes.iter().for_each(|(what, dims)| attention(what, &out, 0..1, 0, *dims));

    let mut decode = |what: &str, partial: &K::Tensor, position, dims| {
        let (qkv, k_cache, v, out) = (&qkv, &keys, &values, &out);
        let op = AttentionDecode {
            qkv,
            k: k_cache,
            v,
            out,
            partial,
            position,
            dims,
            scale: 0.25,
            rules: ScoreRules::default(),
            bias: None,
        };
        refusals.expect_err(&format!("attention_decode: {what}"), || k.attention_decode(&mut rec, op));
    };
    decode("a position past the end of the cache", &partial, cached, good);
    decode("a position that overflows", &partial, usize::MAX, good);
    decode("too small a `partial`", &short, 0, good);
    shapes.iter().for_each(|(what, dims)| decode(what, &partial, 0, *dims));
}

/// The harness itself: a doubled `eps`, a forgotten key, a touched guard row and a changed input are all reported.
pub fn wrong_references_fail<K: Kernels>(k: &K) {
    let random = &mut Random::new(13);
    let (rows, width, eps) = (17, 64, 0.1f32);
    let x = Field::new(k, Scalar::F32, activation_rows(k, 0, rows), width, |_, _| Some(random.symmetric()));
    let weight = Field::new(k, Scalar::F32, 1, width, |_, _| Some(1.0));
    let out = Field::poisoned(k, k.activation(), activation_rows(k, 0, rows), width);
    let mut check = Check::new(k, "norm");
    check.run(k, "norm", |rec| {
        let (x, weight, out) = (&x.tensor, &weight.tensor, &out.tensor);
        k.norm(rec, Norm { x, weight, out, rows: 0..rows, width, eps, bias: None, kind: NormKind::Rms, add: false })
    });
    let want = |eps: f64| -> Vec<_> {
        (0..rows).map(|row| reference::norm(&x.row(row), &weight.row(0), None, eps, NormKind::Rms)).collect()
    };
    check.changed(k, "right", "out", &out, 0, &want(f64::from(eps)));
    assert!(check.failures().is_empty(), "{:?}", check.failures());
    check.changed(k, "doubled eps", "out", &out, 0, &want(2.0 * f64::from(eps)));
    assert_eq!(check.failures().len(), 1, "a doubled eps passes");
    check.changed(k, "one row fewer", "out", &out, 0, &want(f64::from(eps))[..rows - 1]);
    assert_eq!(check.failures().len(), 2, "a touched guard row passes");
    k.write(&x.tensor, 6, &[1, 2, 3, 4]).unwrap();
    check.unchanged(k, "norm", "x", &x);
    assert_eq!(check.failures().len(), 3, "a changed input passes");

    let (dims, position, scale) = (HeadDims { heads: 4, kv_heads: 2, head_dim: 16 }, 300, 0.25);
    let qkv = activations(k, random, 0, 2, dims.qkv_width(), 1.0);
    let keys = cache(k, random, Scalar::F16, position + 2, dims.kv_width());
    let values = cache(k, random, Scalar::F16, position + 2, dims.kv_width());
    let out = Field::poisoned(k, k.activation(), activation_rows(k, 0, 2), dims.q_width());
    let mut check = Check::new(k, "attention");
    check.run(k, "attention", |rec| {
        let (qkv, k_cache, v, out) = (&qkv.tensor, &keys.tensor, &values.tensor, &out.tensor);
        k.attention(
            rec,
            Attention {
                qkv,
                k: k_cache,
                v,
                out,
                rows: 0..2,
                position,
                dense_keys: 0,
                kv_heads: 0..dims.kv_heads,
                dims,
                scale,
                rules: ScoreRules::default(),
                bias: None,
            },
        )
    });
    check.changed(k, "right", "out", &out, 0, &attend(&qkv, &keys, &values, dims, scale, (0, 2, position)));
    assert!(check.failures().is_empty(), "{:?}", check.failures());
    check.changed(k, "last key", "out", &out, 0, &attend(&qkv, &keys, &values, dims, scale, (0, 2, position - 1)));
    assert_eq!(check.failures().len(), 1, "a reference without the last of {position} keys passes");
}
