//! The one error type of the library. Messages carry the numbers: what was needed, what there was, which tensor, adapter or file.

use std::path::PathBuf;
use std::time::Duration;

/// `std::result::Result` with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong in the library.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened, read, mapped or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A model file is damaged, or is not what its name says.
    #[error("{}: {reason}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file is sound, but asks for something this version does not do (architecture, tensor type, rope kind, tokenizer model …).
    #[error("unsupported {what}: {name}")]
    Unsupported {
        /// The kind of thing, e.g. "architecture".
        what: &'static str,
        /// Its name in the file.
        name: String,
    },
    /// A tensor that the architecture needs is not in the file.
    #[error("tensor `{name}` is missing")]
    MissingTensor {
        /// The tensor's name in the file's own convention.
        name: String,
    },
    /// A tensor has another shape than the configuration asks for.
    #[error("tensor `{name}` has shape {found:?}, but the configuration asks for {expected:?}")]
    TensorShape {
        /// The tensor's name in the file.
        name: String,
        /// Shape asked for, outermost dimension first.
        expected: Vec<usize>,
        /// Shape found, outermost dimension first.
        found: Vec<usize>,
    },
    /// The model's configuration contradicts itself.
    #[error("model configuration: {0}")]
    Config(String),
    /// The prompt has no tokens.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The tokens do not fit the context.
    #[error("{needed} tokens do not fit a context of {context}")]
    ContextFull {
        /// Tokens asked for, those already in the cache included.
        needed: usize,
        /// The context's length in tokens.
        context: usize,
    },
    /// A token id is outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocab}")]
    BadToken {
        /// The id.
        id: u32,
        /// Number of tokens in the vocabulary.
        vocab: usize,
    },
    /// The cut of a prompt over the adapters cannot be carried out.
    #[error("partition: {0}")]
    Partition(String),
    /// No adapter answers to this name.
    #[error("no adapter `{name}`; there are: {available}")]
    NoAdapter {
        /// What was asked for.
        name: String,
        /// Names and indices of those that exist.
        available: String,
    },
    /// The adapter lacks something that the work needs.
    #[error("adapter {adapter}: {reason}")]
    Adapter {
        /// The adapter's name.
        adapter: String,
        /// What failed or what is lacking.
        reason: String,
    },
    /// The adapter went away (driver reset, unplugged, out of time at the driver's watchdog).
    #[error("adapter {adapter} was lost: {reason}")]
    AdapterLost {
        /// The adapter's name.
        adapter: String,
        /// What the driver said.
        reason: String,
    },
    /// Not enough memory on an adapter (or on the host, adapter "host").
    #[error("adapter {adapter}: {needed} bytes needed for {what}, {available} available")]
    Memory {
        /// The adapter's name.
        adapter: String,
        /// What the memory is for.
        what: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes available.
        available: u64,
    },
    /// A shader was refused. A bug of ours or of the driver; the text names kernel and variant.
    #[error("shader {name}: {reason}")]
    Shader {
        /// Kernel and variant.
        name: String,
        /// What the front end, the validator or the limits said.
        reason: String,
    },
    /// A worker thread ended without an answer.
    #[error("the worker of adapter {adapter} died")]
    WorkerDied {
        /// The adapter's name.
        adapter: String,
    },
    /// Nothing arrived within the limit.
    #[error("{what}: nothing within {limit:?}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// The limit.
        limit: Duration,
    },
    /// The caller cancelled the work.
    #[error("cancelled")]
    Cancelled,
    /// A setting of the sampler has no meaning, or the model gave nothing to choose from.
    #[error("sampling: {0}")]
    Sampling(String),
    /// Text could not be turned into tokens, or back.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The model's chat template failed.
    #[error("chat template: {0}")]
    Template(String),
}

impl Error {
    /// Wraps an I/O error with the path it is about.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Error::Io { path: path.into(), source }
    }

    /// A damaged file.
    pub fn bad_file(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Error::BadFile { path: path.into(), reason: reason.into() }
    }
}
