//! `runahead-desktop [MODEL]`: a GGUF file or a folder in Hugging Face layout; else what `RUNAHEAD_MODEL` names.

use std::process::ExitCode;

use runahead::engine::{default_devices, devices};
use runahead_desktop::App;

fn main() -> ExitCode {
    let model = std::env::args().nth(1).or_else(|| std::env::var("RUNAHEAD_MODEL").ok()).unwrap_or_default();
    // Asks every driver, which may take a second: before there is a window that it could hold up.
    let devices = devices();
    let chain = default_devices(&devices);
    let options = eframe::NativeOptions::default();
    match eframe::run_native("Runahead", options, Box::new(|_| Ok(Box::new(App::new(model, devices, chain))))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
