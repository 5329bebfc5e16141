//! An object on its way back from a tool.
//!
//! Our documents say where in the tar stream each piece lies, so the stream is not parsed: it is read to where a piece begins, and the piece
//! is checked by its own checksum before it is used. A stream that was read to its end is checked as a whole as well.

use super::run::Process;
use super::send::unwrapped;
use super::{Tool, not_configured};
use crate::config::tool::Operation;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::Repository;
use crate::repository::fsio::{self, Pending, Published};
use crate::repository::objects::{ObjectFragment, StoredObject};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

/// A stream from a tool. Dropped, it ends the tool.
pub struct Receiving {
    what: String,
    bytes: u64,
    blake3: String,
    source: Option<Source>,
    position: u64,
    scratch: Vec<u8>,
}

enum Source {
    Plain(Box<Hashed>),
    Zstd(Box<zstd::stream::read::Decoder<'static, BufReader<Hashed>>>),
}

struct Hashed {
    process: Process,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.process.read(buffer).map_err(io::Error::other)?;
        self.hasher.update(buffer.get(..got).unwrap_or_default());
        self.bytes += got as u64;
        Ok(got)
    }
}

impl Tool {
    /// Starts the tool for an object that it holds.
    pub fn receive(&self, object: &StoredObject) -> Result<Receiving> {
        self.require_own(object)?;
        let process = self.start_stored(Operation::Restore, object)?;
        let hashed = Hashed { process, hasher: blake3::Hasher::new(), bytes: 0 };
        let source = match object.compressed {
            false => Source::Plain(Box::new(hashed)),
            true => {
                let decoder = zstd::stream::read::Decoder::new(hashed).map_err(unwrapped)?;
                Source::Zstd(Box::new(decoder.single_frame()))
            }
        };
        Ok(Receiving {
            what: format!("the object {} of the tool {}", object.name, object.tool),
            bytes: object.bytes,
            blake3: object.blake3.clone(),
            source: Some(source),
            position: 0,
            scratch: vec![0; 1 << 20],
        })
    }
}

impl Receiving {
    /// Reads some bytes; 0 at the end.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let got = match &mut self.source {
            None => Ok(0),
            Some(Source::Plain(from)) => from.read(buffer),
            Some(Source::Zstd(from)) => from.read(buffer),
        };
        match got {
            Ok(got) => {
                self.position += got as u64;
                Ok(got)
            }
            Err(error) if error.get_ref().is_some_and(|inner| inner.is::<Error>()) => Err(unwrapped(error)),
            // The decoder does not like what it gets. If the tool failed, that is why.
            Err(error) => Err(self.wrong(&format!("it does not decompress: {error}"))),
        }
    }

    /// The tool's own failure if it failed, else the damage.
    fn wrong(&mut self, why: &str) -> Error {
        let hashed = match self.source.take() {
            Some(Source::Plain(hashed)) => Some(*hashed),
            Some(Source::Zstd(decoder)) => Some(decoder.finish().into_inner()),
            None => None,
        };
        let ended = hashed.map(|mut hashed| {
            // Its failure shall be its own, not that nobody reads any more.
            while hashed.read(&mut self.scratch).map_err(unwrapped)? > 0 {}
            hashed.process.finish()
        });
        match ended {
            Some(Err(error)) if error.kind != ErrorKind::Damaged => error,
            _ => Error::damaged(&self.what, why),
        }
    }

    /// Fills the buffer.
    pub fn read_exact(&mut self, buffer: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read(buffer.get_mut(filled..).unwrap_or_default())? {
                0 => return Err(self.wrong("it ends too early")),
                got => filled += got,
            }
        }
        Ok(())
    }

    /// Reads to a place in the tar stream.
    pub fn skip_to(&mut self, offset: u64) -> Result<()> {
        if offset < self.position {
            return Err(Error::damaged(&self.what, "its document names places that overlap"));
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut skip = || -> Result<()> {
            while self.position < offset {
                let take = (offset - self.position).min(scratch.len() as u64) as usize;
                self.read_exact(scratch.get_mut(..take).unwrap_or_default())?;
            }
            Ok(())
        };
        let skipped = skip();
        self.scratch = scratch;
        skipped
    }

    /// Reads to the end, and checks the whole stream and how the tool ended.
    pub fn finish(mut self) -> Result<()> {
        let mut scratch = std::mem::take(&mut self.scratch);
        while self.read(&mut scratch)? > 0 {}
        let mut hashed = match self.source.take() {
            Some(Source::Plain(hashed)) => *hashed,
            Some(Source::Zstd(decoder)) => decoder.finish().into_inner(),
            None => return Err(Error::damaged(&self.what, "it was read to its end before")),
        };
        // What follows the frame, if anything does.
        while hashed.read(&mut scratch).map_err(unwrapped)? > 0 {}
        hashed.process.finish()?;
        if hashed.bytes != self.bytes {
            return Err(Error::damaged(
                &self.what,
                format_args!("it has {} bytes instead of {}", hashed.bytes, self.bytes),
            ));
        }
        if hashed.hasher.finalize().to_hex().as_str() != self.blake3 {
            return Err(Error::damaged(&self.what, "its checksum does not match"));
        }
        Ok(())
    }

    /// Ends the tool: the rest is not wanted.
    pub fn abandon(self) {
        match self.source {
            Some(Source::Plain(hashed)) => hashed.process.abandon(),
            Some(Source::Zstd(decoder)) => decoder.finish().into_inner().process.abandon(),
            None => {}
        }
    }

    /// Writes one fragment of the stream as a file, once it is checked. Returns whether the file is new.
    fn fragment(&mut self, fragment: &ObjectFragment, to: &Path) -> Result<bool> {
        self.skip_to(fragment.offset)?;
        fsio::create_dirs(fsio::parent(to))?;
        let mut pending = Pending::create(to)?;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 1 << 20];
        let mut left = fragment.bytes;
        while left > 0 {
            let take = left.min(buffer.len() as u64) as usize;
            let piece = buffer.get_mut(..take).unwrap_or_default();
            self.read_exact(piece)?;
            hasher.update(piece);
            pending.write_all(piece)?;
            left -= take as u64;
        }
        let found = hasher.finalize().to_hex();
        if found.as_str() != fragment.hash {
            return Err(Error::damaged(
                format_args!("the fragment {} in {}", fragment.hash, self.what),
                format_args!("its content has the hash {found}"),
            ));
        }
        Ok(pending.publish_new()? == Published::New)
    }
}

/// Brings fragments of one object to their places. Each is checked before it gets its name. Returns for each whether it is new.
pub fn fetch_fragments(
    repository: &Repository,
    object: &StoredObject,
    wanted: &[(ObjectFragment, PathBuf)],
) -> Result<Vec<Result<bool>>> {
    let tool = repository.tool().ok_or_else(|| not_configured(object))?;
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by_key(|at| wanted.get(*at).map(|(fragment, _)| fragment.offset));
    let mut receiving = tool.receive(object)?;
    let mut results: Vec<Option<Result<bool>>> = wanted.iter().map(|_| None).collect();
    for at in order {
        let (Some((fragment, to)), Some(result)) = (wanted.get(at), results.get_mut(at)) else { continue };
        let fetched = receiving.fragment(fragment, to);
        // Another one's content may be sound all the same; whatever else went wrong is wrong for all.
        match fetched {
            Err(error) if error.kind != ErrorKind::Damaged => return Err(error),
            fetched => *result = Some(fetched),
        }
    }
    receiving.abandon();
    Ok(results.into_iter().flatten().collect())
}

/// Reads an object to its end and checks its fragments and the whole of it. For each fragment that is damaged, `damaged` is told.
pub fn check_object(
    repository: &Repository,
    object: &StoredObject,
    mut damaged: impl FnMut(&str, String),
) -> Result<()> {
    let tool = repository.tool().ok_or_else(|| not_configured(object))?;
    let mut receiving = tool.receive(object)?;
    let mut fragments: Vec<&ObjectFragment> = object.fragments.iter().collect();
    fragments.sort_by_key(|fragment| fragment.offset);
    let mut buffer = vec![0; 1 << 20];
    for fragment in fragments {
        receiving.skip_to(fragment.offset)?;
        let mut hasher = blake3::Hasher::new();
        let mut left = fragment.bytes;
        while left > 0 {
            let take = left.min(buffer.len() as u64) as usize;
            let piece = buffer.get_mut(..take).unwrap_or_default();
            receiving.read_exact(piece)?;
            hasher.update(piece);
            left -= take as u64;
        }
        if hasher.finalize().to_hex().as_str() != fragment.hash {
            damaged(&fragment.hash, format!("its content in {} has another hash", object.name));
        }
    }
    receiving.finish()
}
