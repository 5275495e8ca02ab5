//! Environment variables that stand in for common arguments: they become the arguments' defaults, so that they are parsed, checked and shown in the
//! help as what is typed.

use clap::Command;

/// Variable, and the argument of every command that has it.
const VARIABLES: [(&str, &str); 4] = [
    ("RUNAHEAD_MODEL", "model"),
    ("RUNAHEAD_DEVICES", "devices"),
    ("RUNAHEAD_KV", "kv"),
    ("RUNAHEAD_RESPONSIVE", "responsive"),
];

/// The command line with defaults from `value`, which gives a variable's value.
pub fn with_defaults(mut command: Command, value: impl Fn(&str) -> Option<String>) -> Command {
    for (variable, argument) in VARIABLES {
        let Some(value) = value(variable).filter(|v| !v.is_empty()) else { continue };
        // clap keeps defaults for as long as the program runs, and so are these: made once, at its start.
        let value: &'static str = value.leak();
        command = command.mut_subcommands(|sub| {
            let has_it = sub.get_arguments().any(|a| a.get_id() == argument && takes_it(a));
            if has_it { sub.mut_arg(argument, |a| a.required(false).default_value(value)) } else { sub }
        });
    }
    command
}

/// `pull` has a `model` of another kind: a name, by position.
fn takes_it(argument: &clap::Arg) -> bool {
    !argument.is_positional()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::{CommandFactory, FromArgMatches};

    use super::super::args::Kv;
    use super::super::commands::{Args, Command as Parsed};
    use super::*;

    fn parse(environment: &[(&str, &str)], args: &[&str]) -> Result<Parsed, clap::Error> {
        let value = |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        let command = with_defaults(Args::command(), value);
        command.clone().debug_assert();
        command.try_get_matches_from(args).and_then(|m| Args::from_arg_matches(&m)).map(|args| args.command)
    }

    #[test]
    fn variables_are_defaults_that_arguments_replace() {
        let environment = [("RUNAHEAD_MODEL", "/m.gguf"), ("RUNAHEAD_DEVICES", "1,cpu"), ("RUNAHEAD_KV", "f32")];
        let Ok(Parsed::Generate(args)) = parse(&environment, &["runahead", "generate", "-p", "x"]) else { panic!() };
        assert_eq!(args.model.model.as_deref(), Some(Path::new("/m.gguf")));
        assert_eq!(args.session.devices.iter().map(ToString::to_string).collect::<Vec<_>>(), ["1", "cpu"]);
        assert_eq!(args.session.engine.kv.kv, Kv::F32);
        let typed = ["runahead", "generate", "-p", "x", "-m", "n", "--devices", "0", "--kv", "f16"];
        let Ok(Parsed::Generate(args)) = parse(&environment, &typed) else { panic!() };
        assert_eq!(
            (args.model.model.as_deref(), args.session.devices.len(), args.session.engine.kv.kv),
            (Some(Path::new("n")), 1, Kv::F16)
        );
        // A command that asks for adapters is content with those of the environment.
        assert!(matches!(parse(&environment, &["runahead", "verify"]), Ok(Parsed::Verify(_))));
        let Ok(Parsed::Pull(pull)) = parse(&environment, &["runahead", "pull"]) else { panic!() };
        assert_eq!(pull.model, "smollm2");
    }

    #[test]
    fn a_flag_may_stand_in_the_environment_and_be_taken_back() {
        let responsive = |environment: &[(&str, &str)], typed: &[&str]| {
            let args = [&["runahead", "generate", "-p", "x"], typed].concat();
            let Ok(Parsed::Generate(args)) = parse(environment, &args) else { panic!("{typed:?}") };
            args.session.engine.responsive
        };
        assert!(!responsive(&[], &[]) && responsive(&[], &["--responsive"]));
        let set = [("RUNAHEAD_RESPONSIVE", "1")];
        assert!(
            responsive(&set, &[]) && responsive(&set, &["--responsive"]) && !responsive(&set, &["--responsive=no"])
        );
        assert!(parse(&[("RUNAHEAD_RESPONSIVE", "perhaps")], &["runahead", "generate", "-p", "x"]).is_err());
    }

    #[test]
    fn bad_and_empty_variables() {
        let bad = parse(&[("RUNAHEAD_KV", "q8")], &["runahead", "generate", "-p", "x"]);
        assert!(bad.is_err_and(|e| e.to_string().contains("q8")));
        assert!(parse(&[("RUNAHEAD_KV", "")], &["runahead", "generate", "-p", "x"]).is_ok());
        assert!(parse(&[], &["runahead", "verify"]).is_err());
    }
}
