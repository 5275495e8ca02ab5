//! An answer under way: an iterator of tokens.

use crate::engine::{Options, PrefillReport, Session};
use crate::error::Result;
use crate::tokenizer::StreamDecoder;

/// A generated token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The text that it completes: whole characters only, so it may be empty, and hold several tokens' bytes.
    pub text: String,
}

/// See [`Session::generate`].
pub struct Generation<'a> {
    session: &'a mut Session,
    decoder: StreamDecoder,
    report: PrefillReport,
    /// The next token, computed but not given out.
    ready: Option<u32>,
    /// The last token given out, not yet taken through the model.
    given: Option<u32>,
    left: usize,
    stop_at_end: bool,
}

impl<'a> Generation<'a> {
    pub(super) fn new(session: &'a mut Session, first: u32, report: PrefillReport, options: &Options) -> Self {
        Self {
            session,
            decoder: StreamDecoder::new(),
            report,
            ready: Some(first),
            given: None,
            left: options.max_tokens,
            stop_at_end: options.stop_at_end,
        }
    }

    /// What the prefill did.
    pub fn report(&self) -> &PrefillReport {
        &self.report
    }

    fn advance(&mut self) -> Result<Option<Token>> {
        let id = match (self.ready.take(), self.given.take()) {
            (Some(id), _) => id,
            // The row of the token given out last needs a place in the cache.
            (None, Some(id)) if self.session.room() > 0 => self.session.step(id)?,
            _ => return Ok(None),
        };
        let ends = self.session.engine.shared.files.eos.contains(&id);
        if self.stop_at_end && ends {
            // The end token is part of the conversation, though not of the answer's text.
            self.session.set_pending(id);
            self.left = 0;
            return Ok(None);
        }
        self.left -= 1;
        self.given = Some(id);
        self.session.set_pending(id);
        let text = match self.session.engine.tokenizer() {
            Some(tokenizer) => self.decoder.push(tokenizer, id)?,
            None => String::new(),
        };
        Ok(Some(Token { id, text }))
    }

    /// The end of the text where the last character was cut: what a whole character lacks is shown as U+FFFD.
    pub fn finish(mut self) -> String {
        self.decoder.flush()
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Token>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let next = self.advance().transpose();
        if !matches!(next, Some(Ok(_))) {
            self.left = 0;
        }
        next
    }
}
