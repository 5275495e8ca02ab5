//! Stop strings: text that ends an answer, wherever the borders of tokens fall in it.

/// Lets text through up to the first stop string, and holds back what may yet become one.
///
/// It works on whole characters, as they come out of [`StreamDecoder`](crate::tokenizer::StreamDecoder), so a stop string never matches a part of
/// one.
#[derive(Clone, Debug, Default)]
pub struct StopFilter {
    stops: Vec<String>,
    held: String,
    hit: bool,
}

impl StopFilter {
    /// For these strings; empty ones would stop everything and are left out.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|s| !s.is_empty()).cloned().collect();
        Self { stops, held: String::new(), hit: false }
    }

    /// Takes further text; gives what is sure to belong to the answer.
    pub fn push(&mut self, text: &str) -> String {
        if self.hit {
            return String::new();
        }
        self.held.push_str(text);
        // The one that ends first, as if the text had come character by character.
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop).map(|at| (at + stop.len(), at)));
        if let Some((_, at)) = found.min() {
            self.held.truncate(at);
            self.hit = true;
            return std::mem::take(&mut self.held);
        }
        let keep = self.beginning();
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// Whether a stop string has come.
    pub fn is_hit(&self) -> bool {
        self.hit
    }

    /// What was held back, at the end of the answer.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes of the longest end of the text that begins a stop string.
    fn beginning(&self) -> usize {
        let ends_with_start = |stop: &String, len: usize| self.held.as_bytes().ends_with(&stop.as_bytes()[..len]);
        let longest = |stop: &String| {
            stop.char_indices().map(|(at, _)| at).rev().find(|&len| len > 0 && ends_with_start(stop, len)).unwrap_or(0)
        };
        self.stops.iter().map(longest).max().unwrap_or(0)
    }
}
