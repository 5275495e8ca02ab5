//! Answers a prompt on whatever adapters the machine has.
//!
//! `cargo run --release --example generate -- MODEL "Why is the sky blue?"`, where MODEL is what `runahead pull` printed, or any GGUF file or
//! Hugging Face folder of a supported family.

use std::io::Write;

use runahead::engine::{Engine, Options};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(model), Some(prompt)) = (args.next(), args.next()) else { return Err("arguments: MODEL PROMPT".into()) };

    let engine = Engine::builder(model)?.open()?;
    let prompt = engine.prompt_tokens(&prompt, false)?;
    let mut session = engine.session()?;
    let mut answer = session.generate(&prompt, &Options::default())?;
    for token in answer.by_ref() {
        print!("{}", token?.text);
        std::io::stdout().flush()?;
    }
    println!("{}", answer.finish());
    Ok(())
}
