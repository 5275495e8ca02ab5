//! GGUF files, versions 2 and 3: metadata and the table of tensors, checked to the last byte before anything is believed.
//!
//! Everything stays in the file's mapping: arrays of metadata are kept as a range and walked when they are asked for. Nothing is allocated
//! before the bytes that justify it are known to be there. Format: `docs/gguf.md` of ggml.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{Bytes, Naming, Stored, WeightTensor, Weights, map};
use crate::config::gguf::Metadata;
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// Arrays inside arrays deeper than this are refused; no known file nests at all.
const MAX_NESTING: usize = 4;
/// ggml's own limit.
const MAX_DIMS: u32 = 4;

/// A parsed file.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    bytes: Bytes,
    metadata: HashMap<String, Value>,
    tensors: Vec<Info>,
}

#[derive(Debug)]
enum Value {
    Integer(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    Array(Array),
}

#[derive(Debug)]
struct Array {
    kind: u32,
    len: usize,
    /// Of the elements, in the file.
    range: Range<usize>,
}

#[derive(Debug)]
struct Info {
    name: String,
    /// Outermost dimension first.
    shape: Vec<usize>,
    format: Result<Dtype, String>,
    /// In the file; empty where the format is unknown, and with it the size.
    range: Range<usize>,
}

/// The strings of an array, left in the mapping; 4 bytes a string.
#[derive(Debug)]
pub struct TextTable {
    bytes: Bytes,
    starts: Vec<u32>,
}

impl TextTable {
    /// Number of strings.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// String `i`; `None` past the end.
    pub fn get(&self, i: usize) -> Option<&str> {
        let mut cursor = Cursor { bytes: &self.bytes, pos: *self.starts.get(i)? as usize };
        cursor.text().ok()
    }
}

impl Gguf {
    /// Maps and parses a file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadFile`] where the file is damaged; [`Error::Unsupported`] for version 1, unknown versions, big-endian files
    /// and models split over several files.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = map::map(path)?;
        let bad = |reason: String| Error::bad_file(path, reason);
        let mut cursor = Cursor { bytes: &bytes, pos: 0 };
        if cursor.take(4) != Ok(b"GGUF".as_slice()) {
            return Err(bad("is not a GGUF file".into()));
        }
        check_version(cursor.u32().map_err(bad)?)?;
        let (metadata, tensors) = parse(&mut cursor).map_err(bad)?;
        let file = Self { path: path.to_owned(), bytes, metadata, tensors };
        match file.integer("split.count")? {
            Some(n) if n > 1 => Err(Error::Unsupported { what: "GGUF layout", name: format!("split over {n} files") }),
            _ => Ok(file),
        }
    }

    /// Size of the file.
    pub fn file_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// All tensors.
    pub fn weights(&self) -> Weights {
        let stored = |info: &Info| {
            let tensor = match (&info.format, self.bytes.slice(info.range.clone())) {
                (&Ok(dtype), Some(data)) => {
                    Stored::Known(WeightTensor { name: info.name.clone(), dtype, shape: info.shape.clone(), data })
                }
                (Err(format), _) => Stored::Unknown { format: format.clone() },
                (Ok(dtype), None) => Stored::Unknown { format: dtype.name().to_owned() },
            };
            (info.name.clone(), tensor)
        };
        Weights::new(Naming::GGUF, self.tensors.iter().map(stored).collect())
    }

    /// A token id of the metadata, or what stands there to say that there is none (-1).
    pub fn id(&self, key: &str) -> Result<Option<i128>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Integer(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(key, "integer")),
        }
    }

    /// An array of strings of the metadata.
    pub fn texts(&self, key: &str) -> Result<Option<TextTable>> {
        let Some(array) = self.array(key, &[8], "array of strings")? else { return Ok(None) };
        let too_long = || self.bad(format!("`{key}` is longer than 4 GiB"));
        let bytes = self.bytes.slice(array.range.clone()).ok_or_else(too_long)?;
        let mut starts = Vec::with_capacity(array.len);
        let mut cursor = Cursor { bytes: &bytes, pos: 0 };
        for _ in 0..array.len {
            starts.push(u32::try_from(cursor.pos).map_err(|_| too_long())?);
            cursor.text().map_err(|reason| self.bad(reason))?;
        }
        Ok(Some(TextTable { bytes, starts }))
    }

    /// An array of f32 of the metadata.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        Ok(self.array(key, &[6], "array of f32")?.map(|array| self.words(array).map(f32::from_le_bytes).collect()))
    }

    /// An array of 32-bit integers of the metadata.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i32>>> {
        Ok(self
            .array(key, &[4, 5], "array of 32-bit integers")?
            .map(|array| self.words(array).map(i32::from_le_bytes).collect()))
    }

    /// An error about this file.
    pub fn bad(&self, reason: impl Into<String>) -> Error {
        Error::bad_file(&self.path, reason)
    }

    fn words(&self, array: &Array) -> impl Iterator<Item = [u8; 4]> {
        self.bytes[array.range.clone()].as_chunks::<4>().0.iter().copied()
    }

    fn array(&self, key: &str, kinds: &[u32], what: &str) -> Result<Option<&Array>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) if kinds.contains(&array.kind) => Ok(Some(array)),
            Some(_) => Err(self.wrong(key, what)),
        }
    }

    fn wrong(&self, key: &str, what: &str) -> Error {
        self.bad(format!("`{key}` is no {what}"))
    }
}

impl Metadata for Gguf {
    fn integer(&self, key: &str) -> Result<Option<usize>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Integer(value)) => {
                usize::try_from(*value).map(Some).map_err(|_| self.bad(format!("`{key}` is {value}")))
            }
            Some(Value::Array(_)) => Err(Error::Unsupported { what: "per-layer value", name: key.to_owned() }),
            Some(_) => Err(self.wrong(key, "integer")),
        }
    }

    fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Float(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(key, "float")),
        }
    }

    fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Text(value)) => Ok(Some(value)),
            Some(_) => Err(self.wrong(key, "string")),
        }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(key, "Boolean")),
        }
    }
}

fn check_version(version: u32) -> Result<()> {
    let unsupported = |what, name: String| Err(Error::Unsupported { what, name });
    match version {
        2 | 3 => Ok(()),
        _ if matches!(version.swap_bytes(), 1..=3) => unsupported("byte order", "big-endian GGUF".into()),
        _ => unsupported("GGUF version", version.to_string()),
    }
}

/// What goes wrong while parsing, without the path.
type Parsed<T> = Result<T, String>;

fn parse(cursor: &mut Cursor) -> Parsed<(HashMap<String, Value>, Vec<Info>)> {
    let (n_tensors, n_pairs) = (cursor.u64()?, cursor.u64()?);
    // The shortest pair is an empty key and one byte; the shortest tensor an empty name and one dimension.
    let n_pairs = cursor.count(n_pairs, 8 + 4 + 1, "metadata pairs")?;
    let mut metadata = HashMap::new();
    for _ in 0..n_pairs {
        let key = cursor.text()?.to_owned();
        let kind = cursor.u32()?;
        let value = cursor.value(kind).map_err(|reason| format!("`{key}`: {reason}"))?;
        if metadata.contains_key(&key) {
            return Err(format!("key `{key}` stands there twice"));
        }
        metadata.insert(key, value);
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(Value::Integer(n)) => {
            usize::try_from(*n).ok().filter(|n| n.is_power_of_two()).ok_or(format!("alignment {n}"))?
        }
        Some(_) => return Err("`general.alignment` is no integer".into()),
    };
    let n_tensors = cursor.count(n_tensors, 8 + 4 + 8 + 4 + 8, "tensors")?;
    let mut tensors = Vec::new();
    for _ in 0..n_tensors {
        tensors.push(cursor.tensor(alignment)?);
    }
    place(&mut tensors, cursor.pos.next_multiple_of(alignment), cursor.bytes.len())?;
    Ok((metadata, tensors))
}

/// Turns offsets within the data section into ranges of the file: all inside it, none overlapping, no name twice.
fn place(tensors: &mut [Info], data: usize, file: usize) -> Parsed<()> {
    for Info { name, range, .. } in tensors.iter_mut() {
        let placed = data.checked_add(range.start).zip(data.checked_add(range.end));
        let Some((start, end)) = placed.filter(|&(_, end)| end <= file) else {
            return Err(format!("tensor `{name}` ends at byte {} of the data, past the file's end", range.end));
        };
        *range = start..end;
    }
    let mut order: Vec<&Info> = tensors.iter().collect();
    order.sort_by_key(|info| (info.range.start, info.range.end));
    if let Some(pair) = order.windows(2).find(|pair| pair[0].range.end > pair[1].range.start) {
        return Err(format!("tensors `{}` and `{}` overlap", pair[0].name, pair[1].name));
    }
    order.sort_by_key(|info| &info.name);
    match order.windows(2).find(|pair| pair[0].name == pair[1].name) {
        Some(pair) => Err(format!("tensor `{}` stands there twice", pair[0].name)),
        None => Ok(()),
    }
}

/// Number formats by ggml's ids; those that cannot be read have their name only.
fn format(id: u32) -> Result<Dtype, String> {
    let name = match id {
        0 => return Ok(Dtype::F32),
        1 => return Ok(Dtype::F16),
        2 => return Ok(Dtype::Q4_0),
        3 => return Ok(Dtype::Q4_1),
        6 => return Ok(Dtype::Q5_0),
        7 => return Ok(Dtype::Q5_1),
        8 => return Ok(Dtype::Q8_0),
        10 => return Ok(Dtype::Q2K),
        11 => return Ok(Dtype::Q3K),
        12 => return Ok(Dtype::Q4K),
        13 => return Ok(Dtype::Q5K),
        14 => return Ok(Dtype::Q6K),
        20 => return Ok(Dtype::Iq4Nl),
        30 => return Ok(Dtype::Bf16),
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return Err(format!("ggml type {id}")),
    };
    Err(name.to_owned())
}

/// A place in the file; every read says what it lacks.
struct Cursor<'a> {
    bytes: &'a [u8],
    pos: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Parsed<&'a [u8]> {
        let bytes = self.pos.checked_add(len).and_then(|end| self.bytes.get(self.pos..end));
        let bytes = bytes.ok_or_else(|| format!("ends within {len} bytes that should follow byte {}", self.pos))?;
        self.pos += len;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u32(&mut self) -> Parsed<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Parsed<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A number of things of at least `bytes` bytes each, which must still fit into the file.
    fn count(&self, n: u64, bytes: usize, what: &str) -> Parsed<usize> {
        let room = self.bytes.len() - self.pos;
        let fits = usize::try_from(n).ok().filter(|n| n.checked_mul(bytes).is_some_and(|total| total <= room));
        fits.ok_or_else(|| format!("announces {n} {what}, but only {room} bytes follow"))
    }

    fn text(&mut self) -> Parsed<&'a str> {
        let n = self.u64()?;
        let len = self.count(n, 1, "bytes of text")?;
        let at = self.pos;
        std::str::from_utf8(self.take(len)?).map_err(|_| format!("the text at byte {at} is not UTF-8"))
    }

    fn value(&mut self, kind: u32) -> Parsed<Value> {
        Ok(match kind {
            0 => Value::Integer(self.array().map(u8::from_le_bytes)?.into()),
            1 => Value::Integer(self.array().map(i8::from_le_bytes)?.into()),
            2 => Value::Integer(self.array().map(u16::from_le_bytes)?.into()),
            3 => Value::Integer(self.array().map(i16::from_le_bytes)?.into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => Value::Integer(self.array().map(i32::from_le_bytes)?.into()),
            6 => Value::Float(self.array().map(f32::from_le_bytes)?.into()),
            7 => Value::Bool(self.take(1)? != [0]),
            8 => Value::Text(self.text()?.to_owned()),
            9 => Value::Array(self.elements(0)?),
            10 => Value::Integer(self.u64()?.into()),
            11 => Value::Integer(self.array().map(i64::from_le_bytes)?.into()),
            12 => Value::Float(self.array().map(f64::from_le_bytes)?),
            _ => return Err(format!("value type {kind} is unknown")),
        })
    }

    /// Walks over an array.
    fn elements(&mut self, depth: usize) -> Parsed<Array> {
        let (kind, n) = (self.u32()?, self.u64()?);
        let bytes = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => 4 + 8,
            _ => return Err(format!("element type {kind} is unknown")),
        };
        let len = self.count(n, bytes, "array elements")?;
        let start = self.pos;
        match kind {
            8 => (0..len).try_for_each(|_| self.text().map(drop))?,
            9 if depth == MAX_NESTING => return Err(format!("arrays nested deeper than {MAX_NESTING}")),
            9 => (0..len).try_for_each(|_| self.elements(depth + 1).map(drop))?,
            _ => self.take(len * bytes).map(drop)?,
        }
        Ok(Array { kind, len, range: start..self.pos })
    }

    /// A row of the tensor table; its range is still relative to the data section.
    fn tensor(&mut self, alignment: usize) -> Parsed<Info> {
        let name = self.text()?.to_owned();
        let bad = |reason: String| format!("tensor `{name}`: {reason}");
        let n_dims = self.u32()?;
        if !(1..=MAX_DIMS).contains(&n_dims) {
            return Err(bad(format!("{n_dims} dimensions")));
        }
        let mut shape = Vec::new();
        for _ in 0..n_dims {
            let dim = self.u64()?;
            shape.push(usize::try_from(dim).ok().filter(|&d| d > 0).ok_or_else(|| bad(format!("dimension {dim}")))?);
        }
        let (format, offset) = (format(self.u32()?), self.u64()?);
        let bytes = match &format {
            Ok(dtype) => size(*dtype, &shape).map_err(&bad)?,
            Err(_) => 0,
        };
        let start = usize::try_from(offset).ok().filter(|o| o.is_multiple_of(alignment));
        let start = start.ok_or_else(|| bad(format!("offset {offset} is no multiple of {alignment}")))?;
        let end = start.checked_add(bytes).ok_or_else(|| bad(format!("offset {offset} overflows")))?;
        shape.reverse();
        Ok(Info { name, shape, format, range: start..end })
    }
}

/// Bytes of a tensor whose innermost dimension comes first.
fn size(dtype: Dtype, dims: &[usize]) -> Parsed<usize> {
    let row = dtype.bytes(dims[0]).map_err(|e| e.to_string())?;
    let total = dims[1..].iter().try_fold(row, |total, &dim| total.checked_mul(dim));
    total.ok_or_else(|| format!("shape {dims:?} overflows"))
}
