//! `runahead doctor`: whether every adapter computes what it should, and what is missing on this machine.
//!
//! Each adapter runs a tiny model with random weights: its logits are compared with the CPU's, and a chain of two logical adapters on it with one.
//! Nothing of the user's is read or written. Exit code 1 where an adapter is wrong, or where a GPU is in the machine that no driver serves.

use runahead::cancel::Cancel;
use runahead::config::shapes;
use runahead::dtype::Dtype;
use runahead::engine::{DeviceId, DeviceInfo, Engine, Gemm, Options, devices};
use runahead::error::Result;

use super::failure::Failure;
use super::output;
use super::pull;

mod hardware;

/// Six granules, so that a chain of two has something to hand over, and part of a seventh.
const N_TOKENS: usize = 100;
/// Of the logits' standard deviation, as `verify` allows it with a cache in f16: orders of summation differ.
const TOLERANCE: f64 = 2e-2;

/// Runs the command.
pub fn run(cancel: &Cancel) -> std::result::Result<(), Failure> {
    let (version, os, arch) = (env!("CARGO_PKG_VERSION"), std::env::consts::OS, std::env::consts::ARCH);
    output::line(&format!("runahead {version}, {os} {arch}"))?;
    let devices = devices();
    let reference = logits(&[DeviceId::Cpu], cancel)?;
    let mut wrong = 0;
    for device in &devices {
        cancel.check()?;
        let name = format!("{} {} ({}, {}, {})", device.id, device.name, device.backend, device.tier, device.driver);
        match check(device, &reference, cancel) {
            Ok(found) => output::line(&format!("ok       {name}: {found}"))?,
            Err(reason) => {
                wrong += 1;
                output::line(&format!("FAILED   {name}: {reason}"))?;
            }
        }
    }
    for missing in hardware::missing(&hardware::gpus(), &devices) {
        wrong += usize::from(missing.is_fault);
        output::line(&format!("missing  {}", missing.text))?;
    }
    let model = pull::smollm2_path()?;
    match model.is_file() {
        true => output::line(&format!("ok       model {}", model.display()))?,
        false => output::line("missing  a model to try: runahead pull smollm2 (98 MB)")?,
    }
    if wrong == 0 { Ok(()) } else { Err(Failure::Other(format!("{wrong} of the above need attention"))) }
}

/// What was found, or why the adapter is not to be trusted.
fn check(device: &DeviceInfo, reference: &[f32], cancel: &Cancel) -> std::result::Result<String, String> {
    let alone = logits(&[device.id], cancel).map_err(|e| e.to_string())?;
    let chain = logits(&[device.id, device.id], cancel).map_err(|e| format!("a chain of two: {e}"))?;
    let (from_cpu, from_alone) = (difference(&alone, reference), difference(&chain, &alone));
    let same_bits = alone.iter().zip(&chain).all(|(a, b)| a.to_bits() == b.to_bits());
    if from_cpu > TOLERANCE {
        return Err(format!("its logits are off by {from_cpu:.1e} of their deviation from the CPU's"));
    }
    match (device.id, same_bits) {
        (DeviceId::Gpu(_), false) => Err(format!("a chain of two differs from one by {from_alone:.1e}")),
        (_, false) if from_alone > TOLERANCE => Err(format!("a chain of two differs from one by {from_alone:.1e}")),
        (DeviceId::Cpu, _) => Ok(format!("a chain of two differs from one by {from_alone:.0e}")),
        (_, true) => Ok(format!("off the CPU's logits by {from_cpu:.0e}; a chain of two is bit for bit the same")),
    }
}

fn logits(ids: &[DeviceId], cancel: &Cancel) -> Result<Vec<f32>> {
    let builder = Engine::synthetic(shapes::shape("tiny")?, Dtype::F16, 1)?;
    // Bits are what is compared, and cuBLASLt's depend on the number of rows.
    let builder = builder.devices(ids.iter().copied()).gemm(Gemm::Wgsl);
    let engine = builder.context(N_TOKENS).cancel(cancel.clone()).open()?;
    let tokens = engine.config().any_tokens(N_TOKENS, 1);
    engine.session()?.logits(&tokens, &Options::default())
}

/// Largest difference over the standard deviation of `b`; infinite where a value is no number.
fn difference(a: &[f32], b: &[f32]) -> f64 {
    let n = b.len() as f64;
    let mean = b.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let deviation = (b.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n).sqrt();
    let apart = |(x, y): (&f32, &f32)| (f64::from(*x) - f64::from(*y)).abs();
    // `f64::max` would pass over a NaN.
    let most = a.iter().zip(b).map(apart).fold(0.0, |most, x| if x > most || x.is_nan() { x } else { most });
    let off = most / deviation;
    if off.is_nan() { f64::INFINITY } else { off }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_no_numbers_are_no_agreement() {
        let reference = [1.0, 2.0, 3.0, 4.0];
        assert!(difference(&reference, &reference) <= TOLERANCE);
        for bad in [f32::NAN, f32::INFINITY, 2.1] {
            for at in 0..4 {
                let mut values = reference;
                values[at] = bad;
                let off = difference(&values, &reference);
                assert!(off > TOLERANCE || values[at] == reference[at], "{bad} at {at}: {off}");
            }
        }
    }
}
