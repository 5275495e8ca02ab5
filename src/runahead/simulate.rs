//! Time to first token of a schedule, predicted from costs: the recurrence of the worker, adapter by adapter and layer by layer.
//!
//! ```text
//! own(i,l)   = end(i,l-1) + qkv_i                                       an adapter's own rows, which wait for nobody
//! sent(p,l)  = max(own, the lane's last) + down(p)                       a piece on the board (relay: all that goes to the neighbour, once all of it is there)
//! got(i,l,p) = max(sent(p,l), the lane's last, hub) + up(p)              a piece at its reader
//! end(i,l)   = max(own + copies out, got of all needs) + copies in + attention + rest        (copies: where they run on the device's queue)
//! ```
//!
//! Knows no mode: whom an adapter waits for is in the schedule. Not in it: the board's bounded number of blocks, which holds back only an adapter
//! that is several layers ahead of its slowest reader. Pure.

use crate::dims::Piece;
use crate::error::{Error, Result};
use crate::runahead::cost::{AdapterCost, CostModel, Lane};
use crate::runahead::schedule::{Route, Schedule};

/// What is expected of a prefill.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    /// Seconds from the start to the first token.
    pub ttft_s: f64,
    /// Per adapter of the schedule.
    pub adapters: Vec<AdapterForecast>,
}

/// What is expected of one adapter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdapterForecast {
    /// Seconds in which its device works.
    pub busy_s: f64,
    /// Seconds in which it waits for others, until its last work.
    pub wait_s: f64,
    /// Bytes of K/V rows that it hands on.
    pub published_bytes: f64,
    /// Bytes of K/V rows that it takes.
    pub fetched_bytes: f64,
    /// Layer by layer.
    pub layers: Vec<LayerForecast>,
}

/// One layer on one adapter, in seconds from the start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerForecast {
    /// Its work begins.
    pub start_s: f64,
    /// Its own rows are made.
    pub own_s: f64,
    /// All rows that it needs are there.
    pub got_s: f64,
    /// It is done.
    pub end_s: f64,
}

/// Predicts a schedule on the adapters of `costs`, one for each of the schedule's.
///
/// # Errors
/// [`Error::Partition`] where the schedule does not hold or has another number of adapters; [`Error::Config`] for costs that are no numbers.
pub fn simulate(schedule: &Schedule, costs: &CostModel) -> Result<Forecast> {
    schedule.validate()?;
    costs.validate()?;
    if costs.adapters.len() != schedule.n_adapters() {
        let (have, want) = (costs.adapters.len(), schedule.n_adapters());
        return Err(Error::Partition(format!("costs of {have} adapters for a schedule of {want}")));
    }
    let mut run = Run::new(schedule, costs);
    for layer in schedule.layers.clone() {
        run.layer(layer);
    }
    Ok(run.finish())
}

/// One adapter on its way.
struct State<'a> {
    costs: &'a AdapterCost,
    rows: f64,
    /// Pieces that it hands on.
    sends: Vec<usize>,
    /// Copies of arriving rows that the device has to make before the present layer's attention.
    copies: f64,
    end: f64,
    own: f64,
    down_free: f64,
    up_free: f64,
    out: AdapterForecast,
}

struct Run<'a> {
    schedule: &'a Schedule,
    kv_bytes: f64,
    /// Bytes per second and bytes so far.
    hub: Option<f64>,
    hub_bytes: f64,
    states: Vec<State<'a>>,
    /// Per piece: when it is on the board in the present layer; by relay, when the last adapter that has it has handed it on.
    sent: Vec<f64>,
}

impl<'a> Run<'a> {
    fn new(schedule: &'a Schedule, costs: &'a CostModel) -> Self {
        let state = |(i, costs): (usize, &'a AdapterCost)| State {
            costs,
            rows: costs.whole_tiles(schedule.n_rows(i)) as f64,
            sends: schedule.sends(i).into_iter().map(|(p, _)| p).collect(),
            copies: 0.0,
            end: 0.0,
            own: 0.0,
            down_free: 0.0,
            up_free: 0.0,
            out: AdapterForecast::default(),
        };
        Self {
            schedule,
            kv_bytes: costs.kv_bytes,
            hub: costs.hub,
            hub_bytes: 0.0,
            states: costs.adapters.iter().enumerate().map(state).collect(),
            sent: vec![0.0; schedule.pieces.len()],
        }
    }

    fn layer(&mut self, layer: usize) {
        let relays = self.schedule.route == Route::Relay;
        let is_last_layer = layer + 1 == self.schedule.layers.end;
        let n = self.states.len();
        for i in 0..n {
            self.make_rows(i);
            if !relays {
                self.publish(i, layer);
            }
        }
        // By relay, what an adapter hands on has come from the one before it.
        for i in 0..n {
            let makes_token = i + 1 == n;
            // Of the last layer, only those take rows who make the token or hand others' rows on.
            let own = |piece: &usize| self.schedule.share[i].contains(piece);
            let takes = !is_last_layer || makes_token || !self.states[i].sends.iter().all(own);
            let got = if takes { self.receive(i, layer) } else { 0.0 };
            if relays {
                self.pass_on(i, layer, got);
            }
            match (is_last_layer, makes_token) {
                (false, _) => self.attend(i, layer, got),
                (true, true) => self.last_row(i, layer, got),
                (true, false) => self.end_layer(i, 0.0, 0.0),
            }
        }
    }

    fn make_rows(&mut self, i: usize) {
        let s = &mut self.states[i];
        let work = s.costs.qkv.at(s.rows);
        s.own = s.end + work;
        s.out.busy_s += work;
    }

    /// Its own pieces to the board, one after another.
    fn publish(&mut self, i: usize, layer: usize) {
        let sends = std::mem::take(&mut self.states[i].sends);
        for &piece in &sends {
            let bytes = self.bytes(self.schedule.rows_sent(i, piece, layer));
            let s = &mut self.states[i];
            s.down_free = s.own.max(s.down_free) + transfer(&s.costs.down, bytes, i, layer, piece);
            s.out.published_bytes += bytes;
            self.sent[piece] = s.down_free;
            self.hub_bytes += bytes;
            let s = &mut self.states[i];
            let copying = queue_time(s.costs, bytes);
            s.own += copying;
            s.out.busy_s += copying;
        }
        self.states[i].sends = sends;
    }

    /// What goes to the neighbour: the growing cache in one transfer.
    fn pass_on(&mut self, i: usize, layer: usize, got: f64) {
        let sends = std::mem::take(&mut self.states[i].sends);
        if let Some(&first) = sends.first() {
            let bytes: f64 = sends.iter().map(|&p| self.bytes(self.schedule.rows_sent(i, p, layer))).sum();
            let s = &mut self.states[i];
            let ready = s.own.max(got).max(s.down_free);
            s.down_free = ready + transfer(&s.costs.down, bytes, i, layer, first);
            s.out.published_bytes += bytes;
            let sent = s.down_free;
            sends.iter().for_each(|&p| self.sent[p] = sent);
            self.hub_bytes += bytes;
            let s = &mut self.states[i];
            let copying = queue_time(s.costs, bytes);
            s.own += copying;
            s.out.busy_s += copying;
        }
        self.states[i].sends = sends;
    }

    /// When the last of the rows that `i` needs has arrived; they come in the order in which they were sent.
    fn receive(&mut self, i: usize, layer: usize) -> f64 {
        let past = self.bytes(self.schedule.past_taken(i, layer));
        if past > 0.0 {
            self.take(i, layer, self.schedule.pieces.len(), past, 0.0);
        }
        let needs = &self.schedule.needs[i];
        if needs.is_empty() {
            return if past > 0.0 { self.states[i].up_free } else { 0.0 };
        }
        if self.schedule.route == Route::Relay {
            let bytes = needs.iter().map(|&p| self.taken(i, p, layer)).sum();
            self.take(i, layer, needs[0], bytes, self.sent[needs[0]]);
        } else {
            let mut order = needs.clone();
            order.sort_by(|&a, &b| self.sent[a].total_cmp(&self.sent[b]));
            for piece in order {
                self.take(i, layer, piece, self.taken(i, piece, layer), self.sent[piece]);
            }
        }
        self.states[i].up_free
    }

    fn take(&mut self, i: usize, layer: usize, piece: usize, bytes: f64, sent: f64) {
        self.hub_bytes += bytes;
        let hub = self.hub.map_or(0.0, |rate| self.hub_bytes / rate);
        let n = self.states.len();
        let s = &mut self.states[i];
        // The two directions of a link have weather of their own.
        s.up_free = sent.max(s.up_free).max(hub) + transfer(&s.costs.up, bytes, n + i, layer, piece);
        s.out.fetched_bytes += bytes;
        s.copies += queue_time(s.costs, bytes);
    }

    fn attend(&mut self, i: usize, layer: usize, got: f64) {
        let s = &self.states[i];
        let work = s.costs.score_s * self.schedule.n_scores(i, layer) as f64 + s.costs.rest.at(s.rows);
        self.end_layer(i, got, work);
    }

    /// The last layer of the adapter that makes the token: one row of it, and the output head.
    fn last_row(&mut self, i: usize, layer: usize, got: f64) {
        let all = self.schedule.past + self.schedule.n_tokens();
        let keys = self.schedule.window(layer).map_or(all, |window| window.min(all)) as f64;
        let s = &self.states[i];
        let work = s.costs.score_s * keys + s.costs.rest.at(1.0) + s.costs.head_s;
        self.end_layer(i, got, work);
    }

    /// `work` once all rows are there.
    fn end_layer(&mut self, i: usize, got: f64, work: f64) {
        let s = &mut self.states[i];
        let work = work + std::mem::take(&mut s.copies);
        let got_s = s.own.max(got);
        let end_s = got_s + work;
        s.out.busy_s += work;
        s.out.layers.push(LayerForecast { start_s: s.end, own_s: s.own, got_s, end_s });
        s.end = end_s;
    }

    fn bytes(&self, rows: Piece) -> f64 {
        rows.len() as f64 * self.kv_bytes
    }

    /// Bytes that `i` takes of a piece in a layer.
    fn taken(&self, i: usize, piece: usize, layer: usize) -> f64 {
        self.bytes(self.schedule.rows_taken(i, piece, layer))
    }

    fn finish(self) -> Forecast {
        let ttft_s = self.states.last().map_or(0.0, |s| s.end);
        let adapters =
            self.states.into_iter().map(|s| AdapterForecast { wait_s: (s.end - s.out.busy_s).max(0.0), ..s.out });
        Forecast { ttft_s, adapters: adapters.collect() }
    }
}

fn transfer(lane: &Lane, bytes: f64, link: usize, layer: usize, piece: usize) -> f64 {
    lane.seconds(bytes) * lane.noise.map_or(1.0, |n| n.factor(link, layer, piece))
}

fn queue_time(costs: &AdapterCost, bytes: f64) -> f64 {
    costs.queue.map_or(0.0, |queue| queue.seconds(bytes))
}
