//! Finds where in the log a transaction ended, or where a named restore point is.
//!
//! PostgreSQL would find them itself (`recovery_target_xid`, `recovery_target_name`), but only after it has replayed the log up to there from a backup
//! that must be older. So they are found first, in the archive, and PostgreSQL is given the position, which is the same place: behind the record
//! that ends the transaction, behind the restore point. A name that was used twice, or a transaction id that came round again, is no
//! target: PostgreSQL would stop at the first one that it meets, whichever was meant. All of the log from the first backup on is read.

use super::timeline::Chain;
use super::view::View;
use crate::error::{Error, ErrorKind, Result};
use crate::wal::walker::{self, SegmentHeader, Walker, u32_at};
use jiff::Timestamp;
use strata_catalog::Lsn;

/// The magic of pages of PostgreSQL 18, where an entry of a dropped statistic got longer.
const MAGIC_18: u16 = 0xD118;

/// What is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted<'a> {
    /// The end of a transaction.
    Xid(u32),
    /// A named restore point.
    RestorePoint(&'a str),
}

impl std::fmt::Display for Wanted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Xid(xid) => write!(f, "the end of transaction {xid}"),
            Self::RestorePoint(name) => write!(f, "the restore point \"{name}\""),
        }
    }
}

/// Finds it on the way. Returns where its record begins.
pub fn find(view: &View, chain: &Chain, wanted: &Wanted) -> Result<Lsn> {
    let on_way = view.backups.iter().filter(|backup| chain.contains(backup.timeline, backup.stop_lsn));
    let Some(first) = on_way.min_by_key(|backup| backup.start_lsn) else {
        return Err(Error::new(ErrorKind::Unreachable, "no backup leads to the timeline")
            .with_hint("Name another timeline with --timeline."));
    };
    let size = u64::from(first.segment_size);
    let mut last = None;
    for stretch in chain.stretches() {
        last = last.max(view.segments(stretch.timeline)?.iter().map(|segment| segment.number(size)).max());
    }
    let from = first.start_lsn.0 / size;
    let mut found: Vec<(Lsn, Timestamp)> = Vec::new();
    let mut walker = Walker::new();
    let mut before: Option<Vec<u8>> = None;
    for number in from..=last.unwrap_or(from) {
        let segment = chain.segment(number, size);
        let Some(content) = view.repository.read_segment(segment)? else {
            // Nothing can be recovered across the gap, but what is behind it can from a later backup.
            (walker, before) = (Walker::new(), None);
            continue;
        };
        let begin = segment.start(size);
        walker.feed(&segment.to_string(), &content, |record| {
            let Some(time) = record.transaction_time.or(record.restore_point_time) else { return };
            let bytes = bytes_of(before.as_deref(), &content, begin, record.start, record.end);
            let is_it = match wanted {
                Wanted::Xid(xid) => record.transaction_time.is_some() && ended(&bytes, magic(&content)) == Some(*xid),
                Wanted::RestorePoint(name) => {
                    record.restore_point_time.is_some() && point(&bytes) == Some(name.as_bytes())
                }
            };
            // What another branch of the log did behind the switch is not on the way.
            if is_it && chain.contains(segment.timeline, record.start) {
                found.push((record.start, time));
            }
        })?;
        before = Some(content);
    }
    match found.as_slice() {
        [(lsn, _)] => Ok(*lsn),
        [] => Err(Error::new(ErrorKind::Unreachable, format!("{wanted} is not in the archive"))
            .detail(format!("The archive was read from the backup {} on.", first.id))
            .with_hint("If the server still runs, SELECT pg_switch_wal() archives its last records.")),
        several => {
            let places: Vec<String> = several.iter().map(|(lsn, time)| format!("at {lsn}, {time}")).collect();
            Err(Error::new(ErrorKind::Usage, format!("{wanted} is {} times in the archive", several.len()))
                .detail(format!("It is {}.", places.join("; ")))
                .with_hint("Name one of the positions as the target instead."))
        }
    }
}

fn magic(segment: &[u8]) -> u16 {
    walker::u16_at(segment, 0).unwrap_or(0)
}

/// The bytes of a record that ends in a segment and begins in it or in the one before, without the headers of pages.
fn bytes_of(before: Option<&[u8]>, content: &[u8], segment: Lsn, start: Lsn, end: Lsn) -> Vec<u8> {
    let page = SegmentHeader::read(content).map_or(8192, |header| u64::from(header.page_size));
    let mut bytes = Vec::new();
    let mut at = start.0;
    while at < end.0 {
        let (source, offset) = match at.checked_sub(segment.0) {
            Some(offset) => (Some(content), offset as usize),
            None => {
                let length = before.map_or(0, <[u8]>::len) as u64;
                // Further back than one segment there is nothing of a record that is looked at here.
                match (length + at).checked_sub(segment.0) {
                    Some(offset) => (before, offset as usize),
                    None => return Vec::new(),
                }
            }
        };
        let Some(source) = source else { return Vec::new() };
        if at.is_multiple_of(page) {
            at += walker::page_header(walker::u16_at(source, offset + 2).unwrap_or(0)) as u64;
            continue;
        }
        let take = (page - at % page).min(end.0 - at) as usize;
        bytes.extend_from_slice(source.get(offset..offset + take).unwrap_or_default());
        at += take as u64;
    }
    bytes
}

/// The name in the record of a restore point.
fn point(record: &[u8]) -> Option<&[u8]> {
    let name = record.get(walker::main_data(record)? + 8..)?;
    name.split(|byte| *byte == 0).next()
}

/// The transaction that a commit or abort ends: that of the record, or the prepared one that it names.
fn ended(record: &[u8], magic: u16) -> Option<u32> {
    let own = u32_at(record, 4)?;
    let info = *record.get(16)?;
    let prepared = matches!(info & 0x70, 0x30 | 0x40);
    if !prepared {
        return Some(own);
    }
    let mut at = walker::main_data(record)? + 8;
    if info & 0x80 == 0 {
        return Some(own);
    }
    let xinfo = u32_at(record, at)?;
    at += 4;
    if xinfo & 1 != 0 {
        at += 8;
    }
    // Each list is a count and its entries: subtransactions, dropped relations, dropped statistics, invalidations.
    let statistic = if magic >= MAGIC_18 { 16 } else { 12 };
    for (bit, entry) in [(1 << 1, 4), (1 << 2, 12), (1 << 8, statistic), (1 << 3, 16)] {
        if xinfo & bit != 0 {
            at += 4 + u32_at(record, at)? as usize * entry;
        }
    }
    match xinfo & (1 << 4) != 0 {
        true => u32_at(record, at),
        false => Some(own),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::walker::RECORD_HEADER;

    fn record(info: u8, xid: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; RECORD_HEADER];
        bytes[4..8].copy_from_slice(&xid.to_le_bytes());
        bytes[16] = info;
        bytes.extend([255, data.len() as u8]);
        bytes.extend(data);
        bytes
    }

    #[test]
    fn the_transaction_is_the_records_or_the_prepared_one() {
        assert_eq!(ended(&record(0, 7, &[0; 8]), 0xD110), Some(7));
        let mut data = vec![0; 8];
        data.extend((1u32 | 1 << 1 | 1 << 8 | 1 << 4).to_le_bytes());
        data.extend([0; 8]);
        data.extend([1, 0, 0, 0, 9, 0, 0, 0]);
        data.extend(1u32.to_le_bytes());
        let (mut old, mut new) = (data.clone(), data);
        old.extend([0; 12]);
        new.extend([0; 16]);
        for data in [&mut old, &mut new] {
            data.extend(4711u32.to_le_bytes());
        }
        assert_eq!(ended(&record(0x80 | 0x30, 0, &old), 0xD110), Some(4711));
        assert_eq!(ended(&record(0x80 | 0x30, 0, &new), MAGIC_18), Some(4711));
        assert_eq!(ended(&record(0x80 | 0x30, 0, &old[..30]), 0xD110), None);
    }

    #[test]
    fn the_name_of_a_restore_point_ends_at_its_zero() {
        let mut data = vec![0; 8];
        data.extend(b"before the release\0\0garbage");
        assert_eq!(point(&record(0x70, 0, &data)), Some(b"before the release".as_slice()));
    }
}
