//! Timelines: the way from the first timeline to a given one, and which segment of which timeline the way needs.

use crate::error::{Error, Result};
use crate::repository::Repository;
use crate::wal::name::Segment;
use strata_catalog::Lsn;

/// One timeline on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The timeline.
    pub timeline: u32,
    /// Where it left its parent; 0 for the first.
    pub begin: Lsn,
    /// Where the next one left it; none for the last.
    pub end: Option<Lsn>,
}

/// The way to a timeline, oldest first. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain(Vec<Stretch>);

impl Chain {
    /// Reads the way to a timeline from the repository. None when its history is not there.
    pub fn read(repository: &Repository, timeline: u32) -> Result<Option<Self>> {
        if timeline == 1 {
            return Ok(Some(Self::unknown(1)));
        }
        let name = format!("{timeline:08X}.history");
        match repository.read_wal(&name)? {
            Some((_, content)) => Self::parse(timeline, &String::from_utf8_lossy(&content)).map(Some),
            None => Ok(None),
        }
    }

    /// Parses a history file: lines of parent timeline, position where it was left, and a reason.
    pub fn parse(timeline: u32, history: &str) -> Result<Self> {
        let mut stretches = Vec::new();
        let mut begin = Lsn(0);
        for line in history.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let mut fields = line.split_whitespace();
            let parent = fields.next().and_then(|text| text.parse().ok());
            let end = fields.next().and_then(|text| text.parse::<Lsn>().ok());
            let (Some(parent), Some(end)) = (parent, end) else {
                return Err(Error::damaged(
                    format_args!("the history of timeline {timeline}"),
                    format_args!("it has the line \"{line}\""),
                ));
            };
            stretches.push(Stretch { timeline: parent, begin, end: Some(end) });
            begin = end;
        }
        stretches.push(Stretch { timeline, begin, end: None });
        Ok(Self(stretches))
    }

    /// The timelines on the way, oldest first.
    pub fn stretches(&self) -> &[Stretch] {
        &self.0
    }

    /// The stretch on a timeline; none when the way does not touch it.
    pub fn stretch(&self, timeline: u32) -> Option<Stretch> {
        self.0.iter().copied().find(|stretch| stretch.timeline == timeline)
    }

    /// The segment that PostgreSQL reads at a segment number: that of the newest timeline that has begun there.
    pub fn segment(&self, number: u64, segment_size: u64) -> Segment {
        let timeline = self
            .0
            .iter()
            .rev()
            .find(|stretch| stretch.begin.0 / segment_size <= number)
            .map_or(1, |stretch| stretch.timeline);
        Segment::numbered(timeline, number, segment_size)
    }

    /// The way to a timeline of which nothing is known but itself.
    pub fn unknown(timeline: u32) -> Self {
        Self(vec![Stretch { timeline, begin: Lsn(0), end: None }])
    }

    /// The timeline on which something was written at a position of the way. What a server writes on a new timeline lies behind its
    /// beginning: the first record there is its own.
    pub fn holding(&self, lsn: Lsn) -> u32 {
        let newest = self.0.iter().rev().find(|stretch| stretch.begin < lsn);
        newest.or(self.0.first()).map_or(1, |stretch| stretch.timeline)
    }

    /// True when a position on a timeline is on the way.
    pub fn contains(&self, timeline: u32, lsn: Lsn) -> bool {
        self.stretch(timeline).is_some_and(|stretch| stretch.end.is_none_or(|end| lsn <= end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB16: u64 = 16 << 20;

    #[test]
    fn the_way_leads_over_the_parents() {
        let history = "1\t0/3000100\tno recovery target specified\n\n2\t0/5000000\tbefore 2026\n";
        let chain = Chain::parse(4, history).unwrap();
        let timelines: Vec<u32> = chain.stretches().iter().map(|stretch| stretch.timeline).collect();
        assert_eq!(timelines, [1, 2, 4]);
        assert_eq!(chain.segment(2, MB16).timeline, 1);
        assert_eq!(chain.segment(3, MB16).timeline, 2, "the segment of the switch is read from the new timeline");
        assert_eq!(chain.segment(5, MB16).timeline, 4);
        assert!(chain.contains(1, Lsn(0x3000100)));
        assert!(!chain.contains(1, Lsn(0x3000101)));
        assert!(!chain.contains(3, Lsn(1)));
        assert!(chain.contains(4, Lsn(u64::MAX)));
        let holders: Vec<u32> =
            [0, 0x3000100, 0x3000101, 0x5000000, u64::MAX].iter().map(|lsn| chain.holding(Lsn(*lsn))).collect();
        assert_eq!(holders, [1, 1, 2, 2, 4]);
    }

    #[test]
    fn a_broken_history_is_damage() {
        let error = Chain::parse(2, "one 0/1\n").unwrap_err();
        assert_eq!(error.kind, crate::error::ErrorKind::Damaged);
    }
}
