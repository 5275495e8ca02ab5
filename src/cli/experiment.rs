//! Arguments that slow links and adapters down on purpose, so that networks and machines can be tried out that are not there.

use std::str::FromStr;

use runahead::engine::{Experiment, Lane, Noise};

use super::failure::Failure;

/// See the module's text.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Experiments")]
pub struct ExperimentArgs {
    /// Slow each adapter's link to host memory down, in each direction: 10GB/s, 300MB/s
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub link_bandwidth: Option<f64>,
    /// What every transfer takes beside its bytes: 1ms, 50us
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub link_latency: Option<f64>,
    /// Make a share of the transfers slower, the same ones for the same seed: SEED:SHARE:FACTOR, as 7:0.1:5, or those of
    /// one adapter's link alone: SEED:SHARE:FACTOR:I
    #[arg(long, value_name = "NOISE", value_parser = parse_noise)]
    pub link_noise: Option<Weather>,
    /// Make an adapter slower by a factor; I counts in --devices: 0:2.5
    #[arg(long, value_name = "I:F,…", value_delimiter = ',')]
    pub slow: Vec<Slow>,
}

/// Noise, and the one adapter whose link has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weather {
    noise: Noise,
    adapter: Option<usize>,
}

/// An adapter and its factor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slow {
    adapter: usize,
    factor: f64,
}

impl FromStr for Slow {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':').and_then(|(i, f)| Some((i.trim().parse().ok()?, f.trim().parse().ok()?)));
        match parts {
            Some((adapter, factor)) if factor >= 1.0 => Ok(Self { adapter, factor }),
            _ => Err(format!("`{text}` is no ADAPTER:FACTOR with a factor of 1 at least, as 0:2.5")),
        }
    }
}

impl ExperimentArgs {
    /// What they come to for a chain of `n_adapters`.
    ///
    /// # Errors
    /// Usage where they contradict each other or name an adapter that is not there.
    pub fn experiment(&self, n_adapters: usize) -> Result<Experiment, Failure> {
        let mut experiment = Experiment { slowdown: vec![1.0; n_adapters], ..Experiment::default() };
        for slow in &self.slow {
            match experiment.slowdown.get_mut(slow.adapter) {
                Some(factor) => *factor = slow.factor,
                None => {
                    let text = format!("--slow {}: there are {n_adapters} adapters, counted from 0", slow.adapter);
                    return Err(Failure::Usage(text));
                }
            }
        }
        if self.link_bandwidth.is_some() || self.link_latency.is_some() {
            experiment.link = Some(Lane {
                bandwidth: self.link_bandwidth,
                latency_s: self.link_latency.unwrap_or(0.0),
                noise: self.link_noise.map(|weather| weather.noise),
            });
            experiment.noisy = self.link_noise.and_then(|weather| weather.adapter);
            if let Some(noisy) = experiment.noisy.filter(|&noisy| noisy >= n_adapters) {
                let text = format!("--link-noise of adapter {noisy}: there are {n_adapters}, counted from 0");
                return Err(Failure::Usage(text));
            }
        } else if self.link_noise.is_some() {
            let text = "--link-noise multiplies the times of --link-bandwidth and --link-latency: give one of them";
            return Err(Failure::Usage(text.to_owned()));
        }
        experiment.validate()?;
        Ok(experiment)
    }
}

/// The number in front of one of `units`, multiplied by it.
fn parse_unit(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let (number, scale) = units.iter().find_map(|(unit, scale)| Some((text.trim().strip_suffix(unit)?, scale)))?;
    Some(number.trim().parse::<f64>().ok()? * scale)
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let units = [("GB/s", 1e9), ("MB/s", 1e6), ("kB/s", 1e3), ("B/s", 1.0)];
    let rate = parse_unit(text, &units).filter(|rate| rate.is_finite() && *rate > 0.0);
    rate.ok_or_else(|| format!("`{text}` is no rate above 0, as 10GB/s"))
}

fn parse_time(text: &str) -> Result<f64, String> {
    let time = parse_unit(text, &[("ms", 1e-3), ("us", 1e-6), ("s", 1.0)]).filter(|t| t.is_finite() && *t >= 0.0);
    time.ok_or_else(|| format!("`{text}` is no time, as 1ms"))
}

fn parse_noise(text: &str) -> Result<Weather, String> {
    let parts: Vec<&str> = text.split(':').map(str::trim).collect();
    let weather = || {
        let [seed, probability, slowdown, ref rest @ ..] = parts[..] else { return None };
        let (probability, slowdown) = (probability.parse().ok()?, slowdown.parse().ok()?);
        let adapter = match rest[..] {
            [] => None,
            [adapter] => Some(adapter.parse().ok()?),
            _ => return None,
        };
        Some(Weather { noise: Noise { seed: seed.parse().ok()?, probability, slowdown }, adapter })
    };
    let weather = weather().ok_or_else(|| format!("`{text}` is no SEED:SHARE:FACTOR, as 7:0.1:5"))?;
    weather.noise.fault().map_or(Ok(weather), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_units() {
        let rates = ["10GB/s", "300 MB/s", "1.5kB/s", "2B/s"].map(|text| parse_rate(text).unwrap());
        assert_eq!(rates, [1e10, 3e8, 1.5e3, 2.0]);
        assert_eq!(["1ms", "50us", "2s"].map(|text| parse_time(text).unwrap()), [1e-3, 50.0 * 1e-6, 2.0]);
        let noise = Noise { seed: 7, probability: 0.1, slowdown: 5.0 };
        assert_eq!(parse_noise("7:0.1:5"), Ok(Weather { noise, adapter: None }));
        assert_eq!(parse_noise("7:0.1:5:2"), Ok(Weather { noise, adapter: Some(2) }));
        assert_eq!("1:2.5".parse(), Ok(Slow { adapter: 1, factor: 2.5 }));
        for text in ["", "0GB/s", "-1GB/s", "10", "10GB", "nanGB/s", "infGB/s", "1ms"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
        for text in ["", "1", "-1ms", "1m", "GB/s"] {
            assert!(parse_time(text).is_err(), "{text}");
        }
        for text in ["", "7", "7:0.1", "7:2:5", "7:0.1:0.5", "x:0.1:5", "7:0.1:5:x", "7:0.1:5:1:1"] {
            assert!(parse_noise(text).is_err(), "{text}");
        }
        for text in ["", "0", "0:0.5", "a:2", "0:x", "0:nan"] {
            assert!(text.parse::<Slow>().is_err(), "{text}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let slow = ExperimentArgs { slow: vec![Slow { adapter: 2, factor: 2.0 }], ..Default::default() };
        assert!(matches!(slow.experiment(2), Err(Failure::Usage(_))));
        assert_eq!(slow.experiment(3).unwrap().slowdown, [1.0, 1.0, 2.0]);
        let noise = Noise { seed: 0, probability: 0.5, slowdown: 2.0 };
        let weather = Weather { noise, adapter: Some(1) };
        let alone = ExperimentArgs { link_noise: Some(weather), ..Default::default() };
        assert!(matches!(alone.experiment(1), Err(Failure::Usage(_))));
        let link = ExperimentArgs { link_latency: Some(1e-3), link_noise: Some(weather), ..Default::default() };
        let experiment = link.experiment(2).unwrap();
        assert_eq!((experiment.link.unwrap().noise, experiment.noisy), (Some(noise), Some(1)));
        assert!(matches!(link.experiment(1), Err(Failure::Usage(_))));
        assert!(ExperimentArgs::default().experiment(1).unwrap().link.is_none());
    }
}
