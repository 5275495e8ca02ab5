//! An answer as a channel: progress, tokens and the end, from a thread of its own.

use std::sync::Arc;
use std::thread::JoinHandle;

use crate::cancel::{Cancel, Wait};
use crate::engine::{Engine, EngineBuilder, OnProgress, Options, PrefillReport, Progress, Session, Token};
use crate::error::{Error, Result};

/// Events that wait for the application; beyond them, progress is dropped and tokens wait.
const CAPACITY: usize = 64;

/// What happens in a [`Stream`].
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// Load or prefill went on; some of these may be left out.
    Progress(Progress),
    /// The model is on its adapters. Whoever keeps the engine need not load again for the next answer.
    Loaded(Engine),
    /// The prompt is in the cache; the first token follows.
    Prefilled(PrefillReport),
    /// A token of the answer.
    Token(Token),
    /// The answer is complete; the rest of its text.
    Done(String),
    /// The answer ended early.
    Failed(Error),
}

/// An answer under way on a thread of its own. Dropping it cancels.
pub struct Stream {
    events: flume::Receiver<Event>,
    cancel: Cancel,
    thread: Option<JoinHandle<Option<Session>>>,
}

impl Stream {
    /// The events, in order; ends after [`Event::Done`] or [`Event::Failed`], or without either where the answer was cancelled while 64 events waited.
    pub fn events(&self) -> &flume::Receiver<Event> {
        &self.events
    }

    /// Ends the answer and gives the session back (`None` where loading failed), with all that was generated.
    pub fn stop(mut self) -> Option<Session> {
        self.cancel.cancel();
        self.thread.take().and_then(|t| t.join().ok()).flatten()
    }

    /// Waits for the answer's end, dropping events that nobody took, and gives the session back.
    pub fn join(mut self) -> Option<Session> {
        while self.events.recv().is_ok() {}
        self.thread.take().and_then(|t| t.join().ok()).flatten()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl EngineBuilder {
    /// Loads the model and answers `prompt` (through the chat template), all in the background. Progress comes as events; that of later prefills goes
    /// to [`EngineBuilder::on_progress`] again.
    ///
    /// # Errors
    /// [`Error::Io`] where no thread can be started; all else comes as [`Event::Failed`].
    pub fn stream(self, prompt: String, options: Options) -> Result<Stream> {
        spawn(self.own_cancel().child(), move |out| {
            let engine = self.open_until(&out.wait.cancel, &out.progress())?;
            out.send(Event::Loaded(engine.clone()))?;
            engine.begin(&prompt, options)
        })
    }
}

impl Engine {
    /// Answers `prompt` (through the chat template) in a session of its own, all in the background.
    ///
    /// # Errors
    /// [`Error::Io`] where no thread can be started; all else comes as [`Event::Failed`].
    pub fn stream(&self, prompt: String, options: Options) -> Result<Stream> {
        let engine = self.clone();
        spawn(self.cancel().child(), move |_| engine.begin(&prompt, options))
    }

    fn begin(&self, prompt: &str, options: Options) -> Result<(Session, Vec<u32>, Options)> {
        let tokens = self.prompt_tokens(prompt, false)?;
        Ok((self.session()?, tokens, options))
    }
}

impl Session {
    /// As [`Session::generate`], on a thread of its own. Progress comes as events, not to the engine's callback.
    ///
    /// # Errors
    /// [`Error::Io`] where no thread can be started, and the session is gone; all else comes as [`Event::Failed`].
    pub fn stream(self, tokens: Vec<u32>, options: Options) -> Result<Stream> {
        spawn(self.parent.child(), move |_| Ok((self, tokens, options)))
    }
}

/// The sending end.
struct Out {
    events: flume::Sender<Event>,
    wait: Wait,
}

impl Out {
    fn progress(&self) -> OnProgress {
        let events = self.events.clone();
        Arc::new(move |progress| {
            let _ = events.try_send(Event::Progress(progress));
        })
    }

    /// `Err(Cancelled)` where nobody listens any more.
    fn send(&self, event: Event) -> Result<()> {
        if self.wait.send(&self.events, event, "the application")? { Ok(()) } else { Err(Error::Cancelled) }
    }

    fn answer(&self, session: &mut Session, tokens: &[u32], options: &Options) -> Result<()> {
        let mut answer = session.generate(tokens, options)?;
        self.send(Event::Prefilled(answer.report().clone()))?;
        for token in answer.by_ref() {
            self.send(Event::Token(token?))?;
        }
        self.send(Event::Done(answer.finish()))
    }
}

fn spawn(
    cancel: Cancel,
    start: impl FnOnce(&Out) -> Result<(Session, Vec<u32>, Options)> + Send + 'static,
) -> Result<Stream> {
    let (sender, events) = flume::bounded(CAPACITY);
    let mut wait = Wait::new(&cancel);
    wait.limit = std::time::Duration::MAX; // an application may look away for as long as it likes
    let out = Out { events: sender, wait };
    let body = move || {
        let mut session = None;
        let result = start(&out).and_then(|(begun, tokens, options)| {
            let begun = session.insert(begun);
            let parent = std::mem::replace(&mut begun.parent, out.wait.cancel.clone());
            begun.report_to(Some(out.progress()));
            let answered = out.answer(begun, &tokens, &options);
            begun.report_to(None);
            begun.parent = parent;
            answered
        });
        match result {
            Ok(()) => {}
            // Nobody may be listening any more.
            Err(Error::Cancelled) => drop(out.events.try_send(Event::Failed(Error::Cancelled))),
            Err(error) => drop(out.send(Event::Failed(error))),
        }
        session
    };
    let thread = std::thread::Builder::new()
        .name("runahead answer".to_owned())
        .spawn(body)
        .map_err(|e| Error::io("thread", e))?;
    Ok(Stream { events, cancel, thread: Some(thread) })
}

const _: fn() = || {
    fn send_and_sync<T: Send + Sync>() {}
    send_and_sync::<Engine>();
    send_and_sync::<Session>();
    send_and_sync::<Stream>();
};
