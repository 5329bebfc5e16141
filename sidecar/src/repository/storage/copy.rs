//! Fragments between a store and a repository: each is checked against its hash on the way, and published only when it is right.

use super::{Reader, Storage, Upload};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::fsio::Published;
use std::fs::File;
use std::io::{ErrorKind as IoKind, Read};
use std::path::Path;

/// How much is read at once.
const PIECE: usize = 1 << 20;

impl Storage {
    /// Copies the file `from` to `to`, durably, unless `to` exists, and checks on the way that its BLAKE3 is `hash`.
    /// Nothing is published when it is not. A source that is not there is [`ErrorKind::Missing`], one that cannot be read or has
    /// another content [`ErrorKind::Damaged`]; every other error is the target's.
    pub fn put_checked(&self, from: &Path, to: &Path, hash: &str) -> Result<(Published, u64)> {
        let mut source = match File::open(from) {
            Ok(source) => source,
            Err(error) if error.kind() == IoKind::NotFound => return Err(missing(from)),
            Err(error) => return Err(Error::io("open", from, error)),
        };
        let mut upload = self.create(to)?;
        let bytes = pass(&mut source, PIECE, from, hash, |piece| upload.write_all(piece))?;
        Ok((upload.publish_new()?, bytes))
    }

    /// Copies `from` into the file `to`, which is not of the repository, as [`Storage::put_checked`] does.
    pub fn get_checked(&self, from: &Path, to: &Path, hash: &str) -> Result<(Published, u64)> {
        let (upload, bytes) = self.get_pending(from, to, hash)?;
        Ok((upload.publish_new()?, bytes))
    }

    /// Like [`Storage::get_checked`], in place of what is there.
    pub fn get_checked_over(&self, from: &Path, to: &Path, hash: &str) -> Result<u64> {
        let (upload, bytes) = self.get_pending(from, to, hash)?;
        upload.publish()?;
        Ok(bytes)
    }

    fn get_pending(&self, from: &Path, to: &Path, hash: &str) -> Result<(Upload, u64)> {
        let reader = self.open(from)?.ok_or_else(|| missing(from))?;
        let mut upload = Self::Directory.create(to)?;
        let piece = reader.piece();
        let bytes = pass(&mut Sequential::new(reader), piece, from, hash, |piece| upload.write_all(piece))?;
        Ok((upload, bytes))
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
    let what = || format!("the fragment \"{}\"", from.display());
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
}

impl Sequential {
    /// From the beginning.
    pub fn new(reader: Reader) -> Self {
        Self { reader, position: 0 }
    }
}

impl Read for Sequential {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.reader.size() - self.position;
        let take = (buffer.len() as u64).min(left) as usize;
        let Some(piece) = buffer.get_mut(..take).filter(|piece| !piece.is_empty()) else { return Ok(0) };
        self.reader.read_exact_at(piece, self.position)?;
        self.position += take as u64;
        Ok(take)
    }
}
