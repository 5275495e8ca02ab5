//! The arguments of `bench`.

use clap::ValueEnum;
use runahead::Result;
use runahead::config::{ModelConfig, shapes};
use runahead::dtype::Dtype;
use runahead::engine::DeviceId;

use crate::cli::args::{KvArgs, ModelArgs, Prefill, SplitArgs};

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Random weights in the sizes of a well-known model instead of a file: llama-2-7b, llama-3-8b, smollm2-135m …
    #[arg(long, value_name = "SHAPE", value_parser = Shape::parse, conflicts_with = "model")]
    pub synthetic: Option<Shape>,
    /// Format of the random weights
    #[arg(long, value_name = "TYPE", value_enum, ignore_case = true, requires = "synthetic", default_value_t = WeightType::F16)]
    pub weights: WeightType,
    /// Lengths of the prompts to prefill, in tokens
    #[arg(short, value_name = "LIST", value_delimiter = ',', value_parser = parse_prompt, default_value = "512")]
    pub prompts: Vec<usize>,
    /// No prefill: decode only
    #[arg(long, conflicts_with = "prompts")]
    pub no_prefill: bool,
    /// Tokens to decode; 0 for none
    #[arg(short, value_name = "LIST", value_delimiter = ',', default_value = "128")]
    pub n: Vec<usize>,
    /// Tokens that stand in the cache before
    #[arg(short, value_name = "LIST", value_delimiter = ',', default_value = "0")]
    pub depth: Vec<usize>,
    /// Repetitions of each case, after one to warm up
    #[arg(short, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000), default_value_t = 5)]
    pub repetitions: u32,
    /// Adapters in the order of the chain, as in `generate`; the last one decodes
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub devices: Vec<DeviceId>,
    /// Ways to prefill, compared side by side: single is each adapter alone.
    /// With several adapters single,runahead unless said here, else single
    #[arg(long, value_name = "LIST", value_enum, value_delimiter = ',')]
    pub prefill: Vec<Prefill>,
    #[command(flatten)]
    pub split: SplitArgs,
    #[command(flatten)]
    pub kv: KvArgs,
    /// Form of the results
    #[arg(short, long, value_enum, value_name = "FORM", default_value_t = Output::Md)]
    pub output: Output,
}

impl BenchArgs {
    /// What the model is called in the results.
    pub fn model_name(&self) -> String {
        match (&self.synthetic, &self.model.model) {
            (Some(shape), _) => format!("{} {} (synthetic)", shape.0, Dtype::from(self.weights).name()),
            (None, Some(path)) => path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
            (None, None) => "smollm2".to_owned(),
        }
    }
}

/// A name that [`shapes::shape`] knows.
#[derive(Clone, Debug)]
pub struct Shape(String);

impl Shape {
    fn parse(name: &str) -> Result<Self, String> {
        shapes::shape(name).map(|_| Self(name.to_owned())).map_err(|error| error.to_string())
    }

    /// What the model is.
    pub fn config(&self) -> Result<ModelConfig> {
        shapes::shape(&self.0)
    }
}

/// See [`Dtype`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum WeightType {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_0")]
    Q4_0,
    #[value(name = "q4_1")]
    Q4_1,
}

impl From<WeightType> for Dtype {
    fn from(weights: WeightType) -> Self {
        match weights {
            WeightType::F32 => Dtype::F32,
            WeightType::F16 => Dtype::F16,
            WeightType::Bf16 => Dtype::Bf16,
            WeightType::Q8_0 => Dtype::Q8_0,
            WeightType::Q4_0 => Dtype::Q4_0,
            WeightType::Q4_1 => Dtype::Q4_1,
        }
    }
}

/// Forms of the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table in Markdown
    Md,
    /// A line per case behind a line of names
    Csv,
    /// One array
    Json,
    /// An object per line
    Jsonl,
}

fn parse_prompt(text: &str) -> Result<usize, String> {
    match text.trim().parse() {
        Ok(0) => Err("a prompt has one token at least; --no-prefill leaves the prefill out".to_owned()),
        Ok(n) => Ok(n),
        Err(_) => Err(format!("`{text}` is no number of tokens")),
    }
}
