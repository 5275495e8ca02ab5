//! One adapter's part in a prefill, as `generate` and `bench` tell it in JSON. Names of the keys are a contract: other programs read them.

use runahead::engine::{AdapterReport, HandOff};
use serde::Serialize;

use super::output::rounded;

/// See the module's text.
#[derive(Clone, Debug, Serialize)]
pub struct Share {
    pub name: String,
    pub start: usize,
    pub end: usize,
    pub busy_ms: f64,
    pub wait_ms: f64,
    pub published_bytes: u64,
    pub fetched_bytes: u64,
    pub link: &'static str,
    pub handed_on: Vec<HandedOn>,
}

/// What passed from an adapter to one behind it.
#[derive(Clone, Debug, Serialize)]
pub struct HandedOn {
    /// The reader's place among the adapters.
    pub to: usize,
    pub bytes: u64,
    pub gb_per_s: f64,
}

impl From<&AdapterReport> for Share {
    fn from(a: &AdapterReport) -> Self {
        Self {
            name: a.name.clone(),
            start: a.start,
            end: a.end,
            busy_ms: rounded(a.busy_ms),
            wait_ms: rounded(a.wait_ms),
            published_bytes: a.published_bytes,
            fetched_bytes: a.fetched_bytes,
            link: a.link,
            handed_on: a.handed_on.iter().map(HandedOn::from).collect(),
        }
    }
}

impl From<&HandOff> for HandedOn {
    fn from(hand_off: &HandOff) -> Self {
        let HandOff { to, bytes, gb_per_s } = *hand_off;
        Self { to, bytes, gb_per_s: rounded(gb_per_s) }
    }
}
