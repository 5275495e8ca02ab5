//! GPU time of single kernels at the shapes of real models: `cargo bench --bench kernels [-- FILTER]`.
//!
//! Each line is the best of several submissions of many repetitions, after a quarter of a second that lets the GPU's clock rise; weights are
//! uploaded several times where they would else stay in the GPU's cache.

use std::sync::Arc;
use std::time::{Duration, Instant};

use half::f16;
use runahead::cancel::{Cancel, Wait};
use runahead::dtype::{Dtype, Scalar};
use runahead::gpu::enumerate;
use runahead::kernels::wgsl::{Matrix, Tensor, Wgsl};
use runahead::kernels::{
    Attention, AttentionDecode, Epilogue, HeadDims, Kernels, MatrixSource, Phase, Product, RowOrder, ScoreRules,
};
use runahead::weights::WeightTensor;
use runahead::{Error, Result};

/// Repetitions take this long at least, beside the time it takes to notice their end.
const LEAST: Duration = Duration::from_millis(30);
/// Bytes of weights that no cache holds.
const UNCACHED_BYTES: usize = 256 << 20;
/// Llama-2-7B: width of the residual stream, of the MLP, and heads.
const HIDDEN: usize = 4096;
const FFN: usize = 11008;
const HEADS: HeadDims = HeadDims { heads: 32, kv_heads: 32, head_dim: 128 };

fn main() -> Result<()> {
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let adapters = enumerate();
    let adapter = adapters.first().ok_or(Error::Unsupported { what: "machine without GPU", name: String::new() })?;
    let bench = Bench { k: Wgsl::new(Arc::new(adapter.open()?))?, filter };
    println!("{}, tier {}", bench.k.name(), bench.k.gpu().caps().tier.name());
    println!("| operation | shape | rate | microseconds | kernels |");
    println!("|---|---|---:|---:|---|");
    for dtype in [Dtype::F16, Dtype::Q8_0, Dtype::Q4_0] {
        bench.products(dtype)?;
    }
    bench.attention()?;
    for dtype in [Dtype::F16, Dtype::Q8_0, Dtype::Q4_0] {
        bench.decode_products(dtype)?;
    }
    bench.decode_attention()
}

struct Bench {
    k: Wgsl,
    filter: String,
}

impl Bench {
    fn products(&self, dtype: Dtype) -> Result<()> {
        for (n, width, epilogue) in
            [(HIDDEN, HIDDEN, Epilogue::Add), (2 * FFN, HIDDEN, Epilogue::SwiGlu), (HIDDEN, FFN, Epilogue::Add)]
        {
            let weight = self.weight(dtype, n, width, epilogue)?;
            for rows in [512, 1024, 4096] {
                let x = self.zeros("x", self.k.activation(), rows, width)?;
                let (scalar, columns) = self.output(epilogue, n);
                let out = self.zeros("out", scalar, rows, columns)?;
                let flop = 2.0 * (rows * n * width) as f64;
                let name = format!("product {} {epilogue:?}", dtype.name());
                self.line(&name, &format!("{rows} x {n} x {width}"), flop, "TFLOP/s", |rec, _| {
                    self.k.product(rec, product(&x, &weight, &out, rows, epilogue, Phase::Prefill))
                })?;
            }
        }
        Ok(())
    }

    fn decode_products(&self, dtype: Dtype) -> Result<()> {
        for (n, width, epilogue) in
            [(HIDDEN, HIDDEN, Epilogue::Add), (2 * FFN, HIDDEN, Epilogue::SwiGlu), (HIDDEN, FFN, Epilogue::Add)]
        {
            let bytes = dtype.bytes(width)? * n;
            let copies = UNCACHED_BYTES.div_ceil(bytes);
            let weights = (0..copies).map(|_| self.weight(dtype, n, width, epilogue)).collect::<Result<Vec<_>>>()?;
            let x = self.zeros("x", self.k.activation(), 1, width)?;
            let (scalar, columns) = self.output(epilogue, n);
            let out = self.zeros("out", scalar, 1, columns)?;
            let name = format!("matvec {} {epilogue:?}", dtype.name());
            self.line(&name, &format!("{n} x {width}"), bytes as f64 * 1e3, "GB/s", |rec, i| {
                self.k.product(rec, product(&x, &weights[i % copies], &out, 1, epilogue, Phase::Decode))
            })?;
        }
        Ok(())
    }

    fn attention(&self) -> Result<()> {
        for (rows, position) in [(1024, 0), (4096, 0), (1024, 15 << 10)] {
            let [qkv, k, v, out] = self.attention_tensors(rows, position + rows)?;
            let pairs = (0..rows).map(|row| (position + row + 1) as f64).sum::<f64>();
            let flop = 4.0 * pairs * HEADS.q_width() as f64;
            self.line("attention", &format!("{rows} rows at {position}"), flop, "TFLOP/s", |rec, _| {
                let (rows, dims, scale, rules) = (0..rows, HEADS, 0.088, ScoreRules::default());
                let op = Attention {
                    qkv: &qkv,
                    k: &k,
                    v: &v,
                    out: &out,
                    rows,
                    position,
                    dense_keys: 0,
                    dims,
                    scale,
                    rules,
                    bias: None,
                };
                self.k.attention(rec, op)
            })?;
        }
        Ok(())
    }

    fn decode_attention(&self) -> Result<()> {
        for keys in [1024, 4096, 16384] {
            let [qkv, k, v, out] = self.attention_tensors(1, keys)?;
            let partial =
                self.zeros("partial", Scalar::F32, self.k.decode_splits() * HEADS.heads, HEADS.head_dim + 2)?;
            let bytes = (2 * keys * HEADS.kv_width() * 2) as f64;
            self.line("attention_decode", &format!("{keys} keys"), bytes * 1e3, "GB/s", |rec, _| {
                let (position, dims, scale, rules) = (keys - 1, HEADS, 0.088, ScoreRules::default());
                let (qkv, k, v, out, partial) = (&qkv, &k, &v, &out, &partial);
                let op = AttentionDecode { qkv, k, v, out, partial, position, dims, scale, rules, bias: None };
                self.k.attention_decode(rec, op)
            })?;
        }
        Ok(())
    }

    fn attention_tensors(&self, rows: usize, keys: usize) -> Result<[Tensor; 4]> {
        let activation = self.k.activation();
        let keys = keys.next_multiple_of(self.k.key_tile());
        Ok([
            self.zeros("qkv", activation, rows, HEADS.qkv_width())?,
            self.zeros("k", Scalar::F16, keys, HEADS.kv_width())?,
            self.zeros("v", Scalar::F16, keys, HEADS.kv_width())?,
            self.zeros("out", activation, rows, HEADS.q_width())?,
        ])
    }

    fn output(&self, epilogue: Epilogue, n: usize) -> (Scalar, usize) {
        match epilogue {
            Epilogue::Add => (Scalar::F32, n),
            _ => (self.k.activation(), if epilogue.gated() { n / 2 } else { n }),
        }
    }

    fn zeros(&self, label: &str, scalar: Scalar, rows: usize, width: usize) -> Result<Tensor> {
        self.k.tensor(label, scalar, rows.next_multiple_of(self.k.row_tile()) * width)
    }

    /// A matrix whose blocks are all the same; what is in it changes no time.
    fn weight(&self, dtype: Dtype, n: usize, width: usize, epilogue: Epilogue) -> Result<Matrix> {
        let halves = if epilogue.gated() { 2 } else { 1 };
        let bytes = dtype.bytes(width)? * n / halves;
        let data = f16::from_f32(0.01).to_le_bytes().repeat(bytes / 2);
        let tensor =
            WeightTensor { name: "weight".to_owned(), dtype, shape: vec![n / halves, width], data: data.into() };
        let rows = if halves == 2 { RowOrder::Alternating } else { RowOrder::Stacked };
        self.k.matrix("weight", &MatrixSource { parts: vec![tensor; halves], rows })
    }

    /// Times a kernel and prints its line; `work` is what one repetition does, in the unit's millionth of a millionth.
    fn line(
        &self,
        name: &str,
        shape: &str,
        work: f64,
        unit: &str,
        record: impl Fn(&mut <Wgsl as Kernels>::Recording, usize) -> Result<()>,
    ) -> Result<()> {
        if !format!("{name} {shape}").contains(&self.filter) {
            return Ok(());
        }
        let time = |repetitions: usize| -> Result<Duration> {
            let wait = Wait::new(&Cancel::new());
            let mut rec = self.k.begin();
            (0..repetitions).try_for_each(|i| record(&mut rec, i))?;
            let point = self.k.submit(rec, &wait)?;
            let begun = Instant::now();
            self.k.wait(&point, &wait)?;
            Ok(begun.elapsed())
        };
        time(1)?;
        let mut one = self.k.begin();
        record(&mut one, 0)?;
        let kernels = one.kernels().collect::<Vec<_>>().join(", ");
        let once = time(2)? / 2;
        let repetitions = (LEAST.as_secs_f64() / once.as_secs_f64()).clamp(1.0, 1000.0) as usize;
        let (begun, mut best) = (Instant::now(), f64::INFINITY);
        while begun.elapsed() < Duration::from_millis(250) {
            best = best.min(time(repetitions)?.as_secs_f64() / repetitions as f64);
        }
        println!("| {name} | {shape} | {:.1} {unit} | {:.1} | {kernels} |", work / best / 1e12, best * 1e6);
        Ok(())
    }
}

fn product<'a>(
    x: &'a Tensor,
    weight: &'a Matrix,
    out: &'a Tensor,
    rows: usize,
    epilogue: Epilogue,
    phase: Phase,
) -> Product<'a, Wgsl> {
    Product { x, weight, out, rows: 0..rows, out_row: 0, epilogue, phase, bias: None }
}
