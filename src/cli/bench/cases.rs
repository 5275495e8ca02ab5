//! What is measured where: known in full before anything is loaded.

use runahead::engine::{DeviceId, Experiment, Mode};
use runahead::error::Error;
use runahead::runahead::partition::Split;

use super::BenchArgs;
use crate::cli::failure::Failure;
use crate::cli::planning::Cut;

/// One thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// The time to the first token of `prompt` tokens behind `depth` others, in even pieces or in those that were asked for.
    Prefill { mode: Mode, even: bool, prompt: usize, depth: usize },
    /// The rate of `tokens` tokens, one after another, behind `depth` others.
    Decode { tokens: usize, depth: usize },
}

impl Case {
    /// Rows of the cache that it fills.
    fn rows(self) -> Option<usize> {
        match self {
            Case::Prefill { prompt, depth, .. } => depth.checked_add(prompt),
            Case::Decode { tokens, depth } => depth.max(1).checked_add(tokens),
        }
    }
}

/// Cases that share a loaded model.
#[derive(Debug, PartialEq)]
pub struct Group {
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

/// Each adapter alone, where `single` is asked for, then the chain. The last adapter's turn alone comes with the chain, whose engine has it loaded,
/// and so does the decode.
///
/// # Errors
/// Usage where the arguments contradict each other, the partition's where the prompt cannot be cut as asked.
pub fn groups(args: &BenchArgs, devices: &[DeviceId]) -> Result<Vec<Group>, Failure> {
    let Some(last) = devices.len().checked_sub(1) else {
        return Err(Failure::Usage("--devices is empty".to_owned()));
    };
    let experiment = args.experiment.experiment(devices.len())?;
    let modes = modes(args, devices.len())?;
    let prompts: &[usize] = if args.no_prefill { &[] } else { &args.prompts };
    let each = |(mode, even): (Mode, bool)| {
        let one = move |depth: usize| prompts.iter().map(move |&prompt| Case::Prefill { mode, even, prompt, depth });
        args.depth.iter().flat_map(move |&depth| one(depth))
    };
    let decode = args.depth.iter().flat_map(|&depth| args.n.iter().map(move |&tokens| Case::Decode { tokens, depth }));
    let decode = decode.filter(|case| !matches!(case, Case::Decode { tokens: 0, .. }));
    let chains = modes.iter().any(|&(mode, _)| mode != Mode::Single);

    // Logical adapters on one device are as fast as each other, unless they are slowed down.
    let alike = |i: usize, j: usize| devices[i] == devices[j] && experiment.slowdown(i) == experiment.slowdown(j);
    let alone =
        |i: usize| (vec![devices[i]], Experiment { slowdown: vec![experiment.slowdown(i)], ..experiment.clone() });
    let mut groups: Vec<Group> = Vec::new();
    if modes.contains(&(Mode::Single, true)) && !prompts.is_empty() {
        for i in (0..last).filter(|&i| !alike(i, last) && !(0..i).any(|j| alike(i, j))) {
            let (devices, experiment) = alone(i);
            groups.push(Group { devices, experiment, cases: each((Mode::Single, true)).collect() });
        }
    }
    let cases: Vec<Case> = modes.iter().flat_map(|&mode| each(mode)).chain(decode).collect();
    let (devices, experiment) =
        if chains && !prompts.is_empty() { (devices.to_vec(), experiment.clone()) } else { alone(last) };
    for case in &cases {
        if let (&Case::Prefill { mode, even: false, prompt, depth }, Cut::Fixed(split)) = (case, args.cut()) {
            split.lengths(depth, prompt, mode.n_pieces(devices.len()))?;
        }
    }
    groups.push(Group { devices, experiment, cases });
    groups.retain(|group| !group.cases.is_empty());
    if groups.is_empty() {
        return Err(Failure::Usage("nothing to measure: neither prompts (-p) nor tokens to decode (-n)".to_owned()));
    }
    Ok(groups)
}

/// Modes, and whether each takes even pieces whatever was asked for. `single` first, so that chains can be compared with it; each once.
fn modes(args: &BenchArgs, n_devices: usize) -> Result<Vec<(Mode, bool)>, Failure> {
    let asked_for_even = args.cut() == Cut::Fixed(Split::Even);
    let mut modes: Vec<Mode> = Vec::new();
    for &mode in &args.prefill {
        if !modes.contains(&mode) {
            modes.push(mode);
        }
    }
    if modes.is_empty() {
        modes.push(Mode::Single);
        if n_devices > 1 && args.matrix {
            modes.push(Mode::TspCausal);
        }
        if n_devices > 1 {
            modes.push(Mode::Runahead);
        }
    }
    modes.sort_by_key(|&mode| mode != Mode::Single);
    let chains = modes.iter().any(|&mode| mode != Mode::Single);
    if chains && n_devices == 1 {
        let text = "a chain needs two adapters: --devices 0,0 opens one twice";
        return Err(Failure::Usage(text.to_owned()));
    }
    if args.matrix && n_devices == 1 {
        return Err(Failure::Usage("--matrix needs two adapters: --devices 0,0 opens one twice".to_owned()));
    }
    if !chains && !asked_for_even {
        return Err(Failure::Usage("--prefill single runs on one adapter: --split has nothing to cut".to_owned()));
    }
    let mut modes: Vec<(Mode, bool)> =
        modes.into_iter().map(|mode| (mode, args.matrix || asked_for_even || !mode.is_chain())).collect();
    if args.matrix && !asked_for_even {
        modes.push((Mode::Runahead, false));
    }
    Ok(modes)
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

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn of(line: &str) -> Result<Vec<Group>, Failure> {
        let args = Line::try_parse_from(["bench"].into_iter().chain(line.split_whitespace())).unwrap().bench;
        groups(&args, &args.devices)
    }

    fn prefill(mode: Mode, prompt: usize) -> Case {
        Case::Prefill { mode, even: true, prompt, depth: 0 }
    }

    #[test]
    fn every_adapter_is_measured_alone_and_loaded_as_seldom_as_can_be() {
        let (cpu, gpu) = (DeviceId::Cpu, DeviceId::Gpu(0));
        let single = prefill(Mode::Single, 512);
        let chain = prefill(Mode::Runahead, 512);
        let decode = Case::Decode { tokens: 128, depth: 0 };
        let group = |devices: &[DeviceId], cases: &[Case]| Group {
            devices: devices.to_vec(),
            experiment: Experiment { link: None, slowdown: vec![1.0; devices.len()] },
            cases: cases.to_vec(),
        };

        assert_eq!(of("--devices 0").unwrap(), [group(&[gpu], &[single, decode])]);
        assert_eq!(of("--devices 0,0").unwrap(), [group(&[gpu, gpu], &[single, chain, decode])]);
        let groups = of("--devices cpu,cpu,0 --prefill runahead,single").unwrap();
        assert_eq!(groups, [group(&[cpu], &[single]), group(&[cpu, cpu, gpu], &[single, chain, decode])]);
        assert_eq!(of("--devices cpu,0 --prefill runahead -n 0").unwrap(), [group(&[cpu, gpu], &[chain])]);
        let alone = [group(&[cpu], &[single]), group(&[gpu], &[single])];
        assert_eq!(of("--devices cpu,0 --prefill single -n 0").unwrap(), alone);
        assert_eq!(of("--devices cpu,0 --no-prefill").unwrap(), [group(&[gpu], &[decode])]);
    }

    #[test]
    fn the_control_matrix_isolates_transport_and_balance() {
        let case = |mode, even| Case::Prefill { mode, even, prompt: 512, depth: 0 };
        let groups = of("--devices 0,0 --matrix --split 320,192 -n 0").unwrap();
        let steps = [(Mode::Single, true), (Mode::TspCausal, true), (Mode::Runahead, true), (Mode::Runahead, false)];
        assert_eq!(groups.len(), 1);
        assert_eq!(groups[0].cases, steps.map(|(mode, even)| case(mode, even)));
        let searched = of("--devices 0,0 --matrix -n 0").unwrap();
        assert_eq!(searched[0].cases, groups[0].cases);
        let groups = of("--devices 0,0 --prefill tsp,runahead --split 320,192 -n 0").unwrap();
        assert_eq!(groups[0].cases, [case(Mode::Tsp, true), case(Mode::Runahead, false)]);
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
