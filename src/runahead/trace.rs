//! What happened when in a prefill: events on one clock for all adapters, as the trace format that Chrome and Perfetto read, and the numbers that
//! show whether anybody waited for a later piece.

use std::time::Duration;

use serde_json::{Value, json};

use crate::kernels::{Part, Work};

/// What an adapter does: its device, where it was timed, and its threads beside submitting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The device computes products, and what is small beside them.
    Products,
    /// The device computes attention.
    Attention,
    /// The device copies rows towards the host.
    Download,
    /// The courier copies finished rows to the board.
    Publish,
    /// The worker copies rows from the board into its cache.
    Fetch,
    /// The worker waits for rows of others; its device may still be busy.
    Wait,
    /// The worker stands still because an experiment slows it down.
    Pause,
}

impl What {
    /// All of them.
    pub const ALL: [What; 7] =
        [What::Products, What::Attention, What::Download, What::Publish, What::Fetch, What::Wait, What::Pause];

    /// The name in traces.
    pub const fn name(self) -> &'static str {
        match self {
            What::Products => "products",
            What::Attention => "attention",
            What::Download => "download",
            What::Publish => "publish",
            What::Fetch => "fetch",
            What::Wait => "wait",
            What::Pause => "pause",
        }
    }
}

/// One of these as it went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Event {
    /// What.
    pub what: What,
    /// The layer that the rows belong to; of a device's work, the stage of its submission.
    pub layer: usize,
    /// Whose rows; `None` for those of earlier turns, and where any rows were waited for.
    pub piece: Option<usize>,
    /// Bytes of K and V moved.
    pub bytes: u64,
    /// From the start of the prefill.
    pub start: Duration,
    /// From the start of the prefill.
    pub end: Duration,
}

/// One submission as it went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// The stage: the number of layers done when it has ended.
    pub stage: usize,
    /// Whether the stage ended with it.
    pub ends_stage: bool,
    /// When it was handed to the device, from the start of the prefill.
    pub start: Duration,
    /// When the host saw it done.
    pub end: Duration,
}

/// One adapter's part as it went.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdapterLog {
    /// Its submissions in order, on one clock for all adapters: the proof that early adapters run ahead.
    pub spans: Vec<Span>,
    /// What was published, fetched and waited for, each kind in order, on the same clock.
    pub events: Vec<Event>,
    /// Bytes put on the board.
    pub published_bytes: u64,
    /// Bytes taken from the board.
    pub fetched_bytes: u64,
}

impl AdapterLog {
    /// Adds what was seen of a prefill that began `offset` after this one.
    pub fn join(&mut self, later: Self, offset: Duration) {
        let at = |time: Duration| time + offset;
        self.spans.extend(later.spans.into_iter().map(|s| Span { start: at(s.start), end: at(s.end), ..s }));
        self.events.extend(later.events.into_iter().map(|e| Event { start: at(e.start), end: at(e.end), ..e }));
        self.published_bytes += later.published_bytes;
        self.fetched_bytes += later.fetched_bytes;
    }

    /// Time during which at least one submission was with the device.
    pub fn busy(&self) -> Duration {
        on_device(&self.spans).map(|span| span.end - span.start).sum()
    }

    /// Time without a submission, from the start of the prefill to the adapter's last one.
    pub fn waited(&self) -> Duration {
        let ends = std::iter::once(Duration::ZERO).chain(self.spans.iter().map(|s| s.end));
        self.spans.iter().zip(ends).map(|(span, before)| span.start.saturating_sub(before)).sum()
    }
}

/// Submissions as the device ran them: one after another, each from its hand-over or the end of the one before.
pub fn on_device(spans: &[Span]) -> impl Iterator<Item = Span> + '_ {
    let ends = std::iter::once(Duration::ZERO).chain(spans.iter().map(|s| s.end));
    spans.iter().zip(ends).map(|(span, before)| Span { start: span.start.max(before).min(span.end), ..*span })
}

/// Stages instead of submissions: a stage that took several is there once, from the beginning of the first to the end of the last.
pub fn stages(spans: &[Span]) -> Vec<Span> {
    let parts = spans.split_inclusive(|span| span.ends_stage);
    parts.filter_map(|parts| Some(Span { start: parts.first()?.start, ..*parts.last()? })).collect()
}

/// The parts of submissions, timed by the device's clock, on the clock of the prefill. Devices share no clock with the host: the two are as far apart as
/// they can be without a submission that ends after the host saw its end, since of all submissions the host saw one at once, or nearly.
pub fn on_host_clock(submissions: &[(Span, Vec<Part>)]) -> Vec<Event> {
    let apart = |(span, parts): &(Span, Vec<Part>)| Some(span.end.as_secs_f64() - parts.last()?.end.as_secs_f64());
    let Some(apart) = submissions.iter().filter_map(apart).min_by(f64::total_cmp) else { return Vec::new() };
    let host = |time: Duration| Duration::try_from_secs_f64(time.as_secs_f64() + apart).unwrap_or_default();
    let event = |stage: usize, part: &Part| {
        let what = match part.work {
            Work::Products => What::Products,
            Work::Attention => What::Attention,
            Work::Download => What::Download,
        };
        Event { what, layer: stage, piece: None, bytes: 0, start: host(part.start), end: host(part.end) }
    };
    submissions.iter().flat_map(|(span, parts)| parts.iter().map(move |part| event(span.stage, part))).collect()
}

/// The most layers that an adapter was ahead of one behind it in the chain. With a barrier in every layer nobody can be ahead by more than one.
pub fn run_ahead_layers(adapters: &[&AdapterLog]) -> usize {
    let done_at = |log: &AdapterLog, time: Duration| {
        stages(&log.spans).iter().take_while(|s| s.end <= time).map(|s| s.stage + 1).max().unwrap_or(0)
    };
    let mut most = 0;
    for (i, first) in adapters.iter().enumerate() {
        for span in stages(&first.spans) {
            let later = adapters[i + 1..].iter().map(|log| done_at(log, span.end));
            most = most.max((span.stage + 1).saturating_sub(later.min().unwrap_or(usize::MAX)));
        }
    }
    most
}

/// The trace as JSON: a process for each adapter, with a row for its device and one for each of [`What`]. Times are in microseconds.
pub fn chrome(adapters: &[(&str, &AdapterLog)]) -> Value {
    let mut events = Vec::new();
    for (pid, (name, log)) in adapters.iter().enumerate() {
        events.push(json!({"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}}));
        events
            .push(json!({"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": pid}}));
        let rows = std::iter::once("device").chain(What::ALL.map(What::name));
        for (tid, row) in rows.enumerate() {
            events.push(json!({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": row}}));
        }
        for span in on_device(&log.spans) {
            let name = format!("stage {}", span.stage);
            events.push(complete(
                pid,
                0,
                &name,
                (span.start, span.end),
                json!({"stage": span.stage, "ends_stage": span.ends_stage}),
            ));
        }
        for event in &log.events {
            let of_device = matches!(event.what, What::Products | What::Attention | What::Download);
            let place = if of_device { "stage" } else { "layer" };
            let name = format!("{} {place} {}", event.what.name(), event.layer);
            let args = json!({"layer": event.layer, "piece": event.piece, "bytes": event.bytes});
            let tid = 1 + What::ALL.iter().position(|&what| what == event.what).unwrap_or(0);
            events.push(complete(pid, tid, &name, (event.start, event.end), args));
        }
    }
    let logs: Vec<&AdapterLog> = adapters.iter().map(|(_, log)| *log).collect();
    json!({
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"run_ahead_layers": run_ahead_layers(&logs)},
    })
}

fn complete(pid: usize, tid: usize, name: &str, (start, end): (Duration, Duration), args: Value) -> Value {
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    json!({"ph": "X", "cat": "prefill", "name": name, "pid": pid, "tid": tid, "ts": us(start), "dur": us(end) - us(start), "args": args})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(stages: &[(usize, u64, u64)]) -> AdapterLog {
        let ms = Duration::from_millis;
        let span = |&(stage, start, end)| Span { stage, ends_stage: true, start: ms(start), end: ms(end) };
        AdapterLog {
            spans: stages.iter().map(span).collect(),
            events: Vec::new(),
            published_bytes: 0,
            fetched_bytes: 0,
        }
    }

    #[test]
    fn the_lead_of_an_earlier_adapter_is_counted_in_layers() {
        let first = log(&[(0, 0, 1), (1, 1, 2), (2, 2, 3), (3, 3, 4)]);
        let late = log(&[(0, 0, 3), (1, 3, 6)]);
        assert_eq!(run_ahead_layers(&[&first, &late]), 3);
        // A later adapter that is ahead of an earlier one waits for nothing either, but proves nothing.
        assert_eq!(run_ahead_layers(&[&late, &first]), 0);
        assert_eq!((run_ahead_layers(&[&first]), run_ahead_layers(&[&first, &first])), (0, 0));
    }

    #[test]
    fn a_stage_of_several_submissions_counts_once_it_has_ended() {
        let whole = log(&[(0, 0, 1), (1, 1, 6), (2, 6, 7)]);
        let mut cut = log(&[(0, 0, 1), (1, 1, 3), (1, 2, 6), (2, 6, 7)]);
        cut.spans[1].ends_stage = false;
        assert_eq!(stages(&cut.spans), whole.spans);
        let late = log(&[(0, 0, 3), (1, 3, 4)]);
        assert_eq!(run_ahead_layers(&[&cut, &late]), run_ahead_layers(&[&whole, &late]));
        assert_eq!(stages(&[]), []);
    }

    #[test]
    fn a_trace_has_rows_for_each_adapter_and_nothing_overlaps_on_a_device() {
        let mut first = log(&[(0, 0, 4), (1, 1, 6)]);
        let (start, end) = (Duration::from_millis(4), Duration::from_millis(5));
        first.events.push(Event { what: What::Publish, layer: 0, piece: Some(0), bytes: 64, start, end });
        let trace = chrome(&[("a", &first), ("b", &log(&[(0, 0, 9)]))]);
        let events = trace["traceEvents"].as_array().unwrap();
        let complete: Vec<_> = events.iter().filter(|e| e["ph"] == "X").collect();
        let times: Vec<_> = complete.iter().map(|e| (e["pid"].as_u64(), e["ts"].as_f64(), e["dur"].as_f64())).collect();
        let at = |pid, ts, dur| (Some(pid), Some(ts), Some(dur));
        assert_eq!(times, [at(0, 0.0, 4e3), at(0, 4e3, 2e3), at(0, 4e3, 1e3), at(1, 0.0, 9e3)]);
        assert_eq!((&complete[2]["tid"], &complete[2]["args"]["bytes"]), (&json!(4), &json!(64)));
        assert_eq!(events.iter().filter(|e| e["name"] == "thread_name").count(), 16);
    }

    #[test]
    fn a_devices_clock_is_set_by_the_submission_that_was_seen_soonest() {
        let (s, ms) = (Duration::from_secs, Duration::from_millis);
        let span = |stage, start, end| Span { stage, ends_stage: true, start: ms(start), end: ms(end) };
        let part = |work, start, end| Part { work, start: s(1000) + ms(start), end: s(1000) + ms(end) };
        let submissions = [
            (span(0, 0, 13), vec![part(Work::Products, 0, 10)]),
            (span(1, 2, 21), vec![part(Work::Attention, 10, 15), part(Work::Products, 15, 20)]),
            (span(2, 14, 30), Vec::new()),
        ];
        let events = on_host_clock(&submissions);
        let times: Vec<_> = events.iter().map(|e| (e.what, e.layer, e.start.as_millis(), e.end.as_millis())).collect();
        let expected = [(What::Products, 0, 1, 11), (What::Attention, 1, 11, 16), (What::Products, 1, 16, 21)];
        assert_eq!(times, expected);
        assert!(on_host_clock(&submissions[2..]).is_empty());
    }
}
