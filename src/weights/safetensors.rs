//! Hugging Face weights: one `model.safetensors`, or shards that `model.safetensors.index.json` lists.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use ::safetensors::{Dtype as Format, SafeTensors};
use serde::Deserialize;

use super::{Bytes, Naming, Stored, WeightTensor, Weights, map};
use crate::dtype::Dtype;
use crate::error::{Error, Result};

#[derive(Deserialize)]
struct Index {
    /// Tensor -> file.
    weight_map: BTreeMap<String, String>,
}

/// Maps the weights of a folder; returns them with the size of their files in bytes.
///
/// # Errors
/// [`Error::Io`] names a shard that is missing; [`Error::BadFile`] a damaged one, or one that lacks a tensor which the index puts there.
pub fn open(folder: &Path, naming: Naming) -> Result<(Weights, u64)> {
    let single = folder.join("model.safetensors");
    let index = folder.join("model.safetensors.index.json");
    if single.exists() || !index.exists() {
        let mut tensors = HashMap::new();
        let bytes = read(&single, |name, tensor| drop(tensors.insert(name, tensor)))?;
        return Ok((Weights::new(naming, tensors), bytes));
    }
    let mut tensors = HashMap::new();
    let mut bytes = 0;
    for (path, names) in shards(folder, &index)? {
        let mut found = HashMap::new();
        bytes += read(&path, |name, tensor| drop(found.insert(name, tensor)))?;
        for name in names {
            let lacks = || Error::bad_file(&path, format!("lacks tensor `{name}`, which the index puts there"));
            let tensor = found.remove(&name).ok_or_else(lacks)?;
            tensors.insert(name, tensor);
        }
    }
    Ok((Weights::new(naming, tensors), bytes))
}

/// The files of an index, each with its tensors.
fn shards(folder: &Path, index: &Path) -> Result<BTreeMap<PathBuf, Vec<String>>> {
    let text = std::fs::read(index).map_err(|e| Error::io(index, e))?;
    let listed: Index = serde_json::from_slice(&text).map_err(|e| Error::bad_file(index, e.to_string()))?;
    let mut shards: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
    for (tensor, file) in listed.weight_map {
        // An index is foreign input: it may name files beside itself only.
        if Path::new(&file).file_name() != Some(file.as_ref()) {
            return Err(Error::bad_file(index, format!("shard `{file}` is no plain file name")));
        }
        shards.entry(folder.join(file)).or_default().push(tensor);
    }
    Ok(shards)
}

/// Hands every tensor of a file to `keep`; returns the file's size.
fn read(path: &Path, mut keep: impl FnMut(String, Stored)) -> Result<u64> {
    let bytes = map::map(path)?;
    let bad = |e: &dyn ToString| Error::bad_file(path, e.to_string());
    let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(&e))?;
    for (name, info) in metadata.tensors() {
        // The header is preceded by its own length in 8 bytes.
        let (start, end) = info.data_offsets;
        let data = bytes.slice(8 + header + start..8 + header + end).ok_or_else(|| bad(&"offsets past the end"))?;
        let tensor = stored(&name, info.dtype, info.shape.clone(), data);
        keep(name, tensor);
    }
    Ok(bytes.len() as u64)
}

fn stored(name: &str, format: Format, shape: Vec<usize>, data: Bytes) -> Stored {
    let dtype = match format {
        Format::F32 => Dtype::F32,
        Format::F16 => Dtype::F16,
        Format::BF16 => Dtype::Bf16,
        other => return Stored::Unknown { format: format!("{other:?}") },
    };
    Stored::Known(WeightTensor { name: name.to_owned(), dtype, shape, data })
}
