//! `runahead chat`: a conversation on the model's template, one line a turn.
//!
//! The cache is kept, and each turn prefills only what is new. Answers go to stdout, everything else to stderr. With `--session` the conversation
//! is in the file after every answer, so that neither a lost terminal nor a kill takes it away.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use runahead::cancel::Wait;
use runahead::engine::{Engine, Mode, Options, PrefillReport, Session};
use runahead::error::Error;
use runahead::template::Message;

use super::args::{ModelArgs, SessionArgs};
use super::failure::Failure;
use super::interrupt::Interrupt;
use super::open;
use super::output;
use super::progress::Bars;
use super::sampling::SamplingArgs;

mod command;
mod conversation;
mod lines;

use command::Command;
use conversation::Conversation;

/// Context where nobody asks for more: a conversation of some length that fits any adapter.
const CONTEXT: usize = 4096;
/// A turn of so many new tokens is worth a chain. For fewer, the rows of earlier turns, which a chain's first adapters have to be given, would
/// cost more than is won.
const CHAIN_FROM: usize = 256;

/// Arguments of `chat`.
#[derive(Debug, clap::Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Instructions that stand before the conversation
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system: Option<String>,
    /// Tokens of an answer at most
    #[arg(short, value_name = "N", default_value_t = 512)]
    pub n: usize,
    #[command(flatten)]
    pub session: SessionArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// Runs the command.
pub fn run(args: &ChatArgs, interrupt: &Interrupt) -> Result<(), Failure> {
    let mut options = Options { max_tokens: args.n, ..Options::default() };
    args.sampling.apply(&mut options, 0)?;
    let files = open::files(&args.model)?;
    if files.tokenizer().is_none() || files.template().is_none() {
        return Err(Error::Template("the model has none; `generate` works without".to_owned()).into());
    }
    let (saved, known) = args.session.saved()?;
    let devices = open::named_or_default(&args.session.devices);
    let context = args.session.context.unwrap_or(CONTEXT.max(known.len()).min(files.config().max_context));
    let (engine, bars) = open::plainly(files, &devices, &args.session.engine, context, &interrupt.cancel)?;

    let mut chat = Chat {
        session: engine.session()?,
        engine,
        talk: Conversation::default(),
        options,
        file: args.session.file.as_deref(),
        bars,
        interrupt,
    };
    if let Some(path) = saved {
        chat.load(path)?;
    }
    if let Some(system) = &args.system {
        chat.talk.set_system(system);
    }
    chat.lines()
}

struct Chat<'a> {
    engine: Engine,
    session: Session,
    talk: Conversation,
    options: Options,
    file: Option<&'a Path>,
    bars: Arc<Bars>,
    interrupt: &'a Interrupt,
}

/// An answer as it went.
struct Answer {
    text: String,
    prefill: PrefillReport,
    n: usize,
    /// From the first token to the last.
    decoding: Duration,
    /// What ended it early.
    failure: Option<Failure>,
}

impl Chat<'_> {
    fn lines(&mut self) -> Result<(), Failure> {
        let at_terminal = std::io::stdin().is_terminal();
        if at_terminal {
            output::note(command::HELP);
        }
        let lines = lines::read()?;
        let wait = Wait::new(&self.interrupt.cancel);
        loop {
            if self.interrupt.is_leaving() {
                return Err(Error::Cancelled.into());
            }
            if at_terminal {
                output::prompt("> ");
            }
            // The end of the input, or of the terminal, is the end of the conversation.
            let Some(line) = wait.recv_patiently(&lines)? else { return Ok(()) };
            let done = match line.map(|line| Command::parse(&line)) {
                Ok(Ok(Command::Exit)) => return Ok(()),
                Ok(Ok(command)) => self.carry_out(command),
                Ok(Err(reason)) | Err(reason) => Err(Failure::Other(reason)),
            };
            match done {
                // One turn or command went wrong; the conversation is as it was.
                Err(failure @ (Failure::Library(_) | Failure::Other(_))) if !wait.cancel.is_cancelled() => {
                    output::note(&format!("error: {failure}"));
                }
                other => other?,
            }
        }
    }

    fn carry_out(&mut self, command: Command) -> Result<(), Failure> {
        match command {
            Command::Nothing | Command::Exit => Ok(()),
            Command::Say(text) => self.turn(text),
            Command::Clear => {
                self.session.clear();
                self.talk.clear();
                output::note("the conversation is forgotten");
                Ok(())
            }
            Command::System(text) => {
                self.talk.set_system(&text);
                Ok(())
            }
            Command::History => {
                self.talk.messages().iter().try_for_each(|m| output::line(&format!("{}: {}", m.role, m.content)))
            }
            Command::Save(path) => self.save(&path),
            Command::Load(path) => self.load(&path),
            Command::Help => {
                output::note(command::HELP);
                Ok(())
            }
        }
    }

    /// One question and its answer.
    fn turn(&mut self, text: String) -> Result<(), Failure> {
        let turn = self.interrupt.cancel.child();
        let _until_saved = self.interrupt.during(&turn);
        self.session.end_with(Some(&turn));
        let asked = self.talk.ask(&self.session, Message::new("user", text))?;
        let n_before = self.session.n_tokens();
        let n_kept = self.session.keep_prefix(&asked.tokens);
        if n_kept < n_before {
            self.talk.forget_text();
        }
        let answer = self.answer(&asked.tokens[n_kept..])?;

        self.talk.answered(asked, &answer.text, self.options.stop.is_empty());
        self.tell(&answer);
        let saved = match self.file.filter(|_| answer.failure.as_ref().is_none_or(Failure::leaves_session)) {
            Some(path) => self.save(path),
            None => Ok(()),
        };
        match answer.failure {
            Some(Failure::Library(Error::Cancelled)) if !self.interrupt.cancel.is_cancelled() => saved,
            // A conversation that could not be kept is the worse news.
            Some(failure) => saved.and(Err(failure)),
            None => saved,
        }
    }

    fn answer(&mut self, tokens: &[u32]) -> Result<Answer, Failure> {
        // What a model with windows has let go of is prefilled again.
        let n = self.session.n_tokens() - self.session.n_cached() + tokens.len();
        let mode = if n < CHAIN_FROM { Mode::Single } else { Mode::Runahead };
        let options = Options { mode, ..self.options.clone() };
        let prefilled = self.session.generate(tokens, &options);
        self.bars.clear();
        let mut generation = match prefilled {
            Err(Error::Cancelled) => return Err(Failure::Other("stopped before the answer began".to_owned())),
            other => other?,
        };
        let prefill = generation.report().clone();
        let began = Instant::now();
        let mut answer = Answer { text: String::new(), prefill, n: 0, decoding: Duration::ZERO, failure: None };
        for token in generation.by_ref() {
            let text = match token {
                Ok(token) => token.text,
                Err(error) => {
                    answer.failure = Some(error.into());
                    break;
                }
            };
            (answer.n, answer.decoding) = (answer.n + 1, began.elapsed());
            answer.add(&text);
            if answer.failure.is_some() {
                break;
            }
        }
        answer.add(&generation.finish());
        answer.end_line();
        Ok(answer)
    }

    fn tell(&self, answer: &Answer) {
        if matches!(answer.failure, Some(Failure::Library(Error::Cancelled))) {
            output::note("(stopped)");
        }
        let new = answer.prefill.partition.iter().sum::<usize>();
        let all = answer.prefill.adapters.iter().map(|a| a.end).max().unwrap_or(new);
        let mut text = format!("prefilled {new} of {all} tokens, first token after {:.0} ms", answer.prefill.ttft_ms);
        if let Some(decoded) = answer.n.checked_sub(1).filter(|&n| n > 0) {
            let rate = decoded as f64 / answer.decoding.as_secs_f64();
            text += &format!("; {} tokens, {rate:.1} token/s", answer.n);
        }
        output::note(&text);
    }

    fn save(&mut self, path: &Path) -> Result<(), Failure> {
        self.session.set_note(self.talk.to_note()?);
        Ok(self.session.save(path)?)
    }

    fn load(&mut self, path: &Path) -> Result<(), Failure> {
        self.session.load(path)?;
        self.talk = Conversation::from_note(self.session.note());
        let (n, tokens) = (self.talk.messages().len(), self.session.n_tokens());
        output::note(&format!(
            "{}: {n} messages, {tokens} tokens in a context of {}",
            path.display(),
            self.engine.context()
        ));
        Ok(())
    }
}

impl Answer {
    fn add(&mut self, text: &str) {
        self.text.push_str(text);
        if !text.is_empty() && self.failure.is_none() {
            self.failure = output::print(text).err();
        }
    }

    fn end_line(&mut self) {
        if !self.text.ends_with('\n') && self.failure.as_ref().is_none_or(|f| !matches!(f, Failure::ClosedPipe)) {
            let ended = output::print("\n").err();
            self.failure = self.failure.take().or(ended);
        }
    }
}
