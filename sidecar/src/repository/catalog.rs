//! The repository's catalog of backups: one sealed document for each complete backup.

use super::Repository;
use super::fsio::Published;
use super::objects::StoredObject;
use crate::error::{Error, ErrorKind, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use strata_catalog::{BackupRow, BackupState, Lsn};

/// An entry of the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupEntry {
    /// The backup's id.
    pub id: String,
    /// What its taker called it.
    pub label: Option<String>,
    /// The system.
    pub system: String,
    /// The member.
    pub member: String,
    /// The server's version, as `server_version_num`.
    pub server_version: u32,
    /// The cluster.
    pub system_identifier: u64,
    /// The size of its WAL segments.
    pub segment_size: u32,
    /// The timeline it was taken on.
    pub timeline: u32,
    /// Where WAL replay begins.
    pub start_lsn: Lsn,
    /// From where on it is consistent.
    pub stop_lsn: Lsn,
    /// The first WAL segment it needs.
    pub start_wal: String,
    /// The last WAL segment it needs.
    pub stop_wal: String,
    /// When it began.
    pub started_at: Timestamp,
    /// The server's time at its stop position: what was committed before is in it.
    pub stopped_at: Timestamp,
    /// When this entry was written.
    pub completed_at: Timestamp,
    /// How many files of hot data.
    pub files: u64,
    /// Their bytes.
    pub data_bytes: u64,
    /// Their bytes in the repository.
    pub stored_bytes: u64,
    /// Fragments that belong to it.
    pub fragments: u64,
    /// Their bytes.
    pub fragment_bytes: u64,
    /// Fragments that this backup copied into the repository.
    pub fragments_copied: u64,
    /// Their bytes.
    pub fragment_bytes_copied: u64,
    /// Fragments that the catalog named and nobody had.
    pub fragments_missing: u64,
    /// Pages whose checksum was wrong on the server.
    pub damaged_pages: u64,
    /// BLAKE3 of the manifest's file.
    pub manifest_blake3: String,
    /// The third-party tool that holds its data, when that is not here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<ThroughTool>,
}

/// What a tool did for a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThroughTool {
    /// The tool.
    pub name: String,
    /// The objects with hot data, labels and manifest.
    pub objects: Vec<StoredObject>,
    /// How many objects with fragments this backup made.
    pub fragment_objects: u64,
    /// Bytes that went through the pipes for this backup.
    pub piped_bytes: u64,
    /// Bytes that the tool says it stored for this backup, when it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_stored_bytes: Option<u64>,
}

impl ThroughTool {
    /// Exit codes of the tool that the configuration calls warnings, with the tool's last line.
    pub fn warnings(&self) -> Vec<String> {
        let warned = self.objects.iter().filter(|object| object.exit_code != 0);
        warned
            .map(|object| {
                let last = object.messages.last().map_or("", String::as_str);
                format!("{}: exit code {}: {last}", object.object, object.exit_code)
            })
            .collect()
    }
}

impl BackupEntry {
    /// The row of `strata.backup` that mirrors this entry.
    pub fn row(&self, repository: &Repository) -> BackupRow {
        let signed = |n: u64| Some(i64::try_from(n).unwrap_or(i64::MAX));
        BackupRow {
            backup_id: self.id.clone(),
            system: self.system.clone(),
            member: self.member.clone(),
            repository: repository.root().display().to_string(),
            state: BackupState::Complete,
            timeline: i32::try_from(self.timeline).ok(),
            start_lsn: Some(self.start_lsn),
            stop_lsn: Some(self.stop_lsn),
            started_at: self.started_at,
            stopped_at: Some(self.stopped_at),
            data_bytes: signed(self.data_bytes),
            stored_bytes: signed(self.stored_bytes),
            fragments: signed(self.fragments),
            fragment_bytes: signed(self.fragment_bytes),
            fragments_copied: signed(self.fragments_copied),
            fragment_bytes_copied: signed(self.fragment_bytes_copied),
            error: None,
            tool: self.tool.as_ref().map(|tool| tool.name.clone()),
            tool_result: self.tool.as_ref().map(|tool| serde_json::json!(tool)),
        }
    }
}

impl Repository {
    fn catalog_dir(&self) -> PathBuf {
        self.member_dir().join("catalog")
    }

    /// The folders of backups.
    pub fn backups_dir(&self) -> PathBuf {
        self.member_dir().join("backups")
    }

    /// The folder of one backup.
    pub fn backup_dir(&self, id: &str) -> PathBuf {
        self.backups_dir().join(id)
    }

    /// The ids of the complete backups, oldest first.
    pub fn backup_ids(&self) -> Result<Vec<String>> {
        Ok(self
            .storage()
            .list(&self.catalog_dir())?
            .iter()
            .filter_map(|name| name.strip_suffix(".json").map(str::to_owned))
            .collect())
    }

    /// Reads one entry; none when there is no such backup.
    pub fn backup(&self, id: &str) -> Result<Option<BackupEntry>> {
        if !is_backup_id(id) {
            return Ok(None);
        }
        let path = self.catalog_dir().join(format!("{id}.json"));
        match self.storage().read_sealed::<BackupEntry>(&path)? {
            Some(entry) if entry.id != id => Err(Error::damaged(
                format_args!("\"{}\"", path.display()),
                format_args!("it holds backup {}", entry.id),
            )),
            other => Ok(other),
        }
    }

    /// Reads all entries, oldest first. One that is damaged does not hide the others: it comes as an error beside them.
    pub fn backups(&self) -> Result<(Vec<BackupEntry>, Vec<Error>)> {
        let (mut entries, mut damaged) = (Vec::new(), Vec::new());
        for id in self.backup_ids()? {
            match self.backup(&id) {
                Ok(entry) => entries.extend(entry),
                Err(error) if error.kind == ErrorKind::Damaged => damaged.push(error),
                Err(error) => return Err(error),
            }
        }
        entries.sort_by(|a: &BackupEntry, b| (a.started_at, &a.id).cmp(&(b.started_at, &b.id)));
        Ok((entries, damaged))
    }

    /// Records a backup. This is the moment from which on it exists.
    pub fn record_backup(&self, entry: &BackupEntry) -> Result<()> {
        let path = self.catalog_dir().join(format!("{}.json", entry.id));
        match self.storage().write_new_sealed(&path, entry)? {
            Published::New => Ok(()),
            Published::Existing => {
                Err(Error::new(ErrorKind::Conflict, format!("the backup {} is recorded already", entry.id)))
            }
        }
    }

    /// Removes a backup's entry, durably. From then on the backup does not exist.
    pub fn forget_backup(&self, id: &str) -> Result<()> {
        self.writable()?;
        let path = self.catalog_dir().join(format!("{id}.json"));
        self.storage().remove(&path)?;
        self.storage().sync(&self.catalog_dir())
    }

    /// Takes an entry out of the catalog. This is the moment from which on the backup does not exist.
    pub fn remove_entry(&self, id: &str) -> Result<()> {
        let path = self.catalog_dir().join(format!("{id}.json"));
        self.storage().remove(&path)?;
        self.storage().sync(&self.catalog_dir())
    }

    /// Chooses the id of a new backup and creates its folder.
    pub fn create_backup_dir(&self, now: Timestamp) -> Result<(String, PathBuf)> {
        let base = now.strftime("%Y%m%dT%H%M%SZ").to_string();
        self.storage().create_folder(&self.catalog_dir())?;
        self.storage().create_folder(&self.backups_dir())?;
        for suffix in 1..1000 {
            let id = if suffix == 1 { base.clone() } else { format!("{base}-{suffix}") };
            let dir = self.backup_dir(&id);
            if !self.storage().has_folder(&dir)? && self.backup(&id)?.is_none() {
                self.storage().create_folder(&dir)?;
                return Ok((id, dir));
            }
        }
        Err(Error::new(ErrorKind::Conflict, format!("there are too many backups named {base}")))
    }

    /// The folders that have no entry: what an interrupted backup left. Only meaningful under the backup lock.
    pub fn unfinished_backups(&self) -> Result<Vec<String>> {
        let complete = self.backup_ids()?;
        Ok(self.storage().list(&self.backups_dir())?.into_iter().filter(|id| !complete.contains(id)).collect())
    }

    /// Fails when folders without an entry are not what interrupted backups leave: each backup clears what the one before
    /// left, and the manifest is written just before the entry. So more than one folder with a manifest, or one without any
    /// catalog, means that the catalog was lost, and that these folders are backups.
    ///
    /// Folders that an interrupted expire left are known by its note.
    pub fn require_catalog(&self, unfinished: &[String]) -> Result<()> {
        let expiring = self.expiring()?.unwrap_or_default();
        let mut whole: Vec<&str> = Vec::new();
        for id in unfinished.iter().filter(|id| !expiring.backups.contains(*id)) {
            if self.storage().exists(&self.manifest_path(id))? {
                whole.push(id);
            }
        }
        if whole.len() < 2 && (whole.is_empty() || self.storage().has_folder(&self.catalog_dir())?) {
            return Ok(());
        }
        Err(Error::damaged(
            format_args!("the catalog of backups \"{}\"", self.catalog_dir().display()),
            format_args!("it has no entries for {}, which have a manifest", whole.join(", ")),
        )
        .with_hint(format!(
            "Put the catalog back from another copy of the repository, or remove these folders of \"{}\" by hand.",
            self.backups_dir().display()
        )))
    }

    /// Removes a folder without an entry.
    pub fn remove_unfinished(&self, id: &str) -> Result<()> {
        self.storage().remove_all(&self.backup_dir(id))
    }
}

/// True for texts that have the form of a backup's id: `20260131T093015Z`, perhaps with `-2` and so on behind it.
pub fn is_backup_id(text: &str) -> bool {
    let (stamp, suffix) = text.split_once('-').unwrap_or((text, "2"));
    let bytes = stamp.as_bytes();
    bytes.len() == 16
        && bytes.iter().enumerate().all(|(at, b)| match at {
            8 => *b == b'T',
            15 => *b == b'Z',
            _ => b.is_ascii_digit(),
        })
        && !suffix.is_empty()
        && suffix.len() <= 3
        && suffix.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_other_texts() {
        for good in ["20260131T093015Z", "20260131T093015Z-2", "20260131T093015Z-12"] {
            assert!(is_backup_id(good), "{good}");
        }
        for bad in ["", "latest", "20260131", "20260131T093015", "20260131T093015Z-", "../x", "20260131T093015Z-x"] {
            assert!(!is_backup_id(bad), "{bad}");
        }
    }
}
