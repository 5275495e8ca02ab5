//! Conditions that an experiment imposes on a real run: a slower network, slower adapters. Pure; the waiting is done where the work is done.
//!
//! The lanes are those of the simulator, noise included, so that the same numbers can be predicted and measured: a transfer that is through in
//! reality becomes visible to its reader when the shaped link would have carried it. Nobody but the reader waits, as on a network.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::runahead::cost::{CostModel, Lane};

/// Above it a run would end by a time limit.
const MOST_SLOWDOWN: f64 = 1000.0;

/// See the module's text. The default imposes nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Experiment {
    /// Each adapter's link to host memory, the same in both directions; a transfer between adapters passes two. `None`: as fast as it is.
    pub link: Option<Lane>,
    /// The one adapter whose link has the noise; `None`: all of them.
    pub noisy: Option<usize>,
    /// Per adapter in the order of the chain: how many times as long its work takes. Adapters past the end run as fast as they are.
    pub slowdown: Vec<f64>,
}

impl Experiment {
    /// Checks every number.
    ///
    /// # Errors
    /// [`Error::Config`] names it.
    pub fn validate(&self) -> Result<()> {
        if let Some(fault) = self.link.and_then(|link| link.fault()) {
            return Err(Error::Config(format!("a link with {fault}")));
        }
        match self.slowdown.iter().position(|f| !(1.0..=MOST_SLOWDOWN).contains(f)) {
            Some(i) => {
                let factor = self.slowdown[i];
                Err(Error::Config(format!("adapter {i} slower by {factor}, which is not in 1..={MOST_SLOWDOWN}")))
            }
            None => Ok(()),
        }
    }

    /// What an adapter's times are multiplied by; 1 for most.
    pub fn slowdown(&self, adapter: usize) -> f64 {
        self.slowdown.get(adapter).copied().unwrap_or(1.0)
    }

    /// Whether nothing is slowed down.
    pub fn is_neutral(&self) -> bool {
        self.link.is_none() && self.slowdown.iter().all(|&f| f == 1.0)
    }

    /// The same for a chain of these adapters, by number.
    pub fn pick(&self, order: &[usize]) -> Self {
        let slowdown = order.iter().map(|&i| self.slowdown(i)).collect();
        // An adapter that is not there is nobody's number.
        let noisy = self.noisy.map(|noisy| order.iter().position(|&i| i == noisy).unwrap_or(usize::MAX));
        Self { link: self.link, noisy, slowdown }
    }

    /// The link of an adapter, with the noise that is its own.
    fn link_of(&self, i: usize) -> Option<Lane> {
        let noise = |lane: Lane| lane.noise.filter(|_| self.noisy.is_none_or(|noisy| noisy == i));
        self.link.map(|lane| Lane { noise: noise(lane), ..lane })
    }

    /// What adapters of these costs cost under the experiment. A link that is slower than the shaped one stays as it is.
    ///
    /// # Errors
    /// [`Error::Config`] for times beyond all numbers.
    pub fn costs(&self, costs: &CostModel) -> Result<CostModel> {
        let mut costs = costs.clone();
        for (i, cost) in costs.adapters.iter_mut().enumerate() {
            *cost = cost.slower(self.slowdown(i))?;
            for lane in [&mut cost.down, &mut cost.up] {
                let Some(shaped) = self.link_of(i) else { continue };
                lane.bandwidth = lane.bandwidth.into_iter().chain(shaped.bandwidth).reduce(f64::min);
                lane.latency_s = lane.latency_s.max(shaped.latency_s);
                lane.noise = shaped.noise;
            }
        }
        Ok(costs)
    }

    /// The lane from adapter `i` to host memory.
    pub fn down(&self, i: usize) -> Option<ShapedLane> {
        self.link_of(i).map(|lane| ShapedLane::new(lane, i))
    }

    /// The lane from host memory to adapter `i` of `n`. The two directions have weather of their own, numbered as in the simulator.
    pub fn up(&self, i: usize, n: usize) -> Option<ShapedLane> {
        self.link_of(i).map(|lane| ShapedLane::new(lane, n + i))
    }
}

/// When a message came through a shaped lane, from the start of the prefill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// When.
    pub at: Duration,
    /// The first piece of the message.
    pub lead: usize,
}

/// One direction of a link that carries one message after another.
#[derive(Clone, Debug)]
pub struct ShapedLane {
    lane: Lane,
    link: usize,
    free: Duration,
}

impl ShapedLane {
    fn new(lane: Lane, link: usize) -> Self {
        Self { lane, link, free: Duration::ZERO }
    }

    /// When `bytes` of `piece`, ready at `ready`, are through. The message may have begun with another piece, `lead`: its latency is paid once.
    pub fn through(&mut self, ready: Duration, bytes: u64, layer: usize, piece: usize, lead: usize) -> Duration {
        let latency = if piece == lead { 0.0 } else { self.lane.latency_s };
        let noise = self.lane.noise.map_or(1.0, |noise| noise.factor(self.link, layer, lead));
        let seconds = (self.lane.seconds(bytes as f64) - latency).max(0.0) * noise;
        // Longer than the clock can count is for ever: a time limit or a cancel ends it.
        let takes = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        self.free = ready.max(self.free).saturating_add(takes);
        self.free
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runahead::noise::Noise;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn messages_pass_one_after_another_and_pay_the_latency_once() {
        let lane = Lane { bandwidth: Some(1e6), latency_s: 0.002, noise: None };
        let experiment = Experiment { link: Some(lane), ..Experiment::default() };
        let mut down = experiment.down(0).unwrap();
        assert_eq!(down.through(10 * MS, 1000, 0, 3, 3), 13 * MS);
        assert_eq!(down.through(11 * MS, 1000, 0, 4, 3), 14 * MS);
        assert_eq!(down.through(11 * MS, 1000, 0, 5, 5), 17 * MS);
        assert_eq!(down.through(40 * MS, 0, 1, 3, 3), 42 * MS);
        let endless = Lane { bandwidth: Some(f64::MIN_POSITIVE), ..lane };
        let mut up = Experiment { link: Some(endless), ..Experiment::default() }.up(0, 2).unwrap();
        assert_eq!(up.through(MS, 1000, 0, 0, 0), Duration::MAX);
    }

    #[test]
    fn noise_is_the_simulators() {
        let noise = Noise { seed: 3, probability: 0.5, slowdown: 4.0 };
        let experiment = Experiment {
            link: Some(Lane { bandwidth: None, latency_s: 0.001, noise: Some(noise) }),
            ..Experiment::default()
        };
        let takes = |lane: Option<ShapedLane>, layer| lane.unwrap().through(Duration::ZERO, 1, layer, 0, 0);
        for layer in 0..20 {
            let factor = |link| MS.mul_f64(noise.factor(link, layer, 0));
            assert_eq!(takes(experiment.down(1), layer), factor(1));
            assert_eq!(takes(experiment.up(1, 4), layer), factor(5));
        }
    }

    #[test]
    fn one_link_alone_can_be_noisy_and_stays_so_in_a_chain_of_some() {
        let noise = Some(Noise { seed: 1, probability: 1.0, slowdown: 5.0 });
        let link = Some(Lane { bandwidth: Some(1e6), latency_s: 0.0, noise });
        let experiment = Experiment { link, noisy: Some(2), slowdown: vec![1.0; 3] };
        let takes = |e: &Experiment, i| e.down(i).map(|mut lane| lane.through(Duration::ZERO, 1000, 0, 0, 0));
        assert_eq!([0, 1, 2].map(|i| takes(&experiment, i)), [Some(MS), Some(MS), Some(5 * MS)]);
        let picked = experiment.pick(&[2, 0]);
        assert_eq!([0, 1].map(|i| takes(&picked, i)), [Some(5 * MS), Some(MS)]);
        assert_eq!([0, 1].map(|i| takes(&experiment.pick(&[0, 1]), i)), [Some(MS), Some(MS)]);
    }

    #[test]
    fn nonsense_is_refused() {
        let link = |bandwidth, latency_s| Experiment {
            link: Some(Lane { bandwidth, latency_s, noise: None }),
            ..Experiment::default()
        };
        let slow = |factor| Experiment { slowdown: vec![1.0, factor], ..Experiment::default() };
        assert!(Experiment::default().validate().is_ok() && link(Some(1e9), 0.0).validate().is_ok());
        for wrong in [link(Some(0.0), 0.0), link(Some(f64::NAN), 0.0), link(None, -1.0), slow(0.5), slow(f64::INFINITY)]
        {
            assert!(matches!(wrong.validate(), Err(Error::Config(_))), "{wrong:?}");
        }
        assert_eq!((slow(2.0).slowdown(1), slow(2.0).slowdown(7), slow(2.0).pick(&[1]).slowdown(0)), (2.0, 1.0, 2.0));
    }
}
