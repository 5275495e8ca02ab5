//! Prefill through the library: a chain of two logical adapters against one, as a ratio within one run. `runahead bench` measures everything else.
//!
//! `cargo bench --bench prefill [-- SHAPE [DEVICE]]`: smollm2-135m and the first default adapter unless said here.

use runahead::Result;
use runahead::config::shapes;
use runahead::dtype::Dtype;
use runahead::engine::{DeviceId, Engine, Mode, Options, Session, default_devices, devices};

const PROMPTS: [usize; 3] = [128, 512, 1024];
/// An odd number, so that the median is one of them.
const RUNS: usize = 3;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let shape = args.next().unwrap_or_else(|| "smollm2-135m".to_owned());
    let device = match args.next() {
        Some(name) => name.parse()?,
        None => default_devices(&devices()).first().copied().unwrap_or(DeviceId::Cpu),
    };
    let engine = Engine::synthetic(shapes::shape(&shape)?, Dtype::F16, 0)?
        .devices([device; 2])
        .context(PROMPTS.into_iter().max().unwrap_or(1))
        .open()?;
    let mut session = engine.session()?;
    println!("{shape} F16, adapter {device}: median of {RUNS} runs");
    for n in PROMPTS {
        let ids = engine.config().any_tokens(n, 0);
        let single = ttft_ms(&mut session, &ids, Mode::Single)?;
        let chain = ttft_ms(&mut session, &ids, Mode::Runahead)?;
        println!("{n:5} tokens: one adapter {single:8.1} ms, chain of two {chain:8.1} ms, ratio {:.3}", chain / single);
    }
    Ok(())
}

/// Median time to the first token, after a run to warm up.
fn ttft_ms(session: &mut Session, ids: &[u32], mode: Mode) -> Result<f64> {
    let options = Options { max_tokens: 1, mode, ..Options::default() };
    let mut times = Vec::with_capacity(RUNS);
    for run in 0..=RUNS {
        session.clear();
        let ms = session.generate(ids, &options)?.report().ttft_ms;
        if run > 0 {
            times.push(ms);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times[RUNS / 2])
}
