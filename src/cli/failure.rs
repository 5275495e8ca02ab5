//! Why a command ended early, and the exit code that says so.

use std::fmt;
use std::path::Path;

use runahead::Error;

/// The ways in which a command can fail.
#[derive(Debug)]
pub enum Failure {
    /// The arguments make no sense together, or a value has the wrong form.
    Usage(String),
    /// The library's own error; a cancelled run among them.
    Library(Error),
    /// Anything else that went wrong while running.
    Other(String),
    /// Whoever read our stdout has closed it. A clean end.
    ClosedPipe,
}

impl Failure {
    /// Exit code of a usage error, clap's own as well as ours.
    pub const USAGE: u8 = 2;

    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::ClosedPipe => 0,
            Failure::Usage(_) => Self::USAGE,
            Failure::Library(Error::Cancelled) => 130,
            Failure::Library(_) | Failure::Other(_) => 1,
        }
    }

    /// Whether a session is good behind it: an answer was stopped, or could not be shown.
    pub fn leaves_session(&self) -> bool {
        !matches!(self, Failure::Library(error) if !matches!(error, Error::Cancelled))
    }

    /// An I/O error with the file that it is about.
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        Failure::Library(Error::io(path, source))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One line each, whatever a server, a driver or a file name put into the text.
        let text = match self {
            Failure::Usage(text) | Failure::Other(text) => text.clone(),
            Failure::Library(Error::Cancelled) => "interrupted".to_owned(),
            Failure::Library(error) => error.to_string(),
            Failure::ClosedPipe => "stdout was closed".to_owned(),
        };
        let line = text.split(char::is_control).map(str::trim).filter(|part| !part.is_empty());
        f.write_str(&line.collect::<Vec<_>>().join(" "))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Library(error)
    }
}
