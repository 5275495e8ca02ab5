//! Kernels on rings: attention reads what a cache with a row for every token has, bit for bit.

use runahead::config::RopePairs;
use runahead::dims::round_up;
use runahead::dtype::Scalar;
use runahead::kernels::cpu::Cpu;
use runahead::kernels::{Attention, AttentionDecode, HeadDims, Kernels, RopeCache, ScoreRules};

use crate::kernels::harness::{encode, read_bytes, read_f32, tensor_from_f32, wait};
use crate::kernels::reference::Random;
use crate::kernels::wgsl::{other_activations, other_kind, shared};
use crate::model::difference;

/// Tokens after tokens through a cache with all rows and through a ring.
struct Rings<'a, K: Kernels> {
    k: &'a K,
    dims: HeadDims,
    scalar: Scalar,
    rules: ScoreRules,
    dense_keys: usize,
}

/// Lengths of pieces; a ring for them has room for the longest beside the window.
const PIECES: [usize; 9] = [16, 37, 1, 64, 20, 64, 3, 64, 40];

impl<K: Kernels> Rings<'_, K> {
    fn cache(&self, rows: usize) -> [K::Tensor; 2] {
        // What stood in a ring before is finite, as all that was ever stored.
        let content = encode(self.scalar, &vec![3e4; rows * self.dims.kv_width()]);
        [(); 2].map(|()| {
            let tensor = self.k.tensor("cache", self.scalar, rows * self.dims.kv_width()).unwrap();
            self.k.write(&tensor, 0, &content).unwrap();
            tensor
        })
    }

    /// Attention of every row, piece by piece, then of a row of decode.
    fn run(&self, rows: usize, all: &[f32]) -> (Vec<u8>, Vec<f32>) {
        let (k, dims, width) = (self.k, self.dims, self.dims.qkv_width());
        let [keys, values] = self.cache(rows);
        let n: usize = PIECES.iter().sum();
        let angles = tensor_from_f32(k, Scalar::F32, &Random::new(3).values((n + 1) * dims.head_dim));
        let (mut position, mut out) = (0, Vec::new());
        let (a, scale) = (k.activation(), 0.2);
        let rope = |qkv: &K::Tensor, n: usize, position| {
            let (k_cache, v, rows, pairs) = (&keys, &values, 0..n, RopePairs::Halves);
            let (ring, rotary) = (true, dims.head_dim);
            let op = RopeCache {
                qkv,
                angles: &angles,
                k: k_cache,
                v,
                ring,
                rows,
                position,
                dims,
                pairs,
                rotary,
                norm: None,
            };
            let mut rec = k.begin();
            k.rope_cache(&mut rec, op).unwrap();
            rec
        };
        for n in PIECES {
            let mut content = all[position * width..(position + n) * width].to_vec();
            content.resize(round_up(n, k.row_multiple()) * width, 0.0);
            let qkv = tensor_from_f32(k, a, &content);
            let result = k.tensor("out", a, round_up(n, k.row_multiple()) * dims.q_width()).unwrap();
            let mut rec = rope(&qkv, n, position);
            let attention = Attention {
                qkv: &qkv,
                k: &keys,
                v: &values,
                out: &result,
                rows: 0..n,
                position,
                dense_keys: self.dense_keys,
                kv_heads: 0..dims.kv_heads,
                dims,
                scale,
                rules: self.rules,
                bias: None,
            };
            k.attention(&mut rec, attention).unwrap();
            k.submit(rec, &wait()).unwrap();
            out.extend(read_bytes(k, &result, 0..n * dims.q_width()));
            position += n;
        }
        let mut content = all[position * width..].to_vec();
        content.resize(round_up(1, k.row_multiple()) * width, 0.0);
        let qkv = tensor_from_f32(k, a, &content);
        let result = k.tensor("out", a, round_up(1, k.row_multiple()) * dims.q_width()).unwrap();
        let partial = k.tensor("partial", Scalar::F32, k.decode_splits() * dims.heads * (dims.head_dim + 2)).unwrap();
        let mut rec = rope(&qkv, 1, position);
        let (qkv, v, rules) = (&qkv, &values, self.rules);
        let op = AttentionDecode {
            qkv,
            k: &keys,
            v,
            out: &result,
            partial: &partial,
            position,
            dims,
            scale,
            rules,
            bias: None,
        };
        k.attention_decode(&mut rec, op).unwrap();
        k.submit(rec, &wait()).unwrap();
        (out, read_f32(k, a, &result, 0..dims.q_width()))
    }
}

fn rings_change_no_bit<K: Kernels>(k: &K) {
    let n: usize = PIECES.iter().sum();
    for (i, head_dim) in [64, 20, 80, 128].into_iter().enumerate() {
        for (window, dense_keys) in [(1, 0), (20, n), (70, 0), (100, n)] {
            let dims = HeadDims { heads: 4, kv_heads: [2, 1, 4, 2][i], head_dim };
            let scalar = [Scalar::F16, Scalar::F32][(i + window) % 2];
            let rules = ScoreRules { window: Some(window), soft_cap: (window == 70).then_some(5.0) };
            let case = Rings { k, dims, scalar, rules, dense_keys };
            let all = Random::new(i as u64 + 1).values((n + 1) * dims.qkv_width());
            let whole = case.run(round_up(n + 1, k.key_tile()), &all);
            let ring = round_up(window + 64, k.key_tile());
            assert!(ring < n, "the ring goes round");
            let (rows, decoded) = case.run(ring, &all);
            let what = format!("head {head_dim} window {window} {scalar:?} dense {dense_keys}");
            assert!(rows == whole.0, "{what}: attention differs in bits");
            // The CPU adds up to the end of the ring and goes on from there: no other order, but decode may take any.
            let off = difference(&decoded, &whole.1);
            assert!(off < 1e-6, "{what}: decode is off by {off:.2e}");
        }
    }
}

#[test]
fn rings_change_no_bit_of_wgsl_kernels() {
    for k in [shared(), other_activations(), other_kind()] {
        rings_change_no_bit(k);
    }
}

#[test]
fn rings_change_no_bit_of_cpu_kernels() {
    rings_change_no_bit(&Cpu::new("cpu", 2).unwrap());
}

/// A ring that cannot hold what its rows see, or whose end would tear a tile, is refused.
#[test]
fn rings_that_are_too_short_are_refused() {
    fn check<K: Kernels>(k: &K) {
        let dims = HeadDims { heads: 2, kv_heads: 1, head_dim: 16 };
        let tile = k.key_tile();
        let qkv = k.tensor("qkv", k.activation(), k.row_multiple() * 8 * dims.qkv_width()).unwrap();
        let out = k.tensor("out", k.activation(), k.row_multiple() * 8 * dims.q_width()).unwrap();
        let accepts = |rows: usize, window: usize, n: usize| {
            let cache = [(); 2].map(|()| k.tensor("cache", Scalar::F16, rows * dims.kv_width()).unwrap());
            let rules = ScoreRules { window: Some(window), soft_cap: None };
            let op = Attention {
                qkv: &qkv,
                k: &cache[0],
                v: &cache[1],
                out: &out,
                rows: 0..n,
                position: 10 * tile,
                dense_keys: 0,
                kv_heads: 0..dims.kv_heads,
                dims,
                scale: 0.25,
                rules,
                bias: None,
            };
            k.attention(&mut k.begin(), op).is_ok()
        };
        assert!(accepts(tile, tile - 3, 4));
        assert!(!accepts(tile, tile - 2, 4), "a row too few");
        assert!(!accepts(tile + 8, tile - 3, 4), "a torn tile");
    }
    check(shared());
    check(&Cpu::new("cpu", 1).unwrap());
}
