//! What a repository needs of the place that it is in.
//!
//! ```text
//!   Repository (names, documents, packs, WAL) ──► Storage ──► Directory: files (fsio), flock
//!                                                         └─► Bucket: requests, leases
//! ```
//!
//! Names are paths below the repository's root, in the form in which messages show them.
//!
//! **Promises**, whatever the place. What is published under a name is whole, and durable when the call returns. [`Storage::write_new`] and
//! [`Upload::publish_new`] never replace anything, and say when something is there. A reader sees a whole object or none. What was written
//! is found by every reader from then on. Something that cannot be looked at is an error, never taken for something that is not there.
//! An upload that was dropped before it was published leaves nothing that anybody sees.
//!
//! All calls block; the callers are threads of their own.

pub mod bucket;
pub mod client;
mod copy;
mod credentials;
pub mod lease;

use super::fsio::{self, Pending, Published};
use super::lock::Lock;
use super::sealed;
use crate::config::RepositoryConfig;
use crate::error::{AtPath, Error, Result};
use bucket::{Bucket, BucketUpload, Object};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind as IoKind, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// The place that a repository is in.
#[derive(Clone, Debug)]
pub enum Storage {
    /// A directory.
    Directory,
    /// A bucket.
    Bucket(Arc<Bucket>),
}

/// A file of this machine.
#[derive(Clone, Debug)]
pub struct Scratch {
    /// Where it is.
    pub path: PathBuf,
    _temporary: Option<Arc<tempfile::TempDir>>,
}

/// Something that is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

impl Storage {
    /// The place that a configuration names.
    pub fn of(config: &RepositoryConfig) -> Result<Self> {
        match &config.s3 {
            None => Ok(Self::Directory),
            Some(s3) => Ok(Self::Bucket(Bucket::open(s3, config.root())?)),
        }
    }

    /// True when it is a directory of this machine.
    pub fn is_directory(&self) -> bool {
        matches!(self, Self::Directory)
    }

    /// Reads a whole object; none when it is not there.
    pub fn read(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Directory => fsio::read_optional(path),
            Self::Bucket(bucket) => bucket.read(path),
        }
    }

    /// Reads up to `most` bytes from an object's end. Also says how large the object is. None when it is not there.
    pub fn read_end(&self, path: &Path, most: u64) -> Result<Option<(Vec<u8>, u64)>> {
        match self {
            Self::Directory => {
                let Some(reader) = self.open(path)? else { return Ok(None) };
                let take = reader.size().min(most);
                let mut tail = vec![0; take as usize];
                reader.read_exact_at(&mut tail, reader.size() - take).at("read", path)?;
                Ok(Some((tail, reader.size())))
            }
            Self::Bucket(bucket) => bucket.read_end(path, most),
        }
    }

    /// Opens an object for reading at any place; none when it is not there.
    pub fn open(&self, path: &Path) -> Result<Option<Reader>> {
        match self {
            Self::Directory => match File::open(path) {
                Ok(file) => {
                    let size = file.metadata().at("look at", path)?.len();
                    Ok(Some(Reader::File(file, size)))
                }
                Err(error) if error.kind() == IoKind::NotFound => Ok(None),
                Err(error) => Err(Error::io("open", path, error)),
            },
            Self::Bucket(bucket) => Ok(bucket.open_object(path)?.map(Reader::Object)),
        }
    }

    /// The size of an object; none when it is not there, as what was listed a moment ago may have been expired.
    pub fn size(&self, path: &Path) -> Result<Option<u64>> {
        match self {
            Self::Directory => fsio::size(path),
            Self::Bucket(bucket) => Ok(bucket.look(path)?.map(|(size, _)| size)),
        }
    }

    /// True when there is an object of this name.
    pub fn exists(&self, path: &Path) -> Result<bool> {
        match self {
            Self::Directory => path.try_exists().at("look at", path),
            Self::Bucket(bucket) => Ok(bucket.look(path)?.is_some()),
        }
    }

    /// True when there is a folder of this name.
    pub fn has_folder(&self, path: &Path) -> Result<bool> {
        match self {
            Self::Directory => Ok(path.is_dir()),
            Self::Bucket(bucket) => bucket.has_folder(path),
        }
    }

    /// When an object was published; none when it is not there.
    pub fn modified(&self, path: &Path) -> Result<Option<SystemTime>> {
        match self {
            Self::Directory => match std::fs::metadata(path).and_then(|meta| meta.modified()) {
                Ok(time) => Ok(Some(time)),
                Err(error) if error.kind() == IoKind::NotFound => Ok(None),
                Err(error) => Err(Error::io("look at", path, error)),
            },
            Self::Bucket(bucket) => Ok(bucket.look(path)?.map(|(_, modified)| modified)),
        }
    }

    /// The names in a folder, sorted, without temporary ones; empty when it is not there.
    pub fn list(&self, folder: &Path) -> Result<Vec<String>> {
        match self {
            Self::Directory => fsio::list(folder),
            Self::Bucket(bucket) => {
                let (mut names, folders) = bucket.list(folder)?;
                names.extend(folders);
                names.sort_unstable();
                Ok(names)
            }
        }
    }

    /// The names of the folders in a folder, sorted.
    pub fn folders(&self, folder: &Path) -> Result<Vec<String>> {
        match self {
            Self::Directory => Ok(fsio::list(folder)?.into_iter().filter(|name| folder.join(name).is_dir()).collect()),
            Self::Bucket(bucket) => Ok(bucket.list(folder)?.1),
        }
    }

    /// The objects in a folder and in the folders in it, in order, without temporary ones; empty when it is not there.
    pub fn walk(&self, folder: &Path) -> Result<Vec<Listed>> {
        match self {
            Self::Directory => {
                let mut found = Vec::new();
                walk_directory(folder, &mut found)?;
                Ok(found)
            }
            Self::Bucket(bucket) => bucket.walk(folder),
        }
    }

    /// Makes a folder and what is missing above it.
    pub fn create_folder(&self, folder: &Path) -> Result<()> {
        match self {
            Self::Directory => fsio::create_dirs(folder),
            Self::Bucket(_) => Ok(()),
        }
    }

    /// Writes an object in place of the one that is there. Its folder is made when it is missing.
    pub fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Directory => {
                fsio::create_dirs(fsio::parent(path))?;
                fsio::write_atomic(path, bytes)
            }
            Self::Bucket(bucket) => bucket.write(path, bytes),
        }
    }

    /// Writes an object unless one is there. Its folder is made when it is missing.
    pub fn write_new(&self, path: &Path, bytes: &[u8]) -> Result<Published> {
        match self {
            Self::Directory => {
                fsio::create_dirs(fsio::parent(path))?;
                fsio::write_new(path, bytes)
            }
            Self::Bucket(bucket) => bucket.write_new(path, bytes),
        }
    }

    /// Begins to write an object piece by piece; it is seen when it is published.
    pub fn create(&self, path: &Path) -> Result<Upload> {
        match self {
            Self::Directory => {
                fsio::create_dirs(fsio::parent(path))?;
                Ok(Upload::Pending(Pending::create(path)?))
            }
            Self::Bucket(bucket) => Ok(Upload::Bucket(bucket.create(path)?)),
        }
    }

    /// Like [`Storage::create`], in a folder that counts for nothing until something else names it: a part of the object may be seen
    /// before it is published, and stays when it never is.
    pub fn create_unseen(&self, path: &Path) -> Result<Upload> {
        match self {
            Self::Directory => {
                let file = OpenOptions::new().write(true).create_new(true).mode(fsio::FILE_MODE).open(path);
                Ok(Upload::Unseen(file.at("create", path)?, path.to_owned()))
            }
            Self::Bucket(bucket) => Ok(Upload::Bucket(bucket.create(path)?)),
        }
    }

    /// A file of this machine for something that another program reads: the object's own path where that is one, else a temporary file, which
    /// goes with what is returned.
    pub fn scratch(&self, path: &Path) -> Result<Scratch> {
        if self.is_directory() {
            fsio::create_dirs(fsio::parent(path))?;
            return Ok(Scratch { path: path.to_owned(), _temporary: None });
        }
        let dir = tempfile::Builder::new().prefix("strata-").tempdir();
        let dir = dir.at("create a directory in", &std::env::temp_dir())?;
        let path = dir.path().join(path.file_name().unwrap_or_else(|| OsStr::new("file")));
        Ok(Scratch { path, _temporary: Some(Arc::new(dir)) })
    }

    /// An object as a file of this machine: itself, or a temporary copy. None when it is not there.
    pub fn as_file(&self, path: &Path) -> Result<Option<Scratch>> {
        let scratch = self.scratch(path)?;
        if self.is_directory() {
            return Ok(path.try_exists().at("look at", path)?.then_some(scratch));
        }
        let Some(reader) = self.open(path)? else { return Ok(None) };
        let mut file = File::create(&scratch.path).at("create", &scratch.path)?;
        reader.for_each_piece(path, |piece| file.write_all(piece).at("write", &scratch.path))?;
        Ok(Some(scratch))
    }

    /// Removes an object; nothing happens when it is not there. It is durable with [`Storage::sync`].
    pub fn remove(&self, path: &Path) -> Result<()> {
        match self {
            Self::Directory => match std::fs::remove_file(path) {
                Err(error) if error.kind() == IoKind::NotFound => Ok(()),
                other => other.at("remove", path),
            },
            Self::Bucket(bucket) => bucket.remove(path),
        }
    }

    /// Removes a folder and all that is in it.
    pub fn remove_all(&self, folder: &Path) -> Result<()> {
        match self {
            Self::Directory => {
                std::fs::remove_dir_all(folder).at("remove", folder)?;
                fsio::fsync_dir(fsio::parent(folder))
            }
            Self::Bucket(bucket) => bucket.remove_all(folder),
        }
    }

    /// Makes what was removed from a folder, or written unseen into it, durable.
    pub fn sync(&self, folder: &Path) -> Result<()> {
        match self {
            Self::Directory => fsio::fsync_dir(folder),
            Self::Bucket(_) => Ok(()),
        }
    }

    /// Makes an object durable that another process may have published just now.
    pub fn confirm(&self, path: &Path, root: &Path) -> Result<()> {
        match self {
            Self::Directory => fsio::confirm(path, root),
            Self::Bucket(_) => Ok(()),
        }
    }

    /// Removes what interrupted writes left in a folder.
    pub fn sweep(&self, folder: &Path) -> Result<()> {
        match self {
            Self::Directory => fsio::sweep_temporary(folder).map(drop),
            Self::Bucket(_) => Ok(()),
        }
    }

    /// Takes the lock of this name, or fails at once when another process has it. `what` says what it is for.
    pub fn lock(&self, path: &Path, what: &str) -> Result<Lock> {
        match self {
            Self::Directory => Lock::acquire(path, what),
            Self::Bucket(bucket) => bucket.lock(path, what).map(Lock::from),
        }
    }

    /// Takes the lock of this name together with others that share it; waits for a holder who does not share.
    pub fn share(&self, path: &Path) -> Result<Lock> {
        match self {
            Self::Directory => Lock::share(path),
            Self::Bucket(bucket) => bucket.share(path).map(Lock::from),
        }
    }

    /// Takes the lock of this name together with others that share it, or fails at once when one who does not share has it. With `create` it is
    /// made when it is not there. None when it is not there, or may not be used.
    pub fn try_share(&self, path: &Path, create: bool) -> Result<Option<Lock>> {
        match self {
            Self::Directory => Lock::try_share(path, create),
            Self::Bucket(bucket) => Ok(bucket.try_share(path)?.map(Lock::from)),
        }
    }

    /// Reads a sealed document; none when it is not there.
    pub fn read_sealed<T: DeserializeOwned>(&self, path: &Path) -> Result<Option<T>> {
        match self.read(path)? {
            Some(bytes) => sealed::unseal(&bytes, format_args!("\"{}\"", path.display())).map(Some),
            None => Ok(None),
        }
    }

    /// Reads a sealed document that must be there.
    pub fn read_sealed_required<T: DeserializeOwned>(&self, path: &Path) -> Result<T> {
        let absent = || Error::io("read", path, std::io::Error::from(IoKind::NotFound));
        self.read_sealed(path)?.ok_or_else(absent)
    }

    /// Writes a sealed document in place of the one that is there.
    pub fn write_sealed<T: Serialize>(&self, path: &Path, content: &T) -> Result<()> {
        self.write(path, &sealed::seal(content)?)
    }

    /// Writes a sealed document unless one is there.
    pub fn write_new_sealed<T: Serialize>(&self, path: &Path, content: &T) -> Result<Published> {
        self.write_new(path, &sealed::seal(content)?)
    }
}

fn walk_directory(folder: &Path, found: &mut Vec<Listed>) -> Result<()> {
    for name in fsio::list(folder)? {
        let path = folder.join(name);
        match std::fs::metadata(&path) {
            Ok(meta) if meta.is_dir() => walk_directory(&path, found)?,
            Ok(meta) => found.push(Listed { path, bytes: meta.len() }),
            // What was listed a moment ago may have been expired.
            Err(error) if error.kind() == IoKind::NotFound => {}
            Err(error) => return Err(Error::io("look at", &path, error)),
        }
    }
    Ok(())
}

/// An object that is being written.
pub enum Upload {
    /// A file under a temporary name.
    Pending(Pending),
    /// A file under its name.
    Unseen(File, PathBuf),
    /// An object of a bucket.
    Bucket(BucketUpload),
}

impl Upload {
    /// Appends bytes.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Pending(pending) => pending.write_all(bytes),
            Self::Unseen(file, path) => file.write_all(bytes).at("write", path),
            Self::Bucket(upload) => upload.write_all(bytes),
        }
    }

    /// Makes it whole and durable, in place of what was there.
    pub fn publish(self) -> Result<()> {
        match self {
            Self::Pending(pending) => pending.publish(),
            Self::Unseen(file, path) => file.sync_all().at("fsync", &path),
            Self::Bucket(upload) => upload.publish(),
        }
    }

    /// Makes it whole and durable unless an object of its name is there.
    pub fn publish_new(self) -> Result<Published> {
        match self {
            Self::Pending(pending) => pending.publish_new(),
            // It was made as a new file.
            Self::Unseen(file, path) => file.sync_all().at("fsync", &path).map(|()| Published::New),
            Self::Bucket(upload) => upload.publish_new(),
        }
    }
}

/// An object that is being read.
#[derive(Debug)]
pub enum Reader {
    /// A file, and its size.
    File(File, u64),
    /// An object of a bucket.
    Object(Object),
}

impl Reader {
    /// The object's size.
    pub fn size(&self) -> u64 {
        match self {
            Self::File(_, size) => *size,
            Self::Object(object) => object.size,
        }
    }

    /// Fills the buffer from `offset` on. An object that ends before is [`IoKind::UnexpectedEof`].
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        match self {
            Self::File(file, _) => file.read_exact_at(buffer, offset),
            Self::Object(object) => object.read_exact_at(buffer, offset),
        }
    }

    /// Gives all of it to `take`, in order. `path` names it in errors.
    pub fn for_each_piece(&self, path: &Path, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut buffer = vec![0; self.piece()];
        let mut position = 0;
        while position < self.size() {
            let bytes = (self.size() - position).min(buffer.len() as u64) as usize;
            let piece = buffer.get_mut(..bytes).unwrap_or_default();
            self.read_exact_at(piece, position).map_err(|error| Error::reading(path, error))?;
            take(piece)?;
            position += bytes as u64;
        }
        Ok(())
    }

    /// How much is best read at once.
    pub fn piece(&self) -> usize {
        match self {
            Self::File(..) => 1 << 20,
            Self::Object(_) => bucket::PART,
        }
    }
}
