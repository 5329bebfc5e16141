//! The outbox: notes between the pusher and the `archive_command`s that it works for.
//!
//! ```text
//!   STORE/wal-outbox/lock         held by the pusher as long as it works
//!                    NAME.ok      this very file of pg_wal is in the archive: what tells it from others, and its hash
//!                    NAME.error   why it is not
//!                    dropped.jsonl  segments that were given up at the limit
//! ```
//!
//! Notes are not durable and need not be: one that is lost costs a second look at the archive. A note alone is not
//! believed either: the archive must have the file with that hash. So an outbox that came from another machine, or a repository that
//! was replaced, makes nobody say that something is archived which is not.

use super::name::WalName;
use super::push::{Pushed, SourceFile};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::Repository;
use crate::repository::lock::Lock;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use strata_catalog::names;

/// Its name in a store.
pub const DIRECTORY: &str = "wal-outbox";

/// The outbox of a data directory.
#[derive(Clone, Debug)]
pub struct Outbox {
    dir: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Done {
    source: SourceFile,
    blake3: String,
    stored_bytes: u64,
    already_archived: bool,
}

#[derive(Serialize, Deserialize)]
struct Failed {
    kind: String,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
}

impl Outbox {
    /// Where it is.
    pub fn path(config: &Config, data: &Path) -> PathBuf {
        config.wal.outbox.clone().unwrap_or_else(|| {
            let store = config.member.store.clone().unwrap_or_else(|| names::default_store(data));
            store.join(DIRECTORY)
        })
    }

    /// Opens it, and makes what is missing. None when it cannot be made: then nothing looks ahead.
    pub fn open(config: &Config, data: &Path) -> Option<Self> {
        let dir = Self::path(config, data);
        if !dir.is_dir() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).ok()?;
        }
        Some(Self { dir })
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The lock that a pusher holds as long as it works. None: one works now.
    pub fn lock(&self) -> Result<Option<Lock>> {
        match Lock::acquire(&self.dir.join("lock"), "the pusher") {
            Ok(lock) => Ok(Some(lock)),
            Err(error) if error.kind == ErrorKind::Locked => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn ok(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.ok"))
    }

    fn error(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.error"))
    }

    /// Notes that a file is in the archive, durably there.
    pub fn note_done(&self, source: &SourceFile, blake3: &str, pushed: &Pushed) -> Result<()> {
        let (stored_bytes, already_archived) = (pushed.stored_bytes, pushed.already_archived);
        let done = Done { source: source.clone(), blake3: blake3.to_owned(), stored_bytes, already_archived };
        self.write(&self.ok(&pushed.name), &done)
    }

    /// Notes why a file is not in the archive.
    pub fn note_error(&self, name: &str, error: &Error) -> Result<()> {
        let failed = Failed {
            kind: error.kind.to_string(),
            message: error.message.clone(),
            detail: error.detail.clone(),
            hint: error.hint().map(str::to_owned),
        };
        self.write(&self.error(name), &failed)
    }

    fn write(&self, path: &Path, note: &impl Serialize) -> Result<()> {
        let text = serde_json::to_vec(note)
            .map_err(|error| Error::new(ErrorKind::Io, format!("could not write JSON: {error}")))?;
        let temporary = path.with_extension("tmp");
        std::fs::write(&temporary, text)
            .and_then(|()| std::fs::rename(&temporary, path))
            .map_err(|error| Error::io("write", path, error))
    }

    /// True when there is a note about the file, whatever it says.
    pub fn is_noted(&self, name: &str) -> bool {
        self.ok(name).exists()
    }

    /// What was noted about the file at `path` of `pg_wal`, if the archive agrees. The note is taken: it is given once.
    pub fn take_done(&self, repository: &Repository, name: &str, path: &Path) -> Option<Pushed> {
        let note = self.ok(name);
        let done: Done = serde_json::from_slice(&std::fs::read(&note).ok()?).ok()?;
        let source = SourceFile::of(&std::fs::metadata(path).ok()?);
        let archived = repository.read_wal_note(name).ok().flatten();
        // Whatever it says, it is of no more use.
        let _ = std::fs::remove_file(&note);
        let (archived, _) = archived?;
        (done.source == source && archived.blake3 == done.blake3).then(|| Pushed {
            name: name.to_owned(),
            bytes: archived.bytes,
            stored_bytes: done.stored_bytes,
            already_archived: done.already_archived,
        })
    }

    /// Why the file is not in the archive, if that was noted. The note is taken.
    pub fn take_error(&self, name: &str) -> Option<Error> {
        let path = self.error(name);
        let bytes = std::fs::read(&path).ok()?;
        let _ = std::fs::remove_file(&path);
        let failed: Failed = serde_json::from_slice(&bytes).ok()?;
        let mut error = Error::new(ErrorKind::named(&failed.kind).unwrap_or(ErrorKind::Archive), failed.message);
        if let Some(detail) = failed.detail {
            error = error.detail(detail);
        }
        Some(match failed.hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        })
    }

    /// Removes notes that nobody will ask for: those about files that do not wait.
    pub fn sweep(&self, waiting: &[String]) {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let stale = name.to_str().and_then(|name| name.rsplit_once('.')).is_some_and(|(name, kind)| {
                matches!(kind, "ok" | "error" | "tmp")
                    && WalName::parse(name).is_some()
                    && !waiting.iter().any(|waits| waits == name)
            });
            if stale {
                // One that stays is swept the next time.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}
