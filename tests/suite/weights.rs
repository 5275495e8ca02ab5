//! Model files: what sound ones give, and what damaged or hostile ones are refused with.

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use runahead::config::{LayerKind, Mlp, ModelConfig, NormKind, Residual, Rope, RopePairs, RopeScaling};
use runahead::dtype::Dtype;
use runahead::weights::{LayerRole, ModelFiles, Role};
use runahead::{Error, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The model that `make demo` and `make test` fetch: `$RUNAHEAD_MODEL`, or the user's cache.
pub fn smollm2() -> PathBuf {
    let cache = || std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let path = match std::env::var_os("RUNAHEAD_MODEL") {
        Some(path) => PathBuf::from(path),
        None => cache().or_else(home).unwrap_or_default().join("runahead/SmolLM2-135M-Instruct.Q4_1.gguf"),
    };
    assert!(
        path.is_file(),
        "this test needs {}: `runahead pull smollm2` fetches it, or set RUNAHEAD_MODEL",
        path.display()
    );
    path
}

/// A tiny model of the reference data.
pub fn reference(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/reference").join(name)
}

/// Writes GGUF files, sound ones and others.
#[derive(Clone)]
pub struct GgufBuilder {
    pub magic: [u8; 4],
    pub version: u32,
    pub n_tensors: Option<u64>,
    pub n_pairs: Option<u64>,
    alignment: usize,
    pairs: Vec<(Vec<u8>, u32, Vec<u8>)>,
    tensors: Vec<RawTensor>,
}

#[derive(Clone)]
struct RawTensor {
    name: String,
    /// Innermost first, as the file has them.
    dims: Vec<u64>,
    kind: u32,
    data: Vec<u8>,
    offset: Option<u64>,
}

pub const U32: u32 = 4;
pub const I32: u32 = 5;
pub const F32: u32 = 6;
pub const BOOL: u32 = 7;
pub const TEXT: u32 = 8;
pub const ARRAY: u32 = 9;

fn text(value: &[u8]) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes(), value].concat()
}

fn array(kind: u32, n: usize, elements: &[u8]) -> Vec<u8> {
    [kind.to_le_bytes().as_slice(), &(n as u64).to_le_bytes(), elements].concat()
}

impl GgufBuilder {
    pub fn new() -> Self {
        let (pairs, tensors) = (Vec::new(), Vec::new());
        Self { magic: *b"GGUF", version: 3, n_tensors: None, n_pairs: None, alignment: 32, pairs, tensors }
    }

    /// A pair whose value is given as bytes; one of the same key goes.
    pub fn raw(mut self, key: &str, kind: u32, value: Vec<u8>) -> Self {
        self.pairs.retain(|(k, ..)| k != key.as_bytes());
        self.pairs.push((key.into(), kind, value));
        self
    }

    pub fn remove(mut self, key: &str) -> Self {
        self.pairs.retain(|(k, ..)| k != key.as_bytes());
        self
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, U32, value.to_le_bytes().into())
    }

    pub fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key, F32, value.to_le_bytes().into())
    }

    pub fn flag(self, key: &str, value: bool) -> Self {
        self.raw(key, BOOL, vec![value.into()])
    }

    pub fn text(self, key: &str, value: &str) -> Self {
        self.raw(key, TEXT, text(value.as_bytes()))
    }

    pub fn texts<'a>(self, key: &str, values: impl IntoIterator<Item = &'a str>) -> Self {
        let values: Vec<Vec<u8>> = values.into_iter().map(|v| text(v.as_bytes())).collect();
        self.raw(key, ARRAY, array(TEXT, values.len(), &values.concat()))
    }

    pub fn floats(self, key: &str, values: &[f32]) -> Self {
        self.raw(key, ARRAY, array(F32, values.len(), bytemuck::cast_slice(values)))
    }

    pub fn integers(self, key: &str, values: &[i32]) -> Self {
        self.raw(key, ARRAY, array(I32, values.len(), bytemuck::cast_slice(values)))
    }

    pub fn align(mut self, alignment: usize) -> Self {
        self.alignment = alignment;
        self.u32("general.alignment", alignment as u32)
    }

    /// `dims` innermost first.
    pub fn tensor(mut self, name: &str, dims: &[u64], kind: u32, data: Vec<u8>) -> Self {
        self.tensors.push(RawTensor { name: name.into(), dims: dims.into(), kind, data, offset: None });
        self
    }

    fn change(mut self, name: &str, change: impl FnOnce(&mut RawTensor)) -> Self {
        change(self.tensors.iter_mut().find(|t| t.name == name).unwrap());
        self
    }

    pub fn build(&self) -> Vec<u8> {
        let mut out = [self.magic.as_slice(), &self.version.to_le_bytes()].concat();
        out.extend(self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.n_pairs.unwrap_or(self.pairs.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.pairs {
            out.extend([text(key), kind.to_le_bytes().into(), value.clone()].concat());
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            out.extend(text(tensor.name.as_bytes()));
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            data.resize(data.len().next_multiple_of(self.alignment), 0);
            out.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.data);
        }
        if !data.is_empty() {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
        }
        [out, data].concat()
    }

    /// Writes the file and opens it as a model.
    pub fn open(&self) -> Result<ModelFiles> {
        open(&self.build())
    }
}

/// Writes bytes to a file and opens it as a model.
pub fn open(bytes: &[u8]) -> Result<ModelFiles> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    ModelFiles::open(&path)
}

/// ggml's id of a format.
fn ggml(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::Q4_0 => 2,
        Dtype::Q4_1 => 3,
        Dtype::Q5_0 => 6,
        Dtype::Q5_1 => 7,
        Dtype::Q8_0 => 8,
        Dtype::Q2K => 10,
        Dtype::Q3K => 11,
        Dtype::Q4K => 12,
        Dtype::Q5K => 13,
        Dtype::Q6K => 14,
        Dtype::Iq4Nl => 20,
        Dtype::Bf16 => 30,
        other => panic!("{other:?}"),
    }
}

/// Bytes that differ from tensor to tensor.
fn noise(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31 + seed * 17) % 251) as u8).collect()
}

/// Name, rows (0: a vector), columns and format of every tensor of [`tiny`].
const TENSORS: [(&str, usize, usize, Dtype); 11] = [
    ("token_embd.weight", 6, 32, Dtype::Q8_0),
    ("output_norm.weight", 0, 32, Dtype::F32),
    ("blk.0.attn_norm.weight", 0, 32, Dtype::F32),
    ("blk.0.attn_q.weight", 32, 32, Dtype::Q4_0),
    ("blk.0.attn_k.weight", 16, 32, Dtype::Q4_1),
    ("blk.0.attn_v.weight", 16, 32, Dtype::F16),
    ("blk.0.attn_output.weight", 32, 32, Dtype::Bf16),
    ("blk.0.ffn_norm.weight", 0, 32, Dtype::F32),
    ("blk.0.ffn_gate.weight", 64, 32, Dtype::Q8_0),
    ("blk.0.ffn_up.weight", 64, 32, Dtype::Q4_0),
    ("blk.0.ffn_down.weight", 32, 64, Dtype::Q4_1),
];

/// A Llama of one layer with tensors of all formats and a tied head.
pub fn tiny() -> GgufBuilder {
    let mut file = GgufBuilder::new()
        .text("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 64)
        .u32("llama.embedding_length", 32)
        .u32("llama.feed_forward_length", 64)
        .u32("llama.attention.head_count", 2)
        .u32("llama.attention.head_count_kv", 1)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    for (seed, (name, rows, cols, dtype)) in TENSORS.into_iter().enumerate() {
        let dims = if rows == 0 { vec![cols as u64] } else { vec![cols as u64, rows as u64] };
        file = file.tensor(name, &dims, ggml(dtype), noise(seed, dtype.bytes(cols).unwrap() * rows.max(1)));
    }
    file
}

/// A Llama without a special feature.
fn llama(n_layers: usize, rope: Rope) -> ModelConfig {
    ModelConfig {
        architecture: "llama".into(),
        n_layers,
        hidden: 64,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 16,
        ffn: 160,
        vocab: 384,
        max_context: 512,
        norm_eps: 1e-6,
        norm: NormKind::Rms,
        norm_plus_one: false,
        residual: Residual::Sequential,
        post_norms: false,
        head_norm: false,
        mlp: Mlp::SwiGlu,
        embedding_scale: 1.0,
        attention_scale: 0.25,
        attention_soft_cap: None,
        logit_soft_cap: None,
        alibi: None,
        ropes: vec![rope],
        layers: vec![LayerKind { rope: Some(0), window: None }; n_layers],
        tied_head: true,
    }
}

fn tiny_config() -> ModelConfig {
    let rope = Rope { base: 10_000.0, rotary: 16, pairs: RopePairs::Adjacent, scaling: RopeScaling::None };
    ModelConfig {
        hidden: 32,
        n_heads: 2,
        n_kv_heads: 1,
        head_dim: 16,
        ffn: 64,
        vocab: 6,
        max_context: 64,
        norm_eps: 1e-5,
        ..llama(1, rope)
    }
}

#[test]
fn gguf_tensors_come_out_as_they_went_in() {
    for version in [2, 3] {
        for alignment in [32, 8, 64] {
            let mut file = tiny().align(alignment);
            file.version = version;
            let files = file.open().unwrap();
            assert_eq!(files.config, tiny_config());
            assert_eq!(files.file_bytes, file.build().len() as u64);
            assert!(files.tokenizer.is_none() && files.template.is_none() && files.eos.is_empty());
            let roles = [Role::TokenEmbedding, Role::OutputNorm].into_iter().chain(
                [
                    LayerRole::AttnNorm,
                    LayerRole::Q,
                    LayerRole::K,
                    LayerRole::V,
                    LayerRole::AttnOut,
                    LayerRole::MlpNorm,
                    LayerRole::Gate,
                    LayerRole::Up,
                    LayerRole::Down,
                ]
                .map(|part| Role::Layer(0, part)),
            );
            for (seed, (role, (name, rows, cols, dtype))) in roles.zip(TENSORS).enumerate() {
                let tensor = match rows {
                    0 => files.weights.vector(role, cols).unwrap(),
                    _ => files.weights.matrix(role, rows, cols).unwrap(),
                };
                assert_eq!((tensor.name.as_str(), tensor.dtype), (name, dtype));
                assert_eq!(tensor.data.to_vec(), noise(seed, dtype.bytes(cols).unwrap() * rows.max(1)), "{name}");
            }
        }
    }
}

#[test]
fn a_missing_or_ill_shaped_tensor_is_named() {
    let files = tiny().open().unwrap();
    assert!(files.weights.has(Role::TokenEmbedding) && !files.weights.has(Role::OutputHead));
    let missing = files.weights.get(Role::Layer(1, LayerRole::Q)).unwrap_err();
    assert!(matches!(&missing, Error::MissingTensor { name } if name == "blk.1.attn_q.weight"), "{missing}");
    let shape = files.weights.matrix(Role::Layer(0, LayerRole::Down), 64, 32).unwrap_err();
    assert!(
        matches!(&shape, Error::TensorShape { name, expected, found }
            if name == "blk.0.ffn_down.weight" && expected == &[64, 32] && found == &[32, 64]),
        "{shape}"
    );
    assert!(matches!(files.weights.vector(Role::TokenEmbedding, 32), Err(Error::TensorShape { .. })));
}

#[test]
fn a_tensor_of_an_unknown_format_is_refused_when_it_is_asked_for() {
    for (kind, format) in [(9, "Q8_1"), (23, "IQ4_XS"), (4711, "ggml type 4711")] {
        let files = tiny().change("blk.0.attn_q.weight", |t| t.kind = kind).open().unwrap();
        let role = Role::Layer(0, LayerRole::Q);
        assert!(files.weights.has(role));
        let error = files.weights.get(role).unwrap_err();
        assert!(
            matches!(&error, Error::Unsupported { what: "tensor type", name }
                if name.starts_with(format) && name.contains("blk.0.attn_q.weight")),
            "{error}"
        );
        assert!(files.weights.get(Role::Layer(0, LayerRole::K)).is_ok());
    }
}

/// The kind of an error, with as much text as tells one case from another.
fn kind(result: Result<ModelFiles>) -> String {
    match result {
        Ok(_) => "ok".into(),
        Err(Error::Io { .. }) => "io".into(),
        Err(Error::BadFile { reason, .. }) => format!("bad file: {reason}"),
        Err(Error::Unsupported { what, name }) => format!("unsupported {what}: {name}"),
        Err(Error::Config(text)) => format!("config: {text}"),
        Err(other) => format!("other: {other}"),
    }
}

fn expect(cases: Vec<(&str, Result<ModelFiles>, &str)>) {
    let mut wrong = Vec::new();
    for (name, result, expected) in cases {
        let kind = kind(result);
        if !kind.starts_with(expected) {
            wrong.push(format!("{name}: expected `{expected}`, got `{kind}`"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn hostile_gguf_files_are_refused_by_kind() {
    let with = |change: fn(&mut GgufBuilder)| {
        let mut file = tiny();
        change(&mut file);
        file.open()
    };
    let tensor = |change: fn(&mut RawTensor)| tiny().change("blk.0.ffn_down.weight", change).open();
    let nested = (0..6).fold(array(0, 1, &[7]), |inner, _| array(ARRAY, 1, &inner));
    let mut twice = tiny();
    twice.pairs.push((b"llama.block_count".into(), U32, 1_u32.to_le_bytes().into()));
    let mut foreign_key = tiny();
    foreign_key.pairs.push((vec![0xff, 0xfe], U32, vec![0; 4]));
    expect(vec![
        ("empty", open(b""), "bad file: is empty"),
        ("three bytes", open(b"GGU"), "bad file: is not a GGUF file"),
        ("magic", with(|f| f.magic = *b"GGML"), "bad file: is not a GGUF file"),
        ("version 1", with(|f| f.version = 1), "unsupported GGUF version: 1"),
        ("version 4", with(|f| f.version = 4), "unsupported GGUF version: 4"),
        ("big-endian", with(|f| f.version = 3_u32.swap_bytes()), "unsupported byte order: big-endian"),
        ("too many pairs", with(|f| f.n_pairs = Some(u64::MAX)), "bad file: announces 18446744073709551615 metadata"),
        ("too many tensors", with(|f| f.n_tensors = Some(1 << 40)), "bad file: announces 1099511627776 tensors"),
        ("one pair too many", with(|f| f.n_pairs = Some(9)), "bad file"),
        ("one tensor too many", with(|f| f.n_tensors = Some(12)), "bad file"),
        ("one tensor too few", with(|f| f.n_tensors = Some(10)), "ok"),
        ("key twice", twice.open(), "bad file: key `llama.block_count` stands there twice"),
        ("key not UTF-8", foreign_key.open(), "bad file: the text at byte"),
        ("text not UTF-8", tiny().raw("x", TEXT, text(&[0xff])).open(), "bad file: `x`: the text at byte"),
        ("texts not UTF-8", tiny().raw("x", ARRAY, array(TEXT, 1, &text(&[0xc3]))).open(), "bad file: `x`: the text"),
        ("text too long", tiny().raw("x", TEXT, u64::MAX.to_le_bytes().into()).open(), "bad file: `x`: announces"),
        ("array too long", tiny().raw("x", ARRAY, array(10, 1 << 61, &[])).open(), "bad file: `x`: announces"),
        (
            "array of texts too long",
            tiny().raw("x", ARRAY, array(TEXT, 1 << 20, &[])).open(),
            "bad file: `x`: announces",
        ),
        ("deep nesting", tiny().raw("x", ARRAY, nested).open(), "bad file: `x`: arrays nested deeper than 4"),
        ("shallow nesting", tiny().raw("x", ARRAY, array(ARRAY, 1, &array(2, 1, &[1, 2]))).open(), "ok"),
        ("value type", tiny().raw("x", 13, vec![]).open(), "bad file: `x`: value type 13"),
        ("element type", tiny().raw("x", ARRAY, array(99, 1, &[0])).open(), "bad file: `x`: element type 99"),
        ("alignment 0", tiny().u32("general.alignment", 0).open(), "bad file: alignment 0"),
        ("alignment 24", tiny().u32("general.alignment", 24).open(), "bad file: alignment 24"),
        ("alignment 2 GiB", tiny().u32("general.alignment", 1 << 31).open(), "bad file"),
        ("alignment text", tiny().text("general.alignment", "32").open(), "bad file"),
        ("split", tiny().u32("split.count", 3).open(), "unsupported GGUF layout: split over 3 files"),
        ("no dimensions", tensor(|t| t.dims.clear()), "bad file: tensor `blk.0.ffn_down.weight`: 0 dimensions"),
        ("many dimensions", tensor(|t| t.dims = vec![1; 5]), "bad file: tensor `blk.0.ffn_down.weight`: 5 dimensions"),
        ("zero dimension", tensor(|t| t.dims[1] = 0), "bad file: tensor `blk.0.ffn_down.weight`: dimension 0"),
        ("block", tensor(|t| t.dims[0] = 33), "bad file: tensor `blk.0.ffn_down.weight`: "),
        ("overflow", tensor(|t| t.dims = vec![1 << 40, 1 << 40]), "bad file: tensor `blk.0.ffn_down.weight`: shape"),
        ("huge row", tensor(|t| t.dims = vec![u64::MAX - 31]), "bad file: tensor `blk.0.ffn_down.weight`"),
        ("past the end", tensor(|t| t.dims[1] = 33), "bad file: tensor `blk.0.ffn_down.weight` ends"),
        ("far offset", tensor(|t| t.offset = Some(1 << 62)), "bad file: tensor `blk.0.ffn_down.weight` ends"),
        ("offset overflows", tensor(|t| t.offset = Some(u64::MAX - 31)), "bad file: tensor `blk.0.ffn_down.weight`"),
        (
            "odd offset",
            tensor(|t| t.offset = Some(1)),
            "bad file: tensor `blk.0.ffn_down.weight`: offset 1 is no multiple",
        ),
        (
            "overlap",
            tensor(|t| t.offset = Some(0)),
            "bad file: tensors `token_embd.weight` and `blk.0.ffn_down.weight` overlap",
        ),
        (
            "tensor twice",
            tensor(|t| t.name = "blk.0.ffn_up.weight".into()),
            "bad file: tensor `blk.0.ffn_up.weight` stands",
        ),
        ("no such file", ModelFiles::open(Path::new("/no/such/file.gguf")), "io"),
    ]);
}

#[test]
fn gguf_configurations_are_taken_or_refused_by_name() {
    let config = |file: GgufBuilder| file.open().map(|files| files.config);
    let rope = |file: GgufBuilder| config(file).unwrap().ropes.remove(0).scaling;
    assert_eq!(config(tiny().f32("llama.rope.freq_base", 5e5)).unwrap().ropes[0].base, 5e5);
    assert_eq!(config(tiny().remove("llama.attention.head_count_kv")).map(|c| c.n_kv_heads).unwrap(), 2);
    assert_eq!(config(tiny().u32("llama.attention.key_length", 8)).map(|c| c.head_dim).unwrap(), 8);
    let head = tiny().tensor("output.weight", &[32, 6], 1, noise(0, 384));
    assert!(!config(head).unwrap().tied_head);
    let linear = |kind: &str| tiny().text("llama.rope.scaling.type", kind).f32("llama.rope.scaling.factor", 4.0);
    assert_eq!(rope(linear("linear")), RopeScaling::Linear { factor: 4.0 });
    assert_eq!(rope(linear("none")), RopeScaling::None);
    assert_eq!(rope(tiny().f32("llama.rope.scale_linear", 2.0)), RopeScaling::Linear { factor: 2.0 });
    let factors = [1.0, 1.0, 1.5, 2.0, 4.0, 8.0, 8.0, 8.0_f32];
    let with_factors =
        |n: usize| tiny().tensor("rope_freqs.weight", &[n as u64], 0, bytemuck::cast_slice(&factors[..n]).to_vec());
    assert_eq!(rope(with_factors(8)), RopeScaling::Factors(factors.into()));
    let window = config(tiny().u32("llama.attention.sliding_window", 16)).unwrap();
    assert_eq!(window.layers, [LayerKind { rope: Some(0), window: Some(16) }]);
    expect(vec![
        ("architecture", tiny().text("general.architecture", "mamba").open(), "unsupported architecture: mamba"),
        ("no architecture", tiny().remove("general.architecture").open(), "config: `general.architecture` is missing"),
        ("experts", tiny().u32("llama.expert_count", 8).open(), "unsupported architecture: llama with experts"),
        ("yarn", linear("yarn").open(), "unsupported rope kind: yarn"),
        ("rotation of 6 elements", tiny().u32("llama.rope.dimension_count", 6).open(), "config: rope"),
        ("rotation past a head", tiny().u32("llama.rope.dimension_count", 20).open(), "config: rope"),
        ("few factors", with_factors(7).open(), "config: rope"),
        ("value width", tiny().u32("llama.attention.value_length", 8).open(), "unsupported attention"),
        ("heads per layer", tiny().integers("llama.attention.head_count", &[2]).open(), "unsupported per-layer value"),
        ("no layers", tiny().u32("llama.block_count", 0).open(), "config: layers 0"),
        ("no heads", tiny().u32("llama.attention.head_count", 0).open(), "config: "),
        ("heads", tiny().u32("llama.attention.head_count_kv", 3).open(), "config: 2 heads"),
        (
            "missing",
            tiny().remove("llama.feed_forward_length").open(),
            "config: `llama.feed_forward_length` is missing",
        ),
        ("missing norm", tiny().remove("llama.attention.layer_norm_rms_epsilon").open(), "config: `llama.attention"),
        ("kind", tiny().text("llama.block_count", "1").open(), "bad file: `llama.block_count` is no integer"),
        ("negative", tiny().raw("llama.block_count", I32, vec![255; 4]).open(), "bad file: `llama.block_count` is -1"),
        ("infinite", tiny().f32("llama.rope.freq_base", f32::INFINITY).open(), "config: rope"),
    ]);
}

/// Cut at every byte, the file is refused; with any bit of its header flipped, it is refused or read, but nothing panics.
#[test]
fn truncated_and_flipped_gguf_files_do_not_panic() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    let file = tiny().texts("tokenizer.ggml.tokens", ["<unk>", "<s>", "</s>", "a", "b", "ab"]);
    let file = file.floats("tokenizer.ggml.scores", &[0.0; 6]).text("tokenizer.ggml.model", "llama");
    let mut bytes = file.build();
    for len in 0..bytes.len() {
        std::fs::write(&path, &bytes[..len]).unwrap();
        let error = ModelFiles::open(&path).map(drop);
        assert!(matches!(error, Err(Error::BadFile { .. })), "{len} of {} bytes: {error:?}", bytes.len());
    }
    let header = bytes.len() - TENSORS.iter().map(|t| t.3.bytes(t.2).unwrap() * t.1.max(1)).sum::<usize>();
    for bit in 0..header * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(files) = ModelFiles::open(&path) {
            files.config.validate().unwrap();
            files.tokenizer.map(|t| t.encode("ab<s>", true).map(|ids| t.decode(&ids)));
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    std::fs::write(&path, &bytes).unwrap();
    assert!(ModelFiles::open(&path).is_ok());
}

#[test]
fn smollm2_is_read_whole() {
    let files = ModelFiles::open(&smollm2()).unwrap();
    let rope = Rope { base: 1e5, rotary: 64, pairs: RopePairs::Adjacent, scaling: RopeScaling::None };
    let config = ModelConfig {
        hidden: 576,
        n_heads: 9,
        n_kv_heads: 3,
        head_dim: 64,
        ffn: 1536,
        vocab: 49152,
        max_context: 8192,
        norm_eps: 1e-5,
        attention_scale: 0.125,
        ..llama(30, rope)
    };
    assert_eq!(files.config, config);
    assert_eq!((files.eos, files.file_bytes), (vec![2, 0], 98_362_432));
    assert_eq!(files.weights.matrix(Role::TokenEmbedding, 49152, 576).unwrap().dtype, Dtype::Q8_0);
    assert_eq!(files.weights.matrix(Role::Layer(29, LayerRole::K), 192, 576).unwrap().dtype, Dtype::Q4_1);
    assert_eq!(files.weights.vector(Role::Layer(0, LayerRole::AttnNorm), 576).unwrap().dtype, Dtype::F32);
    assert!(!files.weights.has(Role::OutputHead));
}

#[test]
fn the_reference_models_are_read() {
    let llama3 = RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 32 };
    for (name, n_kv_heads, tied_head, base, scaling) in [
        ("llama-mha", 4, false, 1e4, RopeScaling::None),
        ("llama-gqa-tied", 2, true, 1e4, RopeScaling::None),
        ("llama3-rope", 2, false, 5e5, llama3),
    ] {
        let files = ModelFiles::open(&reference(name)).unwrap();
        let rope = Rope { base, rotary: 16, pairs: RopePairs::Halves, scaling };
        let config = ModelConfig { n_kv_heads, tied_head, ..llama(2, rope) };
        assert_eq!(files.config, config, "{name}");
        assert_eq!((files.eos, files.tokenizer.is_none()), (vec![2], true));
        assert_eq!(files.weights.has(Role::OutputHead), !tied_head);
        let k = files.weights.matrix(Role::Layer(1, LayerRole::K), 16 * n_kv_heads, 64).unwrap();
        assert_eq!((k.dtype, k.data.len()), (Dtype::Bf16, 16 * n_kv_heads * 64 * 2));
        assert_eq!(k.name, "model.layers.1.self_attn.k_proj.weight");
        let values: Vec<f32> = k.data.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect();
        assert!(values.iter().all(|v| v.is_finite()) && values.iter().any(|&v| v != 0.0));
    }
}

/// A folder with the files of `llama-gqa-tied`, its `config.json` changed key by key (`null` removes).
struct Folder(TempDir);

impl Folder {
    fn new(changes: Value) -> Self {
        let source = reference("llama-gqa-tied");
        let folder = Self(TempDir::new().unwrap());
        let text = std::fs::read(source.join("config.json")).unwrap();
        let mut config: serde_json::Map<String, Value> = serde_json::from_slice(&text).unwrap();
        config.extend(changes.as_object().unwrap().clone());
        config.retain(|_, value| !value.is_null());
        std::fs::copy(source.join("model.safetensors"), folder.0.path().join("model.safetensors")).unwrap();
        folder.write("config.json", Value::Object(config).to_string())
    }

    fn write(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        std::fs::write(self.0.path().join(name), content).unwrap();
        self
    }

    fn remove(self, name: &str) -> Self {
        std::fs::remove_file(self.0.path().join(name)).unwrap();
        self
    }

    fn open(&self) -> Result<ModelFiles> {
        ModelFiles::open(self.0.path())
    }
}

#[test]
fn hugging_face_configurations_are_taken_or_refused_by_name() {
    let config = |changes: Value| Folder::new(changes).open().unwrap().config;
    let rope = |changes: Value| config(changes).ropes.remove(0);
    let old = json!({"rope_parameters": null, "rope_theta": 25000, "rope_scaling": {"type": "linear", "factor": 2}});
    assert_eq!(
        rope(old),
        Rope { base: 25e3, rotary: 16, pairs: RopePairs::Halves, scaling: RopeScaling::Linear { factor: 2.0 } }
    );
    let llama3 = json!({"rope_parameters": null, "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}});
    assert!(matches!(rope(llama3).scaling, RopeScaling::Llama3 { original_context: 8192, .. }));
    assert_eq!(rope(json!({"rope_parameters": null, "rope_scaling": null})).base, 1e4);
    assert_eq!(config(json!({"head_dim": null})).head_dim, 16);
    assert_eq!(config(json!({"num_key_value_heads": null})).n_kv_heads, 4);
    assert!(!config(json!({"tie_word_embeddings": null})).tied_head);
    assert_eq!(config(json!({"architectures": null})).architecture, "llama");
    assert_eq!(rope(json!({"rope_parameters": {"partial_rotary_factor": 0.5}})).rotary, 8);
    let refused = |changes: Value| Folder::new(changes).open();
    let yarn = json!({"rope_type": "yarn", "factor": 2.0});
    expect(vec![
        (
            "mamba",
            refused(json!({"architectures": ["MambaForCausalLM"]})),
            "unsupported architecture: MambaForCausalLM",
        ),
        (
            "foreign keys",
            refused(json!({"model_type": "x", "architectures": ["X"], "hidden_size": []})),
            "unsupported arch",
        ),
        ("nameless", refused(json!({"architectures": null, "model_type": null})), "config: `architectures` is missing"),
        ("yarn", refused(json!({"rope_parameters": yarn})), "unsupported rope kind: yarn"),
        ("old yarn", refused(json!({"rope_parameters": null, "rope_scaling": yarn})), "unsupported rope kind: yarn"),
        ("rotation of 6 elements", refused(json!({"rope_parameters": {"partial_rotary_factor": 0.4}})), "config: rope"),
        (
            "layer kind",
            refused(json!({"sliding_window": 8, "layer_types": ["chunked_attention"]})),
            "unsupported attention: chunked_attention",
        ),
        ("no window", refused(json!({"sliding_window": 0})), "config: 2 layers"),
        ("no factor", refused(json!({"rope_parameters": {"rope_type": "linear"}})), "config: `factor` is missing"),
        ("activation", refused(json!({"hidden_act": "gelu"})), "unsupported activation: gelu"),
        (
            "quantised",
            refused(json!({"quantization_config": {"quant_method": "gptq"}})),
            "unsupported quantization: gptq",
        ),
        ("no size", refused(json!({"hidden_size": null})), "config: `hidden_size` is missing"),
        ("no heads", refused(json!({"num_attention_heads": 0, "head_dim": null})), "config: heads 0"),
        ("negative size", refused(json!({"hidden_size": -1})), "bad file"),
        ("huge size", refused(json!({"vocab_size": 1_u64 << 60})), "config: vocabulary"),
        ("no JSON", Folder::new(json!({})).write("config.json", "{").open(), "bad file"),
        ("no weights", Folder::new(json!({})).remove("model.safetensors").open(), "io"),
        (
            "no files",
            ModelFiles::open(TempDir::new().unwrap().path()),
            "bad file: has no config.json, and 0 .gguf files",
        ),
    ]);
}

#[test]
fn ends_of_sequence_come_from_both_configurations() {
    let eos = |changes: Value, generation: Option<&str>| {
        let folder = Folder::new(changes);
        let folder = generation.map_or(Folder::new(json!({})), |text| folder.write("generation_config.json", text));
        folder.open().unwrap().eos
    };
    assert_eq!(eos(json!({}), None), [2]);
    assert_eq!(eos(json!({"eos_token_id": [5, 6]}), Some("{}")), [5, 6]);
    assert_eq!(eos(json!({"eos_token_id": [5, 6]}), Some(r#"{"eos_token_id": [6, 7]}"#)), [5, 6, 7]);
    assert_eq!(eos(json!({"eos_token_id": -1}), Some(r#"{"eos_token_id": 9}"#)), [9]);
}

#[test]
fn a_folder_may_hold_one_gguf() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("a.gguf"), tiny().build()).unwrap();
    assert_eq!(ModelFiles::open(folder.path()).unwrap().config, tiny_config());
    std::fs::write(folder.path().join("b.gguf"), tiny().build()).unwrap();
    assert!(kind(ModelFiles::open(folder.path())).starts_with("bad file: has no config.json, and 2 .gguf files"));
}

/// Tensors of the three formats, and one of a fourth.
fn safetensors(names: &[&str]) -> Vec<u8> {
    use safetensors::tensor::{Dtype as Format, TensorView, serialize};
    let (f32s, f16s, ids) = ([1.5_f32, -2.0], [f16::from_f32(0.25); 2], [1_i64, 2]);
    let all = [
        ("model.norm.weight", Format::F32, bytemuck::cast_slice::<_, u8>(&f32s)),
        ("lm_head.weight", Format::F16, bytemuck::cast_slice(&f16s)),
        ("model.embed_tokens.weight", Format::I64, bytemuck::cast_slice(&ids)),
    ];
    let chosen = all.into_iter().filter(|(name, ..)| names.contains(name));
    serialize(chosen.map(|(name, format, data)| (name, TensorView::new(format, vec![2], data).unwrap())), None).unwrap()
}

const ALL: [&str; 3] = ["model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"];

fn check(files: &ModelFiles) {
    let norm = files.weights.vector(Role::OutputNorm, 2).unwrap();
    assert_eq!((norm.dtype, &norm.data[..4]), (Dtype::F32, 1.5_f32.to_le_bytes().as_slice()));
    let head = files.weights.vector(Role::OutputHead, 2).unwrap();
    assert_eq!((head.dtype, &head.data[2..]), (Dtype::F16, f16::from_f32(0.25).to_le_bytes().as_slice()));
    let error = files.weights.get(Role::TokenEmbedding).unwrap_err();
    assert!(matches!(&error, Error::Unsupported { what: "tensor type", name } if name.starts_with("I64")), "{error}");
    let error = files.weights.get(Role::Layer(3, LayerRole::MlpNorm)).unwrap_err();
    assert!(
        matches!(&error, Error::MissingTensor { name } if name == "model.layers.3.post_attention_layernorm.weight"),
        "{error}"
    );
}

#[test]
fn safetensors_come_whole_or_in_shards() {
    let whole = safetensors(&ALL);
    let files = Folder::new(json!({})).write("model.safetensors", &whole).open().unwrap();
    assert_eq!(files.file_bytes, whole.len() as u64);
    check(&files);
    let index = |text: &str| {
        Folder::new(json!({}))
            .remove("model.safetensors")
            .write("1.safetensors", safetensors(&ALL[..1]))
            .write("2.safetensors", safetensors(&ALL[1..]))
            .write("model.safetensors.index.json", text)
            .open()
    };
    let map = |norm: &str| {
        let map = json!({"model.norm.weight": norm, "lm_head.weight": "2.safetensors",
            "model.embed_tokens.weight": "2.safetensors"});
        json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string()
    };
    check(&index(&map("1.safetensors")).unwrap());
    expect(vec![
        ("wrong shard", index(&map("2.safetensors")), "bad file: lacks tensor `model.norm.weight`"),
        ("missing shard", index(&map("3.safetensors")), "io"),
        ("folder above", index(&map("../1.safetensors")), "bad file: shard `../1.safetensors` is no plain file name"),
        ("absolute", index(&map("/1.safetensors")), "bad file: shard"),
        ("dots", index(&map("..")), "bad file: shard"),
        ("no map", index("{}"), "bad file"),
    ]);
}

#[test]
fn truncated_and_flipped_safetensors_do_not_panic() {
    let mut bytes = safetensors(&ALL);
    let folder = Folder::new(json!({}));
    let path = folder.0.path().join("model.safetensors");
    for len in 0..bytes.len() {
        std::fs::write(&path, &bytes[..len]).unwrap();
        assert!(matches!(folder.open(), Err(Error::BadFile { .. })), "{len} of {} bytes", bytes.len());
    }
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(files) = folder.open() {
            let _ = (files.weights.get(Role::OutputNorm), files.weights.get(Role::OutputHead));
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    let huge = [(1_u64 << 62).to_le_bytes().as_slice(), &bytes[8..]].concat();
    std::fs::write(&path, huge).unwrap();
    assert!(matches!(folder.open(), Err(Error::BadFile { .. })));
}

#[test]
fn random_weights_have_the_scale_that_keeps_activations_finite() {
    let mut config = runahead::config::shapes::shape("tiny").unwrap();
    // Rows of whole blocks in every format.
    (config.hidden, config.n_heads, config.ffn) = (256, 16, 768);
    for dtype in Dtype::ALL {
        let files = ModelFiles::synthetic(config.clone(), dtype, 1).unwrap();
        for role in [LayerRole::Q, LayerRole::Down] {
            let tensor = files.weights.get(Role::Layer(0, role)).unwrap();
            let all = super::kernels::reference::decode_weight(&tensor);
            let mean = all.iter().sum::<f64>() / all.len() as f64;
            let deviation = (all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / all.len() as f64).sqrt();
            // One scale for all tensors: that of the widest rows.
            let relative = deviation * (config.ffn as f64).sqrt();
            assert!((0.45..1.1).contains(&relative), "{dtype:?} {role:?}: {relative}");
            assert!(mean.abs() < 0.15 * deviation, "{dtype:?} {role:?}: {mean}");
        }
    }
}
