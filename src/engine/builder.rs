//! Opening a model: files first, so that a prompt can be counted before memory is taken, then adapters.

use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::cancel::{Cancel, all_or_cause};
use crate::config::ModelConfig;
use crate::dims::{GRANULE, round_up};
use crate::dtype::{Dtype, KvDtype, Scalar};
use crate::engine::{DeviceId, Engine, Experiment, Gemm, Link, OnProgress, Progress, Shared, default_devices, devices};
use crate::error::{Error, Result};
use crate::gpu::{self, GpuAdapter};
use crate::kernels::Kernels;
use crate::kernels::cpu::Cpu;
#[cfg(feature = "cuda")]
use crate::kernels::cuda::Cuda;
use crate::kernels::wgsl::Wgsl;
use crate::model::memory::TAKE_BACK;
use crate::model::{LoadOptions, Model};
use crate::runahead::node::{Adapter, Loaded};
use crate::runahead::turn::Turn;
use crate::template::{ChatTemplate, Message};
use crate::threads;
use crate::tokenizer::Tokenizer;
use crate::weights::ModelFiles;

/// Context of an engine that nobody asked for more: enough for a conversation, small enough for any adapter.
const DEFAULT_CONTEXT: usize = 4096;

/// How long one submission to a GPU may take: desktops stutter visibly beyond it, watchdogs take seconds, and a cancel has to wait for two of them.
const SUBMISSION: Duration = Duration::from_millis(30);

/// The same where the device also draws what somebody looks at: half a picture's time at 60 a second.
const RESPONSIVE_SUBMISSION: Duration = Duration::from_millis(8);

/// The CPU adapter's name.
const CPU_NAME: &str = "cpu";

/// Chooses how a model is loaded. Made by [`Engine::builder`].
pub struct EngineBuilder {
    files: ModelFiles,
    devices: Vec<DeviceId>,
    context: Option<usize>,
    kv: KvDtype,
    gemm: Gemm,
    link: Link,
    submission: Duration,
    take_back: usize,
    max_share: usize,
    experiment: Experiment,
    busy_workgroups: Vec<Option<usize>>,
    pipelines: Option<PathBuf>,
    cancel: Cancel,
    progress: OnProgress,
}

impl Engine {
    /// Reads a model's files: a GGUF file, or a folder in Hugging Face layout.
    ///
    /// # Errors
    /// What is wrong with the files, before any adapter is touched.
    pub fn builder(path: impl AsRef<Path>) -> Result<EngineBuilder> {
        ModelFiles::open(path.as_ref()).map(EngineBuilder::new)
    }

    /// A model with random weights in `dtype`, the same for the same `seed`: measures speed without a file. It has no tokenizer.
    ///
    /// # Errors
    /// As [`ModelFiles::synthetic`].
    pub fn synthetic(config: ModelConfig, dtype: Dtype, seed: u64) -> Result<EngineBuilder> {
        ModelFiles::synthetic(config, dtype, seed).map(EngineBuilder::new)
    }
}

impl EngineBuilder {
    fn new(files: ModelFiles) -> Self {
        Self {
            files,
            devices: Vec::new(),
            context: None,
            kv: KvDtype::default(),
            gemm: Gemm::default(),
            link: Link::default(),
            submission: SUBMISSION,
            take_back: TAKE_BACK,
            max_share: usize::MAX,
            experiment: Experiment::default(),
            busy_workgroups: Vec::new(),
            pipelines: None,
            cancel: Cancel::new(),
            progress: Arc::new(|_| {}),
        }
    }

    /// The adapters, in the order of the chain; the last one decodes. An adapter named twice is opened as two logical ones. Without this, every
    /// real GPU, else the CPU.
    pub fn devices(mut self, devices: impl IntoIterator<Item = DeviceId>) -> Self {
        self.devices = devices.into_iter().collect();
        self
    }

    /// Tokens that a session can hold (4,096 or the model's own context if that is shorter, unless said here).
    pub fn context(mut self, tokens: usize) -> Self {
        self.context = Some(tokens);
        self
    }

    /// Element type of the K/V cache (f16 unless said here). Who asks for f32 wants exactness: activations are f32 then, too, on matrix units'
    /// adapters as well, which costs their speed.
    pub fn kv(mut self, dtype: KvDtype) -> Self {
        self.kv = dtype;
        self
    }

    /// Who computes products and attention of a prefill on NVIDIA's GPUs, in a build with the feature `cuda`. Only where activations are f16; see
    /// [`EngineBuilder::kv`].
    pub fn gemm(mut self, gemm: Gemm) -> Self {
        self.gemm = gemm;
        self
    }

    /// How K/V rows pass between each adapter of a chain and host memory ([`Link::Auto`] unless said here). Where a device has no `Dma` it is
    /// `Copy`, without `Cuda` it is `Auto`; [`AdapterReport::link`](crate::engine::AdapterReport::link) says what it did.
    /// A device with queues for copies beside the one that computes fetches its weights by these, unless this is `Copy`.
    pub fn link(mut self, link: Link) -> Self {
        self.link = link;
        self
    }

    /// Keeps each submission to a GPU to about 8 ms instead of 30, by the rates that are measured as it works: for a GPU whose screen is in use, and
    /// for a cancel that is felt at once. Long prompts take a little longer; no result changes.
    pub fn responsive(self, responsive: bool) -> Self {
        self.submission(if responsive { RESPONSIVE_SUBMISSION } else { SUBMISSION })
    }

    /// How long a submission to a GPU may take, where neither of [`EngineBuilder::responsive`]'s is right; at least what the shortest part of an
    /// operation takes.
    pub fn submission(mut self, limit: Duration) -> Self {
        self.submission = limit;
        self
    }

    /// Tokens by which a conversation can be cut back ([`Session::truncate`](crate::engine::Session::truncate)) without a new prefill where the model
    /// has windows: 1,024 unless said here, or as many as the longest share of a prefill. Each takes the memory of a row in every layer with a
    /// window.
    pub fn take_back(mut self, tokens: usize) -> Self {
        self.take_back = tokens;
        self
    }

    /// Tokens that an adapter takes at a time at most (any number unless said here, as far as its tensors hold them). Longer prompts go in several
    /// passes, one behind the other: that bounds the memory of activations, which grows with the longest share. No bit depends on it.
    pub fn max_share(mut self, tokens: usize) -> Self {
        self.max_share = tokens;
        self
    }

    /// How many workgroups of a product keep each adapter busy, in the order of the devices, as a calibration found
    /// ([`AdapterCost::busy_workgroups`](crate::runahead::cost::AdapterCost::busy_workgroups)); what suits large GPUs where nothing is said. Time
    /// depends on it, no result does.
    pub fn busy_workgroups(mut self, of_adapters: impl IntoIterator<Item = Option<usize>>) -> Self {
        self.busy_workgroups = of_adapters.into_iter().collect();
        self
    }

    /// Slows links or adapters down on purpose, to try out networks and machines that are not there. Results stay the same.
    pub fn experiment(mut self, experiment: Experiment) -> Self {
        self.experiment = experiment;
        self
    }

    /// Keeps what drivers compile in files of this folder (one for each kind of adapter), so that the next start is quicker. Without it nothing is
    /// written. The files are given to the driver as they are: the folder is to be the user's own.
    pub fn pipeline_cache(mut self, folder: impl Into<PathBuf>) -> Self {
        self.pipelines = Some(folder.into());
        self
    }

    /// A flag that ends the load and everything after it.
    pub fn cancel(mut self, cancel: Cancel) -> Self {
        self.cancel = cancel;
        self
    }

    /// Called with the progress of load and prefill, from the engine's threads; must not block.
    pub fn on_progress(mut self, call: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.progress = Arc::new(call);
        self
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.files.config
    }

    /// The model's tokenizer; a folder with weights alone has none.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.files.tokenizer.as_ref()
    }

    /// The model's chat template, where it has one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.files.template.as_ref()
    }

    /// Number of parameters of the model.
    pub fn n_parameters(&self) -> u64 {
        self.files.weights.n_parameters()
    }

    /// The number format that most bytes of the model's weights have; `None` for a model without any.
    pub fn weights_dtype(&self) -> Option<Dtype> {
        self.files.weights.main_dtype()
    }

    /// Bytes of the model's weights.
    pub fn weights_bytes(&self) -> u64 {
        self.files.weights.n_bytes()
    }

    /// As [`Engine::prompt_tokens`], before anything is loaded.
    ///
    /// # Errors
    /// See [`Engine::prompt_tokens`].
    pub fn prompt_tokens(&self, text: &str, raw: bool) -> Result<Vec<u32>> {
        prompt_tokens(&self.files, text, raw)
    }

    /// Opens the adapters and loads the model on each, all at the same time.
    ///
    /// # Errors
    /// An adapter that is not there, a tensor that is missing or ill-shaped, too little memory, a cancel.
    pub fn open(self) -> Result<Engine> {
        let (stop, progress) = (self.cancel.clone(), Arc::clone(&self.progress));
        self.open_until(&stop, &progress)
    }

    pub(super) fn own_cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// As [`EngineBuilder::open`]; `stop` ends the load and `progress` is told of it, while the builder's own are the engine's.
    pub(super) fn open_until(self, stop: &Cancel, progress: &OnProgress) -> Result<Engine> {
        let config = Arc::new(self.files.config.clone());
        let context = self.context.unwrap_or(DEFAULT_CONTEXT.min(config.max_context));
        if context == 0 || context > config.max_context {
            return Err(Error::ContextFull { needed: context, context: config.max_context });
        }
        self.experiment.validate()?;
        let context = round_up(context, GRANULE);
        let ids = if self.devices.is_empty() { default_devices(&devices()) } else { self.devices.clone() };
        let gpus = if ids.iter().all(|&id| id == DeviceId::Cpu) { Vec::new() } else { gpu::enumerate() };
        // NVIDIA's driver (580.159 on Linux) deadlocks where one thread destroys a device while another ends that has used one, as threads that load do:
        // no adapter goes before all of them have ended, whether its model could be loaded or not.
        let held = Mutex::new(Vec::<Arc<dyn Any + Send + Sync>>::new());
        // One that fails ends the loads of the others.
        let stop = &stop.child();
        let opening =
            Opening { builder: &self, stop, progress, config: &config, gpus: &gpus, ids: &ids, context, held: &held };
        let adapters: Vec<Result<Opened>> = std::thread::scope(|scope| {
            let load = |(i, id): (usize, &DeviceId)| {
                let opening = &opening;
                threads::start(scope, ("load", &id.to_string()), stop, move || opening.adapter_as_set(i))
            };
            let loads: Vec<_> = ids.iter().enumerate().map(load).collect();
            let died = |id: &DeviceId| Error::WorkerDied { adapter: id.to_string() };
            let ends = loads.into_iter().zip(&ids);
            ends.map(|(load, id)| load?.join().unwrap_or_else(|_| Err(died(id)))).collect()
        });
        let adapters = all_or_cause(adapters)?;
        let (adapters, notes): (Vec<_>, Vec<_>) = adapters.into_iter().unzip();
        let shared = Shared {
            notes: notes.into_iter().flatten().collect(),
            files: self.files,
            config,
            adapters,
            context,
            kv: self.kv,
            take_back: self.take_back,
            max_share: self.max_share.max(GRANULE),
            turns: Turn::of(&ids, &self.experiment),
            experiment: self.experiment,
            cancel: self.cancel,
            progress: self.progress,
        };
        Ok(Engine { shared: Arc::new(shared) })
    }
}

/// An adapter with the model on it, and what the caller should know of how it came to be.
type Opened = (Box<dyn Adapter>, Option<String>);

struct Opening<'a> {
    builder: &'a EngineBuilder,
    stop: &'a Cancel,
    progress: &'a OnProgress,
    config: &'a Arc<ModelConfig>,
    gpus: &'a [GpuAdapter],
    ids: &'a [DeviceId],
    context: usize,
    /// Every adapter that a model was to be loaded on.
    held: &'a Mutex<Vec<Arc<dyn Any + Send + Sync>>>,
}

impl Opening<'_> {
    fn adapter_as_set(&self, i: usize) -> Result<Opened> {
        let opened = self.adapter(i)?;
        if let Some(&Some(n)) = self.builder.busy_workgroups.get(i) {
            opened.0.set_busy_workgroups(n);
        }
        Ok(opened)
    }

    fn adapter(&self, i: usize) -> Result<Opened> {
        let id = self.ids[i];
        match id {
            DeviceId::Cpu => {
                let n_cpus = self.ids.iter().filter(|&&d| d == DeviceId::Cpu).count();
                let name = self.logical_name(CPU_NAME, i);
                let threads = (Cpu::default_threads() / n_cpus).max(1);
                // The CPU looks at the cancel within every operation, and belongs to whoever the system gives it to.
                self.load(Arc::new(Cpu::new(&name, threads)?), name, (None, None))
            }
            DeviceId::Gpu(index) => {
                let adapter = self.gpus.get(index).ok_or_else(|| self.no_adapter(id))?;
                let name = self.logical_name(&adapter.info().name, i);
                // One adapter alone hands nothing on, but fetches its weights.
                let opening = gpu::Opening { transfers: self.builder.link.transfers(), export: false };
                #[cfg(feature = "cuda")]
                let note = match self.cuda(adapter, opening)? {
                    Ok(kernels) => return self.load(Arc::new(kernels), name, (None, Some(self.builder.submission))),
                    Err(note) => note,
                };
                #[cfg(not(feature = "cuda"))]
                let note = None;
                #[cfg(not(feature = "cuda"))]
                if self.builder.gemm == Gemm::CublasLt {
                    return Err(Error::Unsupported {
                        what: "products",
                        name: "cublaslt, without the feature `cuda`".to_owned(),
                    });
                }
                let gpu = Arc::new(adapter.open_with(opening)?);
                if let Some(folder) = &self.builder.pipelines {
                    gpu.keep_pipelines(folder);
                }
                let kernels = match self.builder.kv {
                    KvDtype::F16 => Wgsl::new(gpu)?,
                    KvDtype::F32 => Wgsl::with_activation(Scalar::F32, gpu)?,
                };
                self.load(Arc::new(kernels), name, (note, Some(self.builder.submission)))
            }
        }
    }

    /// The kernels with CUDA, where they are asked for and there; else what is to be said of that: nothing, where nobody would expect them.
    #[cfg(feature = "cuda")]
    fn cuda(&self, adapter: &GpuAdapter, opening: gpu::Opening) -> Result<std::result::Result<Cuda, Option<String>>> {
        let open = || {
            gpu::cuda_versions().map_err(|reason| Error::Adapter { adapter: adapter.info().name.clone(), reason })?;
            let gpu = adapter.open_with(gpu::Opening { export: true, ..opening })?.with_cuda()?;
            if let Some(folder) = &self.builder.pipelines {
                gpu.keep_pipelines(folder);
            }
            let kernels = Cuda::new(Arc::new(gpu))?;
            let direct = self.ids.len() > 1 && matches!(self.builder.link, Link::Auto | Link::Cuda);
            Ok::<_, Error>(if direct { kernels.with_peers() } else { kernels })
        };
        match (self.builder.gemm, self.builder.kv) {
            (Gemm::Wgsl, _) | (Gemm::Auto, KvDtype::F32) => Ok(Err(None)),
            (Gemm::Auto, KvDtype::F16) => Ok(open().map_err(|e| {
                let expected = adapter.info().driver.starts_with("NVIDIA");
                expected.then(|| format!("prefill is by WGSL: {e}"))
            })),
            (Gemm::CublasLt, KvDtype::F16) => open().map(Ok),
            (Gemm::CublasLt, KvDtype::F32) => {
                Err(Error::Unsupported { what: "products", name: "cublaslt with a cache in f32".to_owned() })
            }
        }
    }

    /// `note` is what is to be said of the adapter, `submission` the longest time that a submission may take.
    fn load<K: Kernels>(
        &self,
        kernels: Arc<K>,
        name: String,
        (note, submission): (Option<String>, Option<Duration>),
    ) -> Result<Opened> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&kernels) as _);
        let progress = |done_bytes, total_bytes| {
            (self.progress)(Progress::Load { adapter: name.clone(), done_bytes, total_bytes });
        };
        let options = LoadOptions { context: self.context, submission, cancel: self.stop, progress: &progress };
        let model = Model::load(kernels, Arc::clone(self.config), &self.builder.files.weights, &options)?;
        Ok((Box::new(Loaded { name: name.clone(), model: Arc::new(model) }), note))
    }

    /// A name of its own for each adapter: equal cards and logical adapters are numbered from 2.
    fn logical_name(&self, name: &str, i: usize) -> String {
        let same = |id: &&DeviceId| match id {
            DeviceId::Cpu => name == CPU_NAME,
            DeviceId::Gpu(index) => self.gpus.get(*index).is_some_and(|gpu| gpu.info().name == name),
        };
        match self.ids[..i].iter().filter(same).count() {
            0 => name.to_owned(),
            before => format!("{name} #{}", before + 1),
        }
    }

    fn no_adapter(&self, id: DeviceId) -> Error {
        let names = self.gpus.iter().enumerate().map(|(i, g)| format!("{i} ({})", g.info().name));
        let available = names.chain(["cpu".to_owned()]).collect::<Vec<_>>().join(", ");
        Error::NoAdapter { name: id.to_string(), available }
    }
}

pub(super) fn prompt_tokens(files: &ModelFiles, text: &str, raw: bool) -> Result<Vec<u32>> {
    let tokenizer =
        files.tokenizer.as_ref().ok_or_else(|| Error::Tokenizer("the model has none; give token ids".to_owned()))?;
    if text.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    let ids = match (&files.template, raw) {
        (Some(template), false) => {
            let text = template.render(&[Message { role: "user".to_owned(), content: text.to_owned() }], true)?;
            // The template writes the special tokens itself.
            tokenizer.encode(&text, false)?
        }
        _ => tokenizer.encode(text, true)?,
    };
    if ids.is_empty() { Err(Error::EmptyPrompt) } else { Ok(ids) }
}
