//! One file of `pg_wal` into the archive.
//!
//! PostgreSQL may recycle a segment once this returned success, and calls again, for ever, until it does. So: success only
//! when the file is durable in the archive under its final name; an identical file that is there already is success
//! (a crash came between our rename and PostgreSQL's note of it); a different one is an error and stays as it is.
//! A process that dies anywhere leaves a temporary file at most. No connection is made: all that must be known of the
//! cluster stands in the segment itself.
//!
//! It has two steps, so that several files can be read and compressed at once ([`Prepared`]) and still get into the archive in
//! the order of the log. What `archive_command` runs is in [`super::command`].

use super::name::{Segment, WalName};
use super::scan::SegmentSummary;
use super::walker::SegmentHeader;
use crate::config::Config;
use crate::error::{AtPath, Error, ErrorKind, Result};
use crate::failpoint;
use crate::repository::fsio::Published;
use crate::repository::walstore::{self, WalNote};
use crate::repository::{Identity, Repository};
use serde::{Deserialize, Serialize};
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What a push did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pushed {
    /// The file's name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its size in the archive; 0 when an identical one was there.
    pub stored_bytes: u64,
    /// An identical file was there already.
    pub already_archived: bool,
}

/// Archives the file at `path`.
pub fn push(config: &Config, path: &Path) -> Result<Pushed> {
    Prepared::read(config, path, None)?.publish()
}

/// A file that was read, checked and compressed. Nothing of it is in the archive yet.
#[derive(Debug)]
pub struct Prepared {
    repository: Repository,
    note: WalNote,
    target: PathBuf,
    /// What goes into the archive; none when a file of that name was there.
    file: Option<Vec<u8>>,
    source: Option<SourceFile>,
}

/// What tells one file of `pg_wal` from another without reading it. PostgreSQL does not change a segment that waits to be
/// archived, so the same values mean the same content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    device: u64,
    inode: u64,
    bytes: u64,
    changed_s: i64,
    changed_ns: i64,
}

impl SourceFile {
    /// Of an open file.
    pub fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            bytes: meta.size(),
            changed_s: meta.mtime(),
            changed_ns: meta.mtime_nsec(),
        }
    }
}

impl Prepared {
    /// Reads a file of `pg_wal`. `behind` is a segment that is in the archive before this one is published.
    pub fn read(config: &Config, path: &Path, behind: Option<Segment>) -> Result<Self> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let kind = parse(name, path)?;
        let mut file = File::open(path).at("open", path)?;
        let source = SourceFile::of(&file.metadata().at("look at", path)?);
        let mut content = Vec::with_capacity(source.bytes as usize);
        file.read_to_end(&mut content).at("read", path)?;
        let repository = Repository::open_or_create(config)?;
        let prepared = Self::of(repository, name, kind, &content, behind, config.backup.compress_level)?;
        Ok(Self { source: Some(source), ..prepared })
    }

    /// Takes the content of a file of `pg_wal` from memory.
    pub fn of(
        repository: Repository,
        name: &str,
        kind: WalName,
        content: &[u8],
        behind: Option<Segment>,
        level: i32,
    ) -> Result<Self> {
        let segment = match kind {
            WalName::Segment(_) | WalName::Partial(_) => Some(inspect(&repository, name, kind, content)?),
            WalName::BackupHistory(_) | WalName::History(_) => None,
        };
        let follows = match (kind, &segment) {
            (WalName::Segment(own), Some(summary)) => {
                let size = u64::from(summary.segment_size);
                let before =
                    own.number(size).checked_sub(1).map(|number| Segment::numbered(own.timeline, number, size));
                match before {
                    Some(before) => behind == Some(before) || repository.has_segment(before)?,
                    None => false,
                }
            }
            _ => false,
        };
        let note = WalNote { follows, segment, ..WalNote::of(name, content) };
        let target = repository.wal_path(name, kind);
        let file = match repository.storage().exists(&target)? {
            true => None,
            false => Some(walstore::encode(&note, content, level, repository.keys())?),
        };
        failpoint::hit(failpoint::PUSH_PREPARED);
        Ok(Self { repository, note, target, file, source: None })
    }

    /// Puts it into the archive, durably, or finds that the same is there, durably.
    pub fn publish(self) -> Result<Pushed> {
        let mut published = Published::Existing;
        let mut stored_bytes = 0;
        if let Some(file) = &self.file {
            stored_bytes = file.len() as u64;
            published = self.repository.storage().write_new(&self.target, file)?;
        }
        let already_archived = published == Published::Existing;
        if already_archived {
            same_as_archived(&self.repository, &self.note)?;
            self.repository.storage().confirm(&self.target, self.repository.root())?;
            stored_bytes = 0;
        }
        failpoint::hit(failpoint::PUSH_PUBLISHED);
        Ok(Pushed { name: self.note.name, bytes: self.note.bytes, stored_bytes, already_archived })
    }

    /// Which file it was read from; none when it was not.
    pub fn source(&self) -> Option<&SourceFile> {
        self.source.as_ref()
    }

    /// BLAKE3 of the content.
    pub fn blake3(&self) -> &str {
        &self.note.blake3
    }
}

/// What a path names; an error when PostgreSQL does not archive such files.
pub fn parse(name: &str, path: &Path) -> Result<WalName> {
    WalName::parse(name).ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("\"{}\" is not a file that PostgreSQL archives", path.display()))
            .with_hint("Set archive_command = 'strata --config FILE wal push %p'.")
    })
}

/// Checks that the segment is what its name says and that it comes from the member's own cluster.
fn inspect(repository: &Repository, name: &str, kind: WalName, content: &[u8]) -> Result<SegmentSummary> {
    let bad = |why: String| Error::damaged(format_args!("the WAL segment {name}"), why);
    let header = SegmentHeader::read(content).ok_or_else(|| bad("its first page has no header".to_owned()))?;
    if content.len() as u64 != u64::from(header.segment_size) {
        return Err(bad(format!("it has {} bytes instead of {}", content.len(), header.segment_size)));
    }
    if let WalName::Segment(segment) | WalName::Partial(segment) = kind {
        let start = segment.start(u64::from(header.segment_size));
        // The timeline in the header may be older: a new timeline's first segment is a copy of its parent's last one.
        if start != header.start || header.timeline > segment.timeline {
            return Err(bad(format!("its header is that of timeline {} at {}", header.timeline, header.start)));
        }
    }
    repository.claim(&Identity { system_identifier: header.system_identifier, segment_size: header.segment_size })?;
    SegmentSummary::of(name, &header, content)
}

fn same_as_archived(repository: &Repository, note: &WalNote) -> Result<()> {
    let archived = repository.check_wal(&note.name)?;
    match archived {
        Some(archived) if archived.blake3 == note.blake3 => Ok(()),
        _ => Err(Error::new(ErrorKind::Conflict, format!("another {} is in the archive already", note.name))
            .detail("Its content differs. Archived WAL is never overwritten.")
            .with_hint("Do two servers archive as the same member? Give one of them another member name.")),
    }
}
