//! Reads WAL ahead of PostgreSQL during a recovery.
//!
//! PostgreSQL asks for one segment at a time and waits. While it replays one, a thread here decompresses and checks the next
//! few into the directory `wal-spool` of the new store; `strata wal fetch` then only renames. The spool is a shortcut: a segment
//! that is not in it is fetched from the archive as ever, and a spool that is left over is of no harm, since names are taken
//! only once and content was checked before it got its name. A data directory may be on another file system than the store; then
//! a segment is copied instead.
//!
//! ```text
//!   archive ──► spool/NAME ──rename──► pg_wal/RECOVERYXLOG
//!                 ▲   at most AHEAD files, those behind the last one that was asked for
//!   fetch ──► spool/asked
//! ```

use crate::config::Config;
use crate::repository::Repository;
use crate::wal::name::Segment;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How many segments are ready at most.
const AHEAD: usize = 6;
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
    thread: Option<JoinHandle<()>>,
    directory: PathBuf,
}

impl Spool {
    /// Begins to read `segments` ahead. A spool that cannot be made is none: recovery goes on without.
    pub fn start(repository: &Repository, store: &Path, segments: Vec<Segment>) -> Option<Self> {
        let directory = directory(store);
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir(&directory).ok()?;
        let stop = Arc::new(AtomicBool::new(false));
        let filler = Filler { repository: repository.clone(), directory: directory.clone(), stop: stop.clone() };
        let thread = std::thread::spawn(move || filler.fill(&segments));
        Some(Self { stop, thread: Some(thread), directory })
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
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
}

impl Filler {
    fn fill(&self, segments: &[Segment]) {
        let positions: HashMap<&Segment, usize> = segments.iter().zip(0..).collect();
        for (at, segment) in segments.iter().enumerate() {
            let name = segment.to_string();
            loop {
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                let asked = std::fs::read_to_string(self.directory.join(ASKED)).unwrap_or_default();
                match Segment::parse(&asked).and_then(|asked| positions.get(&asked).copied()) {
                    // It was asked for already, and is being fetched from the archive.
                    Some(position) if position >= at => break,
                    Some(position) if at - position <= AHEAD => {}
                    None if at < AHEAD => {}
                    _ => {
                        std::thread::sleep(POLL);
                        continue;
                    }
                }
                // What is wrong with a segment is said when PostgreSQL asks for it.
                if let Ok(Some((_, content))) = self.repository.read_wal(&name) {
                    let temporary = self.directory.join(format!(".{name}.tmp"));
                    let put = std::fs::write(&temporary, content)
                        .and_then(|()| std::fs::rename(&temporary, self.directory.join(&name)));
                    if put.is_err() {
                        return;
                    }
                }
                break;
            }
        }
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
