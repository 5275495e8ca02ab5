//! A node: one adapter with a loaded model and, per session, a cache. Hides the kind of device, so that a chain may mix them.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cancel::Wait;
use crate::dims::Piece;
use crate::dtype::KvDtype;
use crate::error::{Error, Result};
use crate::kernels::{Kernels, Phase};
use crate::model::pace::{ROW_STEPS, Work};
use crate::model::{Batch, CacheSize, KvCache, Model, Scratch, Slots, memory};
use crate::runahead::board::Block;
use crate::runahead::link::{self, Link};
use crate::runahead::queue::{Direct, InFlight};
use crate::runahead::ring::Ring;
use crate::runahead::share::{Output, ShareJob, ShareLog, Want};
use crate::runahead::worker;

/// An adapter with a loaded model; opens any number of sessions.
pub trait Adapter: Send + Sync {
    /// The adapter's name.
    fn name(&self) -> &str;

    /// See [`Kernels::products`].
    fn products(&self) -> &str;

    /// See [`Kernels::busy_workgroups`].
    fn busy_workgroups(&self) -> Option<usize>;

    /// See [`Kernels::tile_rows`].
    fn tile_rows(&self) -> usize;

    /// See [`Kernels::set_busy_workgroups`].
    fn set_busy_workgroups(&self, n: usize);

    /// A node with an empty cache. Layers with a window have room for the window alone; see [`Node::make_room`].
    ///
    /// # Errors
    /// [`Error::Memory`] where cache and activations do not fit.
    fn open(&self, tokens: usize, kv: KvDtype, slots: Slots) -> Result<Box<dyn Node>>;
}

/// An adapter's part in one session.
pub trait Node: Send + Sync {
    /// The adapter's name.
    fn name(&self) -> &str;

    /// Bytes of one token's K row in one layer.
    fn row_bytes(&self) -> usize;

    /// The way of its rows to and from the board.
    fn link(&self) -> Link {
        Link::Copy
    }

    /// Gives layers with a window room for `beside` rows beside it: a share over so many positions. Of what stands in their caches, what
    /// conversations of `kept.start ..= kept.end` tokens need to go on is kept.
    ///
    /// # Errors
    /// [`Error::Memory`], the device's; the cache stays as it was.
    fn make_room(&mut self, beside: usize, kept: Piece, wait: &Wait) -> Result<()>;

    /// See [`KvCache::least_kept`].
    fn least_kept(&self, end: usize) -> usize;

    /// Bytes of the cache.
    fn cache_bytes(&self) -> u64;

    /// Tokens of the longest share that [`Node::prepare`] can make room for, memory permitting.
    fn max_rows(&self) -> usize;

    /// Allocates what a share of `rows` tokens needs, so that the run itself cannot fail for it. Comes before each run.
    ///
    /// # Errors
    /// The device's.
    fn prepare(&mut self, rows: usize) -> Result<()>;

    /// Carries out a share.
    ///
    /// # Errors
    /// See [`worker::run`].
    fn run(&self, job: &ShareJob<'_>) -> Result<ShareLog>;

    /// Takes one token at `position` through the model; gives [`Output::Token`] or [`Output::LastLogits`]. `more` says that a token chosen here
    /// will likely be taken through it next: its work may then begin before this one's result is known to the host.
    ///
    /// # Errors
    /// The device's, or a cancel.
    fn decode(&mut self, token: u32, position: usize, want: Want, more: bool, wait: &Wait) -> Result<Output>;

    /// K rows, then V rows, of one layer, as they stand in the cache.
    ///
    /// # Errors
    /// The device's, or a cancel.
    fn read_rows(&self, layer: usize, rows: Piece, wait: &Wait) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.read_rows_into(layer, rows, &mut bytes, wait)?;
        Ok(bytes)
    }

    /// As [`read_rows`](Self::read_rows), in place of what `bytes` held.
    ///
    /// # Errors
    /// The device's, or a cancel.
    fn read_rows_into(&self, layer: usize, rows: Piece, bytes: &mut Vec<u8>, wait: &Wait) -> Result<()>;

    /// Takes rows of one layer out of the cache and puts them back, both by [`Node::link`] as in a chain, and tells how long each took. The block is
    /// [`Block::on_trial`].
    ///
    /// # Errors
    /// The device's, or a cancel.
    fn time_link(&mut self, layer: usize, block: &mut Block, wait: &Wait) -> Result<[Duration; 2]>;

    /// Puts K rows, then V rows, of one layer into the cache.
    ///
    /// # Errors
    /// The device's; [`Error::ContextFull`] for rows beyond the cache.
    fn write_rows(&mut self, layer: usize, rows: Piece, bytes: &[u8]) -> Result<()>;
}

/// [`Adapter`] for any kernels.
pub struct Loaded<K: Kernels> {
    /// Tells logical adapters of one device apart, too.
    pub name: String,
    /// The model on the device.
    pub model: Arc<Model<K>>,
}

impl<K: Kernels> Adapter for Loaded<K> {
    fn name(&self) -> &str {
        &self.name
    }

    fn products(&self) -> &str {
        self.model.kernels().products()
    }

    fn busy_workgroups(&self) -> Option<usize> {
        self.model.kernels().busy_workgroups()
    }

    fn tile_rows(&self) -> usize {
        self.model.kernels().tile_rows()
    }

    fn set_busy_workgroups(&self, n: usize) {
        self.model.kernels().set_busy_workgroups(n);
    }

    fn open(&self, tokens: usize, kv: KvDtype, slots: Slots) -> Result<Box<dyn Node>> {
        let model = Arc::clone(&self.model);
        if tokens > model.context() {
            return Err(Error::ContextFull { needed: tokens, context: model.context() });
        }
        let size = CacheSize { tokens, slots, beside: 0 };
        let bytes = memory::cache_bytes(model.config(), size, kv, model.kernels().key_tile());
        memory::check(&**model.kernels(), "cache", bytes)?;
        let cache = model.cache(size, kv)?;
        let scratch = model.scratch(1)?;
        Ok(Box::new(DeviceNode {
            name: self.name.clone(),
            model,
            cache,
            scratch,
            in_flight: InFlight::new(),
            ahead: None,
        }))
    }
}

struct DeviceNode<K: Kernels> {
    name: String,
    model: Arc<Model<K>>,
    cache: KvCache<K>,
    scratch: Scratch<K>,
    /// Steps that the device works on.
    in_flight: InFlight<K>,
    /// The next token's step, where the device has begun with it.
    ahead: Option<Step<K>>,
}

/// One token on its way through the model.
struct Step<K: Kernels> {
    position: usize,
    /// The token itself; not known to the host while the step before is under way.
    token: Option<u32>,
    want: Want,
    download: K::Download,
    point: K::Submitted,
    /// The number of its last submission.
    last: usize,
    /// Whether one submission holds all of it.
    is_whole: bool,
}

impl<K: Kernels> DeviceNode<K> {
    /// Bytes of a cache of this size.
    fn bytes_of(&self, size: CacheSize) -> u64 {
        memory::cache_bytes(self.model.config(), size, self.cache.dtype(), self.model.kernels().key_tile())
    }

    /// Submits a token's work. It reads its id where the host wrote it (`Some`), or where the step before leaves it (`None`).
    fn step(&mut self, token: Option<u32>, position: usize, want: Want, wait: &Wait) -> Result<Step<K>> {
        let (model, s, cache) = (&*self.model, &self.scratch, &self.cache);
        let before = self.in_flight.n_submitted();
        let mut queue = Direct::new(model, wait, &mut self.in_flight);
        let mut batch = Batch::new(&**model.kernels(), model.pace(), &mut queue);
        match token {
            Some(token) => {
                model.set_tokens(s, &[token])?;
                model.embed(&mut batch, s, 1)?;
            }
            None => model.embed_chosen(&mut batch, s)?,
        }
        for layer in 0..model.config().n_layers {
            model.decode(&mut batch, layer, s, cache, position)?;
        }
        model.head(&mut batch, s, 0..1, Phase::Decode)?;
        let download = worker::record_row(model, &mut batch, s, want)?;
        let rest = batch.finish();
        let (point, last) = queue.end(rest)?;
        Ok(Step { position, token, want, download, point, last, is_whole: last == before + 1 })
    }
}

impl<K: Kernels> Node for DeviceNode<K> {
    fn name(&self) -> &str {
        &self.name
    }

    fn row_bytes(&self) -> usize {
        self.cache.row_bytes()
    }

    fn link(&self) -> Link {
        Link::of(&**self.model.kernels())
    }

    fn make_room(&mut self, beside: usize, kept: Piece, wait: &Wait) -> Result<()> {
        let (kernels, size) = (self.model.kernels(), self.cache.size());
        if beside <= size.beside {
            return Ok(());
        }
        // Both are there while rows are copied.
        let unchanged = self.cache.bytes_shared(CacheSize { beside, ..size }, kernels.key_tile());
        memory::check(&**kernels, "cache", self.bytes_of(CacheSize { beside, ..size }) - unchanged)?;
        let grown = self.cache.with_room(&**kernels, beside)?;
        for (layer, kind) in self.model.config().layers.iter().enumerate() {
            let Some(window) = kind.window.filter(|_| grown.rows(layer) > self.cache.rows(layer)) else { continue };
            let rows = Piece::new((kept.start + 1).saturating_sub(window).min(kept.end), kept.end);
            if !rows.is_empty() {
                let bytes = self.read_rows(layer, rows, wait)?;
                let (k, v) = bytes.split_at(bytes.len() / 2);
                grown.write(&**kernels, layer, rows, k, v)?;
            }
        }
        self.cache = grown;
        Ok(())
    }

    fn least_kept(&self, end: usize) -> usize {
        self.cache.least_kept(end)
    }

    fn cache_bytes(&self) -> u64 {
        self.bytes_of(self.cache.size())
    }

    fn max_rows(&self) -> usize {
        self.model.max_rows()
    }

    fn prepare(&mut self, rows: usize) -> Result<()> {
        self.ahead = None;
        if rows > self.scratch.rows() {
            // The old ones go first: the memory need not hold both.
            self.scratch = self.model.scratch(1)?;
            memory::check(&**self.model.kernels(), "activations", memory::scratch_bytes(&self.model, rows))?;
            self.scratch = self.model.scratch(rows)?;
        }
        Ok(())
    }

    fn run(&self, job: &ShareJob<'_>) -> Result<ShareLog> {
        // A step that nobody asked for may still write its row, and rows of other adapters need not come by the queue that it is in.
        self.in_flight.idle(&self.model, &job.wait)?;
        worker::run(&self.model, &self.scratch, &self.cache, job, self.name())
    }

    fn decode(&mut self, token: u32, position: usize, want: Want, more: bool, wait: &Wait) -> Result<Output> {
        let context = self.cache.size().tokens;
        if position >= context {
            return Err(Error::ContextFull { needed: position + 1, context });
        }
        let begun = self.ahead.take_if(|a| (a.position, a.token, a.want) == (position, Some(token), want));
        self.ahead = None;
        let step = match begun {
            Some(step) => step,
            None => self.step(Some(token), position, want, wait)?,
        };
        // A token that is chosen on the device can be used there at once: the host prepares the next step while this one runs.
        // Where a step takes several submissions the next one would have to wait for most of this one, and the token for it.
        let ahead = more && want == Want::Token && step.is_whole && self.model.kernels().works_beside_host();
        if ahead && position + 1 < context {
            self.ahead = Some(self.step(None, position + 1, want, wait)?);
        }
        self.in_flight.land(&self.model, step.last, wait)?;
        let output = worker::collect_row(&**self.model.kernels(), step.download, &step.point, wait, want)?;
        if let (Some(ahead), Output::Token(chosen)) = (&mut self.ahead, &output) {
            ahead.token = Some(*chosen);
        }
        Ok(output)
    }

    fn read_rows_into(&self, layer: usize, rows: Piece, bytes: &mut Vec<u8>, wait: &Wait) -> Result<()> {
        let (kernels, half) = (&**self.model.kernels(), rows.len() * self.cache.row_bytes());
        let work = |rows: Range<usize>| Work::copied_bytes((2 * rows.len() * self.cache.row_bytes()) as u64);
        let mut in_flight = InFlight::new();
        let mut queue = Direct::new(&self.model, wait, &mut in_flight);
        let mut batch = Batch::new(kernels, self.model.pace(), &mut queue);
        let (mut copies, mut left) = (Vec::new(), rows.start..rows.end);
        while let Some(part) = batch.next(&mut left, &ROW_STEPS, work)? {
            let rows = Piece::new(part.start, part.end);
            copies.extend(self.cache.places(layer, rows).download(kernels, batch.add(work(part)))?);
        }
        let rest = batch.finish();
        let point = queue.end_and_wait(rest)?;
        // In place: memory that the caller has used before is not touched anew.
        bytes.resize(2 * half, 0);
        let (k, v) = bytes.split_at_mut(half);
        let mut at = 0;
        for [of_k, of_v] in copies {
            let mut n = 0;
            let mut put = |half: &mut [u8], b: &[u8]| {
                n = b.len();
                if let Some(to) = half.get_mut(at..at + n) {
                    to.copy_from_slice(b);
                }
            };
            kernels.collect(of_k, &point, wait, &mut |b| put(k, b))?;
            kernels.collect(of_v, &point, wait, &mut |b| put(v, b))?;
            at += n;
        }
        Ok(())
    }

    fn time_link(&mut self, layer: usize, block: &mut Block, wait: &Wait) -> Result<[Duration; 2]> {
        self.ahead = None;
        let kernels = &**self.model.kernels();
        link::begin(kernels, wait)?;
        self.in_flight.idle(&self.model, wait)?;
        let (rows, began) = (block.rows, Instant::now());
        let mut rec = kernels.begin();
        let export = link::export(kernels, &mut rec, &self.cache, layer, (0, rows), block.wanted())?;
        let point = kernels.submit(rec, wait)?;
        link::fill(kernels, export, &point, block, wait)?;
        let turned = Instant::now();
        let ring = Ring::new(self.cache.n_slots());
        link::import(kernels, &self.cache, layer, (block, rows), &ring, wait)?;
        // What went through the queue has ended with what is behind it.
        kernels.wait(&kernels.submit(kernels.begin(), wait)?, wait)?;
        Ok([turned - began, turned.elapsed()])
    }

    fn write_rows(&mut self, layer: usize, rows: Piece, bytes: &[u8]) -> Result<()> {
        self.ahead = None;
        let context = self.cache.size().tokens;
        if rows.end > context {
            return Err(Error::ContextFull { needed: rows.end, context });
        }
        if bytes.len() != 2 * rows.len() * self.cache.row_bytes() {
            let reason = format!("{} bytes for {} rows of K and V", bytes.len(), rows.len());
            return Err(Error::Adapter { adapter: self.name.clone(), reason });
        }
        let (k, v) = bytes.split_at(bytes.len() / 2);
        self.cache.write(&**self.model.kernels(), layer, rows, k, v)
    }
}
