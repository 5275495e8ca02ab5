//! The kernel suite on the CPU adapter at several instruction sets, and what holds for this adapter alone.

use std::time::{Duration, Instant};

use runahead::Error;
use runahead::cancel::{Cancel, Wait};
use runahead::config::{NormKind, RopePairs};
use runahead::dtype::{Dtype, Scalar};
use runahead::kernels::cpu::{Cpu, Level};
use runahead::kernels::{Attention, Epilogue, HeadDims, Kernels, Norm, Phase, Product, RopeCache, ScoreRules};

use super::harness::{read_bytes, read_f32, tensor_from_f32, wait};
use super::problems::single;
use super::reference::Random;

/// Three threads, so that tasks are shared unevenly; the fastest level where the CPU lacks the one asked for.
fn cpu(level: Level) -> Cpu {
    Cpu::with_level("cpu", 3, if level.available() { level } else { Level::best() }).unwrap()
}

mod best {
    kernel_suite!(&super::cpu(super::Level::best()));
}

mod portable {
    kernel_suite!(&super::cpu(super::Level::Portable));
}

mod avx2 {
    kernel_suite!(&super::cpu(super::Level::Avx2));
}

/// A batch of rows and the same rows one by one, or at another place, give the same bits.
#[test]
fn rows_do_not_depend_on_their_batch() {
    for level in Level::ALL.into_iter().filter(|level| level.available()) {
        let k = &cpu(level);
        let random = &mut Random::new(21);
        for (dtype, width, n) in [(Dtype::Q4_1, 160, 70), (Dtype::F16, 100, 33), (Dtype::F32, 2500, 40)] {
            let rows = 37;
            let weight = k.matrix("weight", &single(random, dtype, n, width)).unwrap();
            let x = tensor_from_f32(k, Scalar::F32, &random.values(rows * width));
            let product = |rows: std::ops::Range<usize>, epilogue| {
                let out = k.tensor("out", Scalar::F32, 37 * n).unwrap();
                let (mut rec, out_row, x, weight) = (k.begin(), rows.start, &x, &weight);
                let phase = Phase::Prefill;
                k.product(
                    &mut rec,
                    Product { x, weight, out: &out, rows: rows.clone(), out_row, epilogue, phase, bias: None },
                )
                .unwrap();
                k.submit(rec, &wait()).unwrap();
                let n = if epilogue == Epilogue::SwiGlu { n / 2 } else { n };
                read_bytes(k, &out, rows.start * n..rows.end * n)
            };
            for epilogue in [Epilogue::Store, Epilogue::SwiGlu] {
                if epilogue == Epilogue::SwiGlu && n % 2 == 1 {
                    continue;
                }
                let all = product(0..rows, epilogue);
                let parts = [0..1, 1..9, 9..25, 25..37].map(|rows| product(rows, epilogue)).concat();
                assert!(all == parts, "{level:?} {dtype:?} {epilogue:?}");
            }
        }
        let dims = HeadDims { heads: 6, kv_heads: 2, head_dim: 20 };
        let (rows, position) = (70, 100);
        let qkv = tensor_from_f32(k, Scalar::F32, &random.values(rows * dims.qkv_width()));
        let keys = tensor_from_f32(k, Scalar::F16, &random.values((position + rows) * dims.kv_width()));
        let values = tensor_from_f32(k, Scalar::F16, &random.values((position + rows) * dims.kv_width()));
        let attention = |rows: std::ops::Range<usize>| {
            let out = k.tensor("out", Scalar::F32, 70 * dims.q_width()).unwrap();
            let mut rec = k.begin();
            let (qkv, k_cache, v, scale) = (&qkv, &keys, &values, 0.3);
            let position = position + rows.start;
            let op = Attention {
                qkv,
                k: k_cache,
                v,
                out: &out,
                rows: rows.clone(),
                position,
                dense_keys: 0,
                kv_heads: 0..dims.kv_heads,
                dims,
                scale,
                rules: ScoreRules::default(),
                bias: None,
            };
            k.attention(&mut rec, op).unwrap();
            k.submit(rec, &wait()).unwrap();
            read_bytes(k, &out, rows.start * dims.q_width()..rows.end * dims.q_width())
        };
        let parts = [0..1, 1..16, 16..17, 17..70].map(attention).concat();
        assert!(attention(0..rows) == parts, "{level:?} attention");
    }
}

/// A cancel is seen inside one long product. The promise is 100 ms; the test allows for a machine that is busy with other things.
#[test]
fn a_cancel_ends_a_long_product() {
    let k = &cpu(Level::Portable);
    let random = &mut Random::new(22);
    // 275 GFLOP: seconds at this level, on any machine.
    let (rows, n, width) = (16384, 4096, 2048);
    let weight = k.matrix("weight", &single(random, Dtype::Q8_0, n, width)).unwrap();
    let x = k.tensor("x", Scalar::F32, rows * width).unwrap();
    let out = k.tensor("out", Scalar::F32, rows * n).unwrap();
    let mut rec = k.begin();
    let (epilogue, phase) = (Epilogue::Store, Phase::Prefill);
    k.product(
        &mut rec,
        Product { x: &x, weight: &weight, out: &out, rows: 0..rows, out_row: 0, epilogue, phase, bias: None },
    )
    .unwrap();
    let download = k.download(&mut rec, &out, 0..4).unwrap();
    let cancel = Cancel::new();
    let asked = std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            cancel.cancel();
            Instant::now()
        });
        let result = k.submit(rec, &Wait::new(&cancel));
        assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
        asked.join().unwrap()
    });
    let late = asked.elapsed();
    assert!(late < Duration::from_secs(4), "seen after {late:?}");
    // The adapter goes on working, and what was not computed is not shown.
    let done = k.submit(k.begin(), &wait()).unwrap();
    assert!(k.collect(download, &done, &wait(), &mut |_| panic!("shown")).is_err());
}

/// Submissions from several threads wait for one another.
#[test]
fn threads_share_an_adapter() {
    let k = &cpu(Level::best());
    let random = &mut Random::new(23);
    let (rows, width) = (64, 256);
    let x = tensor_from_f32(k, Scalar::F32, &random.values(rows * width));
    let weight = k.matrix("weight", &single(random, Dtype::Q4_0, width, width)).unwrap();
    let out = k.tensor("out", Scalar::F32, rows * width).unwrap();
    let submit = |n: usize| {
        for _ in 0..n {
            let (mut rec, x, weight, out) = (k.begin(), &x, &weight, &out);
            let (epilogue, phase) = (Epilogue::Add, Phase::Prefill);
            k.product(&mut rec, Product { x, weight, out, rows: 0..rows, out_row: 0, epilogue, phase, bias: None })
                .unwrap();
            k.submit(rec, &wait()).unwrap();
        }
    };
    submit(1);
    let once = read_f32(k, Scalar::F32, &out, 0..rows * width);
    std::thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(|| submit(5)))));
    let all = read_f32(k, Scalar::F32, &out, 0..rows * width);
    for (once, all) in once.iter().zip(all) {
        assert!((16.0 * once - all).abs() <= 1e-4 * once.abs().max(1.0), "{once} sixteen times is not {all}");
    }
}

/// What the contract leaves open and this adapter refuses: one tensor twice in an operation, other types, no threads, a level that is not there.
#[test]
fn refusals_of_this_adapter() {
    let k = &cpu(Level::best());
    let mut rec = k.begin();
    let (a, b) = (k.tensor("a", Scalar::F32, 64).unwrap(), k.tensor("b", Scalar::F32, 64).unwrap());
    let half = k.tensor("half", Scalar::F16, 64).unwrap();
    let norm = |rec: &mut _, x, out| {
        k.norm(
            rec,
            Norm { x, weight: &b, out, rows: 0..1, width: 64, eps: 0.0, bias: None, kind: NormKind::Rms, add: false },
        )
    };
    assert!(norm(&mut rec, &a, &a).is_err());
    assert!(norm(&mut rec, &half, &a).is_err());
    assert!(norm(&mut rec, &a, &half).is_err());
    let dims = HeadDims { heads: 2, kv_heads: 1, head_dim: 4 };
    let pairs = RopePairs::Adjacent;
    let rope = RopeCache {
        qkv: &a,
        angles: &b,
        k: &half,
        v: &half,
        ring: false,
        rows: 0..1,
        position: 0,
        dims,
        pairs,
        rotary: dims.head_dim,
        norm: None,
    };
    assert!(k.rope_cache(&mut rec, rope).is_err());
    k.submit(rec, &wait()).unwrap();
    assert!(Cpu::new("cpu", 0).is_err());
    for level in Level::ALL.into_iter().filter(|level| !level.available()) {
        assert!(Cpu::with_level("cpu", 1, level).is_err(), "{level:?}");
    }
}

/// The largest tensor that the machine has memory for costs none until it is written.
#[test]
fn fresh_tensors_take_no_memory() {
    let k = &cpu(Level::best());
    let Some(free) = k.free_memory() else { return };
    for scalar in [Scalar::F32, Scalar::F16] {
        let elements = free as usize / 2 / scalar.bytes() / 4 * 4;
        let tensor = k.tensor("cache", scalar, elements).unwrap();
        assert_eq!(read_bytes(k, &tensor, elements - 4..elements), vec![0; 4 * scalar.bytes()]);
        let error = k.tensor("cache", scalar, elements * 4).unwrap_err();
        assert!(matches!(error, Error::Memory { .. }), "{error}");
    }
}
