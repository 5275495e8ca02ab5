//! What the user sees: result lines on stdout, notes and progress on stderr.

use std::io::{ErrorKind, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::failure::Failure;

/// Writes `text` to stdout and flushes it, so that a reader sees it now.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe || is_gone(&error) => Err(Failure::ClosedPipe),
        Err(error) => Err(Failure::Other(format!("stdout: {error}"))),
    }
}

/// Whether stdout is a terminal that was closed: that gives EIO, as a disk that fails would.
#[cfg(unix)]
fn is_gone(error: &std::io::Error) -> bool {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileTypeExt;

    const EIO: i32 = 5;
    let is_device = |file: File| file.metadata().is_ok_and(|m| m.file_type().is_char_device());
    error.raw_os_error() == Some(EIO)
        && std::io::stdout().as_fd().try_clone_to_owned().is_ok_and(|stdout| is_device(stdout.into()))
}

#[cfg(not(unix))]
fn is_gone(_: &std::io::Error) -> bool {
    false
}

/// To three digits behind the point: of milliseconds, microseconds are as fine as the clocks deserve.
pub fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// Writes a line to stdout.
pub fn line(text: &str) -> Result<(), Failure> {
    print(&format!("{text}\n"))
}

/// Writes a line to stderr. Where that is closed there is nobody to tell.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Asks for a line: on stderr, as stdout is for results.
pub fn prompt(text: &str) {
    let _ = write!(std::io::stderr(), "{text}");
}

/// A bar over bytes; draws nothing where stderr is no terminal.
pub fn byte_bar(what: &str, total_bytes: Option<u64>, done_bytes: u64) -> ProgressBar {
    let template = match total_bytes {
        Some(_) => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        None => "{msg} {bytes} {bytes_per_sec}",
    };
    let bar = ProgressBar::with_draw_target(total_bytes, ProgressDrawTarget::stderr()).with_position(done_bytes);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.reset_eta();
    bar.set_message(what.to_owned());
    bar
}

/// Writes a value to stdout as JSON, one key per line.
pub fn json_pretty(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::Other(format!("JSON: {e}")))?;
    line(&text)
}

/// Bytes for people: three digits and a binary unit.
pub fn bytes(n: u64) -> String {
    indicatif::BinaryBytes(n).to_string()
}
