//! Names of files in `pg_wal`.

use std::fmt;
use strata_catalog::Lsn;

/// A WAL segment: which timeline, and the two halves of its number as the name has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment {
    /// The timeline.
    pub timeline: u32,
    /// The middle eight digits.
    pub log: u32,
    /// The last eight digits.
    pub seg: u32,
}

impl Segment {
    /// The segment of `timeline` that holds the byte at `lsn`.
    pub fn holding(timeline: u32, lsn: Lsn, segment_size: u64) -> Self {
        Self::numbered(timeline, lsn.0 / segment_size.max(1), segment_size)
    }

    /// The segment with a number.
    pub fn numbered(timeline: u32, number: u64, segment_size: u64) -> Self {
        let per_log = per_log(segment_size);
        // Numbers of real segments fit: a position has 64 bits, and a log holds 4 GB.
        Self { timeline, log: (number / per_log) as u32, seg: (number % per_log) as u32 }
    }

    /// Its number, counted from the beginning of the log.
    pub fn number(self, segment_size: u64) -> u64 {
        u64::from(self.log) * per_log(segment_size) + u64::from(self.seg)
    }

    /// Where it begins.
    pub fn start(self, segment_size: u64) -> Lsn {
        Lsn(self.number(segment_size).saturating_mul(segment_size))
    }

    /// Where it ends: the first byte behind it.
    pub fn end(self, segment_size: u64) -> Lsn {
        Lsn((self.number(segment_size) + 1).saturating_mul(segment_size))
    }

    /// Parses a name of exactly 24 digits.
    pub fn parse(name: &str) -> Option<Self> {
        if name.len() != 24 {
            return None;
        }
        Some(Self { timeline: hex8(name.get(..8)?)?, log: hex8(name.get(8..16)?)?, seg: hex8(name.get(16..)?)? })
    }
}

fn per_log(segment_size: u64) -> u64 {
    (0x1_0000_0000 / segment_size.max(1)).max(1)
}

fn hex8(text: &str) -> Option<u32> {
    let good = text.len() == 8 && text.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    good.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline, self.log, self.seg)
    }
}

/// A name that PostgreSQL may archive or ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalName {
    /// A whole segment.
    Segment(Segment),
    /// The beginning of the last segment of a timeline that another one left.
    Partial(Segment),
    /// A note about a base backup.
    BackupHistory(Segment),
    /// The history of a timeline.
    History(u32),
}

impl WalName {
    /// Parses a file name.
    pub fn parse(name: &str) -> Option<Self> {
        if let Some(segment) = Segment::parse(name) {
            return Some(Self::Segment(segment));
        }
        if let Some(timeline) = name.strip_suffix(".history") {
            return hex8(timeline).map(Self::History);
        }
        if let Some(segment) = name.strip_suffix(".partial") {
            return Segment::parse(segment).map(Self::Partial);
        }
        let (segment, rest) = name.split_once('.')?;
        hex8(rest.strip_suffix(".backup")?)?;
        Segment::parse(segment).map(Self::BackupHistory)
    }

    /// The timeline that it belongs to.
    pub fn timeline(self) -> u32 {
        match self {
            Self::Segment(segment) | Self::Partial(segment) | Self::BackupHistory(segment) => segment.timeline,
            Self::History(timeline) => timeline,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB16: u64 = 16 << 20;

    #[test]
    fn names_and_positions_agree() {
        let segment = Segment::holding(1, Lsn(0x1_0200_0028), MB16);
        assert_eq!(segment.to_string(), "000000010000000100000002");
        assert_eq!(segment.start(MB16), Lsn(0x1_0200_0000));
        assert_eq!(segment.end(MB16), Lsn(0x1_0300_0000));
        assert_eq!(Segment::parse("000000010000000100000002"), Some(segment));
        let last = Segment::numbered(1, 255, MB16);
        assert_eq!(last.to_string(), "0000000100000000000000FF");
        assert_eq!(Segment::numbered(1, 256, MB16).to_string(), "000000010000000100000000");
        let gb = Segment::holding(3, Lsn(0x2_8000_0000), 1 << 30);
        assert_eq!(gb.to_string(), "000000030000000200000002");
    }

    #[test]
    fn the_four_kinds_are_told_apart() {
        let segment = Segment { timeline: 2, log: 0, seg: 10 };
        for (name, wal) in [
            ("00000002000000000000000A", WalName::Segment(segment)),
            ("00000002000000000000000A.partial", WalName::Partial(segment)),
            ("00000002000000000000000A.00000028.backup", WalName::BackupHistory(segment)),
            ("00000002.history", WalName::History(2)),
        ] {
            assert_eq!(WalName::parse(name), Some(wal), "{name}");
            assert_eq!(wal.timeline(), 2);
        }
    }

    #[test]
    fn other_names_are_refused() {
        for bad in [
            "",
            "x",
            "../00000002.history",
            "00000002000000000000000a",
            "00000002.histor",
            "RECOVERYXLOG",
            "00000002000000000000000A.backup",
            "00000002000000000000000A.00000028",
            "000000020000000000000000A",
        ] {
            assert_eq!(WalName::parse(bad), None, "{bad}");
        }
    }
}
