//! Fragments between a store and a repository: each is checked against its hash on the way, and published only when it is right.
//!
//! In a repository with recipients a fragment is an age file, followed by a note as an archived WAL file has one ([`Seal`]): whose it is, what is stored, and for
//! whom. It keeps the name of its own content, so each fragment is there once whatever it is encrypted for.

use super::{Reader, Storage, Upload};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::crypt::{self, Keys};
use crate::repository::fsio::Published;
use crate::repository::walstore;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{ErrorKind as IoKind, Read, Write};
use std::path::Path;

/// How much is read at once.
const PIECE: usize = 1 << 20;

/// The longest note that is looked for.
const NOTE: u64 = 1 << 16;

/// What an encrypted fragment says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// BLAKE3 of its content.
    pub hash: String,
    /// The size of its content.
    pub bytes: u64,
    /// BLAKE3 of the age file in front of this note.
    pub stored_blake3: String,
    /// For whom it is encrypted, sorted.
    pub recipients: Vec<String>,
}

impl Storage {
    /// Copies the file `from` to `to`, durably, unless `to` exists, and checks on the way that its BLAKE3 is `hash`.
    /// Nothing is published when it is not. A source that is not there is [`ErrorKind::Missing`], one that cannot be read or has
    /// another content [`ErrorKind::Damaged`]; every other error is the target's.
    pub fn put_checked(&self, from: &Path, to: &Path, hash: &str, keys: &Keys) -> Result<(Published, u64)> {
        let mut source = match File::open(from) {
            Ok(source) => source,
            Err(error) if error.kind() == IoKind::NotFound => return Err(missing(from)),
            Err(error) => return Err(Error::io("open", from, error)),
        };
        let (upload, bytes) = self.put_pending(&mut source, PIECE, from, to, hash, keys)?;
        Ok((upload.publish_new()?, bytes))
    }

    /// Encrypts the fragment `path` of the repository anew, for the recipients of `keys`, in its place. Returns its size; none when it is gone.
    pub fn reseal(&self, path: &Path, hash: &str, keys: &Keys) -> Result<Option<u64>> {
        let Some(reader) = self.open(path)? else { return Ok(None) };
        let piece = reader.piece();
        let mut source = opened(reader, path, hash, keys)?;
        let (upload, bytes) = self.put_pending(&mut *source, piece, path, path, hash, keys)?;
        upload.publish()?;
        Ok(Some(bytes))
    }

    fn put_pending(
        &self,
        source: &mut dyn Read,
        piece: usize,
        from: &Path,
        to: &Path,
        hash: &str,
        keys: &Keys,
    ) -> Result<(Upload, u64)> {
        let mut upload = self.create(to)?;
        if !keys.encrypts() {
            let bytes = pass(source, piece, from, hash, |piece| upload.write_all(piece))?;
            return Ok((upload, bytes));
        }
        let mut writer = keys.sealing(Sink { upload, hasher: blake3::Hasher::new() })?;
        let bytes = pass(source, piece, from, hash, |piece| writer.write_all(piece).map_err(crypt::failed))?;
        let sink = writer.finish().map_err(crypt::failed)?;
        let seal = Seal {
            hash: hash.to_owned(),
            bytes,
            stored_blake3: sink.hasher.finalize().to_hex().to_string(),
            recipients: keys.names(),
        };
        let note = serde_json::to_vec(&seal)
            .map_err(|error| Error::new(ErrorKind::Io, format!("could not write JSON: {error}")))?;
        let mut upload = sink.upload;
        upload.write_all(&walstore::trailer(&note))?;
        Ok((upload, bytes))
    }

    /// What an encrypted fragment says of itself; none when it is not encrypted, or not there.
    pub fn seal_of(&self, path: &Path) -> Result<Option<Seal>> {
        match self.open(path)? {
            Some(reader) => Ok(seal(&reader, path)?.map(|(seal, _)| seal)),
            None => Ok(None),
        }
    }

    /// Reads an encrypted fragment as it is stored, and checks every byte of it. False when it is not encrypted, or not there.
    pub fn check_sealed(&self, path: &Path, hash: &str) -> Result<bool> {
        let Some(reader) = self.open(path)? else { return Ok(false) };
        let Some((seal, end)) = seal(&reader, path)? else { return Ok(false) };
        if seal.hash != hash {
            return Err(Error::damaged(what(path), format_args!("it holds the fragment {}", seal.hash)));
        }
        let piece = reader.piece();
        pass(&mut Sequential { reader, position: 0, end }, piece, path, &seal.stored_blake3, |_| Ok(()))?;
        Ok(true)
    }

    /// Copies `from` into the file `to`, which is not of the repository, as [`Storage::put_checked`] does.
    pub fn get_checked(&self, from: &Path, to: &Path, hash: &str, keys: &Keys) -> Result<(Published, u64)> {
        let (upload, bytes) = self.get_pending(from, to, hash, keys)?;
        Ok((upload.publish_new()?, bytes))
    }

    /// Like [`Storage::get_checked`], in place of what is there.
    pub fn get_checked_over(&self, from: &Path, to: &Path, hash: &str, keys: &Keys) -> Result<u64> {
        let (upload, bytes) = self.get_pending(from, to, hash, keys)?;
        upload.publish()?;
        Ok(bytes)
    }

    fn get_pending(&self, from: &Path, to: &Path, hash: &str, keys: &Keys) -> Result<(Upload, u64)> {
        let reader = self.open(from)?.ok_or_else(|| missing(from))?;
        let mut upload = Self::Directory.create(to)?;
        let piece = reader.piece();
        let mut source = opened(reader, from, hash, keys)?;
        let bytes = pass(&mut *source, piece, from, hash, |piece| upload.write_all(piece))?;
        Ok((upload, bytes))
    }
}

fn what(path: &Path) -> String {
    format!("the fragment \"{}\"", path.display())
}

/// The note of an encrypted fragment, and where the age file in front of it ends.
fn seal(reader: &Reader, path: &Path) -> Result<Option<(Seal, u64)>> {
    let read =
        |buffer: &mut [u8], at: u64| reader.read_exact_at(buffer, at).map_err(|error| Error::reading(path, error));
    let size = reader.size();
    let mut head = vec![0; crypt::MAGIC.len()];
    if size < head.len() as u64 {
        return Ok(None);
    }
    read(&mut head, 0)?;
    if !crypt::is_sealed(&head) {
        return Ok(None);
    }
    let mut tail = vec![0; size.min(NOTE) as usize];
    let begin = size - tail.len() as u64;
    read(&mut tail, begin)?;
    let (note, end) = walstore::split(&tail, size).map_err(|why| Error::damaged(what(path), why))?;
    let seal = serde_json::from_slice(note)
        .map_err(|error| Error::damaged(what(path), format_args!("its note does not parse: {error}")))?;
    Ok(Some((seal, end)))
}

/// Reads the content of a fragment, encrypted or not.
fn opened(reader: Reader, path: &Path, hash: &str, keys: &Keys) -> Result<Box<dyn Read>> {
    let Some((seal, end)) = seal(&reader, path)? else { return Ok(Box::new(Sequential::new(reader))) };
    if seal.hash != hash {
        return Err(Error::damaged(what(path), format_args!("it holds the fragment {}", seal.hash)));
    }
    let piece = reader.piece();
    let stored = std::io::BufReader::with_capacity(piece, Sequential { reader, position: 0, end });
    keys.opening(stored, &what(path))
}

/// Where an age file goes, and the checksum of what was written.
struct Sink {
    upload: Upload,
    hasher: blake3::Hasher,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.upload.write_all(bytes).map_err(std::io::Error::other)?;
        self.hasher.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn missing(path: &Path) -> Error {
    Error::new(ErrorKind::Missing, format!("there is no fragment \"{}\"", path.display()))
}

/// Gives what `source` has to `sink`, to the end, and checks its hash. Returns how many bytes it has.
fn pass(
    source: &mut dyn Read,
    piece: usize,
    from: &Path,
    hash: &str,
    mut sink: impl FnMut(&[u8]) -> Result<()>,
) -> Result<u64> {
    let what = || what(from);
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; piece];
    let mut bytes = 0;
    loop {
        match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                let piece = buffer.get(..n).unwrap_or_default();
                hasher.update(piece);
                sink(piece)?;
                bytes += n as u64;
            }
            Err(error) if error.kind() == IoKind::Interrupted => {}
            Err(error) => {
                return Err(match error.downcast::<Error>() {
                    Ok(error) => error,
                    Err(error) => Error::damaged(what(), format_args!("it cannot be read: {error}")).caused_by(error),
                });
            }
        }
    }
    let found = hasher.finalize().to_hex();
    if found.as_str() != hash {
        return Err(Error::damaged(what(), format_args!("its content has the hash {found}")));
    }
    Ok(bytes)
}

/// Reads an object from its beginning to its end.
pub struct Sequential {
    reader: Reader,
    position: u64,
    end: u64,
}

impl Sequential {
    /// From the beginning.
    pub fn new(reader: Reader) -> Self {
        let end = reader.size();
        Self { reader, position: 0, end }
    }
}

impl Read for Sequential {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.end - self.position;
        let take = (buffer.len() as u64).min(left) as usize;
        let Some(piece) = buffer.get_mut(..take).filter(|piece| !piece.is_empty()) else { return Ok(0) };
        self.reader.read_exact_at(piece, self.position)?;
        self.position += take as u64;
        Ok(take)
    }
}
