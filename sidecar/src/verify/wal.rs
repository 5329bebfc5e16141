//! The WAL part of the check: every archived file by its checksums, and no segment missing.
//!
//! A segment is missing when a backup cannot do without it, when it lies on the way from a backup to the end of its
//! timeline, or when the one behind it says that it was archived; not when it was expired, as `expired.json` says. A timeline whose beginning was never archived is no damage if a backup
//! was taken after that, as in a server that was recovered, taken over, and only then archived; it is a note.

use super::{Findings, each};
use crate::error::{ErrorKind, Result};
use crate::progress::Progress;
use crate::recovery::timeline::Chain;
use crate::repository::Repository;
use crate::repository::catalog::BackupEntry;
use crate::repository::walstore;
use crate::wal::name::{Segment, WalName};
use crate::wal::walker::SegmentHeader;
use std::collections::BTreeSet;

/// Checks the archive. Returns how many files it has.
pub fn check(
    repository: &Repository,
    backups: &[BackupEntry],
    workers: usize,
    findings: &Findings,
    progress: &Progress,
) -> Result<u64> {
    let names = repository.wal_names()?;
    let expired = match repository.expired() {
        Ok(expired) => expired,
        Err(error) => {
            findings.failed("repository", "expired.json", error);
            None
        }
    };
    let expired = |segment: Segment| expired.as_ref().is_some_and(|expired| expired.has(segment));
    progress.phase("wal", names.len() as u64, "verifying the WAL archive");
    each(&names, workers, |name| {
        if let Err(error) = file(repository, name, &expired, findings) {
            findings.failed("wal", name, error);
        }
        progress.advance(1);
    });
    streamed(repository, findings)?;
    for backup in backups {
        own_segments(repository, backup, findings)?;
    }
    let timelines: BTreeSet<u32> =
        repository.wal_timelines()?.into_iter().chain(backups.iter().map(|backup| backup.timeline)).collect();
    for timeline in timelines {
        gaps(repository, backups, timeline, &expired, findings)?;
    }
    Ok(names.len() as u64)
}

fn file(
    repository: &Repository,
    name: &str,
    expired: &(dyn Fn(Segment) -> bool + Sync),
    findings: &Findings,
) -> Result<()> {
    let Some(kind) = WalName::parse(name) else {
        findings.add("wal", name, "it has no name of a WAL file");
        return Ok(());
    };
    let path = repository.wal_path(name, kind);
    if !findings.takes(repository, &path) {
        // Its note is read in any case: it says what was there before.
        if let WalName::Segment(segment) = kind
            && let Some((note, _)) = repository.read_wal_note(name)?
        {
            before(repository, segment, &note, expired, findings)?;
        }
        return Ok(());
    }
    let Some(bytes) = repository.storage().read(&path)? else { return Ok(()) };
    findings.bytes.fetch_add(bytes.len() as u64, std::sync::atomic::Ordering::Relaxed);
    let (note, content) = match walstore::decode(&bytes, &path, repository.keys()) {
        Ok(decoded) => decoded,
        Err(error) if error.kind == ErrorKind::NoKey => {
            findings.sealed();
            let (note, _) = walstore::check_stored(&bytes, &path)?;
            if let WalName::Segment(segment) = kind {
                before(repository, segment, &note, expired, findings)?;
            }
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    if let WalName::Segment(segment) = kind {
        let Some(header) = SegmentHeader::read(&content) else {
            findings.add("wal", name, "it does not begin like a WAL segment");
            return Ok(());
        };
        let size = u64::from(header.segment_size);
        if header.start != segment.start(size) {
            findings.add("wal", name, format!("it holds the log from {} on", header.start));
        }
        before(repository, segment, &note, expired, findings)?;
    }
    Ok(())
}

/// A segment that says that the one before it was archived already.
fn before(
    repository: &Repository,
    segment: Segment,
    note: &walstore::WalNote,
    expired: &(dyn Fn(Segment) -> bool + Sync),
    findings: &Findings,
) -> Result<()> {
    let Some(size) = note.segment.as_ref().map(|summary| u64::from(summary.segment_size)) else { return Ok(()) };
    let before = segment.number(size).checked_sub(1).map(|number| Segment::numbered(segment.timeline, number, size));
    if let Some(before) = before.filter(|before| note.follows && !expired(*before))
        && !repository.has_segment(before)?
    {
        findings.add("wal", before.to_string(), "it is missing: it was archived before the segment behind it");
    }
    Ok(())
}

/// Pieces of segments that are not whole yet: each is read, and none may be missing between others.
fn streamed(repository: &Repository, findings: &Findings) -> Result<()> {
    let mut segments: Vec<Segment> = repository.pieces()?.iter().map(|piece| piece.segment).collect();
    segments.dedup();
    for segment in segments {
        match repository.streamed(segment) {
            Ok(_) => {}
            Err(error) if error.kind == ErrorKind::NoKey => findings.sealed(),
            // Then its pieces count for nothing.
            Err(_) if repository.has_segment(segment)? => {}
            Err(error) => findings.failed("wal", format!("{segment} (streamed)"), error),
        }
    }
    Ok(())
}

/// A backup is of no use without the segments from its start to its end.
fn own_segments(repository: &Repository, backup: &BackupEntry, findings: &Findings) -> Result<()> {
    let size = u64::from(backup.segment_size);
    if let (Some(first), Some(last)) = (Segment::parse(&backup.start_wal), Segment::parse(&backup.stop_wal)) {
        for number in first.number(size)..=last.number(size) {
            let segment = Segment::numbered(backup.timeline, number, size);
            if !repository.has_segment(segment)? {
                findings.add("wal", segment.to_string(), format!("it is missing, and backup {} needs it", backup.id));
            }
        }
    }
    Ok(())
}

fn gaps(
    repository: &Repository,
    backups: &[BackupEntry],
    timeline: u32,
    expired: &dyn Fn(Segment) -> bool,
    findings: &Findings,
) -> Result<()> {
    let segments = repository.segments(timeline)?;
    let chain = match Chain::read(repository, timeline) {
        Ok(Some(chain)) => chain,
        Ok(None) => {
            let why = "it is missing, and no recovery on the timeline is possible without it";
            findings.add("wal", format!("{timeline:08X}.history"), why);
            return Ok(());
        }
        // Damage in the history file itself is found where it is read.
        Err(_) => return Ok(()),
    };
    let (Some(start), Some(last)) = (segments.first().copied(), segments.last().copied()) else { return Ok(()) };
    let on_way = backups.iter().filter(|backup| chain.contains(backup.timeline, backup.stop_lsn));
    let Some(first) = on_way.min_by_key(|backup| backup.start_lsn) else { return Ok(()) };
    let size = u64::from(first.segment_size);
    let never = never_archived(repository, backups, &chain, start, size);
    if let Some((from, to)) = &never {
        findings.note(format!(
            "timeline {timeline} was not archived from {} to {}; no moment between can be recovered",
            chain.segment(*from, size),
            Segment::numbered(timeline, *to, size)
        ));
    }
    for number in first.start_lsn.0 / size..=last.number(size) {
        let segment = chain.segment(number, size);
        let known = never.is_some_and(|(from, to)| (from..=to).contains(&number));
        if !known && !expired(segment) && !repository.has_segment(segment)? {
            findings.add("wal", segment.to_string(), format!("it is missing between backup {} and {last}", first.id));
        }
    }
    Ok(())
}

/// The segment numbers of a timeline's beginning that were never archived: its first archived segment did not follow another
/// one, and a backup begins there or later.
fn never_archived(
    repository: &Repository,
    backups: &[BackupEntry],
    chain: &Chain,
    start: Segment,
    size: u64,
) -> Option<(u64, u64)> {
    let begin = chain.stretch(start.timeline).filter(|stretch| stretch.begin.0 > 0)?.begin.0 / size;
    let number = start.number(size);
    let follows = repository.read_wal_note(&start.to_string()).ok()??.0.follows;
    let taken_after =
        backups.iter().any(|backup| backup.timeline == start.timeline && backup.start_lsn.0 / size >= number);
    (number > begin && !follows && taken_after).then(|| (begin, number - 1))
}
