//! Runs the units that have no result yet, until the time is up.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::units::{Network, Record, Unit};
use crate::{Args, Result};

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub measured: usize,
    /// Had a result before.
    pub known: usize,
    /// More adapters than there are.
    pub impossible: usize,
    /// The time was up.
    pub left: usize,
}

/// An adapter as `runahead devices` tells of it.
pub struct Device {
    /// What `--devices` takes.
    pub index: String,
    pub memory_bytes: Option<u64>,
}

/// Runs what is left to run.
pub fn all(args: &Args) -> Result<Tally> {
    let deadline = Instant::now() + Duration::from_secs_f64(args.minutes.max(0.0) * 60.0);
    std::fs::create_dir_all(&args.out)?;
    let runner = Runner { args, deadline, devices: devices(args)? };
    let mut tally = Tally::default();
    for unit in args.choice().units() {
        let file = unit.file(&args.out);
        let name = file.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        if unit.n > runner.devices.len() {
            println!("{name}: skipped, there are {} adapters", runner.devices.len());
            tally.impossible += 1;
        } else if file.exists() {
            tally.known += 1;
        } else {
            match runner.measure(&unit)? {
                Some(record) => {
                    let notes: String = record.skipped.iter().map(|s| format!("; {s}")).collect();
                    println!("{name}: {} rows{notes}", record.rows.len());
                    std::fs::write(file, serde_json::to_string_pretty(&record)?)?;
                    tally.measured += 1;
                }
                None => {
                    println!("{name}: left for the next call");
                    tally.left += 1;
                }
            }
        }
    }
    Ok(tally)
}

/// The adapters that were named, else every discrete GPU.
fn devices(args: &Args) -> Result<Vec<Device>> {
    let output = Command::new(&args.runahead).args(["devices", "--json"]).stderr(Stdio::inherit()).output()?;
    let all: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    let index = |d: &Value| d["index"].as_str().map_or_else(|| d["index"].to_string(), str::to_owned);
    let device = |d: &Value| Device { index: index(d), memory_bytes: d["memory_bytes"].as_u64() };
    if args.devices.is_empty() {
        return Ok(all.iter().filter(|d| d["type"] == "discrete").map(device).collect());
    }
    let named = |name: &String| {
        let found = all.iter().find(|d| index(d) == *name).map(device);
        found.ok_or_else(|| format!("no adapter `{name}`").into())
    };
    args.devices.iter().map(named).collect()
}

/// How a run of the binary ended.
struct Ended {
    code: Option<i32>,
    lines: Vec<String>,
    /// The last line of stderr.
    word: String,
}

struct Runner<'a> {
    args: &'a Args,
    deadline: Instant,
    devices: Vec<Device>,
}

impl Runner<'_> {
    /// `None`: the time is up.
    fn measure(&self, unit: &Unit) -> Result<Option<Record>> {
        let named = self.devices[..unit.n].iter().map(|d| d.index.as_str()).collect::<Vec<_>>().join(",");
        let common = ["--synthetic", &unit.shape, "--weights", &self.args.weights, "--devices", &named];
        let (mut prompts, mut skipped) = (Vec::new(), Vec::new());
        for prompt in &unit.prompts {
            match self.too_large(&common, unit.n, *prompt)? {
                None => prompts.push(prompt.to_string()),
                Some(word) => skipped.push(format!("{prompt} tokens: {word}")),
            }
        }
        let mut record = Record { unit: unit.clone(), devices: Vec::new(), rows: Vec::new(), skipped };
        if prompts.is_empty() {
            return Ok(Some(record));
        }
        let Some(table) = self.calibrated(unit, &common)? else { return Ok(None) };
        let (prompts, repetitions) = (prompts.join(","), self.args.repetitions.to_string());
        let mut line: Vec<&str> = ["bench"].into_iter().chain(common).collect();
        line.extend(["-p", &prompts, "-n", "0", "-r", &repetitions, "-o", "jsonl"]);
        line.extend(unit.ways(table));
        line.extend(unit.network.options());
        line.extend(unit.link.iter().flat_map(|link| ["--link", link]));
        line.extend(self.args.more.iter().map(String::as_str));
        let Some(ended) = self.run(&line)? else { return Ok(None) };
        record.rows = ended.lines.iter().map(|line| serde_json::from_str(line)).collect::<Result<_, _>>()?;
        let names = |row: &Value| {
            row["devices"].as_array().map(|all| all.iter().map(|d| d.as_str().unwrap_or("").to_owned()).collect())
        };
        record.devices = record.rows.first().and_then(names).unwrap_or_default();
        match ended.code {
            Some(0) => Ok(Some(record)),
            // Interrupted by its user.
            Some(130) | None => Err(format!("runahead bench was ended: {}", ended.word).into()),
            Some(_) => {
                record.skipped.push(ended.word);
                Ok(Some(record))
            }
        }
    }

    /// Measures the adapters for predictions, once for each shape and number; whether there is a table then. `None`: the time is up.
    fn calibrated(&self, unit: &Unit, common: &[&str]) -> Result<Option<bool>> {
        if unit.n == 1 {
            return Ok(Some(false));
        }
        let file = self.args.out.join(format!("calibration-{}-{}.json", unit.shape, unit.n));
        // Costs are fitted to chunks up to this one; what is longer goes on at the same slope.
        let longest = self.args.prompts.iter().copied().filter(|&p| p <= 8192).max().unwrap_or(4096);
        if !file.exists() {
            let lengths = longest.max(16 * unit.n).to_string();
            let line: Vec<&str> = ["calibrate"]
                .into_iter()
                .chain(common.iter().copied())
                .chain(["-p", &lengths, "-r", "1", "--json"])
                .collect();
            let Some(ended) = self.run(&line)? else { return Ok(None) };
            if ended.code != Some(0) {
                println!("calibration of {} on {}: {}", unit.shape, unit.n, ended.word);
                return Ok(Some(false));
            }
            let mut report: Value = serde_json::from_str(&ended.lines.join("\n"))?;
            // The folder is known, and on another machine it is another one.
            if let Some(name) =
                report["table"].as_str().and_then(|t| PathBuf::from(t).file_name().map(|n| n.to_owned()))
            {
                report["table"] = name.to_string_lossy().into_owned().into();
            }
            std::fs::write(&file, serde_json::to_string_pretty(&report)?)?;
        }
        // A shaped link has other best cuts than the machine's own.
        Ok(Some(unit.network == Network::Own))
    }

    /// Why a prompt cannot be measured, if it takes more memory than there is.
    fn too_large(&self, common: &[&str], n: usize, prompt: usize) -> Result<Option<String>> {
        let (mode, prompt) = (if n == 1 { "single" } else { "runahead" }, prompt.to_string());
        let mut command = self.command();
        command.arg("plan").args(common).args(["-p", &prompt, "--prefill", mode, "--json"]);
        let output = command.output()?;
        if !output.status.success() {
            return Ok(Some(last_line(&output.stderr)));
        }
        let plan: Value = serde_json::from_slice(&output.stdout)?;
        let used = plan["adapters"].as_array().map_or(&[][..], Vec::as_slice);
        let bytes: Vec<u64> = used.iter().map(|a| a["memory_bytes"].as_u64().unwrap_or(0)).collect();
        Ok(beyond(&self.devices[n - used.len().min(n)..n], &bytes))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.args.runahead);
        // The tables stay with the results.
        command.env("RUNAHEAD_CACHE", self.args.out.join("cache")).stdin(Stdio::null());
        command
    }

    /// Runs the binary; `None` where the time is up before its end.
    fn run(&self, line: &[&str]) -> Result<Option<Ended>> {
        if Instant::now() >= self.deadline {
            return Ok(None);
        }
        let mut child = self.command().args(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (Some(stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err("the binary's output is not there".into());
        };
        let lines = thread::spawn(move || BufReader::new(stdout).lines().map_while(std::result::Result::ok).collect());
        let word = thread::spawn(move || {
            let mut text = Vec::new();
            // What was read until an error is the best there is.
            let _ = stderr.read_to_end(&mut text);
            last_line(&text)
        });
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if Instant::now() >= self.deadline {
                child.kill()?;
                child.wait()?;
                break None;
            }
            thread::sleep(Duration::from_millis(20));
        };
        let (lines, word) = (lines.join(), word.join());
        let (Ok(lines), Ok(word)) = (lines, word) else { return Err("a reader of the binary's output died".into()) };
        Ok(status.map(|status| Ended { code: status.code(), lines, word }))
    }
}

/// What a set of adapters lacks, where logical adapters of one device share its memory.
pub fn beyond(devices: &[Device], bytes: &[u64]) -> Option<String> {
    let mut needed: BTreeMap<&str, u64> = BTreeMap::new();
    for (device, bytes) in devices.iter().zip(bytes) {
        *needed.entry(&device.index).or_default() += bytes;
    }
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    devices.iter().find_map(|device| {
        let needed = needed[device.index.as_str()];
        let memory = device.memory_bytes.filter(|&memory| memory < needed)?;
        Some(format!("adapter {} has {:.1} GiB of memory, {:.1} are needed", device.index, gib(memory), gib(needed)))
    })
}

fn last_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing").trim().to_owned()
}

/// The table of a calibration.
pub fn table_file(out: &std::path::Path, calibration: &Value) -> Option<PathBuf> {
    Some(out.join("cache").join("tables").join(calibration["table"].as_str()?))
}
