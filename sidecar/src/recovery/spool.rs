//! Reads WAL ahead of PostgreSQL during a recovery.
//!
//! PostgreSQL asks for one segment at a time and waits. While it replays one, threads here decompress and check the next
//! few into the directory `wal-spool` of the new store; `strata wal fetch` then only renames. The spool is a shortcut: a segment
//! that is not in it is fetched from the archive as ever, and a spool that is left over is of no harm, since names are taken
//! only once and content was checked before it got its name. A data directory may be on another file system than the store; then
//! a segment is copied instead.
//!
//! ```text
//!   archive ──► spool/NAME ──rename──► pg_wal/RECOVERYXLOG
//!                 ▲   at most wal.fetch_ahead files, those behind the last one that was asked for,
//!                 │   wal.fetch_jobs of them at once
//!   fetch ──► spool/asked
//! ```

use crate::config::{Config, WalConfig};
use crate::repository::Repository;
use crate::wal::name::Segment;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const POLL: Duration = Duration::from_millis(5);
const ASKED: &str = "asked";

/// The spool of a store.
pub fn directory(store: &Path) -> PathBuf {
    store.join("wal-spool")
}

/// Takes a segment out of the spool of the configuration's store. False when it is not there.
pub fn take(config: &Config, name: &str, path: &Path) -> bool {
    if Segment::parse(name).is_none() {
        return false;
    }
    let Some(spool) = config.member.store.as_deref().map(directory).filter(|spool| spool.is_dir()) else {
        return false;
    };
    // Without this note the spool reads ahead of nobody; the segment comes from the archive then.
    let _ = std::fs::write(spool.join(ASKED), name);
    move_file(&spool.join(name), path)
}

/// Moves a file, perhaps to another file system. False when it was not moved; then it is gone from where it was all the
/// same, so that a spool which is of no use does not grow.
fn move_file(from: &Path, to: &Path) -> bool {
    if std::fs::rename(from, to).is_ok() {
        return true;
    }
    let copied = std::fs::copy(from, to).is_ok();
    let _ = std::fs::remove_file(from);
    copied
}

/// A spool that is being filled. Dropping it removes it.
pub struct Spool {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    directory: PathBuf,
}

impl Spool {
    /// Begins to read `segments` ahead. A spool that cannot be made is none: recovery goes on without.
    pub fn start(config: &WalConfig, repository: &Repository, store: &Path, segments: Vec<Segment>) -> Option<Self> {
        let directory = directory(store);
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir(&directory).ok()?;
        let stop = Arc::new(AtomicBool::new(false));
        let filler = Arc::new(Filler {
            repository: repository.clone(),
            directory: directory.clone(),
            stop: stop.clone(),
            positions: segments.iter().copied().zip(0..).collect(),
            segments,
            next: AtomicUsize::new(0),
            ahead: config.fetch_ahead,
        });
        let threads = (0..config.fetch_jobs.min(config.fetch_ahead))
            .map(|_| {
                let filler = filler.clone();
                std::thread::spawn(move || filler.fill())
            })
            .collect();
        Some(Self { stop, threads, directory })
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has filled nothing more; the archive has it all.
            let _ = thread.join();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

struct Filler {
    repository: Repository,
    directory: PathBuf,
    stop: Arc<AtomicBool>,
    segments: Vec<Segment>,
    positions: HashMap<Segment, usize>,
    /// The next segment that a thread takes on.
    next: AtomicUsize,
    ahead: usize,
}

impl Filler {
    /// Works until all segments were taken on.
    fn fill(&self) {
        loop {
            let at = self.next.fetch_add(1, Ordering::Relaxed);
            match self.segments.get(at) {
                Some(segment) if self.one(at, *segment) => {}
                _ => return,
            }
        }
    }

    /// Puts one segment into the spool once it is near. False when that is of no use any more.
    fn one(&self, at: usize, segment: Segment) -> bool {
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            match self.asked() {
                // It was asked for already, and is being fetched from the archive.
                Some(position) if position >= at => return true,
                Some(position) if at - position <= self.ahead => break,
                None if at < self.ahead => break,
                _ => std::thread::sleep(POLL),
            }
        }
        // What is wrong with a segment is said when PostgreSQL asks for it.
        let Ok(Some(content)) = self.repository.read_segment(segment) else { return true };
        let name = segment.to_string();
        let temporary = self.directory.join(format!(".{name}.tmp"));
        std::fs::write(&temporary, content)
            .and_then(|()| std::fs::rename(&temporary, self.directory.join(&name)))
            .is_ok()
    }

    /// The position of the segment that PostgreSQL asked for last.
    fn asked(&self) -> Option<usize> {
        let asked = std::fs::read_to_string(self.directory.join(ASKED)).ok()?;
        self.positions.get(&Segment::parse(&asked)?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spool_that_is_not_there_gives_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "system = \"s\"\n[member]\nstore = \"{0}\"\n[repository]\npath = \"{0}/r\"\n",
            dir.path().display()
        );
        let config = Config::parse(&text, Path::new("/x")).unwrap();
        let name = "000000010000000000000001";
        assert!(!take(&config, name, &dir.path().join("x")));
        let spool = directory(dir.path());
        std::fs::create_dir(&spool).unwrap();
        assert!(!take(&config, name, &dir.path().join("x")));
        std::fs::write(spool.join(name), "content").unwrap();
        assert!(take(&config, name, &dir.path().join("x")));
        assert_eq!(std::fs::read_to_string(dir.path().join("x")).unwrap(), "content");
        assert_eq!(std::fs::read_to_string(spool.join(ASKED)).unwrap(), name);
        assert!(!take(&config, name, &dir.path().join("x")), "a name is taken once");
        std::fs::write(spool.join(name), "content").unwrap();
        assert!(!take(&config, name, &dir.path().join("no/such/directory")));
        assert!(!spool.join(name).exists(), "what cannot be moved does not pile up");
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        std::fs::write(spool.join(name), "content").unwrap();
        assert!(take(&config, name, &memory.path().join("x")));
        assert_eq!(std::fs::read_to_string(memory.path().join("x")).unwrap(), "content");
        assert!(!spool.join(name).exists());
    }
}
