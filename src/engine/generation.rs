//! An answer under way: an iterator of tokens.

use crate::engine::{Options, PrefillReport, Session};
use crate::error::Result;
use crate::runahead::share::Want;
use crate::sampler::{Choice, Logprobs, Sampler, StopFilter};
use crate::tokenizer::StreamDecoder;

/// A generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The text that it completes: whole characters only, so it may be empty, and hold several tokens' bytes.
    pub text: String,
    /// Where [`Sampling::logprobs`](crate::sampler::Sampling::logprobs) asks for them.
    pub logprobs: Option<Logprobs>,
}

/// See [`Session::generate`].
pub struct Generation<'a> {
    session: &'a mut Session,
    sampler: Sampler,
    want: Want,
    decoder: StreamDecoder,
    stop: StopFilter,
    report: PrefillReport,
    /// The prefill's token, until it is given out.
    first: Option<Choice>,
    left: usize,
    stop_at_end: bool,
}

impl<'a> Generation<'a> {
    pub(super) fn new(
        session: &'a mut Session,
        first: Choice,
        sampler: Sampler,
        want: Want,
        report: PrefillReport,
        options: &Options,
    ) -> Self {
        Self {
            session,
            sampler,
            want,
            decoder: StreamDecoder::new(),
            stop: StopFilter::new(&options.stop),
            report,
            first: Some(first),
            left: options.max_tokens,
            stop_at_end: options.stop_at_end,
        }
    }

    /// What the prefill did.
    pub fn report(&self) -> &PrefillReport {
        &self.report
    }

    fn advance(&mut self) -> Result<Option<Token>> {
        let Choice { id, logprobs } = match self.first.take() {
            Some(first) => first,
            // The row of the token given out last needs a place in the cache.
            None if self.session.room() > 0 => self.session.step(&mut self.sampler, self.want, self.left > 1)?,
            None => return Ok(None),
        };
        // The end token is part of the conversation, though not of the answer's text; so are the tokens of a stop string.
        self.session.push(id);
        if self.stop_at_end && self.session.engine().ends(id) {
            return Ok(None);
        }
        self.left -= 1;
        let text = match self.session.engine().tokenizer() {
            Some(tokenizer) => self.decoder.push(tokenizer, id)?,
            None => String::new(),
        };
        let text = self.stop.push(&text);
        if self.stop.is_hit() {
            self.left = 0;
        }
        Ok(Some(Token { id, text, logprobs }))
    }

    /// The end of the text that tokens held back: what may have begun a stop string, and a character that was cut (what it lacks is shown as
    /// U+FFFD).
    pub fn finish(mut self) -> String {
        let cut = self.decoder.flush();
        let text = self.stop.push(&cut);
        text + &self.stop.finish()
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
