//! Chat templates: Jinja programs inside model files that turn messages into the text of a prompt.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, ErrorKind, State, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::dates::Date;
use crate::error::{Error, Result};

/// What one rendering may cost, a bound for hostile templates: the engine counts 1 for an instruction and for 64 bytes of text made or read.
const FUEL: u64 = 100_000;

/// What a message adds: real templates take a hundred instructions or so for each.
const FUEL_OF_A_MESSAGE: u64 = 1_000;

/// What a rendering costs at most, however long the conversation: some 640 MB of text.
const MOST_FUEL: u64 = 10_000_000;

/// Bytes of stack for a unit of fuel, and in all. For two units a template nests a list once more, and each level takes a hundred bytes or so of stack
/// when it is dropped: deeper than any thread's usual stack. What is not used takes no memory.
const STACK_OF_FUEL: u64 = 1 << 10;
const LEAST_STACK: u64 = 16 << 20;
const MOST_STACK: u64 = 1 << 30;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// "system", "user" or "assistant".
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A message of this role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A model's chat template. It is compiled when it renders, so that a broken one does not keep a model from loading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatTemplate {
    source: String,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// `bos` and `eos` are the spellings of the tokens that begin and end a sequence, empty where there is none.
    pub fn new(source: impl Into<String>, bos: impl Into<String>, eos: impl Into<String>) -> Self {
        Self { source: source.into(), bos: bos.into(), eos: eos.into() }
    }

    /// The prompt's text. `add_generation_prompt` ends it with the opening of the assistant's turn. Special tokens stand in the text as they
    /// are written: encode it without adding others. Some templates tell the model today's date (in UTC).
    ///
    /// # Errors
    /// [`Error::Template`]: the template is malformed, refuses the conversation (`raise_exception`), or works for too long.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.render_at(Date::of_unix(unix_s), messages, add_generation_prompt)
    }

    /// As [`ChatTemplate::render`], at this time.
    ///
    /// # Errors
    /// See [`ChatTemplate::render`].
    pub fn render_at(&self, now: Date, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        // A long conversation may be copied 64 times.
        let of_message = |m: &Message| (m.content.len() as u64).saturating_add(FUEL_OF_A_MESSAGE);
        let fuel = messages.iter().map(of_message).fold(FUEL, u64::saturating_add).min(MOST_FUEL);
        let render = || {
            let environment = environment(fuel, now).map_err(failed)?;
            let messages: Vec<Value> =
                messages.iter().map(|m| context! { role => m.role.as_str(), content => m.content.as_str() }).collect();
            let values = context! { messages, add_generation_prompt, bos_token => self.bos.as_str(), eos_token => self.eos.as_str() };
            environment.render_str(&without_marks(&self.source), values).map_err(failed)
        };
        let stack = (fuel * STACK_OF_FUEL).clamp(LEAST_STACK, MOST_STACK) as usize;
        std::thread::scope(|scope| {
            let builder = std::thread::Builder::new().name("chat template".to_owned()).stack_size(stack);
            let thread = builder.spawn_scoped(scope, render);
            let thread = thread.map_err(|e| Error::Template(format!("no thread to render it: {e}")))?;
            thread.join().unwrap_or_else(|_| Err(Error::Template("its engine died".to_owned())))
        })
    }
}

fn failed(e: minijinja::Error) -> Error {
    Error::Template(e.to_string())
}

/// Where templates mark what the assistant said, for training, with `{% generation %} … {% endgeneration %}`, a condition that always holds: the engine
/// has no tags of one's own, and this one trims white space as the mark does.
fn without_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        let (inside, after) = tag.split_once("%}").unwrap_or((tag, ""));
        let name = inside.trim_matches(['-', '+', ' ', '\t', '\n', '\r']);
        let instead = match name {
            "generation" => inside.replacen(name, "if true", 1),
            "endgeneration" => inside.replacen(name, "endif", 1),
            _ => inside.to_owned(),
        };
        out.extend([before, "{%", &instead, if inside.len() < tag.len() { "%}" } else { "" }]);
        rest = after;
    }
    out + rest
}

/// Jinja as Hugging Face transformers sets it up for templates.
fn environment(fuel: u64, now: Date) -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.set_fuel(Some(fuel));
    environment.add_function("raise_exception", |text: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, text))
    });
    environment.add_function("strftime_now", move |format: String| -> Result<String, minijinja::Error> {
        now.strftime(&format).map_err(|conversion| bad(format!("strftime_now does not know {conversion}")))
    });
    environment.add_filter(
        "tojson",
        |state: &State, value: &Value, options: Kwargs| -> Result<String, minijinja::Error> {
            let mut json = Json { state, indent: options.get("indent")?, out: String::new() };
            json.write(value, 0)?;
            Ok(json.out)
        },
    );
    Ok(environment)
}

/// JSON as Python's `json.dumps` writes it; the engine's own filter escapes for HTML, which models were not trained on.
struct Json<'a> {
    state: &'a State<'a, 'a>,
    indent: Option<u8>,
    out: String,
}

impl Json<'_> {
    fn write(&mut self, value: &Value, depth: usize) -> Result<(), minijinja::Error> {
        // A list that holds another twice, and so on, is small in memory but not on paper.
        self.state.consume_fuel(1)?;
        match value.kind() {
            ValueKind::None | ValueKind::Undefined => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&value.to_string()),
            ValueKind::String => self.quote(value.as_str().unwrap_or_default())?,
            ValueKind::Seq | ValueKind::Iterable => {
                self.items('[', ']', value, depth, |json, item| json.write(&item, depth + 1))?;
            }
            ValueKind::Map => self.items('{', '}', value, depth, |json, key| {
                json.quote(&key.to_string())?;
                json.out.push_str(": ");
                json.write(&value.get_item(&key)?, depth + 1)
            })?,
            other => return Err(bad(format!("a value of kind {other} has no JSON"))),
        }
        Ok(())
    }

    fn items(
        &mut self,
        open: char,
        close: char,
        value: &Value,
        depth: usize,
        mut write: impl FnMut(&mut Self, Value) -> Result<(), minijinja::Error>,
    ) -> Result<(), minijinja::Error> {
        if depth == 100 {
            return Err(bad("JSON nested deeper than 100"));
        }
        self.out.push(open);
        let mut n = 0;
        for item in value.try_iter()? {
            if n > 0 {
                self.out.push_str(if self.indent.is_some() { "," } else { ", " });
            }
            n += 1;
            self.line(depth + 1)?;
            write(self, item)?;
        }
        if n > 0 {
            self.line(depth)?;
        }
        self.out.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) -> Result<(), minijinja::Error> {
        if let Some(indent) = self.indent {
            let spaces = usize::from(indent) * depth;
            self.state.consume_fuel(spaces as u64 / 64)?;
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', spaces));
        }
        Ok(())
    }

    fn quote(&mut self, text: &str) -> Result<(), minijinja::Error> {
        self.state.consume_fuel(text.len() as u64 / 64)?;
        self.out.push_str(&serde_json::to_string(text).map_err(|e| bad(e.to_string()))?);
        Ok(())
    }
}

fn bad(text: impl Into<std::borrow::Cow<'static, str>>) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, text)
}
