//! Messages, and which tokens they are behind those that stand in the cache.

use runahead::engine::Session;
use runahead::error::Error;
use runahead::template::Message;
use serde::{Deserialize, Serialize};

use crate::cli::failure::Failure;

/// What was said so far.
#[derive(Default)]
pub struct Conversation {
    messages: Vec<Message>,
    /// The text that the session's tokens are, where it is known: the last prompt and its answer. A further turn that begins with it is tokenised from
    /// there on, and leaves the answer's own tokens as they were generated; the same text may have several tokenisations.
    text: String,
}

/// A turn that is about to begin.
pub struct Asked {
    messages: Vec<Message>,
    text: String,
    /// The whole conversation's tokens.
    pub tokens: Vec<u32>,
}

/// The note that goes into a session's file.
#[derive(Serialize, Deserialize)]
struct Note {
    messages: Vec<NoteMessage>,
    text: String,
}

#[derive(Serialize, Deserialize)]
struct NoteMessage {
    role: String,
    content: String,
}

impl Conversation {
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Forgets all but the system message.
    pub fn clear(&mut self) {
        self.messages.retain(|m| m.role == "system");
        self.text.clear();
    }

    /// Puts the system message in front, or takes it away where `text` is empty.
    pub fn set_system(&mut self, text: &str) {
        self.messages.retain(|m| m.role != "system");
        if !text.is_empty() {
            self.messages.insert(0, Message::new("system", text));
        }
    }

    /// The conversation's tokens with `message` and the opening of an answer.
    pub fn ask(&self, session: &Session, message: Message) -> Result<Asked, Failure> {
        let engine = session.engine();
        let (Some(template), Some(tokenizer)) = (engine.template(), engine.tokenizer()) else {
            return Err(Error::Template("the model has none".to_owned()).into());
        };
        let mut messages = self.messages.clone();
        messages.push(message);
        let text = template.render(&messages, true)?;
        let new = text.strip_prefix(&self.text).filter(|_| !self.text.is_empty());
        let new = new.map(|new| tokenizer.encode(new, false)).transpose()?;
        let tokens = match new {
            // Only behind the end of a turn is a tokenisation sure not to depend on what is before. The model may have written that end itself.
            Some(new) if new.first().is_some_and(|&id| engine.ends(id)) => {
                let ended = session.tokens().last() == new.first();
                [session.tokens(), &new[usize::from(ended)..]].concat()
            }
            _ => tokenizer.encode(&text, false)?,
        };
        Ok(Asked { messages, text, tokens })
    }

    /// The session has lost tokens: what is left of them has no known text.
    pub fn forget_text(&mut self) {
        self.text.clear();
    }

    /// Adds a turn. `exact`: the session's tokens say just what `answer` does.
    pub fn answered(&mut self, asked: Asked, answer: &str, exact: bool) {
        self.messages = asked.messages;
        self.messages.push(Message::new("assistant", answer));
        self.text.clear();
        if exact {
            self.text = asked.text + answer;
        }
    }

    /// As text for a session's file.
    pub fn to_note(&self) -> Result<String, Failure> {
        let message = |m: &Message| NoteMessage { role: m.role.clone(), content: m.content.clone() };
        let note = Note { messages: self.messages.iter().map(message).collect(), text: self.text.clone() };
        serde_json::to_string(&note).map_err(|e| Failure::Other(format!("JSON: {e}")))
    }

    /// From a session's file; empty where another program wrote it.
    pub fn from_note(note: &str) -> Self {
        let Ok(note) = serde_json::from_str::<Note>(note) else { return Self::default() };
        let messages = note.messages.into_iter().map(|m| Message::new(m.role, m.content)).collect();
        Self { messages, text: note.text }
    }
}
