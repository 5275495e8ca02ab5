//! The library's hello world, as README.md shows it: answers on every real GPU, else on the CPU.

use runahead::engine::{Engine, Options};

fn main() -> runahead::Result<()> {
    let engine = Engine::builder("model.gguf")?.open()?;
    let prompt = engine.prompt_tokens("Why is the sky blue?", false)?;
    for token in engine.session()?.generate(&prompt, &Options::default())? {
        print!("{}", token?.text);
    }
    Ok(())
}
