//! `strata wal push`: PostgreSQL's `archive_command`.
//!
//! PostgreSQL may recycle a segment once this returned success, and calls again, for ever, until it does. So: success only
//! when the file is durable in the archive under its final name; an identical file that is there already is success
//! (a crash came between our rename and PostgreSQL's note of it); a different one is an error and stays as it is.
//! A process that dies anywhere leaves a temporary file at most. No connection is made: all that must be known of the
//! cluster stands in the segment itself.

use super::name::{Segment, WalName};
use super::scan::SegmentSummary;
use super::walker::SegmentHeader;
use crate::config::Config;
use crate::error::{AtPath, Error, ErrorKind, Result};
use crate::repository::fsio::Published;
use crate::repository::walstore::{self, WalNote};
use crate::repository::{Identity, Repository};
use jiff::Timestamp;
use serde::Serialize;
use std::path::Path;

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
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let kind = WalName::parse(name).ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("\"{}\" is not a file that PostgreSQL archives", path.display()))
            .with_hint("Set archive_command = 'strata --config FILE wal push %p'.")
    })?;
    let content = std::fs::read(path).at("read", path)?;
    let repository = Repository::open_or_create(config)?;
    let segment = match kind {
        WalName::Segment(_) | WalName::Partial(_) => Some(inspect(&repository, name, kind, &content)?),
        WalName::BackupHistory(_) | WalName::History(_) => None,
    };
    let follows = match (kind, &segment) {
        (WalName::Segment(own), Some(summary)) => {
            let size = u64::from(summary.segment_size);
            let before = own.number(size).checked_sub(1).map(|number| Segment::numbered(own.timeline, number, size));
            before.map(|before| repository.has_segment(before)).transpose()?.unwrap_or(false)
        }
        _ => false,
    };
    let note = WalNote {
        name: name.to_owned(),
        bytes: content.len() as u64,
        blake3: blake3::hash(&content).to_hex().to_string(),
        frame_blake3: String::new(),
        archived_at: Timestamp::now(),
        follows,
        segment,
    };
    let target = repository.wal_path(name, kind);
    let mut stored_bytes = 0;
    let mut published = Published::Existing;
    if !repository.storage().exists(&target)? {
        let file = walstore::encode(&note, &content, config.backup.compress_level)?;
        stored_bytes = file.len() as u64;
        published = repository.storage().write_new(&target, &file)?;
    }
    let already_archived = published == Published::Existing;
    if already_archived {
        same_as_archived(&repository, &note)?;
        repository.storage().confirm(&target, repository.root())?;
        stored_bytes = 0;
    }
    Ok(Pushed { name: note.name, bytes: note.bytes, stored_bytes, already_archived })
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
    let archived = repository.read_wal(&note.name)?;
    match archived {
        Some((archived, _)) if archived.blake3 == note.blake3 => Ok(()),
        _ => Err(Error::new(ErrorKind::Conflict, format!("another {} is in the archive already", note.name))
            .detail("Its content differs. Archived WAL is never overwritten.")
            .with_hint("Do two servers archive as the same member? Give one of them another member name.")),
    }
}
