//! Where the bytes of a backup's hot data go.
//!
//! ```text
//!   copy ── pieces, bundles ──► PackTarget: zstd frames in packs in the backup's folder
//!        ── whole files ──────► ToolTarget: a tar stream for each worker, each through a run of the tool
//! ```
//!
//! A target gives each worker a writer of its own. A writer that is dropped before it was finished has stored nothing that counts.

use super::scan::ScannedFile;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::Repository;
use crate::repository::crypt::Keys;
use crate::repository::manifest::{Directory, Pack, Part};
use crate::repository::objects::{ObjectKind, StoredObject};
use crate::repository::pack::PackWriter;
use crate::repository::storage::Storage;
use crate::tool::Tool;
use crate::tool::send::{NewObject, Sending};
use crate::tool::tar::Kind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the bytes of a backup go.
pub trait Target: Sync {
    /// True when the pieces of a file must follow each other.
    fn streams(&self) -> bool;

    /// How many workers it takes when `wanted` are there.
    fn workers(&self, wanted: usize) -> usize;

    /// The writer of a worker.
    fn writer(&self, number: usize) -> Result<Box<dyn Writer>>;
}

/// Where the bytes of one worker go.
pub trait Writer: Send {
    /// A file of so many bytes begins. Only called where the pieces of a file follow each other, and for the control file.
    fn begin(&mut self, file: &ScannedFile, bytes: u64) -> Result<()>;

    /// Stores content, and says where: in each part the pack (by the writer's own number) and the place in it.
    fn store(&mut self, content: &[u8], parts: &mut [(usize, Part)]) -> Result<()>;

    /// The file ends.
    fn end(&mut self) -> Result<()>;

    /// Makes everything durable. Returns the packs in the order of their numbers.
    fn finish(self: Box<Self>) -> Result<Vec<Pack>>;
}

/// Packs in the backup's folder.
#[derive(Debug)]
pub struct PackTarget {
    storage: Storage,
    dir: PathBuf,
    level: i32,
    keys: Arc<Keys>,
}

impl PackTarget {
    /// Packs in `dir`, compressed at this level of zstd, and encrypted for the recipients.
    pub fn new(storage: &Storage, dir: &Path, level: i32, keys: &Arc<Keys>) -> Self {
        Self { storage: storage.clone(), dir: dir.to_owned(), level, keys: keys.clone() }
    }
}

impl Target for PackTarget {
    fn streams(&self) -> bool {
        false
    }

    fn workers(&self, wanted: usize) -> usize {
        wanted
    }

    fn writer(&self, number: usize) -> Result<Box<dyn Writer>> {
        let compressor = zstd::bulk::Compressor::new(self.level)
            .map_err(|error| Error::new(ErrorKind::Config, format!("zstd refused its level: {error}")))?;
        Ok(Box::new(Packs {
            packs: PackWriter::new(&self.storage, &self.dir, number),
            compressor,
            frame: Vec::new(),
            keys: self.keys.clone(),
        }))
    }
}

struct Packs {
    packs: PackWriter,
    compressor: zstd::bulk::Compressor<'static>,
    frame: Vec<u8>,
    keys: Arc<Keys>,
}

impl Writer for Packs {
    fn begin(&mut self, _file: &ScannedFile, _bytes: u64) -> Result<()> {
        Ok(())
    }

    fn store(&mut self, content: &[u8], parts: &mut [(usize, Part)]) -> Result<()> {
        self.frame.clear();
        self.frame.reserve(zstd::zstd_safe::compress_bound(content.len()));
        self.compressor
            .compress_to_buffer(content, &mut self.frame)
            .map_err(|error| Error::new(ErrorKind::Io, format!("zstd failed: {error}")))?;
        self.frame = self.keys.seal(std::mem::take(&mut self.frame))?;
        let place = self.packs.append(&self.frame)?;
        for (_, part) in parts {
            part.pack = place.pack;
            part.frame = place.offset;
            part.frame_bytes = place.bytes;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Vec<Pack>> {
        self.packs.finish()
    }
}

/// Streams through a third-party tool.
pub struct ToolTarget<'a> {
    repository: &'a Repository,
    tool: &'a Tool,
    backup: &'a str,
    infile: &'a Path,
    directories: &'a [Directory],
}

impl<'a> ToolTarget<'a> {
    /// Streams for a backup. Each begins with all directories, so that tar can lay out any of them first.
    pub fn new(
        repository: &'a Repository,
        tool: &'a Tool,
        backup: &'a str,
        infile: &'a Path,
        directories: &'a [Directory],
    ) -> Self {
        Self { repository, tool, backup, infile, directories }
    }

    /// The name of a worker's object.
    pub fn object(&self, number: usize) -> String {
        let end = if self.tool.spec().compress_level > 0 { ".zst" } else { "" };
        format!("hot-{number:03}.tar{end}")
    }
}

impl Target for ToolTarget<'_> {
    fn streams(&self) -> bool {
        true
    }

    fn workers(&self, _wanted: usize) -> usize {
        self.tool.spec().streams
    }

    fn writer(&self, number: usize) -> Result<Box<dyn Writer>> {
        let object = self.object(number);
        let new = NewObject {
            kind: ObjectKind::Hot,
            backup: self.backup,
            object: &object,
            compress_level: self.tool.spec().compress_level,
            infile: self.infile,
        };
        let mut sending = self.tool.send(self.repository, &new)?;
        for directory in self.directories {
            sending.begin(&directory.path, Kind::Directory, directory.mode, 0, 0)?;
            sending.end()?;
        }
        Ok(Box::new(Stream { sending, begun: 0 }))
    }
}

struct Stream {
    sending: Sending,
    /// How much of the open file went through.
    begun: u64,
}

impl Writer for Stream {
    fn begin(&mut self, file: &ScannedFile, bytes: u64) -> Result<()> {
        self.begun = 0;
        self.sending.begin(&file.path, Kind::File, file.mode, file.modified, bytes)
    }

    fn store(&mut self, content: &[u8], parts: &mut [(usize, Part)]) -> Result<()> {
        for (_, part) in parts {
            let begin = part.skip as usize;
            let piece = content.get(begin..begin + part.bytes as usize).unwrap_or_default();
            if part.offset != self.begun {
                return Err(Error::new(ErrorKind::Io, "the pieces of a file came in another order"));
            }
            (part.pack, part.frame, part.frame_bytes, part.skip) = (0, self.sending.position(), 0, 0);
            self.sending.data(piece)?;
            self.begun += part.bytes;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        self.sending.end()
    }

    fn finish(self: Box<Self>) -> Result<Vec<Pack>> {
        self.sending.finish(Vec::new()).map(|object| vec![pack(object)])
    }
}

/// An object as the manifest names it.
fn pack(object: StoredObject) -> Pack {
    Pack {
        name: object.object.clone(),
        bytes: object.bytes,
        blake3: object.blake3.clone(),
        object: Some(Box::new(object)),
    }
}
