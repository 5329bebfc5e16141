//! What the archive remembers of a segment, so that planning a recovery need not read the whole log.

use super::walker::{SegmentHeader, Walker};
use crate::error::Result;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use strata_catalog::Lsn;

/// A summary of one segment, taken from it alone: records that cross its borders are left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentSummary {
    /// The cluster that wrote it.
    pub system_identifier: u64,
    /// Its size as the server was set up.
    pub segment_size: u32,
    /// Where the last record that is wholly in it begins.
    pub last_record: Option<Lsn>,
    /// Where that record ends.
    pub last_record_end: Option<Lsn>,
    /// The earliest time of a commit or abort in it.
    pub first_time: Option<Timestamp>,
    /// The latest time of a commit or abort in it.
    pub last_time: Option<Timestamp>,
    /// It creates a tablespace.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub creates_tablespace: bool,
}

impl SegmentSummary {
    /// Reads a segment.
    pub fn of(name: &str, header: &SegmentHeader, segment: &[u8]) -> Result<Self> {
        let mut summary = Self {
            system_identifier: header.system_identifier,
            segment_size: header.segment_size,
            last_record: None,
            last_record_end: None,
            first_time: None,
            last_time: None,
            creates_tablespace: false,
        };
        Walker::new().feed(name, segment, |record| {
            summary.last_record = Some(record.start);
            summary.last_record_end = Some(record.end);
            summary.creates_tablespace |= record.creates_tablespace;
            if let Some(time) = record.transaction_time {
                summary.first_time = Some(summary.first_time.map_or(time, |first| first.min(time)));
                summary.last_time = Some(summary.last_time.map_or(time, |last| last.max(time)));
            }
        })?;
        Ok(summary)
    }
}
