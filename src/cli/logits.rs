//! `runahead logits`: the logits of every position of a prompt, in a safetensors file.

use std::path::{Path, PathBuf};

use runahead::cancel::Cancel;
use runahead::engine::Options;
use runahead::error::Error;
use safetensors::tensor::{Dtype, SafeTensorError, TensorView};

use super::args::{ChainArgs, ModelArgs, TokensArgs};
use super::failure::Failure;
use super::input;
use super::new_file::NewFile;
use super::open;
use super::output;

/// Arguments of `logits`.
#[derive(Debug, clap::Args)]
pub struct LogitsArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub tokens: TokensArgs,
    #[command(flatten)]
    pub chain: ChainArgs,
    /// A safetensors file, to hold `logits` [tokens, vocabulary] in f32
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// Runs the command.
pub fn run(args: &LogitsArgs, cancel: &Cancel) -> Result<(), Failure> {
    let ids = input::read_ids(&args.tokens, cancel)?;
    let files = open::files(&args.model)?;
    let ids = input::check_ids(ids, &files)?;
    let devices = open::named_or_default(&args.chain.devices);
    let lengths = args.chain.split.split.lengths(0, ids.len(), devices.len())?;
    let context = open::context_for(&files, ids.len(), 0)?;
    // Before the work: a folder that cannot be written would waste it.
    let out = NewFile::begin(&args.out)?;

    let (engine, bars) = open::plainly(files, &devices, &args.chain.engine, context, cancel)?;
    let options = Options { split: args.chain.split.split.clone(), ..Options::default() };
    let logits = engine.session()?.logits(&ids, &options);
    bars.clear();
    let logits = logits?;
    let shape = [ids.len(), engine.config().vocab];
    out.finish(|partial| write(&logits, shape, partial, &args.out))?;
    open::tell_partition(&engine, &lengths);
    output::note(&format!("{} x {} logits in {}", shape[0], shape[1], args.out.display()));
    Ok(())
}

/// Writes to `partial` what will be `path`.
fn write(logits: &[f32], shape: [usize; 2], partial: &Path, path: &Path) -> Result<(), Failure> {
    let failed = |e: SafeTensorError| match e {
        SafeTensorError::IoError(e) => Failure::io(path, e),
        other => Error::bad_file(path, other.to_string()).into(),
    };
    let tensor = TensorView::new(Dtype::F32, shape.to_vec(), bytemuck::cast_slice(logits)).map_err(failed)?;
    safetensors::serialize_to_file([("logits", tensor)], None, partial).map_err(failed)
}
