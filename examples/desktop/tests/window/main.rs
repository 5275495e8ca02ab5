//! The window on a display, used as a person would: keys and buttons are pressed through X11, and the picture is read back from the screen.
//!
//! Needs an X11 display and a model: `make desktop-test` brings a virtual one, and SmolLM2.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use eframe::egui::{self, Role, accesskit};
use runahead::engine::{DeviceId, devices};
use runahead_desktop::App;
use screen::{Picture, Screen};

mod screen;

/// A model that is loaded and answers in a debug build; nothing else takes longer.
const PATIENCE: Duration = Duration::from_secs(240);
const SIZE: [u16; 2] = [640, 480];

/// What there is in the window, as a screen reader is told.
#[derive(Clone, Debug)]
struct Part {
    role: Role,
    /// The label, else the text.
    name: String,
    text: String,
    value: Option<f64>,
    enabled: bool,
    has_keys: bool,
    /// In pixels: left, top, right, bottom.
    area: [u16; 4],
}

/// The parts of the latest frame.
#[derive(Clone, Default)]
struct Parts {
    latest: Arc<Mutex<Vec<Part>>>,
    /// Whether some frame showed a prefill that had begun and was not done.
    saw_prefill: Arc<AtomicBool>,
}

impl egui::Plugin for Parts {
    fn debug_name(&self) -> &'static str {
        "parts"
    }

    fn output_hook(&mut self, _: &egui::Context, output: &mut egui::FullOutput) {
        let Some(tree) = &output.platform_output.accesskit_update else { return };
        let scale = output.pixels_per_point;
        let parts: Vec<Part> = tree.nodes.iter().filter_map(|node| part(node, tree, scale)).collect();
        let half = |p: &Part| p.name.ends_with("prefill") && p.value.is_some_and(|v| v > 0.0 && v < 100.0);
        self.saw_prefill.fetch_or(parts.iter().any(half), Ordering::Relaxed);
        *self.latest.lock().unwrap() = parts;
    }
}

fn part((id, node): &(accesskit::NodeId, accesskit::Node), tree: &accesskit::TreeUpdate, scale: f32) -> Option<Part> {
    let bounds = node.bounds()?;
    let label_of = |id: &accesskit::NodeId| tree.nodes.iter().find(|(n, _)| n == id).and_then(|(_, n)| n.value());
    let name = node.label().or_else(|| node.labelled_by().first().and_then(label_of)).or(node.value());
    Some(Part {
        role: node.role(),
        name: name.unwrap_or_default().to_owned(),
        text: node.value().unwrap_or_default().to_owned(),
        value: node.numeric_value(),
        enabled: !node.is_disabled(),
        has_keys: tree.focus == *id,
        area: [bounds.x0, bounds.y0, bounds.x1, bounds.y1].map(|x| (x * f64::from(scale)).max(0.0) as u16),
    })
}

/// Someone who looks at the window and uses it.
struct Person {
    parts: Parts,
    screen: Screen,
    window: egui::Context,
}

impl Person {
    fn find(&self, role: Role, name: &str) -> Option<Part> {
        self.parts.latest.lock().unwrap().iter().find(|p| p.role == role && p.name == name).cloned()
    }

    /// Waits until `seen` gives something.
    fn wait<T>(&self, what: &str, seen: impl Fn(&Self) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(found) = seen(self) {
                return found;
            }
            let parts = &self.parts.latest.lock().unwrap().clone();
            assert!(began.elapsed() < PATIENCE, "no {what} in {parts:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn button(&self, name: &str, enabled: bool) -> Part {
        self.wait(name, |p| p.find(Role::Button, name).filter(|b| b.enabled == enabled))
    }

    fn click(&self, part: &Part) {
        let [left, top, right, bottom] = part.area;
        self.screen.click((left + right) / 2, (top + bottom) / 2);
    }

    /// Clicks a box and types, once it has the keys; the box as it is then.
    fn write(&self, into: &Part, text: &str) -> Part {
        self.click(into);
        self.wait("keys", |p| p.find(into.role, &into.name).filter(|b| b.has_keys));
        self.screen.write(text);
        let there = into.text.len() + text.len();
        self.wait("text", |p| p.find(into.role, &into.name).filter(|b| b.text.len() == there))
    }

    /// The screen, once it shows this: a frame is told before it is painted.
    fn picture(&self, name: &str, shows: impl Fn(&Picture) -> bool) -> Picture {
        self.wait(name, |p| Some(p.screen.picture(name)).filter(&shows))
    }

    fn bars(&self) -> Vec<Part> {
        self.parts.latest.lock().unwrap().iter().filter(|p| p.role == Role::ProgressIndicator).cloned().collect()
    }

    /// The answer's text: the lowest label.
    fn answer(&self) -> Option<Part> {
        let parts = self.parts.latest.lock().unwrap();
        let labels = parts.iter().filter(|p| p.role == Role::Label && p.text.chars().count() > 3);
        let bars = parts.iter().filter(|p| p.role == Role::ProgressIndicator).map(|p| p.area[3]).max()?;
        labels.filter(|p| p.area[1] > bars + 12).max_by_key(|p| p.area[1]).cloned()
    }

    fn use_it(&self) {
        let prompt = self.wait("prompt box", |p| p.find(Role::MultilineTextInput, "Prompt"));
        self.button("Cancel", false);
        // The window appears with its first frame: a second after that is told, if Mesa compiles its shaders.
        let send = self.button("Send", false);
        self.picture("window", |p| p.has_writing(send.area));
        self.click(&self.button("+ cpu", true));
        self.wait("second adapter", |p| {
            let parts = p.parts.latest.lock().unwrap();
            (parts.iter().filter(|p| p.name == "cpu x").count() == 2).then_some(())
        });
        let empty = self.screen.picture("empty");
        assert!(!empty.has_writing(prompt.area), "nothing is written yet");

        let text = format!("tell me a long story about {} and the moon", ["the sea and the mountains"; 20].join(" "));
        assert_eq!(self.write(&prompt, &text).text, text);
        self.click(&self.button("Send", true));

        // A bar for each adapter, filled as far as it says, while the answer is under way.
        let cancel = self.button("Cancel", true);
        let full = |p: &Self| {
            let bars = p.bars();
            let prefilled = bars.len() == 2 && bars.iter().all(|b| b.name.ends_with("prefill"));
            (prefilled && bars.iter().all(|b| b.value == Some(100.0))).then_some(bars)
        };
        let bars = self.wait("bars", full);
        assert_eq!([&bars[0].name, &bars[1].name], ["cpu: prefill", "cpu #2: prefill"]);
        assert!(self.parts.saw_prefill.load(Ordering::Relaxed), "bars move while the prefill is under way");
        let answer = self.wait("text", Self::answer);
        let send = self.button("Send", false);
        let written = [&prompt, &cancel, &answer, &send];
        let picture = self.picture("answering", |picture| {
            bars.iter().all(|bar| picture.filled(bar.area) > 0.8)
                && written.iter().all(|part| picture.has_writing(part.area))
        });
        // The same eyes see nothing where nothing is.
        let below = [10, SIZE[1] - 30, SIZE[0] - 10, SIZE[1] - 10];
        assert!(!picture.has_writing(below) && picture.filled(below) == 0.0);
        assert!(empty.filled(bars[0].area) == 0.0 && !empty.has_writing(answer.area));

        self.click(&cancel);
        self.button("Send", true);
        self.button("Cancel", false);
        self.wait("end", |p| p.find(Role::Label, "cancelled"));
        let kept = self.wait("text", Self::answer);
        assert!(kept.text.starts_with(&answer.text), "{kept:?} {answer:?}");

        // Asked again, the engine is there already: no bar speaks of loading.
        self.click(&self.button("Send", true));
        self.button("Cancel", true);
        self.wait("bars", |p| {
            assert!(p.bars().iter().all(|b| b.name.ends_with("prefill")), "{:?}", p.bars());
            full(p)
        });
        self.click(&self.button("Cancel", true));
        self.button("Send", true);

        // What goes wrong is told in red, and the window goes on.
        let model = self.wait("model", |p| p.find(Role::TextInput, "Model"));
        self.write(&model, "x");
        self.click(&self.button("Send", true));
        let says = |p: &Part| p.role == Role::Label && p.text.contains("No such file");
        let error = self.wait("error", |p| p.parts.latest.lock().unwrap().iter().find(|p| says(p)).cloned());
        self.picture("error", |p| p.has_red(error.area));
        assert!(!picture.has_red([0, 0, SIZE[0], SIZE[1]]));
        self.button("Send", true);
    }
}

// Windows belong to a process's first thread, and tests of the usual harness run on others: this one has none.
fn main() {
    let model = std::env::var("RUNAHEAD_MODEL").expect("RUNAHEAD_MODEL names a model with a tokenizer");
    let person = Arc::new(Mutex::new(None));
    let started = Arc::clone(&person);
    let options = eframe::NativeOptions {
        viewport: egui::ViewportBuilder::default().with_inner_size(SIZE.map(f32::from)).with_position([0.0, 0.0]),
        ..eframe::NativeOptions::default()
    };
    let create: eframe::AppCreator<'_> = Box::new(move |context| {
        let (parts, window) = (Parts::default(), context.egui_ctx.clone());
        window.enable_accesskit();
        window.add_plugin(parts.clone());
        // A button let go is a click, however long the frame since it was pressed.
        window.options_mut(|options| options.input_options.max_click_duration = f64::INFINITY);
        let body = move || {
            let person = Person { parts, screen: Screen::new(SIZE), window: window.clone() };
            let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| person.use_it()));
            person.window.send_viewport_cmd(egui::ViewportCommand::Close);
            seen
        };
        *started.lock().unwrap() = Some(std::thread::spawn(body));
        Ok(Box::new(App::new(model, devices(), vec![DeviceId::Cpu])))
    });
    eframe::run_native("window", options, create).expect("an X11 display with OpenGL: `make desktop-test` brings one");
    let thread = person.lock().unwrap().take().unwrap();
    if let Err(panic) = thread.join().unwrap() {
        std::panic::resume_unwind(panic);
    }
    println!("the window and all its parts are there, and do what they say");
}
