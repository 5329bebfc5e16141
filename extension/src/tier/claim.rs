//! Whose store it is.
//!
//! Two servers that write to one store would sweep away each other's files: each knows only its own catalog. So a server that is no standby
//! claims its store before it writes to it or removes a file: the file `primary` there has its system identifier and its timeline.
//!
//! * A store that **another system** has claimed takes no fragment (an ERROR says so), and loses no file. After pg_upgrade, which gives a
//!   cluster another identifier, or when the other cluster is no more, its owner removes the file `primary`.
//! * A **later timeline** of the same system is a standby that shared the store and was promoted: it takes the store over. If the old primary
//!   still runs, it may add files, which the new one sweeps away some time, and removes none.
//! * A **standby** writes nothing. It shares a store that is claimed, and removes files only from one that is not.

use crate::error::StrataError;
use crate::guc;
use pgrx::pg_sys;
use std::cell::Cell;
use std::io::{Error, ErrorKind, Result, Write};
use std::path::PathBuf;

/// System identifier and timeline.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Claim {
    system: u64,
    timeline: u32,
}

impl Claim {
    /// That of this server, which is no standby.
    fn own() -> Self {
        // SAFETY: both read shared state that does not change any more.
        unsafe { Self { system: pg_sys::GetSystemIdentifier(), timeline: pg_sys::GetWALInsertionTimeLine() } }
    }

    /// What the store says; None: nobody has claimed it.
    fn read() -> Result<Option<Self>> {
        let text = match std::fs::read_to_string(path()) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let mut words = text.split_whitespace();
        match (words.next().map(str::parse), words.next().map(str::parse)) {
            (Some(Ok(system)), Some(Ok(timeline))) => Ok(Some(Self { system, timeline })),
            _ => Err(Error::new(ErrorKind::InvalidData, format!("{} is damaged; remove it", path().display()))),
        }
    }

    fn write(self) -> Result<()> {
        let temporary = path().with_extension(std::process::id().to_string());
        let mut file = std::fs::File::create(&temporary)?;
        writeln!(file, "{} {}", self.system, self.timeline)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path())
    }
}

fn path() -> PathBuf {
    guc::store_directory().join("primary")
}

/// How a claim ended.
enum Claimed {
    /// The store is this server's.
    Own,
    /// A server that was promoted to this timeline uses it.
    Later(u32),
    /// Another system uses it.
    Other(u64),
}

fn claim() -> Result<Claimed> {
    let own = Claim::own();
    match Claim::read()? {
        Some(found) if found == own => Ok(Claimed::Own),
        Some(found) if found.system != own.system => Ok(Claimed::Other(found.system)),
        Some(found) if found.timeline > own.timeline => Ok(Claimed::Later(found.timeline)),
        _ => own.write().map(|()| Claimed::Own),
    }
}

thread_local! {
    static MAY_WRITE: Cell<bool> = const { Cell::new(false) };
}

/// Claims the store, which is there, before a fragment is written to it. Raises an ERROR if it is another system's.
pub fn for_writing() -> Result<()> {
    if !MAY_WRITE.get() {
        if let Claimed::Other(system) = claim()? {
            StrataError::StoreOfAnother { claim: path().display().to_string(), system }.raise();
        }
        MAY_WRITE.set(true);
    }
    Ok(())
}

/// Whether this server, `recovering` or not, may remove files from the store; says so if not.
pub fn may_remove_files(recovering: bool) -> bool {
    if !guc::store_directory().is_dir() {
        return false;
    }
    if recovering {
        return matches!(Claim::read(), Ok(None));
    }
    let why = match claim() {
        Ok(Claimed::Own) => return true,
        Ok(Claimed::Later(timeline)) => format!("a server that was promoted to timeline {timeline} uses it"),
        Ok(Claimed::Other(system)) => format!("the server with the system identifier {system} uses it"),
        Err(e) => e.to_string(),
    };
    pgrx::warning!("no file is removed from the store \"{}\": {why}", guc::store_directory().display());
    false
}
