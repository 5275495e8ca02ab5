//! What is measured where: known in full before anything is loaded.

use runahead::dims::Piece;
use runahead::engine::{DeviceId, Experiment, Mode};
use runahead::error::Error;
use runahead::runahead::partition::Split;

use super::BenchArgs;
use crate::cli::failure::Failure;
use crate::cli::planning::{self, Cut, Plan, Prefill};

/// One thing to measure.
#[derive(Clone, Debug, PartialEq)]
pub enum Case {
    /// The time to the first token of `prompt` tokens behind `depth` others.
    Prefill { way: Way, prompt: usize, depth: usize },
    /// The rate of `tokens` tokens, one after another, behind `depth` others.
    Decode { tokens: usize, depth: usize },
}

/// A way to prefill.
#[derive(Clone, Debug, PartialEq)]
pub struct Way {
    pub mode: Mode,
    pub cut: Cut,
    /// Whether `--prefill auto` chose it, and with it the cut.
    pub auto: bool,
}

impl Way {
    fn new(mode: Mode, cut: Cut) -> Self {
        Self { mode, cut, auto: false }
    }

    /// The name of the cut in results.
    pub const fn split(&self) -> &'static str {
        if self.auto { "auto" } else { self.cut.name() }
    }
}

impl Case {
    /// Rows of the cache that it fills.
    fn rows(&self) -> Option<usize> {
        match *self {
            Case::Prefill { prompt, depth, .. } => depth.checked_add(prompt),
            Case::Decode { tokens, depth } => depth.max(1).checked_add(tokens),
        }
    }
}

/// Cases that share a loaded model.
#[derive(Debug, PartialEq)]
pub struct Group {
    /// Its adapters in the order of the chain, by their number in `--devices`.
    pub order: Vec<usize>,
    pub devices: Vec<DeviceId>,
    pub experiment: Experiment,
    pub cases: Vec<Case>,
}

impl Group {
    /// Whether several adapters take part.
    pub fn is_chain(&self) -> bool {
        self.devices.len() > 1
    }
}

/// What is known before anything is loaded.
pub struct Known<'a> {
    /// What `--prefill auto` takes for the positions of a prompt.
    pub auto: &'a dyn Fn(Piece) -> Result<Plan, Failure>,
    /// Whether there is a table that cuts can be predicted from.
    pub table: bool,
}

/// Each adapter alone, where `single` is asked for, then the chain, then what `auto` takes on other adapters or in another order. The last adapter's turn
/// alone comes with the chain, whose engine has it loaded, and so does the decode.
///
/// # Errors
/// Usage where the arguments contradict each other, the partition's where the prompt cannot be cut as asked.
pub fn groups(args: &BenchArgs, devices: &[DeviceId], known: &Known<'_>) -> Result<Vec<Group>, Failure> {
    let Some(last) = devices.len().checked_sub(1) else {
        return Err(Failure::Usage("--devices is empty".to_owned()));
    };
    let experiment = args.experiment.experiment(devices.len())?;
    let (ways, auto) = ways(args, devices.len())?;
    let prompts: &[usize] = if args.no_prefill { &[] } else { &args.prompts };
    check_cuts(args, &ways, prompts, devices.len(), known.table)?;
    let each = |way: Way| {
        let at = |depth: usize| prompts.iter().map(move |&prompt| (prompt, depth));
        let case = move |(prompt, depth)| Case::Prefill { way: way.clone(), prompt, depth };
        args.depth.iter().flat_map(move |&depth| at(depth)).map(case)
    };
    let single = Way::new(Mode::Single, Cut::Fixed(Split::Even));
    let group = |order: Vec<usize>, cases: Vec<Case>| Group {
        devices: order.iter().map(|&i| devices[i]).collect(),
        experiment: experiment.pick(&order),
        order,
        cases,
    };

    // Logical adapters on one device are as fast as each other, unless they are slowed down.
    let alike = |i: usize, j: usize| devices[i] == devices[j] && experiment.slowdown(i) == experiment.slowdown(j);
    let mut groups: Vec<Group> = Vec::new();
    if ways.contains(&single) {
        for i in (0..last).filter(|&i| !alike(i, last) && !(0..i).any(|j| alike(i, j))) {
            groups.push(group(vec![i], each(single.clone()).collect()));
        }
    }
    let n_alone = groups.len();
    let decode = args.depth.iter().flat_map(|&depth| args.n.iter().map(move |&tokens| Case::Decode { tokens, depth }));
    let decode = decode.filter(|case| !matches!(case, Case::Decode { tokens: 0, .. }));
    let chains = ways.iter().any(|way| way.mode != Mode::Single) && !prompts.is_empty();
    let main = if chains { (0..=last).collect() } else { vec![last] };
    groups.push(group(main, ways.into_iter().flat_map(each).chain(decode).collect()));
    if auto {
        for (prompt, depth) in args.depth.iter().flat_map(|&d| prompts.iter().map(move |&p| (p, d))) {
            let Plan { mode, order, lengths, .. } = (known.auto)(Piece::new(depth, depth.saturating_add(prompt)))?;
            let cut = Cut::Fixed(if mode == Mode::Single { Split::Even } else { Split::Given(lengths) });
            let case = Case::Prefill { way: Way { mode, cut, auto: true }, prompt, depth };
            // One adapter alone is the last of an engine's.
            let alike = |g: &Group| g.order.last().is_some_and(|&i| order.iter().all(|&j| alike(i, j)));
            let holds = |g: &&mut Group| g.order == order || mode == Mode::Single && alike(g);
            // Not those before the chain's: what is compared with adapters alone comes after all of them.
            match groups[n_alone..].iter_mut().find(holds) {
                Some(group) => {
                    let decode = group.cases.iter().position(|case| matches!(case, Case::Decode { .. }));
                    group.cases.insert(decode.unwrap_or(group.cases.len()), case);
                }
                None => groups.push(group(order, vec![case])),
            }
        }
    }
    groups.retain(|group| !group.cases.is_empty());
    if groups.is_empty() {
        return Err(Failure::Usage("nothing to measure: neither prompts (-p) nor tokens to decode (-n)".to_owned()));
    }
    Ok(groups)
}

/// Whether every prompt can be cut as asked.
fn check_cuts(args: &BenchArgs, ways: &[Way], prompts: &[usize], n_devices: usize, table: bool) -> Result<(), Failure> {
    let searched = |mode: Mode| ways.iter().any(|way| way.mode == mode && way.cut == Cut::Searched);
    for way in ways {
        match &way.cut {
            Cut::Fixed(split @ Split::Given(_)) => {
                for (&prompt, &depth) in prompts.iter().flat_map(|p| args.depth.iter().map(move |d| (p, d))) {
                    split.lengths(depth, prompt, way.mode.n_pieces(n_devices))?;
                }
            }
            Cut::Predicted if !table && searched(way.mode) && prompts.iter().all(|p| *p == prompts[0]) => {
                let text = "--split searched,predicted predicts each length from the cuts searched for the others: -p needs two at least";
                return Err(Failure::Usage(text.to_owned()));
            }
            Cut::Predicted if !table && !searched(way.mode) => return Err(planning::no_table()),
            _ => {}
        }
    }
    Ok(())
}

/// Ways to prefill, and whether `auto` is among what was asked for. `single` first, so that chains can be compared with it; each once.
fn ways(args: &BenchArgs, n_devices: usize) -> Result<(Vec<Way>, bool), Failure> {
    let even = Cut::Fixed(Split::Even);
    let mut modes: Vec<Mode> = Vec::new();
    for &prefill in &args.prefill {
        match prefill {
            Prefill::As(mode) if !modes.contains(&mode) => modes.push(mode),
            _ => {}
        }
    }
    if args.prefill.is_empty() {
        modes.push(Mode::Single);
        if n_devices > 1 && args.matrix {
            modes.push(Mode::TspCausal);
        }
        if n_devices > 1 {
            modes.push(Mode::Runahead);
        }
    }
    modes.sort_by_key(|&mode| mode != Mode::Single);
    if modes.iter().any(|&mode| mode != Mode::Single) && n_devices == 1 {
        let text = "a chain needs two adapters: --devices 0,0 opens one twice";
        return Err(Failure::Usage(text.to_owned()));
    }
    if args.matrix && n_devices == 1 {
        return Err(Failure::Usage("--matrix needs two adapters: --devices 0,0 opens one twice".to_owned()));
    }
    let mut cuts = args.cuts();
    cuts.sort_by_key(Cut::rank);
    cuts.dedup();
    if !modes.iter().any(|mode| mode.is_chain()) && cuts != [even.clone()] {
        let text = "--split cuts chains: without runahead or relay among --prefill it has nothing to cut";
        return Err(Failure::Usage(text.to_owned()));
    }
    let mut ways = Vec::new();
    for mode in modes {
        let of_mode: &[Cut] = match mode {
            Mode::Runahead if args.matrix => &[],
            Mode::Runahead => &cuts,
            Mode::Relay => &cuts[..1],
            _ => std::slice::from_ref(&even),
        };
        ways.extend(of_mode.iter().map(|cut| Way::new(mode, cut.clone())));
    }
    if args.matrix {
        let balanced = cuts.into_iter().filter(|cut| *cut != even);
        ways.extend([even.clone()].into_iter().chain(balanced).map(|cut| Way::new(Mode::Runahead, cut)));
    }
    Ok((ways, args.prefill.contains(&Prefill::Auto)))
}

/// Tokens that the longest case needs.
///
/// # Errors
/// [`Error::ContextFull`] where the model holds fewer.
pub fn context(groups: &[Group], most: usize) -> Result<usize, Failure> {
    let mut context = 1;
    for case in groups.iter().flat_map(|group| &group.cases) {
        match case.rows() {
            Some(rows) if rows <= most => context = context.max(rows),
            rows => return Err(Error::ContextFull { needed: rows.unwrap_or(usize::MAX), context: most }.into()),
        }
    }
    Ok(context)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use runahead::runahead::simulate::Forecast;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn of(line: &str) -> Result<Vec<Group>, Failure> {
        with(line, &|_| Err(Failure::Other("nobody asked for auto".to_owned())), false)
    }

    fn with(line: &str, auto: &dyn Fn(Piece) -> Result<Plan, Failure>, table: bool) -> Result<Vec<Group>, Failure> {
        let args = Line::try_parse_from(["bench"].into_iter().chain(line.split_whitespace())).unwrap().bench;
        groups(&args, &args.devices, &Known { auto, table })
    }

    fn even(mode: Mode) -> Way {
        Way::new(mode, Cut::Fixed(Split::Even))
    }

    fn prefill(mode: Mode, prompt: usize) -> Case {
        Case::Prefill { way: even(mode), prompt, depth: 0 }
    }

    const CPU: DeviceId = DeviceId::Cpu;
    const GPU: DeviceId = DeviceId::Gpu(0);

    fn group(order: &[usize], devices: &[DeviceId], cases: &[Case]) -> Group {
        Group {
            order: order.to_vec(),
            devices: devices.to_vec(),
            experiment: Experiment { slowdown: vec![1.0; devices.len()], ..Experiment::default() },
            cases: cases.to_vec(),
        }
    }

    #[test]
    fn every_adapter_is_measured_alone_and_loaded_as_seldom_as_can_be() {
        let single = || prefill(Mode::Single, 512);
        let chain = || prefill(Mode::Runahead, 512);
        let decode = || Case::Decode { tokens: 128, depth: 0 };

        assert_eq!(of("--devices 0").unwrap(), [group(&[0], &[GPU], &[single(), decode()])]);
        assert_eq!(of("--devices 0,0").unwrap(), [group(&[0, 1], &[GPU, GPU], &[single(), chain(), decode()])]);
        let groups = of("--devices cpu,cpu,0 --prefill runahead,single").unwrap();
        let all = group(&[0, 1, 2], &[CPU, CPU, GPU], &[single(), chain(), decode()]);
        assert_eq!(groups, [group(&[0], &[CPU], &[single()]), all]);
        let only = [group(&[0, 1], &[CPU, GPU], &[chain()])];
        assert_eq!(of("--devices cpu,0 --prefill runahead -n 0").unwrap(), only);
        let alone = [group(&[0], &[CPU], &[single()]), group(&[1], &[GPU], &[single()])];
        assert_eq!(of("--devices cpu,0 --prefill single -n 0").unwrap(), alone);
        assert_eq!(of("--devices cpu,0 --no-prefill").unwrap(), [group(&[1], &[GPU], &[decode()])]);
    }

    #[test]
    fn auto_joins_the_engine_that_has_what_it_takes_or_gets_one_of_its_own() {
        let plan = |mode: Mode, order: &[usize], lengths: &[usize]| Plan {
            mode,
            order: order.to_vec(),
            lengths: lengths.to_vec(),
            forecast: Forecast { ttft_s: 1.0, adapters: Vec::new() },
            left_out: Vec::new(),
        };
        let case = |mode, cut, prompt| Case::Prefill { way: Way { mode, cut, auto: true }, prompt, depth: 0 };
        let single = |prompt| case(Mode::Single, Cut::Fixed(Split::Even), prompt);
        let chain =
            |lengths: &[usize]| case(Mode::Runahead, Cut::Fixed(Split::Given(lengths.to_vec())), lengths.iter().sum());
        // The short prompt on one adapter, the longer one on both in the other order.
        let auto = |prompt: Piece| {
            Ok(if prompt.len() == 32 {
                plan(Mode::Single, &[0], &[32])
            } else {
                plan(Mode::Runahead, &[1, 0], &[64, 32])
            })
        };
        let groups = with("--devices cpu,0 --prefill auto,single -p 32,96 -n 1", &auto, false).unwrap();
        let alone = [prefill(Mode::Single, 32), prefill(Mode::Single, 96)];
        let others = [group(&[0], &[CPU], &[single(32)]), group(&[1, 0], &[GPU, CPU], &[chain(&[64, 32])])];
        assert_eq!((&groups[0], &groups[1].order, &groups[2..]), (&group(&[0], &[CPU], &alone), &vec![1], &others[..]));

        let auto = |_: Piece| Ok(plan(Mode::Runahead, &[0, 1], &[64, 32]));
        let groups = with("--devices cpu,0 --prefill runahead,auto -p 96 -n 1", &auto, false).unwrap();
        let decode = Case::Decode { tokens: 1, depth: 0 };
        assert_eq!(groups, [group(&[0, 1], &[CPU, GPU], &[prefill(Mode::Runahead, 96), chain(&[64, 32]), decode])]);
        // A twin is as good as the adapter itself.
        let auto = |_: Piece| Ok(plan(Mode::Single, &[0], &[96]));
        let groups = with("--devices 0,0 --prefill runahead,auto -p 96 -n 0", &auto, false).unwrap();
        assert_eq!(groups, [group(&[0, 1], &[GPU, GPU], &[prefill(Mode::Runahead, 96), single(96)])]);
        assert!(of("--devices cpu --prefill auto").is_err());
    }

    #[test]
    fn the_control_matrix_isolates_transport_and_balance() {
        let case = |way| Case::Prefill { way, prompt: 512, depth: 0 };
        let given = Way::new(Mode::Runahead, Cut::Fixed(Split::Given(vec![320, 192])));
        let groups = of("--devices 0,0 --matrix --split 320,192 -n 0").unwrap();
        let steps = [even(Mode::Single), even(Mode::TspCausal), even(Mode::Runahead), given.clone()];
        assert_eq!(groups.len(), 1);
        assert_eq!(groups[0].cases, steps.map(case));
        let searched = of("--devices 0,0 --matrix -n 0").unwrap();
        assert_eq!(searched[0].cases[..3], groups[0].cases[..3]);
        assert_eq!(searched[0].cases[3], case(Way::new(Mode::Runahead, Cut::Searched)));
        let groups = of("--devices 0,0 --prefill tsp,runahead --split 320,192 -n 0").unwrap();
        assert_eq!(groups[0].cases, [even(Mode::Tsp), given].map(case));
    }

    #[test]
    fn several_cuts_are_compared_with_what_is_searched_before_what_is_predicted() {
        let line = "--devices 0,0 --prefill relay,tsp,runahead --split predicted,searched,even -p 512,1024 -n 0";
        let groups = of(line).unwrap();
        let way = |case: &Case| match case {
            Case::Prefill { way, prompt, .. } => (way.mode, way.split(), *prompt),
            other => panic!("{other:?}"),
        };
        let ways: Vec<_> = groups[0].cases.iter().map(way).collect();
        let each = |mode, split| [(mode, split, 512), (mode, split, 1024)];
        let chain = ["even", "searched", "predicted"].map(|split| each(Mode::Runahead, split));
        let expected = [each(Mode::Relay, "even"), each(Mode::Tsp, "even")].into_iter().chain(chain);
        assert_eq!(ways, expected.flatten().collect::<Vec<_>>());
        // One length alone has no others to be predicted from, unless there is a table.
        let one = "--devices 0,0 --split searched,predicted -p 512";
        assert!(matches!(of(one), Err(Failure::Usage(text)) if text.contains("two at least")));
        let nobody = |_: Piece| Err(Failure::Other(String::new()));
        assert!(with(one, &nobody, true).is_ok());
        let bare = "--devices 0,0 --split predicted -p 512";
        assert!(matches!(of(bare), Err(Failure::Other(text)) if text.contains("calibrate")));
        assert!(with(bare, &nobody, true).is_ok());
    }

    #[test]
    fn logical_adapters_that_are_slowed_down_are_measured_alone_too() {
        let groups = of("--devices 0,0,0 --slow 1:3 -n 0").unwrap();
        let slowdowns: Vec<_> = groups.iter().map(|g| g.experiment.slowdown.clone()).collect();
        assert_eq!(slowdowns, [vec![3.0], vec![1.0, 3.0, 1.0]]);
    }

    #[test]
    fn what_cannot_be_measured_is_refused_before_anything_is_loaded() {
        for line in [
            "--devices 0 --prefill runahead",
            "--devices 0 --split 512",
            "--devices 0,0 --prefill tsp --split searched",
            "--devices 0 --no-prefill -n 0",
            "--devices 0 --matrix",
            "--devices 0,0 --slow 2:2",
        ] {
            assert!(matches!(of(line), Err(Failure::Usage(_))), "{line}");
        }
        let cut = of("--devices 0,0 -p 512,1024 --split 256,256");
        assert!(matches!(cut, Err(Failure::Library(Error::Partition(_)))), "{cut:?}");
        let groups = of("--devices 0 -p 512,1024 -n 128 -d 0,4096").unwrap();
        assert_eq!(context(&groups, 8192).unwrap(), 5120);
        assert!(context(&groups, 5119).is_err());
        let huge = of(&format!("--devices 0 -p {} -d 1", usize::MAX)).unwrap();
        assert!(context(&huge, usize::MAX).is_err());
    }
}
