//! Weights on disk: GGUF files and Hugging Face folders behind one lookup by role, read through the file's mapping.

use std::collections::HashMap;
use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use crate::dtype::Dtype;
use crate::error::{Error, Result};

pub mod gguf;
pub mod map;
pub mod names;
pub mod open;
pub mod safetensors;
pub mod synthetic;

pub use names::Naming;
pub use open::ModelFiles;

/// What a tensor is in the model, whatever a file calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// Embedding table `[vocab, hidden]`.
    TokenEmbedding,
    /// The last norm `[hidden]`.
    OutputNorm,
    /// Output head `[vocab, hidden]`; absent where the embedding is tied.
    OutputHead,
    /// A tensor of block `n`.
    Layer(usize, LayerRole),
}

/// What a tensor is within a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LayerRole {
    /// Norm before attention `[hidden]`.
    AttnNorm,
    /// `[heads * head_dim, hidden]`.
    Q,
    /// `[kv_heads * head_dim, hidden]`.
    K,
    /// `[kv_heads * head_dim, hidden]`.
    V,
    /// Q, K and V in one tensor `[(heads + 2 kv_heads) * head_dim, hidden]`, where a file has no separate ones.
    Qkv,
    /// Norm of query heads `[head_dim]`.
    QNorm,
    /// Norm of key heads `[head_dim]`.
    KNorm,
    /// `[hidden, heads * head_dim]`.
    AttnOut,
    /// Norm behind attention `[hidden]`.
    AttnPostNorm,
    /// Norm before the MLP `[hidden]`.
    MlpNorm,
    /// `[ffn, hidden]`.
    Gate,
    /// `[ffn, hidden]`.
    Up,
    /// Gate and up in one tensor `[2 ffn, hidden]`, where a file has no separate ones.
    GateUp,
    /// `[hidden, ffn]`.
    Down,
    /// Norm behind the MLP `[hidden]`.
    MlpPostNorm,
}

/// A tensor as it stands in the file; cloning shares the bytes.
#[derive(Clone, Debug)]
pub struct WeightTensor {
    /// Its name in the file.
    pub name: String,
    /// Format.
    pub dtype: Dtype,
    /// Outermost dimension first: `[out, in]` for matrices.
    pub shape: Vec<usize>,
    /// Exactly `dtype.bytes(product of shape)` bytes.
    pub data: Bytes,
}

/// All tensors of a model, from however many files.
#[derive(Debug)]
pub struct Weights {
    naming: Naming,
    tensors: HashMap<String, Stored>,
}

/// A tensor of the file. One whose number format is unknown here is refused when it is asked for, not before: the model may not need it.
#[derive(Debug)]
enum Stored {
    Known(WeightTensor),
    Unknown { format: String },
}

impl Weights {
    fn new(naming: Naming, tensors: HashMap<String, Stored>) -> Self {
        Self { naming, tensors }
    }

    /// The naming of the tensors.
    pub fn naming(&self) -> Naming {
        self.naming
    }

    /// The same tensors by other names, once the family is known.
    pub(super) fn with_naming(self, naming: Naming) -> Self {
        Self { naming, ..self }
    }

    /// The tensor of this role.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] with the file's own name for it; [`Error::Unsupported`] where its number format is unknown here.
    pub fn get(&self, role: Role) -> Result<WeightTensor> {
        let name = self.weight_name(role);
        self.named(&name)?.ok_or(Error::MissingTensor { name })
    }

    /// The tensor of this name in the file, if there is one.
    fn named(&self, name: &str) -> Result<Option<WeightTensor>> {
        match self.tensors.get(name) {
            None => Ok(None),
            Some(Stored::Known(tensor)) => Ok(Some(tensor.clone())),
            Some(Stored::Unknown { format }) => {
                Err(Error::Unsupported { what: "tensor type", name: format!("{format} (tensor `{name}`)") })
            }
        }
    }

    /// Whether the file has this tensor, in whatever number format.
    pub fn has(&self, role: Role) -> bool {
        self.tensors.contains_key(&self.weight_name(role))
    }

    fn weight_name(&self, role: Role) -> String {
        self.naming.stem(role) + ".weight"
    }

    /// The bias that belongs to the tensor of this role, `[len]`, where the file has one.
    ///
    /// # Errors
    /// As [`vector`](Self::vector).
    pub fn bias(&self, role: Role, len: usize) -> Result<Option<WeightTensor>> {
        let tensor = self.named(&(self.naming.stem(role) + ".bias"))?;
        tensor.map(|tensor| shaped(tensor, &[len])).transpose()
    }

    /// The names of all biases. Published GPT-NeoX models have a causal mask that is called one.
    pub fn biases(&self) -> impl Iterator<Item = &str> {
        let is_bias = |name: &&str| name.ends_with(".bias") && !name.ends_with(".attention.bias");
        self.tensors.keys().map(String::as_str).filter(is_bias)
    }

    /// The number format that most of the weights' bytes have; `None` where there are none.
    pub fn main_dtype(&self) -> Option<Dtype> {
        let mut bytes = Vec::<(Dtype, usize)>::new();
        for tensor in self.known() {
            match bytes.iter_mut().find(|(dtype, _)| *dtype == tensor.dtype) {
                Some((_, n)) => *n += tensor.data.len(),
                None => bytes.push((tensor.dtype, tensor.data.len())),
            }
        }
        bytes.into_iter().max_by_key(|&(_, n)| n).map(|(dtype, _)| dtype)
    }

    /// Number of parameters: elements of all tensors whose number format is known here.
    pub fn n_parameters(&self) -> u64 {
        self.known().map(|tensor| tensor.shape.iter().map(|&n| n as u64).product::<u64>()).sum()
    }

    /// Bytes of all tensors whose number format is known here.
    pub fn n_bytes(&self) -> u64 {
        self.known().map(|tensor| tensor.data.len() as u64).sum()
    }

    pub(crate) fn known(&self) -> impl Iterator<Item = &WeightTensor> {
        self.tensors.values().filter_map(|stored| match stored {
            Stored::Known(tensor) => Some(tensor),
            Stored::Unknown { .. } => None,
        })
    }

    /// The matrix `[rows, cols]` of this role.
    ///
    /// # Errors
    /// As [`get`](Self::get), and [`Error::TensorShape`].
    pub fn matrix(&self, role: Role, rows: usize, cols: usize) -> Result<WeightTensor> {
        shaped(self.get(role)?, &[rows, cols])
    }

    /// The vector `[len]` of this role.
    ///
    /// # Errors
    /// As [`get`](Self::get), and [`Error::TensorShape`].
    pub fn vector(&self, role: Role, len: usize) -> Result<WeightTensor> {
        shaped(self.get(role)?, &[len])
    }
}

fn shaped(tensor: WeightTensor, expected: &[usize]) -> Result<WeightTensor> {
    if tensor.shape != expected {
        return Err(Error::TensorShape { name: tensor.name, expected: expected.to_vec(), found: tensor.shape });
    }
    Ok(tensor)
}

/// Shared bytes: a stretch of a mapped file, or owned memory.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl Bytes {
    /// A stretch of `owner`.
    ///
    /// Returns `None` where the range reaches past the end.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Option<Self> {
        let len = (*owner).as_ref().len();
        (range.start <= range.end && range.end <= len).then_some(Self { owner, range })
    }

    /// A stretch of these bytes that shares their owner.
    ///
    /// Returns `None` where the range reaches past the end.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        let end = self.range.start.checked_add(range.end)?;
        (range.start <= range.end && end <= self.range.end)
            .then(|| Self { owner: self.owner.clone(), range: self.range.start + range.start..end })
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { owner: Arc::new(bytes), range }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.range.len())
    }
}
