//! The results on stdout, each line as soon as it is known (a JSON array at the end).

use serde_json::Value;

use super::args::Output;
use super::row::{KEYS, Row};
use crate::cli::failure::Failure;
use crate::cli::output;

/// Headings of the table for people, with the width that they start from.
pub const COLUMNS: [(&str, usize); 13] = [
    ("model", 5),
    ("size", 9),
    ("params", 8),
    ("backend", 7),
    ("devices", 7),
    ("mode", 8),
    ("partition", 9),
    ("test", 6),
    ("t/s", 16),
    ("TTFT ms", 15),
    ("predicted", 9),
    ("speed-up, idle", 16),
    ("K/V out / in", 21),
];

/// Columns that only a chain fills.
const OF_CHAINS: [&str; 3] = ["partition", "speed-up, idle", "K/V out / in"];

/// A printer of rows.
pub struct Table {
    form: Output,
    /// Whether the columns of chains are shown.
    chains: bool,
    widths: [usize; COLUMNS.len()],
    started: bool,
    rows: Vec<Row>,
}

impl Table {
    /// `model` is the widest cell that is known before the first row.
    pub fn new(form: Output, model: &str, chains: bool) -> Self {
        let mut widths = COLUMNS.map(|(_, width)| width);
        widths[0] = widths[0].max(model.chars().count());
        Self { form, chains, widths, started: false, rows: Vec::new() }
    }

    /// Prints a row, behind the headings if it is the first.
    pub fn row(&mut self, row: &Row) -> Result<(), Failure> {
        let started = std::mem::replace(&mut self.started, true);
        match self.form {
            Output::Md => self.markdown(row, started),
            Output::Csv => {
                if !started {
                    output::line(&KEYS.join(","))?;
                }
                output::line(&csv(&value(row)?))
            }
            Output::Jsonl => output::line(&serde_json::to_string(row).map_err(no_json)?),
            Output::Json => {
                self.rows.push(row.clone());
                Ok(())
            }
        }
    }

    /// Prints what had to wait for the last row.
    pub fn end(&self) -> Result<(), Failure> {
        if self.form == Output::Json { output::json_pretty(&self.rows) } else { Ok(()) }
    }

    fn markdown(&mut self, row: &Row, started: bool) -> Result<(), Failure> {
        let cells = row.cells();
        if !started {
            for (width, cell) in self.widths.iter_mut().zip(&cells) {
                *width = (*width).max(cell.chars().count());
            }
            output::line(&self.line(&COLUMNS.map(|(name, _)| name.to_owned())))?;
            let rule = |column: usize| {
                let dashes = "-".repeat(self.widths[column] - 1);
                if is_number(column) { format!("{dashes}:") } else { format!("{dashes}-") }
            };
            output::line(&self.line(&std::array::from_fn(rule)))?;
        }
        output::line(&self.line(&cells))
    }

    fn line(&self, cells: &[String; COLUMNS.len()]) -> String {
        let shown = |column: &usize| self.chains || !OF_CHAINS.contains(&COLUMNS[*column].0);
        let cell = |column: usize| {
            let (cell, width) = (&cells[column], self.widths[column]);
            if is_number(column) { format!(" {cell:>width$} |") } else { format!(" {cell:<width$} |") }
        };
        format!("|{}", (0..COLUMNS.len()).filter(shown).map(cell).collect::<String>())
    }
}

/// Whether a column stands to the right.
fn is_number(column: usize) -> bool {
    ["size", "params", "test", "t/s", "TTFT ms", "predicted", "speed-up, idle", "K/V out / in"]
        .contains(&COLUMNS[column].0)
}

fn value(row: &Row) -> Result<Value, Failure> {
    serde_json::to_value(row).map_err(no_json)
}

fn no_json(error: serde_json::Error) -> Failure {
    Failure::Other(format!("JSON: {error}"))
}

/// A cell for each of [`KEYS`], empty where the row lacks it; lists and objects are JSON.
fn csv(row: &Value) -> String {
    let cell = |key: &&str| match row.get(*key) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => quoted(text),
        Some(structure @ (Value::Array(_) | Value::Object(_))) => quoted(&structure.to_string()),
        Some(other) => other.to_string(),
    };
    KEYS.iter().map(cell).collect::<Vec<_>>().join(",")
}

/// RFC 4180.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}
