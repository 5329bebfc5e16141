//! Files that survive a crash: write under a temporary name, fsync, rename, fsync the directory.
//!
//! A reader therefore sees a whole file or none, whatever process dies when. Temporary names begin with a dot and end in
//! `.tmp`, so everything that lists a repository leaves them out.

use crate::error::{AtPath, Error, ErrorKind, Result};
use rustix::fs::{CWD, RenameFlags};
use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind as IoKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Mode of files in a repository.
pub const FILE_MODE: u32 = 0o640;
/// Mode of directories in a repository.
pub const DIR_MODE: u32 = 0o750;

/// The directory that holds `path`.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes the entries of a directory durable.
pub fn fsync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|file| file.sync_all()).at("fsync the directory", dir)
}

/// Creates a directory and what is missing above it, durably.
pub fn create_dirs(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let above = parent(dir);
    create_dirs(above)?;
    match DirBuilder::new().mode(DIR_MODE).create(dir) {
        Ok(()) => fsync_dir(above),
        // Whoever made it may not have made it durable yet.
        Err(error) if error.kind() == IoKind::AlreadyExists && dir.is_dir() => fsync_dir(above),
        Err(error) => Err(Error::io("create the directory", dir, error)),
    }
}

/// Makes a published file's name durable. Its content is, since files are synchronized before they get their names; but
/// the process that published it may have died before it synchronized the directories.
pub fn confirm(path: &Path, root: &Path) -> Result<()> {
    let mut dir = parent(path);
    loop {
        fsync_dir(dir)?;
        if dir == root || !dir.starts_with(root) {
            return Ok(());
        }
        dir = parent(dir);
    }
}

/// A file under a temporary name beside its final one. Dropped before it is published, it is removed.
pub struct Pending {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    published: bool,
}

/// What became of a [`Pending::publish_new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// The file is there now.
    New,
    /// A file of that name was there already, and was left alone.
    Existing,
}

impl Pending {
    /// Begins to write `target`.
    pub fn create(target: &Path) -> Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let name = target.file_name().unwrap_or_else(|| OsStr::new("file")).to_string_lossy();
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        // Two machines, or two containers, may have processes of the same number.
        let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos());
        let temporary = parent(target).join(format!(".{name}.{}-{count}-{now:x}.tmp", std::process::id()));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(&temporary)
            .at("create", &temporary)?;
        Ok(Self { file, temporary, target: target.to_owned(), published: false })
    }

    /// Appends bytes.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| Error::io("write", &self.target, error))
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|error| Error::io("fsync", &self.target, error))
    }

    /// Makes the file durable under its final name, in place of what was there.
    pub fn publish(mut self) -> Result<()> {
        self.sync()?;
        std::fs::rename(&self.temporary, &self.target).at("rename a temporary file to", &self.target)?;
        self.published = true;
        fsync_dir(parent(&self.target))
    }

    /// Makes the file durable under its final name unless a file of that name is there.
    pub fn publish_new(mut self) -> Result<Published> {
        self.sync()?;
        match rustix::fs::renameat_with(CWD, &self.temporary, CWD, &self.target, RenameFlags::NOREPLACE) {
            Ok(()) => self.published = true,
            Err(rustix::io::Errno::EXIST) => return self.existing(),
            // File systems without RENAME_NOREPLACE have hard links, which refuse to replace as well.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                match std::fs::hard_link(&self.temporary, &self.target) {
                    Ok(()) => {}
                    Err(error) if error.kind() == IoKind::AlreadyExists => return self.existing(),
                    Err(error) => return Err(Error::io("link a temporary file to", &self.target, error)),
                }
            }
            Err(error) => return Err(Error::io("rename a temporary file to", &self.target, error)),
        }
        fsync_dir(parent(&self.target))?;
        Ok(Published::New)
    }

    fn existing(&self) -> Result<Published> {
        fsync_dir(parent(&self.target))?;
        Ok(Published::Existing)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.published {
            // The error that led here is reported by whoever got it; a file left behind is swept later.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// Writes a whole file durably, in place of what was there.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut pending = Pending::create(path)?;
    pending.write_all(bytes)?;
    pending.publish()
}

/// Writes a whole file durably unless it exists.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<Published> {
    let mut pending = Pending::create(path)?;
    pending.write_all(bytes)?;
    pending.publish_new()
}

/// Reads a whole file; none when it is not there.
pub fn read_optional(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == IoKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path, error)),
    }
}

/// The size of a file; none when it is not there, as what was listed a moment ago may have been expired.
pub fn size(path: &Path) -> Result<Option<u64>> {
    match std::fs::metadata(path) {
        Ok(meta) => Ok(Some(meta.len())),
        Err(error) if error.kind() == IoKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("look at", path, error)),
    }
}

/// True for names that only a write in progress, or an interrupted one, has.
pub fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(".tmp")
}

/// The names in a directory, sorted, without temporary ones; empty when the directory is not there.
pub fn list(dir: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == IoKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", dir, error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.at("list", dir)?.file_name();
        let name = name.into_string().map_err(|name| {
            Error::new(ErrorKind::Io, format!("a name in \"{}\" is not UTF-8: {name:?}", dir.display()))
        })?;
        if !is_temporary(&name) {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Removes temporary files of `dir` that no process has touched for an hour.
pub fn sweep_temporary(dir: &Path) -> Result<u64> {
    let mut removed = 0;
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(0) };
    for entry in entries {
        let entry = entry.at("list", dir)?;
        let old = || {
            let modified = entry.metadata().and_then(|meta| meta.modified()).ok()?;
            Some(modified.elapsed().ok()?.as_secs() > 3600)
        };
        if entry.file_name().to_str().is_some_and(is_temporary) && old() == Some(true) {
            let path = entry.path();
            match std::fs::remove_file(&path) {
                Ok(()) => removed += 1,
                Err(error) if error.kind() == IoKind::NotFound => {}
                Err(error) => return Err(Error::io("remove", &path, error)),
            }
        }
    }
    Ok(removed)
}

/// BLAKE3 and size of a file, read to its end; none when it is not there.
pub fn hash_file(path: &Path) -> Result<Option<(String, u64)>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == IoKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open", path, error)),
    };
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                hasher.update(buffer.get(..n).unwrap_or_default());
                bytes += n as u64;
            }
            Err(error) if error.kind() == IoKind::Interrupted => {}
            Err(error) => return Err(Error::io("read", path, error)),
        }
    }
    Ok(Some((hasher.finalize().to_hex().to_string(), bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/file");
        create_dirs(parent(&path)).unwrap();
        assert_eq!(write_new(&path, b"one").unwrap(), Published::New);
        assert_eq!(write_new(&path, b"two").unwrap(), Published::Existing);
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        write_atomic(&path, b"three").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"three");
        assert_eq!(std::fs::read_dir(parent(&path)).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn what_is_not_published_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut pending = Pending::create(&dir.path().join("file")).unwrap();
        pending.write_all(b"half").unwrap();
        assert_eq!(list(dir.path()).unwrap(), Vec::<String>::new());
        drop(pending);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
