//! Walks the records of WAL segments, as far as a backup tool must know them: where records begin and end, and the times
//! that commits, aborts, restore points and checkpoints carry.
//!
//! Segments are fed one after the other. A record that crosses a segment boundary is followed across it; one that began
//! before the first segment is skipped. Contents are not interpreted beyond that, and checksums of records are not
//! computed: the archive has its own over the whole segment.
//!
//! The layout is that of PostgreSQL 13 to 18: 24 bytes of page header (40 on a segment's first page), records aligned to
//! 8 bytes with a header of 24 bytes whose first four are the total length.

use crate::error::{Error, Result};
use crate::postgres::PG_EPOCH;
use jiff::Timestamp;
use strata_catalog::Lsn;

const PAGE_HEADER: usize = 24;
const LONG_PAGE_HEADER: usize = 40;
/// The header of a record.
pub const RECORD_HEADER: usize = 24;
const FIRST_IS_CONTRECORD: u16 = 0x1;
const LONG_HEADER: u16 = 0x2;
/// As much of a record as can hold what is looked at: its header, the headers of its parts, and a time.
const PREFIX: usize = 64;

const RM_XLOG: u8 = 0;
const RM_XACT: u8 = 1;
const RM_TABLESPACE: u8 = 5;
const XLOG_SWITCH: u8 = 0x40;
const XLOG_RESTORE_POINT: u8 = 0x70;
const TABLESPACE_CREATE: u8 = 0x00;

/// What is known of the cluster from a segment's first page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The timeline in the page header.
    pub timeline: u32,
    /// Where the segment begins.
    pub start: Lsn,
    /// The cluster that wrote it.
    pub system_identifier: u64,
    /// Its size.
    pub segment_size: u32,
    /// The size of its pages.
    pub page_size: u32,
}

/// The number of 16 bits at a place.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The number of 32 bits at a place.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// How long the header of a page with these bits is.
pub fn page_header(info: u16) -> usize {
    if info & LONG_HEADER != 0 { LONG_PAGE_HEADER } else { PAGE_HEADER }
}

impl SegmentHeader {
    /// Reads the first page's header. None when these are not the first bytes of a segment.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let magic = u16_at(bytes, 0)?;
        let info = u16_at(bytes, 2)?;
        let header = Self {
            timeline: u32_at(bytes, 4)?,
            start: Lsn(u64_at(bytes, 8)?),
            system_identifier: u64_at(bytes, 24)?,
            segment_size: u32_at(bytes, 32)?,
            page_size: u32_at(bytes, 36)?,
        };
        let good = magic & 0xff00 == 0xd100
            && info & LONG_HEADER != 0
            && header.segment_size.is_power_of_two()
            && header.segment_size >= 1 << 20
            && header.page_size.is_power_of_two()
            && (512..=65536).contains(&header.page_size)
            && header.start.0.is_multiple_of(u64::from(header.segment_size));
        good.then_some(header)
    }
}

/// A record that was seen whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it begins; what PostgreSQL compares with `recovery_target_lsn`.
    pub start: Lsn,
    /// Where it ends, not aligned.
    pub end: Lsn,
    /// The time in it: of a commit or abort.
    pub transaction_time: Option<Timestamp>,
    /// The time in it, when it is a restore point.
    pub restore_point_time: Option<Timestamp>,
    /// It creates a tablespace.
    pub creates_tablespace: bool,
}

struct Open {
    start: Lsn,
    total: usize,
    got: usize,
    prefix: Vec<u8>,
}

/// The walk. See the module's text.
#[derive(Default)]
pub struct Walker {
    next_segment: Option<Lsn>,
    open: Option<Open>,
}

impl Walker {
    /// A walk that begins with the next segment that is fed.
    pub fn new() -> Self {
        Self::default()
    }

    /// True when a record began and has not ended: the log goes on in the next segment.
    pub fn in_record(&self) -> bool {
        self.open.is_some()
    }

    /// Walks through one segment, which must follow the one before. Calls `seen` for each record that ends in it.
    pub fn feed(&mut self, name: &str, segment: &[u8], mut seen: impl FnMut(Record)) -> Result<()> {
        let bad = |why: String| Error::damaged(format_args!("the WAL segment {name}"), why);
        let header = SegmentHeader::read(segment).ok_or_else(|| bad("its first page has no header".to_owned()))?;
        if self.next_segment.is_some_and(|expected| expected != header.start) {
            return Err(bad(format!("it begins at {}, which does not follow the segment before", header.start)));
        }
        self.next_segment = Some(Lsn(header.start.0 + u64::from(header.segment_size)));
        let page_size = header.page_size as usize;
        let mut at = 0;
        while at < segment.len() {
            let in_page = at % page_size;
            if in_page == 0 {
                match self.page_start(segment, at, header.start) {
                    Some(next) => at = next,
                    // Zeros or an older page: the log ended before here.
                    None => {
                        self.open = None;
                        return Ok(());
                    }
                }
                continue;
            }
            let page_end = (at - in_page + page_size).min(segment.len());
            let Some(open) = &mut self.open else {
                let Some(total) = u32_at(segment, at).map(|n| n as usize).filter(|n| *n >= RECORD_HEADER) else {
                    return Ok(());
                };
                self.open = Some(Open { start: Lsn(header.start.0 + at as u64), total, got: 0, prefix: Vec::new() });
                continue;
            };
            let take = (open.total - open.got).min(page_end - at);
            let piece = segment.get(at..at + take).unwrap_or_default();
            if open.prefix.len() < PREFIX {
                let room = PREFIX - open.prefix.len();
                open.prefix.extend_from_slice(piece.get(..room.min(piece.len())).unwrap_or_default());
            }
            open.got += take;
            at += take;
            if open.got == open.total {
                let end = Lsn(header.start.0 + at as u64);
                let (record, switch) = interpret(open, end);
                self.open = None;
                seen(record);
                if switch {
                    return Ok(());
                }
                at = at.next_multiple_of(8);
            }
        }
        Ok(())
    }

    /// Passes a page header. Returns where content goes on, none when there is no page of this log here.
    fn page_start(&mut self, segment: &[u8], at: usize, start: Lsn) -> Option<usize> {
        let info = u16_at(segment, at + 2)?;
        let address = u64_at(segment, at + 8)?;
        let remaining = u32_at(segment, at + 16)? as usize;
        if u16_at(segment, at)? & 0xff00 != 0xd100 || address != start.0 + at as u64 {
            return None;
        }
        let next = at + page_header(info);
        let continues = info & FIRST_IS_CONTRECORD != 0;
        match &self.open {
            Some(open) if continues && open.total - open.got == remaining => Some(next),
            // The record was abandoned in a crash, or began before the first segment.
            _ => {
                self.open = None;
                if !continues {
                    return Some(next);
                }
                Some(skip(segment, next, remaining))
            }
        }
    }
}

/// Skips the rest of a record whose beginning is not known: `remaining` bytes from `at` on, page headers not counted.
fn skip(segment: &[u8], mut at: usize, mut remaining: usize) -> usize {
    let page_size = SegmentHeader::read(segment).map_or(8192, |header| header.page_size as usize);
    loop {
        let page_end = (at - at % page_size + page_size).min(segment.len());
        if at + remaining <= page_end {
            return (at + remaining).next_multiple_of(8).min(segment.len());
        }
        remaining -= page_end - at;
        if page_end >= segment.len() {
            return segment.len();
        }
        at = page_end + PAGE_HEADER;
    }
}

fn pg_time(bytes: &[u8], at: usize) -> Option<Timestamp> {
    let micros = i64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?);
    Timestamp::from_microsecond(micros.checked_add(PG_EPOCH)?).ok()
}

fn interpret(open: &Open, end: Lsn) -> (Record, bool) {
    let mut record =
        Record { start: open.start, end, transaction_time: None, restore_point_time: None, creates_tablespace: false };
    let info = open.prefix.get(16).copied().unwrap_or(0) & 0xf0;
    let manager = open.prefix.get(17).copied().unwrap_or(255);
    match manager {
        // Commit 0x00, abort 0x20, commit prepared 0x30, abort prepared 0x40; bit 0x80 says that more is in the record.
        RM_XACT if matches!(info & 0x70, 0x00 | 0x20 | 0x30 | 0x40) => {
            record.transaction_time = main_data(&open.prefix).and_then(|at| pg_time(&open.prefix, at));
        }
        RM_XLOG if info == XLOG_RESTORE_POINT => {
            record.restore_point_time = main_data(&open.prefix).and_then(|at| pg_time(&open.prefix, at));
        }
        RM_TABLESPACE if info == TABLESPACE_CREATE => record.creates_tablespace = true,
        _ => {}
    }
    (record, manager == RM_XLOG && info == XLOG_SWITCH)
}

/// Where the main data begins in a record without block references.
pub fn main_data(prefix: &[u8]) -> Option<usize> {
    let mut at = RECORD_HEADER;
    loop {
        match prefix.get(at)? {
            255 => return Some(at + 2),
            254 => return Some(at + 5),
            253 => at += 3,
            252 => at += 5,
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests;
