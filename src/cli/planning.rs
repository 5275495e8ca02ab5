//! What is known of the named adapters before a prompt runs on them: their costs, from the table of `calibrate` or by kind, and the choice that follows.

use runahead::config::ModelConfig;
use runahead::dims::{Piece, round_up};
use runahead::dtype::{Dtype, KvDtype};
use runahead::engine::{DeviceId, DeviceInfo, EngineBuilder, Experiment, Gemm, Mode, devices};
use runahead::error::Error;
use runahead::model::{Slots, memory};
use runahead::runahead::auto::{Choice, Task, choose};
use runahead::runahead::cost::{AdapterCost, CostModel, Shape, factors, typical};
use runahead::runahead::partition::Split;
use runahead::runahead::schedule::Schedule;
use runahead::runahead::search::search_simulated;
use runahead::runahead::simulate::{Forecast, simulate};
use runahead::runahead::table::Table;

use super::failure::Failure;
use super::output;

mod place;

pub use place::{fingerprint, tables_folder};

/// How a prompt is to be prefilled, as it is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefill {
    /// Whatever is expected to be fastest.
    Auto,
    /// This.
    As(Mode),
}

impl Prefill {
    /// The names that [`Prefill::parse`] knows.
    pub fn names() -> impl Iterator<Item = &'static str> {
        ["auto"].into_iter().chain(Mode::ALL.map(Mode::name))
    }

    /// Reads a name.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Prefill::Auto);
        }
        let unknown = |_| format!("there are: {}", Self::names().collect::<Vec<_>>().join(", "));
        text.parse().map(Prefill::As).map_err(unknown)
    }
}

/// How a prompt is to be cut, as it is typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Known before the costs are.
    Fixed(Split),
    /// By a search on the costs for this very length.
    Searched,
    /// From the table of searched partitions.
    Predicted,
}

impl Cut {
    /// The name in results.
    pub const fn name(&self) -> &'static str {
        match self {
            Cut::Fixed(Split::Even) => "even",
            Cut::Fixed(Split::Given(_)) => "given",
            Cut::Searched => "searched",
            Cut::Predicted => "predicted",
        }
    }

    /// In which order cuts are compared: what was searched is what predictions are made from.
    pub const fn rank(&self) -> u8 {
        match self {
            Cut::Fixed(Split::Even) => 0,
            Cut::Fixed(Split::Given(_)) => 1,
            Cut::Searched => 2,
            Cut::Predicted => 3,
        }
    }

    /// Reads `even`, `searched`, `predicted`, several of them, or lengths.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, String> {
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            return Self::parse(text).map(|cut| vec![cut]);
        }
        text.split(',').map(|name| Self::parse(name.trim())).collect()
    }

    /// Reads `even`, `searched`, `predicted` or lengths.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "searched" => Ok(Cut::Searched),
            "predicted" => Ok(Cut::Predicted),
            other => super::args::parse_split(other).map(Cut::Fixed),
        }
    }
}

/// Where the costs come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// Rates by kind of adapter; why there is no table.
    Estimate(String),
    /// The same, set right by what each adapter alone took in this run.
    Alone,
    /// A table of this date.
    Table(String),
}

impl Origin {
    /// For people.
    pub fn text(&self) -> String {
        match self {
            Origin::Estimate(why) => format!("an estimate by kind of adapter ({why})"),
            Origin::Alone => "an estimate by kind of adapter, set right by what each took alone in this run".to_owned(),
            Origin::Table(date) => format!("the calibration of {date}"),
        }
    }
}

/// What a plan needs to know of a model: nothing of it is loaded.
#[derive(Clone, Debug)]
pub struct Outline {
    /// Its sizes.
    pub config: ModelConfig,
    /// Bytes of its weights.
    pub weights_bytes: u64,
    /// The number format of most of them.
    pub weights_dtype: Option<Dtype>,
}

impl Outline {
    /// Of a model whose files are open.
    pub fn of(files: &EngineBuilder) -> Self {
        let (weights_bytes, weights_dtype) = (files.weights_bytes(), files.weights_dtype());
        Self { config: files.config().clone(), weights_bytes, weights_dtype }
    }

    /// Of random weights in one format, which need not be made for that.
    ///
    /// # Errors
    /// [`Error::Config`] for sizes that are no multiple of the format's block.
    pub fn synthetic(config: ModelConfig, dtype: Dtype) -> Result<Self, Failure> {
        let matrices = Shape::of(&config).n_weights() as usize;
        let weights_bytes = dtype.bytes(round_up(matrices, dtype.block_len()))? as u64;
        Ok(Self { config, weights_bytes, weights_dtype: Some(dtype) })
    }
}

/// How far an estimate by kind may be off: a chain has to be expected to gain as much before it is chosen.
const ESTIMATE_ERROR: f64 = 0.25;

/// See the module's text.
pub struct Setup {
    /// The adapters, in the order in which they were named.
    pub ids: Vec<DeviceId>,
    /// What they cost.
    pub costs: CostModel,
    /// Where that comes from.
    pub origin: Origin,
    table: Option<Table>,
    infos: Vec<DeviceInfo>,
    outline: Outline,
    kv: KvDtype,
    experiment: Experiment,
}

/// A prefill that was decided on.
#[derive(Debug)]
pub struct Plan {
    /// How.
    pub mode: Mode,
    /// On which adapters, in the order of the chain, by number in [`Setup::ids`].
    pub order: Vec<usize>,
    /// Tokens of each piece.
    pub lengths: Vec<usize>,
    /// What is expected.
    pub forecast: Forecast,
    /// Who does not take part, and why.
    pub left_out: Vec<(usize, String)>,
}

impl Setup {
    /// Looks up the adapters and the table for them.
    ///
    /// # Errors
    /// [`Error::NoAdapter`]. A table that is refused is a note, and its reason is in [`Setup::origin`].
    pub fn new(outline: Outline, ids: &[DeviceId], kv: KvDtype, gemm: Gemm) -> Result<Self, Failure> {
        let all = devices();
        let find = |id: &DeviceId| {
            let names = || all.iter().map(|d| format!("{} ({})", d.id, d.name)).collect::<Vec<_>>().join(", ");
            let missing = || Error::NoAdapter { name: id.to_string(), available: names() };
            all.iter().find(|d| d.id == *id).cloned().ok_or_else(missing)
        };
        let infos = ids.iter().map(find).collect::<Result<Vec<_>, _>>()?;
        let print = fingerprint(&outline, &infos, kv, gemm);
        let found = tables_folder().and_then(|folder| Ok(Table::find(&folder, &print)?));
        let (table, why) = match found {
            Ok(Some(table)) => (Some(table), String::new()),
            Ok(None) => (None, "`runahead calibrate` would measure them".to_owned()),
            Err(failure) => {
                output::note(&format!("note: {failure}"));
                (None, "the table was refused; `runahead calibrate` makes a new one".to_owned())
            }
        };
        let (costs, origin) = match &table {
            Some(table) => (table.costs.clone(), Origin::Table(table.date.clone())),
            None => (estimate(&outline.config, &infos, kv)?, Origin::Estimate(why)),
        };
        let experiment = Experiment::default();
        Ok(Self { ids: ids.to_vec(), costs, origin, table, infos, outline, kv, experiment })
    }

    /// The same adapters under an experiment. The table's partitions do not hold there: what it has measured does.
    ///
    /// # Errors
    /// [`Error::Config`] for costs beyond all numbers.
    pub fn under(mut self, experiment: &Experiment) -> Result<Self, Failure> {
        if !experiment.is_neutral() {
            self.costs = experiment.costs(&self.costs)?;
            self.table = None;
            self.experiment = experiment.clone();
        }
        Ok(self)
    }

    /// Whether there is a table of searched partitions.
    pub fn has_table(&self) -> bool {
        self.table.as_ref().is_some_and(|table| !table.points.is_empty())
    }

    /// What a chain of these adapters, by number, costs. Logical adapters of one device take turns on it: while all have work, each waits for what
    /// the others put in, and one that an experiment makes slower puts in less, and does so while it would stand still. Of the CPU each has threads of
    /// its own, with which its costs were measured where they were.
    fn costs_of(&self, order: &[usize]) -> Result<CostModel, Error> {
        let mut costs = self.costs.pick(order);
        let is_measured = !matches!(self.origin, Origin::Estimate(_));
        for (cost, &i) in costs.adapters.iter_mut().zip(order) {
            let apart = is_measured && self.ids[i] == DeviceId::Cpu;
            let twins = order.iter().filter(|&&j| j != i && self.ids[j] == self.ids[i] && !apart);
            let crowd = 1.0 + twins.map(|&j| 1.0 / self.experiment.slowdown(j)).sum::<f64>();
            *cost = cost.slower((crowd / self.experiment.slowdown(i)).max(1.0))?;
        }
        Ok(costs)
    }

    /// How the tiles of these adapters, by number, are best chosen, where a calibration has found that.
    pub fn busy_workgroups(&self, order: &[usize]) -> Vec<Option<usize>> {
        order.iter().map(|&i| self.costs.adapters[i].busy_workgroups).collect()
    }

    /// What a chain of all the adapters costs.
    ///
    /// # Errors
    /// [`Error::Config`] for costs beyond all numbers.
    pub fn chain_costs(&self) -> Result<CostModel, Error> {
        self.costs_of(&(0..self.ids.len()).collect::<Vec<_>>())
    }

    /// What is expected of a schedule on these adapters, by number.
    ///
    /// # Errors
    /// Those of [`simulate`].
    pub fn forecast(&self, schedule: &Schedule, order: &[usize]) -> Result<Forecast, Error> {
        simulate(schedule, &self.costs_of(order)?)
    }

    /// Sets an estimate right by prefills that an adapter did alone, at these positions in so many seconds; what a calibration has measured stays.
    ///
    /// # Errors
    /// Those of [`simulate`]; [`Error::Config`] for costs beyond all numbers.
    pub fn learn(&mut self, adapter: usize, prefills: &[(Piece, f64)]) -> Result<(), Error> {
        if matches!(self.origin, Origin::Table(_)) {
            return Ok(());
        }
        let costs = self.costs_of(&[adapter])?;
        let mut products = costs.clone();
        products.adapters[0].score_s = 0.0;
        let parts = |&(at, measured): &(Piece, f64)| {
            let schedule = Mode::Single.schedule(at.start, &[at.len()], self.outline.config.n_layers);
            let schedule = schedule.windowed(&costs.windows);
            let [all, products] = [&costs, &products].map(|costs| simulate(&schedule, costs).map(|f| f.ttft_s));
            let products = products?;
            Ok([products, all? - products, measured])
        };
        let parts = prefills.iter().map(parts).collect::<Result<Vec<_>, Error>>()?;
        let Some((products, attention)) = factors(&parts) else { return Ok(()) };
        for (cost, id) in self.costs.adapters.iter_mut().zip(&self.ids) {
            if *id == self.ids[adapter] {
                *cost = cost.scaled(products, attention)?;
            }
        }
        self.origin = Origin::Alone;
        Ok(())
    }

    /// Decides how the positions of `prompt` are prefilled with a context of `context`.
    ///
    /// # Errors
    /// Usage where the arguments contradict each other; the partition's; no table where one is asked for.
    pub fn plan(&self, prefill: Prefill, cut: Option<&Cut>, prompt: Piece, context: usize) -> Result<Plan, Failure> {
        match (prefill, cut) {
            (Prefill::Auto, None) => self.auto(prompt, context),
            // Who says how to cut wants a chain.
            (Prefill::Auto, Some(cut)) if self.ids.len() > 1 => self.as_asked(Mode::Runahead, cut, prompt),
            (Prefill::Auto, Some(cut)) => self.as_asked(Mode::Single, cut, prompt),
            (Prefill::As(Mode::Single), Some(Cut::Fixed(Split::Given(_)) | Cut::Searched | Cut::Predicted)) => {
                Err(Failure::Usage("--prefill single runs on one adapter: --split has nothing to cut".to_owned()))
            }
            (Prefill::As(mode), cut) => self.as_asked(mode, cut.unwrap_or(&Cut::Fixed(Split::Even)), prompt),
        }
    }

    fn auto(&self, prompt: Piece, context: usize) -> Result<Plan, Failure> {
        let estimate = self.memory(context);
        let refuses = |i: usize, last: bool| {
            // Of one device's logical adapters the first counts.
            // Those that are slowed down may be as good as devices of their own: their costs say so.
            let whole = |j: &usize| self.ids[*j] == self.ids[i] && self.experiment.slowdown(*j) == 1.0;
            if let Some(twin) = (0..self.ids.len()).find(whole)
                && whole(&i)
                && twin != i
                && (matches!(self.origin, Origin::Estimate(_)) || self.ids[i] == DeviceId::Cpu)
            {
                return Some(format!("it is the same device as adapter {} of the list", twin + 1));
            }
            // What a share of the prompt takes beside the cache is known once it is cut; one granule is the least.
            let bytes = estimate.bytes(16, 16, if last { Slots::All } else { Slots::Ring });
            let free = self.infos[i].memory_bytes.filter(|&free| free < bytes)?;
            Some(format!("it has {} of memory, {} are needed", output::bytes(free), output::bytes(bytes)))
        };
        let task = Task {
            costs: &self.costs,
            costs_of: &|order| self.costs_of(order),
            table: self.table.as_ref(),
            past: prompt.start,
            len: prompt.len(),
            n_layers: self.outline.config.n_layers,
            refuses: &refuses,
        };
        let Choice { mode, order, lengths, forecast, left_out, .. } = choose(&task)?;
        Ok(Plan { mode, order, lengths, forecast, left_out })
    }

    fn as_asked(&self, mode: Mode, cut: &Cut, prompt: Piece) -> Result<Plan, Failure> {
        let n = if mode == Mode::Single { 1 } else { self.ids.len() };
        let lengths = self.lengths(mode, cut, n, prompt)?;
        let schedule = mode.schedule(prompt.start, &lengths, self.outline.config.n_layers);
        let schedule = schedule.windowed(&self.costs.windows);
        let first = self.ids.len() - schedule.n_adapters();
        let order: Vec<usize> = (first..self.ids.len()).collect();
        let forecast = self.forecast(&schedule, &order)?;
        let why = match mode {
            Mode::Single => "one adapter was asked for".to_owned(),
            _ => format!("{} tokens are {} granules only", prompt.len(), lengths.len()),
        };
        let left_out = (0..first).map(|i| (i, why.clone())).collect();
        Ok(Plan { mode, order, lengths, forecast, left_out })
    }

    /// Tokens of each piece of a prompt at these positions.
    ///
    /// # Errors
    /// As [`Setup::plan`].
    pub fn lengths(&self, mode: Mode, cut: &Cut, n_adapters: usize, prompt: Piece) -> Result<Vec<usize>, Failure> {
        let (past, len) = (prompt.start, prompt.len());
        if !mode.is_chain() && matches!(cut, Cut::Searched | Cut::Predicted) {
            let text = format!("--prefill {mode}: there is nothing to search, its pieces are even");
            return Err(Failure::Usage(text));
        }
        match cut {
            Cut::Fixed(split) => Ok(split.lengths(past, len, mode.n_pieces(n_adapters))?),
            Cut::Searched => {
                Ok(search_simulated(mode, &self.chain_costs()?, past, len, self.outline.config.n_layers)?.lengths)
            }
            Cut::Predicted => {
                let predicted = self.table.as_ref().and_then(|table| table.predict(past, len));
                predicted.ok_or_else(no_table)
            }
        }
    }

    /// Bytes that a plan's adapter takes, by its place in the chain.
    pub fn memory_bytes(&self, plan: &Plan, place: usize, context: usize) -> u64 {
        let schedule = plan.mode.schedule(0, &plan.lengths, self.outline.config.n_layers);
        let slots = if place + 1 == plan.order.len() { Slots::All } else { Slots::Ring };
        self.memory(context).bytes(schedule.n_rows(place), schedule.span(place), slots)
    }

    fn memory(&self, context: usize) -> memory::Estimate<'_> {
        let Outline { config, weights_bytes, .. } = &self.outline;
        memory::Estimate { config, weights_bytes: *weights_bytes, context, kv: self.kv }
    }

    /// The ids of a plan's adapters, in the order of the chain.
    pub fn devices(&self, plan: &Plan) -> Vec<DeviceId> {
        plan.order.iter().map(|&i| self.ids[i]).collect()
    }

    /// Says who was left out, and why.
    pub fn tell_left_out(&self, plan: &Plan) {
        for (i, reason) in &plan.left_out {
            output::note(&format!("note: {} takes no part: {reason}", self.costs.adapters[*i].name));
        }
    }
}

/// Why there is nothing to predict a cut from.
pub fn no_table() -> Failure {
    let text = "--split predicted needs a table of these adapters and this model: `runahead calibrate` makes it";
    Failure::Other(text.to_owned())
}

/// Costs by kind, of each adapter alone.
fn estimate(config: &ModelConfig, infos: &[DeviceInfo], kv: KvDtype) -> Result<CostModel, Failure> {
    let shape = Shape::of(config);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let cost = |(i, info): (usize, &DeviceInfo)| {
        // As the engine names them.
        let before = infos[..i].iter().filter(|d| d.name == info.name).count();
        let name = if before == 0 { info.name.clone() } else { format!("{} #{}", info.name, before + 1) };
        let costs = typical(&name, info.kind, threads).costs(&shape)?;
        Ok(AdapterCost { fit_error: ESTIMATE_ERROR, tile_rows: info.tile_rows, ..costs })
    };
    let adapters = infos.iter().enumerate().map(cost).collect::<Result<_, Error>>()?;
    Ok(CostModel { adapters, kv_bytes: shape.kv_bytes(kv.scalar().bytes()), windows: shape.windows(), hub: None })
}
