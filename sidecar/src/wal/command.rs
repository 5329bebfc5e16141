//! `strata wal push`: PostgreSQL's `archive_command`.
//!
//! PostgreSQL hands over one file at a time and waits. When only that one waits, this process archives it. When more segments wait, as after
//! the repository was away or under heavy load, it starts the [`super::pusher`] and waits only until its own file is
//! in the archive; the pusher goes on with the others meanwhile, and the `archive_command`s that follow find their files
//! archived and say so at once. Without a pusher (it died, it cannot be started, its outbox cannot be made) each command does its
//! own file's work.
//!
//! ```text
//!   archiver ──► strata wal push NAME ──┬─ noted, and in the archive ──────────► done
//!                                       ├─ a pusher works ──► wait for its note ► done
//!                                       ├─ others wait ──► start one ──► wait ──► done
//!                                       └─ archive it here ────────────────────► done
//! ```
//!
//! Success is said only when the archive has the file durably ([`super::push`], [`super::outbox`]). A failure says in the
//! server's log how much waits, once that is worth an alarm ([`super::backlog`]).

use super::backlog::{self, Backlog, Dropped, Pressure};
use super::name::WalName;
use super::outbox::Outbox;
use super::push::{self, Pushed};
use super::pusher;
use crate::config::{AtLimit, Config};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::Repository;
use crate::repository::lock::Lock;
use jiff::Timestamp;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(3);

/// What became of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the archive.
    Archived(Pushed),
    /// It was given up at the limit, as the configuration says. PostgreSQL may remove it.
    Dropped(String),
}

/// Archives a file for PostgreSQL.
pub fn archive(config: &Config, path: &Path) -> Result<Outcome> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let kind = push::parse(name, path)?;
    let data = data_directory(path);
    let outcome = match (&data, kind) {
        (Some(data), WalName::Segment(_)) => segment(config, data, name, path),
        _ => push::push(config, path),
    };
    match (outcome, data) {
        (Err(error), Some(data)) => refused(config, &data, name, kind, error),
        (outcome, _) => outcome.map(Outcome::Archived),
    }
}

/// The data directory whose `pg_wal` the file is in.
fn data_directory(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    let wal = path.parent()?;
    (wal.file_name()? == "pg_wal" && wal.join("archive_status").is_dir()).then(|| wal.parent().map(Path::to_owned))?
}

fn segment(config: &Config, data: &Path, name: &str, path: &Path) -> Result<Pushed> {
    let Some(outbox) = Outbox::open(config, data) else { return push::push(config, path) };
    if outbox.is_noted(name) {
        let repository = Repository::open_or_create(config)?;
        if let Some(pushed) = outbox.take_done(&repository, name, path) {
            return Ok(pushed);
        }
    }
    let _ = outbox.take_error(name);
    // A pusher works, or is started when there is something to look ahead to.
    if let Some(lock) = outbox.lock()? {
        let others = |other: &String| other != name && matches!(WalName::parse(other), Some(WalName::Segment(_)));
        if config.wal.push_jobs < 2 || !backlog::ready(data)?.iter().any(others) {
            return push::push(config, path);
        }
        if let Err(error) = start(config, data, lock) {
            tracing::warn!("WAL is archived one segment at a time: {error}");
            return push::push(config, path);
        }
    }
    wait(config, &outbox, name, path)
}

/// Starts a pusher, which holds the lock on. It belongs to no process group of the server's, which would end it with the
/// archiver.
fn start(config: &Config, data: &Path, lock: Lock) -> Result<()> {
    let program = std::env::current_exe()
        .map_err(|error| Error::new(ErrorKind::Io, format!("this program does not know where it is: {error}")))?;
    let child = Command::new(&program)
        .arg("--config")
        .arg(&config.file)
        .args(["wal", "pusher"])
        .arg(data)
        .stdin(lock.into_file().map_or_else(Stdio::null, Stdio::from))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .process_group(0)
        .spawn();
    child.map(drop).map_err(|error| Error::io("run", &program, error))
}

/// Waits until the pusher has archived a file. Archives it here when the pusher ends before.
fn wait(config: &Config, outbox: &Outbox, name: &str, path: &Path) -> Result<Pushed> {
    let began = Instant::now();
    let repository = Repository::open_or_create(config)?;
    loop {
        if let Some(pushed) = outbox.take_done(&repository, name, path) {
            return Ok(pushed);
        }
        if let Some(error) = outbox.take_error(name) {
            return Err(error);
        }
        if let Some(lock) = outbox.lock()? {
            drop(lock);
            // Its last note may have come between the two looks.
            if let Some(pushed) = outbox.take_done(&repository, name, path) {
                return Ok(pushed);
            }
            return outbox.take_error(name).map_or_else(|| push::push(config, path), Err);
        }
        if began.elapsed() > config.backup.archive_timeout {
            return Err(Error::new(ErrorKind::Archive, format!("{name} is not in the repository yet"))
                .detail("Other segments are being archived, or the repository does not answer.")
                .with_hint("Nothing is lost: PostgreSQL tries again."));
        }
        std::thread::sleep(POLL);
    }
}

/// A file that was not archived: how much waits, and whether it is given up.
fn refused(config: &Config, data: &Path, name: &str, kind: WalName, error: Error) -> Result<Outcome> {
    let Ok(backlog) = Backlog::look(&config.wal, data) else { return Err(error) };
    let Some(alarm) = backlog.alarm(config.wal.at_limit) else { return Err(error) };
    let droppable = backlog.pressure == Pressure::Full
        && config.wal.at_limit == AtLimit::Drop
        && matches!(kind, WalName::Segment(_))
        // What is wrong with the segment, or with what is set, is not that the repository is away.
        && matches!(error.kind, ErrorKind::Io | ErrorKind::DiskFull | ErrorKind::Archive | ErrorKind::Missing);
    if droppable && let Some(outbox) = Outbox::open(config, data) {
        let dropped = Dropped { name: name.to_owned(), at: Timestamp::now(), waiting: backlog.bytes };
        dropped.note(outbox.dir())?;
        return Ok(Outcome::Dropped(format!(
            "the WAL segment {name} is DROPPED and was not archived: {}. {alarm}. Take a backup: no recovery leads across the gap",
            error.message
        )));
    }
    let detail = match &error.detail {
        Some(detail) => format!("{detail}\nALARM: {alarm}."),
        None => format!("ALARM: {alarm}."),
    };
    Err(error.detail(detail))
}

/// Runs as the pusher of a data directory. The lock is this process' standard input when it was started for that.
pub fn run_pusher(config: &Config, data: &Path) -> Result<()> {
    let Some(outbox) = Outbox::open(config, data) else {
        return Err(Error::new(ErrorKind::Io, format!("there is no outbox for \"{}\"", data.display())));
    };
    let inherited = lock_is_inherited(&outbox);
    let own = if inherited { None } else { outbox.lock()? };
    if !inherited && own.is_none() {
        return Ok(());
    }
    pusher::run(config, data, &outbox)
}

fn lock_is_inherited(outbox: &Outbox) -> bool {
    let (Ok(here), Ok(there)) = (rustix::fs::fstat(std::io::stdin()), rustix::fs::stat(outbox.dir().join("lock")))
    else {
        return false;
    };
    (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
}
