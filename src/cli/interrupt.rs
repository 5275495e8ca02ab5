//! Ctrl-C, a terminal that is closed, and the request to terminate, as a [`Cancel`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use runahead::cancel::Cancel;

use super::failure::Failure;
use super::output;

/// How long an interrupted command may take to end by itself. Work that a driver has taken cannot be called back, and a device waits for it when it
/// is closed: two submissions as a rule, more where a driver hangs.
const GRACE: Duration = Duration::from_millis(500);

/// What signals end.
#[derive(Clone)]
pub struct Interrupt {
    /// The command.
    pub cancel: Cancel,
    /// A part of the command that is ended in its place, once.
    part: Arc<Mutex<Option<Cancel>>>,
    /// The command is to end behind the part that was ended.
    leaving: Cancel,
}

/// While it lives, the first Ctrl-C ends a part of the command only.
pub struct During<'a>(&'a Interrupt);

impl Interrupt {
    /// Lets Ctrl-C end `part` instead of the command until the guard is dropped; a second Ctrl-C ends the command all the same.
    pub fn during(&self, part: &Cancel) -> During<'_> {
        self.set(Some(part.clone()));
        During(self)
    }

    /// Whether the command is to end by itself now that the part has: nobody is there to go on.
    pub fn is_leaving(&self) -> bool {
        self.leaving.is_cancelled()
    }

    fn set(&self, part: Option<Cancel>) {
        *self.lock() = part;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Cancel>> {
        self.part.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ctrl_c(&self) {
        let part = self.lock().take();
        match part {
            Some(part) => part.cancel(),
            None => self.end(),
        }
    }

    /// A closed terminal tells twice, by the kernel and by the shell: the part, which may be saving what there is, hears of it once.
    #[cfg(unix)]
    fn leave(&self) {
        if !self.is_leaving() {
            self.leaving.cancel();
            self.ctrl_c();
        }
    }

    fn end(&self) {
        self.cancel.cancel();
        std::thread::sleep(GRACE);
        output::note("error: interrupted");
        exit(130);
    }
}

/// Ends the process and nothing else: what the C library runs at an ordinary exit takes away from drivers what their threads, which are still at work,
/// are using. A command died by a signal behind its last line once in some ninety tests on Mesa's software GPU, whose compiler was at work.
#[cfg(unix)]
fn exit(code: i32) -> ! {
    signal_hook::low_level::exit(code)
}

#[cfg(not(unix))]
fn exit(code: i32) -> ! {
    std::process::exit(code)
}

impl Drop for During<'_> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

/// Lets Ctrl-C, a terminal that is closed, and the request to terminate cancel the work, which then ends with exit code 130: by itself, or after a
/// while without waiting for it.
pub fn install() -> Result<Interrupt, Failure> {
    let interrupt = Interrupt { cancel: Cancel::new(), part: Arc::default(), leaving: Cancel::new() };
    let ours = interrupt.clone();
    ctrlc::set_handler(move || ours.ctrl_c())
        .map_err(|error| Failure::Other(format!("Ctrl-C cannot be handled: {error}")))?;
    #[cfg(unix)]
    leave_on_signals(&interrupt).map_err(|error| Failure::Other(format!("signals cannot be handled: {error}")))?;
    Ok(interrupt)
}

#[cfg(unix)]
fn leave_on_signals(interrupt: &Interrupt) -> std::io::Result<()> {
    use std::io::IsTerminal;

    use signal_hook::consts::{SIGHUP, SIGTERM};

    // Who started us with nohup has taken the terminal away, and wants that signal to be ignored.
    let at_terminal =
        std::io::stdin().is_terminal() || std::io::stdout().is_terminal() || std::io::stderr().is_terminal();
    let wanted: &[i32] = if at_terminal { &[SIGHUP, SIGTERM] } else { &[SIGTERM] };
    let mut signals = signal_hook::iterator::Signals::new(wanted)?;
    let ours = interrupt.clone();
    let body = move || signals.forever().for_each(|_| ours.leave());
    std::thread::Builder::new().name("signals".to_owned()).spawn(body).map(drop)
}
