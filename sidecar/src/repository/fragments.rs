//! Fragments in the repository, and the fragment log.
//!
//! A fragment is stored under its content hash, once for the whole system: members that share a fragment share the copy. With a third-party
//! tool, it is the tool that holds it (see [`super::objects`]); whoever asks here for a fragment does not see the difference.
//! Each member's fragment log has a sealed document for each row of its catalogs that named a fragment, which says what the
//! fragment belongs to and since when, and, once the row was seen to be gone, until when.
//!
//! **Timelines.** A recovery to an earlier moment makes a branch, and the branch that was left can be recovered as before. A position means
//! something on its timeline only, so both ends of a row's life say theirs. A row's `timeline` is the one on which it was written, not the one
//! on which somebody saw it. It may have gone on one branch and be there still on another, so it has as many ends as there are branches on which it was seen to
//! be gone: `dropped` lists them. Whoever follows a way asks [`FragmentLogEntry::on`] and [`FragmentLogEntry::dropped_on`]; an end on
//! another branch says nothing there. Number, content and timeline together name a row: a server that was recovered may give the same number to
//! the same content again.

use super::Repository;
use super::fsio::{self, Published};
use super::storage::Listed;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::recovery::timeline::Chain;
use crate::tool::fragments::FragmentFile;
use crate::tool::{self, Tool};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;
use strata_catalog::{FragmentRow, Lsn, names};

/// How long somebody who needs one fragment sent waits for others that send.
const OTHERS: Duration = Duration::from_secs(60);

/// An entry of the fragment log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FragmentLogEntry {
    /// The database.
    pub database_oid: u32,
    /// The database's name.
    pub database: String,
    /// The row of `strata.fragment`.
    #[serde(flatten)]
    pub fragment: FragmentRow,
    /// The timeline on which the row was written.
    pub timeline: u32,
    /// When the fragment was durable in the repository.
    pub completed_at: Timestamp,
    /// When the row was first seen to be gone, on each branch on which it was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<Dropped>,
}

impl FragmentLogEntry {
    /// True when the row was written on the way.
    pub fn on(&self, way: &Chain) -> bool {
        way.contains(self.timeline, self.fragment.created_lsn)
    }

    /// When the row was seen to be gone on the way; none when it may be there.
    pub fn dropped_on(&self, way: &Chain) -> Option<Dropped> {
        self.dropped.iter().filter(|end| way.contains(end.timeline, end.lsn)).min_by_key(|end| end.lsn).copied()
    }
}

/// When a fragment's row was first seen to be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// The time.
    pub at: Timestamp,
    /// Where the WAL stood then.
    pub lsn: Lsn,
    /// The timeline that the server was on then.
    pub timeline: u32,
}

/// What [`Repository::repair_fragment`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Repaired {
    /// The store did not have it.
    Fetched,
    /// The store's was damaged, and another one is in its place.
    Replaced,
    /// The store's has the content that it should have.
    Sound,
}

impl Repository {
    /// The directory of fragments.
    pub fn fragments_dir(&self) -> PathBuf {
        self.system_dir().join("fragments")
    }

    /// Where a fragment is. `hash` must have the form of a hash.
    pub fn fragment_path(&self, hash: &str) -> Result<PathBuf> {
        let prefix = hash.get(..2).filter(|_| names::is_fragment_hash(hash));
        let prefix = prefix.ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("\"{hash}\" is not the hash of a fragment"))
                .with_hint("A hash has 64 lower-case hexadecimal digits.")
        })?;
        Ok(self.fragments_dir().join(prefix).join(format!("{hash}.{}", names::FRAGMENT_EXTENSION)))
    }

    /// True when the repository has the fragment, or a tool has it for the repository.
    pub fn has_fragment(&self, hash: &str) -> Result<bool> {
        Ok(self.storage().exists(&self.fragment_path(hash)?)? || self.fragment_object(hash)?.is_some())
    }

    /// Copies a fragment from a store into the repository, or through the tool. Returns the bytes copied: 0 when it was
    /// there already.
    pub fn put_fragment(&self, hash: &str, from: &Path) -> Result<u64> {
        self.writable()?;
        let to = self.fragment_path(hash)?;
        // What is there now must not be removed before it is known to be there.
        let shared = self.share_fragments()?;
        let there = self.storage().exists(&to)?;
        if let Some(tool) = self.tool().filter(|_| !there) {
            let file = FragmentFile { hash: hash.to_owned(), path: from.to_owned() };
            return self.send_fragments(tool, vec![file], Some(OTHERS));
        }
        if there {
            self.storage().confirm(&to, &self.fragments_dir())?;
            shared.require_held()?;
            return Ok(0);
        }
        let (published, bytes) = self.storage().put_checked(from, &to, hash, self.keys())?;
        shared.require_held()?;
        Ok(if published == Published::New { bytes } else { 0 })
    }

    /// Sends fragments through the tool, outside of a backup. Returns the bytes sent; those that it has are left out. When only one is asked
    /// for, what is wrong with it is the error. Another process that sends is waited for as long as `wait` says.
    pub fn send_fragments(&self, tool: &Tool, files: Vec<FragmentFile>, wait: Option<Duration>) -> Result<u64> {
        let mut missing = Vec::new();
        for file in files {
            if !self.has_fragment(&file.hash)? {
                missing.push(file);
            }
        }
        if missing.is_empty() {
            return Ok(0);
        }
        let only = missing.len() == 1;
        let backup = format!("log-{}", Timestamp::now().strftime("%Y%m%dT%H%M%S.%6fZ"));
        let scratch = self.storage().scratch(&self.objects_dir().join(format!(".{backup}.jsonl.tmp")))?;
        let infile = &scratch.path;
        let lines: String = missing
            .iter()
            .map(|file| format!("{}\n", serde_json::json!({"kind": "fragment", "hash": file.hash, "file": file.path})))
            .collect();
        std::fs::write(infile, lines).map_err(|error| Error::io("write", infile, error))?;
        let sent = tool::fragments::send(self, tool, &backup, infile, missing, wait, |_| Ok(()), &Progress::silent());
        // It is swept when this fails.
        let _ = std::fs::remove_file(infile);
        let mut sent = sent?;
        match sent.failed.pop() {
            Some((_, error)) if only => Err(error),
            _ => Ok(sent.copied().1),
        }
    }

    /// Copies a fragment from the repository into a store. Returns its size, and whether it was not there before. A file
    /// that is there is not read; see [`Repository::repair_fragment`].
    pub fn get_fragment(&self, database_oid: u32, hash: &str, store: &Path) -> Result<(u64, bool)> {
        let from = self.fragment_path(hash)?;
        let below = names::fragment_relative_path(database_oid, hash)
            .ok_or_else(|| Error::new(ErrorKind::Usage, format!("\"{hash}\" is not the hash of a fragment")))?;
        let to = store.join(below);
        if let Ok(meta) = std::fs::metadata(&to) {
            return Ok((meta.len(), false));
        }
        if !self.storage().exists(&from)? {
            if let Some((object, fragment)) = self.fragment_object(hash)? {
                let bytes = fragment.bytes;
                let new = tool::receive::fetch_fragments(self, &object, &[(fragment, to)])?.pop().transpose()?;
                return Ok((bytes, new.unwrap_or(false)));
            }
            return Err(Error::new(
                ErrorKind::Missing,
                format!("the fragment {hash} is not in the repository \"{}\"", self.root().display()),
            )
            .detail(format!("It was looked for at \"{}\".", from.display())));
        }
        let (published, bytes) = self.storage().get_checked(&from, &to, hash, self.keys())?;
        Ok((bytes, published == Published::New))
    }

    /// Copies a fragment from the repository into a store, in place of a damaged one. Returns its size, and what was done.
    pub fn repair_fragment(&self, database_oid: u32, hash: &str, store: &Path) -> Result<(u64, Repaired)> {
        let (bytes, fetched) = self.get_fragment(database_oid, hash, store)?;
        if fetched {
            return Ok((bytes, Repaired::Fetched));
        }
        let to = store.join(names::fragment_relative_path(database_oid, hash).unwrap_or_default());
        // A file that cannot be read to its end is as damaged as one with another content.
        if matches!(fsio::hash_file(&to), Ok(Some((found, _))) if found == hash) {
            return Ok((bytes, Repaired::Sound));
        }
        let from = self.fragment_path(hash)?;
        let held = if self.storage().exists(&from)? { None } else { self.fragment_object(hash)? };
        if let Some((object, fragment)) = held {
            // Beside the damaged one first, which stays when the tool cannot give another.
            let bytes = fragment.bytes;
            let aside = fsio::parent(&to).join(format!(".{hash}.repair.tmp"));
            let _ = std::fs::remove_file(&aside);
            tool::receive::fetch_fragments(self, &object, &[(fragment, aside.clone())])?.pop().transpose()?;
            std::fs::rename(&aside, &to).map_err(|error| Error::io("rename a file to", &to, error))?;
            fsio::fsync_dir(fsio::parent(&to))?;
            return Ok((bytes, Repaired::Replaced));
        }
        Ok((self.storage().get_checked_over(&from, &to, hash, self.keys())?, Repaired::Replaced))
    }

    /// The hashes of all fragments, with their sizes, in order.
    pub fn fragments(&self) -> Result<Vec<(String, u64)>> {
        let all = self.storage().walk(&self.fragments_dir())?;
        let hash = |one: &Listed| Some(one.path.file_name()?.to_str()?.strip_suffix(".frag")?.to_owned());
        Ok(all.iter().filter_map(|one| Some((hash(one)?, one.bytes))).collect())
    }

    fn fragment_log_dir(&self) -> PathBuf {
        self.member_dir().join("fragment-log")
    }

    fn fragment_log_path(&self, entry: &FragmentLogEntry) -> PathBuf {
        let name = format!("{}-{}-{:08X}.json", entry.fragment.hash, entry.fragment.fragment_id, entry.timeline);
        self.fragment_log_dir().join(entry.database_oid.to_string()).join(name)
    }

    /// Adds an entry to the fragment log unless one of the same row is there, which stays as it is.
    pub fn log_fragment(&self, entry: &FragmentLogEntry) -> Result<Published> {
        self.writable()?;
        let path = self.fragment_log_path(entry);
        if self.storage().exists(&path)? {
            self.storage().confirm(&path, &self.fragment_log_dir())?;
            return Ok(Published::Existing);
        }
        self.storage().write_new_sealed(&path, entry)
    }

    /// Notes in the fragment log that the row of an entry is gone. What the log says of it otherwise stays.
    pub fn log_dropped(&self, entry: &FragmentLogEntry, dropped: Dropped) -> Result<()> {
        self.writable()?;
        let path = self.fragment_log_path(entry);
        let mut known = match self.storage().read_sealed::<FragmentLogEntry>(&path) {
            Ok(known) => known.unwrap_or_else(|| entry.clone()),
            Err(error) if error.kind == ErrorKind::Damaged => entry.clone(),
            Err(error) => return Err(error),
        };
        known.dropped.push(dropped);
        self.storage().write_sealed(&path, &known)
    }

    /// The paths of the fragment log's entries.
    pub fn fragment_log_paths(&self) -> Result<Vec<PathBuf>> {
        Ok(self.storage().walk(&self.fragment_log_dir())?.into_iter().map(|one| one.path).collect())
    }

    /// Reads the fragment log. Entries that are damaged are left out and said; each stands for one fragment only, and
    /// `strata verify` names them.
    pub fn fragment_log(&self) -> Result<Vec<FragmentLogEntry>> {
        let mut entries = Vec::new();
        for path in self.fragment_log_paths()? {
            match self.storage().read_sealed_required(&path) {
                Ok(entry) => entries.push(entry),
                Err(error) if error.kind == ErrorKind::Damaged => {
                    tracing::warn!("left out of the fragment log: {error}");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(entries)
    }
}
