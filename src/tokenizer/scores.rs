//! SentencePiece's BPE: of all neighbours whose union is a token, the pair with the best score is joined, the leftmost among equals, until
//! none is left (Kudo and Richardson 2018; `bpe_model.cc` of SentencePiece). Characters without a token fall back to their bytes.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::piece::hex_byte;
use crate::error::{Error, Result};
use crate::weights::gguf::TextTable;

/// The encoder; spellings stay in the file's mapping.
#[derive(Debug)]
pub struct Scores {
    scores: Vec<f32>,
    /// Ids of the tokens that text may form, in the order of their spellings.
    order: Vec<u32>,
    /// Ids of `<0x00>` to `<0xFF>`.
    bytes: [Option<u32>; 256],
    unknown: Option<u32>,
}

/// A stretch of the text that is one token so far, in a doubly linked list.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    /// 0 once it was joined to its left neighbour.
    len: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// Two neighbours that form a token.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Of both together, to tell whether either has changed since.
    len: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

impl Scores {
    /// `forms` says which tokens text may form, `is_byte` which ones stand for a byte.
    pub fn new(
        texts: &TextTable,
        scores: Vec<f32>,
        forms: impl Fn(usize) -> bool,
        is_byte: impl Fn(usize) -> bool,
        unknown: Option<u32>,
    ) -> Self {
        let mut order: Vec<u32> = (0..).take(texts.len()).filter(|&id| forms(id as usize)).collect();
        order.sort_by_key(|&id| texts.get(id as usize));
        let mut bytes = [None; 256];
        for id in (0..).take(texts.len()).filter(|&id| is_byte(id as usize)) {
            if let Some(byte) = texts.get(id as usize).and_then(hex_byte) {
                bytes[usize::from(byte)] = Some(id);
            }
        }
        Self { scores, order, bytes, unknown }
    }

    /// Appends the tokens of a text in which spaces are `▁` already.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where a character has neither a token nor bytes, and there is no token for the unknown.
    pub fn encode(&self, texts: &TextTable, text: &str, out: &mut Vec<u32>) -> Result<()> {
        let mut symbols: Vec<Symbol> = Vec::new();
        for (start, c) in text.char_indices() {
            let i = symbols.len();
            symbols.push(Symbol { start, len: c.len_utf8(), previous: i.checked_sub(1), next: Some(i + 1) });
        }
        if let Some(last) = symbols.last_mut() {
            last.next = None;
        }
        self.join(texts, text, &mut symbols);
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            let piece = &text[symbol.start..symbol.start + symbol.len];
            match self.find(texts, piece) {
                Some(id) => out.push(id),
                None => self.fall_back(piece, out)?,
            }
        }
        Ok(())
    }

    fn join(&self, texts: &TextTable, text: &str, symbols: &mut [Symbol]) {
        let mut queue = BinaryHeap::new();
        for left in 0..symbols.len() {
            queue.extend(self.pair(texts, text, symbols, left));
        }
        while let Some(Pair { left, right, len, .. }) = queue.pop() {
            let (l, r) = (symbols[left], symbols[right]);
            if l.len == 0 || r.len == 0 || l.len + r.len != len {
                continue;
            }
            symbols[right].len = 0;
            symbols[left].len = len;
            symbols[left].next = r.next;
            if let Some(next) = r.next {
                symbols[next].previous = Some(left);
            }
            queue.extend(l.previous.and_then(|previous| self.pair(texts, text, symbols, previous)));
            queue.extend(self.pair(texts, text, symbols, left));
        }
    }

    /// This symbol and its right neighbour, where they form a token.
    fn pair(&self, texts: &TextTable, text: &str, symbols: &[Symbol], left: usize) -> Option<Pair> {
        let right = symbols[left].next?;
        let len = symbols[left].len + symbols[right].len;
        let start = symbols[left].start;
        let id = self.find(texts, &text[start..start + len])?;
        Some(Pair { score: *self.scores.get(id as usize)?, left, right, len })
    }

    fn find(&self, texts: &TextTable, piece: &str) -> Option<u32> {
        let place = self.order.binary_search_by(|&id| texts.get(id as usize).cmp(&Some(piece))).ok()?;
        Some(self.order[place])
    }

    fn fall_back(&self, piece: &str, out: &mut Vec<u32>) -> Result<()> {
        match piece.bytes().map(|byte| self.bytes[usize::from(byte)]).collect::<Option<Vec<u32>>>() {
            Some(ids) => out.extend(ids),
            None => out.push(
                self.unknown.ok_or_else(|| Error::Tokenizer(format!("the vocabulary has no token for `{piece}`")))?,
            ),
        }
        Ok(())
    }
}
