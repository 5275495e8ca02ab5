//! `bench --kernels`: GPU time of single kernels at the shapes of Llama-2-7B, beside what the device can do at most.
//!
//! Each line is the best of several submissions of many repetitions, after a quarter of a second that lets the GPU's clock rise; weights are
//! uploaded several times where they would else stay in the GPU's cache. The ceilings are measured first, in the same way: multiply-adds that touch no
//! memory, and a copy inside the device, whose reads and writes both count.

use std::sync::Arc;
use std::time::{Duration, Instant};

use half::f16;
use runahead::Result;
use runahead::cancel::{Cancel, Wait};
use runahead::dtype::{Dtype, Scalar};
use runahead::engine::DeviceId;
use runahead::error::Error;
use runahead::gpu::enumerate;
use runahead::kernels::wgsl::{CEILING_LEN, Matrix, Tensor, Wgsl};
use runahead::kernels::{
    Attention, AttentionDecode, Epilogue, HeadDims, Kernels, MatrixSource, Phase, Product, RowOrder, ScoreRules,
};
use runahead::weights::WeightTensor;
use serde::Serialize;

use super::args::{BenchArgs, Output};
use crate::cli::failure::Failure;
use crate::cli::output;

/// Repetitions take this long at least, beside the time it takes to notice their end.
const LEAST: Duration = Duration::from_millis(30);
/// Bytes that no cache holds.
const UNCACHED_BYTES: usize = 256 << 20;
/// Llama-2-7B: width of the residual stream, of the MLP, and heads.
const HIDDEN: usize = 4096;
const FFN: usize = 11008;
const HEADS: HeadDims = HeadDims { heads: 32, kv_heads: 32, head_dim: 128 };
/// What scores are multiplied by, `head_dim^-1/2`.
const SCALE: f32 = 0.088_388;
/// Formats whose products are measured.
const FORMATS: [Dtype; 3] = [Dtype::F16, Dtype::Q8_0, Dtype::Q4K];

/// Runs the command on the first GPU that is named, else on the machine's first.
pub fn run(args: &BenchArgs, filter: &str, cancel: &Cancel) -> std::result::Result<(), Failure> {
    let index = match args.devices.first() {
        None => 0,
        Some(DeviceId::Gpu(index)) => *index,
        Some(DeviceId::Cpu) => return Err(Failure::Usage("--kernels measures GPUs".to_owned())),
    };
    let named = |case: &Case| format!("{} {}", case.operation(), case.shape()).contains(filter);
    let cases: Vec<Case> = Case::all().filter(named).collect();
    if cases.is_empty() {
        return Err(Failure::Usage(format!("--kernels: none is named like `{filter}`")));
    }
    let adapters = enumerate();
    let adapter = adapters.get(index).ok_or_else(|| Error::NoAdapter {
        name: DeviceId::Gpu(index).to_string(),
        available: adapters.iter().map(|a| a.info().name.clone()).collect::<Vec<_>>().join(", "),
    })?;
    let k = Wgsl::new(Arc::new(adapter.open()?))?;
    output::note(&format!("{}, tier {}", k.name(), k.gpu().caps().tier.name()));
    let mut bench = Bench { k, cancel, form: args.output, lines: Vec::new(), ceilings: [f64::INFINITY; 2] };
    bench.ceilings = bench.ceilings()?;
    let [flops, bandwidth] = bench.ceilings;
    output::note(&format!("at most {:.3} TFLOP/s and {:.0} GB/s", flops / 1e12, bandwidth / 1e9));
    for case in cases {
        match bench.case(&case) {
            Err(Failure::Library(error @ Error::Memory { .. })) => {
                output::note(&format!("left out: {} {}: {error}", case.operation(), case.shape()));
            }
            other => other?,
        }
    }
    if args.output == Output::Json { output::json_pretty(&bench.lines) } else { Ok(()) }
}

/// A kernel and its sizes.
enum Case {
    Product { dtype: Dtype, n: usize, width: usize, epilogue: Epilogue, rows: usize },
    MatVec { dtype: Dtype, n: usize, width: usize, epilogue: Epilogue },
    Attention { rows: usize, position: usize },
    AttentionDecode { keys: usize },
}

impl Case {
    fn all() -> impl Iterator<Item = Self> {
        let matrices =
            [(HIDDEN, HIDDEN, Epilogue::Add), (2 * FFN, HIDDEN, Epilogue::SwiGlu), (HIDDEN, FFN, Epilogue::Add)];
        let of_formats = move || FORMATS.into_iter().flat_map(move |dtype| matrices.map(|m| (dtype, m)));
        let products = of_formats().flat_map(|(dtype, (n, width, epilogue))| {
            [512, 1024, 4096].map(|rows| Case::Product { dtype, n, width, epilogue, rows })
        });
        let attention = [(1024, 0), (4096, 0), (1024, 15 << 10), (1024, 127 << 10)]
            .map(|(rows, position)| Case::Attention { rows, position });
        let decode = of_formats().map(|(dtype, (n, width, epilogue))| Case::MatVec { dtype, n, width, epilogue });
        let decode_attention = [1024, 4096, 16384].map(|keys| Case::AttentionDecode { keys });
        products.chain(attention).chain(decode).chain(decode_attention)
    }

    fn operation(&self) -> String {
        match self {
            Case::Product { dtype, epilogue, .. } => format!("product {} {epilogue:?}", dtype.name()),
            Case::MatVec { dtype, epilogue, .. } => format!("matvec {} {epilogue:?}", dtype.name()),
            Case::Attention { .. } => "attention".to_owned(),
            Case::AttentionDecode { .. } => "attention_decode".to_owned(),
        }
    }

    fn shape(&self) -> String {
        match self {
            Case::Product { n, width, rows, .. } => format!("{rows} x {n} x {width}"),
            Case::MatVec { n, width, .. } => format!("{n} x {width}"),
            Case::Attention { rows, position } => format!("{rows} rows at {position}"),
            Case::AttentionDecode { keys } => format!("{keys} keys"),
        }
    }
}

/// What limits a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    /// Floating-point operations.
    Flop,
    /// Bytes of memory.
    Bytes,
}

/// One kernel's line; `rate` in TFLOP/s or GB/s, `share` of the device's ceiling.
#[derive(Clone, Debug, Serialize)]
struct Line {
    operation: String,
    shape: String,
    rate: f64,
    unit: &'static str,
    share: f64,
    microseconds: f64,
    kernels: Vec<String>,
}

struct Bench<'a> {
    k: Wgsl,
    cancel: &'a Cancel,
    form: Output,
    lines: Vec<Line>,
    /// Operations and bytes a second, once they are measured.
    ceilings: [f64; 2],
}

type Done = std::result::Result<(), Failure>;

impl Bench<'_> {
    /// What the device does at most.
    fn ceilings(&self) -> Result<[f64; 2]> {
        let out = self.k.tensor("ceiling", Scalar::F32, CEILING_LEN)?;
        let mut flop = 0.0;
        let seconds = self.best(|rec, _| {
            flop = self.k.record_ceiling(rec, &out, 1000)?;
            Ok(())
        })?;
        let bytes = UNCACHED_BYTES.min(usize::try_from(self.k.gpu().caps().max_binding_bytes).unwrap_or(usize::MAX));
        let from = self.k.tensor("from", Scalar::F32, bytes / 16 * 4)?;
        let read = self.best(|rec, _| self.k.record_read(rec, &from, &out))?;
        Ok([flop / seconds, bytes as f64 / read])
    }

    fn case(&mut self, case: &Case) -> Done {
        match *case {
            Case::Product { dtype, n, width, epilogue, rows } => {
                let weight = self.weight(dtype, n, width, epilogue)?;
                let (x, out) = self.input_and_output(rows, n, width, epilogue)?;
                let flop = 2.0 * (rows * n * width) as f64;
                self.line(case, (flop, Bound::Flop), |k, rec, _| {
                    k.product(rec, product(&x, &weight, &out, rows, epilogue, Phase::Prefill))
                })
            }
            Case::MatVec { dtype, n, width, epilogue } => {
                let bytes = dtype.bytes(width)? * n;
                let copies = UNCACHED_BYTES.div_ceil(bytes);
                let weights =
                    (0..copies).map(|_| self.weight(dtype, n, width, epilogue)).collect::<Result<Vec<_>>>()?;
                let (x, out) = self.input_and_output(1, n, width, epilogue)?;
                self.line(case, (bytes as f64, Bound::Bytes), |k, rec, i| {
                    k.product(rec, product(&x, &weights[i % copies], &out, 1, epilogue, Phase::Decode))
                })
            }
            Case::Attention { rows, position } => {
                let [qkv, k, v, out] = self.attention_tensors(rows, position + rows)?;
                let pairs = (0..rows).map(|row| (position + row + 1) as f64).sum::<f64>();
                let flop = 4.0 * pairs * HEADS.q_width() as f64;
                let (qkv, k, v, out, bias) = (&qkv, &k, &v, &out, None);
                self.line(case, (flop, Bound::Flop), |kernels, rec, _| {
                    let (rows, dense_keys, dims, scale, rules) = (0..rows, 0, HEADS, SCALE, ScoreRules::default());
                    let kv_heads = 0..dims.kv_heads;
                    kernels.attention(
                        rec,
                        Attention { qkv, k, v, out, rows, position, dense_keys, kv_heads, dims, scale, rules, bias },
                    )
                })
            }
            Case::AttentionDecode { keys } => {
                let [qkv, k, v, out] = self.attention_tensors(1, keys)?;
                let partial =
                    self.zeros("partial", Scalar::F32, self.k.decode_splits() * HEADS.heads, HEADS.head_dim + 2)?;
                let bytes = (2 * keys * HEADS.kv_width() * 2) as f64;
                let (qkv, k, v, out, partial, bias) = (&qkv, &k, &v, &out, &partial, None);
                self.line(case, (bytes, Bound::Bytes), |kernels, rec, _| {
                    let (position, dims, scale, rules) = (keys - 1, HEADS, SCALE, ScoreRules::default());
                    let op = AttentionDecode { qkv, k, v, out, partial, position, dims, scale, rules, bias };
                    kernels.attention_decode(rec, op)
                })
            }
        }
    }

    fn input_and_output(&self, rows: usize, n: usize, width: usize, epilogue: Epilogue) -> Result<(Tensor, Tensor)> {
        let (scalar, columns) = match epilogue {
            Epilogue::Add => (Scalar::F32, n),
            _ => (self.k.activation(), if epilogue.gated() { n / 2 } else { n }),
        };
        Ok((self.zeros("x", self.k.activation(), rows, width)?, self.zeros("out", scalar, rows, columns)?))
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

    fn zeros(&self, label: &str, scalar: Scalar, rows: usize, width: usize) -> Result<Tensor> {
        self.k.tensor(label, scalar, rows.next_multiple_of(self.k.row_multiple()) * width)
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

    /// Times a kernel and prints its line; `work` is what one repetition does.
    fn line(
        &mut self,
        case: &Case,
        (work, bound): (f64, Bound),
        record: impl Fn(&Wgsl, &mut <Wgsl as Kernels>::Recording, usize) -> Result<()>,
    ) -> Done {
        let seconds = self.best(|rec, i| record(&self.k, rec, i))?;
        let mut one = self.k.begin();
        record(&self.k, &mut one, 0)?;
        let [flops, bandwidth] = self.ceilings;
        let (unit, scale, ceiling) = match bound {
            Bound::Flop => ("TFLOP/s", 1e12, flops),
            Bound::Bytes => ("GB/s", 1e9, bandwidth),
        };
        let line = Line {
            operation: case.operation(),
            shape: case.shape(),
            rate: work / seconds / scale,
            unit,
            share: work / seconds / ceiling,
            microseconds: seconds * 1e6,
            kernels: one.kernels().map(str::to_owned).collect(),
        };
        line.print(self.form, self.lines.is_empty())?;
        self.lines.push(line);
        Ok(())
    }

    /// Seconds of one repetition, at best.
    fn best(&self, mut record: impl FnMut(&mut <Wgsl as Kernels>::Recording, usize) -> Result<()>) -> Result<f64> {
        let mut time = |repetitions: usize| -> Result<Duration> {
            let wait = Wait::new(self.cancel);
            let mut rec = self.k.begin();
            (0..repetitions).try_for_each(|i| record(&mut rec, i))?;
            let point = self.k.submit(rec, &wait)?;
            let begun = Instant::now();
            self.k.wait(&point, &wait)?;
            Ok(begun.elapsed())
        };
        time(1)?;
        let once = time(2)? / 2;
        let repetitions = (LEAST.as_secs_f64() / once.as_secs_f64()).clamp(1.0, 1000.0) as usize;
        let (begun, mut best) = (Instant::now(), f64::INFINITY);
        while begun.elapsed() < Duration::from_millis(250) {
            best = best.min(time(repetitions)?.as_secs_f64() / repetitions as f64);
        }
        Ok(best)
    }
}

impl Line {
    fn print(&self, form: Output, is_first: bool) -> Done {
        let Self { operation, shape, rate, unit, share, microseconds, kernels } = self;
        let kernels = kernels.join(", ");
        match form {
            Output::Md => {
                if is_first {
                    output::line("| operation | shape | rate | of the ceiling | microseconds | kernels |")?;
                    output::line("|---|---|---:|---:|---:|---|")?;
                }
                let share = 100.0 * share;
                let digits = if *rate < 1.0 { 4 } else { 1 };
                output::line(&format!(
                    "| {operation} | {shape} | {rate:.digits$} {unit} | {share:.0} % | {microseconds:.1} | {kernels} |"
                ))
            }
            Output::Csv => {
                if is_first {
                    output::line("operation,shape,rate,unit,share,microseconds,kernels")?;
                }
                output::line(&format!("{operation},{shape},{rate},{unit},{share},{microseconds},\"{kernels}\""))
            }
            Output::Jsonl => {
                let text = serde_json::to_string(self).map_err(|e| Failure::Other(format!("JSON: {e}")))?;
                output::line(&text)
            }
            Output::Json => Ok(()),
        }
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
