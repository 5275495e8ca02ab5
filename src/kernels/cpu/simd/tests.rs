//! Each routine at each level that this CPU has, against plain loops in f64.

use super::{Level, Simd, Tile};
use crate::dtype::Dtype;

/// Levels of this CPU.
fn levels() -> Vec<Simd> {
    let levels: Vec<Simd> = Level::ALL.into_iter().filter_map(Simd::new).collect();
    assert!(levels.iter().any(|simd| simd.level() == Level::Portable));
    levels
}

/// A small generator of numbers that repeat from run to run.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// In -1..1.
    fn float(&mut self) -> f32 {
        self.bits() as f32 / (1u64 << 30) as f32 - 1.0
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}

/// A row of `n` elements in a format, with the values that its definition gives.
fn row(random: &mut Random, dtype: Dtype, n: usize) -> (Vec<u8>, Vec<f64>) {
    let (mut bytes, mut values) = (Vec::new(), Vec::new());
    let half = |bytes: &mut Vec<u8>, x: f32| {
        let h = half::f16::from_f32(x);
        bytes.extend(h.to_le_bytes());
        h.to_f64()
    };
    for _ in 0..n / dtype.block_len() {
        // Formats of several bit fields: their values are those of the scalar lanes, which the test of `quants.json` holds to their definition.
        let mut coded = |at: usize| {
            let mut block: Vec<u8> = (0..dtype.block_bytes()).map(|_| random.bits() as u8).collect();
            for at in (at..dtype.block_bytes().min(at + 4)).step_by(2) {
                block[at..at + 2].copy_from_slice(&half::f16::from_f32(random.float() / 1024.0).to_le_bytes());
            }
            let mut decoded = vec![0.0; dtype.block_len()];
            Simd::new(Level::Portable).unwrap().decode(dtype, &block, &mut decoded);
            values.extend(decoded.into_iter().map(f64::from));
            bytes.extend(block);
        };
        match dtype {
            Dtype::F32 => {
                let x = random.float();
                bytes.extend(x.to_le_bytes());
                values.push(f64::from(x));
            }
            Dtype::F16 => {
                let x = random.float();
                values.push(half(&mut bytes, x));
            }
            Dtype::Bf16 => {
                let x = half::bf16::from_f32(random.float());
                bytes.extend(x.to_le_bytes());
                values.push(x.to_f64());
            }
            Dtype::Q8_0 => {
                let d = half(&mut bytes, random.float() / 64.0);
                for _ in 0..32 {
                    let q = random.bits() as u8;
                    bytes.push(q);
                    values.push(d * f64::from(q as i8));
                }
            }
            Dtype::Q4_0 | Dtype::Q4_1 => {
                let d = half(&mut bytes, random.float() / 8.0);
                let m = if dtype == Dtype::Q4_1 { half(&mut bytes, random.float()) } else { -8.0 * d };
                let q: Vec<u8> = (0..16).map(|_| random.bits() as u8).collect();
                values.extend(q.iter().map(|q| d * f64::from(q & 15) + m));
                values.extend(q.iter().map(|q| d * f64::from(q >> 4) + m));
                bytes.extend(q);
            }
            Dtype::Q5_0 | Dtype::Iq4Nl | Dtype::Q5_1 | Dtype::Q4K | Dtype::Q5K => coded(0),
            Dtype::Q2K => coded(80),
            Dtype::Q3K => coded(108),
            Dtype::Q6K => coded(208),
        }
    }
    (bytes, values)
}

/// Lengths that a format can have, round and odd.
fn lengths(dtype: Dtype) -> &'static [usize] {
    match dtype.block_len() {
        1 => &[1, 3, 4, 31, 32, 33, 64, 100, 576],
        32 => &[32, 64, 96, 160, 576],
        _ => &[256, 768],
    }
}

fn close(found: f32, expected: f64, scale: f64, what: &str) {
    let error = (f64::from(found) - expected).abs();
    assert!(error <= 2e-6 * scale.max(expected.abs()), "{what}: {found}, expected {expected}");
}

#[test]
fn decoding_matches_the_definition() {
    let mut random = Random(1);
    for simd in levels() {
        for dtype in Dtype::ALL {
            for &n in lengths(dtype) {
                let (bytes, values) = row(&mut random, dtype, n);
                // One byte further, so that nothing relies on alignment; guards behind.
                let moved = [&[7], bytes.as_slice()].concat();
                let mut out = vec![99.0; n + 3];
                simd.decode(dtype, &moved[1..], &mut out[..n]);
                for (&x, &expected) in out.iter().zip(&values) {
                    close(x, expected, 1.0, &format!("{:?} {dtype:?} {n}", simd.level()));
                }
                assert_eq!(out[n..], [99.0; 3]);
            }
        }
    }
}

/// Bit for bit what the Python package `gguf` makes of the same blocks; see `tests/data/README.md`.
#[test]
fn decoding_matches_another_implementation() {
    let bytes = |hex: &str| -> Vec<u8> {
        hex.as_bytes().chunks(2).map(|d| u8::from_str_radix(str::from_utf8(d).unwrap(), 16).unwrap()).collect()
    };
    let vectors: serde_json::Value = serde_json::from_str(include_str!("../../../../tests/data/quants.json")).unwrap();
    for dtype in Dtype::ALL.into_iter().filter(|dtype| dtype.block_len() > 1) {
        let vector = &vectors[dtype.name()];
        let expected: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes(vector["values"].as_str().unwrap()));
        assert!(expected.len() > 256, "{dtype:?}");
        for simd in levels() {
            let mut out = vec![0.0; expected.len()];
            simd.decode(dtype, &bytes(vector["blocks"].as_str().unwrap()), &mut out);
            assert_eq!(out, expected, "{:?} {dtype:?}", simd.level());
        }
    }
}

#[test]
fn every_binary16_widens_exactly() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for simd in levels() {
        let mut out = vec![0.0; 1 << 16];
        simd.decode(Dtype::F16, &all, &mut out);
        for (bits, x) in (0..=u16::MAX).zip(out) {
            let expected = half::f16::from_bits(bits).to_f32();
            let same = x.to_bits() == expected.to_bits() || (x.is_nan() && expected.is_nan());
            assert!(same, "{:?} {bits:#06x}: {x}, expected {expected}", simd.level());
        }
    }
}

#[test]
fn dots_and_mixes_match_plain_sums() {
    let mut random = Random(2);
    for simd in levels() {
        for dtype in Dtype::ALL {
            for &n in lengths(dtype) {
                for rows in [0, 1, 2, 3, 5] {
                    let what = format!("{:?} {dtype:?} {rows} rows of {n}", simd.level());
                    let parts: Vec<_> = (0..rows).map(|_| row(&mut random, dtype, n)).collect();
                    // Rows lie further apart than they are long, as heads in a cache do.
                    let stride = dtype.bytes(n).unwrap() + 6;
                    let bytes: Vec<u8> =
                        parts.iter().flat_map(|(bytes, _)| bytes.iter().copied().chain([255; 6])).collect();
                    let x = random.floats(n);
                    let mut out = vec![0.0; rows];
                    simd.dots(dtype, &bytes, stride, &x, &mut out);
                    for (&sum, (_, values)) in out.iter().zip(&parts) {
                        let expected = values.iter().zip(&x).map(|(w, &x)| w * f64::from(x)).sum();
                        close(sum, expected, n as f64, &what);
                    }
                    let p = random.floats(rows);
                    let start = random.floats(n);
                    let mut out = start.clone();
                    simd.mix(dtype, &bytes, stride, &p, &mut out);
                    for (i, &sum) in out.iter().enumerate() {
                        let mixed: f64 = parts.iter().zip(&p).map(|((_, v), &p)| f64::from(p) * v[i]).sum();
                        close(sum, f64::from(start[i]) + mixed, 4.0, &what);
                    }
                }
            }
        }
    }
}

#[test]
fn transposing_leaves_the_rest_alone() {
    let mut random = Random(3);
    for simd in levels() {
        let lanes = simd.lanes();
        for k in [0, 1, lanes - 1, lanes, lanes + 1, 3 * lanes + 5] {
            let (src_stride, dst_stride) = (k + 2, lanes + 3);
            let src = random.floats(lanes * src_stride);
            let mut dst = vec![99.0; k * dst_stride];
            simd.transpose(&src, src_stride, &mut dst, dst_stride, k);
            for (i, &x) in dst.iter().enumerate() {
                let (r, c) = (i / dst_stride, i % dst_stride);
                assert_eq!(x, if c < lanes { src[c * src_stride + r] } else { 99.0 }, "{:?} {k}", simd.level());
            }
        }
    }
}

#[test]
fn tiles_match_plain_sums_and_do_not_depend_on_their_size() {
    let mut random = Random(4);
    for simd in levels() {
        let lanes = simd.lanes();
        for (m, n, k) in [(1, 1, 1), (2, 2, 5), (3, 3, 64), (7, 2, 33), (8, 4, 17), (13, 5, 40), (31, 1, 9)] {
            let n = n * lanes;
            let (a_stride, b_stride, c_stride) = (k + 1, n + 3, n + 2);
            let (a, b) = (random.floats(m * a_stride), random.floats(k * b_stride));
            for add in [false, true] {
                let start = random.floats(m * c_stride);
                let tile = |first: usize, m: usize, c: &mut [f32]| {
                    let (a, b) = (&a[first * a_stride..], &b[..]);
                    simd.tile(Tile { a, a_stride, b, b_stride, c, c_stride, m, n, k, add });
                };
                let mut c = start.clone();
                tile(0, m, &mut c);
                for (i, &sum) in c.iter().enumerate() {
                    let (row, column) = (i / c_stride, i % c_stride);
                    if column >= n {
                        assert_eq!(sum, start[i]);
                        continue;
                    }
                    let products =
                        (0..k).map(|k| f64::from(a[row * a_stride + k]) * f64::from(b[k * b_stride + column]));
                    let expected = products.sum::<f64>() + if add { f64::from(start[i]) } else { 0.0 };
                    close(sum, expected, k as f64, &format!("{:?} {m} {n} {k}", simd.level()));
                }
                for row in 0..m {
                    let mut alone = start[row * c_stride..(row + 1) * c_stride].to_vec();
                    tile(row, 1, &mut alone);
                    assert_eq!(alone[..n], c[row * c_stride..row * c_stride + n], "{:?} row {row}", simd.level());
                }
            }
        }
    }
}

#[test]
fn swiglu_matches_its_formula_out_to_the_ends() {
    for simd in levels() {
        for n in [0, 1, 5, 16, 37, 1000] {
            let gate: Vec<f32> = (0..n).map(|i| (i as f32 - n as f32 / 2.0) * 0.37).collect();
            let up: Vec<f32> = (0..n).map(|i| 1.0 + i as f32 / 8.0).collect();
            let mut out = vec![99.0; n];
            simd.swiglu(&gate, &up, &mut out);
            for ((&x, &g), &u) in out.iter().zip(&gate).zip(&up) {
                let (g, u) = (f64::from(g), f64::from(u));
                close(x, g / (1.0 + (-g).exp()) * u, 1e-3, &format!("{:?} {g}", simd.level()));
            }
        }
        let mut out = [0.0; 2];
        simd.swiglu(&[-1e30, 1e30], &[1.0, 1.0], &mut out);
        assert!(out[0].abs() < 1e-3 && out[1] == 1e30, "{:?} {out:?}", simd.level());
    }
}

#[test]
fn gelu_keeps_its_ends() {
    for simd in levels() {
        let mut out = [0.0; 5];
        simd.gelu(&[-1e30, -3.0, 0.0, 3.0, 1e30], &mut out);
        assert!(out[0].abs() < 1e-3 && out[2] == 0.0 && out[4] == 1e30, "{:?} {out:?}", simd.level());
        // 3 / 2 (1 + erf(3 / sqrt(2)))
        close(out[1], -0.004_049_694_099, 1.0, &format!("{:?}", simd.level()));
        close(out[3], 2.995_950_305_901, 1e-6, &format!("{:?}", simd.level()));
        simd.geglu(&[-1e30, 1e30, 3.0, 0.0, -3.0], &[1.0; 5], &mut out);
        assert!(out[0].abs() < 1e-3 && out[1] == 1e30 && out[3] == 0.0, "{:?} {out:?}", simd.level());
        close(out[2], 2.996_362_607_9, 1e-6, &format!("{:?}", simd.level()));
    }
}

#[test]
fn softmax_in_stretches_equals_softmax_at_once() {
    let mut random = Random(5);
    for simd in levels() {
        for n in [1, 2, 15, 16, 17, 64, 100] {
            let scores: Vec<f32> = random.floats(n).iter().map(|x| 30.0 * x).collect();
            let mut s = scores.clone();
            let (max, sum) = simd.softmax(&mut s, -1e30);
            assert_eq!(max, scores.iter().copied().fold(f32::MIN, f32::max));
            // The difference is rounded to f32 by definition: at 60 that alone is 2e-6 of the result.
            let exact: Vec<f64> = scores.iter().map(|&x| f64::from(x - max).exp()).collect();
            for (&x, &e) in s.iter().zip(&exact) {
                assert!((f64::from(x) - e).abs() <= 1e-6 * e, "{:?} {n}: {x}, expected {e}", simd.level());
            }
            close(sum, exact.iter().sum(), 1.0, &format!("{:?} {n}", simd.level()));
            // A running maximum above all of them is kept.
            let mut s = scores.clone();
            let (max, sum) = simd.softmax(&mut s, 31.0);
            assert_eq!(max, 31.0);
            close(sum, scores.iter().map(|&x| f64::from(x - 31.0).exp()).sum(), 1e-3, "running maximum");
        }
    }
}
