//! The WAL part of the check: every archived file by its checksums, and no segment missing.
//!
//! A segment is missing when it lies on the way from a backup to the end of its timeline, or when the one behind it says
//! that it was archived.

use super::{Findings, each};
use crate::error::Result;
use crate::progress::Progress;
use crate::recovery::timeline::Chain;
use crate::repository::Repository;
use crate::repository::catalog::BackupEntry;
use crate::repository::walstore;
use crate::wal::name::{Segment, WalName};
use crate::wal::walker::SegmentHeader;

/// Checks the archive. Returns how many files it has.
pub fn check(
    repository: &Repository,
    backups: &[BackupEntry],
    workers: usize,
    findings: &Findings,
    progress: &Progress,
) -> Result<u64> {
    let names = repository.wal_names()?;
    progress.phase("wal", names.len() as u64, "verifying the WAL archive");
    each(&names, workers, |name| {
        if let Err(error) = file(repository, name, findings) {
            findings.add("wal", name, error.message);
        }
        progress.advance(1);
    });
    for timeline in repository.wal_timelines()? {
        gaps(repository, backups, timeline, findings)?;
    }
    Ok(names.len() as u64)
}

fn file(repository: &Repository, name: &str, findings: &Findings) -> Result<()> {
    let Some(kind) = WalName::parse(name) else {
        findings.add("wal", name, "it has no name of a WAL file");
        return Ok(());
    };
    let path = repository.wal_path(name, kind);
    let Some(bytes) = crate::repository::fsio::read_optional(&path)? else { return Ok(()) };
    let (note, content) = walstore::decode(&bytes, &path)?;
    findings.bytes.fetch_add(bytes.len() as u64, std::sync::atomic::Ordering::Relaxed);
    if let WalName::Segment(segment) = kind {
        let Some(header) = SegmentHeader::read(&content) else {
            findings.add("wal", name, "it does not begin like a WAL segment");
            return Ok(());
        };
        let size = u64::from(header.segment_size);
        if header.start != segment.start(size) {
            findings.add("wal", name, format!("it holds the log from {} on", header.start));
        }
        let before =
            segment.number(size).checked_sub(1).map(|number| Segment::numbered(segment.timeline, number, size));
        if let Some(before) = before.filter(|before| note.follows && !repository.has_segment(*before)) {
            findings.add("wal", before.to_string(), "it is missing: it was archived before the segment behind it");
        }
    }
    Ok(())
}

fn gaps(repository: &Repository, backups: &[BackupEntry], timeline: u32, findings: &Findings) -> Result<()> {
    let Some(last) = repository.segments(timeline)?.last().copied() else { return Ok(()) };
    let chain = match Chain::read(repository, timeline) {
        Ok(Some(chain)) => chain,
        Ok(None) => {
            findings.add("wal", format!("{timeline:08X}.history"), "it is missing, though the timeline has segments");
            return Ok(());
        }
        // Damage in the history file itself is found where it is read.
        Err(_) => return Ok(()),
    };
    let on_way = backups.iter().filter(|backup| chain.contains(backup.timeline, backup.stop_lsn));
    let Some(first) = on_way.min_by_key(|backup| backup.start_lsn) else { return Ok(()) };
    let size = u64::from(first.segment_size);
    for number in first.start_lsn.0 / size..=last.number(size) {
        let segment = chain.segment(number, size);
        if !repository.has_segment(segment) {
            findings.add("wal", segment.to_string(), format!("it is missing between backup {} and {last}", first.id));
        }
    }
    Ok(())
}
