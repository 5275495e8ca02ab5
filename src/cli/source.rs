//! Which model a command is about: files, or random weights in the sizes of a well-known model.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use runahead::Result;
use runahead::config::{ModelConfig, shapes};
use runahead::dtype::Dtype;
use runahead::engine::{Engine, EngineBuilder};

use super::args::ModelArgs;
use super::failure::Failure;
use super::open;
use super::planning::Outline;

/// Random weights are the same in every run, which makes runs comparable.
const SEED: u64 = 0;

/// See the module's text.
#[derive(Debug, clap::Args)]
pub struct ModelOrShape {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Random weights in the sizes of a well-known model instead of a file: llama-2-7b, llama-3-8b, smollm2-135m …
    #[arg(long, value_name = "SHAPE", value_parser = Shape::parse, conflicts_with = "model")]
    pub synthetic: Option<Shape>,
    /// Format of the random weights
    #[arg(long, value_name = "TYPE", ignore_case = true, requires = "synthetic", conflicts_with = "model")]
    #[arg(value_parser = weight_types(), default_value = "F16")]
    pub weights: Dtype,
}

impl ModelOrShape {
    /// The files, read but not loaded, or the random weights.
    ///
    /// # Errors
    /// Those of [`open::files`]; sizes that are no multiple of the format's block.
    pub fn files(&self) -> Result<EngineBuilder, Failure> {
        match &self.synthetic {
            Some(shape) => Ok(Engine::synthetic(shape.config()?, self.weights, SEED)?),
            None => open::files(&self.model),
        }
    }

    /// What a plan needs to know. Random weights need not be made for it, and are seen in the same way by every command, so that a table made
    /// by one is found by the others.
    ///
    /// # Errors
    /// As [`files`](Self::files).
    pub fn outline(&self) -> Result<Outline, Failure> {
        match &self.synthetic {
            Some(shape) => Outline::synthetic(shape.config()?, self.weights),
            None => open::files(&self.model).map(|files| Outline::of(&files)),
        }
    }

    /// The same where the [`files`](Self::files) are at hand.
    ///
    /// # Errors
    /// As [`files`](Self::files).
    pub fn outline_of(&self, files: &EngineBuilder) -> Result<Outline, Failure> {
        if self.synthetic.is_some() { self.outline() } else { Ok(Outline::of(files)) }
    }

    /// What the model is called in results.
    pub fn name(&self) -> String {
        match (&self.synthetic, &self.model.model) {
            (Some(shape), _) => format!("{} {} (synthetic)", shape.0, self.weights.name()),
            (None, Some(path)) => path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
            (None, None) => "smollm2".to_owned(),
        }
    }
}

/// A name that [`shapes::shape`] knows.
#[derive(Clone, Debug)]
pub struct Shape(String);

impl Shape {
    /// Reads a name.
    pub fn parse(name: &str) -> Result<Self, String> {
        shapes::shape(name).map(|_| Self(name.to_owned())).map_err(|error| error.to_string())
    }

    /// What the model is.
    pub fn config(&self) -> Result<ModelConfig> {
        shapes::shape(&self.0)
    }
}

/// Formats by their usual names.
fn weight_types() -> impl TypedValueParser<Value = Dtype> {
    let find = |name: String| Dtype::ALL.into_iter().find(|dtype| dtype.name().eq_ignore_ascii_case(&name));
    PossibleValuesParser::new(Dtype::ALL.map(Dtype::name)).try_map(move |name| find(name).ok_or("no such format"))
}
