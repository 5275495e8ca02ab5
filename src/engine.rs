//! The engine: all that an application needs. A model loaded on the adapters that the application chose, and sessions on it.
//!
//! No global state: several engines live side by side in one process, and everything ends when it is dropped.

use std::fmt;
use std::sync::Arc;

use crate::cancel::{Cancel, Wait};
use crate::config::ModelConfig;
use crate::dims::Piece;
use crate::dtype::KvDtype;
use crate::error::{Error, Result};
use crate::model::Slots;
use crate::runahead::node::{Adapter, Node};
use crate::runahead::turn::Turn;
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;
use crate::weights::ModelFiles;

mod builder;
mod calibrate;
mod devices;
mod gemm;
mod generation;
mod report;
mod saved;
mod session;
mod stream;

pub use crate::runahead::cost::Lane;
pub use crate::runahead::experiment::Experiment;
pub use crate::runahead::link::Link;
pub use crate::runahead::noise::Noise;
pub use crate::runahead::schedule::Mode;
pub use builder::EngineBuilder;
pub use calibrate::{CalibrateOptions, CalibrateStep, Calibration};
pub use devices::{DeviceId, DeviceInfo, default_devices, devices};
pub use gemm::{CudaVersions, Gemm, cuda};
pub use generation::{Generation, Token};
pub use report::{AdapterReport, HandOff, PrefillReport};
pub use saved::saved_tokens;
pub use session::{Options, Session};
pub use stream::{Event, Stream};

/// How far a load or a prefill is.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Progress {
    /// Weights on their way to an adapter.
    Load {
        /// Its name.
        adapter: String,
        /// Bytes of the file done.
        done_bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
    },
    /// An adapter's share of a prefill.
    Prefill {
        /// Its name.
        adapter: String,
        /// Token-layers done.
        done: u64,
        /// Token-layers in all.
        total: u64,
    },
}

/// Called from the engine's threads; must not block.
type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;

/// A model on adapters. Cheap to clone; sessions keep it alive.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    files: ModelFiles,
    config: Arc<ModelConfig>,
    adapters: Vec<Box<dyn Adapter>>,
    notes: Vec<String>,
    context: usize,
    kv: KvDtype,
    take_back: usize,
    max_share: usize,
    experiment: Experiment,
    /// For each adapter.
    turns: Vec<Option<Arc<Turn>>>,
    cancel: Cancel,
    progress: OnProgress,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let adapters = self.adapters().collect::<Vec<_>>();
        f.debug_struct("Engine").field("adapters", &adapters).field("context", &self.context()).finish_non_exhaustive()
    }
}

impl Engine {
    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.shared.config
    }

    /// The model's tokenizer; a folder with weights alone has none.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.shared.files.tokenizer.as_ref()
    }

    /// The model's chat template, where it has one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.shared.files.template.as_ref()
    }

    /// Names of the adapters, in the order of the chain.
    pub fn adapters(&self) -> impl Iterator<Item = &str> {
        self.shared.adapters.iter().map(|a| a.name())
    }

    /// Who computes each adapter's products in a prefill, in the order of the chain: `wgsl`, `cublaslt` or `native`.
    pub fn products(&self) -> impl Iterator<Item = &str> {
        self.shared.adapters.iter().map(|a| a.products())
    }

    /// What the caller should know of how the adapters were opened: which one does without what it was expected to use, and why.
    pub fn notes(&self) -> &[String] {
        &self.shared.notes
    }

    /// Tokens that a session holds.
    pub fn context(&self) -> usize {
        self.shared.context
    }

    /// Turns text into tokens: through the chat template as one user message, or as it is where `raw` (or where the model has no template).
    ///
    /// # Errors
    /// [`Error::Tokenizer`] without a tokenizer, [`Error::Template`] where the template fails, [`Error::EmptyPrompt`].
    pub fn prompt_tokens(&self, text: &str, raw: bool) -> Result<Vec<u32>> {
        builder::prompt_tokens(&self.shared.files, text, raw)
    }

    /// An empty session: a K/V cache on every adapter.
    ///
    /// # Errors
    /// [`Error::Memory`] where it does not fit.
    pub fn session(&self) -> Result<Session> {
        let shared = &self.shared;
        let last = shared.adapters.len() - 1;
        let open = |i: usize| match i == last {
            true => self.keeper(&*shared.adapters[i]),
            false => shared.adapters[i].open(shared.context, shared.kv, Slots::Ring),
        };
        let nodes = (0..=last).map(open).collect::<Result<Vec<_>>>()?;
        Ok(Session::new(self.clone(), &(0..=last).collect::<Vec<_>>(), nodes))
    }

    /// An empty session on one adapter alone, by its place in [`Engine::adapters`].
    ///
    /// # Errors
    /// [`Error::NoAdapter`], [`Error::Memory`].
    pub fn session_on(&self, adapter: usize) -> Result<Session> {
        let shared = &self.shared;
        let missing = || Error::NoAdapter {
            name: adapter.to_string(),
            available: self.adapters().collect::<Vec<_>>().join(", "),
        };
        let node = self.keeper(&**shared.adapters.get(adapter).ok_or_else(missing)?)?;
        Ok(Session::new(self.clone(), &[adapter], vec![node]))
    }

    /// A node that keeps the cache of every layer.
    fn keeper(&self, adapter: &dyn Adapter) -> Result<Box<dyn Node>> {
        let shared = &self.shared;
        let mut node = adapter.open(shared.context, shared.kv, Slots::All)?;
        node.make_room(shared.take_back, Piece::new(0, 0), &Wait::new(&shared.cancel))?;
        Ok(node)
    }

    /// The engine's own cancel: once set, all its sessions end.
    pub fn cancel(&self) -> &Cancel {
        &self.shared.cancel
    }

    /// Whether a token ends a sequence or a turn.
    pub fn ends(&self, id: u32) -> bool {
        self.shared.files.eos.contains(&id)
    }

    fn check_token(&self, id: u32) -> Result<()> {
        let vocab = self.shared.config.vocab;
        if (id as usize) < vocab { Ok(()) } else { Err(Error::BadToken { id, vocab }) }
    }
}
