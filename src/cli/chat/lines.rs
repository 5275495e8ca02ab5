//! Lines of stdin, read on a thread of its own so that Ctrl-C is seen while a terminal or a pipe is silent.

use std::io::{BufRead, Read};

use crate::cli::failure::Failure;

/// More than any context holds; a pipe without line ends must not fill the memory.
const MOST_BYTES: u64 = 16 << 20;

/// Starts to read. Ends with the input; a terminal that is gone is an end as well.
pub fn read() -> Result<flume::Receiver<Result<String, String>>, Failure> {
    let (sender, receiver) = flume::bounded(1);
    let body = move || {
        let mut stdin = std::io::stdin().lock();
        loop {
            let mut bytes = Vec::new();
            match stdin.by_ref().take(MOST_BYTES).read_until(b'\n', &mut bytes) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let whole = bytes.ends_with(b"\n") || (bytes.len() as u64) < MOST_BYTES;
            let line = match String::from_utf8(bytes) {
                Ok(line) if whole => Ok(line),
                Ok(_) => Err(format!("a line is longer than {MOST_BYTES} bytes")),
                Err(e) => Err(format!("the line is not UTF-8 text from byte {} on", e.utf8_error().valid_up_to())),
            };
            let too_long = !whole;
            if sender.send(line).is_err() || too_long {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("input".to_owned()).spawn(body);
    thread.map(|_| receiver).map_err(|e| Failure::Other(format!("stdin: {e}")))
}
