//! Watches the store itself.
//!
//! A fragment may live for less than the time between two looks at the catalog, and a recovery to a moment in its life needs
//! it all the same. Its file stays longer: it is there before its row, and until a sweep. So every file that appears in the store is
//! copied to the repository at once, whether or not its transaction commits; the fragment log follows from the rows. A fragment
//! of a transaction that was rolled back costs its bytes in the repository and nothing else.
//!
//! Only directories whose time of change moved are listed again.
//!
//! With a third-party tool, what is new goes through it, all that one look finds in as few bundles as they fit in.

use super::Shared;
use crate::backup::{blocking, fragments};
use crate::error::{ErrorKind, Result};
use crate::repository::{Repository, fsio};
use crate::tool::Tool;
use crate::tool::fragments::FragmentFile;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use strata_catalog::names;

/// How often the directories are looked at.
const POLL: Duration = Duration::from_millis(200);
/// How long a tool that failed is left alone.
const TOOL_PAUSE: Duration = Duration::from_secs(10);
/// A directory that changed this recently may change again without its time moving.
const SETTLED: Duration = Duration::from_secs(2);

/// What is known of a store.
#[derive(Default)]
pub(super) struct StoreWatch {
    listed: HashMap<PathBuf, SystemTime>,
    /// The fragments of each folder that the repository has.
    kept: HashMap<PathBuf, HashSet<String>>,
    failed: HashMap<PathBuf, String>,
}

/// Watches for ever. `changed` is told when something was copied.
pub(super) async fn run(shared: &Shared, changed: &tokio::sync::Notify) {
    let watch = Arc::new(Mutex::new(StoreWatch::default()));
    loop {
        // What a standby's store has is from the repository.
        while shared.is_standby() {
            tokio::time::sleep(POLL).await;
        }
        match round(shared, &watch).await {
            Ok(0) => {}
            Ok(copied) => {
                tracing::info!(copied, "fragments of the store copied to the repository");
                changed.notify_one();
            }
            Err(error) => {
                match error.kind {
                    // A backup sends fragments just now, these among them.
                    ErrorKind::Locked => tracing::debug!("{error}"),
                    _ => tracing::warn!("the store is not watched just now: {}", error.full_text()),
                }
                // A tool that fails is not started again and again.
                if shared.config.tool.is_some() {
                    tokio::time::sleep(TOOL_PAUSE).await;
                }
            }
        }
        // Each run of a tool costs; what comes in a while goes together.
        tokio::time::sleep(if shared.config.tool.is_some() { shared.config.agent.fragment_interval } else { POLL })
            .await;
    }
}

/// One look at all directories. Returns how many fragments were copied.
pub(super) async fn round(shared: &Shared, watch: &Arc<Mutex<StoreWatch>>) -> Result<u64> {
    if !shared.store.is_dir() {
        return Ok(0);
    }
    let repository = shared.repository().await?;
    let (watch, store) = (watch.clone(), shared.store.clone());
    blocking(move || watch.lock().unwrap_or_else(PoisonError::into_inner).look(&repository, &store)).await
}

impl StoreWatch {
    fn look(&mut self, repository: &Repository, store: &Path) -> Result<u64> {
        let mut copied = 0;
        if let Some(tool) = repository.tool() {
            copied += u64::from(self.send(repository, tool, store)? > 0);
        }
        for database in fsio::list(store)?.iter().filter(|name| name.bytes().all(|b| b.is_ascii_digit())) {
            for folder in fsio::list(&store.join(database))?.iter().filter(|name| name.len() == 2) {
                copied += self.folder(repository, &store.join(database).join(folder))?;
            }
        }
        Ok(copied)
    }

    /// Sends what is new through the tool. What cannot be sent for its own sake is said when the folders are looked at.
    fn send(&self, repository: &Repository, tool: &Tool, store: &Path) -> Result<u64> {
        let new = |path: &Path| {
            let folder = path.parent().unwrap_or(path);
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            !self.failed.contains_key(path) && !self.kept.get(folder).is_some_and(|kept| kept.contains(name))
        };
        let files = fragments::files_of_store(store)?;
        let files = files.into_iter().filter(|(_, path)| new(path)).map(|(hash, path)| FragmentFile { hash, path });
        repository.send_fragments(tool, files.collect(), None)
    }

    fn folder(&mut self, repository: &Repository, folder: &Path) -> Result<u64> {
        let Ok(changed) = std::fs::metadata(folder).and_then(|meta| meta.modified()) else { return Ok(0) };
        if self.listed.get(folder) == Some(&changed) {
            return Ok(0);
        }
        let mut copied = 0;
        let mut whole = true;
        let names = fsio::list(folder)?;
        // What was swept is forgotten.
        self.failed.retain(|path, _| path.parent() != Some(folder) || path.exists());
        let kept = self.kept.entry(folder.to_owned()).or_default();
        kept.retain(|name| names.binary_search(name).is_ok());
        for name in names {
            let path = folder.join(&name);
            let Some(hash) = name.strip_suffix(".frag").filter(|hash| names::is_fragment_hash(hash)) else { continue };
            if kept.contains(&name) {
                continue;
            }
            match repository.put_fragment(hash, &path) {
                Ok(bytes) => {
                    copied += u64::from(bytes > 0);
                    self.failed.remove(&path);
                    kept.insert(name);
                }
                // Swept since it was listed.
                Err(_) if !path.exists() => {}
                Err(error) => {
                    whole = false;
                    let text = error.to_string();
                    if self.failed.insert(path, text.clone()).as_ref() != Some(&text) {
                        tracing::error!(hash, "fragment: {text}");
                    }
                    if error.kind == ErrorKind::DiskFull {
                        break;
                    }
                }
            }
        }
        if whole && changed.elapsed().is_ok_and(|age| age > SETTLED) {
            self.listed.insert(folder.to_owned(), changed);
        }
        Ok(copied)
    }
}
