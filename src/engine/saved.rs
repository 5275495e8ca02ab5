//! Sessions on disk: the conversation's tokens and the K/V rows of every layer, so that a later process goes on without a prefill.
//!
//! A file appears under its name only when it is whole, and is checked whole, to the last byte, before a session takes anything from it. It
//! belongs to one model and one cache type; a fingerprint tells. Little-endian, version 2:
//!
//! ```text
//! magic [8] · version u32 · cache type u32 · fingerprint u64 · layers u32 · bytes of a K row u32 · rows u64 · tokens u64 · note bytes u64
//! least kept u64 · rows of all layers u64
//! token ids [tokens] u32 · note, UTF-8
//! per layer, per 1,024 rows: K rows, V rows [kv_heads, head_dim]
//! checksum u64 of all before
//! ```
//!
//! Layers with a window have the rows that conversations of `least kept` to `rows` tokens need to go on; the others have all.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::cancel::Wait;
use crate::dims::Piece;
use crate::dtype::KvDtype;
use crate::engine::{Engine, Session};
use crate::error::{Error, Result};
use crate::new_file;

mod checksum;
mod header;

use checksum::Checksum;
use header::Header;

/// Rows that are in memory at a time while a file is written or read.
const RUN: usize = 1024;

/// The tokens of a saved conversation, whatever model it is of: tells how much context it needs before a model is loaded.
///
/// # Errors
/// [`Error::Io`]; [`Error::BadFile`] where it is no session, or not a whole one.
pub fn saved_tokens(path: impl AsRef<Path>) -> Result<Vec<u32>> {
    let mut file = SavedFile::open(path.as_ref())?;
    Ok(file.text()?.0)
}

impl Engine {
    /// A session as [`Session::save`] left it.
    ///
    /// # Errors
    /// As [`Engine::session`] and [`Session::load`].
    pub fn load_session(&self, path: impl AsRef<Path>) -> Result<Session> {
        let mut session = self.session()?;
        session.load(path)?;
        Ok(session)
    }
}

impl Session {
    /// Writes the conversation into a file, which is replaced only once the new one is whole.
    ///
    /// # Errors
    /// [`Error::Io`], a cancel, an adapter's failure; the old file stays.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        new_file::replace(path, |partial| self.write_to(partial, path))
    }

    /// Takes over a saved conversation; the one so far is forgotten.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadFile`] where the file is damaged, of another version, another model or another cache type;
    /// [`Error::ContextFull`]. The conversation so far stays then. An adapter's failure leaves an empty one.
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let mut file = SavedFile::open(path.as_ref())?;
        file.check_model(self)?;
        let windows = self.engine.config().windows();
        file.check_sum(&windows)?;
        let (tokens, note) = file.text()?;
        for &id in &tokens {
            self.engine.check_token(id)?;
        }
        self.clear();
        let (n_rows, least_kept) = (file.header.n_rows, file.header.least_kept);
        file.runs(&windows, |layer, rows, bytes| self.write_rows(layer, rows, bytes))?;
        self.restore(tokens, n_rows, least_kept, note);
        Ok(())
    }

    /// Writes to `partial` what will be `path`.
    fn write_to(&self, partial: &Path, path: &Path) -> Result<()> {
        let failed = |e| Error::io(path, e);
        let file = File::create(partial).map_err(failed)?;
        let mut out = BufWriter::new(&file);
        let mut sum = Checksum::default();
        let mut put = |bytes: &[u8]| {
            sum.update(bytes);
            out.write_all(bytes).map_err(failed)
        };
        let header = Header::of(self);
        put(&header.to_bytes())?;
        put(bytemuck::cast_slice(&self.tokens().iter().map(|id| id.to_le()).collect::<Vec<_>>()))?;
        put(self.note().as_bytes())?;
        let wait = Wait::new(self.engine.cancel());
        for (layer, window) in self.engine.config().windows().into_iter().enumerate() {
            for rows in runs(header.rows(window)) {
                put(&self.last().read_rows(layer, rows, &wait)?)?;
            }
        }
        let sum = sum.value().to_le_bytes();
        out.write_all(&sum).and_then(|()| out.flush()).map_err(failed)?;
        drop(out);
        file.sync_all().map_err(failed)
    }
}

fn runs(rows: Piece) -> impl Iterator<Item = Piece> {
    (rows.start..rows.end).step_by(RUN).map(move |start| Piece::new(start, rows.end.min(start + RUN)))
}

/// An opened file whose size is what its header says.
struct SavedFile {
    path: PathBuf,
    file: BufReader<File>,
    header: Header,
}

impl SavedFile {
    fn open(path: &Path) -> Result<Self> {
        let failed = |e| Error::io(path, e);
        let file = File::open(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        if !meta.is_file() {
            return Err(Error::bad_file(path, "is no file"));
        }
        let mut file = BufReader::new(file);
        let mut bytes = [0; Header::BYTES];
        if meta.len() < Header::BYTES as u64 {
            return Err(Error::bad_file(path, format!("{} bytes are no session", meta.len())));
        }
        file.read_exact(&mut bytes).map_err(failed)?;
        let header = Header::parse(&bytes, meta.len()).map_err(|reason| Error::bad_file(path, reason))?;
        Ok(Self { path: path.to_owned(), file, header })
    }

    fn bad(&self, reason: impl Into<String>) -> Error {
        Error::bad_file(&self.path, reason)
    }

    /// Whether the session can go on with it.
    fn check_model(&self, session: &Session) -> Result<()> {
        let own = Header::of(session);
        let h = &self.header;
        if h.fingerprint != own.fingerprint || h.n_layers != own.n_layers {
            return Err(self.bad("is a session of another model"));
        }
        let rows: usize = session.engine.config().layers.iter().map(|layer| h.rows(layer.window).len()).sum();
        if h.all_rows != rows {
            return Err(self.bad(format!("has {} rows instead of {rows}", h.all_rows)));
        }
        if h.kv != own.kv || h.row_bytes != own.row_bytes {
            let name = |kv| if kv == KvDtype::F16 { "f16" } else { "f32" };
            return Err(self.bad(format!("has a K/V cache in {}, not in {}", name(h.kv), name(own.kv))));
        }
        let context = session.engine.context();
        // Where the context is full the last token has no row.
        if h.n_rows > context || h.n_tokens > context + 1 {
            return Err(Error::ContextFull { needed: h.n_tokens, context });
        }
        Ok(())
    }

    fn at(&mut self, offset: u64) -> Result<()> {
        self.file.seek(std::io::SeekFrom::Start(offset)).map_err(|e| Error::io(&self.path, e)).map(drop)
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.file.read_exact(bytes).map_err(|e| Error::io(&self.path, e))
    }

    /// Token ids and note. Sizes are those of the file, so the memory is justified.
    fn text(&mut self) -> Result<(Vec<u32>, String)> {
        self.at(Header::BYTES as u64)?;
        let mut ids = vec![0; 4 * self.header.n_tokens];
        self.read(&mut ids)?;
        let mut note = vec![0; self.header.note_bytes];
        self.read(&mut note)?;
        let ids = ids.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Ok((ids, String::from_utf8(note).map_err(|_| self.bad("has a note that is no text"))?))
    }

    /// Hands over the rows of layers with these windows, from where [`SavedFile::text`] ended.
    fn runs(
        &mut self,
        windows: &[Option<usize>],
        mut take: impl FnMut(usize, Piece, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let (header, row_bytes) = (self.header, self.header.row_bytes);
        let mut bytes = vec![0; 2 * header.n_rows.min(RUN) * row_bytes];
        for (layer, &window) in windows.iter().enumerate() {
            for rows in runs(header.rows(window)) {
                let run = &mut bytes[..2 * rows.len() * row_bytes];
                self.read(run)?;
                take(layer, rows, run)?;
            }
        }
        Ok(())
    }

    fn check_sum(&mut self, windows: &[Option<usize>]) -> Result<()> {
        let mut sum = Checksum::default();
        self.at(0)?;
        let mut head = [0; Header::BYTES];
        self.read(&mut head)?;
        sum.update(&head);
        for n in [4 * self.header.n_tokens, self.header.note_bytes] {
            let mut bytes = vec![0; n];
            self.read(&mut bytes)?;
            sum.update(&bytes);
        }
        self.runs(windows, |_, _, bytes| {
            sum.update(bytes);
            Ok(())
        })?;
        let mut stored = [0; 8];
        self.read(&mut stored)?;
        if u64::from_le_bytes(stored) == sum.value() {
            Ok(())
        } else {
            Err(self.bad("is damaged: its checksum differs"))
        }
    }
}
