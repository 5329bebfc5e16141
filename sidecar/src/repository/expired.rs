//! What was removed on purpose.
//!
//! `expired.json` names the WAL that [`crate::retention`] removed, so that nobody takes it for lost. `expire.json` is there only
//! while backups and fragments are being removed: it was written before the first of them went, so that the next expire can tell
//! the rest of an interrupted one from things that nobody knows.

use super::Repository;
use crate::error::Result;
use crate::wal::name::Segment;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A run of segments of one timeline that were removed on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ExpiredWal {
    /// The timeline.
    pub timeline: u32,
    /// The number of the first segment, counted from the beginning of the log.
    pub from: u64,
    /// The number of the last one.
    pub to: u64,
}

/// What was removed on purpose so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expired {
    /// When something was removed last.
    pub at: Timestamp,
    /// The size of the segments, which gives the numbers their meaning.
    pub segment_size: u32,
    /// WAL segments, in order, runs that touch made into one.
    pub wal: Vec<ExpiredWal>,
    /// When somebody said last that the clock is right, though nothing had happened for long (see [`crate::retention::clock`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_trusted_at: Option<Timestamp>,
}

impl Expired {
    /// Nothing was removed.
    pub fn nothing(at: Timestamp, segment_size: u32) -> Self {
        Self { at, segment_size, wal: Vec::new(), clock_trusted_at: None }
    }

    /// True when the segment was removed on purpose.
    pub fn has(&self, segment: Segment) -> bool {
        let number = segment.number(u64::from(self.segment_size));
        self.wal.iter().any(|run| run.timeline == segment.timeline && (run.from..=run.to).contains(&number))
    }

    /// Adds runs.
    pub fn add(&mut self, runs: impl IntoIterator<Item = ExpiredWal>) {
        let mut all: Vec<ExpiredWal> = self.wal.drain(..).chain(runs).collect();
        all.sort_unstable();
        for run in all {
            match self.wal.last_mut() {
                Some(last) if last.timeline == run.timeline && run.from <= last.to.saturating_add(1) => {
                    last.to = last.to.max(run.to);
                }
                _ => self.wal.push(run),
            }
        }
    }
}

/// What an expire is about to remove.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expiring {
    /// Backups.
    pub backups: BTreeSet<String>,
    /// Fragments.
    pub fragments: BTreeSet<String>,
}

impl Repository {
    fn expired_path(&self) -> std::path::PathBuf {
        self.member_dir().join("expired.json")
    }

    fn expiring_path(&self) -> std::path::PathBuf {
        self.member_dir().join("expire.json")
    }

    /// What was removed on purpose; none when nothing ever was.
    pub fn expired(&self) -> Result<Option<Expired>> {
        self.storage().read_sealed(&self.expired_path())
    }

    /// Records what was removed on purpose.
    pub fn write_expired(&self, expired: &Expired) -> Result<()> {
        self.writable()?;
        self.storage().write_sealed(&self.expired_path(), expired)
    }

    /// What an expire that runs, or was interrupted, is about to remove.
    pub fn expiring(&self) -> Result<Option<Expiring>> {
        self.storage().read_sealed(&self.expiring_path())
    }

    /// Records what is about to be removed.
    pub fn write_expiring(&self, expiring: &Expiring) -> Result<()> {
        self.writable()?;
        self.storage().write_sealed(&self.expiring_path(), expiring)
    }

    /// Everything is removed.
    pub fn end_expiring(&self) -> Result<()> {
        self.storage().remove(&self.expiring_path())?;
        self.storage().sync(&self.member_dir())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_that_touch_become_one() {
        let run = |timeline, from, to| ExpiredWal { timeline, from, to };
        let mut expired = Expired::nothing(Timestamp::UNIX_EPOCH, 1 << 20);
        expired.add([run(1, 5, 6), run(1, 1, 2)]);
        expired.add([run(1, 3, 3), run(2, 4, 9), run(1, 6, 7)]);
        assert_eq!(expired.wal, [run(1, 1, 3), run(1, 5, 7), run(2, 4, 9)]);
        assert!(expired.has(Segment::numbered(1, 7, 1 << 20)));
        assert!(!expired.has(Segment::numbered(1, 4, 1 << 20)));
        assert!(!expired.has(Segment::numbered(2, 3, 1 << 20)));
    }
}
