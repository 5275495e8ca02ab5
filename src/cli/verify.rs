//! `runahead verify`: a chain of adapters against one of them.
//!
//! Both take the same prompt in one turn and the same continuation in a second one. Compared are K and V of every layer, the logits of every
//! position, and the greedy answer. One GPU named several times must agree bit for bit with itself named once, however the prompt is cut.
//! Different adapters sum in different orders: their logits agree within a tolerance. So do products by cuBLASLt, whose order of summation depends on
//! the number of rows; with `--gemm cublaslt` the reference is the first GPU's WGSL kernels.

use std::sync::Arc;

use runahead::cancel::Cancel;
use runahead::dtype::KvDtype;
use runahead::engine::{DeviceId, EngineBuilder, Experiment, Gemm};

use super::args::{EngineArgs, ModelArgs, SplitArgs};
use super::failure::Failure;
use super::open::{self, Opening};
use super::output;
use super::progress::Bars;

mod compare;
mod side;

use compare::{Comparison, Verdict};
use side::{Side, Turns};

/// Greedy tokens compared.
const N_GREEDY: usize = 16;

/// Tokens of a prompt for a model that knows no text: ten granules.
const N_SYNTHETIC: usize = 160;

/// Twice as many granules as four adapters need, in any tokenizer of today.
const TEXT: &str = "The lighthouse at the end of the long grey pier had been dark for eleven years when Marta found the key. It hung on a nail \
behind the door of the harbour office, between a torn tide table and a calendar from a bank that no longer existed. Nobody could say who had put \
it there. She took it home, cleaned the rust off with oil and steel wool, and waited for a still evening. The stairs held. At the top she found a \
brass lamp the size of a barrel, a chair, and a notebook in which someone had written down every ship that passed, with the hour, the weather and \
the direction of the wind, for thirty years without a gap. The last entry was unfinished. Marta sat down, looked out over the water, and";

/// Arguments of `verify`.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The prompt, taken as it is; a built-in text unless said here
    #[arg(short, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// Adapters of the chain; compared with the first one alone. One GPU alone is compared with the CPU
    #[arg(long, value_name = "LIST", value_delimiter = ',', required = true)]
    pub devices: Vec<DeviceId>,
    #[command(flatten)]
    pub split: SplitArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Runs the command.
pub fn run(args: &VerifyArgs, cancel: &Cancel) -> Result<(), Failure> {
    let gemm = args.engine.gemm.gemm;
    let pair = Pair::new(&args.devices, gemm)?;
    let files = open::files(&args.model)?;
    let prompt = prompt(args, &files)?;
    let lengths = args.split.split.lengths(0, prompt.len(), pair.chain.len())?;
    let context = open::context_for(&files, prompt.len(), N_GREEDY - 1)?;
    let n_greedy = context - prompt.len() + 1;

    let bars = Arc::new(Bars::new());
    let opening = |devices, gemm| Opening {
        responsive: args.engine.responsive,
        devices,
        context,
        kv: args.engine.kv.kv.into(),
        link: args.engine.link,
        gemm,
        experiment: Experiment::default(),
        busy_workgroups: Vec::new(),
        cancel,
        bars: &bars,
    };
    let engine =
        open::engine(files, &opening(&pair.reference, if gemm == Gemm::CublasLt { Gemm::Wgsl } else { gemm }))?;
    let mut products = engine.products().map(str::to_owned).collect::<Vec<_>>();
    let turns = Turns { prompt: &prompt, continuation: None, split: Default::default(), n_greedy };
    let reference = Side::measure(&engine, &turns, &bars)?;
    let reference_name = engine.adapters().collect::<String>();
    // Its memory goes to the chain.
    drop(engine);

    let engine = open::engine(open::files(&args.model)?, &opening(&pair.chain, gemm))?;
    products.extend(engine.products().map(str::to_owned));
    let continuation = Some(reference.continuation());
    let turns = Turns { prompt: &prompt, continuation, split: args.split.split.clone(), n_greedy };
    let chain = Side::measure(&engine, &turns, &bars)?;

    open::tell_partition(&engine, &lengths);
    let n_second = n_greedy - 1;
    output::line(&format!("reference: {reference_name}; {} tokens, then {n_second} in a second turn", prompt.len()))?;
    let comparison = Comparison::new(&reference, &chain, prompt.len(), engine.config().vocab);
    output::print(&comparison.table())?;
    let verdict = comparison.verdict(pair.same_gpu && products.iter().all(|p| p == "wgsl"), args.engine.kv.kv.into());
    output::line(&verdict.to_string())?;
    match verdict {
        Verdict::BitForBit | Verdict::Within { .. } => Ok(()),
        failed => Err(Failure::Other(format!("the chain and its reference differ: {failed}"))),
    }
}

/// What is compared with what.
struct Pair {
    reference: Vec<DeviceId>,
    chain: Vec<DeviceId>,
    /// One GPU on both sides: held to equal bits.
    same_gpu: bool,
}

impl Pair {
    fn new(devices: &[DeviceId], gemm: Gemm) -> Result<Self, Failure> {
        let reference = match devices {
            [DeviceId::Cpu] => {
                return Err(Failure::Usage(
                    "the CPU alone has nothing to be compared with; cpu,cpu is a chain".to_owned(),
                ));
            }
            [DeviceId::Gpu(_)] if gemm != Gemm::CublasLt => DeviceId::Cpu,
            [first, ..] => *first,
            [] => return Err(Failure::Usage("--devices is empty".to_owned())),
        };
        let same_gpu = matches!(reference, DeviceId::Gpu(_)) && devices.iter().all(|&d| d == reference);
        Ok(Self { reference: vec![reference], chain: devices.to_vec(), same_gpu })
    }
}

fn prompt(args: &VerifyArgs, files: &EngineBuilder) -> Result<Vec<u32>, Failure> {
    match (&args.prompt, files.tokenizer()) {
        (Some(text), _) => Ok(files.prompt_tokens(text, true)?),
        (None, Some(_)) => Ok(files.prompt_tokens(TEXT, true)?),
        (None, None) => {
            // No two granules are alike.
            Ok(files.config().any_tokens(N_SYNTHETIC.min(files.config().max_context), 1))
        }
    }
}

/// Largest difference of logits over their standard deviation that another order of summation may make, as measured against references in f32:
/// the rounding of the cache decides.
const fn tolerance(kv: KvDtype) -> f64 {
    match kv {
        KvDtype::F16 => 2e-2,
        KvDtype::F32 => 1e-3,
    }
}
