//! Ctrl-C as a [`Cancel`].

use std::time::Duration;

use runahead::cancel::Cancel;

use super::failure::Failure;
use super::output;

/// How long an interrupted command may take to end by itself. Work that a driver has taken cannot be called back, and a device waits for it when it
/// is closed: one layer of a long prompt is many seconds on a software GPU.
const GRACE: Duration = Duration::from_millis(500);

/// Lets Ctrl-C cancel the work, which then ends with exit code 130: by itself, or after a while without waiting for it.
pub fn install() -> Result<Cancel, Failure> {
    let cancel = Cancel::new();
    let seen = cancel.clone();
    ctrlc::set_handler(move || {
        seen.cancel();
        std::thread::sleep(GRACE);
        output::note("error: interrupted");
        std::process::exit(130);
    })
    .map_err(|error| Failure::Other(format!("Ctrl-C cannot be handled: {error}")))?;
    Ok(cancel)
}
