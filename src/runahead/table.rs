//! Searched partitions by context length, and the costs beside them (KVR-P): kept in a file, and good only for the set-up that they were made on.
//!
//! Between two lengths the shares of the adapters are interpolated; outside, the nearest length's are taken and moved as far as the costs say that
//! the balance moves between the two. A predicted cut then goes to the nearest one between whole tiles of products, and from there, where costs were
//! measured, to the one nearby for which they promise the first token soonest: times take steps between tiles that no other length tells of. A file is named after the place
//! (machine, adapters, model, weights, type of the cache) and carries the whole [`Fingerprint`], so that a table made with another driver is found and refused with that reason.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::dates::Date;
use crate::error::{Error, Result};
use crate::new_file;
use crate::runahead::cost::CostModel;
use crate::runahead::partition::{Split, in_tiles, n_granules, weighted};
use crate::runahead::search::{balanced, best_nearby};

/// Changes when the file's meaning does.
const FORMAT: u32 = 1;
/// No adapter is predicted to have a smaller share; one granule it has in any case.
const LEAST_SHARE: f64 = 1e-3;
/// Tiles by which a cut moves at most to where the costs want it.
const REACH: usize = 2;
/// No table is as long as this; a file that is longer is none.
const MOST_BYTES: u64 = 1 << 22;

/// What a table holds for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// The machine: its name and its processor.
    pub machine: String,
    /// The adapters in the order of the chain, with their PCI ids where they have one.
    pub adapters: Vec<String>,
    /// Back end, driver and tier of each.
    pub drivers: Vec<String>,
    /// The model's shape.
    pub model: String,
    /// The bytes of its weights, as text: their types differ from tensor to tensor.
    pub weights: String,
    /// The cache's element type.
    pub kv: String,
    /// The program's version.
    pub version: String,
}

impl Fingerprint {
    /// The file in which a table for this place is kept.
    pub fn file(&self, folder: &Path) -> PathBuf {
        let place =
            [&[self.machine.clone(), self.model.clone(), self.weights.clone(), self.kv.clone()], &*self.adapters];
        // FNV-1a, 64 bits: the name must be the same in every version of the program.
        let hash = place
            .concat()
            .join("\n")
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
        folder.join(format!("{hash:016x}.json"))
    }

    /// The first respect in which `other` differs.
    fn difference(&self, other: &Self) -> Option<String> {
        let list = |v: &Vec<String>| v.join(", ");
        let pairs = [
            ("machine", self.machine.clone(), other.machine.clone()),
            ("adapters", list(&self.adapters), list(&other.adapters)),
            ("drivers", list(&self.drivers), list(&other.drivers)),
            ("model", self.model.clone(), other.model.clone()),
            ("weights", self.weights.clone(), other.weights.clone()),
            ("cache", self.kv.clone(), other.kv.clone()),
            ("version", self.version.clone(), other.version.clone()),
        ];
        let (what, own, theirs) = pairs.into_iter().find(|(_, a, b)| a != b)?;
        Some(format!("{what} `{theirs}`, now `{own}`"))
    }
}

/// A searched partition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Tokens of the prompt.
    pub context: usize,
    /// Tokens of each piece.
    #[serde(rename = "partition")]
    pub lengths: Vec<usize>,
    /// Measured time to first token, in milliseconds.
    pub ttft_ms: f64,
    /// The same of the even cut.
    pub even_ms: f64,
    /// The same of each adapter alone.
    pub single_ms: Vec<f64>,
}

/// See the module's text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Table {
    format: u32,
    /// When it was made, `YYYY-MM-DD` (UTC).
    pub date: String,
    /// What it holds for.
    pub fingerprint: Fingerprint,
    /// What the adapters cost, in the order of the chain.
    pub costs: CostModel,
    /// Searched partitions, by ascending context; each as many pieces as there are adapters.
    pub points: Vec<Point>,
}

impl Table {
    /// A table made `unix_s` seconds after 1970.
    ///
    /// # Errors
    /// [`Error::Partition`] or [`Error::Config`] where its parts do not fit together.
    pub fn new(unix_s: u64, fingerprint: Fingerprint, costs: CostModel, mut points: Vec<Point>) -> Result<Self> {
        points.sort_by_key(|p| p.context);
        let table = Self { format: FORMAT, date: Date::of_unix(unix_s).to_string(), fingerprint, costs, points };
        table.validate()?;
        Ok(table)
    }

    /// Lengths in tokens for a prompt; `None` where the table has no partitions.
    pub fn predict(&self, past: usize, len: usize) -> Option<Vec<usize>> {
        predict(&self.partitions(), &self.costs, past, len)
    }

    fn partitions(&self) -> Vec<&[usize]> {
        self.points.iter().map(|p| &p.lengths[..]).collect()
    }

    /// Measured milliseconds to the first token for `len` tokens, of the chain and of the best adapter alone; between two lengths interpolated,
    /// and `None` outside.
    pub fn measured_ms(&self, len: usize) -> Option<(f64, f64)> {
        let (first, last) = (self.points.first()?, self.points.last()?);
        if !(first.context..=last.context).contains(&len) {
            return None;
        }
        let (below, above, t) = around(&self.partitions(), len)?;
        let (below, above) = (&self.points[below], &self.points[above]);
        let single = |p: &Point| p.single_ms.iter().copied().fold(f64::INFINITY, f64::min);
        let mixed = |a: f64, b: f64| a + (b - a) * t;
        Some((mixed(below.ttft_ms, above.ttft_ms), mixed(single(below), single(above))))
    }

    fn validate(&self) -> Result<()> {
        self.costs.validate()?;
        let n = self.costs.adapters.len();
        if n != self.fingerprint.adapters.len() {
            let named = self.fingerprint.adapters.len();
            return Err(Error::Partition(format!("costs of {n} adapters in a table of {named}")));
        }
        if let Some(w) = self.points.windows(2).find(|w| w[1].context <= w[0].context) {
            return Err(Error::Partition(format!("contexts {} and {} in this order", w[0].context, w[1].context)));
        }
        for point in &self.points {
            Split::Given(point.lengths.clone()).lengths(0, point.context, n)?;
            let times = point.single_ms.iter().chain([&point.ttft_ms, &point.even_ms]);
            if point.single_ms.len() != n || times.clone().any(|t| !(t.is_finite() && *t >= 0.0)) {
                return Err(Error::Partition(format!("times of {} tokens: {point:?}", point.context)));
            }
        }
        Ok(())
    }

    /// Writes the table into `folder`, which is made where it is missing: to a temporary file first, so that a reader sees the old table or the new
    /// one. Returns the file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, folder: &Path) -> Result<PathBuf> {
        let path = self.fingerprint.file(folder);
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::bad_file(&path, e.to_string()))?;
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        new_file::replace(&path, |partial| {
            let written = std::fs::File::create(partial)
                .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
            written.map_err(|e| Error::io(&path, e))
        })?;
        Ok(path)
    }

    /// The table for `wanted` in `folder`; `None` where there is none.
    ///
    /// # Errors
    /// See [`Table::read`].
    pub fn find(folder: &Path, wanted: &Fingerprint) -> Result<Option<Self>> {
        let path = wanted.file(folder);
        match path.try_exists() {
            Ok(false) => Ok(None),
            Ok(true) => Self::read(&path, wanted).map(Some),
            Err(e) => Err(Error::io(path, e)),
        }
    }

    /// Reads a table, if it holds for `wanted`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadFile`] with the reason where the file is corrupt, or is another set-up's.
    pub fn read(path: &Path, wanted: &Fingerprint) -> Result<Self> {
        let bad = |reason: String| Error::bad_file(path, reason);
        let bytes = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
        if bytes > MOST_BYTES {
            return Err(bad(format!("{bytes} bytes are no table of partitions")));
        }
        let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let table: Self = serde_json::from_slice(&text).map_err(|e| bad(format!("no table of partitions: {e}")))?;
        if table.format != FORMAT {
            return Err(bad(format!("a table of format {}, this version reads {FORMAT}", table.format)));
        }
        table.validate().map_err(|e| bad(format!("damaged table: {e}")))?;
        match wanted.difference(&table.fingerprint) {
            Some(text) => Err(bad(format!("table of {} made for another set-up: {text}", table.date))),
            None => Ok(table),
        }
    }
}

/// Lengths in tokens for a prompt, between partitions of other lengths (ascending, equally many pieces each) or beside them, by adapters of these
/// costs; `None` where there are no partitions.
pub fn predict(partitions: &[&[usize]], costs: &CostModel, past: usize, len: usize) -> Option<Vec<usize>> {
    let shares = |lengths: &[usize]| {
        let total = n_granules(0, lengths.iter().sum()) as f64;
        let mut at = 0;
        let share = |&n: &usize| {
            let granules = n_granules(at, n) as f64;
            at += n;
            granules / total
        };
        lengths.iter().map(share).collect::<Vec<f64>>()
    };
    let (below, above, t) = around(partitions, len)?;
    // A length that is there is what was searched, wherever tiles end.
    if past == 0 && partitions[below].iter().sum::<usize>() == len {
        return Some(partitions[below].to_vec());
    }
    let pairs = shares(partitions[below]).into_iter().zip(shares(partitions[above]));
    let mut shares: Vec<f64> = pairs.map(|(a, b)| a + (b - a) * t).collect();
    if below == above && costs.adapters.len() == shares.len() {
        // A longer prompt has more attention, which later pieces have more of. The cost of a link hardly depends on the length, so that the distance
        // of what was searched to the balance of the costs alone stays.
        let nearest: usize = partitions[below].iter().sum();
        let moved = balanced(costs, 0, len).into_iter().zip(balanced(costs, 0, nearest));
        for (share, (there, here)) in shares.iter_mut().zip(moved) {
            *share = (*share + there / len as f64 - here / nearest as f64).max(LEAST_SHARE);
        }
    }
    let lengths = weighted(past, len, &shares);
    let costs = costs.last(lengths.len());
    let lengths = in_tiles(past, &lengths, &costs.tiles(lengths.len()));
    Some(if costs.is_measured() { best_nearby(&costs, past, &lengths, REACH) } else { lengths })
}

/// The partitions on both sides of a length, and how far it is from the first to the second.
fn around(partitions: &[&[usize]], len: usize) -> Option<(usize, usize, f64)> {
    let context = |i: usize| partitions[i].iter().sum::<usize>();
    let last = partitions.len().checked_sub(1)?;
    let above = (0..=last).find(|&i| context(i) >= len).unwrap_or(last);
    if above == 0 || context(above) <= len {
        return Some((above, above, 0.0));
    }
    let (low, high) = (context(above - 1), context(above));
    Some((above - 1, above, (len - low) as f64 / (high - low) as f64))
}
