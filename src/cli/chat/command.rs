//! What a line of a chat means.

use std::path::PathBuf;

/// The commands in a few words.
pub const HELP: &str =
    "/clear  /save FILE  /load FILE  /system TEXT  /history  /help  /exit   (Ctrl-C stops an answer)";

/// A line that was read.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// An empty line.
    Nothing,
    /// A message to the model.
    Say(String),
    Clear,
    Save(PathBuf),
    Load(PathBuf),
    System(String),
    History,
    Help,
    Exit,
}

impl Command {
    /// A line that begins with a slash is a command; with two, it is a message that begins with one.
    pub fn parse(line: &str) -> Result<Self, String> {
        let line = line.trim();
        let Some(command) = line.strip_prefix('/') else {
            return Ok(if line.is_empty() { Command::Nothing } else { Command::Say(line.to_owned()) });
        };
        if command.starts_with('/') {
            return Ok(Command::Say(command.to_owned()));
        }
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        match (name, rest.trim()) {
            ("clear", "") => Ok(Command::Clear),
            ("history", "") => Ok(Command::History),
            ("help", "") => Ok(Command::Help),
            ("exit" | "quit", "") => Ok(Command::Exit),
            ("save" | "load", "") => Err(format!("/{name} needs a file's name")),
            ("save", path) => Ok(Command::Save(path.into())),
            ("load", path) => Ok(Command::Load(path.into())),
            ("system", text) => Ok(Command::System(text.to_owned())),
            ("clear" | "history" | "help" | "exit" | "quit", rest) => Err(format!("/{name} takes no `{rest}`")),
            _ => Err(format!("there is no command /{name}; {HELP}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        let say = |text: &str| Ok(Command::Say(text.to_owned()));
        assert_eq!(Command::parse("  Hello there\r\n"), say("Hello there"));
        assert_eq!(Command::parse("//etc is a folder"), say("/etc is a folder"));
        assert_eq!(Command::parse(" \t"), Ok(Command::Nothing));
        assert_eq!(Command::parse("/save  my chat.session "), Ok(Command::Save("my chat.session".into())));
        assert_eq!(Command::parse("/system Be brief."), Ok(Command::System("Be brief.".to_owned())));
        assert_eq!(Command::parse("/system"), Ok(Command::System(String::new())));
        assert_eq!(Command::parse("/quit"), Ok(Command::Exit));
        for line in ["/", "/nonsense", "/save", "/load ", "/clear all", "/Clear"] {
            assert!(Command::parse(line).is_err(), "{line}");
        }
    }
}
