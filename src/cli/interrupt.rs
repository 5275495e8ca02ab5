//! Ctrl-C as a [`Cancel`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use runahead::cancel::Cancel;

use super::failure::Failure;
use super::output;

/// How long an interrupted command may take to end by itself. Work that a driver has taken cannot be called back, and a device waits for it when it
/// is closed: one layer of a long prompt is many seconds on a software GPU.
const GRACE: Duration = Duration::from_millis(500);

/// What Ctrl-C ends.
pub struct Interrupt {
    /// The command.
    pub cancel: Cancel,
    /// A part of the command that Ctrl-C ends in its place, once.
    part: Arc<Mutex<Option<Cancel>>>,
}

/// While it lives, the first Ctrl-C ends a part of the command only.
pub struct During<'a>(&'a Interrupt);

impl Interrupt {
    /// Lets Ctrl-C end `part` instead of the command until the guard is dropped; a second Ctrl-C ends the command all the same.
    pub fn during(&self, part: &Cancel) -> During<'_> {
        self.set(Some(part.clone()));
        During(self)
    }

    fn set(&self, part: Option<Cancel>) {
        *self.part.lock().unwrap_or_else(PoisonError::into_inner) = part;
    }
}

impl Drop for During<'_> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

/// Lets Ctrl-C cancel the work, which then ends with exit code 130: by itself, or after a while without waiting for it.
pub fn install() -> Result<Interrupt, Failure> {
    let interrupt = Interrupt { cancel: Cancel::new(), part: Arc::default() };
    let (seen, part) = (interrupt.cancel.clone(), Arc::clone(&interrupt.part));
    ctrlc::set_handler(move || {
        if let Some(part) = part.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return part.cancel();
        }
        seen.cancel();
        std::thread::sleep(GRACE);
        output::note("error: interrupted");
        std::process::exit(130);
    })
    .map_err(|error| Failure::Other(format!("Ctrl-C cannot be handled: {error}")))?;
    Ok(interrupt)
}
