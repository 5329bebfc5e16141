//! Recovery plans: exactly which base backup, which WAL and which fragments a target needs, and what is missing.
//!
//! PostgreSQL ends recovery without complaint when its `restore_command` has no more log, unless a target by position or
//! time was set and not reached. So every plan names one. `latest` becomes the position of the last record in the
//! archive; a time later than the last commit in the archive becomes that position too, provided that the archive is
//! known to reach the time. A lost or damaged segment then makes PostgreSQL refuse to open.
//!
//! The last segment may be there with its beginning only: what was streamed of it, or what the end of its timeline left
//! ([`crate::repository::pieces`]). It counts as far as it goes; the position that PostgreSQL must reach is in it.
//!
//! Which segment covers a target is looked up in the notes that `wal push` made of each segment. Records that cross
//! segment borders are not in those notes; where that matters (at the end of the archive) the segments are read.

use super::find::{Wanted, find};
use super::target::Target;
use super::timeline::Chain;
use super::view::View;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::Repository;
use crate::repository::catalog::BackupEntry;
use crate::repository::manifest::FragmentRef;
use crate::wal::name::Segment;
use crate::wal::walker::Walker;
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeMap;
use strata_catalog::Lsn;

/// What PostgreSQL is told to stop at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "by", content = "value", rename_all = "snake_case")]
pub enum StopAt {
    /// Behind the first record that begins here or later.
    Lsn(Lsn),
    /// Before the first commit later than this.
    Time(Timestamp),
    /// As soon as the data is consistent.
    Consistent,
}

/// What to plan.
#[derive(Clone, Debug)]
pub struct PlanRequest {
    /// Where to stop.
    pub target: Target,
    /// The timeline to follow; none for the newest in the archive.
    pub timeline: Option<u32>,
    /// The base backup to use; none for the newest that fits.
    pub backup: Option<String>,
    /// Stop just before what the target names, not behind it: before the record at the position, before the first commit at the
    /// time or later, before the end of the transaction.
    pub exclusive: bool,
}

/// A plan.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The target as it was asked for.
    pub target: String,
    /// The base backup.
    pub backup: BackupEntry,
    /// The timeline to follow.
    pub timeline: u32,
    /// What PostgreSQL is told to stop at.
    pub stop: StopAt,
    /// PostgreSQL stops behind that, not before it.
    pub inclusive: bool,
    /// The first WAL segment.
    pub wal_from: String,
    /// The last WAL segment.
    pub wal_to: String,
    /// All of them, in the order of replay.
    #[serde(skip)]
    pub segments: Vec<Segment>,
    /// How many segments that are.
    pub wal_segments: u64,
    /// Bytes of them in the repository.
    pub wal_stored_bytes: u64,
    /// Timeline histories that are needed.
    pub histories: Vec<String>,
    /// How many fragments the target may need.
    pub fragments: u64,
    /// Their bytes.
    pub fragment_bytes: u64,
    /// The fragments.
    pub fragment_list: Vec<FragmentRef>,
    /// A segment in the plan creates a tablespace: replay makes a directory outside the new data directory.
    pub creates_tablespace: bool,
    /// What is needed and not in the repository, one sentence each.
    pub missing: Vec<String>,
    /// The kind of error that the first missing thing is.
    #[serde(skip)]
    pub missing_kind: Option<ErrorKind>,
}

impl Plan {
    /// An error that names what is missing; nothing when the plan can be carried out.
    pub fn require_complete(&self) -> Result<()> {
        let Some(first) = self.missing.first() else { return Ok(()) };
        let message = match self.missing.len() {
            1 => first.clone(),
            n => format!("{first} (and {} more)", n - 1),
        };
        Err(Error::new(self.missing_kind.unwrap_or(ErrorKind::Missing), message).detail(self.missing.join("\n")))
    }
}

/// Plans a recovery.
pub fn plan(repository: &Repository, request: &PlanRequest) -> Result<Plan> {
    let mut view = View::open(repository)?;
    view.require_backups()?;
    let timeline = match (&request.target, request.timeline) {
        (_, Some(timeline)) => timeline,
        (Target::Backup(id), None) => find_backup(&view.backups, id)?.timeline,
        (_, None) => view.timelines()?.last().copied().unwrap_or(1),
    };
    let chain = Chain::read(repository, timeline)?.ok_or_else(|| {
        Error::new(ErrorKind::Missing, format!("the history of timeline {timeline} is not in the archive"))
            .with_hint("Name the timeline to follow with --timeline.")
    })?;
    let wanted = match &request.target {
        Target::Xid(xid) => Wanted::Xid(*xid),
        Target::Name(name) => Wanted::RestorePoint(name),
        Target::Backup(_) | Target::Immediate | Target::Latest if request.exclusive => {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("the target {} has nothing that it could stop before", request.target),
            )
            .with_hint("--exclusive goes with a time, a position, a transaction or a restore point."));
        }
        _ => return Planner { view: &view, request, timeline, chain: &chain }.plan(),
    };
    let resolved = PlanRequest { target: Target::Lsn(find(&view, &chain, &wanted)?), ..request.clone() };
    let plan = Planner { view: &view, request: &resolved, timeline, chain: &chain }.plan()?;
    Ok(Plan { target: request.target.to_string(), ..plan })
}

fn find_backup<'a>(backups: &'a [BackupEntry], id: &str) -> Result<&'a BackupEntry> {
    backups.iter().find(|backup| backup.id == id).ok_or_else(|| {
        let ids: Vec<&str> = backups.iter().map(|backup| backup.id.as_str()).collect();
        Error::new(ErrorKind::Missing, format!("there is no backup \"{id}\""))
            .detail(format!("There are: {}.", ids.join(", ")))
    })
}

/// Plans one recovery.
pub(super) struct Planner<'a> {
    pub view: &'a View<'a>,
    pub request: &'a PlanRequest,
    pub timeline: u32,
    pub chain: &'a Chain,
}

/// How far the archive leads from a backup on.
pub(super) struct Reach {
    /// The last position that a plan from the backup can stop at; none when there is none.
    pub lsn: Option<Lsn>,
    /// The last time that a plan from the backup can stop at.
    pub time: Option<Timestamp>,
}

/// Where the stop is and which segment is the last that is needed.
struct Stop {
    at: StopAt,
    last: u64,
    /// It stands for everything up to there, whatever the target was.
    whole: bool,
}

impl Planner<'_> {
    pub(super) fn plan(&self) -> Result<Plan> {
        let backup = self.choose_backup()?.clone();
        let size = u64::from(backup.segment_size);
        let from = backup.start_lsn.0 / size;
        let mut missing = Vec::new();
        let mut missing_kind = None;
        let mut note = |kind: ErrorKind, text: String, missing: &mut Vec<String>| {
            missing_kind.get_or_insert(kind);
            missing.push(text);
        };
        let archived = self.archived_until(from, size)?;
        let stop = self.stop(&backup, from, archived, size)?;

        let mut wal_stored_bytes = 0;
        let mut creates_tablespace = false;
        for number in from..=stop.last {
            let segment = self.chain.segment(number, size);
            match self.view.note(&segment.to_string()) {
                Ok(Some(wal)) => {
                    wal_stored_bytes += wal.stored;
                    creates_tablespace |= wal.segment.is_some_and(|summary| summary.creates_tablespace);
                }
                Ok(None) => {
                    let what = match self.view.is_expired(segment) {
                        true => "was expired",
                        false => "is missing from the archive",
                    };
                    note(ErrorKind::Gap, format!("the WAL segment {segment} {what}"), &mut missing)
                }
                Err(error) => note(error.kind, error.message, &mut missing),
            }
        }
        let mut histories = Vec::new();
        for stretch in self.chain.stretches().iter().filter(|stretch| stretch.timeline > 1) {
            let name = format!("{:08X}.history", stretch.timeline);
            // Only the last one is read by PostgreSQL; it holds the whole way.
            if stretch.timeline == self.timeline && self.view.note(&name)?.is_none() {
                note(ErrorKind::Missing, format!("{name} is missing from the archive"), &mut missing);
            }
            histories.push(name);
        }
        let fragment_list = self.fragments(&backup, &stop).map_err(|error| match error.kind {
            ErrorKind::Damaged => error
                .with_hint("Name an older backup with --backup. \"strata verify\" shows all damage in the repository."),
            _ => error,
        })?;
        if let Some(through) = &backup.tool
            && self.view.repository.tool().is_none_or(|tool| tool.name() != through.name)
        {
            let text = format!(
                "the backup {} is held by the tool {}, and the configuration has {}",
                backup.id,
                through.name,
                self.view.repository.tool().map_or("no [tool]", |tool| tool.name())
            );
            note(ErrorKind::Config, text, &mut missing);
        }
        for fragment in &fragment_list {
            if !self.view.repository.storage().exists(&self.view.repository.fragment_path(&fragment.hash)?)?
                && let Some((object, _)) = self.view.repository.fragment_object(&fragment.hash)?
                && self.view.repository.tool().is_none_or(|tool| tool.name() != object.tool)
            {
                let text = format!(
                    "the fragment {} is held by the tool {}, which is not configured",
                    fragment.hash, object.tool
                );
                note(ErrorKind::Config, text, &mut missing);
            } else if !self.view.has_fragment(&fragment.hash)? {
                let relation = fragment.relation.as_deref().unwrap_or("a table that is gone");
                note(
                    ErrorKind::Missing,
                    format!(
                        "the fragment {} of {relation} in database \"{}\" is not in the repository",
                        fragment.hash, fragment.database
                    ),
                    &mut missing,
                );
            }
        }
        Ok(Plan {
            target: self.request.target.to_string(),
            timeline: self.timeline,
            stop: stop.at,
            inclusive: stop.whole || !self.request.exclusive,
            wal_from: self.chain.segment(from, size).to_string(),
            wal_to: self.chain.segment(stop.last, size).to_string(),
            segments: (from..=stop.last).map(|number| self.chain.segment(number, size)).collect(),
            wal_segments: stop.last - from + 1,
            wal_stored_bytes,
            histories,
            fragments: fragment_list.len() as u64,
            fragment_bytes: fragment_list.iter().map(|fragment| fragment.bytes).sum(),
            fragment_list,
            creates_tablespace,
            missing,
            missing_kind,
            backup,
        })
    }

    fn choose_backup(&self) -> Result<&BackupEntry> {
        let before = |backup: &&BackupEntry| match &self.request.target {
            Target::Latest => true,
            Target::Lsn(lsn) => backup.stop_lsn <= *lsn,
            Target::Time(time) => backup.stopped_at <= *time,
            Target::Backup(id) => backup.id == *id,
            // The last two are positions by now.
            Target::Immediate | Target::Xid(_) | Target::Name(_) => true,
        };
        let on_way = |backup: &&BackupEntry| self.chain.contains(backup.timeline, backup.stop_lsn);
        if let Target::Backup(id) = &self.request.target {
            find_backup(&self.view.backups, id)?;
        }
        if let Some(id) = &self.request.backup {
            let chosen = find_backup(&self.view.backups, id)?;
            if !on_way(&chosen) || !before(&chosen) {
                return Err(Error::new(
                    ErrorKind::Unreachable,
                    format!("the backup {id} does not lead to {}", self.request.target),
                )
                .detail(describe(chosen)));
            }
            return Ok(chosen);
        }
        let backups = &self.view.backups;
        backups.iter().filter(on_way).filter(before).max_by_key(|backup| backup.stop_lsn).ok_or_else(|| {
            match backups.iter().filter(on_way).min_by_key(|backup| backup.stop_lsn) {
                Some(first) => Error::new(
                    ErrorKind::Unreachable,
                    format!("the target {} is before the end of the first backup", self.request.target),
                )
                .detail(describe(first))
                .with_hint("The earliest target is the end of that backup."),
                None => Error::new(ErrorKind::Unreachable, format!("no backup leads to timeline {}", self.timeline))
                    .with_hint("Name another timeline with --timeline."),
            }
        })
    }

    /// The highest segment number in the archive on the way, whatever is missing below it.
    fn archived_until(&self, from: u64, size: u64) -> Result<Option<u64>> {
        let mut last = None;
        for stretch in self.chain.stretches() {
            for segment in self.view.segments(stretch.timeline)?.iter() {
                let number = segment.number(size);
                if number >= from && self.chain.segment(number, size) == *segment {
                    last = last.max(Some(number));
                }
            }
        }
        Ok(last)
    }

    fn stop(&self, backup: &BackupEntry, from: u64, archived: Option<u64>, size: u64) -> Result<Stop> {
        let backup_end = backup.stop_lsn.0.saturating_sub(1) / size;
        let Some(archived) = archived.filter(|archived| *archived >= backup_end) else {
            // Nothing behind the backup: the loop over its own segments says which are missing.
            return match self.request.target {
                Target::Backup(_) | Target::Immediate | Target::Latest => {
                    Ok(Stop { at: StopAt::Consistent, last: backup_end, whole: true })
                }
                _ => Err(self.beyond(&format!("the archive ends before the backup {} does", backup.id))),
            };
        };
        match &self.request.target {
            Target::Backup(_) | Target::Immediate => Ok(Stop { at: StopAt::Consistent, last: backup_end, whole: true }),
            Target::Latest | Target::Xid(_) | Target::Name(_) => {
                let tail = self.tail(from, archived, size)?;
                let at = tail.last_record.map_or(StopAt::Consistent, StopAt::Lsn);
                Ok(Stop { at, last: archived, whole: true })
            }
            Target::Lsn(lsn) => self.stop_at_lsn(*lsn, from, archived, size),
            Target::Time(time) => self.stop_at_time(*time, backup, from, archived, size),
        }
    }

    fn stop_at_lsn(&self, lsn: Lsn, from: u64, archived: u64, size: u64) -> Result<Stop> {
        for number in (lsn.0 / size).max(from)..=archived {
            let Some(note) = self.view.note(&self.chain.segment(number, size).to_string())? else {
                continue;
            };
            if note.segment.and_then(|summary| summary.last_record).is_some_and(|last| last >= lsn) {
                return Ok(Stop { at: StopAt::Lsn(lsn), last: number, whole: false });
            }
        }
        // No record that begins there or later is in the archive. Everything before it may be, all the same.
        let tail = self.tail(from, archived, size)?;
        match tail.last_record {
            Some(last) if last >= lsn => Ok(Stop { at: StopAt::Lsn(lsn), last: archived, whole: false }),
            Some(last) if tail.covered >= lsn => Ok(Stop { at: StopAt::Lsn(last), last: archived, whole: true }),
            _ => Err(self.beyond(&format!("the archive reaches {}", tail.covered))),
        }
    }

    fn stop_at_time(&self, time: Timestamp, backup: &BackupEntry, from: u64, archived: u64, size: u64) -> Result<Stop> {
        // The last segment at whose beginning it is known that all commits before were not later than the target.
        let mut scan_from = from;
        let mut noted = backup.stopped_at;
        for number in from..=archived {
            let Some(note) = self.view.note(&self.chain.segment(number, size).to_string())? else { continue };
            let Some(last) = note.segment.and_then(|summary| summary.last_time) else { continue };
            if self.is_behind(last, time) {
                return Ok(Stop { at: StopAt::Time(time), last: number, whole: false });
            }
            noted = noted.max(last);
            scan_from = number;
        }
        let tail = self.tail(scan_from, archived, size)?;
        if let Some(number) = tail.first_commit(|commit| self.is_behind(commit, time), size) {
            return Ok(Stop { at: StopAt::Time(time), last: number, whole: false });
        }
        let known = self.known(noted, &tail);
        if time > known {
            return Err(self.beyond(&format!("the archive is known to reach {known} (position {})", tail.covered)));
        }
        let at = tail.last_record.map_or(StopAt::Consistent, StopAt::Lsn);
        Ok(Stop { at, last: archived, whole: true })
    }

    /// True when a commit is behind a stop at a time.
    fn is_behind(&self, commit: Timestamp, time: Timestamp) -> bool {
        if self.request.exclusive { commit >= time } else { commit > time }
    }

    /// The time up to which all commits are known to be in the archive: the latest one in it, of a restore point, or of the beginning
    /// of a backup that ends in it.
    fn known(&self, noted: Timestamp, tail: &Tail) -> Timestamp {
        let known = tail.times.iter().map(|(_, time)| *time).fold(noted, Timestamp::max);
        let ends = |other: &&BackupEntry| {
            self.chain.contains(other.timeline, other.stop_lsn) && other.stop_lsn <= tail.covered
        };
        self.view.backups.iter().filter(ends).map(|other| other.started_at).fold(known, Timestamp::max)
    }

    /// How far plans from a backup can go: to the end of the archive, or to the first segment that is missing or damaged.
    pub(super) fn reach(&self, backup: &BackupEntry) -> Result<Reach> {
        let size = u64::from(backup.segment_size);
        let from = backup.start_lsn.0 / size;
        let nothing = Reach { lsn: None, time: None };
        let Some(archived) = self.archived_until(from, size)? else { return Ok(nothing) };
        let (mut last_record, mut last_time, mut scan_from) = (None, None, from);
        for number in from..=archived {
            let note = match self.view.note(&self.chain.segment(number, size).to_string()) {
                Ok(Some(note)) => note,
                Err(error) if error.kind != ErrorKind::Damaged => return Err(error),
                // A record that begins before the gap and ends behind it is not there. Nor is it known what was committed in it:
                // a time can only be reached when a later commit is there.
                _ => {
                    let time = last_time.map(|time: Timestamp| time - jiff::SignedDuration::from_micros(1));
                    return Ok(Reach { lsn: last_record, time });
                }
            };
            let Some(summary) = note.segment else { continue };
            last_record = last_record.max(summary.last_record);
            if summary.last_time.is_some() {
                scan_from = number;
            }
            last_time = last_time.max(summary.last_time);
        }
        let tail = match self.read_tail(scan_from.min(archived.saturating_sub(1).max(from)), archived, size) {
            Ok(tail) => tail,
            // The notes are sound, and plans that need no more than they say are made.
            Err(error) if error.kind == ErrorKind::Damaged => {
                let time = last_time.map(|time: Timestamp| time - jiff::SignedDuration::from_micros(1));
                return Ok(Reach { lsn: last_record, time });
            }
            Err(error) => return Err(error),
        };
        let noted = last_time.map_or(backup.stopped_at, |last| last.max(backup.stopped_at));
        let lsn = tail.last_record.map(|_| tail.covered).or(last_record);
        Ok(Reach { lsn, time: Some(self.known(noted, &tail)) })
    }

    fn beyond(&self, reach: &str) -> Error {
        Error::new(
            ErrorKind::Unreachable,
            format!("the target {} is after the end of the archive on timeline {}: {reach}", self.request.target, self.timeline),
        )
        .with_hint("If the server still runs, SELECT pg_switch_wal() archives its last records. \"latest\" recovers what is there.")
    }

    /// Reads the segments at the end of the archive, so that records across segment borders are seen.
    fn tail(&self, from: u64, archived: u64, size: u64) -> Result<Tail> {
        // Two segments are enough to see the last record, unless one record is larger than a segment.
        let mut begin = archived.saturating_sub(1).max(from);
        if !matches!(self.request.target, Target::Latest | Target::Lsn(_)) {
            begin = from;
        }
        loop {
            let tail = self.read_tail(begin, archived, size)?;
            if tail.last_record.is_some() || begin <= from {
                return Ok(tail);
            }
            begin -= 1;
        }
    }

    fn read_tail(&self, begin: u64, archived: u64, size: u64) -> Result<Tail> {
        let mut tail = Tail { last_record: None, covered: Lsn(begin * size), commits: Vec::new(), times: Vec::new() };
        let mut walker = Walker::new();
        for number in begin..=archived {
            let segment = self.chain.segment(number, size);
            let note = self.view.note(&segment.to_string())?;
            let whole = note.as_ref().is_some_and(|note| !note.partial);
            let content = match self.view.repository.read_segment(segment) {
                // Without an identity its note is all that is known of it. A recovery has one, and sees the rest.
                Err(error) if error.kind == ErrorKind::NoKey => {
                    walker = Walker::new();
                    let summary = note.and_then(|note| note.segment);
                    if let Some((summary, end)) =
                        summary.and_then(|summary| summary.last_record_end.map(|end| (summary, end)))
                    {
                        tail.last_record = summary.last_record;
                        tail.covered = Lsn(end.0.next_multiple_of(8));
                        tail.times.extend(summary.last_time.map(|time| (end, time)));
                    }
                    continue;
                }
                other => other?,
            };
            let Some(content) = content else {
                // A gap, which the plan reports; what is behind it is read as if nothing had been before.
                walker = Walker::new();
                continue;
            };
            walker.feed(&segment.to_string(), &content, |record| {
                tail.last_record = Some(record.start);
                // The next one begins there at the earliest.
                tail.covered = Lsn(record.end.0.next_multiple_of(8));
                if let Some(time) = record.transaction_time {
                    tail.commits.push((record.end, time));
                    tail.times.push((record.end, time));
                }
                tail.times.extend(record.restore_point_time.map(|time| (record.end, time)));
            })?;
            if whole && !walker.in_record() {
                tail.covered = segment.end(size);
            }
        }
        Ok(tail)
    }

    /// The fragments that may be needed: those of the backup, and those that the log names between the backup and the
    /// stop, without those of which every row was seen to be gone before the stop.
    fn fragments(&self, backup: &BackupEntry, stop: &Stop) -> Result<Vec<FragmentRef>> {
        let manifest = self.view.manifest(backup)?;
        let mut all: BTreeMap<(u32, String), FragmentRef> = manifest
            .iter()
            .map(|fragment| ((fragment.database_oid, fragment.hash.clone()), fragment.clone()))
            .collect();
        if matches!(self.request.target, Target::Backup(_) | Target::Immediate) {
            return Ok(all.into_values().collect());
        }
        // Several rows may name one fragment: one that is there keeps it, whichever others are gone.
        let mut alive = BTreeMap::new();
        for entry in self.view.log()?.iter().filter(|entry| entry.on(self.chain)) {
            let key = (entry.database_oid, entry.fragment.hash.clone());
            let dropped = entry.dropped_on(self.chain);
            let (created, gone) = match stop.at {
                StopAt::Lsn(lsn) => {
                    (entry.fragment.created_lsn <= lsn, dropped.is_some_and(|dropped| dropped.lsn <= lsn))
                }
                StopAt::Time(time) => {
                    (entry.fragment.created_at <= time, dropped.is_some_and(|dropped| dropped.at <= time))
                }
                StopAt::Consistent => (false, false),
            };
            if gone {
                all.remove(&key);
            } else if created && dropped.is_none_or(|dropped| dropped.lsn > backup.start_lsn) {
                alive.entry(key).or_insert_with(|| FragmentRef {
                    database_oid: entry.database_oid,
                    database: entry.database.clone(),
                    relation: entry.fragment.relation.clone(),
                    hash: entry.fragment.hash.clone(),
                    bytes: u64::try_from(entry.fragment.bytes).unwrap_or(0),
                    rows: u64::try_from(entry.fragment.row_count).unwrap_or(0),
                    created_at: entry.fragment.created_at,
                    created_lsn: entry.fragment.created_lsn,
                    missing: false,
                });
            }
        }
        for (key, fragment) in alive {
            all.entry(key).or_insert(fragment);
        }
        Ok(all.into_values().collect())
    }
}

fn describe(backup: &BackupEntry) -> String {
    format!(
        "The backup {} ends at {} on timeline {}, {}.",
        backup.id, backup.stop_lsn, backup.timeline, backup.stopped_at
    )
}

/// What the last segments of the archive hold.
struct Tail {
    last_record: Option<Lsn>,
    /// Every record before this position is in the archive.
    covered: Lsn,
    commits: Vec<(Lsn, Timestamp)>,
    times: Vec<(Lsn, Timestamp)>,
}

impl Tail {
    /// The segment in which the first commit of this kind ends.
    fn first_commit(&self, is_it: impl Fn(Timestamp) -> bool, size: u64) -> Option<u64> {
        let (end, _) = self.commits.iter().find(|(_, commit)| is_it(*commit))?;
        Some(Segment::holding(1, Lsn(end.0.saturating_sub(1)), size).number(size))
    }
}

#[cfg(test)]
pub(crate) mod tests;
