//! Poisoned tensors with a copy on the host, and comparisons that collect every failure of a table before they report.

use std::ops::Range;

use half::f16;
use runahead::Result;
use runahead::cancel::{Cancel, Wait};
use runahead::dtype::Scalar;
use runahead::kernels::Kernels;

use super::reference::Value;

/// Signalling NaNs with a payload. Read, they spoil a result; and any arithmetic on them sets the quiet bit, so a guard row that was
/// computed from guard rows differs from what it was, where a quiet NaN would come out as it went in.
const POISON_F32: u32 = 0x7F85_A5A5;
const POISON_F16: u16 = 0x7D5A;

/// Measured with one chain of f32 additions, the worst order there is: 6e-7 up to 576 terms, 1.3e-6 for the mean square of 2048.
const RELATIVE_F32: f64 = 2e-6;
/// Where activations are f16, matrix units take weights and probabilities rounded to f16 too: half an ulp is 2^-11.
const RELATIVE_F16: f64 = 1.25 / 2048.0;
/// Room for results that cancel to nothing.
const ABSOLUTE: f64 = 1e-9;
/// Wrong elements of one tensor that are printed one by one.
const SHOWN: usize = 3;

/// A wait without cancel.
pub fn wait() -> Wait {
    Wait::new(&Cancel::new())
}

/// Values as a tensor of this scalar holds them; stores to f16 saturate.
pub fn encode(scalar: Scalar, values: &[f32]) -> Vec<u8> {
    match scalar {
        Scalar::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Scalar::F16 => values.iter().flat_map(|v| f16::from_f32(v.clamp(-65504.0, 65504.0)).to_le_bytes()).collect(),
        Scalar::U32 => values.iter().flat_map(|v| (*v as u32).to_le_bytes()).collect(),
    }
}

/// The reverse of [`encode`].
pub fn decode(scalar: Scalar, bytes: &[u8]) -> Vec<f32> {
    match scalar {
        Scalar::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Scalar::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Scalar::U32 => bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f32).collect(),
    }
}

/// A tensor that holds `values`; an even number of them for F16.
pub fn tensor_from_f32<K: Kernels>(k: &K, scalar: Scalar, values: &[f32]) -> K::Tensor {
    let tensor = k.tensor("values", scalar, values.len()).unwrap();
    k.write(&tensor, 0, &encode(scalar, values)).unwrap();
    tensor
}

/// A U32 tensor.
pub fn tensor_from_u32<K: Kernels>(k: &K, values: &[u32]) -> K::Tensor {
    let tensor = k.tensor("ids", Scalar::U32, values.len()).unwrap();
    k.write(&tensor, 0, bytemuck::cast_slice(values)).unwrap();
    tensor
}

/// Elements of a tensor as bytes, after all that was submitted before.
pub fn read_bytes<K: Kernels>(k: &K, tensor: &K::Tensor, range: Range<usize>) -> Vec<u8> {
    let mut rec = k.begin();
    let download = k.download(&mut rec, tensor, range).unwrap();
    let point = k.submit(rec, &wait()).unwrap();
    collect_bytes(k, download, &point)
}

/// Elements of an F32 or F16 tensor.
pub fn read_f32<K: Kernels>(k: &K, scalar: Scalar, tensor: &K::Tensor, range: Range<usize>) -> Vec<f32> {
    decode(scalar, &read_bytes(k, tensor, range))
}

/// What a download of a submission brings.
pub fn collect_bytes<K: Kernels>(k: &K, download: K::Download, after: &K::Submitted) -> Vec<u8> {
    let mut bytes = Vec::new();
    k.collect(download, after, &wait(), &mut |part| bytes.extend_from_slice(part)).unwrap();
    bytes
}

/// A tensor `[rows, width]` and what was written to it.
pub struct Field<K: Kernels> {
    /// On the device.
    pub tensor: K::Tensor,
    scalar: Scalar,
    rows: usize,
    width: usize,
    host: Vec<u8>,
}

impl<K: Kernels> Field<K> {
    /// Elements for which `fill(row, column)` has no value are poisoned.
    pub fn new(
        k: &K,
        scalar: Scalar,
        rows: usize,
        width: usize,
        mut fill: impl FnMut(usize, usize) -> Option<f32>,
    ) -> Self {
        let mut host = Vec::with_capacity(rows * width * scalar.bytes());
        for at in 0..rows * width {
            match (fill(at / width, at % width), scalar) {
                (Some(value), _) => host.extend(encode(scalar, &[value])),
                (None, Scalar::F16) => host.extend(POISON_F16.to_le_bytes()),
                (None, _) => host.extend(POISON_F32.to_le_bytes()),
            }
        }
        let tensor = k.tensor("field", scalar, rows * width).unwrap();
        k.write(&tensor, 0, &host).unwrap();
        Self { tensor, scalar, rows, width, host }
    }

    /// Poison everywhere.
    pub fn poisoned(k: &K, scalar: Scalar, rows: usize, width: usize) -> Self {
        Self::new(k, scalar, rows, width, |_, _| None)
    }

    /// A row as written, after rounding to the scalar.
    pub fn row(&self, row: usize) -> Vec<f64> {
        let bytes = self.width * self.scalar.bytes();
        decode(self.scalar, &self.host[row * bytes..(row + 1) * bytes]).into_iter().map(f64::from).collect()
    }

    /// Everything, as it stands on the device now.
    fn read(&self, k: &K) -> Vec<u8> {
        read_bytes(k, &self.tensor, 0..self.rows * self.width)
    }
}

/// Collects what goes wrong in one operation's table.
pub struct Check {
    op: &'static str,
    relative: f64,
    cases: usize,
    failures: Vec<String>,
}

impl Check {
    /// A table without failures so far.
    pub fn new<K: Kernels>(k: &K, op: &'static str) -> Self {
        let relative = if k.activation() == Scalar::F16 { RELATIVE_F16 } else { RELATIVE_F32 };
        Self { op, relative, cases: 0, failures: Vec::new() }
    }

    /// Records one operation and submits it; an error counts as a failure and gives `false`.
    pub fn run<K: Kernels>(&mut self, k: &K, case: &str, record: impl FnOnce(&mut K::Recording) -> Result<()>) -> bool {
        self.cases += 1;
        let mut rec = k.begin();
        let done = record(&mut rec).and_then(|()| k.submit(rec, &wait()).map(drop));
        self.expect(case, "no error", done.is_ok(), || format!("{done:?}"));
        done.is_ok()
    }

    /// A plain condition.
    pub fn expect(&mut self, case: &str, what: &str, holds: bool, found: impl FnOnce() -> String) {
        if !holds {
            self.failures.push(format!("{} {case}: expected {what}, found {}", self.op, found()));
        }
    }

    /// Rows `first_row..` must hold `want` from column 0 on; every other bit of the field must be as it was written.
    pub fn changed<K: Kernels>(
        &mut self,
        k: &K,
        case: &str,
        what: &str,
        field: &Field<K>,
        first_row: usize,
        want: &[Vec<Value>],
    ) {
        let bytes = field.read(k);
        let (got, size) = (decode(field.scalar, &bytes), field.scalar.bytes());
        let mut wrong = Vec::new();
        for (at, &got) in got.iter().enumerate() {
            let (row, column) = (at / field.width, at % field.width);
            let value = row.checked_sub(first_row).and_then(|r| want.get(r)).and_then(|r| r.get(column));
            let (before, after) = (&field.host[at * size..][..size], &bytes[at * size..][..size]);
            if let Some(value) = value {
                let (want, tolerance) = self.tolerance(field.scalar, *value);
                let error = (f64::from(got) - want).abs();
                if error.is_nan() || error > tolerance {
                    wrong.push(format!(
                        "[{row}, {column}] got {got}, want {want} (off by {error:.3e}, tolerance {tolerance:.3e})"
                    ));
                }
            } else if before != after {
                wrong.push(format!("[{row}, {column}] must stay {before:02x?}, became {after:02x?}"));
            }
        }
        if !wrong.is_empty() {
            let shown = wrong[..wrong.len().min(SHOWN)].join("; ");
            self.failures.push(format!("{} {case}: {what}: {} wrong: {shown}", self.op, wrong.len()));
        }
    }

    /// Every bit of an input must be as it was written.
    pub fn unchanged<K: Kernels>(&mut self, k: &K, case: &str, what: &str, field: &Field<K>) {
        self.changed(k, case, what, field, 0, &[]);
    }

    /// The value as the scalar can hold it, and how far off a result may be.
    fn tolerance(&self, scalar: Scalar, value: Value) -> (f64, f64) {
        let tolerance = self.relative * value.scale + if value.scale > 0.0 { ABSOLUTE } else { 0.0 };
        match scalar {
            Scalar::F16 => {
                let want = value.want.clamp(-65504.0, 65504.0);
                let ulp = 2f64.powi(want.abs().max(2f64.powi(-14)).log2().floor() as i32 - 10);
                (want, tolerance + ulp)
            }
            _ => (value.want, tolerance),
        }
    }

    /// The failures so far.
    pub fn failures(&self) -> &[String] {
        &self.failures
    }

    /// Reports all failures at once.
    pub fn finish(self) {
        assert!(self.cases > 0, "{}: the table is empty", self.op);
        let n = self.failures.len();
        assert!(n == 0, "{n} failures in {} cases:\n{}", self.cases, self.failures.join("\n"));
    }
}
