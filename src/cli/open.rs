//! From the arguments of a command to a loaded engine.

use std::path::PathBuf;
use std::sync::Arc;

use runahead::cancel::Cancel;
use runahead::dtype::KvDtype;
use runahead::engine::{DeviceId, Engine, EngineBuilder, Experiment, Gemm, Link, default_devices, devices};
use runahead::error::Error;

use super::args::{EngineArgs, ModelArgs};
use super::failure::Failure;
use super::output;
use super::progress::Bars;
use super::pull::{self, cache::Cache};

/// Reads the model's files; nothing is loaded yet.
pub fn files(args: &ModelArgs) -> Result<EngineBuilder, Failure> {
    let path = match &args.model {
        Some(path) => path.clone(),
        None => pulled()?,
    };
    Ok(Engine::builder(path)?)
}

fn pulled() -> Result<PathBuf, Failure> {
    let path = pull::smollm2_path()?;
    if path.is_file() {
        return Ok(path);
    }
    let text =
        format!("no model is named (-m), and {} is not there: `runahead pull smollm2` fetches it", path.display());
    Err(Failure::Other(text))
}

/// The adapters that were named, else those that a chain takes by itself.
pub fn named_or_default(named: &[DeviceId]) -> Vec<DeviceId> {
    if named.is_empty() { default_devices(&devices()) } else { named.to_vec() }
}

/// What an engine is opened with.
pub struct Opening<'a> {
    pub responsive: bool,
    pub devices: &'a [DeviceId],
    pub context: usize,
    pub kv: KvDtype,
    pub link: Link,
    pub gemm: Gemm,
    pub experiment: Experiment,
    /// See [`EngineBuilder::busy_workgroups`].
    pub busy_workgroups: Vec<Option<usize>>,
    pub cancel: &'a Cancel,
    pub bars: &'a Arc<Bars>,
}

/// Loads the model.
pub fn engine(files: EngineBuilder, opening: &Opening<'_>) -> Result<Engine, Failure> {
    let bars = Arc::clone(opening.bars);
    let files = match Cache::find() {
        Ok(cache) => files.pipeline_cache(cache.join("pipelines")),
        Err(_) => files,
    };
    let opened = files
        .responsive(opening.responsive)
        .devices(opening.devices.iter().copied())
        .context(opening.context)
        .kv(opening.kv)
        .link(opening.link)
        .gemm(opening.gemm)
        .experiment(opening.experiment.clone())
        .busy_workgroups(opening.busy_workgroups.iter().copied())
        .cancel(opening.cancel.clone())
        .on_progress(move |progress| bars.show(progress))
        .open();
    opening.bars.clear();
    let engine = opened?;
    engine.notes().iter().for_each(|note| output::note(&format!("note: {note}")));
    Ok(engine)
}

/// Loads the model, nothing slowed down; gives the bars that show its progress, too.
pub fn plainly(
    files: EngineBuilder,
    devices: &[DeviceId],
    args: &EngineArgs,
    context: usize,
    cancel: &Cancel,
) -> Result<(Engine, Arc<Bars>), Failure> {
    let bars = Arc::new(Bars::new());
    let experiment = Experiment::default();
    let opening = Opening {
        devices,
        context,
        kv: args.kv.kv.into(),
        link: args.link,
        gemm: args.gemm.gemm,
        responsive: args.responsive,
        experiment,
        busy_workgroups: Vec::new(),
        cancel,
        bars: &bars,
    };
    Ok((engine(files, &opening)?, bars))
}

/// The tokens that `prompt` and `behind` more need, not above the model's own context.
pub fn context_for(files: &EngineBuilder, prompt: usize, behind: usize) -> Result<usize, Failure> {
    let most = files.config().max_context;
    if prompt > most {
        return Err(Error::ContextFull { needed: prompt, context: most }.into());
    }
    Ok(prompt.saturating_add(behind).min(most))
}

/// Says which adapters computed which part of the prompt.
pub fn tell_partition(engine: &Engine, lengths: &[usize]) {
    let names = engine.adapters().collect::<Vec<_>>();
    let unused = names.len() - lengths.len();
    if unused > 0 {
        let (used, all) = (lengths.len(), names.len());
        output::note(&format!(
            "note: the prompt has {used} granules of tokens only: the last {used} of {all} adapters ran"
        ));
    }
    let parts = names[unused..].iter().zip(lengths).map(|(name, n)| format!("{name}: {n} tokens"));
    output::note(&parts.collect::<Vec<_>>().join(", "));
}
