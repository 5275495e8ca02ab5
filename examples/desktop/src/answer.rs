//! An answer as the window shows it, filled from a [`Stream`]'s events on a thread of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use eframe::egui;
use egui::mutex::Mutex;
use runahead::Result;
use runahead::engine::{DeviceId, Engine, Event, Options, Progress, Stream};

/// What is asked of whom.
pub struct Question {
    pub model: String,
    /// The adapters in the order of the chain.
    pub chain: Vec<DeviceId>,
    pub prompt: String,
    /// The engine of the answer before.
    pub engine: Option<Engine>,
    /// Whether that is the model on these adapters.
    pub is_loaded: bool,
}

/// What there is to see.
#[derive(Default)]
pub struct Answer {
    /// For the next question.
    pub engine: Option<Engine>,
    /// Each adapter's load or prefill, from 0 to 1, by name.
    pub bars: BTreeMap<String, (&'static str, f32)>,
    pub text: String,
    pub status: String,
    pub error: Option<String>,
    pub under_way: bool,
    /// Dropped to cancel.
    stream: Option<Stream>,
}

impl Answer {
    /// Asks in the background. A thread takes the events from their bounded channel as they arrive and wakes the window, which so never waits, and
    /// draws nothing while nothing happens.
    pub fn to(question: Question, window: &egui::Context) -> Arc<Mutex<Self>> {
        let answer = Arc::new(Mutex::new(Self { under_way: true, ..Self::default() }));
        let (ours, window) = (Arc::clone(&answer), window.clone());
        std::thread::spawn(move || {
            let result = Self::follow(&ours, question, &window);
            let mut answer = ours.lock();
            answer.error = answer.error.take().or(result.err().map(|error| error.to_string()));
            answer.under_way = false;
            window.request_repaint();
        });
        answer
    }

    /// Ends the answer; what came by then stays.
    pub fn cancel(&mut self) {
        self.status = "cancelled".to_owned();
        self.stream = None;
        self.under_way = false;
    }

    fn follow(this: &Mutex<Self>, question: Question, window: &egui::Context) -> Result<()> {
        let Question { model, chain, prompt, engine, is_loaded } = question;
        // Another model's memory is given back here, which may take a while, before this one's is asked for.
        let engine = engine.filter(|_| is_loaded);
        this.lock().engine = engine.clone();
        let stream = match engine {
            Some(engine) => engine.stream(prompt, Options::default())?,
            // The window is drawn by one of these GPUs.
            None => Engine::builder(model)?.devices(chain).responsive(true).stream(prompt, Options::default())?,
        };
        let events = stream.events().clone();
        this.lock().stream = Some(stream);
        for event in events {
            let mut answer = this.lock();
            // Cancelled, perhaps while the model's files were read, when there was no stream to drop.
            if !answer.under_way {
                answer.stream = None;
                break;
            }
            answer.take(event);
            window.request_repaint();
        }
        Ok(())
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Progress(Progress::Load { adapter, done_bytes, total_bytes }) => {
                self.bar(adapter, "load", done_bytes, total_bytes);
            }
            Event::Progress(Progress::Prefill { adapter, done, total }) => self.bar(adapter, "prefill", done, total),
            Event::Loaded(engine) => self.engine = Some(engine),
            Event::Prefilled(report) => {
                let n = report.partition.iter().sum::<usize>();
                self.status = format!("{n} tokens prefilled, first token after {:.0} ms", report.ttft_ms);
                // A full channel leaves progress out, the last of it as well.
                self.bars = report.adapters.into_iter().map(|a| (a.name, ("prefill", 1.0))).collect();
            }
            Event::Token(token) => self.text += &token.text,
            Event::Done(rest) => self.text += &rest,
            Event::Failed(error) => self.error = Some(error.to_string()),
            _ => {}
        }
    }

    fn bar(&mut self, adapter: String, what: &'static str, done: u64, total: u64) {
        self.bars.insert(adapter, (what, done as f32 / total.max(1) as f32));
    }
}
