//! The head of a session's file, and the fingerprint of the model that it belongs to.

use crate::dims::Piece;
use crate::dtype::KvDtype;
use crate::engine::Session;
use crate::weights::ModelFiles;

use super::Checksum;

const MAGIC: &[u8; 8] = b"runahead";
const VERSION: u32 = 2;

/// See [`super`]'s text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kv: KvDtype,
    pub fingerprint: u64,
    pub n_layers: usize,
    /// Bytes of one token's K row in one layer.
    pub row_bytes: usize,
    /// Tokens whose rows are there: all, or all but the last; none where a model with windows has let go of some.
    pub n_rows: usize,
    /// The fewest tokens, beside none, that they can be cut back to.
    pub least_kept: usize,
    /// Rows of all layers together.
    pub all_rows: usize,
    pub n_tokens: usize,
    pub note_bytes: usize,
}

impl Header {
    pub const BYTES: usize = 72;

    pub fn of(session: &Session) -> Self {
        let engine = session.engine();
        let header = Self {
            kv: engine.shared.kv,
            fingerprint: fingerprint(&engine.shared.files),
            n_layers: engine.config().n_layers,
            row_bytes: session.last().row_bytes(),
            n_rows: session.len,
            least_kept: session.least_kept,
            all_rows: 0,
            n_tokens: session.n_tokens(),
            note_bytes: session.note().len(),
        };
        let rows = engine.config().layers.iter().map(|layer| header.rows(layer.window).len());
        Self { all_rows: rows.sum(), ..header }
    }

    /// The rows of a layer with this window that are there.
    pub fn rows(&self, window: Option<usize>) -> Piece {
        let start = window.map_or(0, |window| (self.least_kept + 1).saturating_sub(window));
        Piece::new(start.min(self.n_rows), self.n_rows)
    }

    pub fn to_bytes(self) -> Vec<u8> {
        let kv = match self.kv {
            KvDtype::F16 => 0u32,
            KvDtype::F32 => 1,
        };
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend(kv.to_le_bytes());
        out.extend(self.fingerprint.to_le_bytes());
        // Both are far below 2^32: `ModelConfig` bounds them.
        out.extend((self.n_layers as u32).to_le_bytes());
        out.extend((self.row_bytes as u32).to_le_bytes());
        for n in [self.n_rows, self.n_tokens, self.note_bytes, self.least_kept, self.all_rows] {
            out.extend((n as u64).to_le_bytes());
        }
        out
    }

    /// Reads the head of a file of `file_bytes`, which must be just what it says.
    pub fn parse(bytes: &[u8; Self::BYTES], file_bytes: u64) -> Result<Self, String> {
        if &bytes[..8] != MAGIC {
            return Err("is no session".to_owned());
        }
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if u32_at(8) != VERSION {
            return Err(format!("is a session of format {}; this version reads {VERSION}", u32_at(8)));
        }
        let kv = match u32_at(12) {
            0 => KvDtype::F16,
            1 => KvDtype::F32,
            other => return Err(format!("has a K/V cache of an unknown type ({other})")),
        };
        let (n_layers, row_bytes) = (u64::from(u32_at(24)), u64::from(u32_at(28)));
        let [n_rows, n_tokens, note_bytes, least_kept, all_rows] = [32, 40, 48, 56, 64].map(u64_at);
        if n_tokens < n_rows || n_rows > 0 && n_tokens - n_rows > 1 || least_kept > n_rows {
            return Err(format!("has the rows of {least_kept} to {n_rows} tokens for a conversation of {n_tokens}"));
        }
        if n_layers.checked_mul(n_rows).is_none_or(|most| all_rows > most) {
            return Err(format!("has {all_rows} rows for {n_rows} tokens in {n_layers} layers"));
        }
        let rows = [2, all_rows, row_bytes].into_iter().try_fold(1u64, u64::checked_mul);
        let parts = [Some(Self::BYTES as u64 + 8), n_tokens.checked_mul(4), Some(note_bytes), rows];
        let expected = parts.into_iter().try_fold(0u64, |sum, part| sum.checked_add(part?));
        if expected != Some(file_bytes) {
            let expected = expected.map_or_else(|| "more than there can be".to_owned(), |n| n.to_string());
            return Err(format!("has {file_bytes} bytes instead of {expected}"));
        }
        // None is larger than the file, except where another is 0.
        let size = |n: u64| usize::try_from(n).map_err(|_| format!("says {n}, which is too large for this machine"));
        let (n_layers, row_bytes) = (size(n_layers)?, size(row_bytes)?);
        let (n_rows, n_tokens, note_bytes) = (size(n_rows)?, size(n_tokens)?, size(note_bytes)?);
        let (least_kept, all_rows, fingerprint) = (size(least_kept)?, size(all_rows)?, u64_at(16));
        Ok(Self { kv, fingerprint, n_layers, row_bytes, n_rows, least_kept, all_rows, n_tokens, note_bytes })
    }
}

/// Tells models apart: configuration, vocabulary, and names, shapes and some bytes of every tensor. A whole pass over a model's weights would take
/// longer than many a prefill.
pub fn fingerprint(files: &ModelFiles) -> u64 {
    const SAMPLE: usize = 64;
    let mut sum = Checksum::default();
    sum.update(format!("{:?} {} {:?}", files.config, files.file_bytes, files.eos).as_bytes());
    if let Some(tokenizer) = &files.tokenizer {
        for id in 0..u32::try_from(tokenizer.vocab_len()).unwrap_or(u32::MAX) {
            // Ids without a token are part of a vocabulary, too.
            sum.update(tokenizer.token_bytes(id).unwrap_or_default().as_ref());
        }
    }
    let mut tensors = files.weights.known().collect::<Vec<_>>();
    tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    for tensor in tensors {
        sum.update(format!("{} {} {:?}", tensor.name, tensor.dtype.name(), tensor.shape).as_bytes());
        let len = tensor.data.len();
        for start in [0, len / 2, len.saturating_sub(SAMPLE)] {
            sum.update(&tensor.data[start..len.min(start + SAMPLE)]);
        }
    }
    sum.value()
}
