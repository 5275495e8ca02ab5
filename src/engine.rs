//! The engine: all that an application needs. A model loaded on the adapters that the application chose, and sessions on it.
//!
//! No global state: several engines live side by side in one process, and everything ends when it is dropped.

use std::sync::Arc;

use crate::cancel::Cancel;
use crate::config::ModelConfig;
use crate::dtype::KvDtype;
use crate::error::{Error, Result};
use crate::model::Slots;
use crate::runahead::node::Adapter;
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;
use crate::weights::ModelFiles;

mod builder;
mod devices;
mod generation;
mod report;
mod session;
mod stream;

pub use builder::EngineBuilder;
pub use devices::{DeviceId, DeviceInfo, default_devices, devices};
pub use generation::{Generation, Token};
pub use report::{AdapterReport, PrefillReport};
pub use session::{Mode, Options, Session};
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
    context: usize,
    kv: KvDtype,
    cancel: Cancel,
    progress: OnProgress,
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
        let nodes = shared
            .adapters
            .iter()
            .enumerate()
            .map(|(i, a)| a.open(shared.context, shared.kv, if i == last { Slots::All } else { Slots::Ring }))
            .collect::<Result<Vec<_>>>()?;
        Ok(Session::new(self.clone(), nodes))
    }

    /// The engine's own cancel: once set, all its sessions end.
    pub fn cancel(&self) -> &Cancel {
        &self.shared.cancel
    }

    fn check_token(&self, id: u32) -> Result<()> {
        let vocab = self.shared.config.vocab;
        if (id as usize) < vocab { Ok(()) } else { Err(Error::BadToken { id, vocab }) }
    }
}
