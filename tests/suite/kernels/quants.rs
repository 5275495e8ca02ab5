//! Quantised blocks against the values that another implementation decodes; see `tests/data/README.md`.

use runahead::dtype::{Dtype, Scalar};
use runahead::kernels::{Embed, Kernels, MatrixSource, RowOrder};
use runahead::weights::WeightTensor;

use super::harness::{read_f32, tensor_from_u32, wait};
use super::reference::decode_weight;

/// Blocks of a format, a few rows of 256 elements, and their values.
fn vectors(dtype: Dtype) -> (WeightTensor, Vec<f32>) {
    let all: serde_json::Value = serde_json::from_str(include_str!("../../data/quants.json")).unwrap();
    let bytes = |field: &str| -> Vec<u8> {
        let digits = all[dtype.name()][field].as_str().unwrap().as_bytes().chunks(2);
        digits.map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    };
    let values: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes("values"));
    let rows = values.len() / 256;
    assert!(rows > 0);
    let mut data = bytes("blocks");
    data.truncate(rows * dtype.bytes(256).unwrap());
    let tensor = WeightTensor { name: dtype.name().to_owned(), dtype, shape: vec![rows, 256], data: data.into() };
    (tensor, values[..rows * 256].to_vec())
}

/// Row lookup gives the very values; so do this suite's own decoders, in f64.
pub fn decoding_matches_another_implementation<K: Kernels>(k: &K) {
    for dtype in Dtype::ALL.into_iter().filter(|dtype| dtype.block_len() > 1) {
        let (tensor, expected) = vectors(dtype);
        for (i, (&value, &expected)) in decode_weight(&tensor).iter().zip(&expected).enumerate() {
            let error = (value - f64::from(expected)).abs();
            assert!(error <= 1e-6 * f64::from(expected.abs()).max(1e-3), "{} {i}: {value} {expected}", dtype.name());
        }
        let rows = tensor.shape[0];
        let table = k.matrix("table", &MatrixSource { parts: vec![tensor], rows: RowOrder::Stacked }).unwrap();
        let ids = tensor_from_u32(k, &(0..rows as u32).collect::<Vec<_>>());
        let out = k.tensor("out", Scalar::F32, rows * 256).unwrap();
        let mut rec = k.begin();
        k.embed(&mut rec, Embed { ids: &ids, table: &table, out: &out, rows, scale: 1.0 }).unwrap();
        k.submit(rec, &wait()).unwrap();
        assert_eq!(read_f32(k, Scalar::F32, &out, 0..rows * 256), expected, "{}", dtype.name());
    }
}
