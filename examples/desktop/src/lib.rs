//! Runahead in a window: how an application embeds the library.
//!
//! The model is loaded and asked in the background: [`EngineBuilder::stream`](runahead::engine::EngineBuilder::stream) for the first prompt,
//! [`Engine::stream`](runahead::engine::Engine::stream) for those after it. Progress, text and errors come as events, and dropping the
//! [`Stream`](runahead::engine::Stream) cancels: `answer.rs`. This file draws.

use std::sync::Arc;

use eframe::egui;
use egui::mutex::Mutex;
use runahead::engine::{DeviceId, DeviceInfo};

use answer::{Answer, Question};

mod answer;

/// The window and what it is about.
pub struct App {
    devices: Vec<DeviceInfo>,
    model: String,
    /// The adapters in the order of the chain.
    chain: Vec<DeviceId>,
    prompt: String,
    /// What the answer's engine was opened with.
    opened: (String, Vec<DeviceId>),
    answer: Arc<Mutex<Answer>>,
}

impl App {
    /// A window that offers `devices`, with `model` and `chain` filled in.
    pub fn new(model: String, devices: Vec<DeviceInfo>, chain: Vec<DeviceId>) -> Self {
        Self { devices, model, chain, prompt: String::new(), opened: Default::default(), answer: Arc::default() }
    }

    fn send(&mut self, window: &egui::Context) {
        let (model, chain, prompt) = (self.model.clone(), self.chain.clone(), self.prompt.clone());
        let wanted = (model.clone(), chain.clone());
        let is_loaded = std::mem::replace(&mut self.opened, wanted.clone()) == wanted;
        let engine = self.answer.lock().engine.take();
        self.answer = Answer::to(Question { model, chain, prompt, engine, is_loaded }, window);
    }

    fn choose_adapters(&mut self, ui: &mut egui::Ui) {
        ui.horizontal_wrapped(|ui| {
            ui.label("Adapters");
            for device in &self.devices {
                if ui.button(format!("+ {}", device.name)).on_hover_text(&device.driver).clicked() {
                    self.chain.push(device.id);
                }
            }
        });
        ui.horizontal_wrapped(|ui| {
            ui.label("Chain");
            let name = |id: &DeviceId| self.devices.iter().find(|d| d.id == *id).map_or("?", |d| &d.name);
            let clicked: Vec<bool> =
                self.chain.iter().map(|id| ui.button(format!("{} x", name(id))).clicked()).collect();
            if let Some(gone) = clicked.iter().position(|&clicked| clicked) {
                self.chain.remove(gone);
            }
        });
    }

    fn ask(&mut self, ui: &mut egui::Ui) {
        let idle = !self.answer.lock().under_way;
        ui.add_enabled_ui(idle, |ui| {
            ui.horizontal(|ui| {
                let label = ui.label("Model").id;
                ui.add(egui::TextEdit::singleline(&mut self.model).desired_width(f32::INFINITY)).labelled_by(label);
            });
            self.choose_adapters(ui);
        });
        let label = ui.label("Prompt").id;
        ui.add(egui::TextEdit::multiline(&mut self.prompt).desired_width(f32::INFINITY)).labelled_by(label);
        ui.horizontal(|ui| {
            let ready = idle && !self.prompt.trim().is_empty() && !self.chain.is_empty();
            if ui.add_enabled(ready, egui::Button::new("Send")).clicked() {
                self.send(ui.ctx());
            }
            if ui.add_enabled(!idle, egui::Button::new("Cancel")).clicked() {
                self.answer.lock().cancel();
            }
        });
    }

    fn show_answer(&self, ui: &mut egui::Ui) {
        let answer = self.answer.lock();
        for (adapter, (what, share)) in &answer.bars {
            ui.add(egui::ProgressBar::new(*share).text(format!("{adapter}: {what}")));
        }
        ui.label(&answer.status);
        if let Some(error) = &answer.error {
            ui.colored_label(ui.visuals().error_fg_color, error);
        }
        egui::ScrollArea::vertical().stick_to_bottom(true).show(ui, |ui| ui.label(&answer.text));
    }
}

impl eframe::App for App {
    fn on_exit(&mut self, _: Option<&eframe::glow::Context>) {
        self.answer.lock().cancel();
    }

    fn ui(&mut self, ui: &mut egui::Ui, _: &mut eframe::Frame) {
        egui::CentralPanel::default().show(ui, |ui| {
            self.ask(ui);
            self.show_answer(ui);
        });
    }
}
