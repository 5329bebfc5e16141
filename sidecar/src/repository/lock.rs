//! Locks between processes. In a directory: an advisory lock (`flock`) on a file that stays. The kernel gives it up when its holder dies,
//! however it dies, so a lock is never stale. In a bucket: a lease ([`super::storage::lease`]).

use super::storage::lease::Lease;
use crate::error::{AtPath, Error, ErrorKind, Result};
use rustix::fs::FlockOperation;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

/// A held lock. Dropping it gives it up.
#[derive(Debug)]
pub struct Lock(Held);

#[derive(Debug)]
enum Held {
    Flock(File),
    Lease(Arc<Lease>),
}

impl From<Arc<Lease>> for Lock {
    fn from(lease: Arc<Lease>) -> Self {
        Self(Held::Lease(lease))
    }
}

impl Lock {
    /// Fails when the lock was lost: work that relies on it must not go on.
    pub fn require_held(&self) -> Result<()> {
        match &self.0 {
            Held::Flock(_) => Ok(()),
            Held::Lease(lease) => lease.require_held(),
        }
    }

    /// Takes the lock at `path`, or fails at once when another process has it. `what` says what it is for.
    pub fn acquire(path: &Path, what: &str) -> Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(super::fsio::FILE_MODE)
            .open(path)
            .at("open the lock file", path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                // Who holds it is a courtesy; the lock itself is what counts.
                let _ = file.read_to_string(&mut holder);
                let mut error = Error::new(ErrorKind::Locked, format!("another process holds the lock for {what}"));
                error = error.detail(match holder.trim() {
                    "" => format!("The lock file is \"{}\".", path.display()),
                    holder => format!("The lock file is \"{}\", held by process {holder}.", path.display()),
                });
                return Err(error);
            }
            Err(error) => return Err(Error::io("lock", path, error)),
        }
        let note = || -> std::io::Result<()> {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            write!(file, "{}", std::process::id())
        };
        // A full disk must not keep anyone from taking the lock that lets them clean up.
        let mut note = note;
        let _ = note();
        Ok(Self(Held::Flock(file)))
    }

    /// Takes the lock at `path` together with others that share it; waits for a holder who does not share.
    pub fn share(path: &Path) -> Result<Self> {
        let open = || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(super::fsio::FILE_MODE)
                .open(path)
        };
        let file = open().at("open the lock file", path)?;
        loop {
            match rustix::fs::flock(&file, FlockOperation::LockShared) {
                Ok(()) => return Ok(Self(Held::Flock(file))),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Error::io("lock", path, error)),
            }
        }
    }

    /// Takes the lock at `path` together with others that share it, or fails at once when one who does not share has it. The file is only read; with
    /// `create` it is made when it is not there. None when it is not there, or cannot be opened.
    pub fn try_share(path: &Path, create: bool) -> Result<Option<Self>> {
        let mut opened = File::open(path);
        if create && matches!(&opened, Err(error) if error.kind() == std::io::ErrorKind::NotFound) {
            let mut options = OpenOptions::new();
            opened =
                options.read(true).write(true).create(true).truncate(false).mode(super::fsio::FILE_MODE).open(path);
        }
        let Ok(file) = opened else { return Ok(None) };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(Some(Self(Held::Flock(file)))),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(Error::new(ErrorKind::Locked, format!("another process holds the lock \"{}\"", path.display())))
            }
            Err(error) => Err(Error::io("lock", path, error)),
        }
    }

    /// The file that the lock is on; none when it is a lease. The lock lasts as long as the file is open anywhere, so a child
    /// process that gets it holds the lock on.
    pub fn into_file(self) -> Option<File> {
        match self.0 {
            Held::Flock(file) => Some(file),
            Held::Lease(_) => None,
        }
    }

    /// Takes a lock on a directory itself, which leaves no file.
    pub fn of_directory(dir: &Path, what: &str) -> Result<Self> {
        let file = File::open(dir).at("open", dir)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self(Held::Flock(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(Error::new(ErrorKind::Locked, format!("another process holds the lock for {what}")))
            }
            Err(error) => Err(Error::io("lock", dir, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_share_keep_the_other_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let (first, second) = (Lock::share(&path).unwrap(), Lock::share(&path).unwrap());
        assert_eq!(Lock::acquire(&path, "the test").unwrap_err().kind, ErrorKind::Locked);
        drop((first, second));
        let alone = Lock::acquire(&path, "the test").unwrap();
        assert_eq!(Lock::try_share(&path, false).unwrap_err().kind, ErrorKind::Locked);
        drop(alone);
        let shared = Lock::try_share(&path, false).unwrap();
        assert_eq!(Lock::acquire(&path, "the test").unwrap_err().kind, ErrorKind::Locked);
        drop(shared);
        let other = dir.path().join("other");
        assert!(Lock::try_share(&other, false).unwrap().is_none());
        assert!(Lock::try_share(&other, true).unwrap().is_some());
    }

    #[test]
    fn the_second_one_is_refused_until_the_first_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = Lock::acquire(&path, "the test").unwrap();
        let error = Lock::acquire(&path, "the test").unwrap_err();
        assert_eq!(error.kind, ErrorKind::Locked);
        assert!(error.detail.unwrap().contains(&std::process::id().to_string()));
        drop(first);
        Lock::acquire(&path, "the test").unwrap();
    }
}
